"""The algorithms as data: what is played, what is made of it, and how a step is taken. The loop is the same for all."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from entropy_theory.control import Need
from sims import rollouts
from sims.cartpole_config import CartPoleConfig
from sims.cartpole_env import Environments, Rollout
from sims.engine import Head
from sims.learner import Learner, adam_step_of_all, natural_step_of_actor
from sims.ppo import Transitions

_ALWAYS = frozenset(
    {
        Need.ENTROPY_GRAD,
        Need.ENTROPY_SUPPORT,
        Need.SAMPLES,
        Need.REF_LOGP,
        Need.PROXY_LOGP,
        Need.COLLISION,
        Need.LOGIT_SCALE,
        Need.ACTIVATION,
        Need.SAMPLING,
    }
)


class Algorithm(NamedTuple):
    """One algorithm; the loss is the run's surrogate (PPO's clipped one) of the control's objective in all of them.

    play:        (learner, environments, head, number) -> Rollout
    transitions: (learner, rollout, head) -> (transitions, the sampling policy's entropy, E)
    epochs:      (config, number) -> rows of the minibatches of each epoch, [minibatches, seeds, rows]
    update:      (learner, head, outputs, minibatch, gradients, update): one step, in place
    value_share: factor on the config's `value_coef`, 0 without critic
    provides:    what a control may ask
    """

    play: Callable[[Learner, Environments, Head, int], Rollout]
    transitions: Callable[[Learner, Rollout, Head], tuple[Transitions, Tensor]]
    epochs: Callable[[CartPoleConfig, int], Iterator[Tensor]]
    update: Callable
    value_share: float
    provides: frozenset[Need]


_SEGMENTS = (rollouts.play_segments, rollouts.transitions_of_segments, rollouts.shuffled_rows)
_GROUPS = _ALWAYS | {Need.WHOLE_GROUPS}

ALGORITHMS = {
    "ppo": Algorithm(*_SEGMENTS, adam_step_of_all, 1.0, _ALWAYS),
    "npg": Algorithm(*_SEGMENTS, natural_step_of_actor, 1.0, _ALWAYS),
    "grpo": Algorithm(
        rollouts.play_episodes,
        rollouts.group_transitions,
        rollouts.shuffled_groups,
        adam_step_of_all,
        0.0,
        _GROUPS,
    ),
    "reinforce": Algorithm(
        rollouts.play_episodes,
        rollouts.reinforce_transitions,
        rollouts.shuffled_groups,
        adam_step_of_all,
        0.0,
        _GROUPS,
    ),
}
"""Schulman et al. 2017; Kakade 2001; Shao et al. 2024; Williams 1992."""
