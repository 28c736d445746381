"""The CartPole world: an entropy control on gymnasium's classic-control environments, all seeds at once.

Replicas are [seeds]. In rollouts of segments a row is one transition, so a minibatch is [seeds, transitions, 1]; in
rollouts of episodes a row is an episode (`rollouts`).
"""

from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from entropy_theory.control import Control, Need, check_fits
from entropy_theory.controls import build
from entropy_theory.draw import uniform
from entropy_theory.measure import reference_kl
from entropy_theory.records import Batch, Measurement, Objective, Sampling
from entropy_theory.reduce import token_mean
from entropy_theory.runs import Progress, Run
from entropy_theory.softmax import collision
from sims.algorithms import ALGORITHMS
from sims.cartpole_blocks import (
    Block,
    State,
    as_arrays,
    block_configs,
    block_state,
    join_metrics,
    join_states,
    new_block,
    restore,
)
from sims.cartpole_config import CartPoleConfig
from sims.cartpole_env import Environments, finished_returns
from sims.cartpole_measure import Metrics, before_update, measure_last, measure_rollout, measure_shift, measure_update
from sims.crew import Crew, Step
from sims.engine import ENGINES, Head, Outputs, make_head, resolve_engine
from sims.environments import ENVIRONMENTS
from sims.learner import PROBE, Learner, fitted, fresh_learner, policy_at, stream_keys
from sims.networks import keep_freed_memory
from sims.ppo import Transitions, ValueTerm
from sims.rollouts import Played, minibatches, new_envs, with_other_policies

WINDOW = 100
"""Finished episodes in the reported mean return."""


def provides(config: CartPoleConfig) -> frozenset[Need]:
    """What a control may ask of this world under these settings."""
    stale = {Need.STALE} if config.updates_per_rollout > 1 else set()
    return ALGORITHMS[config.algorithm].provides | {Need.SEVERAL_STATES} | stale


def build_control(config: CartPoleConfig) -> Control:
    """The run's control. Raises ValueError if it is unknown or does not fit the algorithm."""
    control, world = build(config.control, config.set), f"the CartPole world with algorithm {config.algorithm}"
    check_fits(config.control, control, world, provides(config), ENVIRONMENTS[config.env].actions)
    return control


def make_learner(config: CartPoleConfig) -> Learner:
    """Fresh networks and moments. Raises ValueError if the control is unknown or does not fit the algorithm."""
    return fresh_learner(config, build_control(config))


def play(learner: Learner, envs: Environments, head: Head, number: int) -> Played:
    """Rollout `number`, and what the algorithm makes of it."""
    algorithm = ALGORITHMS[learner.config.algorithm]
    rollout = algorithm.play(learner, envs, head, number)
    transitions, entropies = algorithm.transitions(learner, rollout, head)
    return Played(rollout, with_other_policies(learner, transitions, head), entropies, head)


def make_batch(minibatch: Transitions, logp: Tensor, entropies: Tensor, collisions: Tensor | None = None) -> Batch:
    """The record of these transitions under the policy as it is now.

    Args:
      logp, entropies, collisions: of this policy, E; the last only if needed.
    """
    return Batch(
        logp=logp,
        old_logp=minibatch.old_logp,
        advantage=minibatch.advantage,
        mask=minibatch.mask,
        entropy=entropies,
        outcome=minibatch.outcome,
        group=minibatch.group,
        ref_logp=minibatch.ref_logp,
        proxy_logp=minibatch.proxy_logp,
        collision=collisions,
    )


def apply_update(
    learner: Learner,
    head: Head,
    outputs: Outputs,
    minibatch: Transitions,
    batch: Batch,
    objective: Objective,
    update: int,
) -> None:
    """One step of the algorithm down the gradient of the loss, after `update` steps before it."""
    config, engine, algorithm = learner.config, learner.engine, ALGORITHMS[learner.config.algorithm]
    critic = ValueTerm(algorithm.value_share * config.value_coef, config.value_clip)
    by_heads = engine.head_gradient(head, outputs, minibatch, batch, objective, critic, learner.actor)
    gradients = engine.backward(learner.networks, outputs, *by_heads)
    algorithm.update(learner, head, outputs, minibatch, gradients, update)


