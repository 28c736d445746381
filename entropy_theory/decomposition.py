"""What the token covariance of eq. 10 is made of: the states' own covariances, and differences between states."""

from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory.covariance import covariance
from entropy_theory.reduce import token_count


class Parts(NamedTuple):
    """total = within + between, each [...], in units of x times units of y; `states`, the number of states met, [...].

    within:  mean over tokens of the covariance at their state, sum_s n_s Cov_s(x, y) / n
    between: covariance of the states' means, Cov_s(E[x | s], E[y | s]) with weights n_s / n
    """

    total: Tensor
    within: Tensor
    between: Tensor
    states: Tensor


def within_between(x: Tensor, y: Tensor, mask: Tensor, state: Tensor) -> Parts:
    r"""The law of total covariance for the tokens of a minibatch.

        Cov(x, y) = E_s[Cov_s(x, y)] + Cov_s(E[x | s], E[y | s])

    With x = log pi and y = A the left side is the mean of eq. 10 (Cui et al. 2025, arXiv 2505.22617). Theorem 2 is
    about the first term on the right; the second is not an effect on entropy, and vanishes where E[A | s] = 0. The
    covariance at a state met once is 0, and at one met n times it is (n - 1)/n of the unbiased estimate.

    Args:
      x, y: [..., rows, steps]; mask: bool, of the same shape; what stands at masked tokens is ignored.
      state: int64 ids, of the same shape, in [0, rows * steps).
    """
    shape = mask.flatten(-2)
    state = state.flatten(-2).masked_fill(~shape, 0)
    count = _sums(shape.to(x.dtype), state)
    size = count.clamp(min=1)
    x_mean, y_mean = (_sums(v.flatten(-2).masked_fill(~shape, 0.0), state) / size for v in (x, y))
    x_rest, y_rest = (
        (v.flatten(-2) - mean.gather(-1, state)).masked_fill(~shape, 0.0) for v, mean in ((x, x_mean), (y, y_mean))
    )
    return Parts(
        total=covariance(x, y, mask),
        within=(x_rest * y_rest).sum(-1) / token_count(mask),
        between=covariance(x_mean, y_mean, count, dim=-1),
        states=(count > 0).sum(-1),
    )


def _sums(values: Tensor, state: Tensor) -> Tensor:
    return torch.zeros_like(values).scatter_add(-1, state, values)
