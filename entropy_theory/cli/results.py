"""From metrics.jsonl to the numbers that are printed, drawn and stored as CSV."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from entropy_theory.fit import mean_interval
from entropy_theory.runs import read_metrics

REWARD = {"bandit": "reward", "cartpole": "episode_return", "llm": "reward"}
"""The metric each world maximises: expected reward, return of 500 at most, pass rate."""

FINAL_SHARE = 0.1
"""Final values are means over this last share of a run's steps, per seed."""


class Curves(NamedTuple):
    """Metrics of one control in one world: steps [T] and columns by name, each [seeds, T] (NaN where not logged)."""

    world: str
    control: str
    steps: np.ndarray
    columns: dict[str, np.ndarray]

    def column(self, name: str) -> np.ndarray:
        """A metric by its logged name, or "return" for what this world maximises."""
        return self.columns[REWARD[self.world] if name == "return" else name]


def read_curves(folders: Sequence[Path], world: str, control: str) -> Curves:
    """All seeds of one control: one directory whose metrics are lists over seeds, or one directory per seed.

    What is logged in some lines only (a measurement every n steps) is NaN in the others.
    """
    runs = [read_metrics(folder) for folder in folders]
    steps = np.array([line["step"] for line in runs[0]])
    names = dict.fromkeys(name for run in runs for line in run for name in line if name != "step")
    columns = {name: [_column(run, name) for run in runs] for name in names}
    numbers = {name: parts for name, parts in columns.items() if all(part is not None for part in parts)}
    return Curves(world, control, steps, {name: np.concatenate(parts) for name, parts in numbers.items()})


def _column(run: Sequence[dict], name: str) -> np.ndarray | None:
    """One metric of one run, [seeds, T]; None for what is no number or list of numbers."""
    values = [line.get(name) for line in run]
    if any(isinstance(value, str | dict) for value in values):
        return None
    seeds = max(len(value) if isinstance(value, list) else 1 for value in values)
    rows = [value if isinstance(value, list) else [value] * seeds for value in values]
    return np.array(rows, float).T  # None becomes NaN


def final(values: np.ndarray) -> np.ndarray:
    """Mean over the last `FINAL_SHARE` of the steps at which there is a value, per seed; NaN where there is none."""
    there = ~np.isnan(values).all(axis=tuple(range(values.ndim - 1)))
    values = values[..., there]
    count = max(1, round(FINAL_SHARE * values.shape[-1]))
    return mean_of_numbers(values[..., -count:])


def mean_of_numbers(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    if not np.isnan(values).any() and values.shape[-1]:
        return values.mean(-1)
    count = np.isfinite(values).sum(-1)
    return np.where(count > 0, np.nansum(values, -1) / np.maximum(count, 1), np.nan)


def final_row(curves: Curves, baseline: Curves | None = None) -> dict:
    """The row of the results table: start and final entropy, final return, with 95 % intervals over seeds.

    With a baseline (the run of `none` on the same seeds) also the ratio of final entropies (geometric mean of the
    paired ratios) and the difference of final returns.
    """
    entropy, result = curves.column("entropy"), curves.column("return")
    row = {
        "world": curves.world,
        "control": curves.control,
        "seeds": len(entropy),
        "entropy_start": float(entropy[:, 0].mean()),
    }
    row |= _interval("entropy_final", final(entropy))
    row |= _interval("entropy_share", final(entropy) / entropy[:, 0])
    row |= _interval("return_final", final(result))
    if baseline is not None:
        ratio = np.log(final(entropy) / final(baseline.column("entropy")))
        row |= {k: float(np.exp(v)) for k, v in _interval("entropy_ratio", ratio).items()}
        row |= _interval("return_difference", final(result) - final(baseline.column("return")))
    return row


def _interval(name: str, values: np.ndarray) -> dict[str, float]:
    mean, low, high = mean_interval(values)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _cell(row: dict, name: str, digits: int) -> str:
    if name not in row:
        return ""
    text = f"{row[name]:.{digits}f}"
    if np.isfinite(row[f"{name}_low"]):
        text += f" [{row[f'{name}_low']:.{digits}f}, {row[f'{name}_high']:.{digits}f}]"
    return text


def results_cells(rows: Sequence[dict]) -> list[list[str]]:
    """Header and rows of the results table, as text."""
    header = ["world", "control", "seeds", "H start", "H final (nats)", "H final / start", "final return"]
    compared = any("entropy_ratio" in row for row in rows)
    if compared:
        header += ["H / H of none", "return - none"]
    lines = [header]
    for row in rows:
        digits = 1 if row["world"] == "cartpole" else 3
        line = [row["world"], row["control"], str(row["seeds"]), f"{row['entropy_start']:.3f}"]
        line += [_cell(row, "entropy_final", 4), _cell(row, "entropy_share", 3), _cell(row, "return_final", digits)]
        if compared:
            line += [_cell(row, "entropy_ratio", 2), _cell(row, "return_difference", digits)]
        lines.append(line)
    return lines


def align(lines: Sequence[Sequence[str]]) -> str:
    """Cells as a text table, the header underlined."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def results_table(rows: Sequence[dict]) -> str:
    """The results table with its legend."""
    legend = "[95 % t intervals over seeds; final = mean over the last tenth of the steps]"
    return f"\n{align(results_cells(rows))}\n{legend}"
