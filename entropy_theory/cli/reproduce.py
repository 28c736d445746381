"""`entropy-theory reproduce`: check, every control in every world, then tables, figures and a report."""

import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from entropy_theory.cli.arguments import parse
from entropy_theory.cli.progress import bar
from entropy_theory.cli.settings import Job, jobs, load


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
    todo = jobs(settings, options.out)

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


def run_jobs(todo: list[Job], options: ReproduceOptions) -> list[str]:
    """Run the check and all jobs in worker processes; returns one line per failure."""
    context = multiprocessing.get_context("spawn")
    ticks = context.SimpleQueue()
    workers = min(options.workers or os.cpu_count() or 1, len(todo) + 1)
    waiting = [job for job in todo if not _done(job.folder)]
    total = sum(job.weight for job in waiting) + CHECK_WEIGHT
    # one thread a worker: two threads beside another busy process are slower than one
    os.environ["OMP_NUM_THREADS"] = "1"
    with (
        bar(total, "reproduce", unit="s") as progress,
        ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(ticks,)) as pool,
    ):
        futures: dict[Future, str] = {}
        try:
            futures[pool.submit(_check, options.instances, options.out)] = "check"
            for index, job in enumerate(waiting):
                futures[pool.submit(_train, index, job)] = f"{job.world} {job.control} ({job.folder})"
            return _follow(futures, ticks, waiting, progress)
        except BaseException:
            # futures are not cancelled: the thread of the pool would fail on those when it ends them
            for process in list(pool._processes.values()):
                process.terminate()
            raise


CHECK_WEIGHT = 30.0


def _follow(futures: dict[Future, str], ticks, waiting: list[Job], progress) -> list[str]:
    """Draw progress until every future is done; returns one line per failure."""
    shares = [0.0] * len(waiting)
    pending, failures, checked = set(futures), [], 0.0
    while pending:
        done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
        while not ticks.empty():
            index, share = ticks.get()
            shares[index] = share
        for future in done:
            if future.exception() is not None:
                failures.append(f"failed: {futures[future]}: {future.exception()}")
            elif futures[future] == "check":
                checked = CHECK_WEIGHT
        complete = checked + sum(s * job.weight for s, job in zip(shares, waiting, strict=True))
        progress.set_postfix_str(f"{len(futures) - len(pending)}/{len(futures)} jobs done", refresh=False)
        progress.update(complete - progress.n)
    return failures


_ticks = None


def _start_worker(ticks) -> None:
    global _ticks
    _ticks = ticks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the parent ends these


def _done(folder: Path) -> bool:
    return (folder / "done").exists()


def _train(index: int, job: Job) -> None:
    from entropy_theory.cli import worlds

    last = 0.0

    def show(done: int, total: int, line: dict) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.5 or done == total:
            last = now
            _ticks.put((index, done / total))

    worlds.train(job.world, job.config, job.folder, job.seed, show)
    (job.folder / "done").touch()
    _ticks.put((index, 1.0))


def _check(instances: int, out: Path) -> None:
    import torch

    from entropy_theory import claims
    from entropy_theory.cli import check
    from entropy_theory.runs import write_atomic

    torch.set_num_threads(1)
    if not (out / "check.json").exists():
        context = check.make_context(check.CheckOptions(profile="quick", world=check.PLACES, instances=instances))
        judged = claims.judge(claims.select([], context), context)
        write_atomic(out / "check.json", claims.to_json(judged))
