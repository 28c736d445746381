"""Policies and logit changes for the sweep: the kinds of `instances`, drawn fast, as a function of (seed, chunk).

A chunk's rows are divided evenly among the kinds of policies, and every sixth row has the same kind of change, so
all combinations occur in every chunk and no kind has to be drawn.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from entropy_theory.claims.instances import LARGEST_CHANGE, LARGEST_LOGIT, SMALLEST_CHANGE

Array = np.ndarray
Draw = Callable[[int, int, Generator], Array]


def _symmetric(n: int, k: int, rng: Generator) -> Array:
    """Uniform in [-1, 1)."""
    return 2 * rng.random((n, k)) - 1


def _subset(n: int, k: int, rng: Generator) -> Array:
    """1 on a part of the actions, 0 elsewhere; the share of ones is drawn per row."""
    return (rng.random((n, k)) < rng.random((n, 1))).astype(float)


def _one(n: int, k: int, rng: Generator) -> Array:
    """1 at one action per row, 0 elsewhere."""
    result = np.zeros((n, k))
    result[np.arange(n), rng.integers(0, k, n)] = 1.0
    return result


def _masked(n: int, k: int, rng: Generator) -> Array:
    kept = _subset(n, k, rng) + _one(n, k, rng) > 0
    return np.where(kept, 2 * rng.standard_normal((n, k)), -np.inf)


LOGITS: dict[str, Draw] = {
    "normal": lambda n, k, g: g.standard_normal((n, k)),
    "peaked": lambda n, k, g: 5 * g.standard_normal((n, k)),
    "wide": lambda n, k, g: LARGEST_LOGIT * _symmetric(n, k, g),
    "uniform": lambda n, k, g: np.repeat(LARGEST_LOGIT * _symmetric(n, 1, g), k, axis=1),
    "ties": lambda n, k, g: g.integers(-3, 4, (n, k)).astype(float),
    "two levels": lambda n, k, g: 10 * g.random((n, 1)) * _subset(n, k, g),
    "zipf": lambda n, k, g: -3 * g.random((n, 1)) * np.log(np.arange(1.0, k + 1)),
    "one and a flat tail": lambda n, k, g: (math.log(k) + 3 * _symmetric(n, 1, g)) * _one(n, k, g),
    "one and a rough tail": lambda n, k, g: (
        g.standard_normal((n, k)) + (math.log(k) + 10 * g.random((n, 1))) * _one(n, k, g)
    ),
    "near one-hot": lambda n, k, g: LARGEST_LOGIT * (2 * _one(n, k, g) - 1),
    "one-hot": lambda n, k, g: np.where(_one(n, k, g) > 0, 0.0, -np.inf),
    "masked": _masked,
}
"""Kinds of policies: [n, k] logits within a few times 50, or -inf."""


def _along(z: Array, rng: Generator) -> Array:
    """log pi up to a constant: logits minus the largest; 0 at masked actions."""
    return np.where(z > -np.inf, z - z.max(1, keepdims=True), 0.0)


def _likely_against_rare(z: Array, rng: Generator) -> Array:
    """1 on the actions within a drawn distance of the likeliest, up to 2 ln k nats."""
    n, k = z.shape
    return (_along(z, rng) > -2 * math.log(k) * rng.random((n, 1))).astype(float)


CHANGES: dict[str, Callable[[Array, Generator], Array]] = {
    "normal": lambda z, g: g.standard_normal(z.shape),
    "two-valued": lambda z, g: _subset(*z.shape, g),
    "sparse": lambda z, g: _one(*z.shape, g),
    "along log pi": _along,
    "the likely against the rare": _likely_against_rare,
    "offset": lambda z, g: 1 + 1e-3 * g.standard_normal(z.shape),
}
"""Kinds of changes, before each row is scaled to a largest entry between 1e-6 and 10."""


def draw(seed: int, chunk: int, rows: int, actions: int) -> tuple[Array, Array]:
    """(logits, change) of one chunk, [rows, actions] float64; the same arguments give the same numbers.

    Args:
      seed: at least 0; chunk: its number, from 0.
    """
    rng = np.random.default_rng([seed, chunk])
    z, d = np.empty((rows, actions)), np.empty((rows, actions))
    edges = [rows * i // len(LOGITS) for i in range(len(LOGITS) + 1)]
    for kind, (start, stop) in zip(LOGITS.values(), itertools.pairwise(edges), strict=True):
        z[start:stop] = kind(stop - start, actions, rng)
    for index, kind in enumerate(CHANGES.values()):
        d[index :: len(CHANGES)] = kind(z[index :: len(CHANGES)], rng)
    largest = np.abs(d).max(1)
    size = np.exp(rng.uniform(math.log(SMALLEST_CHANGE), math.log(LARGEST_CHANGE), rows))
    size *= np.where(rng.random(rows) < 0.5, -1.0, 1.0) / np.where(largest > 0, largest, 1.0)
    d *= size[:, None]
    return z, d
