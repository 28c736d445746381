"""Reductions over the tokens of a minibatch: the last two axes (rows, steps), never the replica axes."""

import torch
from torch import Tensor

from entropy_theory.covariances import TOKENS


def token_count(mask: Tensor) -> Tensor:
    """Number of valid tokens per replica, [...], at least 1 so that an empty mask divides to 0."""
    return mask.sum(TOKENS).clamp(min=1)


def token_fraction(mask: Tensor, fraction: float) -> Tensor:
    """max(1, floor(fraction * valid tokens)) per replica, [...] int64 (in float64: float32 misrounds 2e-4 * 1e6)."""
    return (mask.sum(TOKENS).double() * fraction).floor().long().clamp(min=1)


def token_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over valid tokens, [...]; whatever stands at masked tokens is ignored."""
    return torch.where(mask, values, 0.0).sum(TOKENS)


def token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over valid tokens, [...]; 0 when there is none."""
    return token_sum(values, mask) / token_count(mask)


def group_mean(values: Tensor, group: Tensor) -> Tensor:
    """Mean over the rows that share a group id, given back at every row.

    Args:
      values: [..., rows]; group: [..., rows] int64 ids in [0, rows).
    Returns: [..., rows].
    """
    return _group_sum(values, group) / group_size(group).to(values.dtype)


def group_deviation(values: Tensor, group: Tensor) -> Tensor:
    """Values minus their group's mean, [..., rows]; exactly 0 in a group of equal values.

    The group's minimum is taken off first: the rounded mean of equal numbers is not always that number, and a
    standardised advantage would blow the difference up.
    """
    smallest = torch.full_like(values, torch.inf).scatter_reduce(-1, group, values, "amin").gather(-1, group)
    above = values - smallest
    return above - group_mean(above, group)


def group_size(group: Tensor) -> Tensor:
    """Number of rows that share each row's group id, [..., rows], int64."""
    return _group_sum(torch.ones_like(group), group)


def _group_sum(values: Tensor, group: Tensor) -> Tensor:
    sums = torch.zeros_like(values).scatter_add(-1, group, values)
    return sums.gather(-1, group)


def lowest(score: Tensor, eligible: Tensor, count: Tensor) -> Tensor:
    """The `count` eligible tokens of lowest score per replica, as a bool mask.

    Ties go to the earlier token. Fewer are selected when fewer are eligible.

    Args:
      score, eligible: [..., rows, steps]; count: [...] integers >= 0.
    Returns: bool [..., rows, steps].
    """
    order = torch.where(eligible, score, torch.inf).flatten(-2).argsort(dim=-1, stable=True)
    # rank among the eligible only: an eligible score may be infinite too, and must not lose to a token that is not
    rank = torch.empty_like(order)
    rank.scatter_(-1, order, eligible.flatten(-2).gather(-1, order).long().cumsum(-1) - 1)
    return (rank.view(score.shape) < count[..., None, None]) & eligible
