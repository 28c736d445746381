"""KL-Cov."""

from dataclasses import replace

import torch

from entropy_theory.control import Control, Need, control
from entropy_theory.controls.checks import check_coef, check_fraction
from entropy_theory.covariances import centred_product
from entropy_theory.records import Penalty
from entropy_theory.reduce import lowest, token_fraction
from entropy_theory.scope import Scope, scoped

PRESETS = {
    "paper-7b": {"fraction": 2e-3, "coef": 1.0},  # k_percent 0.2 of the authors' code is in percent
    "paper-32b": {"fraction": 2e-4, "coef": 1.0},
    "verl": {"fraction": 2e-4, "coef": 0.1, "scope": "microbatch"},  # its yaml; its docstring and recipes say coef 1
    "skyrl": {"fraction": 0.2, "coef": 1.0, "scope": "microbatch"},  # percent read as a fraction: 100 times the paper's
}


def kl_cov(fraction: float = 2e-3, coef: float = 1.0, scope: Scope = "minibatch") -> Control:
    r"""Hold the `fraction` of tokens with the largest centred product near the sampling policy.

        c_i = (logp_i - mean logp)(A_i - mean A);  for the top max(1, floor(fraction * tokens)):
        loss_i = -r_i A_i + coef |logp_i - old_logp_i|;  for the others: loss_i = -r_i A_i (no PPO clip)

    Cui et al. 2025 (arXiv 2505.22617), eqs. 13-14, with the one-sample |k1| of the authors' code in place of
    the KL. Its gradient is coef * sign(logp - old_logp): exactly 0 on the first update of a rollout, so a loop
    with one update per rollout is left unchanged.

    Args:
      fraction: share of valid tokens to penalise, in (0, 1] (a fraction, not a percentage).
      coef: reward units per nat, >= 0.
      scope: tokens that are ranked together: the whole minibatch, or each micro-batch as in the published code.
    Raises: ValueError if fraction is outside (0, 1], coef is negative or not finite, or scope is unknown.
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

    return control(scoped("kl_cov", scope, edit), needs={Need.SAMPLES}, idle_without={Need.STALE})
