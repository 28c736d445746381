"""Weighted REINFORCE."""

from dataclasses import replace

import torch

from entropy_theory.control import Control, control
from entropy_theory.controls.checks import check_coef

PRESETS = {
    "w-reinforce": {"positive_weight": 0.1, "negative_weight": 1.0},
    "nsr": {"positive_weight": 0.0, "negative_weight": 1.0},  # punished samples only: pass@256 of the base model kept
    "psr": {"positive_weight": 1.0, "negative_weight": 0.0},  # praised samples only: loses pass@256 fastest
}


def weighted_reinforce(positive_weight: float = 0.1, negative_weight: float = 1.0) -> Control:
    r"""Weigh praised and punished tokens differently.

        weight_i *= positive_weight where A_i > 0, negative_weight where A_i < 0

    Zhu et al. 2025 (arXiv 2506.01347): L = lambda L_positive + L_negative, lambda = .1, with rewards of +-1 and no
    baseline; here the sign of the advantage decides, whatever the baseline. Punishing a likely token raises entropy,
    punishing a rare one lowers it (`theorems.sampled_theorem_1`).

    Args:
      positive_weight: of tokens with A > 0, dimensionless, >= 0; 1 with the default negative_weight changes nothing.
      negative_weight: of tokens with A < 0, dimensionless, >= 0.
    Raises: ValueError if a weight is negative or not finite, or both are 0.
    """
    check_coef("weighted_reinforce.positive_weight", positive_weight)
    check_coef("weighted_reinforce.negative_weight", negative_weight)
    if positive_weight == negative_weight == 0:
        raise ValueError("weighted_reinforce needs a weight above 0, got 0 for both; nothing would be learnt")

    def edit(objective, batch, state):
        weight, advantage = objective.weight, torch.where(objective.mask, objective.advantage, 0.0)
        weight = torch.where(advantage > 0, weight * positive_weight, weight)
        weight = torch.where(advantage < 0, weight * negative_weight, weight)
        return replace(objective, weight=weight)

    return control(edit)
