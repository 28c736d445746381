"""The seeds of a CartPole run in blocks: each block trains by itself on one thread, and its arrays fit the cache.

A block of seeds a to b is the run of these seeds alone, since all that a seed does follows from its own number.
"""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

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
    """The run's seeds in equal blocks of at most `LARGEST`, at least one for each thread."""
    count = min(config.seeds, max(config.threads, -(-config.seeds // LARGEST)))
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
    """What the block needs to go on."""
    return {
        "control": block.control,
        "probe": block.probe,
        # one tensor: a state of thousands of Python numbers takes longer to write than the networks
        "returns": torch.tensor([value for found in block.returns for value in found], dtype=torch.float64),
        "finished": torch.tensor([len(found) for found in block.returns]),
        "env_steps": block.env_steps,
        "env": env_state(block.envs),
        **learner_state(block.learner),
    }


def join_states(states: Sequence[State]) -> State:
    """The state of all seeds from those of the blocks; weights have their seeds on the third axis from the last."""
    joined = {
        name: each_tensor(lambda *parts: torch.cat(parts), *(state[name] for state in states))
        for name in states[0]
        if name not in LEARNED
    }
    return joined | {
        name: [torch.cat(parts, -3) for parts in zip(*(state[name] for state in states), strict=True)]
        for name in LEARNED
    }


def restore(blocks: Sequence[Block], saved: State) -> None:
    """Put every block where `join_states` saw it."""
    finished, first = saved["finished"].tolist(), 0
    returns = [part.tolist() for part in saved["returns"].split(finished)]
    for block in blocks:
        config = block.learner.config
        seeds = slice(first, first + config.seeds)
        copies = slice(seeds.start * config.copies, seeds.stop * config.copies)
        block.control = each_tensor(lambda t, seeds=seeds: t[seeds], saved["control"])
        block.probe, block.env_steps, block.returns = saved["probe"][seeds], saved["env_steps"][seeds], returns[seeds]
        restore_env(block.envs, {name: value[copies] for name, value in saved["env"].items()})
        weights = {name: [t.narrow(-3, first, config.seeds) for t in saved[name]] for name in LEARNED}
        load_learner(block.learner, weights)
        first = seeds.stop


def join_metrics(metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Metrics over all seeds from those over each block's."""
    joined = {}
    for name, value in metrics[0].items():
        parts = [part[name] for part in metrics]
        joined[name] = torch.cat(parts) if isinstance(value, Tensor) else [v for part in parts for v in part]
    return joined
