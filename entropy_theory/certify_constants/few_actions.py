"""First order, few actions: three groups of actions, every way of counting them (docs/remainder.md, steps 5 to 9)."""

from collections.abc import Iterable
from typing import NamedTuple

from entropy_theory.balls import Ball, flint
from entropy_theory.certify_constants.boxes import Box, Interval, Supremum, ball, maximise, not_negative, p_log_p

Masses = tuple[Ball, Ball, Ball]


class Groups(NamedTuple):
    """The function sign (T + sum kappa_i ln(n_i / p_i)) of step 8 for the groups a, e, g.

    sign:   1 bounds -d^2 H / dt^2, -1 bounds d^2 H / dt^2
    counts: (n_a, n_e, n_g), 0 for a group that is absent
    """

    sign: int
    counts: tuple[int, int, int]

    def variables(self) -> int:
        """Two masses, or one when a group is absent."""
        return 2 if all(self.counts) else 1

    def masses(self, box: Box) -> Masses | None:
        """(a, e, g) over a box of a, or of a and e; None where a + e > 1 throughout."""
        a, zero = ball(box[0]), flint().arb(0)
        if len(box) == 1:
            return (a, zero, 1 - a) if self.counts[1] == 0 else (a, 1 - a, zero)
        if box[0][0] + box[1][0] > 1:
            return None
        e = ball(box[1])
        return a, e, 1 - a - e

    def __call__(self, box: Box) -> Ball | None:
        """An enclosure over the box: term by term, or by the mean value theorem where that reaches less high."""
        masses = self.masses(box)
        if masses is None:
            return None
        value = self.by_terms(masses)
        if all(lo < hi for lo, hi in box):
            by_slopes = self.by_slopes(box, masses)
            if by_slopes is not None and by_slopes.upper() < value.upper():
                return by_slopes
        return value

    def by_terms(self, masses: Masses) -> Ball:
        """sign (T + sum u (p ln n - p ln p)), each term enclosed by itself."""
        arb = flint().arb
        value, excess = squares(masses)
        for p, u, n in zip(masses, excess, self.counts, strict=True):
            value += u * (not_negative(p) * arb(max(n, 1)).log() - p_log_p(p))
        return self.sign * value

    def by_slopes(self, box: Box, masses: Masses) -> Ball | None:
        """The value in the middle + slope over the box * distance; None where a group's mass may vanish."""
        middle: tuple[Interval, ...] = tuple(((lo + hi) / 2,) * 2 for lo, hi in box)
        centre = self.masses(middle)
        logs = self.log_counts(masses)
        if centre is None or logs is None:
            return None
        total, excess = squares(centre)
        value = total + sum(p * u * x for p, u, x in zip(centre, excess, self.log_counts(centre), strict=True))
        for direction, side in zip(self.directions(), box, strict=True):
            value += slope(masses, logs, direction) * (ball(side) - (side[0] + side[1]) / 2)
        return self.sign * value

    def directions(self) -> tuple[tuple[int, int, int], ...]:
        """Changes of (a, e, g) per variable of the box."""
        if self.variables() == 2:
            return (1, 0, -1), (0, 1, -1)
        return ((1, 0, -1),) if self.counts[1] == 0 else ((1, -1, 0),)

    def log_counts(self, masses: Masses) -> list[Ball] | None:
        """ln(n / p) by group, 0 for an absent one; None if a mass may vanish."""
        if not all(p > 0 for p, n in zip(masses, self.counts, strict=True) if n):
            return None
        return [(n / p).log() if n else flint().arb(0) for p, n in zip(masses, self.counts, strict=True)]


def squares(masses: Masses) -> tuple[Ball, Masses]:
    """T = a (1 - a)^2 + a^2 e, and T - Y for Y = (1 - a)^2, a^2, 0."""
    a, e, _ = masses
    b = 1 - a
    return a * b * b + a * a * e, (a * a * e - b * b * b, a * (b * b - a * (1 - e)), a * b * b + a * a * e)


def slope(masses: Masses, logs: list[Ball], direction: tuple[int, int, int]) -> Ball:
    """Derivative of T + sum p u ln(n / p) along a direction: T' + sum ((p u)' ln(n / p) - u p')."""
    a, e, _ = masses
    b, (da, de, _) = 1 - a, direction
    of_total = da * (b * b - 2 * a * b + 2 * a * e) + de * a * a
    of_squares = (-2 * da * b, 2 * da * a, 0)
    _, excess = squares(masses)
    result = of_total
    for p, u, x, dp, dy in zip(masses, excess, logs, direction, of_squares, strict=True):
        result += (dp * u + p * (of_total - dy)) * x - u * dp
    return result


def cases(actions: int) -> Iterable[Groups]:
    """Both signs and every way of sharing the actions among three groups, of which e or g may be absent."""
    for sign in (1, -1):
        for n in range(1, actions):
            yield Groups(sign, (n, 0, actions - n))
            yield Groups(sign, (n, actions - n, 0))
            yield from (Groups(sign, (n, m, actions - n - m)) for m in range(1, actions - n))


def supremum(actions: int) -> Supremum:
    """Enclosure of the largest of all cases, at least `|d^2 H / dt^2| / spread^2` of every policy."""
    return maximise((case, case.variables()) for case in cases(actions))
