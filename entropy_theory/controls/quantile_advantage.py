"""Quantile advantage estimation."""

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from entropy_theory.control import Control, Need, control
from entropy_theory.reduce import group_deviation, group_mean, group_size

PRESETS = {
    "qae": {"quantile": 0.4},
    "qae-low": {"quantile": 0.6},  # their choice where entropy is low
}


def quantile_advantage(quantile: float = 0.4, eps: float = 1e-6) -> Control:
    r"""Compare each row of a group with the group's quantile in place of its mean.

        A_i = (r_i - b) / (std + eps),    b = min{r : share of the group's outcomes <= r is at least `quantile`}

    Wu et al. 2025 (QAE, arXiv 2509.22611); std with K - 1 as in `advantage.grpo`. With outcomes of 0 and 1 and a share
    p of ones, b = 0 where p <= 1 - quantile (only successes count) and b = 1 elsewhere (only failures count). Their
    Proposition 4.2, that the entropy change grows with b, is false for the exact gradient, which no constant baseline
    changes: what acts is that b depends on the sample, and the division by std.

    Args:
      quantile: share of the group that the baseline is to reach, in (0, 1).
      eps: outcome units, > 0; bounds the quotient where the outcomes of a group are equal.
    Raises: ValueError if quantile is outside (0, 1) or eps is not positive and finite.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile_advantage.quantile must lie between 0 and 1, got {quantile}")
    if not 0 < eps < math.inf:
        raise ValueError(f"quantile_advantage.eps must be positive and finite, got {eps}")

    def edit(objective, batch, state):
        advantage = _of_rows(batch.outcome, batch.group, batch.mask.any(-1), quantile, eps)
        advantage = advantage.to(objective.advantage.dtype).unsqueeze(-1).expand(objective.mask.shape)
        return replace(objective, advantage=advantage)

    return control(edit, needs={Need.WHOLE_GROUPS})


def _of_rows(outcome: Tensor, group: Tensor, valid: Tensor, quantile: float, eps: float) -> Tensor:
    """Advantage of each row, [..., rows]; rows without a valid token belong to no group and get 0."""
    rows = outcome.shape[-1]
    # one more row, whose group takes the rows that are padding
    group = pad(torch.where(valid, group, rows), (0, 1), value=rows)
    reward = pad(torch.where(valid, outcome, 0.0).double(), (0, 1))
    # sums in order of size, so that the order of rows does not change their rounding
    order = reward.argsort(dim=-1, stable=True)
    order = order.gather(-1, group.gather(-1, order).argsort(dim=-1, stable=True))
    advantage = _of_sorted(reward.gather(-1, order), group.gather(-1, order), quantile, eps)
    return torch.empty_like(advantage).scatter(-1, order, advantage)[..., :rows]


def _of_sorted(reward: Tensor, group: Tensor, quantile: float, eps: float) -> Tensor:
    """The same for rows in order of group, then reward."""
    size = group_size(group)
    variance = group_mean(group_deviation(reward, group).square(), group) * size / (size - 1).clamp(min=1)
    position = torch.arange(reward.shape[-1], device=reward.device).expand(reward.shape)
    first = torch.full_like(group, reward.shape[-1]).scatter_reduce(-1, group, position, "amin").gather(-1, group)
    # k/n is the double next to the decimal a user writes, which k against quantile * n would miss
    reached = (position - first + 1).double() / size.double() >= quantile
    above = torch.where(reached, reward, torch.inf)
    baseline = torch.full_like(reward, torch.inf).scatter_reduce(-1, group, above, "amin").gather(-1, group)
    return (reward - baseline) / (variance.sqrt() + eps)
