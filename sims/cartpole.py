"""The CartPole world: PPO with an entropy control on gymnasium's CartPole-v1, all seeds at once.

Replicas are [seeds]; a row is one transition, with one step, so a minibatch is [seeds, transitions, 1].
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory.control import Control, Need, check_needs
from entropy_theory.controls import build
from entropy_theory.draw import uniform
from entropy_theory.loss import minibatch_loss, token_loss
from entropy_theory.measure import (
    clip_fractions,
    entropy_change,
    minibatch_change,
    selection,
    theorem_predictions,
    token_covariance,
)
from entropy_theory.records import Batch, Measurement, Objective, Sampling
from entropy_theory.reduce import token_count, token_mean
from entropy_theory.runs import Progress, Run
from entropy_theory.softmax import collision, entropy, token_statistics
from sims.cartpole_config import CartPoleConfig
from sims.cartpole_env import Rollout, collect, env_state, finished_returns, make_env, outcomes, restore_env
from sims.networks import Networks, actor, actor_critic, actor_numpy, init_networks, keep_freed_memory
from sims.ppo import Transitions, adam_step, clip_gradients, gae, minibatch_indices, normalise, value_loss

PROVIDES = frozenset({Need.ENTROPY_GRAD, Need.SAMPLES, Need.LOGIT_SCALE, Need.ACTIVATION, Need.SAMPLING})
"""What a control may ask of this world."""

WINDOW = 100
"""Finished episodes in the reported mean return."""

ACTIONS, SHUFFLE, PROBE, WEIGHTS = 1, 2, 3, 4
"""Streams of random numbers of one seed."""


def stream_keys(config: CartPoleConfig, stream: int) -> Tensor:
    """Draw keys of one stream, [seeds]; the stream sits above any seed, so that no two streams share numbers."""
    return config.seed + torch.arange(config.seeds) + (stream << 32)


class Learner(NamedTuple):
    """What is trained, and how; `first` and `second` are Adam's moments of each weight."""

    config: CartPoleConfig
    control: Control
    networks: Networks
    first: Networks
    second: Networks


def build_control(config: CartPoleConfig) -> Control:
    """The run's control. Raises ValueError if it is unknown or does not fit this world."""
    control = build(config.control, config.set)
    check_needs(config.control, control, "the CartPole world", PROVIDES)
    return control


def make_learner(config: CartPoleConfig) -> Learner:
    """Fresh networks and moments. Raises ValueError if the control is unknown or does not fit this world."""
    control = build_control(config)
    key = torch.stack([stream_keys(config, WEIGHTS), stream_keys(config, WEIGHTS + 1)])
    networks = init_networks(key, 4, config.hidden, 2, getattr(torch, config.dtype))
    first, second = (Networks(*map(torch.zeros_like, networks)) for _ in range(2))
    return Learner(config, control, Networks(*(w.requires_grad_() for w in networks)), first, second)


def at_temperature(control: Control, logits: Tensor, temperature: Tensor) -> Tensor:
    """Logits of the policy that acts: activated, then divided by the temperature [seeds]."""
    return control.activate(logits) / temperature[..., None, None]


def sample_rollout(learner: Learner, env, temperature: Tensor, number: int) -> Rollout:
    """Let the policy act for `config.steps` steps in every environment."""
    config, control = learner.config, learner.control
    forward = actor_numpy(learner.networks)

    def probability_of_one(observation):
        policy = at_temperature(control, torch.from_numpy(forward(observation)), temperature)
        return torch.sigmoid(policy[..., 1] - policy[..., 0]).numpy()

    keys = stream_keys(config, ACTIONS)
    draws = uniform(keys, torch.full_like(keys, number), config.rollout_size)
    shape = (config.seeds, config.envs, config.steps)
    return collect(env, probability_of_one, draws.view(shape), getattr(torch, config.dtype))


@torch.no_grad()
def make_transitions(learner: Learner, rollout: Rollout, temperature: Tensor) -> tuple[Transitions, Tensor]:
    """Advantages and the sampling policy's log-probabilities; with its entropy at every state, [seeds, transitions].

    Advantages are normalised over the rollout's valid transitions of each seed, not per minibatch.
    """
    config, mask = learner.config, rollout.mask
    logits, value = actor_critic(learner.networks, rollout.observation.flatten(1, 2))
    shape = (config.envs, config.steps + 1)
    value = value.unflatten(1, shape)
    policy = at_temperature(learner.control, logits, temperature).unflatten(1, shape)[:, :, :-1]
    old_logp, entropies = token_statistics(policy, rollout.action)
    advantage = gae(rollout.reward, value, rollout.terminated, rollout.truncated, config.gamma, config.gae_lambda)
    fields = Transitions(
        rollout.observation[:, :, :-1],
        rollout.action,
        mask,
        old_logp,
        normalise(advantage, mask),
        advantage + value[..., :-1],
        outcomes(rollout),
    )
    return Transitions(*(f.flatten(1, 2) for f in fields)), entropies.flatten(1, 2)


