"""EntroPIC: praise and blame weighted by proportional-integral control."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from entropy_theory.control import Control, Need, control
from entropy_theory.controller import proportional_integral
from entropy_theory.controls.checks import check_coef, check_target
from entropy_theory.reduce import token_count
from entropy_theory.scope import Scope, scoped

Denominator = Literal["all", "high"]

PRESETS = {
    # the added term is a mean over the likely tokens of a micro-batch only: the fewer there are, the more each weighs
    "code": {"denominator": "high", "scope": "microbatch"},
    "p-only": {"integral": 0.0},  # the authors' ablation
}


def entropic(
    target: float = 0.1,
    threshold: float = 0.95,
    proportional: float = 1.0,
    integral: float = 0.01,
    denominator: Denominator = "all",
    scope: Scope = "minibatch",
) -> Control:
    r"""On tokens more likely than `threshold`, weigh praise by 1 + alpha and blame by 1 - alpha, alpha by PI control.

        e = H - target,    alpha = clip(K_P e + K_I sum e, -1, 1)

    Yang et al. 2025 (EntroPIC, arXiv 2511.15248). Below the target alpha is negative: praise of likely tokens weakens,
    blame of them grows, and entropy rises. It acts while some likely token has A != 0, and saturates at |e| = 1 / K_P.
    Only blame of likely tokens raises entropy, while blame of rare ones goes on lowering it: near a policy of one
    likely action, of success rate p, and a next best of q, alpha = -1 raises it only while 2 p (1 - p) > p - q.

    Deviations from the authors' code: alpha follows the minibatch before, not the entropy of the micro-batch at hand;
    the sum is held while it would push further beyond the clip; and the added -alpha r |A| lies inside PPO's clip,
    which only a stale batch shows. Their term is a mean over the likely tokens only, so that alpha counts N / N_likely
    times: denominator "high". The theorem of the paper is unverified.

    Args:
      target: entropy to hold, nats, > 0.
      threshold: probability of the sampled token from which on it counts as likely, in (0, 1). In a bandit or CartPole
        few tokens exceed the default early on.
      proportional, integral: K_P and K_I, per nat, >= 0.
      denominator: tokens that share the added term: all valid ones, or the likely ones.
      scope: tokens counted by the denominator "high": of the minibatch, or of each micro-batch as in the authors' code.
    Raises: ValueError if target is not positive, threshold is outside (0, 1), a gain is negative, denominator or scope
      is unknown, or, when a run is built, the actions cannot have so much entropy.
    """
    check_actions = check_target("entropic.target", target)
    if not 0 < threshold < 1:
        raise ValueError(f"entropic.threshold must lie in (0, 1), got {threshold}")
    check_coef("entropic.proportional", proportional)
    check_coef("entropic.integral", integral)
    if denominator not in DENOMINATORS:
        raise ValueError(f"entropic.denominator must be one of {', '.join(DENOMINATORS)}, got {denominator!r}")
    rule = proportional_integral(target, proportional, integral)

    def edit(objective, batch, state):
        mask = objective.mask
        likely = mask & (batch.logp > math.log(threshold))
        sign = torch.sign(torch.where(likely, objective.advantage, 0.0))
        alpha = rule.value(state) * DENOMINATORS[denominator](mask, likely)
        return replace(objective, weight=objective.weight * (1 + alpha.to(sign.dtype)[..., None, None] * sign))

    return control(
        scoped("entropic", scope, edit),
        init=rule.init,
        advance=rule.advance,
        needs=NEEDS[denominator],
        check_actions=check_actions,
    )


DENOMINATORS: dict[str, Callable[[Tensor, Tensor], Tensor | float]] = {
    "all": lambda mask, likely: 1.0,
    # in float64: two integers divide to float32
    "high": lambda mask, likely: token_count(mask).double() / token_count(likely),
}
"""How often alpha counts, from the valid and the likely tokens."""

NEEDS: dict[str, set[Need]] = {"all": set(), "high": {Need.SAMPLES}}
"""A count of tokens compares them."""
