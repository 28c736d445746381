"""`entropy-theory ablate`: the runs of a sweep on any engine, then tables, statistics and a figure."""

import importlib
import sys
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from entropy_theory.cli.arguments import parse
from entropy_theory.cli.engines import ENGINES, Engine, Place, carry_out
from entropy_theory.cli.sweep_files import committed, jobs_of, listing, load, suite
from entropy_theory.cli.worlds import check_control
from entropy_theory.sweeps import Sweep, resolved


@dataclass(frozen=True)
class AblateOptions:
    """Options of `ablate`."""

    name: tyro.conf.Positional[str] = ""
    """A sweep of the packages (--list shows them) or a TOML file."""
    list: bool = False
    """Show the sweeps that there are, and do nothing."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """Processes of this machine, a Ray cluster (extra ray), or a Slurm job array (extra slurm)."""
    workers: int = 0
    """Runs at the same time, one core each; 0 for one per core (Slurm: as many as it lets)."""
    address: str = ""
    """An existing Ray cluster; RAY_ADDRESS if not given, and one of this machine if that is not set either."""
    slurm: tuple[str, ...] = ()
    """Slurm's or submitit's parameters as key=value, for example partition=cpu timeout_min=60."""
    set: tuple[str, ...] = ()
    """A field of the base config, or NAME.parameter, as key=value; repeatable."""
    seeds: str = ""
    """Number of seeds in place of the sweep's."""
    only: tuple[int, ...] = ()
    """Only the runs of these indices."""
    tune: int = 0
    """Trials of a search for each run's parameters, on the sweep's tuning seeds (extra tune); 0 for none."""
    out: Path | None = None
    """Directory of the results, resumed if it exists; runs/ablate/NAME if not given."""

    def __post_init__(self):
        for key in ("workers", "tune"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must be at least 0, got {getattr(self, key)}")


def main(name: str, text: str, arguments: list[str]) -> int:
    """The command; exit status 1 if a run failed."""
    options = parse(name, AblateOptions, arguments, text)
    if options.list:
        print(listing())
        return 0
    if not options.name:
        raise ValueError("ablate needs the name of a sweep or a TOML file; `entropy-theory ablate --list` shows them")
    if names := suite(options.name):
        return compare(names, options)
    return ablate(options)


def compare(names: list[str], options: AblateOptions) -> int:
    """Every sweep of a suite in a directory of its own, then their controls side by side."""
    for option, given in (("--set", options.set), ("--only", options.only), ("--tune", options.tune)):
        if given:
            raise ValueError(f"{option} is for one sweep; {options.name} is a suite of {', '.join(names)}")
    out = options.out or Path("runs/ablate") / Path(options.name).stem
    for name in names:  # what is wrong with any is said before the first starts
        checked(replace(options, name=name))
    status = max(ablate(replace(options, name=name, out=out / Path(name).stem)) for name in names)
    from entropy_theory.cli.comparison import report as report_comparison

    report_comparison([load(name, _overrides(options)) for name in names], out)
    return status


def _overrides(options: AblateOptions) -> dict[str, Any]:
    found = _pairs("--set", options.set) | ({"seeds": options.seeds} if options.seeds else {})
    return {key: _value(text) for key, text in found.items()}


def checked(options: AblateOptions) -> Sweep:
    """The sweep of the options, after everything that can be wrong with it has been looked at."""
    sweep = load(options.name, _overrides(options))
    # a sweep's own figure reads the tables of that name, is about the file's own runs, and has intervals over seeds
    if sweep.name not in committed() or options.set or sweep.seeds < 2:
        sweep = replace(sweep, figure=None)
    for point in sweep.points:
        check_control(sweep.world, point.config)
    from entropy_theory.cli.trials import candidates, refuse_ambiguous

    refuse_ambiguous(sweep)
    for candidate in candidates(sweep):
        check_control(sweep.world, candidate.config)
    if options.tune:
        from entropy_theory.cli.tuning import check

        check(sweep)
    return sweep


def ablate(options: AblateOptions) -> int:
    """One sweep: tuning where the file or the options want it, its runs, its report."""
    sweep = checked(options)
    chosen = _chosen(sweep, options.only)
    out = options.out or Path("runs/ablate") / sweep.name
    place = Place(options.workers, out / "slurm", options.address, _pairs("--slurm", options.slurm))

    from entropy_theory.runs import Run

    tuning = {"trials": options.tune, **(sweep.tune._asdict() if options.tune else {})}
    with Run(out, resolved(sweep) | {"tune": tuning}), ENGINES[options.engine](place) as engine:
        if options.tune:
            from entropy_theory.cli.tuning import tune

            sweep = tune(sweep, chosen, options.tune, engine, out)
        elif sweep.tune and sweep.tune.grid:
            from entropy_theory.cli.grid import tune as tune_on_grid

            sweep = tune_on_grid(sweep, chosen, engine, out)
        train(sweep, chosen, engine, out)
    return report(sweep, out)


def train(sweep: Sweep, chosen: list[int], engine: Engine, out: Path) -> None:
    """Train the chosen runs that are not done; whether they failed stands in their notes."""
    jobs = [job for index in chosen for job in jobs_of(sweep.world, sweep.points[index], out)]
    carry_out(engine, sorted(jobs, key=lambda job: -job.weight), sweep.name)


def report(sweep: Sweep, out: Path) -> int:
    """Write tables and figure of what is done so far and print them; returns the exit status."""
    from entropy_theory.cli.sweep_results import table, write_results

    results = write_results(sweep, out)
    print(table(sweep, results))
    print(f"tables:  {out / 'results.parquet'}, " + ", ".join(map(str, results.files)))
    if results.files:
        own = sweep.figure if len(results.summary) == len(sweep.points) else None
        figure = importlib.import_module(f"paper_figs.{own or 'ablation'}")
        drawn = figure.draw(out / "data", out) if own else figure.draw(out / "data", out, sweep.name)
        print(f"figure:  {drawn}")
    failed = [row for row in results.rows if row["status"] == "failed"]
    for row in failed:
        print(f"failed: run {row['index']} ({row['label']}): {row['reason']}", file=sys.stderr)
    if failed:
        print("the same command tries these again and keeps the rest", file=sys.stderr)
    return 1 if failed else 0


def _chosen(sweep: Sweep, only: tuple[int, ...]) -> list[int]:
    for index in only:
        if not 0 <= index < len(sweep.points):
            raise ValueError(f"--only {index}: the runs of sweep {sweep.name} are 0 to {len(sweep.points) - 1}")
    return sorted(set(only)) if only else list(range(len(sweep.points)))


def _pairs(option: str, words: tuple[str, ...]) -> dict[str, str]:
    for word in words:
        if "=" not in word.strip("="):
            raise ValueError(f"{option} takes key=value, got {word!r}")
    return dict(word.split("=", 1) for word in words)


def _value(text: Any) -> Any:
    """A value as TOML would read it; what is no TOML is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