def shuffled(config: CartPoleConfig, number: int) -> Iterator[Tensor]:
    """Index of each minibatch of rollout `number`, [seeds, transitions]."""
    keys = stream_keys(config, SHUFFLE)
    return minibatch_indices(keys, number, config.rollout_size, config.epochs, config.minibatches)


def make_batch(transitions: Transitions, policy: Tensor) -> Batch:
    """The record of these transitions under the policy as it is now (`policy`: its logits)."""
    logp, entropies = token_statistics(policy, transitions.action)
    rows = torch.arange(logp.shape[-1])
    return Batch(
        logp=logp.unsqueeze(-1),
        old_logp=transitions.old_logp.unsqueeze(-1),
        advantage=transitions.advantage.unsqueeze(-1),
        mask=transitions.mask.unsqueeze(-1),
        entropy=entropies.unsqueeze(-1),
        outcome=transitions.outcome,
        group=rows.expand_as(logp),  # every row on its own: this world has no groups
    )


def ppo_loss(
    config: CartPoleConfig, policy: Tensor, value: Tensor, minibatch: Transitions, batch: Batch, objective: Objective
) -> Tensor:
    """The control's objective plus `value_coef` times the value loss: a mean per seed, seeds summed.

    Args:
      policy, value: logits and values as the forward pass on `minibatch` gave them, with grad.
    """
    logp, entropies = token_statistics(policy * objective.logit_scale, minibatch.action)
    losses = token_loss(logp.unsqueeze(-1), entropies.unsqueeze(-1), batch, objective)
    errors = value_loss(value.unsqueeze(-1), minibatch.value_target.unsqueeze(-1), batch.mask)
    return minibatch_loss(losses, token_count(objective.mask)) + config.value_coef * errors


def apply_update(learner: Learner, loss: Tensor, update: int) -> None:
    """One step of Adam down the gradient of `loss`, after `update` steps before it."""
    config = learner.config
    gradients = torch.autograd.grad(loss, learner.networks)
    clip_gradients(gradients, config.max_grad_norm)
    rollout = update // config.updates_per_rollout
    lr = config.lr * (1 - rollout / config.rollouts if config.anneal_lr else 1)
    adam_step(learner.networks, gradients, learner.first, learner.second, update + 1, lr)


def choose_probe(config: CartPoleConfig, transitions: Transitions) -> Tensor:
    """`config.probe_states` valid states of a rollout, drawn without replacement, [seeds, states, 4]."""
    keys = stream_keys(config, PROBE)
    draws = uniform(keys, torch.zeros_like(keys), config.rollout_size)
    order = draws.masked_fill(~transitions.mask, torch.inf).argsort(dim=-1)
    return transitions.take(order[:, : config.probe_states]).observation


@torch.no_grad()
def probe_policy(learner: Learner, probe: Tensor, temperature: Tensor) -> Tensor:
    """Logits at the probe states, float64 so that differences of them are not rounded again."""
    return at_temperature(learner.control, actor(learner.networks, probe), temperature).double()


