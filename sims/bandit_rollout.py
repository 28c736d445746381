"""Rollouts of the bandit world: sampled pulls or sequences, or all of them with their probabilities."""

from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory.advantage import ADVANTAGES
from entropy_theory.control import Control, Need
from entropy_theory.draw import uniform
from entropy_theory.records import Batch
from entropy_theory.softmax import finite_log_probs
from sims.bandit_config import BanditConfig
from sims.bandit_exact import action_values, expected, sequence_probability, start_value
from sims.bandit_form import Problem, logits_of


class Rollout(NamedTuple):
    """Pulls or sequences of one rollout, E = [seeds, problems, rows, steps].

    state, arm: E, int64; mask: bool E, the tokens that exist
    old_logp, advantage: E, the former under the policy that sampled
    reward, group: [seeds, problems, rows]; rows with one group id started in the same drawn context
    share: E, what a token counts for where each kind stands once, of mean 1 over the tokens; None for single samples
    ref_logp, proxy_logp: as in `Batch`, E; None unless the control needs them
    """

    state: Tensor
    arm: Tensor
    mask: Tensor
    old_logp: Tensor
    advantage: Tensor
    reward: Tensor
    group: Tensor
    share: Tensor | None
    ref_logp: Tensor | None = None
    proxy_logp: Tensor | None = None


class Tables(NamedTuple):
    """Statistics of a policy: logp, probability [seeds, problems, states, arms], entropy [seeds, problems, states]."""

    logp: Tensor
    probability: Tensor
    entropy: Tensor


def tables_of(policy: Tensor) -> Tables:
    """The statistics of policy logits, differentiable; log-probabilities of impossible arms are 0."""
    logp, probability = finite_log_probs(policy)
    return Tables(logp, probability, -(probability * logp).sum(-1))


def at_states(table: Tensor, state: Tensor) -> Tensor:
    """Entries [E] of a table over states [seeds, problems, states]."""
    if table.shape[-1] == 1:  # as gather would, without looking anything up
        return table.unsqueeze(-1).expand(state.shape)
    return table.gather(-1, state.flatten(-2)).view(state.shape)


def at_tokens(table: Tensor, rollout_state: Tensor, arm: Tensor) -> Tensor:
    """Entries [E] of a table over states and arms [seeds, problems, states, arms]."""
    cell = arm if table.shape[-2] == 1 else rollout_state * table.shape[-1] + arm
    return table.flatten(-2).gather(-1, cell.flatten(-2)).view(arm.shape)


CONSTANT = ("reward", "reinforce", "reinforce++")
"""Advantages that subtract a constant from every reward, those of `WHITENED` before they are whitened."""
WHITENED = ("reinforce++", "reinforce++_baseline")
"""Advantages that are centred over all tokens at last."""


def rows_of(table: Tensor, state: Tensor) -> Tensor:
    """Rows E + [arms] of a table [seeds, problems, states, arms] at states E, which may have further axes."""
    index = state.flatten(2).unsqueeze(-1)
    return table.gather(-2, index.expand(*index.shape[:-1], table.shape[-1])).view(*state.shape, -1)


# --- rollouts -----------------------------------------------------------------------------------------------------


def _choose(cumulative: Tensor, draw: Tensor) -> Tensor:
    """Arms for uniform numbers [..., n] from cumulative probabilities [..., arms]."""
    last = cumulative[..., -1:]
    return torch.searchsorted(cumulative, draw * last, right=True).clamp(max=cumulative.shape[-1] - 1)


def first_states(config: BanditConfig, problem: Problem, step: int) -> Tensor:
    """The contexts of a rollout, [seeds, problems, contexts]: every one once, or as many as are drawn."""
    if not config.drawn_contexts:
        return problem.start.nonzero().squeeze(-1).expand(*problem.key.shape, -1)
    draw = uniform(problem.key, torch.full_like(problem.key, step), config.drawn_contexts)
    return _choose(problem.start.cumsum(-1).expand(*problem.key.shape, -1).contiguous(), draw)


def pull(config: BanditConfig, problem: Problem, tables: Tables, step: int) -> Rollout:
    """Sample pulls or sequences from a policy, `config.samples` in each context, with Bernoulli rewards."""
    first = first_states(config, problem, step)
    drawn, contexts, arms = config.drawn_contexts, first.shape[-1], config.arms
    rows = contexts * config.samples
    draws = uniform(problem.key, torch.full_like(problem.key, step), drawn + rows * (problem.depth + 1))
    _, which, luck, later = draws.split([drawn, rows, rows, rows * (problem.depth - 1)], dim=-1)
    cumulative = tables.probability.cumsum(-1)
    states = [first.repeat_interleave(config.samples, -1)]
    chosen = [_choose(rows_of(cumulative, first), which.unflatten(-1, (contexts, -1))).flatten(-2)]
    masks = [torch.ones_like(chosen[0], dtype=torch.bool)]
    last = states[0] * arms + chosen[0]
    for draw in later.split(rows, dim=-1) if problem.depth > 1 else ():
        state = problem.child.flatten()[last]
        going = state >= 0
        masks.append(going)
        states.append(state.clamp(min=0))
        chosen.append(_choose(rows_of(cumulative, states[-1]), draw.unsqueeze(-1)).squeeze(-1))
        last = torch.where(going, states[-1] * arms + chosen[-1], last)
    reward = (luck < problem.reward.flatten(-2).gather(-1, last)).to(tables.logp.dtype)
    group = torch.arange(contexts).repeat_interleave(config.samples).expand_as(last)
    state, arm, mask = (torch.stack(parts, -1) for parts in (states, chosen, masks))
    arm = arm.masked_fill(~mask, 0)
    advantage = advantage_of(config.advantage, config.baseline, reward, group, mask)
    old_logp = at_tokens(tables.logp, state, arm)
    return Rollout(state, arm, mask, old_logp, advantage, reward, group, None)


