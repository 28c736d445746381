"""Lemma 1, Proposition 1 and Theorems 1-2 of Cui et al. 2025 (arXiv 2505.22617) as functions.

All act on one state along the last axis; leading axes are states or replicas. c_a = log pi_a + H throughout.
"""

import torch
from torch import Tensor

from entropy_theory.covariances import covariance
from entropy_theory.softmax import finite_log_probs


def entropy_change_first_order(logits: Tensor, change: Tensor) -> Tensor:
    r"""Lemma 1: Delta H ~ -Cov_pi(log pi, change), exact to first order in `change`.

    Cui et al. 2025, Lemma 1. The error is at most `remainder.remainder_bound(spread of change, actions)`.

    Args:
      logits: [..., actions] before the step.
      change: [..., actions], logits after minus before; entries of probability 0 are ignored.
    Returns: [...], nats.
    """
    logp, probability = finite_log_probs(logits)
    return -covariance(logp, change, probability, dim=-1)


def entropy_change_second_order(logits: Tensor, change: Tensor) -> Tensor:
    r"""Lemma 1 with the exact quadratic term.

        Delta H ~ -Cov_pi(log pi, d) - 1/2 E_pi[(1 + c)(d - E_pi d)^2]

    Derived here from the Hessian of the entropy (docs/theory.md). The error is at most
    `remainder.second_order_remainder_bound(spread of change, actions)`.

    Args and return: as `entropy_change_first_order`.
    """
    logp, probability = finite_log_probs(logits)
    h = -(probability * logp).sum(-1, keepdim=True)
    d = torch.where(probability > 0, change, 0.0)
    deviation = d - (probability * d).sum(-1, keepdim=True)
    quadratic = -(probability * (1 + logp + h) * deviation.square()).sum(-1)
    return entropy_change_first_order(logits, change) + quadratic / 2


def policy_gradient_step(logits: Tensor, advantage: Tensor, step_size: float) -> Tensor:
    r"""Logit change of one exact policy-gradient ascent step on J = E_pi[A] at one state.

        change_a = step_size * pi_a (A_a - E_pi A)

    Cui et al. 2025, Proposition 1 states step_size * pi_a A_a, which needs E_pi A = 0; this form does not.

    Args:
      logits: [..., actions]; advantage: [..., actions], reward units.
      step_size: eta, nats per reward unit.
    Returns: [..., actions].
    """
    _, probability = finite_log_probs(logits)
    mean = (probability * advantage).sum(-1, keepdim=True)
    return step_size * probability * (advantage - mean)


def natural_gradient_step(advantage: Tensor, step_size: float) -> Tensor:
    r"""Logit change step_size * A of one natural policy-gradient step (Kakade 2001), up to a constant per state.

    Cui et al. 2025, Theorem 2. F^+ grad J = A - mean_a A exactly; the constant does not change the policy.
    """
    return step_size * advantage


def theorem_1(logits: Tensor, advantage: Tensor, step_size: float) -> Tensor:
    r"""Theorem 1: Delta H ~ -step_size Cov_pi(log pi, pi A) after a policy-gradient step, nats.

    Cui et al. 2025, Theorem 1, with the advantage centred as Proposition 1 requires.
    """
    return entropy_change_first_order(logits, policy_gradient_step(logits, advantage, step_size))


def theorem_2(logits: Tensor, advantage: Tensor, step_size: float) -> Tensor:
    r"""Theorem 2: Delta H ~ -step_size Cov_pi(log pi, A) after a natural policy-gradient step, nats.

    Cui et al. 2025, Theorem 2.
    """
    return entropy_change_first_order(logits, natural_gradient_step(advantage, step_size))


def sampled_theorem_1(logp: Tensor, entropy: Tensor, collision: Tensor, advantage: Tensor) -> Tensor:
    r"""Entropy effect of one sampled token under a policy-gradient step, per unit of step size.

        -A (pi_a c_a - C),    c_a = log pi_a + H,    C = Cov_pi(log pi, pi)

    Its mean over a ~ pi is Theorem 1's prediction. `collision` is C at the state (`softmax.collision`).
    A tabular policy is assumed: tokens of other states do not move this state's logits.
    """
    return -advantage * (logp.exp() * (logp + entropy) - collision)


def sampled_theorem_2(logp: Tensor, entropy: Tensor, advantage: Tensor) -> Tensor:
    r"""Entropy effect -A c_a of one sampled token under a natural-gradient step, per unit of step size.

    Its mean over a ~ pi is Theorem 2's prediction -Cov_pi(log pi, A).
    """
    return -advantage * (logp + entropy)


def fisher_matrix(logits: Tensor) -> Tensor:
    """Fisher information F = diag(pi) - pi pi^T of the softmax logits, [..., actions, actions]."""
    _, probability = finite_log_probs(logits)
    return torch.diag_embed(probability) - probability.unsqueeze(-1) * probability.unsqueeze(-2)


def fisher_pseudo_inverse_product(logits: Tensor, vector: Tensor) -> Tensor:
    r"""F^+ vector without forming F, for policies of full support.

        F^+ = P diag(1/pi) P,    P = I - 1 1^T / actions

    (F F^+ = P is symmetric and F^+ F F^+ = F^+, so this is the Moore-Penrose inverse; docs/theory.md.)

    Args:
      logits: [..., actions], all probabilities > 0; vector: [..., actions].
    Returns: [..., actions].
    """
    _, probability = finite_log_probs(logits)
    scaled = (vector - vector.mean(-1, keepdim=True)) / probability
    return scaled - scaled.mean(-1, keepdim=True)
