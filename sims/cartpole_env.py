"""gymnasium's own CartPole-v1, vectorised: sampling, and what its automatic reset means for the records.

Autoreset is NEXT_STEP: when an episode ends at step t, the next observation is its true last one; step t + 1
ignores the action, has reward 0 and moves to the first observation of the next episode. Step t + 1 is masked, and
the observation before it is what a truncated episode is bootstrapped from.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

MAX_STEPS = 500
"""Length at which CartPole-v1 truncates an episode; also its largest return."""


class Rollout(NamedTuple):
    """What the environments did, [seeds, envs, steps] unless said otherwise.

    observation:  [seeds, envs, steps + 1, 4]; the last one is only bootstrapped from
    action:       int64
    reward:       0 where masked
    mask:         bool; False on the step that an environment spends on its automatic reset
    terminated, truncated: bool, the episode ended by this step
    length:       steps since the episode began, this one included
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    mask: Tensor
    terminated: Tensor
    truncated: Tensor
    length: Tensor

    @property
    def ended(self) -> Tensor:
        """Whether the episode ended by this step, either way."""
        return self.terminated | self.truncated


def make_env(num_envs: int, seed: int) -> gymnasium.vector.VectorEnv:
    """`num_envs` copies of CartPole-v1 behind one stepper and one random generator, reset."""
    env = gymnasium.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="vector_entry_point")
    env.reset(seed=seed)
    return env


def env_state(env) -> dict[str, Any]:
    """Everything the environments need to go on."""
    generator = env.np_random.bit_generator.state
    return {
        "state": torch.from_numpy(env.state.copy()),
        "steps": torch.from_numpy(env.steps.copy()),
        "prev_done": torch.from_numpy(env.prev_done.copy()),
        # 128-bit integers, which no tensor holds
        "generator": {name: str(value) for name, value in generator["state"].items()},
        "has_uint32": int(generator["has_uint32"]),
        "uinteger": int(generator["uinteger"]),
    }


def restore_env(env, saved: dict[str, Any]) -> None:
    """Put the environments where `env_state` saw them."""
    env.state = saved["state"].numpy().copy()
    env.steps = saved["steps"].numpy().copy()
    env.prev_done = saved["prev_done"].numpy().copy()
    env.np_random.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {name: int(value) for name, value in saved["generator"].items()},
        "has_uint32": saved["has_uint32"],
        "uinteger": saved["uinteger"],
    }


def collect(env, policy: Callable[[np.ndarray], np.ndarray], draws: Tensor, dtype: torch.dtype) -> Rollout:
    """Step every environment `steps` times, taking action 1 where its draw falls below pi(1|s).

    Args:
      env: of seeds * envs environments, seed-major.
      policy: observations [seeds, envs, 4] -> pi(1|s) [seeds, envs].
      draws: [seeds, envs, steps], uniform in [0, 1).
      dtype: of the observations and rewards returned.
    """
    seeds, envs, steps = draws.shape
    draws = draws.permute(2, 0, 1).contiguous().numpy()
    observation = np.empty((steps + 1, seeds, envs, 4), np.float32)
    action = np.empty((steps, seeds * envs), np.int64)
    reward = np.empty(action.shape, np.float32)
    length = np.empty(action.shape, np.int32)
    mask, terminated, truncated = (np.empty(action.shape, bool) for _ in range(3))
    observation[0] = env.state.T.reshape(seeds, envs, 4)
    for t in range(steps):
        action[t] = (draws[t] < policy(observation[t])).reshape(-1)
        mask[t] = ~env.prev_done
        following, reward[t], terminated[t], truncated[t], _ = env.step(action[t])
        observation[t + 1] = following.reshape(seeds, envs, 4)
        length[t] = env.steps

    def record(x):
        return torch.from_numpy(x).unflatten(1, (seeds, envs)).permute(1, 2, 0).contiguous()

    return Rollout(
        torch.from_numpy(observation).permute(1, 2, 0, 3).to(dtype),
        record(action),
        record(reward).to(dtype),
        record(mask),
        record(terminated),
        record(truncated),
        record(length),
    )


def outcomes(rollout: Rollout) -> Tensor:
    """Length of each step's episode as known at the end of the rollout, over 500: in [0, 1], [seeds, envs, steps]."""
    length = rollout.length.to(rollout.reward.dtype).masked_fill(~rollout.mask, 0.0)
    ended = rollout.ended
    outcome = torch.empty_like(length)
    last = length[..., -1]
    for t in reversed(range(length.shape[-1])):
        last = torch.where(ended[..., t] | ~rollout.mask[..., t], length[..., t], last)
        outcome[..., t] = last
    return outcome / MAX_STEPS


def finished_returns(rollout: Rollout) -> list[list[int]]:
    """Returns of the episodes that ended in this rollout, for each seed, in order of time."""
    found = []
    for length, ended in zip(rollout.length.mT, rollout.ended.mT, strict=True):  # [steps, envs]
        found.append(length[ended].tolist())
    return found
