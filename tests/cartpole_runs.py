"""Small CartPole runs, learners and policies that several test files use."""

import dataclasses
from pathlib import Path

import pytest
import torch

from entropy_theory.controls import build
from entropy_theory.records import Objective
from entropy_theory.runs import Run, read_metrics
from entropy_theory.softmax import token_statistics
from sims import cartpole, cartpole_env, networks, ppo, rollouts
from sims.cartpole_config import CartPoleConfig
from sims.engine import Head, make_head
from sims.learner import Learner

SMALL = CartPoleConfig(
    seeds=3,
    total_timesteps=5 * 128,
    envs=4,
    steps=32,
    epochs=2,
    minibatches=2,
    hidden=8,
    probe_states=16,
    engine="torch",
)
DOUBLE = dataclasses.replace(SMALL, dtype="float64")


def train(config: CartPoleConfig, folder: Path, progress=None) -> list[dict]:
    """Train to the end; the lines of metrics."""
    with Run(folder, cartpole.config_record(config)) as run:
        cartpole.train(config, run, progress)
    return read_metrics(folder)


def stopped_and_resumed(config: CartPoleConfig, folder: Path, after: int) -> bool:
    """Whether a run stopped after so many rollouts and taken up again has the bytes and weights of a whole one."""

    def stop(done, total, line):
        if done == after:
            raise KeyboardInterrupt

    whole, halves = folder / "whole", folder / "stopped"
    train(config, whole)
    with pytest.raises(KeyboardInterrupt):
        train(config, halves, stop)
    train(config, halves)
    return (whole / "metrics.jsonl").read_bytes() == (halves / "metrics.jsonl").read_bytes() and same(
        trained(whole), trained(halves)
    )


def trained(folder: Path) -> list[torch.Tensor]:
    """Weights at the end of a run."""
    return torch.load(folder / "state.pt", weights_only=True)["state"]["networks"]


def same(x, y) -> bool:
    """Whether two lists of tensors agree bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(x, y, strict=True))


def plain_head(config: CartPoleConfig) -> Head:
    """The head without a control."""
    return make_head(build("none", {}), torch.ones(config.seeds))


def make_envs(config: CartPoleConfig) -> cartpole_env.Environments:
    """The environments at the start of a run."""
    return rollouts.new_envs(config)


def linear_policy(config: CartPoleConfig, gain: torch.Tensor) -> networks.Networks:
    """Networks that take the last action where gain . observation > 0 and the first elsewhere; gain 0 is a coin."""
    weights = networks.Networks(*(torch.zeros_like(w) for w in cartpole.make_learner(config).networks))
    # tanh is linear to first order: a tiny input keeps the sign, a huge head makes it certain
    weights.weight_1[0, :, :, 0] = 1e-3 * gain.to(weights.weight_1.dtype)
    weights.weight_2[0, :, 0, 0] = 1.0
    weights.actor_weight[:, 0, 0], weights.actor_weight[:, 0, -1] = -1e9, 1e9
    return weights


def stale(config: CartPoleConfig, **settings) -> tuple[Learner, ppo.Transitions]:
    """A learner whose policy has moved since it sampled the transitions."""
    config = dataclasses.replace(config, **settings)
    learner = cartpole.make_learner(config)
    transitions = cartpole.play(learner, make_envs(config), plain_head(config), 0).transitions
    with torch.no_grad():
        # far enough that ratios leave [0.8, 1.28] on both sides
        learner.networks.actor_weight.mul_(200)
    return learner, transitions


def batch_of(learner: Learner, transitions: ppo.Transitions):
    """The record of all these transitions under the learner's policy as it is now."""
    logits = networks.actor(learner.networks, transitions.states).detach()
    statistics = token_statistics(logits, transitions.action.flatten(1))
    return cartpole.make_batch(transitions, *(x.view(transitions.mask.shape) for x in statistics))


def loss_and_gradients(learner, transitions: ppo.Transitions, fresh: bool = False, name: str = "none", **settings):
    """PPO loss and its gradient under a control, with ratio 1 everywhere if `fresh`."""
    if fresh:
        transitions = transitions._replace(old_logp=batch_of(learner, transitions).logp)
    batch = batch_of(learner, transitions)
    part = build(name, {f"{name}.{key}": v for key, v in settings.items()})
    state = part.init(torch.zeros(len(batch.logp), dtype=batch.logp.dtype))
    objective = part.edit(Objective.from_batch(batch), batch, state)
    weights = networks.Networks(*(weight.detach().requires_grad_() for weight in learner.networks))
    logits, value = networks.actor_critic(weights, transitions.states)
    loss = ppo.ppo_loss(logits, value, transitions, batch, objective, ppo.ValueTerm(learner.config.value_coef))
    return loss, torch.autograd.grad(loss, weights)
