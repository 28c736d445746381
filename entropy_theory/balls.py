"""One softmax policy in ball arithmetic: every number is an interval that provably contains the exact value.

Inputs are floats, taken as the exact binary numbers they are; -inf masks an action. Balls come from `python-flint`
(Arb), which encloses every rounding error, so a comparison of two balls that do not overlap is a proof. Nothing
here is shared with the tensor code: what the two agree on they found separately.
"""

import importlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import ModuleType
from typing import Any

Ball = Any
"""flint.arb, which has no type annotations."""


def flint() -> ModuleType:
    """The `flint` module. Raises: ModuleNotFoundError with the line that installs it."""
    try:
        return importlib.import_module("flint")
    except ModuleNotFoundError as absent:
        raise ModuleNotFoundError(
            "ball arithmetic needs python-flint, which is not installed: pip install 'entropy-theory[certified]'"
        ) from absent


@contextmanager
def precision(bits: int) -> Iterator[ModuleType]:
    """Work with `bits` bits of mantissa inside the block, and give the `flint` module."""
    module = flint()
    before = module.ctx.prec
    module.ctx.prec = bits
    try:
        yield module
    finally:
        module.ctx.prec = before


def above(ball: Ball) -> float:
    """A float at least as large as every number of the ball; infinite where there is none."""
    top = float(ball.upper())
    return math.inf if math.isnan(top) else math.nextafter(top, math.inf)


def below(ball: Ball) -> float:
    """A float at most as large as every number of the ball; minus infinity where there is none."""
    return -above(-ball)


def largest(balls: Sequence[Ball]) -> Ball:
    """The maximum of several balls."""
    result = balls[0]
    for ball in balls[1:]:
        result = result.max(ball)
    return result


class Policy:
    r"""softmax(logits) on the actions that are not masked, at the precision in force.

        pi_a = exp(l_a),  l_a = z_a - log sum_b exp(z_b),  H = -sum_a pi_a l_a,  c_a = l_a + H

    Lists run over the support. `logits` may be floats or balls; a float -inf masks its action.

    Raises: ValueError if a logit is NaN or +inf, or if every action is masked.
    """

    def __init__(self, logits: Sequence[float | Ball]):
        arb = flint().arb
        floats = [x for x in logits if isinstance(x, float | int)]
        bad = [x for x in floats if math.isnan(x) or x == math.inf]
        if bad:
            raise ValueError(f"logits must be finite or -inf, got {bad[0]}: mask an action with -inf")
        self.support = [a for a, z in enumerate(logits) if not (isinstance(z, float) and z == -math.inf)]
        if not self.support:
            raise ValueError("every logit is -inf: at least one action must be left")
        self.size = len(logits)
        self.logits = [arb(logits[a]) for a in self.support]

    @cached_property
    def log_probs(self) -> list[Ball]:
        """l_a."""
        top = max(self.logits, key=lambda z: float(z.mid()))
        total = sum((z - top).exp() for z in self.logits).log()
        return [z - top - total for z in self.logits]

    @cached_property
    def probabilities(self) -> list[Ball]:
        """pi_a."""
        return [x.exp() for x in self.log_probs]

    @cached_property
    def entropy(self) -> Ball:
        """H, nats."""
        return -self.mean(self.log_probs)

    @cached_property
    def centred_log_probs(self) -> list[Ball]:
        """c_a."""
        return [x + self.entropy for x in self.log_probs]

    def exact(self, values: Sequence[float]) -> list[Ball]:
        """The entries of a full-length vector of floats that belong to the support."""
        if len(values) != self.size:
            raise ValueError(f"the vector has {len(values)} entries and the logits {self.size}: they must agree")
        bad = [values[a] for a in self.support if not math.isfinite(values[a])]
        if bad:
            raise ValueError(f"entries of actions that are not masked must be finite, got {bad[0]}")
        return [flint().arb(values[a]) for a in self.support]

    def mean(self, x: Sequence[Ball]) -> Ball:
        """E[x]."""
        return sum((p * v for p, v in zip(self.probabilities, x, strict=True)), flint().arb(0))

    def centred(self, x: Sequence[Ball]) -> list[Ball]:
        """x - E[x]; exactly 0 where all entries are the same exact number."""
        shifted = [v - x[0] for v in x]
        mean = self.mean(shifted)
        return [v - mean for v in shifted]

    def covariance(self, x: Sequence[Ball]) -> Ball:
        """Cov(log pi, x) = E[c x], computed with x centred, which keeps its digits."""
        return self.mean([c * v for c, v in zip(self.centred_log_probs, self.centred(x), strict=True)])

    def first_order(self, change: Sequence[Ball]) -> Ball:
        """Lemma 1: -Cov(log pi, d)."""
        return -self.covariance(change)

    def second_order(self, change: Sequence[Ball]) -> Ball:
        """-Cov(log pi, d) - 1/2 E[(1 + c)(d - E d)^2]."""
        squares = [(1 + c) * v * v for c, v in zip(self.centred_log_probs, self.centred(change), strict=True)]
        return self.first_order(change) - self.mean(squares) / 2

    def moved(self, change: Sequence[Ball]) -> "Policy":
        """The policy at logits + d, over the same support."""
        return Policy([z + d for z, d in zip(self.logits, change, strict=True)])

    def entropy_change(self, change: Sequence[Ball]) -> Ball:
        """H(z + d) - H(z)."""
        return self.moved(change).entropy - self.entropy

    def spread(self, change: Sequence[Ball]) -> Ball:
        """max d - min d."""
        return largest(change) + largest([-v for v in change])

    def gradient_step(self, reward: Sequence[Ball], step_size: float) -> list[Ball]:
        """step_size pi (r - E r): Proposition 1 with the advantage centred."""
        return [step_size * p * v for p, v in zip(self.probabilities, self.centred(reward), strict=True)]

    def return_gradient(self, reward: Sequence[Ball]) -> list[Ball]:
        """d/dz_a of J = sum_b exp(z_b) r_b / sum_b exp(z_b), by power series in z_a: no formula for it is used."""
        series = flint().arb_series
        top = max(self.logits, key=lambda z: float(z.mid()))
        shares = [(z - top).exp() for z in self.logits]
        total, weighted = sum(shares), sum(w * r for w, r in zip(shares, reward, strict=True))
        gradient = []
        for share, r in zip(shares, reward, strict=True):
            # exp(z_a + t) = exp(z_a) (1 + t + ...), the other terms stay
            numerator, denominator = series([weighted, share * r], prec=2), series([total, share], prec=2)
            gradient.append((numerator / denominator)[1])
        return gradient

    def natural_step(self, gradient: Sequence[Ball], step_size: float) -> list[Ball]:
        """step_size F^+ g with F^+ = P diag(1/pi) P and P = I - 1 1^T / n over the support of n actions."""
        count = len(self.support)
        mean = sum(gradient) / count
        scaled = [(g - mean) / p for g, p in zip(gradient, self.probabilities, strict=True)]
        mean = sum(scaled) / count
        return [step_size * (x - mean) for x in scaled]
