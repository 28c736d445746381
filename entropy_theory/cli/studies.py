"""`entropy-theory study ...`: measurements beside the training runs; each ends in CSV tables, a table and a figure."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from entropy_theory.cli.arguments import parse, with_out


def chaos(name: str, text: str, arguments: list[str]) -> int:
    """`entropy-theory study chaos`: a run directory that a second call resumes."""
    from sims.chaos_config import ChaosConfig

    options = parse(name, with_out(ChaosConfig, "runs/chaos"), arguments, text)
    config = ChaosConfig(**{f.name: getattr(options, f.name) for f in dataclasses.fields(ChaosConfig)})
    out = options.out or Path("runs/chaos")
    from entropy_theory.cli.progress import bar, summary
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
    columns = ["world", "map", "knob", "with"]
    print("\nRank correlation with policy entropy along each knob, mean over seeds [95 % bootstrap interval]")
    _table([*columns, "Spearman"], [[*(row[c] for c in columns), _interval(row)] for row in rows])
    print("tables:  " + ", ".join(map(str, tables)))
    print(f"figure:  {fig07_chaos.draw(out / 'data', out)}")
    return 0


def _interval(row: dict) -> str:
    """A mean with its interval; nothing where no seed has one."""
    mean, low, high = (row[name] for name in ("spearman", "low", "high"))
    return "-" if mean != mean else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


@dataclass(frozen=True)
class StudyOptions:
    """Options of a study that takes under a few minutes and is not resumed."""

    out: Path | None = None
    """New folder for the tables and the figure; runs/STUDY if not given."""
    seeds: int = 5
    """Repetitions in each world."""

    def __post_init__(self):
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")


def kernel(name: str, text: str, arguments: list[str]) -> int:
    """`entropy-theory study kernel`: one plain gradient step of two networks, by the logit kernel and without it."""

    def parts() -> Parts:
        from llm.kernel import write_tables as llm
        from paper_figs import fig06_kernel
        from sims.kernel import write_tables as sims

        return Parts((sims, llm), fig06_kernel.draw)

    columns = ["world", "rollouts", "seed", "spread", "predicted", "correlation", "r_squared", "slope"]
    return _study(name, parse(name, StudyOptions, arguments, text), parts, "kernel_summary.csv", columns)


def tokens(name: str, text: str, arguments: list[str]) -> int:
    """`entropy-theory study tokens`: which tokens the score of eq. 10 ranks first, in all three worlds."""

    def parts() -> Parts:
        from llm.selection import write_tables as llm
        from paper_figs import fig08_top_tokens
        from sims.selection import write_tables as sims

        return Parts((sims, llm), fig08_top_tokens.draw)

    columns = ["world", "replica", "tokens", "fraction", "top_negative_share", "top_probability", "top_overlap"]
    return _study(name, parse(name, StudyOptions, arguments, text), parts, "top_tokens.csv", columns)


class Parts(NamedTuple):
    """What a study runs: functions that write the rows of some worlds, and the function that draws them."""

    writers: tuple[Callable[..., None], ...]
    draw: Callable[[Path, Path], Path]


def _study(name: str, options: StudyOptions, parts: Callable[[], Parts], shown: str, columns: list[str]) -> int:
    """Write the tables of every world and draw them; `shown` is the table that is printed too."""
    out = options.out or Path("runs") / name.split()[-1]
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out {out} is not empty; name a new folder, or delete that one")
    from entropy_theory.cli.progress import bar
    from paper_figs.style import read_csv

    data = out / "data"
    data.mkdir(parents=True)
    study = parts()
    with bar(len(study.writers) * options.seeds, name, unit="seed") as progress:
        for write in study.writers:
            write(data, options.seeds, tick=progress.update)
    _table(columns, [[_short(row[c]) for c in columns] for row in read_csv(data / shown)])
    print("tables:  " + ", ".join(sorted(map(str, data.iterdir()))))
    print(f"figure:  {study.draw(data, out)}")
    return 0


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from entropy_theory.cli.results import align

    print(align([header, *rows]))


def _short(value: float | str) -> str:
    """Three digits of a number, text as it is."""
    return value if isinstance(value, str) else f"{value:.0f}" if float(value).is_integer() else f"{value:.3g}"
