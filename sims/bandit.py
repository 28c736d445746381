"""The bandit world: tabular softmax policies, where every prediction of the theory can be computed exactly.

Replicas are [seeds, problems]; a row is one pull, with one step. All randomness is `draw.uniform` of (seed, step),
so a seed gives the same numbers whatever runs beside it and a run has no generator to save.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory.advantage import ADVANTAGES, centred
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
from entropy_theory.reduce import token_count
from entropy_theory.runs import Progress, Run
from entropy_theory.softmax import collision, entropy, finite_log_probs, token_statistics
from entropy_theory.theorems import theorem_1, theorem_2
from sims.bandit_config import BanditConfig


class Problem(NamedTuple):
    """Mean reward of each arm in [0, 1] and the initial logits, both [seeds, problems, arms], and the draw keys."""

    reward: Tensor
    logits: Tensor
    key: Tensor


def make_problem(config: BanditConfig) -> Problem:
    """Arms uniform in [0, 1] and logits normal, one set per problem; a draw key per seed and problem."""
    problem = torch.arange(config.problems)
    reward = uniform(problem, torch.full_like(problem, -1), config.arms)
    logits = config.prior_scale * torch.special.ndtri(
        uniform(problem, torch.full_like(problem, -2), config.arms).clamp(min=2.0**-53)
    )
    # the problem number sits above any seed, so that no two replicas share a key
    key = config.seed + torch.arange(config.seeds)[:, None] + (problem << 32)
    shape = (config.seeds, config.problems, config.arms)
    return Problem(reward.expand(shape), logits.expand(shape).clone(), key)


def provides(config: BanditConfig) -> frozenset[Need]:
    """What a control may ask of this world under these settings."""
    found = {Need.ENTROPY_GRAD}
    if config.gradient == "sampled":
        found |= {Need.SAMPLES, Need.WHOLE_GROUPS}
    if not config.natural:  # the Fisher matrix below is that of softmax(logits) itself
        found |= {Need.ACTIVATION, Need.SAMPLING}
    return frozenset(found)


def build_control(config: BanditConfig) -> Control:
    """The run's control. Raises ValueError if it is unknown or does not fit the settings."""
    control = build(config.control, config.set)
    check_needs(config.control, control, f"the {config.gradient}-gradient bandit", provides(config))
    return control


class Rollout(NamedTuple):
    """Pulls of one rollout: arm and reward [seeds, problems, rows], and the share each row stands for."""

    arm: Tensor
    reward: Tensor
    advantage: Tensor
    weight: Tensor


def pull(config: BanditConfig, problem: Problem, policy: Tensor, step: int) -> Rollout:
    """Sample `config.samples` pulls per replica from softmax(policy), with Bernoulli rewards."""
    draws = uniform(problem.key, torch.full_like(problem.key, step), 2 * config.samples)
    which, luck = draws.split(config.samples, dim=-1)
    cumulative = policy.softmax(-1).cumsum(-1)
    arm = torch.searchsorted(cumulative, which * cumulative[..., -1:], right=True).clamp(max=config.arms - 1)
    reward = (luck < problem.reward.gather(-1, arm)).to(policy.dtype)
    advantage = ADVANTAGES[config.advantage](reward, torch.zeros_like(arm))
    return Rollout(arm, reward, advantage, torch.ones_like(reward))


def enumerate_arms(config: BanditConfig, problem: Problem, policy: Tensor, step: int) -> Rollout:
    """Every arm once, weighted by actions * pi(a), so that a mean over rows is an exact expectation."""
    probability = policy.softmax(-1)
    arm = torch.arange(config.arms).expand_as(policy)
    advantage = centred(problem.reward, probability)
    return Rollout(arm, problem.reward, advantage, probability * config.arms)


ROLLOUTS = {"sampled": pull, "exact": enumerate_arms}


def make_batch(policy: Tensor, rollout: Rollout, old_logp: Tensor) -> Batch:
    """The record of these pulls under the policy logits as they are now."""
    logp, _ = finite_log_probs(policy)
    shape = rollout.arm.unsqueeze(-1).shape
    return Batch(
        logp=logp.gather(-1, rollout.arm).unsqueeze(-1),
        old_logp=old_logp,
        advantage=rollout.advantage.unsqueeze(-1),
        mask=torch.ones(shape, dtype=torch.bool),
        entropy=entropy(policy)[..., None, None].expand(shape),
        outcome=rollout.reward,
        group=torch.zeros_like(rollout.arm),
    )


def natural_gradient(logits: Tensor, gradient: Tensor) -> Tensor:
    r"""F^+ gradient for a gradient that sums to 0 over the arms, as every gradient of a softmax policy does.

    Equal to `theorems.fisher_pseudo_inverse_product`, without its centring of the argument: that is the identity
    here, but its rounding error would be divided by the smallest probability. Arms of probability 0 stay put.
    """
    probability = logits.softmax(-1)
    scaled = torch.where(probability > 0, gradient / probability, 0.0)
    return scaled - scaled.mean(-1, keepdim=True)