def choose_probe(config: CartPoleConfig, transitions: Transitions) -> Tensor:
    """`config.probe_states` valid states of a rollout, drawn without replacement, [seeds, states, inputs]."""
    keys = stream_keys(config, PROBE)
    mask = transitions.mask.flatten(1)
    draws = uniform(keys, torch.zeros_like(keys), mask.shape[1])
    chosen = draws.masked_fill(~mask, torch.inf).argsort(dim=-1)[:, : config.probe_states]
    return transitions.states.gather(1, chosen.unsqueeze(-1).expand(-1, -1, transitions.states.shape[-1]))


@torch.no_grad()
def train_rollout(block: Block, number: int, save: bool) -> tuple[Metrics, State | None]:
    """One rollout of a block's seeds and its updates; the block moves on to the next rollout's beginning.

    Returns: metrics over the block's seeds, and the block's state if it is to be saved.
    """
    rollout, transitions, entropies, head = block.played
    learner = fitted(block.learner, head)
    config, control, engine, networks = learner.config, learner.control, learner.engine, learner.networks
    measured = config.measure_every > 0 and number % config.measure_every == 0
    last = config.updates_per_rollout - 1
    block.returns = [(old + new)[-WINDOW:] for old, new in zip(block.returns, finished_returns(rollout), strict=True)]
    block.env_steps = block.env_steps + transitions.mask.sum((1, 2))
    metrics = measure_rollout(transitions, entropies, block.returns)
    if block.probe is None:
        block.probe = choose_probe(config, transitions)
    epochs = ALGORITHMS[config.algorithm].epochs(config, number)
    for update, (minibatch, index) in enumerate(minibatches(config, transitions, epochs)):
        # edit
        outputs = engine.forward(networks, minibatch.states)
        policy = head.policy(outputs.logits)
        logp, now = (x.view(minibatch.mask.shape) for x in engine.statistics(policy, minibatch.action.flatten(1)))
        if update == 0:
            # Still the policy that sampled; another matrix shape may round it differently in the last bit, and
            # a penalty on |log ratio| has a gradient of full size at 1e-8 and none at 0.
            transitions.old_logp.scatter_(1, index.unsqueeze(-1).expand_as(logp), logp)  # for later epochs
            minibatch = minibatch._replace(old_logp=logp)
        collisions = collision(policy).view(logp.shape) if Need.COLLISION in control.needs else None
        batch = make_batch(minibatch, logp, now, collisions)
        plain = Objective.from_batch(batch, config.clip_low, config.clip_high)
        objective = control.edit(plain, batch, block.control)
        # update
        if measured and update == 0:
            before = before_update(learner, head, block.probe, batch, policy)
        apply_update(learner, head, outputs, minibatch, batch, objective, number * config.updates_per_rollout + update)
        # measure
        if measured and update == 0:
            metrics |= measure_update(learner, head, block.probe, minibatch, before)
        if measured and update == last:
            metrics |= measure_last(plain, objective, batch)
        # advance
        measured_now = Measurement(token_mean(batch.entropy, batch.mask), reference_kl(batch))
        block.control = control.advance(block.control, measured_now)
    if not all(torch.isfinite(weight).all() for weight in networks):
        raise ValueError(f"the networks are no longer finite after rollout {number}; lower lr ({config.lr})")
    state = block_state(block) if save else None  # before the next rollout, which a resumed run plays again
    if number + 1 < config.rollouts:
        begin_rollout(block, number + 1)
        if measured:
            metrics |= measure_shift(learner, Played(rollout, transitions, entropies, head), block.played)
    return metrics | {"env_steps": block.env_steps}, state


def begin_rollout(block: Block, number: int) -> None:
    """Let the block's policy play rollout `number`."""
    # sample
    control = block.learner.control
    like = torch.ones(len(block.env_steps), dtype=block.learner.networks.bias_1.dtype)
    temperature = control.sample(Sampling(like), block.control).temperature
    # rollout, advantage
    head = make_head(control, temperature)
    block.played = play(fitted(block.learner, head), block.envs, head, number)


