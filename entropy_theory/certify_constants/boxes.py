"""Branch and bound over boxes, and the enclosures that all the proofs use."""

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from entropy_theory.balls import Ball, above, below, flint

GAP = 1e-5
"""Boxes are settled when they cannot rise above the best middle by more than this."""
MOST_BOXES = 2_000_000
PRECISION = 64
"""Bits of mantissa; the balls' own radii carry what that leaves."""

Interval = tuple[float, float]
Box = tuple[Interval, ...]
Enclosure = Callable[[Box], Ball | None]
"""Box -> ball that contains the function's values on it, None where the box lies outside the domain."""


class Supremum(NamedTuple):
    """lower <= sup <= upper, and the boxes it took."""

    lower: float
    upper: float
    boxes: int


def maximise(enclosures: Iterable[tuple[Enclosure, int]], gap: float = GAP) -> Supremum:
    """Enclose the largest value that any of the functions takes on its unit cube, to within `gap`.

    Best first: the box that reaches highest is halved until none reaches `gap` above the best middle.

    Args:
      enclosures: (enclosure, number of variables); each variable runs over [0, 1].
    Raises: RuntimeError if `MOST_BOXES` boxes do not settle it.
    """
    lower, count, order = -math.inf, 0, itertools.count()
    heap: list[tuple[float, int, Box, Enclosure]] = []
    for enclosure, variables in enclosures:
        heap.append((-math.inf, next(order), ((0.0, 1.0),) * variables, enclosure))
    heapq.heapify(heap)
    while heap and -heap[0][0] > lower + gap:
        _, _, box, enclosure = heapq.heappop(heap)
        for half in halves(box):
            count += 1
            middle = enclosure(tuple(((lo + hi) / 2,) * 2 for lo, hi in half))
            if middle is not None:
                lower = max(lower, below(middle))
            values = enclosure(half)
            if values is not None and (top := above(values)) > lower + gap:
                heapq.heappush(heap, (-top, next(order), half, enclosure))
        if count > MOST_BOXES:
            raise RuntimeError(f"{MOST_BOXES} boxes do not settle the maximum, between {lower} and {-heap[0][0]}")
    return Supremum(lower, lower + gap, count)


def halves(box: Box) -> Iterator[Box]:
    """The two halves of a box, cut across its longest side."""
    widths = [hi - lo for lo, hi in box]
    i = widths.index(max(widths))
    lo, hi = box[i]
    for half in ((lo, (lo + hi) / 2), ((lo + hi) / 2, hi)):
        yield (*box[:i], half, *box[i + 1 :])


def ball(interval: Interval) -> Ball:
    """The ball of an interval with float ends."""
    lo, hi = interval
    return flint().arb((lo + hi) / 2, (hi - lo) / 2)


def hull(one: Ball, other: Ball) -> Ball:
    """The smallest ball around two."""
    return one.union(other)


def positive(x: Ball) -> Ball:
    """max(x, 0) of an exact ball."""
    return x.max(flint().arb(0))


def not_negative(x: Ball) -> Ball:
    """The part of a ball that is at least 0, for a quantity known not to be negative."""
    return x if x > 0 else hull(positive(x.lower()), positive(x.upper()))


def root(x: Ball) -> Ball:
    """Square root of a quantity known not to be negative, from the two ends of its ball."""
    return hull(positive(x.lower()).sqrt(), positive(x.upper()).sqrt())


def p_log_p(p: Ball) -> Ball:
    """x ln x over the part of the ball with x >= 0."""
    arb = flint().arb
    top = p.upper()
    if p > 0:
        return p * p.log()
    if not top > 0:
        return arb(0)
    at_top = top * top.log()
    lowest = at_top if top < arb(0.36) else -arb(-1).exp()  # decreasing up to 1/e
    return hull(lowest, at_top.max(arb(0)))


class Gain(NamedTuple):
    """G(b, w) = sup of B ln((K - 1)(w - B)/B) over 0 < B <= b, B < w: step 4 of docs/remainder.md. Concave in B."""

    actions: int

    def __call__(self, deviation: Ball, width: Ball) -> Ball:
        """An upper bound of G that is G itself up to rounding, for exact balls."""
        arb = flint().arb
        if not deviation > 0:
            return arb(0)
        share = deviation / width
        if share < 1:
            log = ((self.actions - 1) * (1 - share) / share).log()
            if log - 1 / (1 - share) > 0:
                return deviation * log  # still rising there
        return width * self.factor()

    def factor(self) -> Ball:
        """sup over x of x ln((K - 1)(1 - x)/x): the value near the top, and how far a concave function can rise."""
        arb = flint().arb
        low, high = 2.0**-30, 1 - 2.0**-30
        for _ in range(80):
            x = (low + high) / 2
            low, high = (x, high) if self._slope(x) > 0 else (low, x)
        top = arb(low)
        log = ((self.actions - 1) * (1 - top) / top).log()
        return top * log + arb(0, abs(log - 1 / (1 - top)).upper())

    def _slope(self, x: float) -> float:
        return math.log((self.actions - 1) * (1 - x) / x) - 1 / (1 - x)

    def over(self, deviation: Ball, width: Ball) -> Ball:
        """G for balls of deviations and widths: it increases in both."""
        return hull(
            self(positive(deviation.lower()), positive(width.lower())),
            self(positive(deviation.upper()), positive(width.upper())),
        )
