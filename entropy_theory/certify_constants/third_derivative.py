"""Second order: one variable, the standard deviation of the change (docs/remainder.md, steps 18 to 23)."""

from typing import NamedTuple

from entropy_theory.balls import Ball
from entropy_theory.certify_constants.boxes import Box, Gain, Supremum, ball, maximise, p_log_p, root


class Deviation(NamedTuple):
    """2 t(s) + G(b(s), w(s)) of step 22, with s = x/2, x in [0, 1]."""

    actions: int

    def __call__(self, box: Box) -> Ball:
        """An enclosure over an interval of x."""
        s = ball(box[0]) / 2
        square = s * s
        left = root(1 - 4 * square)
        reach = (1 + left) / 2
        third = square * left
        largest = (2 * square * s).max(reach * (reach * reach - 3 * square))
        deviation = (s * (3 * square).max(reach * reach - 3 * square)).min(largest) / 2
        return 2 * third + Gain(self.actions).over(deviation, third + largest)


class TwoActions(NamedTuple):
    """+-d^3 H / dx^3 for two actions with logit gap x: s (2 (1 - 2q) - x (1 - 6s)), s = q (1 - q), x = ln((1-q)/q)."""

    sign: int

    def __call__(self, box: Box) -> Ball:
        """An enclosure over an interval of 2 q; q above 1/2 is the same policy with its actions exchanged."""
        q = ball(box[0]) / 2
        s = q * (1 - q)
        gap = q * p_log_p(1 - q) - (1 - q) * p_log_p(q)  # s x
        return self.sign * (2 * s * (1 - 2 * q) - gap * (1 - 6 * s))


def supremum(actions: int) -> Supremum:
    """Enclosure of a bound of `|d^3 H / dt^3| / spread^3`; for two actions, of its supremum."""
    if actions == 2:
        return maximise((TwoActions(sign), 1) for sign in (1, -1))
    return maximise([(Deviation(actions), 1)])
