"""Many copies of an environment: automatic resets, rollouts, and what the resets mean for the records.

Autoreset is NEXT_STEP, as gymnasium's vectorised environments have it: when an episode ends at step t, the next
observation is its true last one; step t + 1 ignores the action, has reward 0 and moves to the first observation of the
next episode. Step t + 1 is masked, and the observation before it is what a truncated episode is bootstrapped from.

First states are a pure function of (seed, copy, number of the episode), so a seed's episodes do not depend on the
number of seeds. gymnasium's own vectorised CartPole draws all of them from one generator.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from entropy_theory.draw import uniform
from sims.environments import ENVIRONMENTS, Environment, Move
from sims.networks import Networks, actor_numpy


class Rollout(NamedTuple):
    """What the environments did, [seeds, envs, steps] unless said otherwise.

    observation:  [seeds, envs, steps + 1, inputs]; the last one is only bootstrapped from
    action:       int64
    reward:       0 where masked
    mask:         bool; False on the step that an environment spends on its automatic reset
    terminated, truncated: bool, the episode ended by this step
    total:        rewards of the episode so far, this step's included
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    mask: Tensor
    terminated: Tensor
    truncated: Tensor
    total: Tensor

    @property
    def ended(self) -> Tensor:
        """Whether the episode ended by this step, either way."""
        return self.terminated | self.truncated


@dataclass
class Environments:
    """Copies of an environment and where they are; rows are copies, seed-major. Stepping changes the arrays in place.

    key: int64 draw keys of the first states; state: [n, dims] float64; steps, episode: int64, taken in this episode
    and number of it; total: float64, rewards of this episode; done: bool, the next step is a reset.
    """

    name: str
    move: Move
    key: np.ndarray
    state: np.ndarray
    steps: np.ndarray
    episode: np.ndarray
    total: np.ndarray
    done: np.ndarray

    @property
    def kind(self) -> Environment:
        """The environment's facts."""
        return ENVIRONMENTS[self.name]


def first_states(kind: Environment, key: np.ndarray, episode: np.ndarray) -> np.ndarray:
    """First states [n, dims] of episodes with these draw keys and numbers, both [n] int64."""
    draws = uniform(torch.from_numpy(key), torch.from_numpy(episode), kind.draws)
    return kind.first_states(draws.numpy())


def make_envs(name: str, keys: Tensor) -> Environments:
    """Copies of the environment at the start of their first episodes, one for each of `keys` [seeds, envs]."""
    key = keys.flatten().numpy().copy()
    steps, episode = np.zeros(len(key), np.int64), np.zeros(len(key), np.int64)
    kind = ENVIRONMENTS[name]
    state = first_states(kind, key, episode)
    return Environments(
        name, kind.make_move(len(key)), key, state, steps, episode, np.zeros(len(key)), np.zeros(len(key), bool)
    )


CHANGING = ("state", "steps", "episode", "total", "done")
"""Fields of `Environments` that a step changes."""


def env_state(envs: Environments) -> dict[str, Any]:
    """Everything the environments need to go on."""
    return {name: torch.from_numpy(getattr(envs, name).copy()) for name in CHANGING}


def restore_env(envs: Environments, saved: dict[str, Any]) -> None:
    """Put the environments where `env_state` saw them."""
    for name in CHANGING:
        setattr(envs, name, saved[name].numpy().copy())


def restart(envs: Environments, number: int) -> None:
    """Begin episode `number` everywhere, whatever was going on."""
    envs.episode[:] = number
    envs.state = first_states(envs.kind, envs.key, envs.episode)
    envs.steps[:], envs.total[:], envs.done[:] = 0, 0.0, False


