"""The one covariance of the package, under whichever measure it is asked for.

weights = pi(a|s) along the action axis gives Lemma 1's covariance exactly; weights = token mask over rows and
steps gives the sampled score that Clip-Cov and KL-Cov rank (Cui et al. 2025, arXiv 2505.22617, eq. 10).
"""

import torch
from torch import Tensor

Dims = int | tuple[int, ...]

TOKENS: tuple[int, int] = (-2, -1)
"""The axes (rows, steps) of a minibatch; axes before them are independent replicas."""


def _deviation(x: Tensor, weights: Tensor, total: Tensor, dim: Dims) -> Tensor:
    """x minus its weighted mean; 0 where the weight is 0, whatever x holds there (padding, -inf, NaN)."""
    absent = weights == 0
    x = x.masked_fill(absent, 0.0)
    mean = (weights * x).sum(dim, keepdim=True) / total
    # the rounded mean of equal numbers may miss them: without this, tokens of equal score are ranked by rounding
    largest = x.masked_fill(absent, -torch.inf).amax(dim, keepdim=True)
    smallest = x.masked_fill(absent, torch.inf).amin(dim, keepdim=True)
    return (x - mean).masked_fill(absent | (largest == smallest), 0.0)


def _total(weights: Tensor, dim: Dims) -> Tensor:
    total = weights.sum(dim, keepdim=True)
    return total.masked_fill(total == 0, 1.0)


def centred_product(x: Tensor, y: Tensor, weights: Tensor, dim: Dims = TOKENS) -> Tensor:
    r"""Contribution of each entry to the weighted covariance.

        c_i = (x_i - sum_j w_j x_j / W)(y_i - sum_j w_j y_j / W),      W = sum_j w_j

    Cui et al. 2025, eq. 10 with x = log pi, y = advantage and weights = mask.

    Args:
      x, y: any shape; entries of weight 0 are ignored whatever they hold.
      weights: same shape, >= 0 (bool allowed); all 0 gives 0.
      dim: axes of the sums.
    Returns: the shape of x, in units of x times units of y; 0 where the weight is 0.
    """
    weights = weights.to(x.dtype)
    total = _total(weights, dim)
    return _deviation(x, weights, total, dim) * _deviation(y, weights, total, dim)


def covariance(x: Tensor, y: Tensor, weights: Tensor, dim: Dims = TOKENS) -> Tensor:
    r"""Weighted covariance sum_i w_i c_i / W of `centred_product`, with `dim` reduced.

    With 0/1 weights this is the plug-in estimator (divided by n); it is (n-1)/n of the unbiased one.
    """
    weights = weights.to(x.dtype)
    return (weights * centred_product(x, y, weights, dim)).sum(dim) / _total(weights, dim).sum(dim)
