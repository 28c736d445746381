"""Threads that take parts of a computation which does not hold Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch

SMALL = 10**7
"""Parameters of a model for whose products outside of the blocks torch needs no threads."""

_count: int | None = None


def threads() -> int:
    """How many compiled code uses: those it was given, or as many as torch."""
    return _count or torch.get_num_threads()


def share_threads(count: int, parameters: int) -> None:
    """Give compiled blocks `count` threads; torch keeps as many for a model that is not `SMALL`, else one.

    Threads of torch that have nothing to do keep a processor busy for milliseconds, as long as a small model's block
    takes.
    """
    global _count
    _count = count
    torch.set_num_threads(1 if parameters <= SMALL else count)


def side_by_side(function: Callable[..., Any], parts: Sequence[Any]) -> None:
    """function(part) of every part, the first in the calling thread; an error of any of them is raised."""
    others = [_pool(os.getpid(), len(parts) - 1).submit(function, part) for part in parts[1:]]
    try:
        function(parts[0])
    finally:
        for other in others:
            other.result()


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Of this process: threads do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="compiled")


def runs(weights: Sequence[float], parts: int) -> list[tuple[int, int]]:
    """First and end of at most `parts` runs of items that weigh about the same; none is empty."""
    if parts <= 1:
        return [(0, len(weights))]
    ends = np.cumsum(weights)
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, parts) / parts) + 1
    return list(pairwise(sorted({0, *cuts.tolist(), len(weights)})))
