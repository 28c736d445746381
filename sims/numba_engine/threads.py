"""Seeds shared out over threads: each kernel works on seeds `first` to `last` and holds no lock."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:  # threads do not survive a fork
    return ThreadPoolExecutor(threads, "seeds")


def over_seeds(threads: int, kernel, seeds: int, *args) -> None:
    """kernel(first, last, *args) for all seeds on at most `threads` threads.

    A seed is computed by one thread from start to end, so nothing depends on their number.
    """
    parts = min(threads, seeds)
    edges = [seeds * i // parts for i in range(parts + 1)]
    waiting = [_pool(parts - 1, os.getpid()).submit(kernel, edges[i], edges[i + 1], *args) for i in range(1, parts)]
    try:
        kernel(edges[0], edges[1], *args)
    finally:
        for part in waiting:
            part.result()
