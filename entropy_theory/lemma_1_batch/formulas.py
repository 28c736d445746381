"""What follows from the sums over the actions: entropies, predictions and the coefficients of the bounds.

`statistics` is the one place of the formulas; both engines use it, on arrays or compiled. Derivations are in
docs/theory.md, section 4.8.
"""

import math
from typing import NamedTuple

import torch

from entropy_theory import remainder

FAR = 300.0
"""Spread above which the logits after the change are shifted by their own largest before exp."""
SMALLEST_EXPONENT = -708.0
"""exp of anything smaller is taken to be 0; exp(-708) is just above the smallest normal number."""
LOWEST = -1e200
"""A logit this far below the largest stands for -inf: no allowed change brings it back."""
LARGEST_SPREAD = 1e12
"""Largest spread of a change, nats; the bounds' squares of u are covered up to here."""
_SQUARES = 1.02
"""Covers the squares of u and the products of two errors."""
_OUTWARD = 1 + 32 * remainder.unit_roundoff(torch.float64)
"""Covers the rounding of the spread, of the proved constants and of the polynomials themselves."""


class Rounding(NamedTuple):
    """Bounds on |computed - exact|, each (c0, c1, c2) of c0 + c1 R + c2 R^2 with R the spread of the change."""

    before: tuple[float, float, float]
    after: tuple[float, float, float]
    first: tuple[float, float, float]
    second: tuple[float, float, float]


def rounding(actions: int, additions: int) -> Rounding:
    """Rounding of the entropy before and after and of both predictions (docs/theory.md, section 4.8).

    Args:
      actions: K, at least 2.
      additions: n, the largest number of additions that one term of a sum goes through; K - 1 in any order.
    """
    unit = _SQUARES * remainder.unit_roundoff(torch.float64)
    log, n = math.log(actions), additions
    square = math.log(actions + 2) ** 2  # bounds E t^2
    plain = unit * (2 * n + 48 + 2 * log)  # of a mean of numbers up to 1
    with_t = unit * ((2 * n + 48 + log) * log + square)  # of a mean of t times numbers up to 1
    lost = 1e4 * actions * torch.finfo(torch.float64).tiny  # to underflow; elsewhere far below the other terms
    return Rounding(
        before=(plain + with_t, 0.0, 0.0),
        after=(
            unit * (n + 8 + (2 * n + 29) * log + 3 * log**2 + 3 * square),
            unit * (2 * n + 36 + 20 * log),
            unit * 15,
        ),
        first=(lost, 3.2 * with_t, 0.0),
        second=(lost, 3.2 * with_t, 1.7 * plain + 6.5 * with_t),
    )


class Coefficients(NamedTuple):
    """Bounds on |H after - H before - prediction|: a0 + a1 R + a2 R^2 first, a0 + a1 R + b2 R^2 + b3 R^3 second."""

    a0: float
    a1: float
    a2: float
    b2: float
    b3: float


def coefficients(actions: int, additions: int) -> Coefficients:
    """Remainder and rounding together, as functions of the spread; arguments as for `rounding`."""
    of = rounding(actions, additions)
    one = torch.ones((), dtype=torch.float64)
    found = Coefficients(
        a0=of.before[0] + of.after[0] + of.first[0],
        a1=of.after[1] + of.first[1],
        a2=of.after[2] + float(remainder.remainder_bound(one, actions)),  # C_K / 2 at spread 1
        b2=of.after[2] + of.second[2],
        b3=float(remainder.second_order_remainder_bound(one, actions)),  # D_K / 6
    )
    return Coefficients(*(_OUTWARD * x for x in found))


def statistics(total, log_total, t, d, td, dd, tdd, total_after, log_total_after, t_after):
    """(H, H after, first order, second order) from sums over the actions; numbers or arrays.

    Args:
      total: S = sum p with p = e^t, t = z - max z; log_total: ln S.
      t, d, td, dd, tdd: sums of p t, p d, p t d, p d^2, p t d^2, d measured from the middle of its range.
      total_after, log_total_after, t_after: sum p', its logarithm, sum p' t' after the change, p' = e^t'.
    """
    scale = 1.0 / total
    mean_t, mean_d, mean_td = t * scale, d * scale, td * scale
    covariance = mean_td - mean_t * mean_d
    variance = dd * scale - mean_d * mean_d
    mixed = tdd * scale - 2.0 * mean_d * mean_td + mean_d * mean_d * mean_t
    quadratic = (1.0 - mean_t) * variance + mixed
    after = log_total_after - t_after / total_after
    return log_total - mean_t, after, -covariance, -covariance - 0.5 * quadratic
