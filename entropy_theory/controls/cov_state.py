"""Control by the exact covariance of each state."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from entropy_theory.control import Control, Need, control
from entropy_theory.controls.checks import check_choice
from entropy_theory.controls.effect import effects, ordered_sum

Rule = Literal["drop", "reweight"]


def cov_state(keep: float = 0.5, rule: Rule = "reweight") -> Control:
    r"""Take weight from the tokens that cost most entropy, until the step is predicted to lose a share `keep` of it.

        e_i = -w_i (pi_i c_i - C_i),    P = sum_i e_i,    weights f_i with sum_i f_i e_i = keep P where P < 0
        "drop":     f = 0 for the most negative e_i, one after another, and a fraction for the last of them
        "reweight": f_i = min(1, tau / |e_i|) where e_i < 0: no token costs more than a common tau

    e_i is the exact first-order effect of a sampled token on its own state's entropy, as the loss pushes it
    (`effect.effects`). Clip-Cov and KL-Cov rank tokens by a covariance over the minibatch instead, which also holds
    what differs between states and is largest for rare, punished tokens. Of this project; published nowhere. Both rules
    are closed forms (a sort and a cumulative sum), so the target is met to rounding. Where entropy is not predicted to
    fall nothing changes.

    The prediction is that of a table of logits, a mean over tokens and plain gradient ascent; shared parameters, Adam
    and steps too long for first order all make the real change another one.

    Args:
      keep: share of the predicted loss that is left, in [0, 1]; 1 changes nothing.
      rule: "drop" the costliest tokens, or "reweight" all that cost more than one level.
    Raises: ValueError if keep is outside [0, 1] or rule is unknown.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"cov_state.keep must lie in [0, 1], got {keep}")
    check_choice("cov_state.rule", rule, RULES)
    factor = RULES[rule]

    def edit(objective, batch, state):
        effect = effects(batch, objective)
        surplus = (1 - keep) * (-ordered_sum(effect)).clamp(min=0)
        weight = objective.weight * factor((-effect).clamp(min=0), surplus).to(objective.weight.dtype)
        return replace(objective, weight=weight)

    return control(edit, needs={Need.SAMPLES, Need.COLLISION})


def drop(cost: Tensor, surplus: Tensor) -> Tensor:
    """Factors that take `surplus` off the sum of the costs, the largest cost first.

    Args:
      cost: E, >= 0; surplus: [...], at most the sum of the costs.
    Returns: E, in [0, 1].
    """
    ordered, order = cost.flatten(-2).sort(dim=-1, descending=True, stable=True)
    before = torch.nn.functional.pad(ordered.cumsum(-1), (1, -1))
    share = (surplus.unsqueeze(-1) - before) / torch.where(ordered > 0, ordered, 1.0)
    factor = torch.where(ordered > 0, 1 - share.clamp(0, 1), 1.0)
    return torch.empty_like(factor).scatter(-1, order, factor).view(cost.shape)


def level(cost: Tensor, surplus: Tensor) -> Tensor:
    r"""Factors min(1, tau / cost) that take `surplus` off the sum of the costs.

    With m_1 >= m_2 >= ... the costs, tau = max_k (m_1 + ... + m_k - surplus) / k: capping the k largest takes off too
    little at any other k.

    Args and return: as `drop`.
    """
    ordered = cost.flatten(-2).sort(dim=-1, descending=True).values
    count = torch.arange(1, ordered.shape[-1] + 1, device=cost.device)
    tau = ((ordered.cumsum(-1) - surplus.unsqueeze(-1)) / count).amax(-1).clamp(min=0)[..., None, None]
    return torch.where(cost > tau, tau / torch.where(cost > 0, cost, 1.0), 1.0)


RULES = {"drop": drop, "reweight": level}
"""By the name of the rule."""
