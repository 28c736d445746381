"""What a CartPole run measures: of every rollout, of its first and its last update, and from one rollout to the next.

Predictions that need second derivatives or small differences are float64, whatever the run's own precision.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory.measure import (
    clip_fractions,
    entropy_change,
    minibatch_change,
    selection,
    theorem_predictions,
    token_covariance,
)
from entropy_theory.records import Batch, Objective
from entropy_theory.reduce import token_mean
from entropy_theory.softmax import collision, entropy, token_statistics
from sims.actor import actor_logits, actor_weights, flat, leaves_of
from sims.engine import Head
from sims.learner import Learner, policy_at
from sims.ppo import Transitions
from sims.rollouts import Played

Metrics = dict[str, Tensor]


def measure_rollout(transitions: Transitions, entropies: Tensor, returns: list[list[float]]) -> dict:
    """Entropy of the policy that sampled and the returns so far; None where no episode has ended yet."""
    return {
        "entropy": token_mean(entropies, transitions.mask),
        "sampled_entropy": -token_mean(transitions.old_logp, transitions.mask),
        "episode_return": [sum(r) / len(r) if r else None for r in returns],
        "episode_return_count": [len(r) for r in returns],
    }


class Before(NamedTuple):
    """What the measurements of an update need from before it.

    policy: logits at the probe states, float64; weights: the actor's, float64; batch, collision: the minibatch's
    record and Cov_pi(log pi, pi), both E.
    """

    policy: Tensor
    weights: Mapping[str, Tensor]
    batch: Batch
    collision: Tensor


def before_update(learner: Learner, head: Head, probe: Tensor, batch: Batch, policy: Tensor) -> Before:
    """Take stock before an update.

    Args:
      probe: states [seeds, n, inputs]; policy: logits on the minibatch, [seeds, rows * steps, actions].
    """
    weights = {name: value.clone() for name, value in actor_weights(learner.networks).items()}
    return Before(policy_at(learner, head, probe), weights, batch, collision(policy).view(batch.logp.shape))


def measure_update(learner: Learner, head: Head, probe: Tensor, minibatch: Transitions, before: Before) -> Metrics:
    """Measured and predicted entropy changes of the update that has just been taken."""
    after = entropy(policy_at(learner, head, minibatch.states))
    return {
        **entropy_change(before.policy, policy_at(learner, head, probe)),
        **minibatch_change(before.batch, after.view(before.batch.logp.shape)),
        **theorem_predictions(before.batch, before.collision),
        **through_kernel(before, actor_weights(learner.networks), head, probe, minibatch),
    }


@torch.enable_grad()
def through_kernel(
    before: Before, after: Mapping[str, Tensor], head: Head, probe: Tensor, minibatch: Transitions
) -> Metrics:
    r"""Theorem 1 and Lemma 1 with the logits' true dependence on the actor's weights theta.

        theorem_1_through_kernel_per_step_size = <grad mean_t H(s_t), grad mean_t A_t log pi(a_t|s_t)>
        predicted_through_kernel               = <grad mean_probe H, theta_after - theta_before>

    Means are over the minibatch's valid steps and over the probe states. The first is the rate at which a plain
    gradient step on the minibatch changes the entropy at its own states. Where the logits of a state are parameters of
    their own, at temperature 1 and without activation, it weights the effects of `theorem_1_per_step_size` by the
    state's share of the minibatch: the two agree where all steps are in one state. The second is
    `predicted_first_order` with the logits' change linearised in the weights, whichever optimizer made it.

    Args:
      after: the actor's weights after the update, float64.
    """
    leaves = leaves_of(dict(before.weights))
    parameters, mask = list(leaves.values()), minibatch.mask

    def gradient(value: Tensor) -> Tensor:
        return flat(torch.autograd.grad(value.sum(), parameters, retain_graph=True))

    head = head._replace(temperature=head.temperature.double())
    policy = head.policy(actor_logits(leaves, minibatch.states.double()))
    logp, entropies = (x.view(mask.shape) for x in token_statistics(policy, minibatch.action.flatten(1)))
    advantage = torch.where(mask, before.batch.advantage.double(), 0.0)
    objective = gradient(token_mean(advantage * logp, mask))
    visited = gradient(token_mean(entropies, mask))
    probed = gradient(entropy(head.policy(actor_logits(leaves, probe.double()))).mean(-1))
    change = flat(after[name] - value for name, value in before.weights.items())
    return {
        "theorem_1_through_kernel_per_step_size": (visited * objective).sum(-1),
        "predicted_through_kernel": (probed * change).sum(-1),
    }


def measure_last(plain: Objective, edited: Objective, batch: Batch) -> Metrics:
    """What the control and the clip did to the last update of a rollout, and its scores of eq. 10."""
    return {
        **selection(plain, edited),
        **clip_fractions(batch, edited),
        **token_covariance(batch),
        "approx_kl": approximate_kl(batch),
    }


def approximate_kl(batch: Batch) -> Tensor:
    """Sampled KL(pi_old || pi), mean of ratio - 1 - log ratio over valid tokens, nats."""
    log_ratio = torch.where(batch.mask, batch.logp - batch.old_logp, 0.0)
    return token_mean(torch.expm1(log_ratio) - log_ratio, batch.mask)


def measure_shift(learner: Learner, old: Played, new: Played) -> Metrics:
    r"""Change of the logged entropy from this rollout to the next, split exactly in two, nats.

        policy_entropy_change = mean_old (H_new - H_old),    state_shift = mean_new H_new - mean_old H_new

    mean_old and mean_new are over the valid states of the two rollouts; H_new is of the policy that samples the next
    one, with the temperature it does that at.
    """
    mask = old.transitions.mask
    policy = new.head.policy(learner.engine.forward(learner.networks, old.transitions.states).logits)
    between = token_mean(entropy(policy).view(mask.shape), mask)
    return {
        "policy_entropy_change": between - token_mean(old.entropies, mask),
        "state_shift": token_mean(new.entropies, new.transitions.mask) - between,
    }
