"""The bandit world: softmax policies small enough that every prediction of the theory can be computed exactly.

Replicas are [seeds, problems]; a row is one pull or one sequence, a step one token of it. All randomness is
`draw.uniform` of (seed, step), so a seed gives the same numbers whatever runs beside it and a run has no generator to
save. Statistics of the policy are formed once for each state and arm and looked up for each token, and replicas are
trained in blocks that stay in the processor's cache.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory.advantage import centred
from entropy_theory.control import Control, Need, State, check_fits
from entropy_theory.controls import build
from entropy_theory.measure import reference_kl
from entropy_theory.records import Measurement, Sampling
from entropy_theory.runs import Progress, Run
from sims import bandit_tally
from sims.bandit_config import BanditConfig
from sims.bandit_form import Problem
from sims.bandit_measure import (
    Step,
    mean_entropy,
    measure_first,
    measure_last,
    measure_return,
    measure_rollout,
    measure_shift,
)
from sims.bandit_problem import make_problem
from sims.bandit_rollout import ROLLOUTS, Rollout, make_batch, pull, tables_of, with_references
from sims.bandit_update import edited, policy_of, step_parameters
from sims.trees import each_tensor

BLOCK = 2**16
"""Tokens trained at once, in whole seeds: a tensor over them takes 512 KiB, so that the ones in use stay in cache."""


def provides(config: BanditConfig) -> frozenset[Need]:
    """What a control may ask of this world under these settings."""
    found = {Need.ENTROPY_GRAD, Need.REF_LOGP, Need.PROXY_LOGP, Need.COLLISION, Need.ENTROPY_SUPPORT}
    if config.gradient == "sampled":
        found |= {Need.SAMPLES, Need.WHOLE_GROUPS}
    if config.updates_per_rollout > 1:
        found.add(Need.STALE)
    if config.cells > config.arms:
        found.add(Need.SEVERAL_STATES)
    if not config.natural:  # the Fisher matrix is that of softmax(logits) itself
        found |= {Need.ACTIVATION, Need.SAMPLING, Need.LOGIT_SCALE}
    return frozenset(found)


def build_control(config: BanditConfig) -> Control:
    """The run's control. Raises ValueError if it is unknown or does not fit the settings."""
    control = build(config.control, config.set)
    check_fits(config.control, control, f"the {config.gradient}-gradient bandit", provides(config), config.arms)
    return control


class Learner(NamedTuple):
    """What training changes: parameters as in `Problem`, and the state of the control; seeds first in both."""

    parameters: Tensor
    control: State


def draw(
    config: BanditConfig, control: Control, problem: Problem, policy: Tensor, number: int, keep: bool
) -> tuple[Rollout, Rollout | None]:
    """The rollout to train on, and the one to measure (None unless to be kept): kinds of pulls, and single pulls."""
    tables = tables_of(policy)

    def ready(rollout: Rollout) -> Rollout:
        return with_references(control, problem, policy, rollout)

    if not bandit_tally.applies(config, control):
        rollout = ready(ROLLOUTS[config.gradient](config, problem, tables, number))
        return rollout, rollout
    pulls = ready(pull(config, problem, tables, number)) if keep else None
    counts = bandit_tally.counted(config, pulls) if keep else bandit_tally.count_pulls(config, problem, tables, number)
    return ready(bandit_tally.as_rollout(config, problem, tables, counts, number)), pulls


class Watch(NamedTuple):
    """What is looked at in a rollout: `record` for its line of metrics, `measure` for the theory as well."""

    record: bool
    measure: bool


