"""Jobs in processes of this machine. The death of one is noticed at once and costs only the job it was at."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from entropy_theory.cli.engines.jobs import Job, perform


class LocalEngine:
    """`workers` processes at most, one thread each, started when there is work for them.

    Not `concurrent.futures`: its pool fails every job when one process dies and does not say whose it was.
    """

    def __init__(self, workers: int = 0):
        """`workers`: 0 for one per core."""
        self._most = workers or os.cpu_count() or 1
        self._queue: deque[tuple[int, Job]] = deque()
        self._busy: dict[Connection, tuple[_Worker, int]] = {}
        self._idle: list[_Worker] = []
        self._count = 0

    def start(self, jobs: Sequence[Job]) -> list[int]:
        """Queue the jobs and give them to idle or new workers."""
        tickets = list(range(self._count, self._count + len(jobs)))
        self._count += len(jobs)
        self._queue.extend(zip(tickets, jobs, strict=True))
        self._feed()
        return tickets

    def wait(self, handles: Sequence[int], timeout: float) -> list[int]:
        """See `Engine.wait`."""
        finished = []
        for pipe in wait(list(self._busy), timeout):
            worker, ticket = self._busy.pop(pipe)
            finished.append(ticket)
            try:
                pipe.recv()
                self._idle.append(worker)
            except (EOFError, OSError):
                worker.end()
        self._feed()
        return finished

    def _feed(self) -> None:
        while self._queue and (self._idle or len(self._busy) < self._most):
            worker = self._idle.pop() if self._idle else _start_worker()
            try:
                worker.pipe.send(self._queue[0][1])
            except OSError:  # it died while it was idle
                worker.end()
                continue
            self._busy[worker.pipe] = worker, self._queue.popleft()[0]

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        for worker in [*self._idle, *(worker for worker, _ in self._busy.values())]:
            worker.end()


class _Worker(NamedTuple):
    process: multiprocessing.Process
    pipe: Connection

    def end(self) -> None:
        self.process.terminate()
        self.process.join()
        self.pipe.close()


def _start_worker() -> _Worker:
    # one thread a worker: two threads beside another busy process are slower than one
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()  # so that its death closes the pipe
    return _Worker(process, ours)


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the parent ends these
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        perform(job)
        pipe.send(None)


def _end_with_parent() -> None:
    """A killed parent ends nobody; a worker that outlived it would hold its run directory."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
