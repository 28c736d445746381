"""KL to a reference policy, in the loss or in the reward."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from entropy_theory.control import Control, Need, State, control
from entropy_theory.controller import constant, kl_adaptive
from entropy_theory.controls.checks import check_coef
from entropy_theory.loss import DIVERGENCES
from entropy_theory.records import Batch, Objective, Penalty

Form = Literal["k1", "k2", "k3"]

PRESETS = {
    "grpo": {"form": "k3", "coef": 0.04},  # Shao et al. 2024, for DeepSeekMath
    # `use_kl_loss` with `low_var_kl`: estimates above 10 lose their gradient; its k3+ has the gradient of our k2
    "verl": {"form": "k3", "coef": 1e-3, "limit": 10.0},
    "verl-reward": {"form": "k1", "coef": 1e-3},  # `use_kl_in_reward`
}


def kl_to_reference(
    form: Form = "k3",
    coef: float = 1e-3,
    limit: float = math.inf,
    target_kl: float | None = None,
    horizon: float = 10.0,
) -> Control:
    r"""Pull the policy back to the reference, the policy that training started from.

        x = logp - ref_logp;    k2: loss_t += coef x^2 / 2;    k3: loss_t += coef (exp(-x) + x - 1)
        k1: A_t -= coef sum_{s >= t} (old_logp_s - ref_logp_s), over the valid tokens of the row

    Estimators of Schulman 2020 (joschu.net/blog/kl-approx.html). As a loss, k2 has the expected gradient of
    KL(policy || reference), k3 that of KL(reference || policy) and k1 none, so k1 acts through the reward only: the
    advantage loses the undiscounted return of the reward -coef x_t, without a baseline. A row of one step (a pull, a
    PPO transition) pays for its own step and not for what it leads to.

    The gradient of KL(policy || reference) changes entropy, to first order and per step size, by
    coef sum_a pi_a^2 c_a (log(pi_a / ref_a) - KL): 0 at the reference, whose entropy it keeps and does not raise.

    k3 in the loss: Shao et al. 2024 (GRPO, arXiv 2402.03300), eq. 4. Effect on entropy and accuracy of language models:
    Cui et al. 2025 (arXiv 2505.22617), Fig. 10.

    Args:
      form: where it acts and by which estimate.
      coef: reward units per nat, >= 0.
      limit: nats, > 0; a token whose estimate is larger in size has no part in it, nor has an infinite one.
      target_kl: nats a token, > 0: the coefficient follows the measured KL (`controller.kl_adaptive`); None: fixed.
      horizon: of an adaptive coefficient, optimizer steps, > 0.2.
    Raises: ValueError if the form is unknown, coef is negative or not finite, limit is not positive, or an adaptive
      coefficient is given a number outside its range.
    """
    if form not in EDITS:
        raise ValueError(f"kl_to_reference.form must be one of {', '.join(EDITS)}, got {form!r}")
    check_coef("kl_to_reference.coef", coef)
    if not limit > 0:
        raise ValueError(f"kl_to_reference.limit must be positive, got {limit}")
    rule = constant(coef) if target_kl is None else kl_adaptive(coef, target_kl, horizon)
    act = EDITS[form]

    def edit(objective: Objective, batch: Batch, state: State) -> Objective:
        strength = rule.value(state).to(objective.weight.dtype)[..., None, None]
        return act(objective, batch, strength, limit)

    return control(edit, init=rule.init, advance=rule.advance, needs={Need.REF_LOGP})


def _in_loss(form: Form, objective: Objective, batch: Batch, coef: Tensor, limit: float) -> Objective:
    """The objective with a penalty on the tokens whose estimate counts."""
    ratio = _log_ratio(batch.logp, batch.ref_logp, objective.mask)
    counts = _counts(DIVERGENCES[form](ratio), limit)
    penalty = Penalty(counts.to(coef.dtype) * coef, batch.ref_logp, form)
    return replace(objective, penalties=(*objective.penalties, penalty))


def _in_reward(objective: Objective, batch: Batch, coef: Tensor, limit: float) -> Objective:
    """The objective with the return of the penalties of this and the later tokens taken off the advantage."""
    ratio = _log_ratio(batch.old_logp, batch.ref_logp, batch.mask)
    spent = torch.where(_counts(ratio, limit), ratio, 0.0).flip(-1).cumsum(-1).flip(-1)
    return replace(objective, advantage=objective.advantage - coef * spent)


def _log_ratio(logp: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, logp, 0.0) - torch.where(mask, reference, 0.0)


def _counts(estimate: Tensor, limit: float) -> Tensor:
    return estimate.isfinite() & (estimate.abs() <= limit)


EDITS: dict[str, Callable[[Objective, Batch, Tensor, float], Objective]] = {
    "k1": _in_reward,
    "k2": partial(_in_loss, "k2"),
    "k3": partial(_in_loss, "k3"),
}
