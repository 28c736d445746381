"""Surrogates: what is maximised for a token, as a function of its ratio. Which one is the run's choice, no control's.

Each is a function (log_ratio, logp, objective, advantage) -> E, with log_ratio = logp - old_logp and logp with grad,
both 0 where masked, and the objective's advantage, 0 where masked. The factors that are no derivative of theirs are
detached.
"""

import torch
from torch import Tensor

from entropy_theory.records import Objective


def ppo_clip(log_ratio: Tensor, logp: Tensor, objective: Objective, advantage: Tensor) -> Tensor:
    """min(r A, clip(r, 1 - low, 1 + high) A). Schulman et al. 2017 (arXiv 1707.06347), eq. 7."""
    ratio = torch.exp(log_ratio)
    return torch.minimum(ratio * advantage, in_range(ratio, objective) * advantage)


def dual_clip(limit: float = 3.0):
    """PPO's clip, and for A < 0 no less than `limit` A, so that a punished token's pull stays bounded.

        max(min(r A, clip(r) A), limit A)  where A < 0

    Ye et al. 2020 (arXiv 1912.09729), eq. 5; limit as in verl (`clip_ratio_c`), a ratio > 1.
    """

    def surrogate(log_ratio, logp, objective, advantage):
        plain = ppo_clip(log_ratio, logp, objective, advantage)
        return torch.where(advantage < 0, torch.maximum(plain, limit * advantage), plain)

    return surrogate


def cispo(log_ratio: Tensor, logp: Tensor, objective: Objective, advantage: Tensor) -> Tensor:
    """sg(min(r, 1 + high)) A log pi: the weight is clipped, and no token loses its gradient.

    MiniMax 2025 (arXiv 2506.13585), eqs. 4-5, without a lower clip, as its authors set it.
    """
    weight = torch.minimum(torch.exp(log_ratio), 1 + objective.clip_high).detach()
    return weight * advantage * logp


def gspo(log_ratio: Tensor, logp: Tensor, objective: Objective, advantage: Tensor) -> Tensor:
    """min(s A, clip(s) A) with the sequence's s = exp(mean_t log r_t) in place of each token's ratio.

        s_t = sg(s) pi_t / sg(pi_t)

    Zheng et al. 2025 (arXiv 2507.18071), eqs. 5-7 and, token by token, 13-14. Its clip distances are small: 3e-4 and
    4e-4 in the paper. A row is a sequence; the loss should be averaged by sequence ("seq-mean-token-mean").
    """
    mask = objective.mask
    mean = log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    log_ratio = mean.detach() + logp - logp.detach()
    return ppo_clip(log_ratio, logp, objective, advantage)


def sapo(positive: float = 1.0, negative: float = 1.05):
    """A (4 / tau) sigmoid(tau (r - 1)): a gate in place of the clip, sharper where A < 0.

    Gao et al. 2025 (arXiv 2511.20347); tau = `positive` where A > 0, `negative` elsewhere, both as in TRL. Its
    derivative by log r is A r at r = 1.
    """

    def surrogate(log_ratio, logp, objective, advantage):
        tau = torch.where(advantage > 0, positive, negative).to(advantage.dtype)
        return advantage * (4 / tau) * torch.sigmoid(tau * (torch.exp(log_ratio) - 1))

    return surrogate


def reinforce(log_ratio: Tensor, logp: Tensor, objective: Objective, advantage: Tensor) -> Tensor:
    """A log pi, without a ratio. Williams 1992."""
    return advantage * logp


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
