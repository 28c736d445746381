r"""Proves every entry of `remainder_tables` by interval branch and bound in ball arithmetic (docs/remainder.md).

    python -m entropy_theory.certify_constants                 prove all entries, about half a minute
    python -m entropy_theory.certify_constants --actions 3 10  only these
    python -m entropy_theory.certify_constants --propose       print the tables anew, rounded up

Needs python-flint. An enclosure of a function over a box is computed by `arb`, whose balls contain every rounding
error; a box whose enclosure lies below the entry is settled, any other is cut in two. When none is left, the entry
is an upper bound: no sampling is involved. The sharpness shown beside it comes from the middles of the boxes.
"""

import argparse
import heapq
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from entropy_theory import remainder_tables
from entropy_theory.balls import Ball, above, below, flint, precision

GAP = 1e-5
"""Boxes are settled when they cannot rise above the best middle by more than this."""
DECIMALS = 5
MOST_BOXES = 2_000_000
PRECISION = 64
Interval = tuple[float, float]
Enclosure = Callable[[tuple[Interval, ...]], Ball | None]
"""Box -> ball that contains the function's values on it, None where the box lies outside the domain."""


class Supremum(NamedTuple):
    """lower <= sup <= upper, and the boxes it took."""

    lower: float
    upper: float
    boxes: int


def supremum(enclosures: Iterable[tuple[Enclosure, int]], gap: float = GAP) -> Supremum:
    """Enclose the largest value that any of the functions takes on its unit cube, to within `gap`.

    Args:
      enclosures: (enclosure, number of variables); each variable runs over [0, 1].
    Raises: RuntimeError if `MOST_BOXES` boxes do not settle it.
    """
    with precision(PRECISION):
        return _supremum(enclosures, gap)


def _supremum(enclosures: Iterable[tuple[Enclosure, int]], gap: float) -> Supremum:
    """Best first: the box that reaches highest is halved until none reaches `gap` above the best middle."""
    lower, count, order = -math.inf, 0, itertools.count()
    heap: list[tuple[float, int, tuple[Interval, ...], Enclosure]] = []
    for enclosure, variables in enclosures:
        heap.append((-math.inf, next(order), ((0.0, 1.0),) * variables, enclosure))
    heapq.heapify(heap)
    while heap and -heap[0][0] > lower + gap:
        _, _, box, enclosure = heapq.heappop(heap)
        for half in _halves(box):
            count += 1
            middle = enclosure(tuple(((lo + hi) / 2,) * 2 for lo, hi in half))
            if middle is not None:
                lower = max(lower, below(middle))
            ball = enclosure(half)
            if ball is not None and (top := above(ball)) > lower + gap:
                heapq.heappush(heap, (-top, next(order), half, enclosure))
        if count > MOST_BOXES:
            raise RuntimeError(f"{MOST_BOXES} boxes do not settle the maximum, between {lower} and {-heap[0][0]}")
    return Supremum(lower, lower + gap, count)


def _halves(box: tuple[Interval, ...]) -> Iterator[tuple[Interval, ...]]:
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


def p_log_p(p: Ball) -> Ball:
    """x ln x over the part of the ball with x >= 0, for balls reaching no further than 1."""
    arb = flint().arb
    top = p.upper()
    if p > 0:
        return p * p.log()
    if not top > 0:
        return arb(0)
    lowest = top * top.log() if top < arb(0.36) else -arb(-1).exp()  # decreasing up to 1/e
    return lowest.union(arb(0))


# --- first order: three groups of actions (docs/remainder.md, steps 1 to 8) ---------------------------------------