def open_blocks(configs: Sequence[CartPoleConfig], saved: State | None) -> Step:
    """Blocks of these configs, where `saved` (of the whole run) left them or new; returns what trains a rollout.

    The function returned: (number, save) -> for each block (metrics, state or None).
    """
    keep_freed_memory()
    blocks = [new_block(make_learner(config)) for config in configs]
    if saved is not None:
        restore(blocks, saved)

    def step(number: int, save: bool) -> list[tuple[Metrics, State | None]]:
        found = []
        for block in blocks:
            if block.played is None:
                begin_rollout(block, number)
            metrics, state = train_rollout(block, number, save)
            found.append((as_arrays(metrics), state))
        return found

    return step


def train(config: CartPoleConfig, run: Run, progress: Progress | None = None) -> None:
    """Train every seed; one line of metrics (lists over seeds) per rollout.

    Raises: ValueError if the control does not fit, or the networks stop being finite.
    """
    build_control(config)
    in_blocks = ENGINES[resolve_engine(config.engine)].blocks
    torch.set_num_threads(1 if in_blocks else config.threads)
    workers, parts = (config.threads, block_configs(config)) if in_blocks else (1, [config])
    saved = run.load_state()
    start = saved["rollout"] if saved else 0
    saved = {**saved, "seed": config.seed} if saved else None

    def saves(number: int) -> bool:
        return (number + 1) % config.save_every == 0 or number + 1 == config.rollouts

    with Crew(workers, open_blocks, parts, saved) as crew:
        if start < config.rollouts:
            crew.order(start, saves(start))
        for number in range(start, config.rollouts):
            done = number + 1
            metrics, states = zip(*crew.answers(), strict=True)
            line = {"step": done, **join_metrics(metrics)}
            state = {"rollout": done, **join_states(states)} if saves(number) else None
            if done < config.rollouts:  # the workers go on while this one is written
                crew.order(done, saves(done))
            run.record(line, state)
            if progress:
                progress(done, config.rollouts, line)


def probe_states(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """States of a short CartPole training, with what an optimizer step did to their logits.

    20 rollouts of 2 seeds; from the first and the last update of each, the first 8 valid states of its minibatch.

    Returns: logits before the step, their change, and the step's advantage A (1[b = a] - pi_a) of
      each action b when a was sampled, whose mean under the policy is 0; each [states, 2], float64.
    """
    config = CartPoleConfig(seeds=2, total_timesteps=20 * 512, epochs=4, lr=2e-3, seed=seed)
    learner, envs = make_learner(config), new_envs(config)
    head = make_head(learner.control, torch.ones(config.seeds))
    epochs = ALGORITHMS[config.algorithm].epochs
    found = []
    for number in range(config.rollouts):
        transitions = play(learner, envs, head, number).transitions
        taken = minibatches(config, transitions, epochs(config, number))
        for update, (minibatch, _) in enumerate(taken, number * config.updates_per_rollout):
            outputs = learner.engine.forward(learner.networks, minibatch.states)
            before, action = outputs.logits.double(), minibatch.action.flatten(1)
            logp, entropies = (x.unsqueeze(-1) for x in learner.engine.statistics(outputs.logits, action))
            batch = make_batch(minibatch, logp, entropies)
            apply_update(learner, head, outputs, minibatch, batch, Objective.from_batch(batch), update)
            if update % config.updates_per_rollout in (0, config.updates_per_rollout - 1):
                change = policy_at(learner, head, minibatch.states) - before
                chosen = torch.eye(2, dtype=torch.float64)[action]
                centred = chosen - before.softmax(-1).gather(-1, action.unsqueeze(-1))
                records = (before, change, minibatch.advantage.double() * centred)
                for mask, *of_seed in zip(minibatch.mask.squeeze(-1), *records, strict=True):
                    found.append([record[mask][:8] for record in of_seed])
    logits, change, advantage = (torch.cat(x) for x in zip(*found, strict=True))
    return logits, change, advantage


def config_record(config: CartPoleConfig) -> dict:
    """What config.json of a CartPole run holds: the engine that "auto" means here, so that a resumed run keeps it."""
    return {"world": "cartpole", **asdict(config), "engine": resolve_engine(config.engine)}
