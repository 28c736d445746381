"""AER: adaptive entropy regularisation."""

from dataclasses import replace

import torch
from torch import Tensor

from entropy_theory.control import Control, Need, control
from entropy_theory.controller import Response, anchored
from entropy_theory.controls.entropy_bonus import bonus_by
from entropy_theory.records import Batch
from entropy_theory.reduce import group_mean


def aer(
    share: float = 0.4,
    easy: float | None = 0.5,
    gain: float = 0.005,
    high: float = 0.02,
    start: float = 0.0,
    response: Response = "proportional",
) -> Control:
    r"""Entropy bonus for hard prompts, with a coefficient that holds entropy at a share of where it began.

        coef_t = alpha max(0, 1 - accuracy / easy),    alpha <- clip(alpha + gain f(share H_0 - H), 0, high)

    The three parts of Zhang et al. 2025 (AER, arXiv 2510.10959): coefficients by difficulty, a target anchored at the
    initial entropy, a global coefficient that adapts. The paper's formulas and numbers are unverified (its text was not
    read, no code is known): this is a reconstruction, and everything in it is a parameter. accuracy is the mean outcome
    of the rows of the token's group that hold tokens, H_0 the entropy of the first minibatch.

    Args:
      share: of the initial entropy to hold, in (0, 1).
      easy: mean outcome from which on a prompt gets no bonus, in (0, 1]; None treats all alike and needs no groups.
      gain: reward units per squared nat, with the response "sign" (f = sign) reward units per nat, > 0.
      high, start: largest and first alpha, reward units per nat, 0 <= start <= high.
      response: "proportional" (f the identity) or "sign".
    Raises: ValueError if a parameter is outside its range.
    """
    if easy is not None and not 0 < easy <= 1:
        raise ValueError(f"aer.easy must lie in (0, 1] or be None, got {easy}")
    alpha = anchored(share, gain, 0.0, high, start, response)
    if easy is None:
        return bonus_by(alpha)

    def edit(objective, batch, state):
        bonus = alpha.value(state)[..., None, None] * _difficulty(batch, easy).unsqueeze(-1)
        return replace(objective, entropy_coef=objective.entropy_coef + bonus.to(objective.entropy_coef.dtype))

    return control(edit, init=alpha.init, advance=alpha.advance, needs={Need.ENTROPY_GRAD, Need.WHOLE_GROUPS})


def _difficulty(batch: Batch, easy: float) -> Tensor:
    """max(0, 1 - accuracy / easy) of each row's group, [..., rows]; rows without a valid token have no outcome."""
    present = batch.mask.any(-1)
    counted = group_mean(present.to(batch.outcome.dtype), batch.group)
    right = group_mean(torch.where(present, batch.outcome, 0.0), batch.group)
    accuracy = right / counted.masked_fill(counted == 0, 1.0)
    return (1 - accuracy / easy).clamp(min=0.0)
