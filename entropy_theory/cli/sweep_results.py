"""From the run directories of a sweep to its tables: results.parquet, and CSV of summaries, curves and profiles."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from entropy_theory.cli.engines import read_note
from entropy_theory.cli.results import REWARD, Curves, align, final, mean_of_numbers, read_curves
from entropy_theory.cli.sweep_files import note_path
from entropy_theory.cli.worlds import run_folders
from entropy_theory.statistics import (
    Interval,
    bootstrap_interval,
    curve_band,
    iqm,
    performance_profile,
    probability_of_improvement,
)
from entropy_theory.sweeps import Point, Sweep
from entropy_theory.tables import write_csv

POINTS = 100
"""Points of a curve kept in the table, evenly spaced, both ends included."""

SEED_POINTS = 30
"""Steps at which the table of single seeds has values."""

THRESHOLDS = 50
"""Thresholds of a performance profile, evenly spaced from the smallest final return to the largest."""

MAIN = ("entropy", "return", "regret")
"""Metrics of the summary and the curves, where a world logs them; a sweep's `curves` adds others."""


class Results(NamedTuple):
    """rows: one per run and seed; summary: one per run that is done; files: the tables written as CSV."""

    rows: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    files: list[Path]


def write_results(sweep: Sweep, out: Path) -> Results:
    """Write all tables of what is done so far."""
    rows, curves = [], {}
    for point in sweep.points:
        folders = run_folders(sweep.world, point.config, out / point.folder)
        notes = [read_note(note_path(out, folder)) for folder, _ in folders]
        done = [folder for (folder, _), note in zip(folders, notes, strict=True) if note["status"] == "done"]
        if done:
            found = read_curves(done, sweep.world, point.config.control)
            if len(done) == len(folders):
                curves[point.index] = found
        rows += _rows(sweep, point, notes, found if done else None)
    write_parquet(out / "results.parquet", rows)
    summary = summarise(sweep, curves)
    tables = {
        "summary": summary,
        "curves": [row for index, found in curves.items() for row in _curve(sweep, sweep.points[index], found)],
        "profiles": [row for index, found in curves.items() for row in _profile(sweep.points[index], found, curves)],
    }
    if sweep.per_seed:
        tables["seeds"] = [row for i, found in curves.items() for row in _per_seed(sweep, sweep.points[i], found)]
    files = []
    for name, table in tables.items() if curves else ():
        files.append(out / "data" / f"{sweep.name}_{name}.csv")
        files[-1].parent.mkdir(exist_ok=True)
        write_csv(files[-1], table)
    return Results(rows, summary, files)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    """One table of all rows, a column for whatever any of them has."""
    import pyarrow
    from pyarrow import parquet

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: _one_type([row.get(name) for row in rows]) for name in names}
    temporary = path.with_suffix(".tmp")
    parquet.write_table(pyarrow.table(columns), temporary)
    temporary.replace(path)


def _one_type(values: list) -> list:
    """Values as they are if they are of one type (whole numbers count as numbers), else all as text."""
    types = {float if type(value) is int else type(value) for value in values if value is not None}
    return values if len(types) <= 1 else [None if value is None else str(value) for value in values]


def _rows(sweep: Sweep, point: Point, notes: list[dict], curves: Curves | None) -> list[dict[str, Any]]:
    """The rows of one run: what became of each seed, and the final and mean value of every metric."""
    rows, trained = [], 0
    for i in range(sweep.seeds):
        note = notes[i if len(notes) > 1 else 0]
        row = {"index": point.index, "label": point.label, **point.axes, "seed": sweep.seed + i}
        row |= {"status": note["status"] if note["status"] in ("done", "failed") else "not run"}
        row |= {"reason": note.get("reason", ""), "attempts": note["attempts"], "seconds": round(note["seconds"], 3)}
        if note["status"] == "done":
            row["steps"] = int(curves.steps[-1])
            for name, values in curves.columns.items():
                row[f"final_{name}"] = float(final(values[trained]))
                row[f"area_{name}"] = area(curves.steps, values[trained])
            trained += 1
        rows.append(row)
    return rows


def area(steps: np.ndarray, values: np.ndarray) -> float:
    """Area under a curve by trapezia over the steps it spans: its mean over the run. NaN are left out."""
    there = ~np.isnan(values)
    steps, values = steps[there], values[there]
    if len(steps) < 2:
        return float(mean_of_numbers(values))
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def _metrics(sweep: Sweep, curves: Curves) -> dict[str, np.ndarray]:
    """The main metrics of a run by name, each [seeds, T]; KeyError-free: a metric that is not logged is left out."""
    names = {"return": REWARD[sweep.world]}
    wanted = [*MAIN, *(name for name in sweep.curves if name not in MAIN)]
    return {name: curves.columns[key] for name in wanted if (key := names.get(name, name)) in curves.columns}


