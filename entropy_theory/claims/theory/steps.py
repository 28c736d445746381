"""A step given by a formula, taken on stored logits, and a first-order statement about it."""

import torch
from torch import Tensor

from entropy_theory import remainder
from entropy_theory.claims.statement import Comparison
from entropy_theory.claims.step import Step, compare_first_order, measure
from entropy_theory.enclosure import Enclosed


def take(logits: Tensor, change: Enclosed) -> tuple[Step, Tensor]:
    """Add a change to the logits; the measured step and a bound [n] on how far its change is from the exact one.

    The bound holds whatever the storing did, because the two are compared: |formula - measured| + both errors.
    """
    support = torch.isfinite(logits)
    step = measure(logits, torch.where(support, logits + change.value, logits))
    away = (change.value - step.change).abs() * (1 + 2.0**-30) + change.error
    return step, torch.where(support, away, 0.0).amax(-1) + step.change_error


def first_order(logits: Tensor, change: Enclosed, predicted: Enclosed) -> Comparison:
    """The entropy change of a step against a first-order prediction made for the formula of the change."""
    actions = logits.shape[-1]
    step, away = take(logits, change)
    effect = remainder.first_order_effect(away, actions)
    return compare_first_order(step, predicted.value, predicted.error + effect, actions)
