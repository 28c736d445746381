"""`ablate --tune N`: a search for each run's parameters on the tuning seeds, with optuna; the report uses others.

A study holds finished trials only, and trial n follows from those before it and n. So a search that was killed goes on
as if it had not been, and every run gets the same number of trials.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entropy_theory.cli.engines import Engine, carry_out
from entropy_theory.cli.results import align
from entropy_theory.cli.sweep_files import jobs_of
from entropy_theory.cli.trials import inline, outcome, tuning_point
from entropy_theory.sweeps import Point, Sweep, space_of, with_parameters


def check(sweep: Sweep) -> None:
    """Raise ValueError if the sweep has nothing to search, or optuna is not installed."""
    if sweep.tune is None or not sweep.tune.space:
        raise ValueError(f"sweep {sweep.name} has no [tune.space] to search; add one (docs/ablations.md)")
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("--tune needs optuna; install it with pip install 'entropy-theory[tune]'") from None


def tune(sweep: Sweep, chosen: Sequence[int], trials: int, engine: Engine, out: Path) -> Sweep:
    """The sweep with the best parameters found in `trials` trials of each chosen run that has a space.

    Writes tuned.toml and prints what was searched.
    Raises: ValueError if all trials of a run failed, or the metric is not logged.
    """
    studies = open_studies(sweep, out)
    points = [sweep.points[index] for index in chosen if index in studies]
    for number in range(trials):
        todo = [point for point in points if len(studies[point.index].trials) <= number]
        parameters = [propose(studies[point.index], space_of(sweep, point)) for point in todo]
        tried = [tuning_point(sweep, *pair) for pair in zip(todo, parameters, strict=True)]
        folder = out / f"tune/trial-{number:03d}"
        jobs = [job for trial in tried for job in jobs_of(sweep.world, trial, folder)]
        carry_out(engine, jobs, f"{sweep.name}: trial {number + 1}/{trials}")
        for point, trial, values in zip(todo, tried, parameters, strict=True):
            study = studies[point.index]
            study.add_trial(finished(sweep, point, values, *outcome(sweep, trial, folder)))
    searched = {index: study for index, study in studies.items() if len(study.trials) >= trials}
    best = {index: best_parameters(sweep, sweep.points[index], study) for index, study in searched.items()}
    write_tuned(sweep, searched, best, out / "tuned.toml")
    print(_table(sweep, searched, best))
    points = [point._replace(config=with_parameters(sweep, point, best.get(point.index, {}))) for point in sweep.points]
    return dataclasses.replace(sweep, points=tuple(points))


def open_studies(sweep: Sweep, out: Path) -> dict[int, Any]:
    """The optuna study of every run that has a space, in out/tune/journal.log."""
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    (out / "tune").mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(out / "tune/journal.log")))
    return {
        point.index: optuna.create_study(
            storage=storage, study_name=point.folder, direction=sweep.tune.direction, load_if_exists=True
        )
        for point in sweep.points
        if space_of(sweep, point)
    }


def distribution(choice: dict[str, Any]):
    """{low, high, log} or {choices} as optuna has it; whole bounds mean whole numbers."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if "choices" in choice:
        return CategoricalDistribution(choice["choices"])
    whole = isinstance(choice["low"], int) and isinstance(choice["high"], int)
    return (IntDistribution if whole else FloatDistribution)(
        choice["low"], choice["high"], log=choice.get("log", False)
    )


def propose(study: Any, space: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The next trial's parameters by the tree-structured Parzen estimator (Bergstra et al. 2011), random for the first
    ten: a function of the finished trials and their number."""
    import optuna

    done = study.trials
    sampler = optuna.samplers.TPESampler(seed=len(done))
    memory = optuna.create_study(direction=study.direction, sampler=sampler)
    memory.add_trials(done)
    return memory.ask({key: distribution(choice) for key, choice in space.items()}).params


def finished(sweep: Sweep, point: Point, parameters: dict[str, Any], value: float, reason: str):
    """A trial as the study keeps it."""
    import optuna

    space = {key: distribution(choice) for key, choice in space_of(sweep, point).items()}
    state = optuna.trial.TrialState.FAIL if reason else optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(
        state=state,
        value=None if reason else value,
        params=parameters,
        distributions=space,
        user_attrs={"reason": reason} if reason else {},
    )


def best_parameters(sweep: Sweep, point: Point, study: Any) -> dict[str, Any]:
    """Those of the best trial, the first of them among equals. ValueError if every trial failed."""
    values = [trial for trial in study.trials if trial.value is not None]
    if not values:
        reason = study.trials[-1].user_attrs["reason"]
        raise ValueError(f"all {len(study.trials)} trials of run {point.index} ({point.label}) failed: {reason}")
    sign = 1 if sweep.tune.direction == "minimize" else -1
    return dict(min(values, key=lambda trial: (sign * trial.value, trial.number)).params)


def write_tuned(sweep: Sweep, studies: dict[int, Any], best: dict[int, dict[str, Any]], path: Path) -> None:
    """What was searched and what was found, as TOML whose parameters can go into a sweep."""
    from entropy_theory.runs import write_atomic

    search = sweep.tune
    lines = [f"metric = {json.dumps(search.metric)}", f"direction = {json.dumps(search.direction)}"]
    lines += [f"seed = {search.seed}", f"seeds = {search.seeds}"]
    for index, study in studies.items():
        point = sweep.points[index]
        lines += ["", f"[runs.{json.dumps(point.folder)}]", f"trials = {len(study.trials)}"]
        lines += [f"best = {study.best_value!r}", f"set = {inline(best[index])}"]
        space = {key: inline(choice) for key, choice in space_of(sweep, point).items()}
        lines += [f"space = {{ {', '.join(f'{json.dumps(k)} = {v}' for k, v in space.items())} }}"]
    write_atomic(path, "\n".join(lines) + "\n")


def _table(sweep: Sweep, studies: dict[int, Any], best: dict[int, dict[str, Any]]) -> str:
    lines = [["tuned run", "trials", "failed", f"best {sweep.tune.metric}", "parameters", "searched"]]
    for index, study in studies.items():
        space = space_of(sweep, sweep.points[index])
        found = ", ".join(f"{key}={_short(value)}" for key, value in best[index].items())
        failed = sum(trial.value is None for trial in study.trials)
        searched = ", ".join(f"{key} {_range(choice)}" for key, choice in space.items())
        lines.append(
            [sweep.points[index].folder, str(len(study.trials)), str(failed), f"{study.best_value:.4g}", found]
        )
        lines[-1].append(searched)
    last = sweep.tune.seed + sweep.tune.seeds - 1
    legend = f"[{sweep.tune.metric} on tuning seeds {sweep.tune.seed} to {last}; the next table is of other seeds]"
    return f"\n{align(lines)}\n{legend}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _range(choice: dict[str, Any]) -> str:
    if "choices" in choice:
        return "in " + "|".join(map(str, choice["choices"]))
    return f"in [{choice['low']}, {choice['high']}]" + (" log" if choice.get("log") else "")
