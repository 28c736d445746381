"""`entropy-theory reproduce`: check, every control in every world, then tables, figures and a report."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from entropy_theory.cli.arguments import parse
from entropy_theory.cli.engines import Job, Tell, carry_out
from entropy_theory.cli.engines.local import LocalEngine
from entropy_theory.cli.settings import TrainingRun, load, training_runs
from entropy_theory.cli.worlds import train_run


@dataclass(frozen=True)
class ReproduceOptions:
    """Options of `reproduce`."""

    out: Path = Path("runs/reproduce")
    """Directory of the results; the same command resumes an interrupted one."""
    settings: Path | None = None
    """TOML file of the runs; the package's own if not given."""
    instances: int = 20_000
    """Random and adversarial instances per statement of the check."""
    workers: int = 0
    """Processes that train side by side, one thread each; 0 for one per core."""

    def __post_init__(self):
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")
        if self.instances < 1:
            raise ValueError(f"instances must be at least 1, got {self.instances}")


def main(name: str, text: str, arguments: list[str]) -> int:
    """The command; exit status 1 if a claim has another verdict than on record or a run failed."""
    options = parse(name, ReproduceOptions, arguments, text)
    start = time.monotonic()
    settings = load(options.settings)
    todo = training_runs(settings, options.out)

    from entropy_theory.runs import Run

    with Run(options.out, {"instances": options.instances, "settings": settings}):
        failures = run_jobs(todo, options)
        if failures:
            for failure in failures:
                print(failure, file=sys.stderr)
            print("the same command tries these again and keeps the rest", file=sys.stderr)
            return 1

        from entropy_theory.cli.data import write_data
        from entropy_theory.cli.report import write_report

        tables = write_data(todo, options.out)
        print(f"\n{tables.verdicts}\n{tables.results}\n{tables.fits}\n{tables.findings}")
        report = write_report(tables, options.out)
    print(f"\nreport: {report}   ({time.monotonic() - start:.0f} s)")
    return 0 if tables.checked["agrees"] else 1


def run_jobs(todo: list[TrainingRun], options: ReproduceOptions) -> list[str]:
    """Run the check and all training runs in worker processes; returns one line per failure."""
    jobs = [Job("check", CHECK_WEIGHT, _note(options.out, "check"), _check, (options.instances, options.out))]
    for run in todo:
        name = f"{run.world} {run.control} ({run.folder})"
        note = _note(options.out, *run.folder.relative_to(options.out / "runs").parts)
        jobs.append(Job(name, run.weight, note, train_run, (run.world, run.config, run.folder, run.seed)))
    with LocalEngine(options.workers) as engine:
        notes = carry_out(engine, jobs, "reproduce")
    return [
        f"failed: {job.name}: {note['reason']}"
        for job, note in zip(jobs, notes, strict=True)
        if note["status"] != "done"
    ]


CHECK_WEIGHT = 30.0


def _note(out: Path, *names: str) -> Path:
    return out / "progress" / ("-".join(names) + ".json")


def _check(instances: int, out: Path, tell: Tell) -> None:
    import torch

    from entropy_theory import claims
    from entropy_theory.cli import check
    from entropy_theory.runs import write_atomic

    torch.set_num_threads(1)
    if not (out / "check.json").exists():
        context = check.make_context(check.CheckOptions(profile="quick", world=check.PLACES, instances=instances))
        judged = claims.judge(claims.select([], context), context)
        write_atomic(out / "check.json", claims.to_json(judged))