def train_rollout(
    config: BanditConfig, control: Control, problem: Problem, learner: Learner, number: int, watch: Watch
) -> tuple[Learner, dict[str, Tensor]]:
    """One rollout and its updates; metrics [seeds, problems] of what is watched."""
    parameters, control_state = learner
    plain = Sampling(torch.ones(problem.key.shape, dtype=parameters.dtype))
    metrics = {}

    # sample
    temperature = control.sample(plain, control_state).temperature
    policy = first = policy_of(control, problem, parameters, temperature)
    # rollout, advantage
    rollout, pulls = draw(config, control, problem, policy, number, watch.record)
    if watch.record:
        metrics |= measure_rollout(problem, policy, pulls)
    for update in range(config.updates_per_rollout):
        last = update == config.updates_per_rollout - 1
        # edit, update
        before = parameters
        parameters, batch = step_parameters(config, control, problem, before, temperature, rollout, control_state)
        # measure
        if watch.record and last:
            policy = policy_of(control, problem, before, temperature)
            metrics |= measure_return(problem, policy.softmax(-1))
        if watch.measure and update == 0:
            step = Step(before, parameters, lambda x: policy_of(control, problem, x, temperature))
            metrics |= measure_first(config, problem, step, pulls)
        if watch.measure and last:
            batch_of_all = make_batch(tables_of(policy), pulls, control.needs)
            metrics |= measure_last(edited(config, control, batch_of_all, control_state))
        # advance
        control_state = control.advance(
            control_state, Measurement(mean_entropy(batch, rollout), reference_kl(batch, rollout.share))
        )
    if watch.measure:
        temperature = control.sample(plain, control_state).temperature
        metrics |= measure_shift(problem, first, policy_of(control, problem, parameters, temperature))
    return Learner(parameters, control_state), metrics


# --- the run ------------------------------------------------------------------------------------------------------


def blocks(config: BanditConfig, tokens: int) -> list[slice]:
    """Seeds in blocks of about `BLOCK` tokens, at `tokens` a rollout and bandit."""
    size = max(1, BLOCK // (config.problems * tokens))
    return [slice(first, first + size) for first in range(0, config.seeds, size)]


def train(config: BanditConfig, run: Run, progress: Progress | None = None) -> None:
    """Train every seed and problem; one line of metrics (lists over seeds) per recorded rollout.

    Raises: ValueError if the control does not fit the settings, or the parameters stop being finite.
    """
    torch.set_num_threads(config.threads)
    control = build_control(config)
    problem = make_problem(config)
    like = torch.zeros(config.seeds, config.problems, dtype=torch.float64)
    fresh = {"rollout": 0, "parameters": problem.parameters, "control": control.init(like)}
    state = run.load_state() or fresh
    tokens = 2 * config.cells if bandit_tally.applies(config, control) else config.tokens
    parts = blocks(config, tokens)
    problems = [problem.part(part) for part in parts]
    learners = [
        Learner(state["parameters"][part], each_tensor(lambda t, part=part: t[part], state["control"]))
        for part in parts
    ]

    for number in range(state["rollout"], config.rollouts):
        done = number + 1
        recorded = number % config.record_every == 0 or done == config.rollouts
        watch = Watch(recorded, recorded and config.measure_every > 0 and number % config.measure_every == 0)
        metrics = []
        for i, part in enumerate(problems):
            learners[i], found = train_rollout(config, control, part, learners[i], number, watch)
            metrics.append(found)
        if not all(torch.isfinite(learner.parameters).all() for learner in learners):
            raise ValueError(
                f"the logits are no longer finite after rollout {number}; lower step_size ({config.step_size})"
            )
        if not recorded:
            continue
        line = {"step": done} | {name: torch.cat([m[name].double().mean(-1) for m in metrics]) for name in metrics[0]}
        parameters = torch.cat([learner.parameters for learner in learners])
        control_state = each_tensor(lambda *t: torch.cat(t), *[learner.control for learner in learners])
        run.record(line, {"rollout": done, "parameters": parameters, "control": control_state})
        if progress:
            progress(done, config.rollouts, line)


def probe_states(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """States of a short training for the theory check.

    Returns: (logits, change made by a sampled gradient step, exact advantage), each [states, arms] float64.
    """
    config = BanditConfig(seeds=2, problems=8, rollouts=25, seed=seed)
    control, problem = build_control(config), make_problem(config)
    logits, temperature = problem.parameters, torch.ones(config.seeds, config.problems, dtype=torch.float64)
    states = []
    for number in range(config.rollouts):
        rollout = pull(config, problem, tables_of(logits), number)
        after = step_parameters(config, control, problem, logits, temperature, rollout, ())[0]
        states.append((logits, after - logits, centred(problem.reward, logits.softmax(-1))))
        logits = after
    return tuple(torch.stack(parts).flatten(0, -2) for parts in zip(*states, strict=True))
