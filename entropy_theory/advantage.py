"""Advantages from the rewards of a group of responses to one prompt (pulls of one bandit)."""

from torch import Tensor

from entropy_theory.reduce import group_deviation, group_mean, group_size


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
    size = group_size(group).to(reward.dtype)
    variance = group_mean(deviation.square(), group) * size / (size - 1).clamp(min=1)
    return deviation / (variance.sqrt() + eps)


def rloo(reward: Tensor, group: Tensor) -> Tensor:
    r"""Leave-one-out advantage r_i - mean_{j != i} r_j = K/(K-1) (r_i - mean).

    Ahmadian et al. 2024 (arXiv 2402.14740). Unbiased for the policy gradient; a group of one row gets 0.

    Args and return: as `grpo`, in reward units.
    """
    size = group_size(group).to(reward.dtype)
    return group_deviation(reward, group) * size / (size - 1).clamp(min=1)


ADVANTAGES = {"grpo": grpo, "rloo": rloo}


def centred(reward: Tensor, probability: Tensor) -> Tensor:
    """Exact one-state advantage r_a - E_pi r over all actions, [..., actions]."""
    return reward - (probability * reward).sum(-1, keepdim=True)
