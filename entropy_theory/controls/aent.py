"""AEnt: an entropy bonus that leaves the unlikely actions out."""

import math

import torch
from torch import Tensor

from entropy_theory.control import Control, Need
from entropy_theory.controller import Controller, constant, towards_range
from entropy_theory.controls.checks import check_coef
from entropy_theory.controls.entropy_bonus import bonus_by

_AREAL = {"share": 0.4, "coef": 2e-4}

PRESETS = {
    "paper": {"share": 0.3, "coef": 2e-4},  # as the authors' repository explains itself; the paper's are unverified
    "areal": _AREAL,  # its recipe for GSM8K, whose rewards are scaled by 10
    "areal-adaptive": {**_AREAL, "entropy_low": 0.05, "entropy_high": 0.23},
}


def aent(
    share: float = 0.3,
    coef: float = 2e-4,
    entropy_low: float | None = None,
    entropy_high: float | None = None,
    gain: float = 1e-3,
    coef_low: float = 1e-5,
    coef_high: float = 3e-3,
) -> Control:
    r"""Add `coef` times the entropy of the policy without the lowest `share` of the actions, renormalised.

        loss_t = surrogate_t - coef H(softmax(z_t, actions below the floor(share K) + 1st lowest logit left out))

    Shen 2025 (AEnt, arXiv 2509.03493). What is left out is a constant of the update. Equal logits at the edge all
    stay, where the authors' code leaves out an arbitrary one; with share < 1 / K nothing is left out. In a chain every
    entropy bonus acts on what is kept.

    With entropy_low and entropy_high the coefficient adapts as in the authors' code (the paper's own rule is
    unverified): coef <- clip(coef - gain (min(0, H - entropy_low) + max(0, H - entropy_high)), coef_low, coef_high).
    Here H is the entropy of the whole policy after every optimizer step; theirs is that of what is kept, once per
    rollout and after a warm-up.

    Args:
      share: of the actions to leave out, in [0, 1).
      coef: reward units per nat, >= 0; the first one where it adapts.
      entropy_low, entropy_high: range to hold, nats; None for a fixed coefficient.
      gain: reward units per squared nat, > 0.
      coef_low, coef_high: bounds of the coefficient where it adapts, reward units per nat, coef between them.
    Raises: ValueError if a parameter is outside its range, one end of the range is missing, or, when a run is built,
      one action alone would be kept (its entropy is 0) or the actions cannot have so much entropy.
    """
    if not 0 <= share < 1:
        raise ValueError(f"aent.share must lie in [0, 1), got {share}; it is a fraction, not a percentage")
    check_coef("aent.coef", coef)
    rule = _rule(coef, entropy_low, entropy_high, gain, coef_low, coef_high)

    def dropped(actions: int) -> int:
        return math.floor(share * actions)

    def entropy_support(logits: Tensor) -> Tensor:
        least = logits.detach().kthvalue(dropped(logits.shape[-1]) + 1, dim=-1, keepdim=True).values
        return logits.masked_fill(logits < least, -torch.inf)

    def check_actions(actions: int) -> None:
        if 1 < actions == dropped(actions) + 1:
            raise ValueError(f"aent.share {share} keeps one of {actions} actions, whose entropy is always 0; lower it")
        if entropy_low is not None and entropy_low > math.log(actions):
            raise ValueError(
                f"aent.entropy_low is {entropy_low:g} nats, but {actions} actions allow at most {math.log(actions):.4g}"
            )

    return bonus_by(rule)._replace(
        entropy_support=entropy_support,
        needs=frozenset({Need.ENTROPY_GRAD, Need.ENTROPY_SUPPORT}),
        check_actions=check_actions,
    )


def _rule(
    coef: float, entropy_low: float | None, entropy_high: float | None, gain: float, low: float, high: float
) -> Controller:
    if (entropy_low is None) != (entropy_high is None):
        raise ValueError(
            f"aent.entropy_low and aent.entropy_high belong together, got {entropy_low} and {entropy_high}; set both"
        )
    if entropy_low is None or entropy_high is None:
        return constant(coef)
    return towards_range(entropy_low, entropy_high, gain, low, high, coef)
