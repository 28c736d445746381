"""Differences between a trainer's functions and the golden batches: what is known, and that nothing else is there."""

from pathlib import Path
from typing import NamedTuple

from entropy_theory.conformance import Report, Row

FOUND: list[str] = []
"""Lines of the differences found in this run."""

DOCS = Path(__file__).parent.parent.parent / "docs" / "conformance.md"


class Known(NamedTuple):
    """Rows that differ for one reason.

    quantities: prefixes of the rows' quantities
    batches:    golden batches
    reason:     as it stands in docs/conformance.md; a test in the same file proves it
    """

    quantities: tuple[str, ...]
    batches: tuple[str, ...]
    reason: str


def differing(report: Report) -> set[tuple[str, str]]:
    """(quantity, batch) of every row that is not equal."""
    return {(row.quantity, row.batch) for row in report.differences()}


def explained(report: Report, known: tuple[Known, ...]) -> set[tuple[str, str]]:
    """(quantity, batch) of the rows that `known` says differ."""
    return {
        (row.quantity, row.batch)
        for row in report.rows
        for k in known
        if row.quantity in k.quantities and row.batch in k.batches
    }


def markdown(report: Report, known: tuple[Known, ...]) -> list[str]:
    """The documentation's lines: one for each batch and reason, with the size of every difference."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in report.differences():
        reason = next(k.reason for k in known if row.quantity in k.quantities and row.batch in k.batches)
        found.setdefault((row.batch, reason), []).append(f"{row.quantity} {_size(row)}")
    return [f"| {batch} | {'; '.join(sizes)} | {reason} |" for (batch, reason), sizes in found.items()]


def _size(row: Row) -> str:
    """Three digits; of a selection how many tokens it has and how many it should have."""
    if row.quantity.endswith("selection"):
        return "(" + ", ".join(row.note.split(", ")[:2]) + ")"
    return f"{row.difference:.3g}"


def assert_documented(report: Report, known: tuple[Known, ...]) -> None:
    """Every row that differs stands in the documentation with its size and its reason."""
    text = DOCS.read_text()
    FOUND.extend(markdown(report, known))
    missing = [line for line in markdown(report, known) if line not in text]
    assert not missing, "docs/conformance.md lacks\n" + "\n".join(missing)
