"""Figures (part of entropy-theory): each file draws one from small CSV files and never trains."""
