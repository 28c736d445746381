"""Small policies with whole-number weights in fifty digits, so that a search compares numbers, not roundings.

Every Decimal operation here, ln and exp included, is off by at most 1e-50 of its result (the specification of
Python's decimal). A predicate takes fewer than 1e4 of them on numbers below 1e6, none of which is divided by less
than 1e-6, so its result is off by less than 1e4 * 1e6 * 1e6 * 1e-50 = 1e-34.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import ParamSpec, TypeVar

import torch

from entropy_theory import remainder
from entropy_theory.claims.small import Problem

P, R = ParamSpec("P"), TypeVar("R")
ROUNDING = Decimal("1e-34")
"""What is larger is no rounding."""
_UP = Decimal("1.000000001")
"""Makes up for the rounding of a bound that was computed in float64."""


def fifty_digits(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function with decimal arithmetic of 50 digits."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with localcontext(prec=50):
            return function(*args, **kwargs)

    return run


@fifty_digits
def exceeds(x: Decimal, y: Decimal, bound: Decimal | int = 0) -> bool:
    """Whether x - y is larger than the bound by more than rounding.

    For numbers that left `fifty_digits`: outside it, x + ROUNDING is rounded to 28 digits.
    """
    return x - y - bound > ROUNDING


@fifty_digits
def differ(x: Decimal, y: Decimal, bound: Decimal | int = 0) -> bool:
    """Whether |x - y| is larger than the bound by more than rounding."""
    return exceeds(abs(x - y), Decimal(0), bound)


@functools.cache
@fifty_digits
def ln(number: int) -> Decimal:
    """Natural logarithm of a positive whole number."""
    return Decimal(number).ln()


def decimal(x: Fraction | int) -> Decimal:
    """A fraction to the digits of the context."""
    return Decimal(x.numerator) / Decimal(x.denominator)


class Policy:
    """pi = weights / sum(weights); make and use it inside `fifty_digits`.

    pi, logp, c: lists over the actions; h: entropy, nats
    """

    def __init__(self, weights: Sequence[Decimal | int]):
        total = sum(weights)
        log = ln if all(isinstance(w, int) for w in weights) else Decimal.ln
        self.pi = [Decimal(w) / total for w in weights]
        self.logp = [log(w) - log(total) for w in weights]
        self.h = -self.mean(self.logp)
        self.c = [lp + self.h for lp in self.logp]

    def mean(self, x: Iterable[Decimal]) -> Decimal:
        """E_pi x."""
        return sum((p * v for p, v in zip(self.pi, x, strict=True)), Decimal(0))

    def covariance(self, x: Sequence[Decimal]) -> Decimal:
        """Cov_pi(log pi, x) = E_pi[c x]."""
        return self.mean(c * v for c, v in zip(self.c, x, strict=True))

    def centred(self, x: Sequence[Decimal]) -> list[Decimal]:
        """x - E_pi x."""
        m = self.mean(x)
        return [v - m for v in x]

    def moved(self, change: Sequence[Decimal]) -> "Policy":
        """The policy after a change of the logits."""
        return Policy([p * d.exp() for p, d in zip(self.pi, change, strict=True)])

    @property
    def collision(self) -> Decimal:
        """Cov_pi(log pi, pi)."""
        return self.covariance(self.pi)


def rewards(problem: Problem) -> list[Decimal]:
    """The rewards of a problem, exactly."""
    return [Decimal(t) / 10 for t in problem.tenths]


def remainder_bound(change: Sequence[Decimal]) -> Decimal:
    """`remainder.remainder_bound` for the spread of a change, rounded upwards."""
    spread = float((max(change) - min(change)) * _UP)
    return Decimal(float(remainder.remainder_bound(torch.tensor(spread, dtype=torch.float64), len(change)))) * _UP
