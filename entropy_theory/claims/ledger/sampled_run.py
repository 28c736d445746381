"""A whole run of a control on sampled one-state problems, small enough for a check."""

import torch
from torch import Tensor

from entropy_theory.control import Control
from entropy_theory.draw import uniform
from entropy_theory.loss import minibatch_loss, token_loss
from entropy_theory.records import Batch, Measurement, Objective
from entropy_theory.reduce import token_count
from entropy_theory.softmax import entropy


def pulled(logits: Tensor, number: int, seed: int, step: int) -> Tensor:
    """`number` arms drawn from softmax(logits) [runs, actions] by inverting its distribution, [runs, number, 1]."""
    seeds = seed + torch.arange(len(logits))
    draws = uniform(seeds, torch.full_like(seeds, step), number)
    below = draws.unsqueeze(-1) >= logits.softmax(-1).cumsum(-1).unsqueeze(-2)
    return below.sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)


def sampled_run(
    logits: Tensor, reward: Tensor, control: Control, updates: int, pulls: int, step_size: float, seed: int
) -> Tensor:
    """Entropy of the policies before each update and after the last, [updates + 1, runs], nats.

    Each update draws its own minibatch, so that every ratio is 1, and descends the edited objective's loss once.

    Args:
      logits, reward: [runs, actions], one problem a run; the advantage is reward - E_pi[reward].
      updates: their number; pulls: per update and run; step_size: eta; seed: of the draws.
    """
    state, entropies = control.init(torch.zeros(len(logits))), []
    for update in range(updates):
        before = entropy(logits)
        entropies.append(before)
        arms = pulled(logits, pulls, seed, update)
        z = logits.clone().requires_grad_()
        logp = z.log_softmax(-1).gather(-1, arms.squeeze(-1)).unsqueeze(-1)
        batch = _record(logits, reward, arms, logp.detach())
        objective = control.edit(Objective.from_batch(batch), batch, state)
        loss = token_loss(logp, batch.entropy, batch, objective)
        (gradient,) = torch.autograd.grad(minibatch_loss(loss, token_count(objective.mask)), z)
        logits, state = logits - step_size * gradient, control.advance(state, Measurement(before))
    return torch.stack([*entropies, entropy(logits)])


def _record(logits: Tensor, reward: Tensor, arms: Tensor, logp: Tensor) -> Batch:
    advantage = reward - (logits.softmax(-1) * reward).sum(-1, keepdim=True)
    earned = reward.gather(-1, arms.squeeze(-1))
    return Batch(
        logp=logp,
        old_logp=logp,
        advantage=advantage.gather(-1, arms.squeeze(-1)).unsqueeze(-1),
        mask=torch.ones_like(arms, dtype=torch.bool),
        entropy=entropy(logits)[:, None, None].expand(arms.shape),
        outcome=earned.clamp(0, 1),
        group=torch.zeros_like(arms.squeeze(-1)),
    )
