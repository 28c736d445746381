"""Worker processes that train parts of a run side by side: threads would spend their time waiting for Python's lock.

One worker, or one part, stays in the process of the run; so does everything in a worker of a sweep, which has one core.
"""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

Step = Callable[..., list[Any]]
"""Called with what is to be done; a result for each of its parts, without tensors, which are slow to send."""

Open = Callable[[Sequence[Any], Any], Step]
"""(parts, shared) -> the step of these parts. A function of a module, since workers import it by name."""


class Crew:
    """Workers, each with its share of the parts, in order. As a context manager, ends them."""

    def __init__(self, workers: int, open_parts: Open, parts: Sequence[Any], shared: Any):
        workers = 1 if multiprocessing.current_process().daemon else min(workers, len(parts))
        self.processes, self.pipes, self.step, self.ordered = [], [], None, ()
        if workers == 1:
            self.step = open_parts(parts, shared)
            return
        context = multiprocessing.get_context("spawn")
        edges = [len(parts) * i // workers for i in range(workers + 1)]
        for first, last in pairwise(edges):
            ours, theirs = context.Pipe()
            arguments = (theirs, open_parts, parts[first:last], shared)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(ours)

    def order(self, *order: Any) -> None:
        """Have the workers take this step; go on with other work, then ask for the `answers`."""
        self.ordered = order
        for pipe in self.pipes:
            with contextlib.suppress(BrokenPipeError):  # `answers` says so
                pipe.send(order)

    def answers(self) -> list[Any]:
        """What the step returned, part by part; an error of a worker is raised here.

        Raises: ChildProcessError if a worker died.
        """
        if self.step is not None:
            return self.step(*self.ordered)
        try:
            answers = [pipe.recv() for pipe in self.pipes]
        except (EOFError, ConnectionResetError):
            raise ChildProcessError(
                "a worker process of this run died; the same command goes on from the last saved step"
            ) from None
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return [result for answer in answers for result in answer]

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_) -> None:
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            pipe.close()
            process.terminate()
            process.join()


def _work(pipe, open_parts: Open, parts: Sequence[Any], shared: Any) -> None:
    """A worker: opens its parts, then answers every order, until the run's end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the run ends these
    torch.set_num_threads(1)
    step = None
    while True:
        try:
            order = pipe.recv()
        except EOFError:
            return
        try:
            if step is None:
                step = open_parts(parts, shared)
            answer = step(*order)
        except Exception as error:
            answer = error
        try:
            pipe.send(answer)
        except BrokenPipeError:  # the run was killed meanwhile
            return
