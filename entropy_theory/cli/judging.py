"""The judging of `check` under a progress bar, in worker processes where there is enough to share out."""

import multiprocessing
import os
import signal
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

import torch

from entropy_theory import claims
from entropy_theory.cli.check import CheckOptions, make_context
from entropy_theory.cli.progress import bar

ALONE = 8
"""Up to so many claims are judged in this process: starting another takes about as long."""


def judge(chosen: list[claims.Claim], options: CheckOptions) -> list[claims.Judged]:
    """Judge the claims that the options choose; the result does not depend on the number of workers.

    Returns: one Judged per claim, in the order given.
    """
    workers = options.workers or os.cpu_count() or 1
    with bar(len(chosen), "check", unit="claim") as progress:

        def show(id: str, done: float):
            progress.set_postfix_str(id, refresh=False)
            progress.update(done - progress.n)

        if workers == 1 or len(chosen) <= ALONE:
            torch.set_num_threads(1)  # instances are small, and two threads beside a busy process are slower than one
            return claims.judge(chosen, make_context(options), show)
        return _shared_out(chosen, options, workers, show)


def _shared_out(chosen: list[claims.Claim], options: CheckOptions, workers: int, show) -> list[claims.Judged]:
    context = multiprocessing.get_context("spawn")
    ticks = context.SimpleQueue()
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(options, ticks)) as pool:
        # what looks at worlds takes longest, so it goes first
        order = sorted(chosen, key=lambda claim: claim.places == (claims.RANDOM,))
        futures = {pool.submit(_judge_one, claim.id): claim for claim in order}
        try:
            found = _follow(futures, ticks, show)
        except BaseException:
            # futures are not cancelled: the thread of the pool would fail on those when it ends them
            for process in list(pool._processes.values()):
                process.terminate()
            raise
    return [claims.Judged(claim, *found[claim.id]) for claim in chosen]


def _follow(futures: dict[Future, claims.Claim], ticks, show) -> dict[str, tuple[claims.Finding, float]]:
    """Finding and seconds by id; draws progress until every future is done, raises what a worker raised."""
    pending, found, shares = set(futures), {}, {}
    while pending:
        done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
        for future in done:
            found[futures[future].id] = future.result()
        while not ticks.empty():
            id, share = ticks.get()
            shares[id] = share
        running = {id: share for id, share in shares.items() if id not in found}
        show(next(iter(running), ""), len(found) + sum(running.values()))
    return found


_context: claims.Context | None = None
_ticks = None


def _start(options: CheckOptions, ticks) -> None:
    global _context, _ticks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the parent ends these
    torch.set_num_threads(1)
    _context, _ticks = make_context(options), ticks


def _judge_one(id: str) -> tuple[claims.Finding, float]:
    (judged,) = claims.judge([claims.CLAIMS[id]], _context, lambda id, done: _ticks.put((id, min(done, 1.0))))
    return judged.finding, judged.seconds
