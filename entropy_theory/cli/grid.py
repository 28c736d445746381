"""The grid of a sweep: a few candidates for each control, the same number for all, tried on the tuning seeds.

The best goes into the report, which uses other seeds. No package beyond the core is needed.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from entropy_theory.cli.engines import Engine, carry_out
from entropy_theory.cli.results import align
from entropy_theory.cli.sweep_files import jobs_of
from entropy_theory.cli.trials import inline, outcome, tuning_point
from entropy_theory.sweeps import Point, Sweep, candidates_of, with_parameters


class Tried(NamedTuple):
    """One candidate of a point: its parameters, the metric on the tuning seeds (NaN: none), and why there is none."""

    parameters: dict[str, Any]
    value: float
    reason: str


def tune(sweep: Sweep, chosen: Sequence[int], engine: Engine, out: Path) -> Sweep:
    """The sweep with the best candidate of each chosen run that has some; writes grid.toml and prints what was tried.

    Raises: ValueError if all candidates of a run failed, or the metric is not logged.
    """
    points = [sweep.points[index] for index in chosen if candidates_of(sweep, sweep.points[index])]
    trials = {point.index: [tuning_point(sweep, point, c) for c in candidates_of(sweep, point)] for point in points}
    folders = [out / f"tune/candidate-{i}" for i in range(max(map(len, trials.values()), default=0))]
    placed = [pair for row in trials.values() for pair in zip(row, folders, strict=True)]
    jobs = [job for trial, folder in placed for job in jobs_of(sweep.world, trial, folder)]
    carry_out(engine, sorted(jobs, key=lambda job: -job.weight), f"{sweep.name}: tuning")
    tried = {
        point.index: [
            Tried(candidate, *outcome(sweep, trial, folder))
            for candidate, trial, folder in zip(candidates_of(sweep, point), trials[point.index], folders, strict=True)
        ]
        for point in points
    }
    best = {point.index: _best(sweep, point, tried[point.index]) for point in points}
    _write(sweep, points, tried, best, out / "grid.toml")
    print(_table(sweep, points, tried, best))
    changed = [p._replace(config=with_parameters(sweep, p, best.get(p.index, {}))) for p in sweep.points]
    return dataclasses.replace(sweep, points=tuple(changed))


def _best(sweep: Sweep, point: Point, tried: Sequence[Tried]) -> dict[str, Any]:
    """Parameters of the best candidate, the first of them among equals."""
    there = [candidate for candidate in tried if not math.isnan(candidate.value)]
    if not there:
        raise ValueError(f"all {len(tried)} candidates of run {point.index} ({point.label}) failed: {tried[0].reason}")
    sign = 1 if sweep.tune.direction == "minimize" else -1
    return min(there, key=lambda candidate: sign * candidate.value).parameters


def _write(sweep: Sweep, points: Sequence[Point], tried: dict, best: dict, path: Path) -> None:
    """What was tried and what was taken, as TOML."""
    from entropy_theory.runs import write_atomic

    lines = [f"metric = {json.dumps(sweep.tune.metric)}", f"seed = {sweep.tune.seed}", f"seeds = {sweep.tune.seeds}"]
    for point in points:
        lines += ["", f"[runs.{json.dumps(point.folder)}]", f"best = {inline(best[point.index])}", "tried = ["]
        for candidate in tried[point.index]:
            found = {"value": candidate.value} if not candidate.reason else {"failed": candidate.reason}
            lines.append(f"    {inline(candidate.parameters | found)},")
        lines.append("]")
    write_atomic(path, "\n".join(lines) + "\n")


def _table(sweep: Sweep, points: Sequence[Point], tried: dict, best: dict) -> str:
    lines = [["tuned run", f"{sweep.tune.metric} of each candidate", "taken"]]
    for point in points:
        values = " ".join("failed" if t.reason else f"{t.value:.4g}" for t in tried[point.index])
        taken = ", ".join(f"{key}={value}" for key, value in best[point.index].items())
        lines.append([point.label, values, taken or "as it is"])
    last = sweep.tune.seed + sweep.tune.seeds - 1
    legend = f"[on tuning seeds {sweep.tune.seed} to {last}; the next table is of other seeds]"
    return f"\n{align(lines)}\n{legend}"
