"""What the bandit world logs. All results are [seeds, problems]; d(s) is the exact share of tokens chosen in state s.

Measured numbers beside predicted ones: Lemma 1 and Theorems 1 and 2 at the states (weights d), the same through the
true logit kernel, and the change of entropy over a rollout split into what the policy did and what the states did.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory.covariances import TOKENS
from entropy_theory.measure import (
    clip_fractions,
    entropy_change,
    minibatch_change,
    selection,
    theorem_predictions,
    token_covariance,
)
from entropy_theory.records import Batch
from entropy_theory.reduce import token_mean
from entropy_theory.softmax import collision, entropy
from entropy_theory.theorems import theorem_1, theorem_2
from sims.bandit_config import BanditConfig
from sims.bandit_exact import action_values, best, expected, occupancy, start_value, visits
from sims.bandit_form import Problem
from sims.bandit_rollout import Rollout, at_states, make_batch, tables_of
from sims.bandit_update import Edited

Metrics = dict[str, Tensor]


class Step(NamedTuple):
    """One gradient step: parameters before and after, and the policy's logits as a function of them."""

    before: Tensor
    after: Tensor
    policy_of: Callable[[Tensor], Tensor]


def mean_entropy(batch: Batch, rollout: Rollout) -> Tensor:
    """Mean entropy over the tokens of a minibatch, nats."""
    if rollout.share is None:
        return token_mean(batch.entropy, batch.mask)
    return (batch.entropy * rollout.share).sum(TOKENS) / rollout.share.sum(TOKENS)


def measure_rollout(problem: Problem, policy: Tensor, rollout: Rollout) -> Metrics:
    """Exact entropy of the policy that sampled, nats a token, and its estimate from the tokens.

    entropy = sum_s d(s) H(s); of a whole sequence, sequence_entropy = sum_s v(s) H(s), v the expected visits.
    """
    share, probability = rollout.share, policy.softmax(-1)
    logp = rollout.old_logp if share is None else rollout.old_logp * share
    found = {
        "entropy": (occupancy(problem, probability) * entropy(policy)).sum(-1),
        "sampled_entropy": -token_mean(logp, rollout.mask),
    }
    if problem.depth > 1:
        seen = visits(problem, probability)
        found |= {"sequence_entropy": (seen * entropy(policy)).sum(-1), "sequence_length": seen.sum(-1)}
    return found


def measure_return(problem: Problem, probability: Tensor) -> Metrics:
    """Expected reward of a policy, the regret to the best policy there is, and where one arm is a whole episode the
    probability of the best arm, mean over the contexts."""
    backup = expected(problem, probability)
    reward = start_value(problem, backup(action_values(problem, backup)))
    optimal = action_values(problem, best)
    found = {"reward": reward, "regret": start_value(problem, best(optimal)) - reward}
    if problem.depth == 1:
        chosen = probability.gather(-1, optimal.argmax(-1, keepdim=True)).squeeze(-1)
        found["best_arm_probability"] = start_value(problem, chosen)
    return found


def measure_first(config: BanditConfig, problem: Problem, step: Step, rollout: Rollout) -> Metrics:
    """Predictions and measurement for a rollout's first update, where every ratio is 1 as the theorems assume.

    `theorem_1` and `theorem_2` use the exact advantage A(s, a) = Q - V of the step dz(s) = step_size d(s) pi o A(s),
    or step_size A(s) for the natural gradient. Their errors are absolute, |measured - predicted| in each state (in the
    minibatch, against Theorem 1 with its own sampled advantages), so that over problems they do not cancel.

    Args:
      rollout: the tokens of the step's minibatch.
    """
    before, after = step.policy_of(step.before), step.policy_of(step.after)
    probability = before.softmax(-1)
    share = occupancy(problem, probability)
    backup = expected(problem, probability)
    values = action_values(problem, backup)
    advantage = values - backup(values).unsqueeze(-1)
    by_state = {
        **entropy_change(before.unsqueeze(-2), after.unsqueeze(-2)),
        "theorem_1": theorem_1(before, share.unsqueeze(-1) * advantage, config.step_size),
        "theorem_2": theorem_2(before, advantage, config.step_size),
    }
    errors = {
        f"{name}_error": by_state["measured_entropy_change"] - by_state[name] for name in ("theorem_1", "theorem_2")
    }
    batch = make_batch(tables_of(before), rollout)
    standing = batch if rollout.share is None else replace(batch, advantage=batch.advantage * rollout.share)
    rates = theorem_predictions(standing, at_states(collision(before), rollout.state))
    on_minibatch = _minibatch_change(batch, entropy(after), rollout)
    return {
        **{name: (share * value).sum(-1) for name, value in by_state.items()},
        **{name: (share * value.abs()).sum(-1) for name, value in errors.items()},
        **rates,
        "minibatch_entropy_change": on_minibatch,
        "minibatch_theorem_1_error": (on_minibatch - config.step_size * rates["theorem_1_per_step_size"]).abs(),
        **through_kernel(step, rollout, share),
    }


