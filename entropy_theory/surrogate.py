"""Surrogates: what is maximised for a token, as a function of its ratio. Which one is the run's choice, no control's.

Each is a function (log_ratio, logp, objective, advantage) -> E, with log_ratio = logp - old_logp and logp with grad,
both 0 where masked, and the objective's advantage, 0 where masked. The factors that are no derivative of theirs are
detached.
"""

import math

import torch
from torch import Tensor

from entropy_theory.records import Objective

HEADROOM = 0.9
"""Ratios stop at this power of their dtype's largest number: at a log-ratio of 79 in float32, of 638 in float64."""


def ppo_clip(log_ratio: Tensor, logp: Tensor, objective: Objective, advantage: Tensor) -> Tensor:
    """min(r A, clip(r, 1 - low, 1 + high) A). Schulman et al. 2017 (arXiv 1707.06347), eq. 7."""
    ratio = ratio_of(log_ratio)
    return torch.minimum(ratio * advantage, in_range(ratio, objective) * advantage)


def dual_clip(limit: float = 3.0):
    """PPO's clip, and for A < 0 no less than `limit` A, so that a punished token's pull stays bounded.

        max(min(r A, clip(r) A), limit A)  where A < 0

    Ye et al. 2020 (arXiv 1912.09729), eq. 5; limit as in verl (`clip_ratio_c`), a ratio > 1.

    Raises: ValueError if limit is not above 1.
    """
    if not limit > 1:
        raise ValueError(f"limit of the dual clip is a ratio and must be above 1, got {limit}")

    def surrogate(log_ratio, logp, objective, advantage):
        plain = ppo_clip(log_ratio, logp, objective, advantage)
        return torch.where(advantage < 0, torch.maximum(plain, limit * advantage), plain)

    return surrogate


def cispo(log_ratio: Tensor, logp: Tensor, objective: Objective, advantage: Tensor) -> Tensor:
    """sg(min(r, 1 + high)) A log pi: the weight is clipped, and no token loses its gradient.

    MiniMax 2025 (arXiv 2506.13585), eqs. 4-5, without a lower clip, as its authors set it.
    """
    weight = torch.minimum(ratio_of(log_ratio), 1 + objective.clip_high).detach()
    return _times(weight * advantage, logp)


def gspo(log_ratio: Tensor, logp: Tensor, objective: Objective, advantage: Tensor) -> Tensor:
    """min(s A, clip(s) A) with the sequence's s = exp(mean_t log r_t) in place of each token's ratio.

        s_t = sg(s) pi_t / sg(pi_t)

    Zheng et al. 2025 (arXiv 2507.18071), eqs. 5-7 and, token by token, 13-14. Its clip distances are small: 3e-4 and
    4e-4 in the paper. A row is a sequence, of the tokens in the objective's mask; the loss should be averaged by
    sequence ("seq-mean-token-mean"), which gives min(s A, clip(s) A) where A is constant in the row.
    """
    mask = objective.mask
    mean = log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    finite = logp.masked_fill(logp == -torch.inf, 0.0)
    # the difference first: it is exactly 0, and the mean keeps all its digits
    return ppo_clip(mean.detach() + (finite - finite.detach()), logp, objective, advantage)


def sapo(positive: float = 1.0, negative: float = 1.05):
    """A (4 / tau) sigmoid(tau (r - 1)): a gate in place of the clip, sharper where A < 0.

    Gao et al. 2025 (arXiv 2511.20347); tau = `positive` where A > 0, `negative` elsewhere, both as in TRL. Its
    derivative by log r is A at r = 1.

    Raises: ValueError if a tau is not positive.
    """
    if not (positive > 0 and negative > 0):
        raise ValueError(f"both tau of SAPO's gate must be positive, got {positive} and {negative}")

    def surrogate(log_ratio, logp, objective, advantage):
        tau = torch.full_like(advantage, negative).masked_fill(advantage > 0, positive)
        # torch.sigmoid rounds a number by its place in the tensor, so that a seed would depend on its neighbours
        gate = 1 / (1 + torch.exp(-tau * (ratio_of(log_ratio) - 1)))
        return advantage * (4 / tau) * gate

    return surrogate


def reinforce(log_ratio: Tensor, logp: Tensor, objective: Objective, advantage: Tensor) -> Tensor:
    """A log pi, without a ratio. Williams 1992."""
    return _times(advantage, logp)


def ratio_of(log_ratio: Tensor) -> Tensor:
    """exp(log_ratio), held at `HEADROOM` short of overflow, where 0 * inf makes the gradient of a silenced token NaN.

    The gradient is the ratio's own there too, as large as the ratio: nothing that ought to be seen is hidden.
    """
    most = HEADROOM * math.log(torch.finfo(log_ratio.dtype).max)
    value = log_ratio.detach()
    return torch.exp(torch.where(value > most, log_ratio - value + most, log_ratio))


def _times(factor: Tensor, logp: Tensor) -> Tensor:
    """factor * logp, 0 where the factor is 0 also if logp is -inf."""
    return torch.where(factor == 0, 0.0, factor * logp)


def in_range(ratio: Tensor, objective: Objective) -> Tensor:
    """clip(ratio, 1 - low, 1 + high)."""
    return torch.clamp(ratio, 1 - objective.clip_low, 1 + objective.clip_high)


SURROGATES = {
    "ppo": ppo_clip,
    "dual_clip": dual_clip(),
    "cispo": cispo,
    "gspo": gspo,
    "sapo": sapo(),
    "reinforce": reinforce,
}
"""By the name a config uses."""
