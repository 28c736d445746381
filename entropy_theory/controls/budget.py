"""A budget of entropy for each step."""

import math
from dataclasses import replace
from typing import Literal, get_args

import torch

from entropy_theory.control import Control, Need, control
from entropy_theory.controls.checks import check_choice, check_target
from entropy_theory.controls.effect import effects, ordered_sum
from entropy_theory.reduce import token_count

Request = Literal["share", "change", "target_entropy"]


def budget(
    request: Request = "share",
    share: float = 0.5,
    change: float = 0.0,
    target_entropy: float = 0.5,
    horizon: float = 100.0,
    step_size: float = 1.0,
    limit: float = 1.0,
) -> Control:
    r"""Scale what lowers entropy by one number, so that the predicted change of the step is the requested one.

        e_i = -w_i (pi_i c_i - C_i),    s = (request - mean e_i^+) / mean e_i^-, clipped to [0, limit]
        weight_i *= s where e_i < 0;    predicted change of the edited step: mean e_i^+ + s mean e_i^- = request

    e_i is the exact first-order effect of a sampled token on entropy as the loss pushes it (`effect.effects`), e^+ and
    e^- its positive and negative part. Of this project; published nowhere. Requests, in nats per unit of step size:

        "share":          share * mean e_i where that is negative; elsewhere s = 1
        "change":         change / step_size
        "target_entropy": (target_entropy - H) / (horizon step_size), H the minibatch's mean entropy: a controller
                          without a gain, that would be there in `horizon` steps if H fell short evenly

    The prediction is that of a table of logits, a mean over tokens and plain gradient ascent. Adam divides each step by
    the running size of the gradient, so no `step_size` turns the rate into nats; what stays exact is the rate of the
    minibatch's own gradient: its sign and its size relative to the unedited one. So in a network use "share", or take
    the other two as a scale to be set by trial.

    Args:
      request: a "share" of the unedited prediction, a "change" in nats per step, or towards "target_entropy".
      share: of the unedited prediction, in [0, 1]; 1 changes nothing.
      change: nats per step, finite (negative: entropy may fall so much).
      target_entropy: nats, > 0.
      horizon: optimizer steps, > 0.
      step_size: of the gradient step on the logits, nats per reward unit, > 0.
      limit: largest factor s, >= 0. 1 makes it a brake only, and a target a floor; above 1 a step may be pressed to
        lose more.
    Raises: ValueError if request is unknown or a number is outside its range.
    """
    check_choice("budget.request", request, get_args(Request))
    if not 0 <= share <= 1:
        raise ValueError(f"budget.share must lie in [0, 1], got {share}")
    if not math.isfinite(change):
        raise ValueError(f"budget.change must be finite, got {change}")
    for name, value in (("horizon", horizon), ("step_size", step_size)):
        if not 0 < value < math.inf:
            raise ValueError(f"budget.{name} must be positive and finite, got {value}")
    if not 0 <= limit < math.inf:
        raise ValueError(f"budget.limit must be at least 0 and finite, got {limit}")
    check = check_target("budget.target_entropy", target_entropy)
    rate = {
        "share": lambda mean, entropy: torch.where(mean < 0, share * mean, mean),
        "change": lambda mean, entropy: torch.full_like(mean, change / step_size),
        "target_entropy": lambda mean, entropy: (target_entropy - entropy) / (horizon * step_size),
    }[request]

    def edit(objective, batch, state):
        count = token_count(objective.mask)
        effect = effects(batch, objective)
        lowering = ordered_sum(effect.clamp(max=0)) / count
        mean = lowering + ordered_sum(effect.clamp(min=0)) / count
        entropy = ordered_sum(torch.where(objective.mask, batch.entropy, 0.0).double()) / count
        # as 1 + ..., so that a request of what is predicted anyway leaves the weights as they are, to the bit
        scale = 1 + (rate(mean, entropy) - mean) / torch.where(lowering < 0, lowering, -1.0)
        scale = scale.clamp(0, limit)[..., None, None].to(objective.weight.dtype)
        return replace(objective, weight=torch.where(effect < 0, objective.weight * scale, objective.weight))

    return control(
        edit,
        needs={Need.SAMPLES, Need.COLLISION},
        check_actions=check if request == "target_entropy" else lambda actions: None,
    )
