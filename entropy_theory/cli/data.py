"""From the run directories of `reproduce` to small CSV files, tables and findings.

The CSV files are all that the figures read; copied to paper_figs/data they are what `make figures` draws.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from entropy_theory.claims import table_cells
from entropy_theory.cli.results import (
    REWARD,
    Curves,
    align,
    final,
    final_row,
    read_curves,
    results_cells,
    results_table,
)
from entropy_theory.cli.settings import TrainingRun
from entropy_theory.controls import resolve
from entropy_theory.fit import fit_entropy_reward, mean_interval
from entropy_theory.tables import write_csv

POINTS = 100
"""Most points of a curve that a CSV file keeps."""

MAXIMUM = {"bandit": 1.0, "cartpole": 500.0, "llm": 1.0}
"""Largest possible return of each world."""

CHANGE_SEEDS = 3
"""Seeds whose predicted and measured entropy changes are kept."""


class Tables(NamedTuple):
    """What is printed, and the same cells for the report."""

    verdicts: str
    results: str
    fits: str
    findings: str
    cells: dict[str, list[list[str]]]
    parameters: list[str]
    checked: dict[str, Any]


def write_data(todo: Sequence[TrainingRun], out: Path) -> Tables:
    """Read every run, write out/data/*.csv, and return the tables."""
    data = out / "data"
    data.mkdir(exist_ok=True)
    curves = collect(todo)
    baselines = {c.world: c for c in curves if c.control == "none"}
    rows = [final_row(c, None if c.control == "none" else baselines[c.world]) for c in curves]
    fits = [fit_row(c) for c in baselines.values()]
    checked = json.loads((out / "check.json").read_text())
    write_csv(data / "final.csv", rows)
    write_csv(data / "curves.csv", [row for c in curves for row in curve_rows(c)])
    write_csv(data / "change.csv", [row for c in baselines.values() for row in change_rows(c)])
    write_csv(data / "fit.csv", fits)
    write_csv(data / "fit_points.csv", [row for c in baselines.values() for row in fit_point_rows(c)])
    write_csv(data / "selection.csv", [row for c in curves for row in selection_rows(c)])
    write_csv(data / "difficulty.csv", [row for c in baselines.values() for row in difficulty_rows(c)])
    cells = {
        "verdicts": table_cells(checked),
        "results": results_cells(rows),
        "fits": fit_cells(fits),
        "findings": finding_cells(curves, baselines),
    }
    parameters = parameter_lines(todo)
    return Tables(
        verdicts=align(cells["verdicts"]) + "\n" + checked["summary"],
        results=results_table(rows) + "\n" + "\n".join(parameters),
        fits="\nR = -a exp(H) + b on the runs without control\n" + align(cells["fits"]),
        findings="\nFindings\n" + align(cells["findings"]),
        cells=cells,
        parameters=parameters,
        checked=checked,
    )


def parameter_lines(todo: Sequence[TrainingRun]) -> list[str]:
    """One line per world with the resolved parameters of each control."""
    found: dict[str, dict[str, str]] = {world: {} for world in REWARD}
    for job in todo:
        for name, values in resolve(job.config.control, job.config.set).items():
            if values:
                found[job.world][name] = f"{name} " + " ".join(
                    f"{key}={_short(value)}" for key, value in values.items() if value is not None
                )
    return [f"{world}: {'; '.join(controls.values())}" for world, controls in found.items() if controls]


def _short(value: Any) -> str:
    """A parameter in few characters: a number or a word."""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def collect(todo: Sequence[TrainingRun]) -> list[Curves]:
    """Curves of every world and control, in the order of the settings."""
    folders: dict[tuple[str, str], list[Path]] = {}
    for job in todo:
        folders.setdefault((job.world, job.control), []).append(job.folder)
    order = {world: i for i, world in enumerate(REWARD)}
    return [
        read_curves(sorted(paths), world, control)
        for (world, control), paths in sorted(folders.items(), key=lambda item: order[item[0][0]])
    ]


def kept(count: int, points: int = POINTS) -> np.ndarray:
    """Indices of at most `points` of `count` steps, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(points, count)).round().astype(int))


def curve_rows(curves: Curves) -> list[dict]:
    """Mean and 95 % interval over seeds of entropy and return along the run, each a mean over a short window."""
    rows = []
    for indices in np.array_split(np.arange(len(curves.steps)), min(POINTS, len(curves.steps))):
        row = {"world": curves.world, "control": curves.control, "step": int(curves.steps[indices[-1]])}
        for name in ("entropy", "return"):
            mean, low, high = mean_interval(np.nanmean(curves.column(name)[:, indices], axis=1))
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return rows


CHANGES = (
    "measured_entropy_change",
    "predicted_first_order",
    "predicted_second_order",
    "remainder_bound",
    "minibatch_entropy_change",
    "theorem_1_per_step_size",
    "theorem_2_per_step_size",
)


def change_rows(curves: Curves) -> list[dict]:
    """Measured and predicted entropy change of single updates."""
    return [
        {"world": curves.world, "seed": seed, "step": int(curves.steps[i])}
        | {name: float(curves.column(name)[seed, i]) for name in CHANGES}
        for seed in range(min(CHANGE_SEEDS, len(curves.column("entropy"))))
        for i in kept(len(curves.steps))
    ]


def fit_row(curves: Curves) -> dict:
    """The law fitted to each seed; means over seeds, and the mean within-seed standard error of the ceiling."""
    fits = [
        fit_entropy_reward(h[good], r[good])
        for h, r in zip(curves.column("entropy"), curves.column("return"), strict=True)
        for good in [np.isfinite(h) & np.isfinite(r)]
    ]
    row = {"world": curves.world, "seeds": len(fits)}
    for name in fits[0]._fields:
        row[name] = float(np.mean([getattr(fit, name) for fit in fits]))
    for name in ("a", "b", "ceiling"):
        _, row[f"{name}_low"], row[f"{name}_high"] = mean_interval([getattr(fit, name) for fit in fits])
    return row


def fit_cells(rows: Sequence[dict]) -> list[list[str]]:
    """Header and rows of the table of fits."""
    lines = [
        ["world", "seeds", "a", "b", "ceiling b - a", "s.e. of b - a in a run", "R2 of exp(H)", "R2 of a line in H"]
    ]
    for row in rows:
        digits = 1 if row["world"] == "cartpole" else 3
        cell = {
            name: f"{row[name]:.{digits}f} [{row[f'{name}_low']:.{digits}f}, {row[f'{name}_high']:.{digits}f}]"
            for name in ("a", "b", "ceiling")
        }
        lines.append([row["world"], str(row["seeds"]), cell["a"], cell["b"], cell["ceiling"]])
        lines[-1] += [
            f"{row['ceiling_error']:.{digits + 1}f}",
            f"{row['r_squared']:.3f}",
            f"{row['r_squared_line']:.3f}",
        ]
    return lines


def fit_point_rows(curves: Curves) -> list[dict]:
    """Entropy and return of single steps, a few seeds."""
    return [
        {
            "world": curves.world,
            "seed": seed,
            "entropy": float(curves.column("entropy")[seed, i]),
            "return": float(curves.column("return")[seed, i]),
        }
        for seed in range(min(5, len(curves.column("entropy"))))
        for i in kept(len(curves.steps), 60)
    ]


def selection_rows(curves: Curves) -> list[dict]:
    """How many tokens a control singled out over the run, and the share of them with negative advantage."""
    share = np.nan_to_num(curves.column("selected_share"))
    if not share.any():
        return []
    tokens = np.nan_to_num(curves.column("selected_tokens"))
    negative = np.nan_to_num(curves.column("selected_negative_share"))
    rows = []
    for indices in np.array_split(np.arange(len(curves.steps)), min(40, len(curves.steps))):
        count = tokens[:, indices].sum(1)
        chosen = count > 0
        if not chosen.any():
            continue
        part = (negative * tokens)[:, indices].sum(1)[chosen] / count[chosen]
        mean, low, high = mean_interval(part)
        rows.append(
            {
                "world": curves.world,
                "control": curves.control,
                "step": int(curves.steps[indices[-1]]),
                "selected_share": float(share[:, indices].mean()),
                "negative_share": mean,
                "negative_share_low": low,
                "negative_share_high": high,
            }
        )
    return rows


def difficulty_rows(curves: Curves) -> list[dict]:
    """Pass rate and response-level covariance by difficulty, where the world logs them."""
    rows = []
    for name in sorted(curves.columns):
        if not name.startswith("pass_rate_"):
            continue
        level = name.removeprefix("pass_rate_")
        for indices in np.array_split(np.arange(len(curves.steps)), min(50, len(curves.steps))):
            row = {"world": curves.world, "difficulty": level, "step": int(curves.steps[indices[-1]])}
            for key, label in ((name, "pass_rate"), (f"cov_group_{level}", "cov_group")):
                mean, low, high = mean_interval(np.nanmean(curves.column(key)[:, indices], axis=1))
                row |= {label: mean, f"{label}_low": low, f"{label}_high": high}
            rows.append(row)
    return rows


def finding_cells(curves: Sequence[Curves], baselines: dict[str, Curves]) -> list[list[str]]:
    """What the runs say about the claims they were made for; "no" is reported like "yes".

    "yes" and "no" need the whole 95 % interval on one side of the claim; otherwise it is "undecided".
    """
    lines = [["world", "claim", "measured", "so?"]]
    for world, none in baselines.items():
        entropy = none.column("entropy")
        share = mean_interval(final(entropy) / entropy[:, 0])
        lines.append([world, "without control, final entropy is at most 15 % of its start", *_judged(share, high=0.15)])
        lines.append([world, *_prediction(none)])
        for other in curves:
            if other.world != world or other.control != "kl_cov":
                continue
            row = final_row(other, none)
            ratio = [row[f"entropy_ratio{end}"] for end in ("", "_low", "_high")]
            lines.append([world, "kl_cov keeps at least 2x the entropy of none", *_judged(ratio, low=2)])
            loss = [row[f"return_difference{end}"] / MAXIMUM[world] for end in ("", "_low", "_high")]
            claim = "at a return (share of the maximum) no more than 0.03 worse"
            lines.append([world, claim, *_judged(loss, low=-0.03)])
    return lines


def _judged(values: Sequence[float], low: float = -np.inf, high: float = np.inf) -> tuple[str, str]:
    """A mean and interval as text, and whether the interval lies within [low, high], outside, or neither."""
    mean, least, most = values
    inside = least >= low and most <= high
    outside = most < low or least > high
    return f"{mean:.3f} [{least:.3f}, {most:.3f}]", "yes" if inside else "no" if outside else "undecided"


def _prediction(curves: Curves) -> list[str]:
    """Share of the variance of measured entropy changes that Lemma 1 explains with slope 1."""
    measured, predicted = curves.column("measured_entropy_change"), curves.column("predicted_first_order")
    good = np.isfinite(measured) & np.isfinite(predicted)
    residual = ((measured - predicted)[good] ** 2).sum()
    explained = 1 - residual / ((measured[good] - measured[good].mean()) ** 2).sum()
    return [
        "Lemma 1 explains over 90 % of the variance of measured changes",
        f"R2 = {explained:.3f}",
        "yes" if explained > 0.9 else "no",
    ]
