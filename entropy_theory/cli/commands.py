"""The commands of one world, and the list of controls; `check` and `reproduce` have their own files."""

import dataclasses
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from entropy_theory.cli.arguments import parse


@dataclass(frozen=True)
class NoOptions:
    """No options."""


def controls(name: str, text: str, arguments: list[str]) -> int:
    """`entropy-theory controls`: the docstring of every control."""
    parse(name, NoOptions, arguments, text)
    from entropy_theory.controls import CONTROLS, parameters

    for control, factory in CONTROLS.items():
        settings = ", ".join(f"{control}.{key}={value}" for key, value in parameters(control).items())
        needs = ", ".join(sorted(need.value for need in factory().needs)) or "nothing"
        print(f"{control}\n{'=' * len(control)}\n{inspect.getdoc(factory)}\n\ndefaults: {settings or 'none'}")
        print(f"needs:    {needs}\n")
    return 0


@dataclass(frozen=True)
class ConformanceOptions:
    """Options of `conformance`."""

    export: Path | None = None
    """New or empty folder to write the golden batches to, as .npz and .json; they are only listed if not given."""


def conformance(name: str, text: str, arguments: list[str]) -> int:
    """`entropy-theory conformance`: the golden batches, listed or exported."""
    options = parse(name, ConformanceOptions, arguments, text)
    from entropy_theory.conformance import export, listing

    print(listing())
    if options.export is not None:
        if options.export.is_dir() and any(options.export.iterdir()):
            raise ValueError(f"--export {options.export}: the folder is not empty; name a new one")
        print(f"{len(export(options.export))} files written to {options.export}")
    return 0


def sim_bandit(name: str, text: str, arguments: list[str]) -> int:
    """`entropy-theory sim bandit`."""
    return _train("bandit", name, text, arguments)


def sim_cartpole(name: str, text: str, arguments: list[str]) -> int:
    """`entropy-theory sim cartpole`."""
    return _train("cartpole", name, text, arguments)


def sim_chaos(name: str, text: str, arguments: list[str]) -> int:
    """`entropy-theory sim chaos`: one run directory with metrics, tables as CSV, and a figure."""
    from sims.chaos_config import ChaosConfig

    options = parse(name, _run_options(ChaosConfig), arguments, text)
    config = ChaosConfig(**{f.name: getattr(options, f.name) for f in dataclasses.fields(ChaosConfig)})
    out = options.out or Path("runs/chaos")
    from entropy_theory.cli.progress import bar, summary
    from entropy_theory.cli.results import align
    from entropy_theory.runs import Run
    from paper_figs import fig07_chaos
    from sims import chaos

    with bar(0, "chaos", unit="point") as progress, Run(out, chaos.config_record(config)) as run:

        def show(done: int, total: int, line: dict):
            progress.total = total
            progress.set_postfix_str(summary(line), refresh=False)
            progress.update(done - progress.n)

        chaos.measure(config, run, show)
    tables = chaos.write_tables(out, out / "data")
    rows = chaos.correlation_rows(chaos.read_rows(out))
    print("\nRank correlation with policy entropy along each knob, mean over seeds [95 % bootstrap interval]")
    print(align([CHAOS_HEADER, *([row[name] for name in CHAOS_HEADER[:4]] + [_interval(row)] for row in rows)]))
    print("tables:  " + ", ".join(map(str, tables)))
    print(f"figure:  {fig07_chaos.draw(out / 'data', out)}")
    return 0


CHAOS_HEADER = ["world", "map", "knob", "with", "Spearman"]


def _interval(row: dict) -> str:
    """A mean with its interval; nothing where no seed has one."""
    mean, low, high = (row[name] for name in ("spearman", "low", "high"))
    return "-" if mean != mean else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def llm_train(name: str, text: str, arguments: list[str]) -> int:
    """`entropy-theory llm train`."""
    return _train("llm", name, text, arguments)


def _run_options(config: type) -> type:
    """The config's fields plus --out, as one dataclass."""
    out: Any = Annotated[
        Path | None,
        tyro.conf.arg(help="Run directory, resumed if it exists; runs/WORLD-CONTROL if not given."),
    ]
    fields = [("out", out, dataclasses.field(default=None))]
    return dataclasses.make_dataclass(config.__name__, fields, bases=(config,), frozen=True)


def _train(world: str, name: str, text: str, arguments: list[str]) -> int:
    from entropy_theory.cli import worlds

    config_type = worlds.config_class(world)
    options = parse(name, _run_options(config_type), arguments, f"{text} `entropy-theory controls` lists the controls.")
    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(config_type)}
    config = config_type(**values)
    out = options.out or Path("runs") / f"{world}-{config.control}"

    from entropy_theory.cli.progress import bar, summary
    from entropy_theory.controls import resolve

    for control, settings in resolve(config.control, config.set).items():
        print(f"control {control}: " + (", ".join(f"{k}={v}" for k, v in settings.items()) or "no parameters"))
    folders = worlds.run_folders(world, config, out)
    for folder, seed in folders:
        with bar(0, f"{world} {config.control}" + (f" seed {seed}" if len(folders) > 1 else "")) as progress:

            def show(done: int, total: int, line: dict, progress=progress):
                progress.total = total
                progress.set_postfix_str(summary(line), refresh=False)
                progress.update(done - progress.n)

            worlds.train(world, config, folder, seed, show)
    return _report(world, config, [folder for folder, _ in folders], out)


def _report(world: str, config: Any, folders: list[Path], out: Path) -> int:
    from entropy_theory.cli.results import final_row, read_curves, results_table
    from paper_figs import run_curves

    curves = read_curves(folders, world, config.control)
    print(results_table([final_row(curves)]))
    figure = run_curves.draw(curves, out)
    print(f"metrics: {folders[0]}/metrics.jsonl" + (f" and {len(folders) - 1} more" if len(folders) > 1 else ""))
    print(f"figure:  {figure}")
    return 0


def llm_make_tiny(name: str, text: str, arguments: list[str]) -> int:
    """`entropy-theory llm make-tiny`."""
    from llm.config import MakeTinyConfig

    options = parse(name, MakeTinyConfig, arguments, text)
    from llm.make_tiny import make_tiny

    make_tiny(options)
    return 0
