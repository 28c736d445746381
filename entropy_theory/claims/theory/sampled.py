"""What one sampled token, and the mean of a few, do to entropy."""

import itertools

import torch
from torch import Tensor

from entropy_theory import drift, remainder, softmax, theorems
from entropy_theory.claims.claim import ANYWHERE, Claim, Verdict
from entropy_theory.claims.statement import Comparison, States
from entropy_theory.claims.theory.compact import theorem_1
from entropy_theory.claims.theory.over import agree, at_most, entrywise, everywhere, worst
from entropy_theory.claims.theory.steps import first_order, take
from entropy_theory.enclosure import Enclosed, centred_log_prob, mean, policy

SAMPLES = (1, 2, 3)
"""Numbers of samples whose draws are all enumerated, with at most ENUMERATED actions."""
ENUMERATED = 4
DRAWS = ENUMERATED ** SAMPLES[-1]


def _effect(states: States) -> Enclosed:
    """`theorems.sampled_theorem_1` of every action, its advantage as the weight, with its rounding, [n, actions]."""
    logp, pi = policy(states.logits)
    c = centred_log_prob(logp, pi)
    same_operations = -((pi * c - (pi.square() * c).sum(keepdim=True)) * states.advantage)
    h, collision = softmax.entropy(states.logits), softmax.collision(states.logits)
    value = theorems.sampled_theorem_1(logp.value, h.unsqueeze(-1), collision.unsqueeze(-1), states.advantage)
    return Enclosed(torch.where(torch.isfinite(states.logits), value, 0.0), same_operations.error)


def _drawn(states: States) -> Tensor:
    """One action per state, [n, 1]: the first, second, ... one in turn; the likeliest where that one is masked."""
    index = (torch.arange(len(states.logits)) % states.logits.shape[1]).unsqueeze(-1)
    masked = torch.isinf(states.logits.gather(-1, index))
    return torch.where(masked, states.logits.argmax(-1, keepdim=True), index)


def check_single(states: States) -> Comparison:
    """Take the step eta w (e_a - pi) and compare the entropy change with -eta w (pi_a c_a - C)."""
    action = _drawn(states)
    weight = states.advantage.gather(-1, action)
    _, pi = policy(states.logits)
    chosen = torch.zeros_like(states.logits).scatter(-1, action, 1.0)
    exact = (chosen - pi) * weight * states.step_size
    computed = drift.sampled_step(states.logits, action, weight, states.step_size)
    predicted = _effect(states) * states.step_size
    predicted = Enclosed(predicted.value.gather(-1, action), predicted.error.gather(-1, action))[:, 0]
    same = agree(exact, Enclosed(computed, 2 * exact.error))  # the same operations in another order
    return worst([first_order(states.logits, exact, predicted), entrywise(same)])


def check_mean(states: States) -> Comparison:
    """The mean over a ~ pi of the single-sample effects against Theorem 1."""
    _, pi = policy(states.logits)
    return agree(mean(_effect(states), pi) * states.step_size, theorem_1(states))


def check_collision(states: States) -> Comparison:
    """C = Cov(log pi, pi) is not negative."""
    logp, pi = policy(states.logits)
    error = (pi.square() * centred_log_prob(logp, pi)).sum().error
    return at_most(Enclosed(-softmax.collision(states.logits), error), 0.0)


def tuples(actions: int, samples: int) -> Tensor:
    """Every sequence of `samples` actions, [actions^samples, samples]."""
    return torch.tensor(list(itertools.product(range(actions), repeat=samples)))


def check_drift(states: States) -> Comparison:
    """The expected drift, first and second order, against enumerations of all draws of 1, 2 and 3 samples."""
    return worst([part for n in SAMPLES for part in _enumerated(states, n)])


def _enumerated(states: States, samples: int) -> list[Comparison]:
    z, eta = states.logits, states.step_size
    actions = z.shape[1]
    logp, pi = policy(z)
    c = centred_log_prob(logp, pi)
    every = tuples(actions, samples)
    counts = torch.nn.functional.one_hot(every, actions).sum(1).to(z.dtype)
    weight = torch.where(torch.isfinite(z), states.advantage, 0.0).unsqueeze(1) * counts
    change = (weight - Enclosed(weight).sum(keepdim=True) * pi.unsqueeze(1)) * (eta / samples)  # [n, tuples, actions]
    chance = pi[:, every[:, 0]]
    for k in range(1, samples):
        chance = chance * pi[:, every[:, k]]
    deviation = change - (change * pi.unsqueeze(1)).sum(keepdim=True)
    curvature = -((c + 1.0) * pi).unsqueeze(1) * deviation.square()
    second = (chance * curvature.sum()).sum() * 0.5
    linear = (chance * -((pi * c).unsqueeze(1) * deviation).sum()).sum()
    formula = drift.drift_of_policy(logp, pi, states.advantage, eta, samples)
    stored = drift.expected_drift(z, states.advantage, eta, samples)
    parts = [agree(second, Enclosed(stored.second, formula.second.error))]
    parts.append(agree(linear, Enclosed(stored.first, formula.first.error)))
    parts.append(_true_change(states, change, chance, formula))
    return parts


def _true_change(states: States, change: Enclosed, chance: Enclosed, formula: drift.Drift) -> Comparison:
    """The expected true entropy change against both orders, within the expected third-order remainder."""
    n, count, actions = change.value.shape
    before = states.logits.unsqueeze(1).expand_as(change.value).reshape(-1, actions)
    step, away = take(before, Enclosed(change.value.reshape(-1, actions), change.error.reshape(-1, actions)))
    slack = remainder.second_order_effect(away, step.spread, actions)
    measured = Enclosed(step.entropy_change, step.rounding + slack)
    true = (chance * Enclosed(measured.value.view(n, count), measured.error.view(n, count))).sum()
    third = (chance * remainder.second_order_remainder_bound(step.spread, actions).view(n, count)).sum()
    predicted = formula.first + formula.second
    rounding = true.error + predicted.error
    return Comparison((true.value - predicted.value).abs(), rounding + third.value + third.error, rounding)


DERIVED = "derived here (docs/theory.md, section 8.5)"
SAMPLED = (
    Claim(
        id="single_sample_effect",
        statement="A step eta w (e_a - pi) on one sampled action changes entropy by -eta w (pi_a c_a - C) to first "
        "order, C = sum_b pi_b^2 c_b.",
        source=DERIVED,
        recorded=Verdict.HOLDS,
        judge=everywhere(check_single, what="the proved bound"),
        assumptions=("tabular softmax",),
        places=ANYWHERE,
    ),
    Claim(
        id="single_sample_mean",
        statement="The mean of the single-sample effects over a ~ pi is Theorem 1 with the advantage centred.",
        source=DERIVED,
        recorded=Verdict.HOLDS,
        judge=everywhere(check_mean),
        places=ANYWHERE,
    ),
    Claim(
        id="collision_not_negative",
        statement="C = Cov_pi(log pi, pi) >= 0.",
        source=DERIVED,
        recorded=Verdict.HOLDS,
        judge=everywhere(check_collision),
        places=ANYWHERE,
    ),
    Claim(
        id="sampled_drift",
        statement="The mean of n sampled steps changes entropy by -eta E[w (pi c - C)] + eta^2/2 [m^T Hess m + "
        "tr(Hess S)/n] in expectation, up to the third order.",
        source=DERIVED,
        recorded=Verdict.HOLDS,
        judge=everywhere(check_drift, actions=ENUMERATED, share=0.5, what="the proved bound", numbers=DRAWS),
        assumptions=("tabular softmax", "independent draws from the policy"),
    ),
)
