"""The sums of Lemma 1 in NumPy, chunk by chunk, so that the work space stays in the cache.

Used where Numba is not installed, and by the tests as the second opinion on the compiled engine.
"""

import numpy as np

from entropy_theory.lemma_1_batch import formulas

CHUNK = 40_000
"""Numbers in one work array: five of them fit a level-2 cache of 2 MiB."""
FEW = 128
"""Up to this many actions a chunk is laid out actions first, so that sums run over long rows."""


def additions(actions: int) -> int:
    """Most additions that one term of a sum goes through: K - 1, whatever order NumPy takes."""
    return actions - 1


def fill(z, d, out, offset, k):
    """As `numba_engine.fill`."""
    actions = z.shape[1]
    rows = max(2, CHUNK // actions)
    space = np.empty((5, actions * max(2, min(rows, len(z)))))
    with np.errstate(all="ignore"):  # invalid input shows in the results, which the caller looks at
        for start in range(0, len(z), rows):
            stop = min(start + rows, len(z))
            _chunk(z[start:stop], d[start:stop], space, out[:, offset + start : offset + stop], k)


def _laid_out(source, space, axis):
    """A copy of [n, actions] in `space`, actions first if axis is 0.

    A single instance is written twice: NumPy adds up one column in another order than many.
    """
    n, actions = source.shape
    wide = max(2, n)
    target = space[: wide * actions].reshape((actions, wide) if axis == 0 else (wide, actions))
    np.copyto(target, source.T if axis == 0 else source)
    return target


def _chunk(z, d, space, out, k):
    """Results of one chunk of instances, into out [7, n]."""
    axis = 0 if z.shape[1] <= FEW else 1
    t, c = _laid_out(z, space[0], axis), _laid_out(d, space[1], axis)
    p, x, y = (s[: t.size].reshape(t.shape) for s in space[2:])
    lowest = t.min()
    masked = None if lowest > -np.inf else _mask(t, c)
    t -= t.max(axis, keepdims=True)
    if not lowest > formulas.LOWEST:
        np.maximum(t, formulas.LOWEST, out=t)
    width = _centre(c, masked, axis)

    def total(a):
        return a.sum(axis)

    def product(a, b):
        return np.einsum("an,an->n" if axis == 0 else "na,na->n", a, b)

    np.exp(t, out=p)
    sums = {"total": total(p), "t": product(p, t)}
    np.multiply(p, c, out=x)
    sums |= {"d": total(x), "td": product(x, t)}
    np.multiply(x, c, out=y)
    sums |= {"dd": total(y), "tdd": product(y, t)}
    t += c
    far = width > formulas.FAR
    if far.any():
        t -= np.expand_dims(np.where(far, t.max(axis), 0.0), axis)
    np.exp(t, out=p)
    sums |= {"total_after": total(p), "t_after": product(p, t)}
    logs = {"log_total": np.log(sums["total"]), "log_total_after": np.log(sums["total_after"])}
    first = k.a0 + width * (k.a1 + width * k.a2)
    second = k.a0 + width * (k.a1 + width * (k.b2 + width * k.b3))
    for row, values in zip(out, (*formulas.statistics(**sums, **logs), width, first, second), strict=True):
        row[:] = values[: len(row)]


def _mask(z, d):
    """Where logits are -inf; what the change holds there becomes 0."""
    masked = z == -np.inf
    d[masked] = 0.0
    return masked


def _centre(d, masked, axis):
    """Measure d from the middle of its range over the actions that are not masked; returns the spread."""
    if masked is None:
        high, low = d.max(axis, keepdims=True), d.min(axis, keepdims=True)
    else:
        high = d.max(axis, keepdims=True, where=~masked, initial=-np.inf)
        low = d.min(axis, keepdims=True, where=~masked, initial=np.inf)
    d -= 0.5 * (high + low)
    if masked is not None:
        d[masked] = 0.0
    return (high - low).squeeze(axis)
