"""EGSW."""

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from entropy_theory.control import Control, Need, control
from entropy_theory.controls.checks import check_choice, check_coef


def egsw(alpha: float = 0.1, temperature: float = 1.0, level: Literal["step", "trajectory"] = "step") -> Control:
    r"""Weight the samples of a group by a softmax over their advantage and entropy.

        weight_i *= G exp((A_i + alpha H_i) / temperature) / sum_j exp((A_j + alpha H_j) / temperature)

    j runs over the group's rows that have a valid token there, and G is their number, so that the mean weight of a
    group is 1 and the step size keeps its meaning. The advantage is in the exponent: samples of negative advantage get
    little weight, which by itself lowers entropy unless alpha H / temperature is large.

    EGSW, arXiv 2503.22456, quoted from a summary of the paper. UNVERIFIED: alpha, the temperature, what a weight is
    normalised by beside the group's sum, and the mean over a row at the level of trajectories; no code was found.

    Args:
      alpha: reward units per nat, >= 0.
      temperature: reward units, > 0; inf weighs all samples alike.
      level: "step" compares the group's tokens at one step index; "trajectory" compares its rows by their mean
        A + alpha H, and all tokens of a row get its weight.
    Raises: ValueError if alpha is negative or not finite, temperature is not positive, or level is unknown.
    """
    check_coef("egsw.alpha", alpha)
    if not temperature > 0 or math.isnan(temperature):
        raise ValueError(f"egsw.temperature must be positive, got {temperature}")
    check_choice("egsw.level", level, LEVELS)
    of_level = LEVELS[level]

    def edit(objective, batch, state):
        mask = objective.mask
        score = torch.where(mask, objective.advantage, 0.0) + alpha * torch.where(mask, batch.entropy, 0.0)
        weight = group_softmax(*of_level(score / temperature, mask), batch.group)
        return replace(objective, weight=objective.weight * weight)

    return control(edit, needs={Need.WHOLE_GROUPS})


def row_means(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(mean over the valid tokens, whether there is one) of each row, both [..., rows, 1]; values 0 where masked."""
    return values.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1), mask.any(-1, keepdim=True)


LEVELS = {"step": lambda values, mask: (values, mask), "trajectory": row_means}
"""(values, mask), both E -> what is compared within a group and where it counts, [..., rows, steps or 1]."""


def group_softmax(score: Tensor, valid: Tensor, group: Tensor) -> Tensor:
    """Softmax within each group and step, times the number of valid rows there: mean 1; 0 where not valid.

    Args:
      score, valid: [..., rows, steps]; group: [..., rows] int64 ids in [0, rows).
    """
    index = group.unsqueeze(-1).expand(score.shape)
    zeros = torch.zeros_like(score)
    peak = (zeros - torch.inf).scatter_reduce(-2, index, score.masked_fill(~valid, -torch.inf), "amax")
    term = torch.where(valid, torch.exp(torch.where(valid, score - peak.gather(-2, index), 0.0)), 0.0)
    # summed from the smallest, so that the order of the rows changes no bit
    order = term.argsort(-2)
    total = zeros.scatter_add(-2, index.gather(-2, order), term.gather(-2, order)).gather(-2, index)
    count = zeros.scatter_add(-2, index, valid.to(score.dtype)).gather(-2, index)
    return torch.where(valid, count * term / total, 0.0)