class Groups(NamedTuple):
    """The function F of step 6 for one sign and one way of counting the actions of the groups a, e, g.

    sign:   1 for -phi'' > 0, -1 for phi'' > 0
    counts: (n_a, n_e, n_g), 0 for a group that is absent; None for real counts that share K - 1 actions (step 7)
    actions: K
    """

    sign: int
    counts: tuple[int, int, int] | None
    actions: int

    def variables(self) -> int:
        """Two masses, or one when a group is absent."""
        return 2 if self.counts is None or all(self.counts) else 1

    def masses(self, box: tuple[Interval, ...]) -> tuple[Ball, Ball, Ball] | None:
        """(a, e, g) over a box of a, or of a and e; None where a + e > 1 throughout."""
        a = ball(box[0])
        if len(box) == 1:
            zero = flint().arb(0)
            return (a, zero, 1 - a) if self.counts[1] == 0 else (a, 1 - a, zero)
        if box[0][0] + box[1][0] > 1:
            return None
        e = ball(box[1])
        return a, e, 1 - a - e

    def __call__(self, box: tuple[Interval, ...]) -> Ball | None:
        """An enclosure of F over the box: term by term, or by the mean value theorem where that is narrower."""
        masses = self.masses(box)
        if masses is None:
            return None
        value = self.by_terms(masses)
        if all(lo < hi for lo, hi in box):
            middle = tuple(((lo + hi) / 2,) * 2 for lo, hi in box)
            by_slopes = self.by_slopes(box, middle, masses)
            if by_slopes is not None and by_slopes.upper() < value.upper():
                return by_slopes
        return value

    def by_terms(self, masses: tuple[Ball, Ball, Ball]) -> Ball:
        """sign (T - sum u p ln p) + the largest sum kappa ln n, each term enclosed by itself."""
        total, excess = _squares(masses)
        value = total - sum(u * p_log_p(p) for u, p in zip(excess, masses, strict=True))
        kappa = [self.sign * _not_negative(p) * u for u, p in zip(excess, masses, strict=True)]
        return self.sign * value + self.counted(kappa)

    def counted(self, kappa: list[Ball]) -> Ball:
        """sum kappa ln n; for real counts its largest value, which is convex, so largest in a corner."""
        if self.counts is not None:
            arb = flint().arb
            return sum((k * arb(n).log() for k, n in zip(kappa, self.counts, strict=True) if n > 1), arb(0))
        corners = itertools.product(*({_positive(k.lower()), _positive(k.upper())} for k in kappa))
        values = [_shared(corner, self.actions - 1) for corner in corners]
        return _hull(values)

    def by_slopes(self, box: tuple[Interval, ...], middle: tuple[Interval, ...], masses) -> Ball | None:
        """F(middle) + slope over the box * distance, where every group's log count is smooth on the box."""
        centre, logs = self.masses(middle), self.log_counts(masses)
        if centre is None or logs is None or (at := self.log_counts(centre)) is None:
            return None
        total, excess = _squares(centre)
        value = total + sum(p * u * x for p, u, x in zip(centre, excess, at, strict=True))
        for direction, side in zip(self.directions(), box, strict=True):
            value += self.slope(masses, logs, direction) * (ball(side) - (side[0] + side[1]) / 2)
        return self.sign * value

    def directions(self) -> tuple[tuple[int, int, int], ...]:
        """Changes of (a, e, g) per variable of the box."""
        if self.variables() == 2:
            return (1, 0, -1), (0, 1, -1)
        return ((1, 0, -1),) if self.counts[1] == 0 else ((1, -1, 0),)

    def log_counts(self, masses: tuple[Ball, Ball, Ball]) -> list[Ball] | None:
        """ln(n / p) by group, 0 for an absent one; None if a mass or, for real counts, a kappa may vanish."""
        arb = flint().arb
        if self.counts is not None:
            present = [p for p, n in zip(masses, self.counts, strict=True) if n]
            if not all(p > 0 for p in present):
                return None
            return [(n / p).log() if n else arb(0) for p, n in zip(masses, self.counts, strict=True)]
        _, (of_a, of_e, of_g) = _squares(masses)
        if self.sign < 0 or not (masses[0] > 0 and of_a < 0 and of_e > 0 and of_g > 0):
            return None
        shared = (self.actions - 1) / (-masses[0] * of_a)  # (K - 1) / kappa: kappa_e + kappa_g = -kappa_a
        return [-masses[0].log(), (of_e * shared).log(), (of_g * shared).log()]

    @staticmethod
    def slope(masses: tuple[Ball, Ball, Ball], logs: list[Ball], direction: tuple[int, int, int]) -> Ball:
        """Derivative of T + sum p u x along a direction, with the counts in x held (step 8)."""
        a, e, _ = masses
        b, (da, de, _) = 1 - a, direction
        of_total = da * (b * b - 2 * a * b + 2 * a * e) + de * a * a
        of_squares = (-2 * da * b, 2 * da * a, 0)
        _, excess = _squares(masses)
        result = of_total
        for p, u, x, dp, dy in zip(masses, excess, logs, direction, of_squares, strict=True):
            result += (dp * u + p * (of_total - dy)) * x - u * dp
        return result


