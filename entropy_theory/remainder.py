"""How wrong the first- and second-order predictions can be: proved remainder bounds and rounding bounds.

Proofs are in docs/theory.md. Every verdict of `entropy-theory check` is a comparison with these functions; there
is no other tolerance.
"""

import math

import torch
from torch import Tensor

from entropy_theory.softmax import finite_log_probs


def spread(change: Tensor, probability: Tensor) -> Tensor:
    """max - min of the logit change over the actions of positive probability, [...], nats."""
    support = probability > 0
    high = change.masked_fill(~support, -torch.inf).amax(-1)
    return high - change.masked_fill(~support, torch.inf).amin(-1)


def remainder_constant(actions: int) -> float:
    r"""C_K = 1/4 + 2 ln K with |d^T Hess(H) d| <= C_K spread(d)^2 for every policy on K actions.

    Var(d) <= spread^2/4 and |E[c (d - E d)^2]| <= spread^2 E|c| <= 2 H spread^2. Proved but loose: the worst
    case found numerically is about 15 % of it at K = 2.
    """
    return 0.25 + 2 * math.log(actions)


def remainder_bound(spread: Tensor, actions: int) -> Tensor:
    r"""|H(z + d) - H(z) + Cov_pi(log pi, d)| <= 1/2 C_K spread(d)^2, nats; holds for every d, however large."""
    return remainder_constant(actions) / 2 * spread.square()


def second_order_remainder_constant(actions: int) -> float:
    r"""1/(3 sqrt 3) + 11/4 ln K bounds |d^3 H(z + t d)/dt^3| / spread(d)^3 for every policy on K actions."""
    return 1 / (3 * math.sqrt(3)) + 2.75 * math.log(actions)


def second_order_remainder_bound(spread: Tensor, actions: int) -> Tensor:
    r"""Bound on |H(z + d) - H(z) - second-order prediction|: 1/6 of the third-derivative constant * spread^3."""
    return second_order_remainder_constant(actions) / 6 * spread.pow(3)


# Rounding bounds: first-order running error analysis, u = unit roundoff; exp and log are taken to be accurate to
# 2u relative and sums to (n-1)u sum|x_i| (true of any summation order). 1.01 covers terms in u^2.
_SECOND_ORDER = 1.01


def _unit(logits: Tensor) -> float:
    return torch.finfo(logits.dtype).eps / 2


def _sizes(logits: Tensor) -> tuple[Tensor, int, float, float]:
    """Largest finite |z| per row, number of actions, ln K, and u."""
    largest = logits.masked_fill(torch.isinf(logits), 0.0).abs().amax(-1)
    actions = logits.shape[-1]
    return largest, actions, math.log(actions), _unit(logits)


def log_prob_rounding(logits: Tensor) -> Tensor:
    """Bound on the absolute rounding error of every log-probability of positive probability, [...]."""
    largest, actions, log_actions, u = _sizes(logits)
    return _SECOND_ORDER * u * (8 * largest + actions + 3 * log_actions + 2)


def entropy_rounding(logits: Tensor) -> Tensor:
    """Bound on |computed - exact| of `softmax.entropy(logits)`, [...], nats."""
    largest, actions, log_actions, u = _sizes(logits)
    error = log_prob_rounding(logits)
    underflow = actions * torch.finfo(logits.dtype).tiny * (2 * largest + 1)
    return _SECOND_ORDER * ((1 + log_actions) * error + log_actions * (actions + 3) * u + underflow)


def first_order_rounding(logits: Tensor, change: Tensor) -> Tensor:
    """Bound on |computed - exact| of `theorems.entropy_change_first_order(logits, change)`, [...], nats."""
    _, actions, log_actions, u = _sizes(logits)
    weight = log_prob_rounding(logits) + 2 * u  # relative error of a probability
    size, width = _change_sizes(logits, change)
    change_error = _mean_rounding(size, weight, actions, u)
    logp_error = 2 * weight + log_actions * (2 * weight + (2 * actions + 4) * u)
    product = 2 * log_actions * width * (2 * weight + (2 * actions + 6) * u)
    return _SECOND_ORDER * (product + 2 * log_actions * change_error + width * logp_error)


def second_order_rounding(logits: Tensor, change: Tensor) -> Tensor:
    """Bound on |computed - exact| of `theorems.entropy_change_second_order(logits, change)`, [...], nats."""
    _, actions, log_actions, u = _sizes(logits)
    weight = log_prob_rounding(logits) + 2 * u
    size, width = _change_sizes(logits, change)
    change_error = _mean_rounding(size, weight, actions, u)
    curvature = 1 + 2 * log_actions  # E|1 + c|
    quadratic = curvature * width.square() * (weight + (actions + 6) * u)
    quadratic = quadratic + 2 * curvature * width * change_error
    quadratic = quadratic + width.square() * (weight + entropy_rounding(logits))
    return first_order_rounding(logits, change) + _SECOND_ORDER * quadratic / 2


def _change_sizes(logits: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    _, probability = finite_log_probs(logits)
    size = torch.where(probability > 0, change, 0.0).abs().amax(-1)
    return size, spread(change, probability)


def _mean_rounding(size: Tensor, weight: Tensor, actions: int, u: float) -> Tensor:
    """Error of change - E_pi change, per entry."""
    return size * (2 * weight + (2 * actions + 4) * u)
