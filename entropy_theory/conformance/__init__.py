"""Golden batches with exact answers, and a comparison that any trainer's own functions can be put through.

    from entropy_theory.conformance import batches, compare
    print(compare({"entropy": my_entropy, "clip_cov": my_clip_cov_loss}, dtype="float32"))

Light to import: NumPy only; torch where tensors are made. What is compared and why a difference counts:
docs/conformance.md.
"""

from entropy_theory.conformance.compare import DTYPES, compare
from entropy_theory.conformance.golden import INPUTS, GoldenBatch, batches, export, index, listing
from entropy_theory.conformance.quantities import QUANTITIES
from entropy_theory.conformance.report import Report, Row

__all__ = [
    "DTYPES",
    "INPUTS",
    "QUANTITIES",
    "GoldenBatch",
    "Report",
    "Row",
    "batches",
    "compare",
    "export",
    "index",
    "listing",
]
