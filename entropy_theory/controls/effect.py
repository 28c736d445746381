"""First-order effect on entropy of the tokens of a minibatch, as its loss pushes them."""

import torch
from torch import Tensor

from entropy_theory.loss import clipped
from entropy_theory.records import Batch, Objective
from entropy_theory.theorems import sampled_theorem_1


def push(batch: Batch, objective: Objective) -> Tensor:
    r"""How hard the surrogate pulls the log-probability of each sampled action up.

        w_i = weight_i r_i A_i,    0 where PPO's clip has silenced the token or the mask is off

    PPO's clipped surrogate is taken for granted; penalties and the entropy bonus are left out.

    Returns: E float64, reward units.
    """
    active = objective.mask & ~clipped(batch, objective)
    logp, old_logp, advantage, weight = (
        torch.where(active, x, 0.0).double()
        for x in (batch.logp, batch.old_logp, objective.advantage, objective.weight)
    )
    return torch.where(active, weight * torch.exp(logp - old_logp) * advantage, 0.0)


def effects(batch: Batch, objective: Objective) -> Tensor:
    r"""Entropy effect of each token under a policy-gradient step, nats per unit of step size.

        e_i = -w_i (pi_i c_i - C_i),    c = log pi + H

    w is `push`, H the entropy and C = Cov_pi(log pi, pi) of the token's state (`theorems.sampled_theorem_1`). With a
    table of logits, a mean over tokens as loss and plain gradient ascent, step_size * mean_i e_i is the first-order
    change of the entropy of the state, and of the sum over states where there are several.

    Args:
      batch: with `collision`.
    Returns: E float64, 0 where masked or silenced.
    """
    pushed = push(batch, objective)
    # a token that has become impossible is not pushed, and its log-probability of -inf would make 0 * inf of it
    logp, entropy, collision = (
        torch.where(pushed != 0, x, 0.0).double() for x in (batch.logp, batch.entropy, batch.collision)
    )
    return sampled_theorem_1(logp, entropy, collision, pushed)


def ordered_sum(values: Tensor) -> Tensor:
    """Sum over rows and steps in order of size, [...]: the same bits for any order of rows and stack of replicas."""
    return values.flatten(-2).sort(dim=-1).values.cumsum(-1)[..., -1]
