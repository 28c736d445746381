"""What a step really did to the stored logits and to the entropy, and with what rounding."""

from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory import remainder
from entropy_theory.claims.statement import Comparison
from entropy_theory.softmax import entropy


class Step(NamedTuple):
    """A step measured from the stored logits on both sides of it.

    change:         [n, actions], after - before as computed; 0 at masked actions
    change_error:   [n], bound on the rounding of each entry of `change`
    spread:         [n], at least the exact spread of the exact change
    entropy_change: [n], H after - H before as computed
    rounding:       [n], bound on the rounding of `entropy_change`
    """

    change: Tensor
    change_error: Tensor
    spread: Tensor
    entropy_change: Tensor
    rounding: Tensor


def measure(before: Tensor, after: Tensor) -> Step:
    """Measure the step between two stored tensors of logits, [n, actions] each (docs/theory.md, section 4.6)."""
    support = torch.isfinite(before)
    u = remainder.unit_roundoff(before.dtype)
    change = torch.where(support, after - before, 0.0)
    change_error = 2 * u * change.abs().amax(-1)
    spread = remainder.spread(change, support)
    entropy_change = entropy(after) - entropy(before)
    rounding = remainder.entropy_rounding(before) + remainder.entropy_rounding(after)
    return Step(
        change=change,
        change_error=change_error,
        spread=(1 + 2 * u) * spread + 2 * change_error,
        entropy_change=entropy_change,
        rounding=rounding + 2 * u * entropy_change.abs(),
    )


def compare_first_order(step: Step, predicted: Tensor, rounding: Tensor, actions: int) -> Comparison:
    """Measured entropy change against a first-order prediction whose own error is at most `rounding`."""
    return _compare(step, predicted, rounding, remainder.remainder_bound(step.spread, actions))


def compare_second_order(step: Step, predicted: Tensor, rounding: Tensor, actions: int) -> Comparison:
    """Measured entropy change against a second-order prediction whose own error is at most `rounding`."""
    return _compare(step, predicted, rounding, remainder.second_order_remainder_bound(step.spread, actions))


def _compare(step: Step, predicted: Tensor, rounding: Tensor, bound: Tensor) -> Comparison:
    rounding = rounding + step.rounding
    return Comparison((step.entropy_change - predicted).abs(), bound + rounding, rounding)


def expected_return(logits: Tensor, reward: Tensor) -> Tensor:
    """J = sum_a pi_a r_a of a one-state problem, [...]; written without the package's softmax."""
    return (torch.softmax(logits, dim=-1) * reward).sum(-1)


def return_gradient(logits: Tensor, reward: Tensor) -> Tensor:
    """grad_z J by autograd, [..., actions]."""
    parameter = logits.detach().clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(expected_return(parameter, reward).sum(), parameter)
    return gradient


def sgd_step(logits: Tensor, reward: Tensor, step_size: float) -> Tensor:
    """Logits after one ascent step of `torch.optim.SGD` on the exact expected return, [..., actions]."""
    parameter = torch.nn.Parameter(logits.detach().clone())
    optimizer = torch.optim.SGD([parameter], lr=step_size, maximize=True)
    expected_return(parameter, reward).sum().backward()
    optimizer.step()
    return parameter.detach()