def step_logits(
    config: BanditConfig,
    control: Control,
    logits: Tensor,
    temperature: Tensor,
    rollout: Rollout,
    batch: Batch,
    objective: Objective,
) -> Tensor:
    """One (natural) gradient ascent step on the logits."""
    logits = logits.clone().requires_grad_()
    policy = control.activate(logits) / temperature.unsqueeze(-1)
    rows = policy.unsqueeze(-2).expand(*rollout.arm.shape, config.arms)
    logp, entropies = token_statistics(rows, rollout.arm)
    loss = token_loss(logp.unsqueeze(-1), entropies.unsqueeze(-1), batch, objective)
    (gradient,) = torch.autograd.grad(minibatch_loss(loss, token_count(objective.mask)), logits)
    if config.natural:
        gradient = natural_gradient(logits.detach(), gradient)
    return logits.detach() - config.step_size * gradient


def train(config: BanditConfig, run: Run, progress: Progress | None = None) -> None:
    """Train every seed and problem; one line of metrics (lists over seeds) per rollout.

    Raises: ValueError if the control does not fit the settings, or the logits stop being finite.
    """
    torch.set_num_threads(config.threads)
    control = build_control(config)
    problem = make_problem(config)
    like = torch.zeros(config.seeds, config.problems, dtype=torch.float64)
    state = run.load_state() or {"rollout": 0, "logits": problem.logits, "control": control.init(like)}
    logits, control_state = state["logits"], state["control"]

    for number in range(state["rollout"], config.rollouts):
        # sample
        temperature = control.sample(Sampling(torch.ones_like(like)), control_state).temperature
        policy = control.activate(logits) / temperature.unsqueeze(-1)
        # rollout, advantage
        rollout = ROLLOUTS[config.gradient](config, problem, policy, number)
        old_logp = finite_log_probs(policy)[0].gather(-1, rollout.arm).unsqueeze(-1)
        metrics = {
            "entropy": entropy(policy),
            "sampled_entropy": -(old_logp * rollout.weight.unsqueeze(-1)).mean((-2, -1)),
        }
        for update in range(config.updates_per_rollout):
            # edit
            policy = control.activate(logits) / temperature.unsqueeze(-1)
            batch = make_batch(policy, rollout, old_logp)
            weight = rollout.weight.unsqueeze(-1)
            plain = Objective.from_batch(batch, config.clip_low, config.clip_high, weight)
            objective = control.edit(plain, batch, control_state)
            # update
            before = policy
            logits = step_logits(config, control, logits, temperature, rollout, batch, objective)
            # measure
            if update == 0:
                after = control.activate(logits) / temperature.unsqueeze(-1)
                metrics |= measure_first(config, problem, before, after, batch)
            if update == config.updates_per_rollout - 1:
                metrics |= selection(plain, objective) | clip_fractions(batch, objective) | token_covariance(batch)
            # advance
            control_state = control.advance(control_state, Measurement(entropy(before)))
        if not torch.isfinite(logits).all():
            raise ValueError(
                f"the logits are no longer finite after rollout {number}; lower step_size ({config.step_size})"
            )
        metrics["reward"] = (policy.softmax(-1) * problem.reward).sum(-1)
        line = {"step": number + 1} | {k: v.double().mean(-1) for k, v in metrics.items()}
        run.record(line, {"rollout": number + 1, "logits": logits, "control": control_state})
        if progress:
            progress(number + 1, config.rollouts, line)


def measure_first(config, problem: Problem, before: Tensor, after: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Predictions and measurement for a rollout's first update, where every ratio is 1 as the theorems assume."""
    advantage = centred(problem.reward, before.softmax(-1))
    size = batch.mask.shape
    return {
        **entropy_change(before.unsqueeze(-2), after.unsqueeze(-2)),
        **minibatch_change(batch, entropy(after)[..., None, None].expand(size)),
        **theorem_predictions(batch, collision(before)[..., None, None].expand(size)),
        "theorem_1": theorem_1(before, advantage, config.step_size),
        "theorem_2": theorem_2(before, advantage, config.step_size),
    }


def probe_states(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """States of a short training for the theory check.

    Returns: (logits, change made by a sampled gradient step, exact advantage), each [states, arms] float64.
    """
    config = BanditConfig(seeds=2, problems=8, rollouts=25, seed=seed)
    control, problem = build_control(config), make_problem(config)
    logits, temperature = problem.logits, torch.ones(config.seeds, config.problems, dtype=torch.float64)
    states = []
    for number in range(config.rollouts):
        rollout = pull(config, problem, logits, number)
        batch = make_batch(logits, rollout, finite_log_probs(logits)[0].gather(-1, rollout.arm).unsqueeze(-1))
        after = step_logits(config, control, logits, temperature, rollout, batch, Objective.from_batch(batch))
        states.append((logits, after - logits, centred(problem.reward, logits.softmax(-1))))
        logits = after
    return tuple(torch.stack(parts).flatten(0, -2) for parts in zip(*states, strict=True))
