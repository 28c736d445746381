"""Is policy entropy tied to Lyapunov exponents, and entropy collapse to shrinking attractors? A measurement.

Two systems whose state is pulled apart or together by a policy: the learning map of a bandit (`chaos_bandit`) and
CartPole closed by a policy (`chaos_cartpole`). Along several knobs, and along training, each point gives the mean
policy entropy of what was visited, the largest Lyapunov exponent with its standard error, dimensions and the return.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from entropy_theory.runs import Progress, Run, read_metrics
from entropy_theory.statistics import bootstrap_interval
from entropy_theory.tables import rank_correlation, write_csv
from sims import cartpole, chaos_bandit, chaos_cartpole
from sims.actor import actor_weights
from sims.cartpole_config import CartPoleConfig
from sims.chaos_config import ChaosConfig
from sims.networks import Networks
from sims.trained import State, states_after

CORRELATED = ("exponent", "dimension", "participation_state", "participation_unit", "participation_logits", "return")
"""Columns whose rank correlation with entropy is reported."""


class Point(NamedTuple):
    """One unit of work: `kind` is bandit, checkpoint or temperature; `where` a knob and a gradient, or rollouts."""

    kind: str
    where: Any


def cartpole_config(config: ChaosConfig) -> CartPoleConfig:
    """The default CartPole run of these seeds."""
    return CartPoleConfig(
        seeds=config.seeds, total_timesteps=config.total_timesteps, seed=config.seed, threads=config.threads
    )


def checkpoint_rollouts(config: ChaosConfig) -> list[int]:
    """Rollouts of training at which CartPole is measured: 0, then even in the logarithm from 1/30 of the run on.

    Raises: ValueError if the run is too short for so many different ones.
    """
    last = cartpole_config(config).rollouts
    later = np.geomspace(max(1, last / 30), last, config.checkpoints - 1).round().astype(int).tolist()
    if len(set(later)) < len(later):
        raise ValueError(
            f"total_timesteps {config.total_timesteps} gives {last} rollouts, too few for {config.checkpoints} "
            "checkpoints; raise it or lower checkpoints"
        )
    return [0, *later]


def points(config: ChaosConfig) -> list[Point]:
    """Everything to measure, in order; temperatures are varied half way through the checkpoints and at the end."""
    found = []
    for natural in (False, True):
        found += [Point("bandit", (knob, natural)) for knob in ("updates", *chaos_bandit.knobs(natural))]
    rollouts = checkpoint_rollouts(config)
    for index, number in enumerate(rollouts):
        found.append(Point("checkpoint", number))
        if index in (len(rollouts) // 2, len(rollouts) - 1):
            found.append(Point("temperature", number))
    return found


def measure(config: ChaosConfig, run: Run, progress: Progress | None = None) -> None:
    """Measure every point, one line of metrics (its `rows`) each; goes on where `run` stopped.

    Raises: ValueError if the settings leave nothing to measure.
    """
    todo = points(config)
    torch.set_num_threads(config.threads)
    state = run.load_state() or {"point": 0, "training": None}
    training = state["training"]
    for number in range(state["point"], len(todo)):
        point = todo[number]
        if point.kind == "bandit":
            rows = bandit_rows(config, *point.where)
        else:
            if point.kind == "checkpoint" and point.where:
                training = train_to(config, point.where, training)
            rows = cartpole_rows(config, point, training)
        line = {"step": number + 1, "rows": rows, "entropy": float(np.mean([row["entropy"] for row in rows]))}
        run.record(line, {"point": number + 1, "training": training})
        if progress:
            progress(number + 1, len(todo), line)


def bandit_rows(config: ChaosConfig, knob: str, natural: bool) -> list[dict]:
    """Rows of one sweep of the bandit's learning map."""
    if knob == "updates":
        return chaos_bandit.training(config, natural)
    return chaos_bandit.sweep(config, knob, natural)


def train_to(config: ChaosConfig, rollouts: int, start: State | None) -> State:
    """State of the CartPole run after `rollouts` rollouts, going on from `start`."""
    return states_after(cartpole.train, cartpole_config(config), [rollouts], start)[rollouts]


def cartpole_rows(config: ChaosConfig, point: Point, training: State | None) -> list[dict]:
    """Rows of one checkpoint, at temperature 1 or over the grid of temperatures."""
    if training is None:
        networks = cartpole.make_learner(cartpole_config(config)).networks
    else:
        networks = Networks(*training["networks"])
    if point.kind == "checkpoint":
        knob, values = "rollouts", [point.where]
        temperatures = torch.ones(1, dtype=torch.float64)
    else:
        knob = f"temperature after {point.where} rollouts"
        ends = config.lowest_temperature, config.highest_temperature
        values = np.geomspace(*ends, config.temperatures).tolist()
        temperatures = torch.tensor(values, dtype=torch.float64)
    grid = temperatures[:, None].expand(-1, config.seeds)
    policies = chaos_cartpole.Policies(actor_weights(networks), grid)
    found = chaos_cartpole.measure(policies, config.trajectories, config.steps, config.seed)
    return chaos_cartpole.rows(found, knob, values, config.seed)


