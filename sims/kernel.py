"""How far Theorems 1 and 2 are from a network: one step of CartPole's policy network on its own rollout.

Everything is float64 and plain gradient ascent, so that what separates prediction and measurement is the theorems'
table of logits and nothing else.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory import kernel
from entropy_theory.kernel import KernelStep, NaturalStep, Policy
from entropy_theory.softmax import finite_log_probs
from entropy_theory.tables import replace_rows
from sims.actor import actor_logits, actor_weights
from sims.cartpole_config import CartPoleConfig
from sims.cartpole_map import FORCE, fallen, move
from sims.networks import actor_critic
from sims.trained import cartpole_rollout

SPREAD = 0.05
"""Largest spread of a state's logit change in the step that is taken, nats: first order explains such a step."""

TRAINED = 30
"""Rollouts of training before the step: a tenth of the run, a fifth of the entropy gone."""

DAMPINGS = (0.0, 1e-6, 1e-4, 1e-2, 1e-1)
"""Of the natural gradient; 0.1 is TRPO's usual value."""


NATURAL_STATES = 256
"""States on which a natural step is fitted; the network has 4,610 parameters."""


class Problem(NamedTuple):
    """A policy at fixed states: parameters -> logits [states, 2], its parameters, A [states, 2] and d [states]."""

    policy: Policy
    parameters: dict[str, Tensor]
    advantage: Tensor
    weight: Tensor


def problem(seed: int = 0, rollouts: int = TRAINED, states: int | None = None, exact: bool = False) -> Problem:
    """The policy network of the default run after `rollouts` rollouts, at the states of its next rollout.

    Args:
      seed: of the run; rollouts: 0 for the network at initialisation; states: the first so many, None for all.
      exact: A of both actions from one step of the true dynamics and the critic, 1 + gamma V(s'), a smooth function
        of the state; otherwise GAE of the sampled action (`kernel.sampled_advantage`), as training uses it.
    """
    config = CartPoleConfig(seeds=1, seed=seed)
    learner, transitions = cartpole_rollout(config, rollouts)
    valid = transitions.mask[0].flatten().nonzero().squeeze(-1)[:states]
    observation = transitions.states[0, valid].double()
    parameters = {name: value[0] for name, value in actor_weights(learner.networks).items()}

    def policy(weights):
        return actor_logits(weights, observation)

    if exact:
        advantage = _values_after(learner.networks, observation, config.gamma)
    else:
        action, sampled = transitions.action[0].flatten()[valid], transitions.advantage[0].flatten()[valid].double()
        advantage = kernel.sampled_advantage(policy(parameters), action, sampled)
    return Problem(policy, parameters, advantage, torch.full((len(valid),), 1 / len(valid), dtype=torch.float64))


@torch.no_grad()
def _values_after(networks, observation: Tensor, gamma: float) -> Tensor:
    """1 + gamma V(s') for either action, V(s') = 0 where the pole has fallen, [states, 2]."""
    columns = []
    for force in (-FORCE, FORCE):
        after = move(observation, torch.full(observation.shape[:1], force, dtype=torch.float64))
        _, value = actor_critic(networks, after.to(networks.bias_1.dtype).unsqueeze(0))
        columns.append(1 + gamma * torch.where(fallen(after), 0.0, value[0].double()))
    return torch.stack(columns, -1)


def kernel_step(seed: int = 0, rollouts: int = TRAINED, spread: float = SPREAD) -> KernelStep:
    """One gradient step of the network with the advantages (GAE) of its own rollout.

    Args:
      seed, rollouts: as `problem`; spread: of the largest logit change, nats, which sets the step size.
    """
    return kernel.kernel_step_of_spread(*problem(seed, rollouts), spread)


def natural_step(
    seed: int = 0,
    rollouts: int = TRAINED,
    damping: float = 0.0,
    exact: bool = True,
    spread: float = SPREAD,
    states: int = NATURAL_STATES,
) -> NaturalStep:
    """One natural-gradient step of the network on the first `states` transitions of its rollout.

    Args:
      seed, rollouts, exact: as `problem`; damping: see `kernel.natural_step`.
      spread: of the largest eta A where both actions have probability above 1e-3, nats, which sets the step size.
    """
    return _natural(problem(seed, rollouts, states, exact), damping, spread)


def _natural(given: Problem, damping: float, spread: float) -> NaturalStep:
    _, probability = finite_log_probs(given.policy(given.parameters))
    usual = probability.amin(-1) > 1e-3
    wanted = (given.advantage.amax(-1) - given.advantage.amin(-1))[usual].max()
    return kernel.natural_step(*given, spread / float(wanted), damping)


def write_tables(out: Path, seeds: int = 5, tick: Callable[[], None] = lambda: None) -> None:
    """Write CartPole's rows of kernel.csv (one seed's states), kernel_summary.csv and natural.csv into `out`.

    `tick` is called after each seed.
    """
    states, summary, natural = [], [], []
    for seed in range(seeds):
        for rollouts in (0, TRAINED):
            place, given = {"world": "cartpole", "rollouts": rollouts, "seed": seed}, problem(seed, rollouts)
            for spread in (SPREAD, 0.3):
                step = kernel.kernel_step_of_spread(*given, spread)
                summary += kernel.summary_rows(step, place | {"spread": spread})
                if rollouts and spread == SPREAD:
                    summary.append(kernel.own_state_row(given, step, place | {"spread": spread}))
                if seed == 0 and rollouts and spread == SPREAD:
                    states = kernel.state_rows(step, place)
        for name, exact in (("critic", True), ("gae", False)):
            given = problem(seed, TRAINED, NATURAL_STATES, exact)
            steps = {damping: _natural(given, damping, SPREAD) for damping in DAMPINGS}
            natural += [place | {"advantage": name} | kernel.natural_row(step, d) for d, step in steps.items()]
        tick()
    replace_rows(out / "kernel.csv", states)
    replace_rows(out / "kernel_summary.csv", summary)
    replace_rows(out / "natural.csv", natural)
