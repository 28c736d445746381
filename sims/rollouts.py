"""The two kinds of rollout, and what each gives to learn from.

Segments: so many steps of every environment, episodes going on from one rollout to the next; a row is a transition.
Episodes: `groups` first states, `group_size` episodes from each, played to their end; a row is an episode, padded to
the longest that the environment allows, so that no seed's numbers depend on another's lengths.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory.advantage import ADVANTAGES
from entropy_theory.control import Need
from entropy_theory.draw import uniform
from sims.cartpole_config import CartPoleConfig
from sims.cartpole_env import Environments, Rollout, make_envs, outcomes, restart
from sims.engine import Head
from sims.environments import ENVIRONMENTS
from sims.learner import ACTIONS, RESETS, SHUFFLE, Learner, stream_keys
from sims.networks import Networks
from sims.ppo import Transitions, gae, minibatch_indices, normalise


class Played(NamedTuple):
    """A rollout to learn from: transitions, the sampling policy's entropy at each, E, and the policy's head."""

    rollout: Rollout
    transitions: Transitions
    entropies: Tensor
    head: Head


def new_envs(config: CartPoleConfig) -> Environments:
    """All environments of a run at the beginning; in a draw key the number of the first state sits above the stream."""
    keys = stream_keys(config, RESETS)[:, None] + (torch.arange(config.starts) << 40)
    return make_envs(config.env, keys.repeat_interleave(config.copies // config.starts, dim=1))


def collect(learner: Learner, envs: Environments, head: Head, number: int, steps: int) -> Rollout:
    """Let the policy act for so many steps in every environment."""
    config = learner.config
    keys = stream_keys(config, ACTIONS)
    draws = uniform(keys, torch.full_like(keys, number), config.copies * steps)
    draws = draws.view(config.seeds, config.copies, steps)
    return learner.engine.collect(envs, learner.networks, head, draws, getattr(torch, config.dtype))


# --- segments -------------------------------------------------------------------------------------------------------


def play_segments(learner: Learner, envs: Environments, head: Head, number: int) -> Rollout:
    """`config.steps` steps of every environment."""
    return collect(learner, envs, head, number, learner.config.steps)


@torch.no_grad()
def transitions_of_segments(learner: Learner, rollout: Rollout, head: Head) -> tuple[Transitions, Tensor]:
    """Generalised advantages and the sampling policy's log-probabilities; with its entropy at every state, E.

    With `normalise = "rollout"` the advantages are normalised over the valid transitions of each seed.
    """
    config, mask = learner.config, rollout.mask
    out = learner.engine.evaluate(learner.networks, rollout.observation.flatten(1, 2))
    shape = rollout.observation.shape[1:3]
    value = out.value.unflatten(1, shape)
    policy = head.policy(out.logits).unflatten(1, shape)[:, :, :-1].flatten(1, 2)
    old_logp, entropies = learner.engine.statistics(policy, rollout.action.flatten(1, 2))
    # where the time limit counts as an end, nothing is expected after it
    terminated = rollout.terminated if config.bootstrap_truncated else rollout.ended
    advantage = gae(rollout.reward, value, terminated, rollout.truncated, config.gamma, config.gae_lambda)
    rows = torch.arange(mask[0].numel())
    steps = Transitions(
        rollout.observation[:, :, :-1],
        rollout.action,
        mask,
        old_logp.view(mask.shape),
        normalise(advantage, mask) if config.normalise == "rollout" else advantage,
        advantage + value[..., :-1],
        value[..., :-1],
        outcomes(rollout, ENVIRONMENTS[config.env]),
        rows.expand(config.seeds, -1).view(mask.shape),  # every row on its own: segments are not compared
    )
    flat = steps.map(lambda field: field.flatten(1, 2))
    tokens = flat.map(lambda field: field.unsqueeze(2))
    return tokens._replace(outcome=flat.outcome, group=flat.group), entropies.unsqueeze(-1)


def shuffled_rows(config: CartPoleConfig, number: int) -> Iterator[Tensor]:
    """Rows of the minibatches of each epoch of rollout `number`, [minibatches, seeds, rows]."""
    return minibatch_indices(
        stream_keys(config, SHUFFLE), number, config.rollout_size, config.epochs, config.minibatches
    )


# --- episodes -------------------------------------------------------------------------------------------------------


def play_episodes(learner: Learner, envs: Environments, head: Head, number: int) -> Rollout:
    """One episode in every environment, those of a group from one first state; what follows its end is masked."""
    restart(envs, number)
    rollout = collect(learner, envs, head, number, envs.kind.max_steps)
    ended = rollout.ended
    during = (ended.cumsum(-1) - ended.long()) == 0
    return rollout._replace(
        mask=rollout.mask & during,
        reward=rollout.reward.masked_fill(~during, 0.0),
        terminated=rollout.terminated & during,
        truncated=rollout.truncated & during,
    )


@torch.no_grad()
def transitions_of_episodes(learner: Learner, rollout: Rollout, advantage: Tensor, head: Head) -> tuple:
    """Transitions with this advantage (E) and the sampling policy's entropy at every state, E."""
    config, mask = learner.config, rollout.mask
    observation = rollout.observation[:, :, :-1]
    policy = head.policy(learner.engine.evaluate(learner.networks, observation.flatten(1, 2)).logits)
    statistics = learner.engine.statistics(policy, rollout.action.flatten(1, 2))
    old_logp, entropies = (x.view(mask.shape) for x in statistics)
    outcome = outcomes(rollout, ENVIRONMENTS[config.env])[:, :, 0]
    value = torch.zeros_like(advantage)  # without critic
    fields = (observation, rollout.action, mask, old_logp, advantage, value, value, outcome, groups_of(config))
    return Transitions(*fields), entropies