def train(config: CartPoleConfig, run: Run, progress: Progress | None = None) -> None:
    """Train every seed; one line of metrics (lists over seeds) per rollout.

    Raises: ValueError if the control does not fit, or the networks stop being finite.
    """
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    learner = make_learner(config)
    control, networks = learner.control, learner.networks
    env = make_env(config.seeds * config.envs, config.seed)
    like = torch.zeros(config.seeds, dtype=networks.bias_1.dtype)
    control_state, start, probe = control.init(like), 0, None
    returns: list[list[int]] = [[] for _ in range(config.seeds)]
    if (saved := run.load_state()) is not None:
        start, control_state, probe, returns = (saved[k] for k in ("rollout", "control", "probe", "returns"))
        load_learner(learner, saved)
        restore_env(env, saved["env"])

    for number in range(start, config.rollouts):
        # sample
        temperature = control.sample(Sampling(torch.ones_like(like)), control_state).temperature
        # rollout
        rollout = sample_rollout(learner, env, temperature, number)
        returns = [(old + new)[-WINDOW:] for old, new in zip(returns, finished_returns(rollout), strict=True)]
        # advantage
        transitions, entropies = make_transitions(learner, rollout, temperature)
        metrics = measure_rollout(config, transitions, entropies, returns)
        if probe is None:
            probe = choose_probe(config, transitions)
        first = number * config.updates_per_rollout
        for update, index in enumerate(shuffled(config, number), first):
            # edit
            minibatch = transitions.take(index)
            logits, value = actor_critic(networks, minibatch.observation)
            policy = at_temperature(control, logits, temperature)
            if update == first:
                # Still the policy that sampled; another matrix shape may round it differently in the last bit, and
                # a penalty on |log ratio| has a gradient of full size at 1e-8 and none at 0.
                fresh, _ = token_statistics(policy.detach(), minibatch.action)
                transitions = transitions._replace(old_logp=transitions.old_logp.scatter(1, index, fresh))
                minibatch = minibatch._replace(old_logp=fresh)
            batch = make_batch(minibatch, policy.detach())
            plain = Objective.from_batch(batch, config.clip_low, config.clip_high)
            objective = control.edit(plain, batch, control_state)
            # update
            if update == first:
                before = probe_policy(learner, probe, temperature)
            apply_update(learner, ppo_loss(config, policy, value, minibatch, batch, objective), update)
            # measure
            if update == first:
                metrics |= entropy_change(before, probe_policy(learner, probe, temperature))
                after = probe_policy(learner, minibatch.observation, temperature)
                metrics |= minibatch_change(batch, entropy(after).unsqueeze(-1))
                metrics |= theorem_predictions(batch, collision(policy.detach()).unsqueeze(-1))
            if update == first + config.updates_per_rollout - 1:
                metrics |= selection(plain, objective) | clip_fractions(batch, objective) | token_covariance(batch)
                metrics["approx_kl"] = approximate_kl(batch)
            # advance
            control_state = control.advance(control_state, Measurement(token_mean(batch.entropy, batch.mask)))
        if not all(torch.isfinite(weight).all() for weight in networks):
            raise ValueError(f"the networks are no longer finite after rollout {number}; lower lr ({config.lr})")
        line = {"step": number + 1, "env_steps": (number + 1) * config.rollout_size, **metrics}
        run.record(
            line,
            {
                "rollout": number + 1,
                "control": control_state,
                "probe": probe,
                "returns": returns,
                **learner_state(learner),
                "env": env_state(env),
            },
        )
        if progress:
            progress(number + 1, config.rollouts, line)
    env.close()


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


def approximate_kl(batch: Batch) -> Tensor:
    """Sampled KL(pi_old || pi), mean of ratio - 1 - log ratio over valid tokens, nats."""
    log_ratio = batch.logp - batch.old_logp
    return token_mean(torch.expm1(log_ratio) - log_ratio, batch.mask)


def measure_rollout(config, transitions: Transitions, entropies: Tensor, returns) -> dict:
    """Entropy of the policy that sampled and the returns so far; None where no episode has ended yet."""
    mask = transitions.mask.unsqueeze(-1)
    return {
        "entropy": token_mean(entropies.unsqueeze(-1), mask),
        "sampled_entropy": -token_mean(transitions.old_logp.unsqueeze(-1), mask),
        "episode_return": [sum(r) / len(r) if r else None for r in returns],
        "episode_return_count": [len(r) for r in returns],
    }


def probe_states(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """States of a short CartPole training, with what an optimizer step did to their logits.

    20 rollouts of 2 seeds; from the first and the last update of each, the first 8 valid states of its minibatch.

    Returns: logits before the step, their change, and the step's advantage A (1[b = a] - pi_a) of
      each action b when a was sampled, whose mean under the policy is 0; each [states, 2], float64.
    """
    config = CartPoleConfig(seeds=2, total_timesteps=20 * 512, epochs=4, lr=2e-3, seed=seed)
    learner = make_learner(config)
    env = make_env(config.seeds * config.envs, config.seed)
    temperature = torch.ones(config.seeds)
    found = []
    for number in range(config.rollouts):
        rollout = sample_rollout(learner, env, temperature, number)
        transitions, _ = make_transitions(learner, rollout, temperature)
        for update, index in enumerate(shuffled(config, number), number * config.updates_per_rollout):
            minibatch = transitions.take(index)
            policy, value = actor_critic(learner.networks, minibatch.observation)
            batch = make_batch(minibatch, policy.detach())
            loss = ppo_loss(config, policy, value, minibatch, batch, Objective.from_batch(batch))
            apply_update(learner, loss, update)
            if update % config.updates_per_rollout in (0, config.updates_per_rollout - 1):
                before, after = policy.detach().double(), probe_policy(learner, minibatch.observation, temperature)
                chosen, action = torch.eye(2, dtype=torch.float64)[minibatch.action], minibatch.action.unsqueeze(-1)
                centred = chosen - before.softmax(-1).gather(-1, action)
                advantage = minibatch.advantage.double().unsqueeze(-1) * centred
                for seed_mask, *records in zip(minibatch.mask, before, after - before, advantage, strict=True):
                    found.append([record[seed_mask][:8] for record in records])
    env.close()
    logits, change, advantage = (torch.cat(x) for x in zip(*found, strict=True))
    return logits, change, advantage


def config_record(config: CartPoleConfig) -> dict:
    """What config.json of a CartPole run holds."""
    return {"world": "cartpole", **asdict(config)}
