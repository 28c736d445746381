"""What is trained in the CartPole world, its streams of random numbers, and one step of each optimizer."""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory.aggregation import AGGREGATIONS
from entropy_theory.control import Control, Need
from entropy_theory.draw import uniform
from entropy_theory.records import Sampling
from entropy_theory.reduce import token_mean
from entropy_theory.softmax import entropy
from entropy_theory.surrogate import SURROGATES
from sims.actor import actor_weights, flat, split
from sims.cartpole_config import CartPoleConfig
from sims.cartpole_env import make_envs
from sims.engine import Engine, Head, Outputs, fitting, load_engine, make_head
from sims.environments import ENVIRONMENTS
from sims.initial import INITIALISATIONS, Beginning, first_above
from sims.natural import fisher_product, natural_step
from sims.networks import ACTOR, Networks
from sims.ppo import PolicyTerm, Transitions

ACTIONS, SHUFFLE, PROBE, WEIGHTS, RESETS, TRIAL_ACTIONS, TRIAL_RESETS = 1, 2, 3, 4, 6, 7, 8
"""Streams of random numbers of one seed; the weights take two."""

TRIAL_STEPS = 128
"""Steps of one environment over which an initial policy's entropy is measured."""


def stream_keys(config: CartPoleConfig, stream: int) -> Tensor:
    """Draw keys of one stream, [seeds]; the stream sits above any seed, so that no two streams share numbers."""
    return config.seed + torch.arange(config.seeds) + (stream << 32)


class Learner(NamedTuple):
    """What is trained, and how.

    first, second: Adam's moments of each weight; actor: its part of the loss; reference: the networks as they began,
    None unless needed.
    """

    config: CartPoleConfig
    control: Control
    engine: Engine
    networks: Networks
    first: Networks
    second: Networks
    actor: PolicyTerm
    reference: Networks | None = None


def policy_term(config: CartPoleConfig, control: Control) -> PolicyTerm:
    """The actor's part of the run's loss."""
    support = control.entropy_support if Need.ENTROPY_SUPPORT in control.needs else None
    return PolicyTerm(SURROGATES[config.surrogate], AGGREGATIONS[config.aggregation], config.horizon, support)


def fitted(learner: Learner, head: Head) -> Learner:
    """The learner with an engine that takes this head and the run's loss."""
    return learner._replace(engine=fitting(learner.engine, head, learner.actor))


def fresh_learner(config: CartPoleConfig, control: Control) -> Learner:
    """Fresh networks and moments."""
    engine = load_engine(config.engine)
    networks = beginning(config, control, engine).networks if config.init_entropy else draw_networks(config, 0)
    first, second = (Networks(*map(torch.zeros_like, networks)) for _ in range(2))
    reference = Networks(*map(torch.clone, networks)) if Need.REF_LOGP in control.needs else None
    return Learner(config, control, engine, networks, first, second, policy_term(config, control), reference)


def draw_networks(config: CartPoleConfig, number: int) -> Networks:
    """The networks of try `number`; in a draw key it sits above the stream."""
    key = torch.stack([stream_keys(config, WEIGHTS), stream_keys(config, WEIGHTS + 1)]) + (number << 40)
    kind = ENVIRONMENTS[config.env]
    drawn = INITIALISATIONS[config.init](key, kind.inputs, config.hidden, kind.actions, getattr(torch, config.dtype))
    gain = config.init_gain
    return drawn._replace(actor_weight=gain * drawn.actor_weight, actor_bias=gain * drawn.actor_bias)


def beginning(config: CartPoleConfig, control: Control, engine: Engine) -> Beginning:
    """Entropy-aware initialisation (`initial.first_above`) at `init_entropy` of the largest entropy there is."""
    least = config.init_entropy * math.log(ENVIRONMENTS[config.env].actions)
    return first_above(
        partial(draw_networks, config), partial(trial_entropy, config, control, engine), least, config.init_tries
    )


def trial_entropy(config: CartPoleConfig, control: Control, engine: Engine, networks: Networks) -> Tensor:
    """Mean entropy of the acting policy over `TRIAL_STEPS` steps of one environment, nats, [seeds]; float64.

    Every try begins in the same state and has the same draws.
    """
    like = torch.ones(config.seeds, dtype=networks.bias_1.dtype)
    head = make_head(control, control.sample(Sampling(like), control.init(torch.zeros_like(like))).temperature)
    keys = stream_keys(config, TRIAL_ACTIONS).unsqueeze(-1)
    envs = make_envs(config.env, stream_keys(config, TRIAL_RESETS).unsqueeze(-1))
    draws = uniform(keys, torch.zeros_like(keys), TRIAL_STEPS)
    rollout = engine.collect(envs, networks, head, draws, networks.bias_1.dtype)
    policy = head.policy(engine.evaluate(networks, rollout.observation[:, 0, :-1]).logits)
    return token_mean(entropy(policy.double()).unsqueeze(1), rollout.mask)


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
