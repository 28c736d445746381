"""Small tables of results: CSV files, and rank correlations of their columns."""

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

TIES = 1e-6
"""Grid on which numbers are ranked, so that what differs only by rounding, or by nothing that matters, ties."""


def write_csv(path: Path, rows: Sequence[Mapping]) -> None:
    """Rows as CSV with 6 significant digits; None and NaN as an empty cell."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows({name: _text(value) for name, value in row.items()} for row in rows)
    os.replace(temporary, path)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file as text; none if there is no such file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def replace_rows(path: Path, rows: Sequence[Mapping], key: str = "world") -> None:
    """Write `rows` in place of those in the file that share a value of `key` with one of them, and keep the others."""
    written = {row[key] for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, [*(row for row in read_csv(path) if row[key] not in written), *rows])


def _text(value):
    if value is None:
        return ""
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation of two series; NaN where either is constant (to within `TIES`) or not a number."""
    x, y = (np.asarray(values, float) for values in (x, y))
    if not (np.isfinite(x).all() and np.isfinite(y).all()) or np.ptp(x) <= TIES or np.ptp(y) <= TIES:
        return math.nan
    return float(stats.spearmanr(np.round(x / TIES), np.round(y / TIES)).statistic)
