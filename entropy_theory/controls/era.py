"""ERA for language models."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from entropy_theory.control import Control, Need, control
from entropy_theory.controls.checks import check_choice, check_fraction

PRESETS = {
    "paper": {"entropy_low": 0.45, "entropy_high": 3.0, "factor": 2.0},
    # the released script: advantages as they are, ratios up to 2, and the integer buffer of the docstring
    "era-code": {"scales": "logits", "praised": "integer", "clip": 1.0},
}


def era(
    entropy_low: float = 0.45,
    entropy_high: float = 3.0,
    factor: float = 2.0,
    fraction: float = 0.2,
    scales: Literal["logits_and_advantage", "logits"] = "logits_and_advantage",
    praised: Literal["positive", "integer"] = "positive",
    clip: float | None = None,
) -> Control:
    r"""Push with a sharper policy where a praised response has little entropy, with a flatter one where it has much.

        H_row = mean of the `fraction` of the row's token entropies that are highest
        A > 0 and H_row < entropy_low:   z' = factor z,  A' = A / factor
        A > 0 and H_row > entropy_high:  z' = z / factor,  A' = factor A

    z' is the policy of the update only, sampling uses z. In the gradient of A' log pi' by z the factor cancels, and
    what is left is A (e_a - pi'): likely tokens get smaller pushes from a sharper pi'. It is feedback, no floor.

    ERA, arXiv 2510.08549, from the authors' code and README. There the policy of the ratio's denominator is scaled
    alike; here `old_logp` is that of the policy that sampled, so take the surrogate "reinforce" for A' log pi'. Not
    offered: their renormalisation over the 20 highest logits. Their mask for A > 0 is built in an integer buffer, where
    advantages in (0, 1) become 0, so that only A >= 1 counts: `praised`="integer".

    Args:
      entropy_low, entropy_high: bounds of the band, nats, 0 <= entropy_low <= entropy_high.
      factor: > 0.
      fraction: share of a row's tokens in its mean, in (0, 1], at least one token.
      scales: whether advantages are scaled beside the logits, as in the formula; the released script leaves them.
      praised: which advantages count as positive: all of them, or those whose whole part is.
      clip: distance of both PPO clips from 1, > 0; None leaves those of the run.
    Raises: ValueError if one of these does not hold.
    """
    if not 0 <= entropy_low <= entropy_high:
        raise ValueError(
            f"era needs 0 <= entropy_low <= entropy_high, got {entropy_low} and {entropy_high}; both are in nats"
        )
    if not 0 < factor < torch.inf:
        raise ValueError(f"era.factor must be positive and finite, got {factor}")
    if clip is not None and not clip > 0:
        raise ValueError(f"era.clip must be positive, got {clip}")
    check_fraction("era.fraction", fraction)
    check_choice("era.scales", scales, DIVISORS)
    check_choice("era.praised", praised, PRAISED)
    counts, divides = PRAISED[praised], DIVISORS[scales]

    def edit(objective, batch, state):
        mask = objective.mask
        row = top_mean(batch.entropy, mask, fraction)
        good = mask & counts(torch.where(mask, objective.advantage, 0.0))
        by = torch.ones_like(row).masked_fill(row < entropy_low, factor).masked_fill(row > entropy_high, 1 / factor)
        by = torch.where(good, by, torch.ones_like(by))
        clips = {} if clip is None else {name: torch.full_like(by, clip) for name in ("clip_low", "clip_high")}
        return replace(
            objective,
            logit_scale=objective.logit_scale * by,
            advantage=objective.advantage / divides(by),
            **clips,
        )

    return control(edit, needs={Need.LOGIT_SCALE})


PRAISED = {"positive": lambda advantage: advantage > 0, "integer": lambda advantage: advantage >= 1}

DIVISORS = {"logits_and_advantage": lambda by: by, "logits": torch.ones_like}
"""What the advantage is divided by where the logits are multiplied by `by`."""


def top_mean(values: Tensor, mask: Tensor, fraction: float) -> Tensor:
    """Mean of the max(1, floor(fraction * valid tokens)) largest values of each row.

    Args: values, mask: E; whatever stands at masked tokens is ignored.
    Returns: [..., rows, 1]; 0 for a row without valid tokens.
    """
    ranked = torch.where(mask, values, -torch.inf).sort(-1, descending=True).values
    valid = mask.sum(-1, keepdim=True)
    count = (valid.double() * fraction).floor().long().clamp(min=1)
    rank = torch.arange(ranked.shape[-1], device=ranked.device)
    return torch.where((rank < count) & (rank < valid), ranked, 0.0).sum(-1, keepdim=True) / count
