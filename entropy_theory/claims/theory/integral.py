"""The entropy change of a step of any size as an integral, evaluated by Gauss quadrature with a proved error bound."""

import functools
from decimal import Decimal
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory import remainder, theorems
from entropy_theory.claims.claim import ANYWHERE, Claim, Verdict
from entropy_theory.claims.statement import Comparison, States
from entropy_theory.claims.step import measure
from entropy_theory.claims.theory.fifty import fifty_digits
from entropy_theory.claims.theory.over import everywhere
from entropy_theory.enclosure import Enclosed, centred_log_prob, covariance, enclosed, policy

NODES = 48
_U = 2.0**-53


@functools.cache
@fifty_digits
def gauss() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Nodes and weights of the Gauss-Legendre rule on [0, 1], correctly rounded from fifty digits."""
    nodes, weights = [], []
    for k in range(1, NODES + 1):
        # Tricomi's approximation, exact enough for Newton's method to converge to this zero and no other
        x = Decimal(float(torch.cos(torch.tensor(torch.pi * (k - 0.25) / (NODES + 0.5), dtype=torch.float64))))
        for _ in range(8):
            value, slope = _legendre(x)
            x -= value / slope
        nodes.append(float((1 - x) / 2))
        weights.append(float(1 / ((1 - x * x) * _legendre(x)[1] ** 2)))
    return tuple(nodes), tuple(weights)


def _legendre(x: Decimal) -> tuple[Decimal, Decimal]:
    """The Legendre polynomial of degree NODES and its derivative."""
    before, value = Decimal(1), x
    for n in range(1, NODES):
        before, value = value, ((2 * n + 1) * x * value - n * before) / (n + 1)
    return value, NODES * (x * value - before) / (x * x - 1)


class Line(NamedTuple):
    """The policies softmax(z + t d) at the nodes t.

    t, weight: [nodes]; logp, pi: [n, nodes, actions]; start: log pi at t = 0, [n, 1, actions]
    """

    t: Enclosed
    weight: Enclosed
    logp: Enclosed
    pi: Enclosed
    start: Enclosed


def _line(states: States) -> Line:
    t, weight = (torch.tensor(x, dtype=torch.float64) for x in gauss())
    z, d = states.logits.unsqueeze(1), states.change.unsqueeze(1)
    logits = z + t.unsqueeze(-1) * d
    finite = torch.isfinite(z)
    # t is off by u t, and both operations round
    error = 2 * _U * (2 * d.abs() + torch.where(finite, logits, 0.0).abs()).amax(-1)
    logp, pi = policy(logits, error)
    start, _ = policy(z)
    return Line(Enclosed(t, _U * t), Enclosed(weight, _U * weight), logp, pi, start)


class Ellipse(NamedTuple):
    """A neighbourhood of [0, 1] in the complex plane where the integrands are analytic (docs/theory.md, section 8.11).

    rho:    sum of its semi-axes in units of half the interval, [n]
    kappa:  largest sum_a |pi_t(a)| there, [n]
    size:   largest |t| and |1 - t|, [n]
    x, d:   half the spread of log pi and of the change, nats, [n]
    """

    rho: Tensor
    kappa: Tensor
    size: Tensor
    x: Tensor
    d: Tensor

    def error(self, largest: Tensor) -> Tensor:
        """Bound on the quadrature error of an integrand that is at most `largest` on the ellipse."""
        return 4 * largest * self.rho.pow(-2 * NODES) / (1 - 1 / self.rho) * (1 + 1e-9)


def _ellipse(states: States) -> Ellipse:
    support = torch.isfinite(states.logits)
    x, d = (remainder.spread(v, support) / 2 * (1 + 1e-9) for v in (states.logits, states.change))
    minor = torch.minimum(2 / d, torch.tensor(8.0, dtype=torch.float64))  # phases within +-1: minor / 2 * d <= 1
    rho = minor + (minor.square() + 1).sqrt()
    major = (rho + 1 / rho) / 2
    return Ellipse(rho, 1 / torch.cos(minor * d / 2), (1 + major + minor) / 2, x, d)


def _compare(states: States, integral: Enclosed, quadrature: Tensor, measured: Enclosed) -> Comparison:
    rounding = integral.error + measured.error
    return Comparison((integral.value - measured.value).abs(), quadrature + rounding, rounding)


def _entropy_change(states: States) -> Enclosed:
    """H(z + d) - H(z) for the exact d, [n]."""
    step = measure(states.logits, states.logits + states.change)
    away = torch.where(torch.isfinite(states.logits), (step.change - states.change).abs(), 0.0).amax(-1)
    away = away * (1 + 1e-9) + step.change_error
    # entropy moves by at most E_t|c| |e| <= 2 N_K |e| along the way between the two
    effect = remainder.first_order_effect(away, states.logits.shape[-1])
    return Enclosed(step.entropy_change, step.rounding + effect)


def check_change(states: States) -> Comparison:
    """H(z + d) - H(z) = -int_0^1 Cov_t(log pi_0, d) + t Var_t(d) dt."""
    line, ellipse, d = _line(states), _ellipse(states), states.change.unsqueeze(1)
    integrand = covariance(line.start, d, line.pi) + covariance(d, d, line.pi) * line.t
    kappa = ellipse.kappa + ellipse.kappa.square()
    largest = kappa * (ellipse.x * ellipse.d + ellipse.size * ellipse.d.square())
    integral = -(integrand * line.weight).sum()
    return _compare(states, integral, ellipse.error(largest), _entropy_change(states))


def check_remainder(states: States) -> Comparison:
    """The error of Lemma 1 = int_0^1 (1 - t) q(t) dt, q(t) = -E_t[(1 + log pi_t + H_t)(d - E_t d)^2]."""
    line, ellipse, d = _line(states), _ellipse(states), states.change.unsqueeze(1)
    c = centred_log_prob(line.logp, line.pi)
    deviation = enclosed(d) - (line.pi * d).sum(keepdim=True)
    q = -((c + 1.0) * line.pi * deviation.square()).sum()
    k, squared = ellipse.kappa, ellipse.d.square()
    cumulant = (ellipse.x + ellipse.size * ellipse.d) * squared * (k + 3 * k.square() + 2 * k.pow(3))
    largest = ellipse.size * (cumulant + (k + k.square()) * squared)
    integral = (q * (1.0 - line.t) * line.weight).sum()
    first = theorems.entropy_change_first_order(states.logits, states.change)
    predicted = Enclosed(first, remainder.first_order_rounding(states.logits, states.change))
    return _compare(states, integral, ellipse.error(largest), _entropy_change(states) - predicted)


DERIVED = "derived here (docs/theory.md, section 2.2)"
BOUND = "the quadrature and rounding bounds"
INTEGRAL = (
    Claim(
        id="integral_form",
        statement="For a step of any size: H(z + d) - H(z) = -int_0^1 [Cov_t(log pi_0, d) + t Var_t(d)] dt under "
        "pi_t = softmax(z + t d).",
        source=DERIVED,
        recorded=Verdict.HOLDS,
        judge=everywhere(check_change, actions=101, share=0.5, what=BOUND, numbers=NODES),
        places=ANYWHERE,
    ),
    Claim(
        id="integral_remainder",
        statement="Lemma 1 errs by exactly int_0^1 (1 - t) q(t) dt, q(t) = -E_t[(1 + log pi_t + H_t)(d - E_t d)^2].",
        source=DERIVED,
        recorded=Verdict.HOLDS,
        judge=everywhere(check_remainder, actions=101, share=0.5, what=BOUND, numbers=NODES),
        places=ANYWHERE,
    ),
)
