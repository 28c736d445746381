"""STEER."""

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from entropy_theory.control import Control, Need, control
from entropy_theory.controls.checks import check_choice
from entropy_theory.controls.effect import effects
from entropy_theory.records import Batch, Objective
from entropy_theory.scope import Scope, scoped

PRESETS = {
    "paper": {"lowest_weight": 0.7},  # fourth version of the paper
    "steer-code": {"lowest_weight": 0.8, "scope": "microbatch"},  # released scripts; their maximum is a micro-batch's
}

Effect = Literal["published", "exact"]


def steer(
    lowest_weight: float = 0.7, floor: float = 0.02, effect: Effect = "published", scope: Scope = "minibatch"
) -> Control:
    r"""Lower the weight of tokens that move entropy much, down or up.

        Omega_i = r_i A_i (1 - pi_i)(log pi_i + H),    weight_i *= exp(-k |Omega_i|)
        k = -ln(lowest_weight) / max(max_j |Omega_j|, floor)

    Hao et al. 2025 (STEER, arXiv 2510.10150), with the exponential map of the authors' scripts (their function's
    default is a linear one). Beside the exact effect of one sample, -w (pi c - C), the published Omega lacks a factor
    pi and the term C (`theorems.sampled_theorem_1`); effect "exact" takes that one. One outlier in the maximum leaves
    every other weight near 1.

    Args:
      lowest_weight: weight of the token of largest |Omega|, dimensionless, in (0, 1]; 1 changes nothing.
      floor: least denominator of k, units of Omega (reward units x nats), > 0.
      effect: "published" (Omega as above) or "exact" (0 for tokens that PPO's clip has silenced).
      scope: tokens of the maximum: the whole minibatch, or each micro-batch as in the published code.
    Raises: ValueError if lowest_weight is outside (0, 1], floor is not positive, or effect or scope is unknown.
    """
    if not 0 < lowest_weight <= 1:
        raise ValueError(f"steer.lowest_weight must lie in (0, 1], got {lowest_weight}")
    if not 0 < floor < math.inf:
        raise ValueError(f"steer.floor must be positive and finite, got {floor}")
    check_choice("steer.effect", effect, EFFECTS)
    size_of, needs = EFFECTS[effect]

    def edit(objective, batch, state):
        size = size_of(batch, objective).abs()
        largest = size.amax((-2, -1), keepdim=True).clamp(min=floor)
        weight = torch.exp(math.log(lowest_weight) * (size / largest)).clamp(min=lowest_weight)
        return replace(objective, weight=objective.weight * weight.to(objective.weight.dtype))

    return control(scoped("steer", scope, edit), needs=needs)


def omega(batch: Batch, objective: Objective) -> Tensor:
    """r A (1 - pi)(log pi + H), 0 where masked or impossible: E float64, reward units x nats."""
    possible = objective.mask & (batch.logp > -torch.inf)
    logp, old_logp, entropy, advantage = (
        torch.where(possible, x, 0.0).double() for x in (batch.logp, batch.old_logp, batch.entropy, objective.advantage)
    )
    return torch.exp(logp - old_logp) * advantage * -torch.expm1(logp) * (logp + entropy)


EFFECTS = {
    "published": (omega, {Need.SAMPLES}),
    "exact": (effects, {Need.SAMPLES, Need.COLLISION}),
}
"""What a token's size is taken from, and what that needs."""
