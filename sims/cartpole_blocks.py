"""The seeds of a CartPole run in blocks: each block trains by itself, and its arrays fit the cache.

A block of seeds a to b is the run of these seeds alone, since all that a seed does follows from its own number.
"""

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sims.cartpole_config import CartPoleConfig
from sims.cartpole_env import Environments, env_state, restore_env
from sims.learner import LEARNED, Learner, learner_state, load_learner
from sims.rollouts import Played, new_envs
from sims.trees import each_tensor

LARGEST = 64
"""Most seeds in a block: enough to hide the cost of Python, few enough for the cache."""

State = dict[str, Any]


@dataclasses.dataclass
class Block:
    """Some seeds of a run: what they learn with, and where they are.

    control: the control's state; probe: states [seeds, n, inputs], None before the first rollout; env_steps: [seeds];
    returns: of each seed's last finished episodes; played: the rollout to learn from.
    """

    learner: Learner
    envs: Environments
    control: Any
    probe: Tensor | None
    env_steps: Tensor
    returns: list[list[float]]
    played: Played | None = None


def block_configs(config: CartPoleConfig) -> list[CartPoleConfig]:
    """The run's seeds in equal blocks of at most `LARGEST`, as many for each of its processes."""
    count = min(config.seeds, config.threads * math.ceil(config.seeds / (config.threads * LARGEST)))
    edges = [config.seeds * i // count for i in range(count + 1)]
    return [
        dataclasses.replace(config, seed=config.seed + first, seeds=last - first) for first, last in pairwise(edges)
    ]


def new_block(learner: Learner) -> Block:
    """A block before its first rollout."""
    config = learner.config
    like = torch.zeros(config.seeds, dtype=learner.networks.bias_1.dtype)
    steps = torch.zeros(config.seeds, dtype=torch.int64)
    return Block(learner, new_envs(config), learner.control.init(like), None, steps, [[] for _ in range(config.seeds)])


def block_state(block: Block) -> State:
    """What the block needs to go on, as arrays."""
    state = {
        "control": block.control,
        "probe": block.probe,
        # one tensor: a state of thousands of Python numbers takes longer to write than the networks
        "returns": torch.tensor([value for found in block.returns for value in found], dtype=torch.float64),
        "finished": torch.tensor([len(found) for found in block.returns]),
        "env_steps": block.env_steps,
        "env": env_state(block.envs),
        **learner_state(block.learner),
    }
    return each_tensor(Tensor.numpy, state)


def join_states(states: Sequence[State]) -> State:
    """The state of all seeds from those of the blocks; weights have their seeds on the third axis from the last."""

    def joined(name: str) -> Any:
        axis = -3 if name in LEARNED else 0
        parts = (state[name] for state in states)
        return each_tensor(lambda *arrays: torch.from_numpy(np.concatenate(arrays, axis)), *parts)

    return {name: joined(name) for name in states[0]}


def restore(blocks: Sequence[Block], saved: State) -> None:
    """Put every block where `join_states` saw it."""
    returns = [part.tolist() for part in saved["returns"].split(saved["finished"].tolist())]
    for block in blocks:
        config = block.learner.config
        first = config.seed - saved["seed"]
        seeds = slice(first, first + config.seeds)
        copies = slice(seeds.start * config.copies, seeds.stop * config.copies)
        block.control = each_tensor(lambda t, seeds=seeds: t[seeds], saved["control"])
        block.probe, block.env_steps, block.returns = saved["probe"][seeds], saved["env_steps"][seeds], returns[seeds]
        restore_env(block.envs, {name: value[copies] for name, value in saved["env"].items()})
        weights = {name: [t.narrow(-3, first, config.seeds) for t in saved[name]] for name in LEARNED}
        load_learner(block.learner, weights)


def as_arrays(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics with arrays in place of tensors, which take longer to send to another process."""
    return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in metrics.items()}


def join_metrics(metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Metrics over all seeds, as tensors and lists, from `as_arrays` of each block's."""
    joined = {}
    for name, value in metrics[0].items():
        parts = [part[name] for part in metrics]
        if isinstance(value, np.ndarray):
            joined[name] = torch.from_numpy(np.concatenate(parts))
        else:
            joined[name] = [number for part in parts for number in part]
    return joined
