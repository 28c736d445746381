"""The default runs part of the way through training, for measurements on real policies and real rollouts."""

import contextlib
import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch

from sims import cartpole
from sims.cartpole_config import CartPoleConfig
from sims.cartpole_env import restore_env
from sims.engine import make_head
from sims.learner import Learner, load_learner
from sims.ppo import Transitions
from sims.rollouts import new_envs

State = dict[str, Any]


class _Enough(Exception):
    """The last state wanted has been recorded."""


class _Keep:
    """Stands in for a run directory: gives the state to go on from and keeps copies of the states wanted."""

    def __init__(self, steps: Iterable[int], start: State | None):
        self.steps, self.start = frozenset(steps), start
        self.kept: dict[int, State] = {}

    def load_state(self) -> State | None:
        return copy.deepcopy(self.start)

    def record(self, metrics: dict, state: State) -> None:
        if metrics["step"] in self.steps:
            self.kept[metrics["step"]] = copy.deepcopy(state)
        if metrics["step"] >= max(self.steps):
            raise _Enough


def states_after(train: Callable, config: Any, steps: Iterable[int], start: State | None = None) -> dict[int, State]:
    """States of a run of `config` after the given numbers of rollouts (each at least 1), as its state.pt holds them.

    The learning rate is annealed over the whole run, so these are states of that run, not of a shorter one.

    Args:
      train: `bandit.train` or `cartpole.train`; start: a state to go on from, None for the beginning.
    Raises: ValueError if a step lies beyond the run.
    """
    keep = _Keep(steps, start)
    last = max(keep.steps)
    if last > config.rollouts or min(keep.steps) < 1:
        raise ValueError(f"steps must lie in [1, {config.rollouts}] (rollouts of the run), got {sorted(keep.steps)}")
    with contextlib.suppress(_Enough):
        train(config, keep)
    return keep.kept


def cartpole_rollout(config: CartPoleConfig, rollouts: int) -> tuple[Learner, Transitions]:
    """The CartPole learner after `rollouts` rollouts of training, and the transitions of the next one.

    Returns: (learner, transitions [seeds, transitions, 1]); the advantage is GAE, normalised as in training.
    """
    learner = cartpole.make_learner(config)
    envs = new_envs(config)
    if rollouts:
        state = states_after(cartpole.train, config, [rollouts])[rollouts]
        load_learner(learner, state)
        restore_env(envs, state["env"])
    head = make_head(learner.control, torch.ones(config.seeds, dtype=learner.networks.bias_1.dtype))
    return learner, cartpole.play(learner, envs, head, rollouts).transitions
