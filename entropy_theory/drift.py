"""How sampling moves entropy: the exact expected drift, to second order, of a step on the mean of n sampled tokens."""

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from entropy_theory.enclosure import Enclosed
from entropy_theory.softmax import finite_log_probs

Numbers = TypeVar("Numbers", Tensor, Enclosed)
"""The formulas below run on tensors, and on tensors with rounding bounds for the check of the theory."""


def sampled_step(logits: Tensor, action: Tensor, weight: Tensor, step_size: float) -> Tensor:
    r"""Logit change of one policy-gradient step on n sampled actions of one state.

        change = step_size / n sum_i w_i (e_{a_i} - pi)

    Args:
      logits: [..., actions]; action: [..., n] int64, all of positive probability.
      weight: [..., n], the factor of each sample's score, usually ratio * advantage, reward units.
      step_size: eta, nats per reward unit.
    Returns: [..., actions].
    """
    _, probability = finite_log_probs(logits)
    total = torch.zeros_like(probability).scatter_add(-1, action, weight)
    return (total - weight.sum(-1, keepdim=True) * probability) * (step_size / action.shape[-1])


class Drift(NamedTuple):
    """Expected entropy change of a sampled step, nats, [...].

    first:    the part linear in the step size; the mean over samples does not depend on their number
    mean:     1/2 eta^2 m^T Hess(H) m, what the expected step costs at second order
    variance: 1/2 eta^2 tr(Hess(H) S) / n, what the sampling noise costs at second order
    """

    first: Numbers
    mean: Numbers
    variance: Numbers

    @property
    def second(self) -> Numbers:
        """Both parts of the second order."""
        return self.mean + self.variance


def expected_drift(logits: Tensor, weight: Tensor, step_size: float, samples: int) -> Drift:
    r"""E[Delta H] to second order when `samples` actions are drawn independently from the policy.

        x = w_a (e_a - pi),  m = E x,  S = Cov x:   -eta E[w (pi c - C)] + eta^2/2 [m^T Hess m + tr(Hess S)/samples]

    Derived here (docs/theory.md, section 8.5). With w = A and E_pi A = 0 the first part is Theorem 1 and m = pi A.

    Args:
      logits: [..., actions]; weight: [..., actions], the factor of an action's score when it is drawn.
      step_size: eta; samples: n >= 1.
    Raises: ValueError if samples is less than 1.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    return drift_of_policy(*finite_log_probs(logits), weight, step_size, samples)


def drift_of_policy(logp: Numbers, probability: Numbers, weight: Tensor, step_size: float, samples: int) -> Drift:
    """`expected_drift` from log pi and pi, each [..., actions]; masked actions hold 0 and 0."""
    h = -(probability * logp).sum(-1, keepdim=True)
    c = logp + h
    weighted = probability * weight
    mean_weight = weighted.sum(-1, keepdim=True)
    drawn = c * probability - (probability * probability * c).sum(-1, keepdim=True)
    first = -(weighted * drawn).sum(-1)
    mean = _quadratic(c, probability, weighted - probability * mean_weight)
    # of one sample's step w_a (e_a - pi): w_a^2 (Hess_aa - 2 (Hess pi)_a + pi^T Hess pi)
    diagonal = -(probability * (c + 1.0)) + probability * probability * (c + c + 1.0)
    crossed = hessian_product(c, probability, probability)
    own = diagonal - crossed * 2.0 + _quadratic(c, probability, probability).unsqueeze(-1)
    one = (weighted * weight * own).sum(-1)
    half = step_size * step_size / 2
    return Drift(first * step_size, mean * half, (one - mean) * (half / samples))


def hessian_product(c: Numbers, probability: Numbers, vector: Numbers) -> Numbers:
    r"""Hess(H) v without forming the Hessian, [..., actions]; c = log pi + H.

    (Hess(H) v)_a = -pi_a (1 + c_a)(v_a - E v) + pi_a E[c v]
    """
    mean = (probability * vector).sum(-1, keepdim=True)
    return probability * (probability * c * vector).sum(-1, keepdim=True) - probability * (c + 1.0) * (vector - mean)


def _quadratic(c: Numbers, probability: Numbers, vector: Numbers) -> Numbers:
    """v^T Hess(H) v = -E[(1 + c)(v - E v)^2], [...]."""
    deviation = vector - (probability * vector).sum(-1, keepdim=True)
    return -(probability * (c + 1.0) * deviation * deviation).sum(-1)