def summarise(sweep: Sweep, curves: dict[int, Curves]) -> list[dict[str, Any]]:
    """One row per run: means and interquartile means of the final main metrics, and the comparison with `none`."""
    rows = []
    for index, found in curves.items():
        point = sweep.points[index]
        row = {"index": index, "label": point.label, "world": sweep.world, **point.axes}
        row |= {"control": point.config.control, "seeds": len(found.column("entropy"))}
        for name, values in _metrics(sweep, found).items():
            for kind, statistic in STATISTICS.items():
                row |= _columns(f"{name}_{kind}", bootstrap_interval(final(values), statistic))
        baseline = baseline_of(sweep, point)
        if baseline is not None and baseline in curves:
            pair = (final(found.column("return")), final(curves[baseline].column("return")))
            row |= _columns("improvement", probability_of_improvement(*pair))
        rows.append(row)
    return rows


STATISTICS: dict[str, Callable] = {"mean": np.mean, "iqm": iqm}


def baseline_of(sweep: Sweep, point: Point) -> int | None:
    """Index of the run without a control that agrees with `point` in every other axis; None for such a run itself."""
    if point.config.control == "none":
        return None
    others = {key: value for key, value in point.axes.items() if key != "control" and "." not in key}
    for other in sweep.points:
        if other.config.control == "none" and others.items() <= other.axes.items():
            return other.index
    return None


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _curve(sweep: Sweep, point: Point, curves: Curves) -> list[dict[str, Any]]:
    """At most `POINTS` rows of one run: means over seeds with their intervals.

    A metric logged every n steps takes the places of its own steps, so that none of its values is missed.
    """
    rows: dict[int, dict[str, Any]] = {}
    for name, values in _metrics(sweep, curves).items():
        there = np.flatnonzero(~np.isnan(values).all(0))
        if not len(there):
            continue
        places = there[_spread(len(there), POINTS)]
        band = curve_band(values[:, places])
        for place, *numbers in zip(places, *band, strict=True):
            row = rows.setdefault(int(place), {"step": int(curves.steps[place])})
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), map(float, numbers), strict=True))
    start = {"index": point.index, "label": point.label, "world": sweep.world, "control": point.config.control}
    return [start | point.axes | rows[place] for place in sorted(rows)]


def _per_seed(sweep: Sweep, point: Point, curves: Curves) -> list[dict[str, Any]]:
    """Every seed's own values of the metrics in the sweep's `per_seed`, at no more than `SEED_POINTS` steps."""
    names = [name for name in sweep.per_seed if name in curves.columns]
    there = np.flatnonzero(np.logical_or.reduce([~np.isnan(curves.columns[name]).all(0) for name in names]))
    if not len(there):
        return []
    start = {"index": point.index, "label": point.label, **point.axes}
    return [
        start
        | {"seed": sweep.seed + seed, "step": int(curves.steps[place])}
        | {name: float(curves.columns[name][seed, place]) for name in names}
        for seed in range(len(curves.column("entropy")))
        for place in there[_spread(len(there), SEED_POINTS)]
    ]


def _spread(count: int, most: int) -> np.ndarray:
    """Places of at most so many of `count` things, evenly spaced, both ends included."""
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def _profile(point: Point, curves: Curves, all_curves: dict[int, Curves]) -> list[dict[str, Any]]:
    """Share of a run's seeds whose final return is above each threshold; nothing where no return was logged."""
    scores = final(curves.column("return"))
    everything = np.concatenate([final(other.column("return")) for other in all_curves.values()])
    if np.isnan(scores).all():
        return []
    thresholds = np.linspace(np.nanmin(everything), np.nanmax(everything), THRESHOLDS)
    band = performance_profile(scores, thresholds)
    start = {"index": point.index, "label": point.label, "control": point.config.control}
    names = ("threshold", "share", "share_low", "share_high")
    lines = zip(thresholds, *band, strict=True)
    return [start | dict(zip(names, map(float, line), strict=True)) for line in lines]


def table(sweep: Sweep, results: Results) -> str:
    """The summary as text, and which runs are missing from it."""
    done = {row["index"] for row in results.summary}
    names = [name for name in (*MAIN, *sweep.curves) if any(f"{name}_iqm" in row for row in results.summary)]
    compared = any("improvement" in row for row in results.summary)
    lines = [["run", "label", "seeds", *(f"final {name}" for name in names), *["P(better than none)"] * compared]]
    for row in results.summary:
        cells = [_cell(row, f"{name}_iqm") for name in names] + [_cell(row, "improvement")] * compared
        lines.append([str(row["index"]), row["label"], str(row["seeds"]), *cells])
    for point in sweep.points:
        if point.index not in done:
            status = next(row["status"] for row in results.rows if row["index"] == point.index and
                          row["status"] != "done")  # fmt: skip
            lines.append(
                [str(point.index), point.label, "", *[status] * (len(names) > 0), *[""] * (len(names) - 1 + compared)]
            )
    legend = "[interquartile means over seeds, 95 % bootstrap intervals; final = mean over the last tenth of the steps]"
    return f"\n{align(lines)}\n{legend}"


def _cell(row: dict, name: str) -> str:
    if name not in row:
        return ""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.4g}" + (f" [{low:.4g}, {high:.4g}]" if np.isfinite(low) else "")