def config_record(config: ChaosConfig) -> dict:
    """What config.json of a chaos run holds."""
    return {"world": "chaos", **asdict(config)}


def read_rows(folder: Path) -> list[dict]:
    """All rows measured so far in a run directory; what is not a number comes back as NaN."""
    lines = [row for line in read_metrics(folder) for row in line["rows"]]
    return [{name: float("nan") if value is None else value for name, value in row.items()} for row in lines]


def by_sweep(rows: Sequence[dict]) -> dict[tuple[str, str, str], dict[int, list[dict]]]:
    """(world, map, knob) -> seed -> its rows, in order of the knob."""
    found: dict[tuple[str, str, str], dict[int, list[dict]]] = {}
    for row in rows:
        seeds = found.setdefault((row["world"], row["map"], row["knob"]), {})
        seeds.setdefault(row["seed"], []).append(row)
    return found


def correlation_rows(rows: Sequence[dict]) -> list[dict]:
    """Spearman's correlation of entropy with each of `CORRELATED` along each knob: mean over seeds, 95 % interval.

    Empty where entropy or the other is constant along the knob in every seed: then there is nothing to correlate.
    """
    result = []
    for (world, name, knob), seeds in by_sweep(rows).items():
        for column in CORRELATED:
            if any(column not in row for line in seeds.values() for row in line):
                continue
            values = [
                rank_correlation([row["entropy"] for row in line], [row[column] for row in line])
                for line in seeds.values()
            ]
            mean, low, high = bootstrap_interval(values)
            result.append(
                {"world": world, "map": name, "knob": knob, "with": column, "points": len(next(iter(seeds.values())))}
                | {"seeds": sum(value == value for value in values), "spearman": mean, "low": low, "high": high}
            )
    return result


def best_rows(rows: Sequence[dict]) -> list[dict]:
    """Where along each knob the return is best: at which entropy, and how much better than at the lowest entropy.

    best_from, best_to: the lowest and highest entropy among the values that tie for a seed's best return, and
    lowest_entropy, highest_entropy among all. `gain` is the best return minus that at the lowest entropy: 0 if the
    lowest is as good as any. Means over seeds with 95 % intervals.
    """
    result = []
    for (world, name, knob), seeds in by_sweep(rows).items():
        if knob == "reward_scale" or any("return" not in row for line in seeds.values() for row in line):
            continue  # returns at different scales do not compare
        names = ("best_from", "best_to", "gain", "lowest_entropy", "highest_entropy")
        columns: dict[str, list[float]] = {column: [] for column in names}
        for line in seeds.values():
            entropies, returns = (np.array([row[c] for row in line]) for c in ("entropy", "return"))
            best = entropies[returns == returns.max()]
            columns["best_from"].append(float(best.min()))
            columns["best_to"].append(float(best.max()))
            columns["gain"].append(float(returns.max() - returns[entropies.argmin()]))
            columns["lowest_entropy"].append(float(entropies.min()))
            columns["highest_entropy"].append(float(entropies.max()))
        row = {"world": world, "map": name, "knob": knob, "seeds": len(seeds)}
        for column, values in columns.items():
            mean, low, high = bootstrap_interval(values)
            row |= {column: mean, f"{column}_low": low, f"{column}_high": high}
        result.append(row)
    return result


def write_tables(folder: Path, out: Path) -> list[Path]:
    """Write chaos.csv, chaos_correlation.csv and chaos_best.csv into `out` from a run directory; returns them."""
    rows = read_rows(folder)
    out.mkdir(parents=True, exist_ok=True)
    tables = {"chaos": rows, "chaos_correlation": correlation_rows(rows), "chaos_best": best_rows(rows)}
    for name, table in tables.items():
        write_csv(out / f"{name}.csv", table)
    return [out / f"{name}.csv" for name in tables]


class Quick(NamedTuple):
    """A small measurement: its rows, and the same summaries as of a whole one."""

    rows: list[dict]
    correlations: list[dict]
    best: list[dict]


def quick(seed: int = 0) -> Quick:
    """A measurement of about two seconds: a few bandit maps, and CartPole policies 10 rollouts into training."""
    config = ChaosConfig(
        seeds=2, updates=200, temperatures=4, trajectories=2, steps=500, lowest_temperature=0.05, seed=seed
    )
    rows = chaos_bandit.sweep(config, "step_size", False, (10.0, 40.0, 60.0, 100.0))
    rows += chaos_bandit.sweep(config, "reward_scale", True)
    rows += chaos_bandit.training(config, True)
    rows += cartpole_rows(config, Point("temperature", 10), train_to(config, 10, None))
    return Quick(rows, correlation_rows(rows), best_rows(rows))
