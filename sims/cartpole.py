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
from entropy_theory.measure import (
    clip_fractions,
    entropy_change,
    minibatch_change,
    selection,
    theorem_predictions,
    token_covariance,
)
from entropy_theory.records import Batch, Measurement, Objective, Sampling
from entropy_theory.reduce import token_mean
from entropy_theory.runs import Progress, Run
from entropy_theory.softmax import collision, entropy
from sims.cartpole_config import CartPoleConfig
from sims.cartpole_env import (
    Environments,
    Rollout,
    env_state,
    finished_returns,
    make_envs,
    outcomes,
    restore_env,
)
from sims.engine import Engine, Head, Outputs, load_engine, make_head, resolve_engine
from sims.environments import ENVIRONMENTS
from sims.networks import Networks, init_networks, keep_freed_memory
from sims.ppo import Transitions, gae, minibatch_indices, normalise

PROVIDES = frozenset({Need.ENTROPY_GRAD, Need.SAMPLES, Need.LOGIT_SCALE, Need.ACTIVATION, Need.SAMPLING})
"""What a control may ask of this world."""

WINDOW = 100
"""Finished episodes in the reported mean return."""

ACTIONS, SHUFFLE, PROBE, WEIGHTS, RESETS = 1, 2, 3, 4, 6
"""Streams of random numbers of one seed; the weights take two."""


def stream_keys(config: CartPoleConfig, stream: int) -> Tensor:
    """Draw keys of one stream, [seeds]; the stream sits above any seed, so that no two streams share numbers."""
    return config.seed + torch.arange(config.seeds) + (stream << 32)


def reset_keys(config: CartPoleConfig, copies: int) -> Tensor:
    """Draw keys of the first states of each copy of the environment, [seeds, copies]; it sits above the stream."""
    return stream_keys(config, RESETS)[:, None] + (torch.arange(copies) << 40)


class Learner(NamedTuple):
    """What is trained, and how; `first` and `second` are Adam's moments of each weight."""

    config: CartPoleConfig
    control: Control
    engine: Engine
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
    kind = ENVIRONMENTS[config.env]
    networks = init_networks(key, kind.inputs, config.hidden, kind.actions, getattr(torch, config.dtype))
    first, second = (Networks(*map(torch.zeros_like, networks)) for _ in range(2))
    networks = Networks(*(w.requires_grad_() for w in networks))
    return Learner(config, control, load_engine(config.engine), networks, first, second)


def sample_rollout(learner: Learner, envs: Environments, head: Head, number: int) -> Rollout:
    """Let the policy act for `config.steps` steps in every environment."""
    config = learner.config
    keys = stream_keys(config, ACTIONS)
    draws = uniform(keys, torch.full_like(keys, number), config.rollout_size)
    draws = draws.view(config.seeds, config.envs, config.steps)
    return learner.engine.collect(envs, learner.networks, head, draws, getattr(torch, config.dtype))


@torch.no_grad()
def make_transitions(learner: Learner, rollout: Rollout, head: Head) -> tuple[Transitions, Tensor]:
    """Advantages and the sampling policy's log-probabilities; with its entropy at every state, [seeds, rows, 1].

    Advantages are normalised over the rollout's valid transitions of each seed, not per minibatch.
    """
    config, mask = learner.config, rollout.mask
    out = learner.engine.forward(learner.networks, rollout.observation.flatten(1, 2))
    shape = (config.envs, config.steps + 1)
    value = out.value.unflatten(1, shape)
    policy = head.policy(out.logits).unflatten(1, shape)[:, :, :-1].flatten(1, 2)
    old_logp, entropies = learner.engine.statistics(policy, rollout.action.flatten(1, 2))
    advantage = gae(rollout.reward, value, rollout.terminated, rollout.truncated, config.gamma, config.gae_lambda)
    rows = torch.arange(config.rollout_size)
    steps = Transitions(
        rollout.observation[:, :, :-1],
        rollout.action,
        mask,
        old_logp.view(mask.shape),
        normalise(advantage, mask),
        advantage + value[..., :-1],
        outcomes(rollout, ENVIRONMENTS[config.env]),
        rows.expand(config.seeds, -1).view(mask.shape),  # every row on its own: this world has no groups
    )
    *tokens, outcome, group = (field.flatten(1, 2) for field in steps)
    return Transitions(*(field.unsqueeze(2) for field in tokens), outcome, group), entropies.unsqueeze(-1)


