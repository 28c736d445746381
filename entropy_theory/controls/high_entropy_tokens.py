"""Training on the tokens of highest entropy only ("80/20")."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from entropy_theory.control import Control, Need, control
from entropy_theory.controls.checks import check_choice, check_fraction
from entropy_theory.covariances import TOKENS
from entropy_theory.records import Objective
from entropy_theory.reduce import lowest, token_fraction
from entropy_theory.scope import Scope, scoped

PRESETS = {
    "paper": {"fraction": 0.2, "denominator": "selected", "scope": "microbatch"},  # its threshold is a micro-batch's
    "trl": {"fraction": 0.2, "denominator": "all", "scope": "microbatch"},  # a fifth of the paper's step
}


def high_entropy_tokens(
    fraction: float = 0.2, denominator: Literal["selected", "all"] = "selected", scope: Scope = "minibatch"
) -> Control:
    r"""Drop all tokens but the `fraction` of highest entropy.

        kept: H_t >= threshold, the entropy of the max(1, floor(fraction * tokens))-th token from the top

    Tokens of equal entropy are kept or dropped together, so with one state all are kept and nothing happens.

    Wang et al. 2025 (arXiv 2506.01939), eq. 6. They divide the loss by the number of tokens kept, and so does
    "selected"; TRL's `top_entropy_quantile` divides by all tokens, which makes its step about `fraction` of that. Its
    threshold is an interpolated quantile, so it may keep one token more or less.

    Args:
      fraction: share of valid tokens to keep, in (0, 1].
      denominator: what the loss is divided by, the tokens kept or all valid ones.
      scope: tokens that are ranked together: the whole minibatch, or each micro-batch as in TRL.
    Raises: ValueError if fraction is outside (0, 1], or denominator or scope is unknown.
    """
    check_fraction("high_entropy_tokens.fraction", fraction)
    check_choice("high_entropy_tokens.denominator", denominator, DROPS)

    def edit(objective, batch, state):
        mask = objective.mask
        top = lowest(-batch.entropy, mask, token_fraction(mask, fraction))
        threshold = torch.where(top, batch.entropy, torch.inf).amin(TOKENS, keepdim=True)
        return DROPS[denominator](objective, mask & (batch.entropy >= threshold))

    return control(scoped("high_entropy_tokens", scope, edit), needs={Need.SAMPLES}, idle_without={Need.SEVERAL_STATES})


def _out_of_mask(objective: Objective, kept: Tensor) -> Objective:
    return replace(objective, mask=kept)


def _out_of_numerator(objective: Objective, kept: Tensor) -> Objective:
    return replace(objective, weight=objective.weight.masked_fill(objective.mask & ~kept, 0.0))


DROPS = {"selected": _out_of_mask, "all": _out_of_numerator}
"""How tokens are dropped, by the denominator of the loss."""
