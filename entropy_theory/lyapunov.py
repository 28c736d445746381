"""How fast a map pulls neighbours apart, and how many dimensions its trajectory fills.

A map acts on the last axis, [..., n] -> [..., n]; leading axes are independent replicas, and it must accept one more
of them. Exponents are per application of the map, natural logarithm.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory.draw import uniform

Map = Callable[[Tensor], Tensor]

BLOCKS = 20
"""Blocks of a series whose means give its standard error."""


class Exponents(NamedTuple):
    """Lyapunov exponents in descending order and their standard errors, [..., k], and the last state, [..., n]."""

    value: Tensor
    error: Tensor
    state: Tensor


def generic_frame(dimension: int, count: int) -> Tensor:
    """`count` orthonormal columns in no special direction, [dimension, count] float64, always the same."""
    zero = torch.zeros((), dtype=torch.int64)
    draws = uniform(zero, zero, dimension * count).view(dimension, count)
    return torch.linalg.qr(draws - 0.5).Q


def jacobian(step: Map, state: Tensor) -> tuple[Tensor, Tensor]:
    """The next state [..., n] and the derivative of the map at `state` [..., n, n], by one backward pass of n copies.

    For the small n of such maps this is many times faster than torch's forward mode, whose cost is per operation.
    """
    dimension = state.shape[-1]
    copies = state.detach().expand(dimension, *state.shape).clone().requires_grad_()
    pick = torch.eye(dimension, dtype=state.dtype).view(dimension, *[1] * (state.dim() - 1), dimension)
    with torch.enable_grad():
        following = step(copies)
        (rows,) = torch.autograd.grad((following * pick).sum(), copies)  # copy i: the gradient of coordinate i
    return following[0].detach(), rows.movedim(0, -2)


def tangent_step(step: Map, state: Tensor, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""One step of Benettin's method.

        Q' R = J(state) Q,    growth_i = log |R_ii|

    Benettin et al. 1980; Shimada & Nagashima 1979. The sum of the first k growths is the logarithm of the factor by
    which k-dimensional volumes grow, whatever frame Q spans.

    Args:
      step: the map, differentiable; state: [..., n]; frame: Q, [..., n, k] orthonormal columns.
    Returns: (next state [..., n], next frame [..., n, k], growth [..., k], -inf where the map flattens a direction).
    """
    following, derivative = jacobian(step, state)
    frame, r = torch.linalg.qr(derivative @ frame)
    return following, frame, torch.diagonal(r, dim1=-2, dim2=-1).abs().log()


def lyapunov_exponents(step: Map, state: Tensor, steps: int, count: int | None = None, discard: int = 0) -> Exponents:
    r"""The largest `count` Lyapunov exponents along the trajectory from `state`.

        lambda_i = 1/steps sum_t log |R_ii(t)|

    Args:
      state: [..., n]; steps: those averaged over, at least `BLOCKS`; discard: steps before them, on which state and
        frame settle; count: None for all n.
    Raises: ValueError if steps < BLOCKS or count is not in [1, n].
    """
    dimension = state.shape[-1]
    count = dimension if count is None else count
    if not 1 <= count <= dimension:
        raise ValueError(f"count must lie in [1, {dimension}] (dimensions of the state), got {count}")
    frame = generic_frame(dimension, count).to(state).expand(*state.shape, count)
    growths = []
    for t in range(discard + steps):
        state, frame, growth = tangent_step(step, state, frame)
        if t >= discard:
            growths.append(growth)
    series = torch.stack(growths, -1) if growths else state.new_empty(0)
    return Exponents(*mean_and_error(series), state)


def mean_and_error(series: Tensor, blocks: int = BLOCKS) -> tuple[Tensor, Tensor]:
    """Mean over the last axis and its standard error from the means of `blocks` consecutive blocks.

    Neighbouring steps of a trajectory are correlated, blocks much longer than the correlation hardly. A remainder
    that fills no block is left out of the error only.

    Raises: ValueError if there are fewer steps than blocks.
    """
    steps = series.shape[-1]
    if steps < blocks:
        raise ValueError(f"a standard error needs at least {blocks} steps, got {steps}; take more steps")
    length = steps // blocks
    means = series[..., : blocks * length].unflatten(-1, (blocks, length)).mean(-1)
    return series.mean(-1), means.std(-1) / blocks**0.5


def kaplan_yorke_dimension(exponents: Tensor) -> Tensor:
    r"""Dimension of the attractor from the Lyapunov spectrum.

        D = j + sum_{i <= j} lambda_i / |lambda_{j+1}|,    j the largest index with sum_{i <= j} lambda_i >= 0

    Kaplan & Yorke 1979. 0 if all exponents are negative (a fixed point), n if their sum is not negative.

    Args:
      exponents: [..., n], any order.
    Returns: [...].
    """
    ordered = exponents.sort(-1, descending=True).values
    total = ordered.cumsum(-1)
    whole = (total >= 0).to(ordered.dtype).cumprod(-1).sum(-1)
    j = whole.long().unsqueeze(-1)
    padded = torch.cat([torch.zeros_like(total[..., :1]), total], -1)
    following = torch.cat([ordered, torch.full_like(total[..., :1], -torch.inf)], -1)
    return whole + (padded.gather(-1, j) / following.gather(-1, j).abs()).squeeze(-1)


def participation_dimension(points: Tensor) -> Tensor:
    r"""Number of directions over which the variance of a trajectory is spread.

        D = (sum_i lambda_i)^2 / sum_i lambda_i^2,    lambda the eigenvalues of the covariance of the points

    n for an isotropic cloud in n dimensions, 1 for a line, 0 for a single point. It depends on the units of the
    coordinates, and not on how large the cloud is.

    Args:
      points: [..., samples, n].
    Returns: [...].
    """
    deviation = points - points.mean(-2, keepdim=True)
    largest = deviation.abs().amax((-2, -1), keepdim=True)
    deviation = deviation / largest.masked_fill(largest == 0, 1.0)
    covariance = deviation.mT @ deviation
    trace = torch.diagonal(covariance, dim1=-2, dim2=-1).sum(-1)
    squares = covariance.square().sum((-2, -1))
    return trace.square() / squares.masked_fill(squares == 0, 1.0)