def shuffled(config: CartPoleConfig, number: int) -> Iterator[Tensor]:
    """Index of each minibatch of rollout `number`, [seeds, transitions]."""
    keys = stream_keys(config, SHUFFLE)
    return minibatch_indices(keys, number, config.rollout_size, config.epochs, config.minibatches)


def make_batch(minibatch: Transitions, logp: Tensor, entropies: Tensor) -> Batch:
    """The record of these transitions under the policy as it is now, given its log-probabilities and entropies, E."""
    return Batch(
        logp=logp,
        old_logp=minibatch.old_logp,
        advantage=minibatch.advantage,
        mask=minibatch.mask,
        entropy=entropies,
        outcome=minibatch.outcome,
        group=positions_of_groups(minibatch.group),
    )


def positions_of_groups(group: Tensor) -> Tensor:
    """The same groups, each named by the position of its first row, which lies in [0, rows); [seeds, rows] int64."""
    seeds, rows = group.shape
    first = torch.full((seeds, int(group.max()) + 1), rows)
    first.scatter_reduce_(1, group, torch.arange(rows).expand_as(group), "amin")
    return first.gather(1, group)


def learning_rate(config: CartPoleConfig, update: int) -> float:
    """Learning rate after `update` steps; it changes between rollouts."""
    done = update // config.updates_per_rollout / config.rollouts
    return config.lr * (1 - done if config.anneal_lr else 1)


def apply_update(
    learner: Learner,
    head: Head,
    outputs: Outputs,
    minibatch: Transitions,
    batch: Batch,
    objective: Objective,
    update: int,
) -> None:
    """One step of Adam down the gradient of the loss, after `update` steps before it."""
    config, engine = learner.config, learner.engine
    by_heads = engine.head_gradient(head, outputs, minibatch, batch, objective, config.value_coef)
    gradients = engine.backward(learner.networks, outputs, *by_heads)
    lr = learning_rate(config, update)
    engine.adam(learner.networks, gradients, learner.first, learner.second, config.max_grad_norm, update + 1, lr)


def choose_probe(config: CartPoleConfig, transitions: Transitions) -> Tensor:
    """`config.probe_states` valid states of a rollout, drawn without replacement, [seeds, states, inputs]."""
    keys = stream_keys(config, PROBE)
    mask = transitions.mask.flatten(1)
    draws = uniform(keys, torch.zeros_like(keys), mask.shape[1])
    chosen = draws.masked_fill(~mask, torch.inf).argsort(dim=-1)[:, : config.probe_states]
    return transitions.states.gather(1, chosen.unsqueeze(-1).expand(-1, -1, transitions.states.shape[-1]))


def policy_at(learner: Learner, head: Head, states: Tensor) -> Tensor:
    """The acting policy's logits at states [seeds, n, inputs], float64 so that differences are not rounded again."""
    return head.policy(learner.engine.forward(learner.networks, states).logits).double()


