"""The one differentiable function of the package. Controls never touch it; they edit its `Objective`."""

import torch
from torch import Tensor

from entropy_theory.records import Batch, Objective, Penalty
from entropy_theory.surrogate import in_range, ppo_clip

DIVERGENCES = {
    "abs": lambda x: x.abs(),
    "k1": lambda x: x,
    "k2": lambda x: x.square() / 2,
    "k3": lambda x: torch.exp(-x) + x - 1,
}
"""Per-token divergences of x = logp - target. As a loss term under on-policy sampling, the expected gradient of
k1 is 0, of k2 that of KL(pi || target), of k3 that of KL(target || pi) (docs/theory.md)."""


def token_loss(logp: Tensor, entropy: Tensor, batch: Batch, objective: Objective, surrogate=ppo_clip) -> Tensor:
    r"""Loss of every token, 0 where masked.

        -weight surrogate - entropy_coef H + sum_penalties coef D(logp, target)

    The surrogate is min(r A, clip(r, 1 - low, 1 + high) A) with r = exp(logp - old_logp) (Schulman et al. 2017, arXiv
    1707.06347, eq. 7) or another of `surrogate.SURROGATES`; the rest is what a control may edit.
    The log-ratio is not clamped short of overflow (`surrogate.HEADROOM`): a clamp would change gradients silently.

    Args:
      logp, entropy: E, nats, of the policy being optimised, with grad.
      batch, objective: records without grad.
    Returns: E. Sum it by the counts of the *whole* minibatch (`aggregation`, `minibatch_loss`).
    """
    mask = objective.mask
    logp = torch.where(mask, logp, 0.0)
    log_ratio = logp - torch.where(mask, batch.old_logp, 0.0)
    advantage = torch.where(mask, objective.advantage, 0.0)
    gain = surrogate(log_ratio, logp, objective, advantage)
    loss = -objective.weight * gain - objective.entropy_coef * torch.where(mask, entropy, 0.0)
    for penalty in objective.penalties:
        loss = loss + _penalty_loss(logp, penalty, mask)
    return torch.where(mask, loss, 0.0)


def clipped(batch: Batch, objective: Objective) -> Tensor:
    """Tokens that PPO's clip has silenced: clip(r) A < r A, so the surrogate's gradient is 0. Bool, E.

    Whatever stands at masked tokens gives whatever answer there.
    """
    ratio = torch.exp(batch.logp - batch.old_logp)
    return ratio * objective.advantage > in_range(ratio, objective) * objective.advantage


def _penalty_loss(logp: Tensor, penalty: Penalty, mask: Tensor) -> Tensor:
    active = mask & (penalty.coef != 0)
    # where a penalty is off its target may be -inf or NaN; 0 * inf is NaN, also in the gradient
    target = torch.where(active, penalty.target, logp.detach())
    return torch.where(active, penalty.coef, 0.0) * DIVERGENCES[penalty.divergence](logp - target)


def minibatch_loss(loss: Tensor, count: Tensor, share: Tensor | None = None) -> Tensor:
    """Scalar to differentiate: token losses over the minibatch's count per replica, replicas summed.

    Args:
      loss: E, of the minibatch or of a micro-batch of it.
      count, share: of the whole minibatch, as an `aggregation` gives them: [...], and what each token counts for, E
        (None: 1), cut as the loss is. By default count is the number of valid tokens (`reduce.token_count`). Counts
        of the whole minibatch make the gradient independent of how it is split into micro-batches.
    """
    loss = loss if share is None else loss * share.to(loss.dtype)
    return (loss.sum((-2, -1)) / count).sum()


def score_coefficient(loss: Tensor, logp: Tensor) -> Tensor:
    r"""Effective advantage -d loss / d logp of each token, E: how hard a step pushes on the sampled action.

    One number that compares all controls and worlds; for the plain surrogate at ratio 1 it is the advantage.
    The entropy term is not part of it (it acts on the distribution, not on the sampled action).
    """
    (gradient,) = torch.autograd.grad(loss.sum(), logp, retain_graph=True)
    return -gradient
