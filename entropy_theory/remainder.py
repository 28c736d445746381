"""How wrong the first- and second-order predictions can be: proved remainder bounds and rounding bounds.

Proofs are in docs/theory.md, sections 2 to 4, and docs/remainder.md. Every verdict of `entropy-theory check` is a
comparison with these functions; there is no other tolerance.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from entropy_theory import remainder_tables
from entropy_theory.remainder_tables import covariance_constant
from entropy_theory.softmax import finite_log_probs


def spread(change: Tensor, probability: Tensor) -> Tensor:
    """max - min of the logit change over the actions of positive probability, [...], nats.

    `probability` may also be the bool mask of finite logits: an action whose probability underflows to 0 still
    belongs to the policy, and a change of its logit counts.
    """
    support = probability > 0
    high = change.masked_fill(~support, -torch.inf).amax(-1)
    return high - change.masked_fill(~support, torch.inf).amin(-1)


# --- remainders of the Taylor expansions (theory.md section 2) ----------------------------------------------------


@lru_cache(maxsize=1024, typed=True)
def remainder_constant(actions: int) -> float:
    r"""C_K with |d^T Hess(H) d| <= C_K spread(d)^2 for every policy on K actions, proved for every K.

    At most 2.2 % above what a change of one action attains, and 0.1 % from 7 to a million actions. The proof, by branch
    and bound, is in docs/remainder.md; `certify_constants` carries it out.

    Raises: ValueError if `actions` is not a whole number of at least 2.
    """
    actions = remainder_tables.check_actions(actions)
    return remainder_tables.read(remainder_tables.FIRST_ORDER, remainder_tables.FIRST_ORDER_SLOPE, actions)


def remainder_bound(spread: Tensor, actions: int) -> Tensor:
    r"""|H(z + d) - H(z) + Cov_pi(log pi, d)| <= 1/2 C_K spread(d)^2, nats; holds for every d, however large."""
    return remainder_constant(actions) / 2 * spread.square()


@lru_cache(maxsize=1024, typed=True)
def second_order_remainder_constant(actions: int) -> float:
    r"""D_K with |d^3 H(z + t d)/dt^3| <= D_K spread(d)^3 for every policy on K actions, proved for every K.

    Raises: ValueError if `actions` is not a whole number of at least 2.
    """
    actions = remainder_tables.check_actions(actions)
    return remainder_tables.read(remainder_tables.SECOND_ORDER, remainder_tables.SECOND_ORDER_SLOPE, actions)


def second_order_remainder_bound(spread: Tensor, actions: int) -> Tensor:
    r"""Bound on |H(z + d) - H(z) - second-order prediction|: 1/6 of the third-derivative constant * spread^3."""
    return second_order_remainder_constant(actions) / 6 * spread.pow(3)


# --- effect of a change other than the one predicted from (theory.md section 3) -----------------------------------


def first_order_effect(error: Tensor, actions: int) -> Tensor:
    r"""Bound on |Cov_pi(log pi, e)| for every e with |e_a| <= error: N_K 2 error, nats."""
    return 2 * covariance_constant(actions) * error


def second_order_effect(error: Tensor, spread: Tensor, actions: int) -> Tensor:
    r"""Bound on how far the second-order prediction moves when a change of this spread moves by |e_a| <= error.

    2 N_K error + 1/2 (1 + 2 N_K) (2 spread * 2 error + (2 error)^2)
    """
    quadratic = (1 + 2 * covariance_constant(actions)) * (2 * spread * error + 2 * error.square())
    return first_order_effect(error, actions) + quadratic


# --- rounding (theory.md section 4) -------------------------------------------------------------------------------
# One floating-point operation multiplies the exact result by exp(theta), |theta| <= u = eps/2 (1 + eps); a sum of K
# terms multiplies each by exp(theta), |theta| <= (K - 1) u, in whatever order it is taken. Exponents add, so the
# bounds below hold to all orders in u. Results that underflow add at most the smallest normal number each.

_EXP = 8
"""exp is taken to be accurate to 8 u (torch's float32 softmax measures 7 u, exp itself 1 to 2 u) and log to 2 u."""
_SQUARES = 1.01
"""Covers the squares of u in log_prob_rounding while 2 u max|z| <= 0.01 (|z| <= 8e4 in float32)."""


def unit_roundoff(dtype: torch.dtype) -> float:
    """Bound on |theta| of one operation: eps/2 (1 + eps)."""
    eps = torch.finfo(dtype).eps
    return eps / 2 * (1 + eps)


def log_prob_rounding(logits: Tensor) -> Tensor:
    """Bound on the absolute rounding error of every finite log-probability, [...], nats.

    Covers z - (m + log S) and (z - m) - log S, m = max z, S = sum exp(z - m).
    """
    largest = _largest(logits)
    actions = logits.shape[-1]
    count = 4 * largest + 4 * math.log(actions) + (actions - 1 + _EXP)
    return _SQUARES * unit_roundoff(logits.dtype) * count


def probability_rounding(logits: Tensor) -> Tensor:
    """Bound on |theta| where a computed probability is pi exp(theta), [...]; for exp(log_softmax) and softmax."""
    return log_prob_rounding(logits) + _EXP * unit_roundoff(logits.dtype)


def entropy_rounding(logits: Tensor) -> Tensor:
    """Bound on |computed - exact| of `softmax.entropy(logits)`, [...], nats."""
    actions = logits.shape[-1]
    error = log_prob_rounding(logits)
    relative = torch.expm1(probability_rounding(logits) + actions * unit_roundoff(logits.dtype))
    return relative * math.log(actions) + (1 + relative) * error + _underflow(logits, torch.zeros_like(error))


def first_order_rounding(logits: Tensor, change: Tensor) -> Tensor:
    """Bound on |computed - exact| of `theorems.entropy_change_first_order(logits, change)`, [...], nats."""
    actions, u = logits.shape[-1], unit_roundoff(logits.dtype)
    log_actions, of_c = math.log(actions), 2 * covariance_constant(actions)  # H and E|c| are at most these
    size, width = _change_sizes(logits, change)
    of_change = _deviation_rounding(logits, size, width)
    error, mean = log_prob_rounding(logits), _mean_rounding(logits)
    of_log_prob = 2 * error + mean * (log_actions + error)
    of_log_prob = of_log_prob + 2 * u * (of_c + of_log_prob)  # mean over the policy
    relative = torch.expm1(2 * probability_rounding(logits) + (2 * actions + 1) * u)
    parts = of_c * of_change + (width + of_change) * of_log_prob
    return relative * of_c * width + (1 + relative) * parts + _underflow(logits, size)


def second_order_rounding(logits: Tensor, change: Tensor) -> Tensor:
    """Bound on |computed - exact| of `theorems.entropy_change_second_order(logits, change)`, [...], nats."""
    actions, u = logits.shape[-1], unit_roundoff(logits.dtype)
    size, width = _change_sizes(logits, change)
    of_change = _deviation_rounding(logits, size, width)
    of_c = 2 * covariance_constant(actions)
    curvature = 1 + of_c  # E|1 + c|
    error = log_prob_rounding(logits)
    of_sum = error + entropy_rounding(logits)
    of_factor = of_sum + 4 * u * (curvature + of_sum + error)  # of 1 + log pi + H, mean over the policy
    relative = torch.expm1(probability_rounding(logits) + (actions + 2) * u)
    parts = curvature * (2 * width * of_change + of_change.square()) + of_factor * (width + of_change).square()
    quadratic = relative * curvature * width.square() + (1 + relative) * parts + _underflow(logits, size)
    first = first_order_rounding(logits, change)
    result = first + of_c * width + (curvature * width.square() + quadratic) / 2
    return first + quadratic / 2 + 2 * u * result


def policy_gradient_step_rounding(logits: Tensor, advantage: Tensor, step_size: float) -> Tensor:
    """Bound on |computed - exact| of every entry of step_size pi (A - E_pi A), [..., actions].

    Holds for `theorems.policy_gradient_step` and for the gradient of sum pi A by autograd times the step size.
    """
    actions, u = logits.shape[-1], unit_roundoff(logits.dtype)
    weight = probability_rounding(logits).unsqueeze(-1)
    _, probability = finite_log_probs(logits)
    support = torch.isfinite(logits)
    advantage = advantage.masked_fill(~support, 0.0)
    size = advantage.abs().amax(-1, keepdim=True)
    of_mean = torch.expm1(weight + actions * u) * size
    centred = (advantage - (probability * advantage).sum(-1, keepdim=True)).abs()
    centred = (1 + 2 * u) * centred + of_mean  # at least the exact
    of_centred = of_mean + 2 * u * (centred + of_mean)
    relative = torch.expm1(weight + 2 * u)
    tiny = torch.finfo(logits.dtype).tiny
    exact = probability * torch.exp(weight) + tiny  # at least the exact probability
    error = abs(step_size) * exact * (relative * centred + (1 + relative) * of_centred)
    return (error + 4 * tiny * (1 + abs(step_size)) * (1 + centred + of_centred)).masked_fill(~support, 0.0)


def _largest(logits: Tensor) -> Tensor:
    """max |z| over the finite logits."""
    return logits.masked_fill(torch.isinf(logits), 0.0).abs().amax(-1)


def _change_sizes(logits: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """max |d| and spread of d over the finite logits."""
    support = torch.isfinite(logits)
    return change.masked_fill(~support, 0.0).abs().amax(-1), spread(change, support)


def _mean_rounding(logits: Tensor) -> Tensor:
    """Relative error of a weighted mean of numbers of one sign."""
    count = 2 * logits.shape[-1] * unit_roundoff(logits.dtype)
    return torch.expm1(2 * probability_rounding(logits) + count)


def _deviation_rounding(logits: Tensor, size: Tensor, width: Tensor) -> Tensor:
    """Error of d - E_pi d, per entry."""
    of_mean = _mean_rounding(logits) * size
    return of_mean + 2 * unit_roundoff(logits.dtype) * (width + of_mean)


def _underflow(logits: Tensor, size: Tensor) -> Tensor:
    """Everything lost to probabilities and products below the smallest normal number."""
    actions, tiny = logits.shape[-1], torch.finfo(logits.dtype).tiny
    return 8 * actions * tiny * (1 + 2 * _largest(logits) + 2 * math.log(actions)) * (1 + 2 * size).square()
