"""Runs of other trainers' own functions: collected only where that trainer is installed (make test-trl, test-verl)."""

import importlib.util

collect_ignore = [f"test_{peer}.py" for peer in ("trl", "verl") if importlib.util.find_spec(peer) is None]
