"""What is trained in the CartPole world, its streams of random numbers, and one step of each optimizer."""

from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory.control import Control
from sims.actor import actor_weights, flat, split
from sims.cartpole_config import CartPoleConfig
from sims.engine import Engine, Head, Outputs, load_engine
from sims.environments import ENVIRONMENTS
from sims.initial import INITIALISATIONS
from sims.natural import fisher_product, natural_step
from sims.networks import ACTOR, Networks
from sims.ppo import Transitions

ACTIONS, SHUFFLE, PROBE, WEIGHTS, RESETS = 1, 2, 3, 4, 6
"""Streams of random numbers of one seed; the weights take two."""


def stream_keys(config: CartPoleConfig, stream: int) -> Tensor:
    """Draw keys of one stream, [seeds]; the stream sits above any seed, so that no two streams share numbers."""
    return config.seed + torch.arange(config.seeds) + (stream << 32)


class Learner(NamedTuple):
    """What is trained, and how; `first` and `second` are Adam's moments of each weight."""

    config: CartPoleConfig
    control: Control
    engine: Engine
    networks: Networks
    first: Networks
    second: Networks


def fresh_learner(config: CartPoleConfig, control: Control) -> Learner:
    """Fresh networks and moments."""
    key = torch.stack([stream_keys(config, WEIGHTS), stream_keys(config, WEIGHTS + 1)])
    kind = ENVIRONMENTS[config.env]
    networks = INITIALISATIONS[config.init](key, kind.inputs, config.hidden, kind.actions, getattr(torch, config.dtype))
    first, second = (Networks(*map(torch.zeros_like, networks)) for _ in range(2))
    return Learner(config, control, load_engine(config.engine), networks, first, second)


LEARNED = ("networks", "first", "second")
"""Fields of a `Learner` that training changes."""


def learner_state(learner: Learner) -> dict[str, list[Tensor]]:
    """What a run's state holds of the learner."""
    return {name: [tensor.detach() for tensor in getattr(learner, name)] for name in LEARNED}


@torch.no_grad()
def load_learner(learner: Learner, saved: dict) -> None:
    """Put the learner where `learner_state` saw it, in place."""
    for name in LEARNED:
        for tensor, stored in zip(getattr(learner, name), saved[name], strict=True):
            tensor.copy_(stored)


def policy_at(learner: Learner, head: Head, states: Tensor) -> Tensor:
    """The acting policy's logits at states [seeds, n, inputs], float64 so that differences are not rounded again."""
    return head.policy(learner.engine.evaluate(learner.networks, states).logits).double()


def learning_rate(config: CartPoleConfig, update: int) -> float:
    """Learning rate after `update` steps; it changes between rollouts."""
    done = update // config.updates_per_rollout / config.rollouts
    return config.lr * (1 - done if config.anneal_lr else 1)


def adam_update(learner: Learner, gradients: Networks, update: int) -> None:
    """One step of Adam, each seed's gradient clipped, after `update` steps before it."""
    config = learner.config
    lr = learning_rate(config, update)
    learner.engine.adam(
        learner.networks, gradients, learner.first, learner.second, config.max_grad_norm, update + 1, lr
    )


def adam_step_of_all(
    learner: Learner, head: Head, outputs: Outputs, minibatch: Transitions, gradients: Networks, update: int
) -> None:
    """Actor and critic by Adam."""
    adam_update(learner, gradients, update)


@torch.no_grad()
def natural_step_of_actor(
    learner: Learner, head: Head, outputs: Outputs, minibatch: Transitions, gradients: Networks, update: int
) -> None:
    """The actor by its natural gradient, the critic by Adam.

    A rollout's `target_kl` allows for its updates all pointing one way, where the KL grows with their number squared;
    annealing scales the length of the step.
    """
    config = learner.config
    weights = actor_weights(learner.networks, learner.networks.bias_1.dtype)
    product = fisher_product(weights, minibatch.states, minibatch.mask.flatten(1), head)
    gradient = flat(actor_weights(gradients, learner.networks.bias_1.dtype).values())
    length = learning_rate(config, update) / config.lr / config.updates_per_rollout
    step = split(natural_step(product, gradient, config.target_kl * length**2, config.damping), weights)
    critic = Networks(*(g.clone() for g in gradients))  # a gradient of 0 leaves Adam's moments, and so the actor, at 0
    for of_actor in (*(g[ACTOR] for g in critic[:4]), critic.actor_weight, critic.actor_bias):
        of_actor.zero_()
    adam_update(learner, critic, update)
    for weight, change in zip(weights.values(), step, strict=True):
        weight += change
