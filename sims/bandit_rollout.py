"""Rollouts of the bandit world: sampled pulls or sequences, or all of them with their probabilities."""

from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory import advantage as group_advantage
from entropy_theory.draw import uniform
from entropy_theory.records import Batch
from entropy_theory.softmax import finite_log_probs
from sims.bandit_config import BanditConfig
from sims.bandit_exact import action_values, all_sequences, expected, sequence_probability
from sims.bandit_problem import Problem


class Rollout(NamedTuple):
    """Pulls or sequences of one rollout, E = [seeds, problems, rows, steps].

    state, arm: E, int64; mask: bool E, the tokens that exist
    old_logp, advantage: E, the former under the policy that sampled
    reward, group: [seeds, problems, rows]; rows with one group id started in the same drawn context
    share: E, what each token stands for in an enumeration, of mean 1 over the tokens; None for samples
    """

    state: Tensor
    arm: Tensor
    mask: Tensor
    old_logp: Tensor
    advantage: Tensor
    reward: Tensor
    group: Tensor
    share: Tensor | None


def at_states(table: Tensor, state: Tensor) -> Tensor:
    """Entries [E] of a table over states [seeds, problems, states]."""
    if table.shape[-1] == 1:  # as gather would, without looking anything up
        return table.unsqueeze(-1).expand(state.shape)
    return table.gather(-1, state.flatten(-2)).view(state.shape)


def at_tokens(table: Tensor, rollout_state: Tensor, arm: Tensor) -> Tensor:
    """Entries [E] of a table over states and arms [seeds, problems, states, arms]."""
    cell = arm if table.shape[-2] == 1 else rollout_state * table.shape[-1] + arm
    return table.flatten(-2).gather(-1, cell.flatten(-2)).view(arm.shape)


# --- rollouts -----------------------------------------------------------------------------------------------------


def _choose(cumulative: Tensor, draw: Tensor) -> Tensor:
    """Arms for uniform numbers [..., n] from cumulative probabilities [..., arms]."""
    last = cumulative[..., -1:]
    return torch.searchsorted(cumulative, draw * last, right=True).clamp(max=cumulative.shape[-1] - 1)


def _first_states(config: BanditConfig, problem: Problem, draw: Tensor) -> Tensor:
    """The contexts of a rollout, [seeds, problems, contexts]: every one once, or as many as are drawn."""
    if not draw.shape[-1]:
        return problem.start.nonzero().squeeze(-1).expand(*problem.key.shape, -1)
    return _choose(problem.start.cumsum(-1).expand(*problem.key.shape, -1).contiguous(), draw)


def pull(config: BanditConfig, problem: Problem, policy: Tensor, step: int) -> Rollout:
    """Sample pulls or sequences from softmax(policy), `config.samples` in each context, with Bernoulli rewards."""
    drawn = config.groups if config.family == "contextual" else 0
    contexts = drawn or int((problem.start > 0).sum())
    rows, arms = contexts * config.samples, policy.shape[-1]
    draws = uniform(problem.key, torch.full_like(problem.key, step), rows * (problem.depth + 1) + drawn)
    which, luck, later, context = draws.split([rows, rows, rows * (problem.depth - 1), drawn], dim=-1)
    cumulative = policy.softmax(-1).cumsum(-1)
    first = _first_states(config, problem, context)
    here = cumulative if policy.shape[-2] == 1 else _rows_of(cumulative, first)
    states = [first.repeat_interleave(config.samples, -1)]
    chosen = [_choose(here, which.unflatten(-1, (contexts, -1))).flatten(-2)]
    masks = [torch.ones_like(chosen[0], dtype=torch.bool)]
    last = states[0] * arms + chosen[0]
    for draw in later.split(rows, dim=-1) if problem.depth > 1 else ():
        state = problem.child.flatten()[last]
        going = state >= 0
        masks.append(going)
        states.append(state.clamp(min=0))
        chosen.append(_choose(_rows_of(cumulative, states[-1]), draw.unsqueeze(-1)).squeeze(-1))
        last = torch.where(going, states[-1] * arms + chosen[-1], last)
    chance = problem.reward.flatten(-2).gather(-1, last)
    reward = (luck < chance).to(policy.dtype)
    group = torch.arange(contexts).repeat_interleave(config.samples).expand_as(last)
    state, arm, mask = (torch.stack(parts, -1) for parts in (states, chosen, masks))
    arm = arm.masked_fill(~mask, 0)
    advantage = ADVANTAGES[config.advantage](config, reward, group).unsqueeze(-1).expand(mask.shape)
    old_logp = at_tokens(finite_log_probs(policy)[0], state, arm).masked_fill(~mask, 0.0)
    return Rollout(state, arm, mask, old_logp, advantage, reward, group, None)


