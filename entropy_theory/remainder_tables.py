"""The numbers behind the remainder bounds: proved constants by number of actions, and how to read between them.

Proofs: docs/remainder.md. `python -m entropy_theory.certify_constants` proves every entry again in ball arithmetic.
"""

import bisect
import math
import operator
from functools import lru_cache

# fmt: off
FIRST_ORDER: dict[int, float] = {
    2: 0.25000, 3: 0.26532, 4: 0.27820, 5: 0.28941, 6: 0.29940, 7: 0.30947,
    8: 0.31891, 9: 0.32746, 10: 0.33526, 11: 0.34246, 12: 0.34913, 13: 0.35535,
    14: 0.36118, 15: 0.36667, 16: 0.37167, 20: 0.38953, 25: 0.40774, 32: 0.42821,
    50: 0.46598, 64: 0.48722, 100: 0.52615, 200: 0.58769, 500: 0.67056, 1000: 0.73410,
    2000: 0.79818, 5000: 0.88352, 10_000: 0.94845, 20_000: 1.01363, 50_000: 1.10009, 100_000: 1.16569,
    151_936: 1.20534, 200_000: 1.23141, 500_000: 1.31846, 1_000_000: 1.38441,
}
# fmt: on
r"""K -> C_K with |d^2 H(z + t d)/dt^2| <= C_K spread(d)^2 for every policy on K actions; 5 decimals, rounded up."""

# fmt: off
SECOND_ORDER: dict[int, float] = {
    2: 0.21740, 3: 0.34398, 4: 0.37749, 5: 0.40146, 6: 0.42012, 7: 0.43541,
    8: 0.44836, 9: 0.45960, 10: 0.46952, 11: 0.47840, 12: 0.48644, 13: 0.49378,
    14: 0.50054, 15: 0.50680, 16: 0.51263, 20: 0.53262, 25: 0.55239, 32: 0.57408,
    50: 0.61291, 64: 0.63912, 100: 0.68821, 200: 0.76551, 500: 0.86950, 1000: 0.94935,
    2000: 1.03004, 5000: 1.13779, 10_000: 1.21999, 20_000: 1.30267, 50_000: 1.41260, 100_000: 1.49616,
    151_936: 1.54673, 200_000: 1.58001, 500_000: 1.69125, 1_000_000: 1.77564,
}
# fmt: on
r"""K -> D_K with |d^3 H(z + t d)/dt^3| <= D_K spread(d)^3 for every policy on K actions; 5 decimals, rounded up."""

FIRST_ORDER_SLOPE = 0.0963
"""Bound on dC_K / d ln(K - 1): the mean deviation E|y^2 - E y^2| / 2 of a centred change is at most 1/(6 sqrt 3)."""
SECOND_ORDER_SLOPE = 1 / 8
"""Bound on dD_K / d ln(K - 1): the same for y^3 - 3 E[y^2] y."""
CONVEX_FROM = 16
"""Every K below has its own entry; from here on the proved functions are convex in ln(K - 1)."""
_GROWN = 1 + 2**-40
"""Covers the rounding of the few operations below, each under 2^-51, and the bracket of `covariance_constant`."""


def check_actions(actions: int) -> int:
    """`actions` as an int. Raises: ValueError unless it is a whole number of at least 2."""
    try:
        count = operator.index(actions)
    except TypeError:
        count = 0
    if count < 2:
        raise ValueError(f"actions must be a whole number of at least 2, got {actions!r}: one action has no entropy")
    return count


def read(table: dict[int, float], slope: float, actions: int) -> float:
    """The proved constant at `actions`: an entry, the chord between two entries, or the slope beyond the last.

    The function bounded by the entries from `CONVEX_FROM` on is convex in ln(K - 1), so it lies below its chords.
    """
    if actions in table:
        return table[actions]
    nodes = sorted(table)
    x = math.log(actions - 1)
    if actions > nodes[-1]:
        return (table[nodes[-1]] + slope * (x - math.log(nodes[-1] - 1))) * _GROWN
    i = bisect.bisect(nodes, actions)
    left, right = nodes[i - 1], nodes[i]
    share = (x - math.log(left - 1)) / (math.log(right - 1) - math.log(left - 1))
    return (table[left] + share * (table[right] - table[left])) * _GROWN


@lru_cache(maxsize=1024, typed=True)
def covariance_constant(actions: int) -> float:
    r"""N_K with |Cov_pi(log pi, f)| <= N_K (max f - min f), and so E|log pi + H| <= 2 N_K, on K actions.

        N_K = max_q q (1 - q) ln((K - 1) q / (1 - q))

    With t the logarithm this is t / (4 cosh^2((t - ln(K - 1))/2)), whose logarithm is concave in t: the slope of
    that at a point left of the top bounds how far the top is above the point. Attained by pi = (q, the rest even).

    Raises: ValueError if `actions` is not a whole number of at least 2.
    """
    shift = math.log(check_actions(actions) - 1)

    def slope(t: float) -> float:
        return 1 / t - math.tanh((t - shift) / 2)

    low, high = 1.0, shift + 2.0  # slope(1) >= 0 as tanh <= 1, slope(shift + 2) < 1/2 - tanh 1 < 0
    while high - low > 2**-26 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    rise = slope(low) * (high - low)
    return low / (4 * math.cosh((low - shift) / 2) ** 2) * math.exp(rise) * _GROWN
