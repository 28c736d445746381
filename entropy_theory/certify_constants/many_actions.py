"""First order, many actions: a dual certificate for every mean and variance of the change (remainder.md, 11 to 17).

A change has values y in [-m, 1 - m] around its mean, with variance S. For any numbers rho, lam and mu the quantity
is at most the largest value of a function of y alone. The plane of (m, S) is cut into cells; each gets three numbers
from a small linear program in floats. How they were found does not matter: what they prove is checked in balls.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from entropy_theory import remainder_tables
from entropy_theory.balls import Ball, above, below, flint
from entropy_theory.certify_constants.boxes import (
    Box,
    Gain,
    Interval,
    Supremum,
    ball,
    halves,
    hull,
    maximise,
    not_negative,
    p_log_p,
    positive,
    root,
)

DEVIATION = {0.0: remainder_tables.FIRST_ORDER_SLOPE, 0.5: 0.0276}
"""tilt -> proved bound of B - tilt S, B = E|y^2 - S|/2: step 15."""
EXCESS = 5e-4
"""The bound that is proved is this much, relatively, above a value that is attained."""
MOST_CELLS = 50_000
LARGEST_CELL = 1 / 8
"""Cells are cut to this width before a hint is looked for."""
_POINTS = 61
_NARROWEST = 2.0**-14


class Hint(NamedTuple):
    """Numbers of step 13: any floats are valid, good ones prove more."""

    rho: float
    lam: float
    mu: float


class Dual(NamedTuple):
    """What is bounded: the curvature of the entropy for `actions` actions, or (None) B - tilt S, B = E|y^2 - S|/2."""

    actions: int | None
    tilt: float = 0.0

    def outer(self, hint: Hint) -> tuple[Ball, Ball]:
        """(alpha, beta) of alpha (y^2 - S) + beta, which is the function's part for y^2 > S."""
        arb = flint().arb
        if self.actions is None:
            return arb(1), arb(0)
        return arb(self.actions - 1).log() + hint.rho - 1, arb(-hint.rho).exp()

    def inner(self, x: Ball) -> Ball:
        """The function's part for x = S - y^2 >= 0."""
        return p_log_p(x) if self.actions else flint().arb(0)

    def inner_slope(self, x: Ball) -> Ball:
        """Its derivative, for x > 0."""
        return x.log() + 1 if self.actions else flint().arb(0)

    def of_variance(self) -> float:
        """What stands before S."""
        return 1.0 if self.actions else -self.tilt

    def small_variance(self) -> Ball:
        """A factor f with quantity <= f S for every change of variance S (step 14)."""
        return 1 + Gain(self.actions).factor() if self.actions else flint().arb(1) - self.tilt


class Cell(NamedTuple):
    """Changes of mean m in [0, 1/2] and variance S = u^2 m (1 - m), over intervals of m and u."""

    mean: Interval
    reach: Interval

    def variance(self) -> Ball:
        """S, which grows with m and u."""
        arb = flint().arb
        ends = [arb(u) ** 2 * arb(m) * (1 - arb(m)) for m, u in zip(self.mean, self.reach, strict=True)]
        return hull(*ends)


def settles(dual: Dual, cell: Cell, hint: Hint, target: Ball) -> bool:
    """Whether the hint proves the quantity to be at most `target` on the whole cell."""
    variance = cell.variance()
    low, high = -flint().arb(cell.mean[1]), 1 - flint().arb(cell.mean[0])
    return _outer_below(dual, hint, variance, low, high, target) and _inner_below(
        dual, hint, variance, (below(low), above(high)), target
    )


def _outer_below(dual: Dual, hint: Hint, variance: Ball, low: Ball, high: Ball, target: Ball) -> bool:
    """The part with y^2 > S: linear in S and quadratic in y, so only ends and the vertex matter."""
    alpha, beta = dual.outer(hint)
    bend, lam = alpha - hint.mu, flint().arb(hint.lam)
    edge = positive(variance.lower()).sqrt().lower()
    points = [edge, high]
    if not -edge < low:
        points += [-edge, low]
    vertex = lam / (2 * bend)
    if not bend >= 0 and (vertex.overlaps(hull(edge, high)) or vertex.overlaps(hull(low, -edge))):
        points.append(vertex)
    return all(
        dual.of_variance() * s + bend * (y * y - s) + beta - lam * y <= target
        for s in (variance.lower(), variance.upper())
        for y in points
    )


def _inner_below(dual: Dual, hint: Hint, variance: Ball, side: Interval, target: Ball) -> bool:
    """The part with y^2 <= S, over intervals of y that are halved until each is settled."""
    edge = above(root(variance))
    todo = [(max(side[0], -edge), min(side[1], edge))]
    while todo:
        lo, hi = todo.pop()
        if _inner(dual, hint, variance, (lo, hi)) <= target:
            continue
        if hi - lo < _NARROWEST:
            return False
        todo += [(lo, (lo + hi) / 2), ((lo + hi) / 2, hi)]
    return True


def _inner(dual: Dual, hint: Hint, variance: Ball, side: Interval) -> Ball:
    """Enclosure of S + inner(S - y^2) + mu (S - y^2) - lam y, by terms or by the mean value theorem."""
    y, sign = ball(side), dual.of_variance()
    x = variance - y * y
    if x > 0:
        slope = dual.inner_slope(x) + hint.mu
        centre, middle = y.mid(), variance.mid()
        at = middle - centre * centre
        value = sign * middle + dual.inner(at) + hint.mu * at - hint.lam * centre
        along = (-2 * y * slope - hint.lam) * (y - centre)
        return value + along + (sign + slope) * (variance - middle)
    x = not_negative(x)
    return sign * variance + dual.inner(x) + hint.mu * x - hint.lam * y


