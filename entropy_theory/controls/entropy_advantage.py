"""Entropy-based advantage shaping."""

import math
from dataclasses import replace

import torch

from entropy_theory.control import Control, control
from entropy_theory.controls.checks import check_coef

PRESETS = {
    "grpo": {"alpha": 0.4, "kappa": 2.0},
    "ppo": {"alpha": 0.1, "kappa": 2.0},
}


def entropy_advantage(alpha: float = 0.4, kappa: float = 2.0) -> Control:
    r"""Add entropy to the advantage, at most a share of its size, so that no sign changes.

        A' = A + min(alpha H, |A| / kappa),    without gradient through H

    Cheng et al. 2025 (arXiv 2506.14758). Despite the name it lowers entropy: their runs have 0.17 nats at step 2000 and
    the baseline 0.34. It has no gradient through H, and a token of high entropy gets a harder push upwards.

    Args:
      alpha: reward units per nat, >= 0.
      kappa: > 1, so that the sign of A stays; inf switches the control off.
    Raises: ValueError if alpha is negative or not finite, or kappa is not above 1.
    """
    check_coef("entropy_advantage.alpha", alpha)
    if not kappa > 1 or math.isnan(kappa):
        raise ValueError(f"entropy_advantage.kappa must be above 1, or advantages change sign, got {kappa}")

    def edit(objective, batch, state):
        mask = objective.mask
        advantage = torch.where(mask, objective.advantage, 0.0)
        bonus = torch.minimum(alpha * torch.where(mask, batch.entropy, 0.0), advantage.abs() / kappa)
        return replace(objective, advantage=advantage + bonus)

    return control(edit)
