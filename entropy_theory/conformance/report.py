"""What a comparison with the golden batches found, and how it is printed."""

import json
import math
from dataclasses import asdict, dataclass
from typing import NamedTuple

EQUAL, DIFFERS, RAISED = "equal", "differs", "raised"


class Row(NamedTuple):
    """One quantity on one batch.

    quantity:   for example "clip_cov gradient"
    batch:      name of the golden batch
    difference: largest |measured - exact|; for a selection the number of wrongly selected or missing tokens
    allowed:    proved bound of a correct computation at that entry; 0 for a selection
    verdict:    "equal" within the bound, "differs", or "raised" an exception
    note:       counts of a selection, or the exception
    """

    quantity: str
    batch: str
    difference: float
    allowed: float
    verdict: str
    note: str = ""


@dataclass(frozen=True)
class Report:
    """All rows of one comparison.

    dtype: what the trainer's functions were given
    rows:  in the order of the functions, then of the batches
    """

    dtype: str
    rows: tuple[Row, ...]

    @property
    def equal(self) -> bool:
        """Whether every row is equal."""
        return all(row.verdict == EQUAL for row in self.rows)

    def differences(self) -> list[Row]:
        """The rows that are not equal."""
        return [row for row in self.rows if row.verdict != EQUAL]

    def row(self, quantity: str, batch: str) -> Row:
        """The row of one quantity on one batch. Raises KeyError if there is none."""
        for row in self.rows:
            if (row.quantity, row.batch) == (quantity, batch):
                return row
        raise KeyError(f"no row {quantity!r} on {batch!r}")

    def table(self) -> str:
        """Every row as text."""
        cells = [("quantity", "batch", "difference", "allowed", "verdict", "")]
        cells += [(r.quantity, r.batch, short(r.difference), short(r.allowed), r.verdict, r.note) for r in self.rows]
        return _aligned(cells)

    def summary(self) -> str:
        """One line for each quantity: on how many batches it is equal, its worst batch, where it differs."""
        cells = [("quantity", "equal on", "difference", "allowed", "on batch", "differs on")]
        for quantity in dict.fromkeys(row.quantity for row in self.rows):
            rows = [row for row in self.rows if row.quantity == quantity]
            worst = max(rows, key=_severity)
            other = ", ".join(row.batch for row in rows if row.verdict != EQUAL)
            share = f"{sum(row.verdict == EQUAL for row in rows)}/{len(rows)}"
            cells.append((quantity, share, short(worst.difference), short(worst.allowed), worst.batch, other or "-"))
        return _aligned(cells)

    def __str__(self) -> str:
        found = self.differences()
        lines = [f"dtype {self.dtype}", self.summary()]
        if found:
            lines += ["", Report(self.dtype, tuple(found)).table()]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The report as JSON; numbers JSON lacks are strings that float() reads."""
        document = asdict(self) | {"equal": self.equal}
        document["rows"] = [
            {k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in row._asdict().items()}
            for row in self.rows
        ]
        return json.dumps(document, indent=2, allow_nan=False)

    def raise_for_differences(self) -> None:
        """Raise AssertionError with the table of what differs, if anything does."""
        if not self.equal:
            raise AssertionError(f"\n{Report(self.dtype, tuple(self.differences())).table()}")


def short(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"


def _severity(row: Row) -> tuple:
    ratio = row.difference / row.allowed if row.allowed > 0 else row.difference
    return row.verdict == RAISED, row.verdict == DIFFERS, math.inf if math.isnan(ratio) else ratio


def _aligned(cells: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)