def _rows_of(table: Tensor, state: Tensor) -> Tensor:
    """Rows [..., n, arms] of a table [..., states, arms] at states [..., n]."""
    return table.gather(-2, state.unsqueeze(-1).expand(*state.shape, table.shape[-1]))


ADVANTAGES = {
    "grpo": lambda config, reward, group: group_advantage.grpo(reward, group),
    "rloo": lambda config, reward, group: group_advantage.rloo(reward, group),
    "reward": lambda config, reward, group: reward - config.baseline,
}


def enumerate_sequences(config: BanditConfig, problem: Problem, policy: Tensor, step: int) -> Rollout:
    """Every arm or sequence once, each with its share, so that sums over tokens are exact expectations.

    The share of a sequence is its probability * tokens enumerated / expected length: with it the mean over tokens is
    E[sum over the tokens of a sequence] / E[length], the limit of a token mean over many samples.
    """
    sequences = all_sequences(problem)
    probability = policy.softmax(-1)
    weight = sequence_probability(problem, sequences, probability)
    tokens = int(sequences.mask.sum())
    share = weight * tokens / (weight * sequences.mask.sum(-1)).sum(-1, keepdim=True)
    shape = (*weight.shape, problem.depth)
    state, arm, mask = (part.expand(shape) for part in sequences)
    last = sequences.mask.sum(-1, keepdim=True) - 1
    cell = (sequences.state * policy.shape[-1] + sequences.arm).gather(-1, last).squeeze(-1)
    reward = problem.reward.flatten(-2)[..., cell]
    first = sequences.state[:, 0]
    if config.advantage == "reward":
        advantage = reward - config.baseline
    else:
        backup = expected(problem, probability)
        advantage = reward - backup(action_values(problem, backup))[..., first]
    old_logp = at_tokens(finite_log_probs(policy)[0], state, arm).masked_fill(~mask, 0.0)
    wide = [x.unsqueeze(-1).expand(shape) for x in (advantage, share)]
    return Rollout(state, arm, mask, old_logp, wide[0], reward, first.expand_as(reward), wide[1])


ROLLOUTS = {"sampled": pull, "exact": enumerate_sequences}


# --- records ------------------------------------------------------------------------------------------------------


def make_batch(policy: Tensor, rollout: Rollout) -> Batch:
    """The record of these pulls under the policy logits [seeds, problems, states, arms] as they are now."""
    logp, entropies = token_tables(policy, rollout)
    return batch_of(logp, entropies, rollout)


def token_tables(policy: Tensor, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy at each token, differentiable, E."""
    logp, probability = finite_log_probs(policy)
    entropies = -(probability * logp).sum(-1)
    return at_tokens(logp, rollout.state, rollout.arm), at_states(entropies, rollout.state)


def batch_of(logp: Tensor, entropies: Tensor, rollout: Rollout) -> Batch:
    """The batch of a rollout whose tokens have these statistics."""
    return Batch(
        logp=logp,
        old_logp=rollout.old_logp,
        advantage=rollout.advantage,
        mask=rollout.mask,
        entropy=entropies,
        outcome=rollout.reward,
        group=rollout.group,
    )