def advantage_of(name: str, baseline: float, reward: Tensor, group: Tensor, mask: Tensor) -> Tensor:
    """Advantage of each token, E: of `advantage.ADVANTAGES`, or "reward": the reward less a constant baseline."""
    if name == "reward":
        return (reward - baseline).unsqueeze(-1).expand(mask.shape)
    return ADVANTAGES[name](reward, group, mask)


def enumerate_sequences(config: BanditConfig, problem: Problem, tables: Tables, step: int) -> Rollout:
    """Every arm or sequence once, each with its share, so that sums over tokens are exact expectations.

    The share of a sequence is its probability * tokens enumerated / expected length: with it the mean over tokens is
    E[sum over the tokens of a sequence] / E[length], the limit of a token mean over many samples.
    """
    sequences = problem.sequences
    weight = sequence_probability(problem, sequences, tables.probability)
    tokens = int(sequences.mask.sum())
    share = weight * tokens / (weight * sequences.mask.sum(-1)).sum(-1, keepdim=True)
    shape = (*weight.shape, problem.depth)
    state, arm, mask = (part.expand(shape) for part in sequences)
    last = sequences.mask.sum(-1, keepdim=True) - 1
    cell = (sequences.state * config.arms + sequences.arm).gather(-1, last).squeeze(-1)
    reward = problem.reward.flatten(-2)[..., cell]
    first = sequences.state[:, 0]
    advantage = _exact_advantage(config, problem, tables, reward, first)
    old_logp = at_tokens(tables.logp, state, arm)
    advantage, share = (x.unsqueeze(-1).expand(shape) for x in (advantage, share))
    share = share.masked_fill(~mask, 0.0)
    if config.advantage in WHITENED:
        advantage = advantage - ((share * advantage).sum((-2, -1)) / tokens)[..., None, None]
    return Rollout(state, arm, mask, old_logp, advantage, reward, first.expand_as(reward), share)


def _exact_advantage(config: BanditConfig, problem: Problem, tables: Tables, reward: Tensor, first: Tensor) -> Tensor:
    """Reward of each sequence less what the mean that a sampled advantage subtracts tends to, [..., sequences].

    That is the value of the first state where the mean is over a context, or the policy's where it is over all. No
    deviation divides it: rewards are expected ones here, and their spread is not that of drawn rewards.
    """
    if config.advantage in CONSTANT:
        return reward - (config.baseline if config.advantage == "reward" else 0.0)
    backup = expected(problem, tables.probability)
    value = backup(action_values(problem, backup))
    if config.advantage == "reinforce_baseline":
        return reward - start_value(problem, value).unsqueeze(-1)
    return reward - value[..., first]


ROLLOUTS = {"sampled": pull, "exact": enumerate_sequences}


# --- records ------------------------------------------------------------------------------------------------------


def with_references(control: Control, problem: Problem, policy: Tensor, rollout: Rollout) -> Rollout:
    """The rollout with the log-probabilities its control needs, under the reference and the filtered policy.

    The reference is the policy with the initial parameters, at temperature 1: a function of the settings alone.

    Args:
      policy: logits of the policy that sampled, [seeds, problems, states, arms].
    """
    found = {}
    if Need.REF_LOGP in control.needs:
        found["ref_logp"] = control.activate(logits_of(problem, problem.parameters))
    if Need.PROXY_LOGP in control.needs:
        found["proxy_logp"] = control.proxy(policy)
    return rollout._replace(
        **{name: at_tokens(x.log_softmax(-1), rollout.state, rollout.arm) for name, x in found.items()}
    )


def make_batch(tables: Tables, rollout: Rollout, needs: frozenset[Need] = frozenset()) -> Batch:
    """The record of a rollout under the policy as it is now; carries the gradient of `tables`."""
    collision = at_states(collisions(tables), rollout.state) if Need.COLLISION in needs else None
    return Batch(
        logp=at_tokens(tables.logp, rollout.state, rollout.arm),
        old_logp=rollout.old_logp,
        advantage=rollout.advantage,
        mask=rollout.mask,
        entropy=at_states(tables.entropy, rollout.state),
        outcome=rollout.reward,
        group=rollout.group,
        ref_logp=rollout.ref_logp,
        proxy_logp=rollout.proxy_logp,
        collision=collision,
    )


def collisions(tables: Tables) -> Tensor:
    """`softmax.collision` of each state, sum_a pi_a^2 (log pi_a + H), [seeds, problems, states], nats."""
    return (tables.probability.square() * (tables.logp + tables.entropy.unsqueeze(-1))).sum(-1)