def _minibatch_change(batch: Batch, after: Tensor, rollout: Rollout) -> Tensor:
    """`measure.minibatch_change`, tokens of an enumeration counted by their share; after: entropy, over states."""
    moved = at_states(after, rollout.state)
    if rollout.share is None:
        return minibatch_change(batch, moved)["minibatch_entropy_change"]
    return token_mean((moved - batch.entropy) * rollout.share, batch.mask)


def through_kernel(step: Step, rollout: Rollout, share: Tensor) -> Metrics:
    r"""Theorem 1 and Lemma 1 with the logits' true dependence on the parameters theta.

        theorem_1_through_kernel_per_step_size = <grad mean_t H(s_t), grad mean_t A_t log pi(a_t|s_t)>
        predicted_through_kernel               = <grad sum_s d(s) H(s), theta_after - theta_before>,   d held fixed

    Means are over the tokens of the minibatch. In a table over one state the first is `theorem_1_per_step_size`
    itself; over several states it is that with each state's tokens weighted by the state's share of the minibatch,
    as a step on a mean moves each state's logits by its share only. Where the logits are learned themselves, at
    temperature 1 and without activation, the second is `predicted_first_order` exactly.

    Args:
      share: d(s) before the step, [seeds, problems, states].
    """
    leaf = step.before.clone().requires_grad_()
    policy = step.policy_of(leaf)
    tables = tables_of(policy)
    batch = make_batch(tables, rollout)
    weight = 1.0 if rollout.share is None else rollout.share

    def gradient(value: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True)
        return found.flatten(2)

    visited = gradient(token_mean(batch.entropy * weight, batch.mask))
    objective = gradient(token_mean(batch.logp * batch.advantage * weight, batch.mask))
    everywhere = gradient((share * tables.entropy).sum(-1))
    change = (step.after - step.before).flatten(2)
    return {
        "theorem_1_through_kernel_per_step_size": (visited * objective).sum(-1),
        "predicted_through_kernel": (everywhere * change).sum(-1),
    }


def measure_last(update: Edited) -> Metrics:
    """What the control and the clip did to the last update of a rollout, and its scores of eq. 10."""
    return {
        **selection(update.plain, update.objective),
        **clip_fractions(update.batch, update.objective),
        **token_covariance(update.batch),
    }


def measure_shift(problem: Problem, old: Tensor, new: Tensor) -> Metrics:
    r"""Change of the logged entropy from this rollout's policy to the next one's, split exactly in two, nats.

        policy_entropy_change = sum_s d_old(s) (H_new(s) - H_old(s))
        state_shift           = sum_s (d_new(s) - d_old(s)) H_new(s)

    The shift is 0 where the policy does not choose the states: in every family but the tree.

    Args:
      old, new: logits of the policies that sample this rollout and the next, [seeds, problems, states, arms].
    """
    share_old, share_new = occupancy(problem, old.softmax(-1)), occupancy(problem, new.softmax(-1))
    entropy_new = entropy(new)
    return {
        "policy_entropy_change": (share_old * (entropy_new - entropy(old))).sum(-1),
        "state_shift": ((share_new - share_old) * entropy_new).sum(-1),
    }