def step(envs: Environments, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take one step everywhere, or begin the next episode where the last one has ended.

    Args:
      action: [n] int64.
    Returns: (reward, terminated, truncated), each [n]; 0 and False where an episode began.
    """
    reset = envs.done
    envs.state, reward, terminated = envs.move(envs.state, action)
    envs.steps += 1
    truncated = envs.steps >= envs.kind.max_steps
    if reset.any():
        envs.episode[reset] += 1
        envs.state[reset] = first_states(envs.kind, envs.key[reset], envs.episode[reset])
        envs.steps[reset], envs.total[reset] = 0, 0.0
        reward = np.where(reset, 0.0, reward)
        terminated, truncated = terminated & ~reset, truncated & ~reset
    envs.total += reward
    envs.done = terminated | truncated
    return reward, terminated, truncated


def choose(logits: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The action in whose share of the cumulative distribution its draw falls, the last action lying lowest.

    Action a or a later one is taken exactly where draw * sum_b e_b < sum_{b >= a} e_b, e = exp(z - max z): no division,
    so an action of probability 0 is never taken and one of probability 1 always.

    Args:
      logits: [..., actions]; draws: [...], uniform in [0, 1).
    Returns: [...] int64.
    """
    share = np.exp(logits - logits.max(-1, keepdims=True)).astype(float)
    tail = share[..., ::-1].cumsum(-1)
    return (draws[..., None] * tail[..., -1:] < tail[..., :-1]).sum(-1)


def collect(envs: Environments, networks: Networks, head, draws: Tensor, dtype: torch.dtype) -> Rollout:
    """Let the policy act for some steps in every environment.

    Args:
      head: the policy that acts, given the networks' logits (`engine.Head`).
      draws: [seeds, envs, steps], uniform in [0, 1), one for each action (`choose`).
      dtype: of the observations and rewards returned.
    """
    seeds, copies, steps = draws.shape
    numbers = draws.permute(2, 0, 1).contiguous().numpy()
    forward = actor_numpy(networks)
    observation = np.empty((steps + 1, seeds, copies, envs.kind.inputs), np.float32)
    action = np.empty((steps, seeds * copies), np.int64)
    reward, total = np.empty(action.shape), np.empty(action.shape)
    mask, terminated, truncated = (np.empty(action.shape, bool) for _ in range(3))
    observation[0] = envs.kind.observe(envs.state).reshape(observation.shape[1:])
    for t in range(steps):
        policy = head.policy(torch.from_numpy(forward(observation[t])))
        action[t] = choose(policy.numpy(), numbers[t]).reshape(-1)
        mask[t] = ~envs.done
        reward[t], terminated[t], truncated[t] = step(envs, action[t])
        observation[t + 1] = envs.kind.observe(envs.state).reshape(observation.shape[1:])
        total[t] = envs.total

    def record(x):
        return torch.from_numpy(x).unflatten(1, (seeds, copies)).permute(1, 2, 0).contiguous()

    return Rollout(
        torch.from_numpy(observation).permute(1, 2, 0, 3).to(dtype),
        record(action),
        record(reward).to(dtype),
        record(mask),
        record(terminated),
        record(truncated),
        record(total).to(dtype),
    )


def outcomes(rollout: Rollout, kind: Environment) -> Tensor:
    """Return of each step's episode as known at the end of the rollout, from least to largest possible: in [0, 1].

    Returns: [seeds, envs, steps]; 0 where masked.
    """
    ends = (rollout.ended | ~rollout.mask).numpy()
    steps = ends.shape[-1]
    until = np.where(ends, np.arange(steps), steps - 1)  # the step at which this one's episode ends or is left
    until = np.minimum.accumulate(until[..., ::-1], -1)[..., ::-1].copy()
    known = rollout.total.gather(-1, torch.from_numpy(until))
    return ((known - kind.least) / (kind.largest - kind.least)).masked_fill(~rollout.mask, 0.0)


def finished_returns(rollout: Rollout) -> list[list[float]]:
    """Returns of the episodes that ended in this rollout, for each seed, in order of time."""
    found = []
    for total, ended in zip(rollout.total.mT, rollout.ended.mT, strict=True):  # [steps, envs]
        found.append(total[ended].tolist())
    return found