def groups_of(config: CartPoleConfig) -> Tensor:
    """Number of the group of each episode, [seeds, episodes] int64."""
    return torch.arange(config.groups).repeat_interleave(config.group_size).expand(config.seeds, -1)


def group_transitions(learner: Learner, rollout: Rollout, head: Head) -> tuple[Transitions, Tensor]:
    """Every step of an episode has the advantage of the episode's outcome (`config.advantage`)."""
    outcome = outcomes(rollout, ENVIRONMENTS[learner.config.env])[:, :, 0]
    advantage = ADVANTAGES[learner.config.advantage](outcome, groups_of(learner.config), rollout.mask)
    return transitions_of_episodes(learner, rollout, advantage * rollout.mask, head)


def reward_to_go(reward: Tensor, gamma: float) -> Tensor:
    """Discounted rewards from each step on, sum_k gamma^k r_{t+k}, [..., steps]."""
    found = torch.empty_like(reward)
    last = torch.zeros_like(reward[..., 0])
    for t in reversed(range(reward.shape[-1])):
        last = reward[..., t] + gamma * last
        found[..., t] = last
    return found


def leave_one_out(value: Tensor) -> Tensor:
    """Each episode's value less the mean of the others' at the same step, [seeds, episodes, steps].

    The value of an episode that has ended is 0. The baseline knows nothing of the episode's own actions, so the
    gradient stays unbiased.
    """
    count = value.shape[1]
    return (value - value.mean(1, keepdim=True)) * count / (count - 1)


def reinforce_transitions(learner: Learner, rollout: Rollout, head: Head) -> tuple[Transitions, Tensor]:
    """Reward to go less the other episodes' (Williams 1992), normalised over the rollout as PPO's advantages are."""
    advantage = leave_one_out(reward_to_go(rollout.reward, learner.config.gamma))
    return transitions_of_episodes(learner, rollout, normalise(advantage, rollout.mask), head)


def shuffled_groups(config: CartPoleConfig, number: int) -> Iterator[Tensor]:
    """Episodes of the minibatches of each epoch of rollout `number`, whole groups, [minibatches, seeds, episodes]."""
    keys, within = stream_keys(config, SHUFFLE), torch.arange(config.group_size)
    for groups in minibatch_indices(keys, number, config.groups, config.epochs, config.minibatches):
        yield (groups.unsqueeze(-1) * config.group_size + within).flatten(2)


# --- other policies at the same steps -------------------------------------------------------------------------------


@torch.no_grad()
def with_other_policies(learner: Learner, transitions: Transitions, head: Head) -> Transitions:
    """With log-probabilities under the reference and the filtered policy, where the control needs them.

    The reference is the policy of the fresh networks; the filtered one is made of the policy that sampled, so this is
    called before the first update. Both have the rollout's activation and temperature.
    """
    needs, engine, states = learner.control.needs, learner.engine, transitions.states

    def logp(networks: Networks, change: Callable[[Tensor], Tensor]) -> Tensor:
        policy = change(head.policy(engine.evaluate(networks, states).logits))
        return engine.statistics(policy, transitions.action.flatten(1))[0].view(transitions.mask.shape)

    if Need.REF_LOGP in needs:
        transitions = transitions._replace(ref_logp=logp(learner.reference, lambda policy: policy))
    if Need.PROXY_LOGP in needs:
        transitions = transitions._replace(proxy_logp=logp(learner.networks, learner.control.proxy))
    return transitions


# --- minibatches ----------------------------------------------------------------------------------------------------


def minibatches(
    config: CartPoleConfig, transitions: Transitions, epochs: Iterable[Tensor]
) -> Iterator[tuple[Transitions, Tensor]]:
    """Each minibatch and its rows [seeds, n]; those of one epoch are taken together, when the first is asked for.

    Advantages are normalised with `normalise = "minibatch"`, and groups are named as `Batch` has them.
    """
    for index in epochs:
        taken = transitions.take(index)
        taken = taken._replace(group=positions_of_groups(taken.group))
        if config.normalise == "minibatch":
            taken = taken._replace(advantage=normalise(taken.advantage, taken.mask))
        yield from zip(taken.unbind(), index, strict=True)


def positions_of_groups(group: Tensor) -> Tensor:
    """The same groups, each named by the position of its first row, which lies in [0, rows); [..., rows] int64."""
    rows = group.shape[-1]
    first = torch.full((*group.shape[:-1], int(group.max()) + 1), rows)
    first.scatter_reduce_(-1, group, torch.arange(rows).expand_as(group), "amin")
    return first.gather(-1, group)
