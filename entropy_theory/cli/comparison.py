"""The controls of several sweeps side by side: performance, entropy, collapses and explosions, cost of an update."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entropy_theory.cli.engines import read_note
from entropy_theory.cli.results import Curves, align, final, read_curves
from entropy_theory.cli.sweep_files import note_path
from entropy_theory.cli.sweep_results import area
from entropy_theory.cli.worlds import run_folders
from entropy_theory.fit import mean_interval
from entropy_theory.statistics import bootstrap_interval, iqm
from entropy_theory.sweeps import Point, Sweep
from entropy_theory.tables import write_csv

POINTS, LEAST = 50, 1e-12
"""Most points of an entropy curve, and the entropy (nats) that stands for smaller ones, 0 among them."""

COLLAPSE, EXPLOSION = 0.1, 1.5
"""A seed's entropy has collapsed (exploded) when its final value is below (above) this share of its first."""


def report(sweeps: Sequence[Sweep], out: Path) -> None:
    """Write data/comparison.csv and comparison_entropy.csv and their figures, and print a table for each world."""
    from paper_figs import fig14_controls, fig17_entropy_curves

    rows = [row for sweep in sweeps for row in _rows(sweep, out / sweep.name)]
    if not rows:
        return
    path = out / "data" / "comparison.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, rows)
    entropies = [row for sweep in sweeps for row in _entropy_rows(sweep, out / sweep.name)]
    write_csv(path.with_name("comparison_entropy.csv"), entropies)
    for sweep in sweeps:
        print(table([row for row in rows if row["sweep"] == sweep.name]))
    print(LEGEND)
    print(f"table:   {path}")
    for figure in (fig14_controls, fig17_entropy_curves):
        print(f"figure:  {figure.draw(path.parent, out)}")


def _rows(sweep: Sweep, out: Path) -> list[dict[str, Any]]:
    """A row for each run of a sweep that is done, with its cost relative to `none`."""
    rows = [_row(sweep, point, curves) | {"processor_seconds": spent} for point, curves, spent in _done(sweep, out)]
    plain = next((row["processor_seconds"] for row in rows if row["control"] == "none"), 0.0)
    return [row | {"relative_cost": row["processor_seconds"] / plain if plain else np.nan} for row in rows]


def _done(sweep: Sweep, out: Path) -> Iterator[tuple[Point, Curves, float]]:
    """The runs of a sweep that are done, and the processor seconds of a recorded step of each."""
    for point in sweep.points:
        folders = run_folders(sweep.world, point.config, out / point.folder)
        notes = [read_note(note_path(out, folder)) for folder, _ in folders]
        if all(note["status"] == "done" for note in notes):
            curves = read_curves([folder for folder, _ in folders], sweep.world, point.config.control)
            yield point, curves, sum(note["processor_seconds"] for note in notes) / len(curves.steps)


def _entropy_rows(sweep: Sweep, out: Path) -> list[dict[str, Any]]:
    """Geometric mean of the entropy over seeds, with its 95 % t interval, at up to `POINTS` steps of each run."""
    rows = []
    for point, curves, _ in _done(sweep, out):
        logarithm = np.log(np.maximum(curves.column("entropy"), LEAST))
        for i in np.unique(np.linspace(0, len(curves.steps) - 1, POINTS).round().astype(int)):
            mean, low, high = (float(np.exp(value)) for value in mean_interval(logarithm[:, i]))
            found = {"step": int(curves.steps[i]), "entropy": mean, "entropy_low": low, "entropy_high": high}
            rows.append(_names(sweep, point) | found)
    return rows


def _names(sweep: Sweep, point: Point) -> dict[str, Any]:
    return {"sweep": sweep.name, "world": sweep.world, "control": point.config.control, "label": point.label}


def _row(sweep: Sweep, point: Point, curves: Curves) -> dict[str, Any]:
    entropy, performance = curves.column("entropy"), curves.column("return")
    share = final(entropy) / entropy[:, 0]
    row = _names(sweep, point) | {"seeds": len(entropy)}
    measures = {
        "final_return": final(performance),
        "area_return": np.array([area(curves.steps, values) for values in performance]),
        "final_entropy": final(entropy),
    }
    measures |= {name: final(values) for name, values in curves.columns.items() if name.startswith("pass_at_")}
    for name, values in measures.items():
        interval = bootstrap_interval(values, iqm)
        row |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return row | {
        "entropy_start": float(entropy[:, 0].mean()),
        "collapsed": float((share < COLLAPSE).mean()),
        "exploded": float((share > EXPLOSION).mean()),
    }


COLUMNS = {
    "final_return": "final performance",
    "area_return": "mean over the run",
    "pass_at_1": "pass@1",
    "pass_at_4": "pass@4",
    "pass_at_16": "pass@16",
    "final_entropy": "final entropy (nats)",
}
"""Columns with intervals, in the order of the table."""

LEGEND = (
    "[interquartile means over seeds, 95 % bootstrap intervals; final = mean over the last tenth of the steps;\n"
    f"collapsed, exploded: share of seeds whose final entropy is below {COLLAPSE:g} or above {EXPLOSION:g} of their "
    "first;\ncost: processor time of a recorded step relative to none, all that is logged included]"
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The comparison in one world as text."""
    shown = {name: text for name, text in COLUMNS.items() if name in rows[0]}
    lines = [[rows[0]["world"], "seeds", *shown.values(), "collapsed", "exploded", "cost"]]
    for row in rows:
        cells = [_cell(row, name) for name in shown]
        shares = [f"{row[name]:.0%}" for name in ("collapsed", "exploded")]
        lines.append([row["label"], str(row["seeds"]), *cells, *shares, f"{row['relative_cost']:.2f}"])
    return f"\n{align(lines)}"


def _cell(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.3g} [{row[f'{name}_low']:.3g}, {row[f'{name}_high']:.3g}]"
