"""Advantages from the rewards of the responses to a prompt (pulls of one bandit), one per row or per token."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from entropy_theory.covariances import TOKENS
from entropy_theory.reduce import group_deviation, group_mean, group_size, token_count, token_mean


def grpo(reward: Tensor, group: Tensor, eps: float = 1e-6) -> Tensor:
    r"""Group-relative advantage (r - mean) / (std + eps), std with K - 1 in the denominator.

    Shao et al. 2024 (arXiv 2402.03300), as implemented in verl. A group of one row, or of equal rewards, gets 0.
    `eps` (reward units) only bounds the quotient when the rewards of a group are equal; for 0/1 rewards it
    biases the advantage by less than 4e-6 of itself.

    Args:
      reward: [..., rows]; group: [..., rows] ids in [0, rows).
    Returns: [..., rows], dimensionless.
    """
    deviation = group_deviation(reward, group)
    size = group_size(group)
    variance = group_mean(deviation.square(), group) * size / (size - 1).clamp(min=1)
    return deviation / (variance.sqrt() + eps)


def rloo(reward: Tensor, group: Tensor) -> Tensor:
    r"""Leave-one-out advantage r_i - mean_{j != i} r_j = K/(K-1) (r_i - mean).

    Ahmadian et al. 2024 (arXiv 2402.14740). Unbiased for the policy gradient; a group of one row gets 0.

    Args and return: as `grpo`, in reward units.
    """
    size = group_size(group)
    return group_deviation(reward, group) * size / (size - 1).clamp(min=1)


def dr_grpo(reward: Tensor, group: Tensor) -> Tensor:
    r"""Group-relative advantage r - mean, not divided by the group's deviation.

    Liu et al. 2025 (Dr.GRPO, arXiv 2503.20783). (K - 1)/K of the leave-one-out advantage.

    Args and return: as `grpo`, in reward units.
    """
    return group_deviation(reward, group)


def reinforce(reward: Tensor, group: Tensor) -> Tensor:
    """The reward itself. Williams 1992. Args and return: as `grpo`, in reward units."""
    return reward


def reinforce_baseline(reward: Tensor, group: Tensor) -> Tensor:
    """Reward minus the mean reward of all rows. Williams 1992. Args and return: as `grpo`, in reward units."""
    return group_deviation(reward, torch.zeros_like(group))


def whitened(advantage: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    r"""(A - mean) / sqrt(var + eps) over the valid tokens of each replica; var with n - 1, 0 where masked.

    Exactly 0 where all advantages are equal: the smallest is taken off first, as in `reduce.group_deviation`.

    Args:
      advantage, mask: E; eps: reward units squared, bounds the quotient where advantages are nearly equal.
    """
    smallest = torch.where(mask, advantage, torch.inf).amin(TOKENS, keepdim=True)
    above = advantage - smallest
    deviation = torch.where(mask, above - token_mean(above, mask)[..., None, None], 0.0)
    count = token_count(mask)
    variance = token_mean(deviation.square(), mask) * count / (count - 1).clamp(min=1)
    return deviation / (variance + eps).sqrt()[..., None, None]


def _by_row(estimator: Callable[[Tensor, Tensor], Tensor], reward: Tensor, group: Tensor, mask: Tensor) -> Tensor:
    return estimator(reward, group).unsqueeze(-1).expand(mask.shape)


def reinforce_plus_plus(reward: Tensor, group: Tensor, mask: Tensor) -> Tensor:
    r"""The outcome at every token of its response, whitened over all valid tokens of the minibatch.

    Hu 2025 (REINFORCE++, arXiv 2501.03262), without discount and KL term: with discount 1 every token's return is the
    outcome. Long responses weigh more in mean and variance.

    Args:
      reward, group: [..., rows]; mask: E.
    Returns: E, dimensionless.
    """
    return whitened(reward.unsqueeze(-1).expand(mask.shape), mask)


def reinforce_plus_plus_baseline(reward: Tensor, group: Tensor, mask: Tensor) -> Tensor:
    """The outcome less its group's mean, whitened over all valid tokens; see `reinforce_plus_plus`."""
    return whitened(group_deviation(reward, group).unsqueeze(-1).expand(mask.shape), mask)


ADVANTAGES = {
    "grpo": partial(_by_row, grpo),
    "rloo": partial(_by_row, rloo),
    "dr_grpo": partial(_by_row, dr_grpo),
    "reinforce": partial(_by_row, reinforce),
    "reinforce_baseline": partial(_by_row, reinforce_baseline),
    "reinforce++": reinforce_plus_plus,
    "reinforce++_baseline": reinforce_plus_plus_baseline,
}
"""By name: (reward [..., rows], group [..., rows], mask E) -> advantage of each token, E."""


def centred(reward: Tensor, probability: Tensor) -> Tensor:
    """Exact one-state advantage r_a - E_pi r over all actions, [..., actions]."""
    return reward - (probability * reward).sum(-1, keepdim=True)
