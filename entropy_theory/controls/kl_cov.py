"""KL-Cov."""

from dataclasses import replace

import torch

from entropy_theory.control import Control, Need, control
from entropy_theory.controls.checks import check_coef, check_fraction
from entropy_theory.covariances import centred_product
from entropy_theory.records import Penalty
from entropy_theory.reduce import lowest, token_fraction


def kl_cov(fraction: float = 2e-3, coef: float = 1.0) -> Control:
    r"""Hold the `fraction` of tokens with the largest centred product near the sampling policy.

        c_i = (logp_i - mean logp)(A_i - mean A);  for the top max(1, floor(fraction * tokens)):
        loss_i = -r_i A_i + coef |logp_i - old_logp_i|;  for the others: loss_i = -r_i A_i (no PPO clip)

    Cui et al. 2025 (arXiv 2505.22617), eqs. 13-14, with the one-sample |k1| of the authors' code in place of
    the KL. Its gradient is coef * sign(logp - old_logp): exactly 0 on the first update of a rollout, so a loop
    with one update per rollout is left unchanged.

    Args:
      fraction: share of valid tokens to penalise, in (0, 1] (a fraction, not a percentage).
      coef: reward units per nat, >= 0.
    Raises: ValueError if fraction is outside (0, 1] or coef is negative or not finite.
    """
    check_fraction("kl_cov.fraction", fraction)
    check_coef("kl_cov.coef", coef)

    def edit(objective, batch, state):
        mask = objective.mask
        score = centred_product(batch.logp, batch.advantage, mask)
        top = lowest(-score, mask, token_fraction(mask, fraction))
        infinite = torch.full_like(objective.clip_low, torch.inf)
        penalty = Penalty(top.to(score.dtype) * coef, batch.old_logp, "abs")
        return replace(
            objective,
            clip_low=infinite,
            clip_high=infinite,
            penalties=(*objective.penalties, penalty),
        )

    return control(edit, needs={Need.SAMPLES})