def _squares(masses: tuple[Ball, Ball, Ball]) -> tuple[Ball, tuple[Ball, Ball, Ball]]:
    """T = a (1 - a)^2 + a^2 e, and T - Y for Y = (1 - a)^2, a^2, 0."""
    a, e, _ = masses
    b = 1 - a
    return a * b * b + a * a * e, (a * a * e - b * b * b, a * (b * b - a * (1 - e)), a * b * b + a * a * e)


def _not_negative(p: Ball) -> Ball:
    return p if p > 0 else _positive(p.lower()).union(_positive(p.upper()))


def _positive(x: Ball) -> Ball:
    """max(x, 0) of an exact ball."""
    return x.max(flint().arb(0))


def _shared(kappa: Iterable[Ball], count: int) -> Ball:
    """max of sum kappa_i ln n_i over real n_i > 0 of sum `count`: sum kappa_i ln(count kappa_i / kappa)."""
    present = [k for k in kappa if k > 0]
    arb = flint().arb
    total = sum(present, arb(0))
    return sum((k * (count * k / total).log() for k in present), arb(0))


def _hull(balls: list[Ball]) -> Ball:
    result = balls[0]
    for x in balls[1:]:
        result = result.union(x)
    return result


def first_order_cases(actions: int) -> list[Groups]:
    """Every function whose supremum bounds |phi''| / R^2 on `actions` actions."""
    if actions >= remainder_tables.CONVEX_FROM:
        return [Groups(sign, None, actions) for sign in (1, -1)]
    pairs = [(n, actions - n) for n in range(1, actions)]
    whole = [(n, m, actions - n - m) for n in range(1, actions) for m in range(1, actions - n)]
    counts = [*whole, *((n, 0, m) for n, m in pairs), *((n, m, 0) for n, m in pairs)]
    return [Groups(sign, c, actions) for sign in (1, -1) for c in counts]


# --- second order: the standard deviation alone (docs/remainder.md, steps 9 to 14) --------------------------------


class Deviation(NamedTuple):
    """2 t(s) + the largest B ln((K - 1)(W - B)/B), B <= b(s), of step 14, with s = x/2, x in [0, 1]."""

    actions: int

    def __call__(self, box: tuple[Interval, ...]) -> Ball:
        """An enclosure over an interval of x."""
        arb = flint().arb
        s = ball(box[0]) / 2
        square = s * s
        left = 1 - 4 * square
        root = _positive(left.lower()).sqrt().union(_positive(left.upper()).sqrt())
        reach = (1 + root) / 2
        third = square * root
        largest = (2 * square * s).max(reach * (reach * reach - 3 * square))
        width = third + largest
        deviation = (s * (3 * square).max(reach * reach - 3 * square)).min(largest) / 2
        # increasing in both: enclosed by its values at the two ends
        ends = [
            self.gain(_positive(end(deviation)), _positive(end(width)))
            for end in (lambda x: x.lower(), lambda x: x.upper())
        ]
        return 2 * third + (ends[0].union(ends[1]) if box[0][0] < box[0][1] else ends[1]) + arb(0)

    def gain(self, deviation: Ball, width: Ball) -> Ball:
        """sup of B ln((K - 1)(width - B)/B) over 0 < B <= deviation, for exact balls; concave in B."""
        arb = flint().arb
        if not deviation > 0:
            return arb(0)
        share = deviation / width
        top = arb(_best_share(self.actions))
        log = ((self.actions - 1) * (1 - share) / share).log() if share < 1 else arb(-1)
        if share < 1 and log - 1 / (1 - share) > 0:
            return deviation * log  # still rising there
        log = ((self.actions - 1) * (1 - top) / top).log()
        return width * (top * log + arb(0, abs(log - 1 / (1 - top)).upper()))