# --- hints --------------------------------------------------------------------------------------------------------


def find_hint(dual: Dual, cell: Cell) -> Hint | None:
    """The best numbers at the middle of a cell, by a linear program on a grid of y; None if it has no solution.

    Least c + mu S with c + lam y + mu y^2 at least the function. exp(-rho) enters as t, above its tangents: first
    at coarse points, then at fine ones around the rho found.
    """
    (m0, m1), (u0, u1) = cell
    m, u = (m0 + m1) / 2, (u0 + u1) / 2
    variance = u * u * m * (1 - m)
    s, slack = math.sqrt(variance), (u1 * math.sqrt(m1 * (1 - m1)) - u0 * math.sqrt(m0 * (1 - m0))) / 2
    jumps = [x for x in (s * (1 + 1e-9), -s * (1 + 1e-9)) if -m1 - slack <= x <= 1 - m0 + slack]
    y = np.array([*np.linspace(-m1, 1 - m0, _POINTS), *jumps, -variance / (1 - m)])
    hint = _program(dual, y, variance, np.linspace(-2.0, 10.0, 61))
    if hint is None or dual.actions is None:
        return hint
    return _program(dual, y, variance, hint.rho + np.linspace(-0.2, 0.2, 41))


def _program(dual: Dual, y: np.ndarray, variance: float, touching: np.ndarray) -> Hint | None:
    """One linear program in (c, lam, mu, rho, t); `touching`: where the tangents of exp(-rho) touch."""
    outer, x = y * y > variance, np.maximum(variance - y * y, 1e-300)
    over, ones = np.where(outer, y * y - variance, 0.0), np.ones_like(y)
    if dual.actions is None:
        rows, right = -np.stack([ones, y, y * y, 0 * y, 0 * y], axis=1), -over
    else:
        rows = -np.stack([ones, y, y * y, -over, -1.0 * outer], axis=1)
        right = -np.where(outer, (math.log(dual.actions - 1) - 1) * over, x * np.log(x))
        slopes = np.exp(-touching)
        zero = np.zeros_like(slopes)
        rows = np.concatenate([rows, np.stack([zero, zero, zero, -slopes, -1 + zero], axis=1)])
        right = np.concatenate([right, -slopes * (1 + touching)])
    bounds = [(None, None)] * 3 + [(touching[0], touching[-1]), (0, None)]
    solved = linprog([1.0, 0.0, variance, 0.0, 0.0], A_ub=rows, b_ub=right, bounds=bounds, method="highs")
    return Hint(*(float(solved.x[i]) for i in (3, 1, 2))) if solved.status == 0 else None


# --- the proof ----------------------------------------------------------------------------------------------------


def prove(dual: Dual, target: float) -> int:
    """Prove that the quantity is at most `target` for every change; the number of cells it took.

    Raises: RuntimeError if `MOST_CELLS` cells do not settle it, which says nothing about the statement.
    """
    goal, factor = flint().arb(target), dual.small_variance()
    todo: list[tuple[Box, Hint | None]] = [(((0.0, 0.5), (0.0, 1.0)), None)]
    count = 0
    while todo:
        box, hint = todo.pop()
        count += 1
        if count > MOST_CELLS:
            raise RuntimeError(f"{MOST_CELLS} cells do not prove {target} for {dual}; the last one is {box}")
        cell = Cell(*box)
        if factor * cell.variance().upper() <= goal or (hint is not None and settles(dual, cell, hint, goal)):
            continue
        if max(hi - lo for lo, hi in box) <= LARGEST_CELL:
            hint = find_hint(dual, cell)
            if hint is not None and settles(dual, cell, hint, goal):
                continue
        todo += [(half, hint) for half in halves(box)]
    return count


class Raised(NamedTuple):
    """-S + G(b(S), M^2 - S) of step 16 over S = x/4: the other sign, where the curvature raises entropy."""

    actions: int

    def __call__(self, box: Box) -> Ball:
        """An enclosure over an interval of x."""
        variance = ball(box[0]) / 4
        reach = (1 + root(1 - 4 * variance)) / 2
        deviation = variance
        for tilt, most in DEVIATION.items():
            deviation = deviation.min(tilt * variance + most)
        return Gain(self.actions).over(deviation, reach * reach - variance) - variance


def two_valued(actions: int) -> Ball:
    """q (1-q) [1 + (1-2q) ln((K-1) q/(1-q))] near its largest: attained, by a change of one action."""
    q = np.linspace(0, 1, 200_001)[1:-1]
    values = q * (1 - q) * (1 + (1 - 2 * q) * np.log((actions - 1) * q / (1 - q)))
    q = flint().arb(float(q[values.argmax()]))
    return q * (1 - q) * (1 + (1 - 2 * q) * ((actions - 1) * q / (1 - q)).log())


def supremum(actions: int) -> Supremum:
    """[attained value, a proved bound `EXCESS` above it] of |d^2 H / dt^2| / spread^2."""
    lower = below(two_valued(actions))
    upper = lower * (1 + EXCESS)
    cells = prove(Dual(actions), upper)
    other = maximise([(Raised(actions), 1)], gap=1e-3)
    if other.upper > upper:
        raise RuntimeError(f"the other sign is only bounded by {other.upper}, above {upper}")
    return Supremum(lower, upper, cells + other.boxes)


def deviations() -> dict[float, Supremum]:
    """tilt -> [attained, proved] of the largest B - tilt S: S sqrt(1 - 4 S) - tilt S is attained by two values."""
    found = {}
    for tilt, most in DEVIATION.items():
        variance = np.linspace(0, 0.25, 100_001)
        attained = float((variance * np.sqrt(1 - 4 * variance) - tilt * variance).max())
        found[tilt] = Supremum(attained, most, prove(Dual(None, tilt), most))
    return found
