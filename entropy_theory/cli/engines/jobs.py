"""Jobs, the notes their workers keep about them, and the loop that carries them out on any engine.

A note is a small JSON file: status, share done, seconds, attempts, the worker's process and machine. It is all that a
worker tells, so engines need to report nothing but that a worker is through with a job, for better or worse.
"""

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from entropy_theory.cli.progress import bar

Tell = Callable[[float], None]
"""Called by a job with the share of it that is done, in [0, 1]."""

ATTEMPTS = 3
"""Workers that may die over one job before it is given up."""

TELL_EVERY = 0.5
"""Seconds between two changes of a note."""


class Job(NamedTuple):
    """Work for one worker: `function(*arguments, tell)`, which can go on where a killed worker left it.

    name: for messages; weight: expected seconds; note: file of its note, on a disk that all workers share
    """

    name: str
    weight: float
    note: Path
    function: Callable[..., None]
    arguments: tuple


class Engine(Protocol):
    """Where jobs run. As a context manager: leaving it ends all its workers, and what they are at."""

    def start(self, jobs: Sequence[Job]) -> list[Hashable]:
        """Have `perform(job)` called for each job in the order given, now or later; returns a handle for each."""
        ...

    def wait(self, handles: Sequence[Hashable], timeout: float) -> list[Hashable]:
        """Those whose worker is through or dead; returns as soon as there is one, or after `timeout` seconds."""
        ...

    def __enter__(self) -> "Engine": ...

    def __exit__(self, *_) -> None: ...


def read_note(path: Path) -> dict[str, Any]:
    """What is known about a job: at least its status, waiting, running, done or failed."""
    fresh = {"status": "waiting", "share": 0.0, "seconds": 0.0, "processor_seconds": 0.0, "attempts": 0}
    try:
        return fresh | json.loads(path.read_text())
    except FileNotFoundError:
        return fresh


def write_note(path: Path, **changes: Any) -> dict[str, Any]:
    """Change a note; a reader sees the old one or the new one."""
    note = read_note(path) | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(note))
    os.replace(temporary, path)
    return note


def perform(job: Job) -> None:
    """Do a job in this process and keep its note; an error ends up there as the job's reason to have failed."""
    note = read_note(job.note)
    start, last, before = time.monotonic(), 0.0, note["seconds"]
    worked = note["processor_seconds"] - time.process_time()
    place = {"pid": os.getpid(), "host": socket.gethostname(), "attempts": note["attempts"] + 1}

    def seconds() -> float:
        return before + time.monotonic() - start

    def tell(share: float) -> None:
        nonlocal last
        if time.monotonic() - last > TELL_EVERY:
            last = time.monotonic()
            write_note(job.note, share=share, seconds=seconds(), processor_seconds=worked + time.process_time())

    write_note(job.note, status="running", reason="", **place)
    try:
        job.function(*job.arguments, tell)
    except Exception as error:  # whatever it is, the other jobs go on
        write_note(job.note, status="failed", reason=reason(error), seconds=seconds())
    else:
        spent = {"seconds": seconds(), "processor_seconds": worked + time.process_time()}
        write_note(job.note, status="done", share=1.0, **spent)


def reason(error: Exception) -> str:
    """An error in one line; its type is named unless it speaks to the user."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def carry_out(engine: Engine, jobs: Sequence[Job], title: str) -> list[dict[str, Any]]:
    """Do all jobs that are not done yet, under one progress bar; returns the note of each job.

    A job whose worker dies goes to another, up to `ATTEMPTS` workers; one that fails is not tried again here.
    """
    waiting = [job for job in jobs if read_note(job.note)["status"] != "done"]
    for job in waiting:
        write_note(job.note, status="waiting", reason="")
    deaths: Counter[str] = Counter()
    with bar(sum(job.weight for job in waiting), title, unit="s") as progress:
        running = dict(zip(engine.start(waiting), waiting, strict=True))
        while running:
            finished = [running.pop(handle) for handle in engine.wait(list(running), TELL_EVERY)]
            orphans = [job for job in finished if read_note(job.note)["status"] not in ("done", "failed")]
            deaths.update(job.name for job in orphans)
            again = [job for job in orphans if deaths[job.name] < ATTEMPTS]
            for job in orphans:
                if job not in again:
                    text = f"its worker died {ATTEMPTS} times (killed, or out of memory)"
                    write_note(job.note, status="failed", reason=text)
            running |= dict(zip(engine.start(again), again, strict=True))
            _show(progress, waiting, len(running))
    return [read_note(job.note) for job in jobs]


def _show(progress, jobs: Sequence[Job], left: int) -> None:
    complete = sum(job.weight * read_note(job.note)["share"] for job in jobs)
    progress.set_postfix_str(f"{len(jobs) - left}/{len(jobs)} jobs done", refresh=False)
    progress.update(complete - progress.n)