@torch.no_grad()
def train(config: CartPoleConfig, run: Run, progress: Progress | None = None) -> None:
    """Train every seed; one line of metrics (lists over seeds) per rollout.

    Raises: ValueError if the control does not fit, or the networks stop being finite.
    """
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    learner = make_learner(config)
    control, engine, networks = learner.control, learner.engine, learner.networks
    envs = make_envs(config.env, reset_keys(config, config.envs))
    like = torch.zeros(config.seeds, dtype=networks.bias_1.dtype)
    control_state, start, probe = control.init(like), 0, None
    returns: list[list[float]] = [[] for _ in range(config.seeds)]
    if (saved := run.load_state()) is not None:
        start, control_state, probe, returns = (saved[k] for k in ("rollout", "control", "probe", "returns"))
        load_learner(learner, saved)
        restore_env(envs, saved["env"])

    for number in range(start, config.rollouts):
        # sample
        head = make_head(control, control.sample(Sampling(torch.ones_like(like)), control_state).temperature)
        # rollout
        rollout = sample_rollout(learner, envs, head, number)
        returns = [(old + new)[-WINDOW:] for old, new in zip(returns, finished_returns(rollout), strict=True)]
        # advantage
        transitions, entropies = make_transitions(learner, rollout, head)
        metrics = measure_rollout(transitions, entropies, returns)
        if probe is None:
            probe = choose_probe(config, transitions)
        first = number * config.updates_per_rollout
        for update, index in enumerate(shuffled(config, number), first):
            # edit
            minibatch = transitions.take(index)
            outputs = engine.forward(networks, minibatch.states)
            policy = head.policy(outputs.logits)
            logp, now = (x.view(minibatch.mask.shape) for x in engine.statistics(policy, minibatch.action.flatten(1)))
            if update == first:
                # Still the policy that sampled; another matrix shape may round it differently in the last bit, and
                # a penalty on |log ratio| has a gradient of full size at 1e-8 and none at 0.
                where = index.unsqueeze(-1).expand_as(logp)
                transitions = transitions._replace(old_logp=transitions.old_logp.scatter(1, where, logp))
                minibatch = minibatch._replace(old_logp=logp)
            batch = make_batch(minibatch, logp, now)
            plain = Objective.from_batch(batch, config.clip_low, config.clip_high)
            objective = control.edit(plain, batch, control_state)
            # update
            if update == first:
                before = policy_at(learner, head, probe)
            apply_update(learner, head, outputs, minibatch, batch, objective, update)
            # measure
            if update == first:
                metrics |= entropy_change(before, policy_at(learner, head, probe))
                after = entropy(policy_at(learner, head, minibatch.states))
                metrics |= minibatch_change(batch, after.view(logp.shape))
                metrics |= theorem_predictions(batch, collision(policy).view(logp.shape))
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
                "env": env_state(envs),
            },
        )
        if progress:
            progress(number + 1, config.rollouts, line)


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


def measure_rollout(transitions: Transitions, entropies: Tensor, returns) -> dict:
    """Entropy of the policy that sampled and the returns so far; None where no episode has ended yet."""
    return {
        "entropy": token_mean(entropies, transitions.mask),
        "sampled_entropy": -token_mean(transitions.old_logp, transitions.mask),
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
    envs = make_envs(config.env, reset_keys(config, config.envs))
    head = make_head(learner.control, torch.ones(config.seeds))
    found = []
    for number in range(config.rollouts):
        transitions, _ = make_transitions(learner, sample_rollout(learner, envs, head, number), head)
        for update, index in enumerate(shuffled(config, number), number * config.updates_per_rollout):
            minibatch = transitions.take(index)
            outputs = learner.engine.forward(learner.networks, minibatch.states)
            action = minibatch.action.flatten(1)
            logp, entropies = (x.unsqueeze(-1) for x in learner.engine.statistics(outputs.logits, action))
            batch = make_batch(minibatch, logp, entropies)
            apply_update(learner, head, outputs, minibatch, batch, Objective.from_batch(batch), update)
            if update % config.updates_per_rollout in (0, config.updates_per_rollout - 1):
                before, after = outputs.logits.double(), policy_at(learner, head, minibatch.states)
                chosen = torch.eye(2, dtype=torch.float64)[action]
                centred = chosen - before.softmax(-1).gather(-1, action.unsqueeze(-1))
                records = (before, after - before, minibatch.advantage.double() * centred)
                for seed_mask, *of_seed in zip(minibatch.mask.squeeze(-1), *records, strict=True):
                    found.append([record[seed_mask][:8] for record in of_seed])
    logits, change, advantage = (torch.cat(x) for x in zip(*found, strict=True))
    return logits, change, advantage


def config_record(config: CartPoleConfig) -> dict:
    """What config.json of a CartPole run holds: the engine that "auto" means here, so that a resumed run keeps it."""
    return {"world": "cartpole", **asdict(config), "engine": resolve_engine(config.engine)}