def _best_share(actions: int) -> float:
    """Float near the root of ln((K - 1)(1 - x)/x) = 1/(1 - x); what it misses enters the bound in `gain`."""
    low, high = 2.0**-30, 1 - 2.0**-30
    for _ in range(80):
        x = (low + high) / 2
        low, high = (x, high) if math.log((actions - 1) * (1 - x) / x) > 1 / (1 - x) else (low, x)
    return low


class TwoActions(NamedTuple):
    """+-d^3 H / dx^3 for two actions with logit gap x: s (2 (1 - 2q) - x (1 - 6s)), s = q (1 - q), x = ln((1-q)/q)."""

    sign: int

    def __call__(self, box: tuple[Interval, ...]) -> Ball:
        """An enclosure over an interval of 2 q; q above 1/2 is the same policy with its actions exchanged."""
        q = ball(box[0]) / 2
        s = q * (1 - q)
        gap = q * p_log_p(1 - q) - (1 - q) * p_log_p(q)  # s x
        return self.sign * (2 * s * (1 - 2 * q) - gap * (1 - 6 * s))


# --- the tables ---------------------------------------------------------------------------------------------------


def first_order(actions: int) -> Supremum:
    """Enclosure of the supremum that bounds |phi''| / R^2."""
    if actions == 2:
        return Supremum(0.25, 0.25, 0)  # by hand: docs/remainder.md, step 9
    return supremum((case, case.variables()) for case in first_order_cases(actions))


def second_order(actions: int) -> Supremum:
    """Enclosure of the supremum that bounds |phi'''| / R^3."""
    if actions == 2:
        return supremum((TwoActions(sign), 1) for sign in (1, -1))
    return supremum([(Deviation(actions), 1)])


TABLES = (
    ("first order", remainder_tables.FIRST_ORDER, first_order),
    ("second order", remainder_tables.SECOND_ORDER, second_order),
)


def rounded_up(value: float) -> float:
    """`value` to `DECIMALS` decimals, not below it."""
    return math.ceil(value * 10**DECIMALS) / 10**DECIMALS


def main(arguments: list[str] | None = None) -> int:
    """Prove the entries asked for; 1 if one of them is too small."""
    parser = argparse.ArgumentParser(prog="python -m entropy_theory.certify_constants", description=__doc__)
    parser.add_argument("--actions", type=int, nargs="+", metavar="K", help="entries to prove (default: all)")
    parser.add_argument("--propose", action="store_true", help="print new entries instead of judging the old")
    options = parser.parse_args(arguments)
    unknown = set(options.actions or ()) - set(remainder_tables.FIRST_ORDER)
    if unknown and not options.propose:
        parser.error(f"no entry for {sorted(unknown)} actions; the tables have {sorted(remainder_tables.FIRST_ORDER)}")
    wrong = 0
    for name, table, prove in TABLES:
        for actions in options.actions or table:
            found = prove(actions)
            entry = rounded_up(found.upper) if options.propose else table[actions]
            verdict = "proved" if found.upper <= entry else "NOT PROVED"
            wrong += found.upper > entry
            enclosure = f"supremum in [{found.lower:.7f}, {found.upper:.7f}], {found.boxes:,} boxes"
            print(f"{name:12}  K = {actions:>9,}  {entry:.{DECIMALS}f}  {verdict}: {enclosure}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
