"""Theorem 2: the entropy change of one natural policy-gradient step, taken through F^+, not by assuming step_size A.

The bounds on the step's rounding are derived in docs/theory.md, section 4.7.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory import remainder, theorems
from entropy_theory.claims.statement import Evidence, Statement, States
from entropy_theory.claims.step import compare_first_order, compare_second_order, measure, return_gradient

DENSE_ACTIONS = 256
"""Up to here F^+ is `torch.linalg.pinv` of the dense Fisher matrix; above, its closed form."""
_DENSE_ELEMENTS = 1 << 21
"""Entries of Fisher matrices formed at once (16 MB in float64)."""


def threshold(actions: int, dtype: torch.dtype) -> float:
    """tau = K sqrt(u): smaller eigenvalues of F are dropped, which balances truncation against rounding."""
    return actions * math.sqrt(remainder.unit_roundoff(dtype))


def natural_gradient(logits: Tensor, gradient: Tensor) -> Tensor:
    """F^+ gradient, [n, actions]."""
    actions = logits.shape[-1]
    if actions > DENSE_ACTIONS:
        return theorems.fisher_pseudo_inverse_product(logits, gradient)
    tau = threshold(actions, logits.dtype)
    rows = max(1, _DENSE_ELEMENTS // actions**2)
    products = []
    for z, g in zip(logits.split(rows), gradient.split(rows), strict=True):
        inverse = torch.linalg.pinv(theorems.fisher_matrix(z), atol=tau, rtol=0.0, hermitian=True)
        products.append((inverse @ g.unsqueeze(-1)).squeeze(-1))
    return torch.cat(products)


def applies(states: States) -> Tensor:
    """Every policy up to 256 actions; above, those of full support for which the closed form keeps half its digits."""
    z, actions = states.logits, states.logits.shape[-1]
    if actions <= DENSE_ACTIONS:
        return torch.ones(z.shape[0], dtype=torch.bool)
    return actions * _smallest_probability(z) >= math.sqrt(remainder.unit_roundoff(z.dtype))


class StepRounding(NamedTuple):
    """Distance between F^+ gradient in floating point and the advantage (up to a constant), per unit of step size.

    entry:  [n], bound on each entry of f, where F^+ gradient = A - q + f
    first:  [n], bound on |Cov(log pi, q)|; q is what the dropped eigenvectors take away, 0 when none is dropped
    sd:     [n], bound on the standard deviation of q under pi
    """

    entry: Tensor
    first: Tensor
    sd: Tensor


def step_rounding(states: States) -> StepRounding:
    """Bounds for the way `natural_gradient` goes at this number of actions."""
    z, actions = states.logits, states.logits.shape[-1]
    of_gradient = remainder.policy_gradient_step_rounding(z, states.advantage, 1.0)
    width = remainder.spread(states.advantage, torch.isfinite(z))
    if actions > DENSE_ACTIONS:
        entry = _closed_form_rounding(z, of_gradient, width)
        return StepRounding(entry, torch.zeros_like(entry), torch.zeros_like(entry))
    return _dense_rounding(z, of_gradient.norm(dim=-1), width)


def _smallest_probability(logits: Tensor) -> Tensor:
    """At most the exact smallest probability, 0 if an action is masked; [n]."""
    return torch.exp(torch.log_softmax(logits, -1).amin(-1) - remainder.probability_rounding(logits))


def _closed_form_rounding(z: Tensor, of_gradient: Tensor, width: Tensor) -> Tensor:
    """(g_a - mean g) / pi_a, then centred: the error of mean g, which is 0 exactly, grows by 1 / pi_a."""
    actions, u = z.shape[-1], remainder.unit_roundoff(z.dtype)
    weight = remainder.probability_rounding(z)
    total = of_gradient.sum(-1)
    of_mean = (total + math.expm1((actions + 1) * u) * (width + total)) / actions
    per_action = (of_gradient / torch.softmax(z, -1)).amax(-1) + of_mean / _smallest_probability(z)
    scaled = torch.exp(2 * weight + 2 * u) * per_action + torch.expm1(weight + 2 * u) * width
    return 2 * scaled + 2 * math.expm1((actions + 4) * u) * (width + scaled)


def _dense_rounding(z: Tensor, gradient: Tensor, width: Tensor) -> StepRounding:
    """`gradient`: 2-norm of the gradient's error; `width`: spread of the advantage."""
    actions, u = z.shape[-1], remainder.unit_roundoff(z.dtype)
    tau = threshold(actions, z.dtype)
    log_width = remainder.spread(z, torch.isfinite(z))
    norm, log_norm = width / 2 * math.sqrt(actions), log_width / 2 * math.sqrt(actions)  # centred A and log pi
    matrix = 10 * actions * u + 2 * torch.expm1(2 * remainder.probability_rounding(z) + 4 * u)
    product = (25 * actions + 3 * actions**2) * u * (width + gradient)
    smallest = _smallest_probability(z)
    whole = smallest > 2 * tau  # then no eigenvector but the constant is dropped
    floor = smallest.clamp(min=2 * tau) / 2  # at most the smallest kept eigenvalue
    entry = torch.where(whole, (2 * matrix * norm + gradient + product) / floor, product / tau)
    first = log_norm * ((tau + 3 * matrix + matrix.square() / tau) * norm + (1 + matrix / tau) * gradient)
    sd = (tau + matrix).sqrt() * norm + (matrix * norm + gradient) * ((1 + matrix / tau) / tau).sqrt()
    return StepRounding(entry, first.masked_fill(whole, 0.0), sd.masked_fill(whole, 0.0))


def check(states: States) -> Evidence:
    """Step along F^+ times the autograd gradient, measure both entropies, compare with -step_size Cov(log pi, A)."""
    z, reward, step_size = states.logits, states.advantage, states.step_size
    actions, u = z.shape[-1], remainder.unit_roundoff(z.dtype)
    after = z + step_size * natural_gradient(z, return_gradient(z, reward))
    step, rounding = measure(z, after), step_rounding(states)
    support = torch.isfinite(z)
    stored = 2 * u * torch.where(support, after.abs() + step.change.abs(), 0.0).amax(-1)
    other = abs(step_size) * rounding.entry + stored + step.change_error
    predicted_step = torch.where(support, theorems.natural_gradient_step(reward, step_size), 0.0)
    dropped = abs(step_size) * rounding.first
    first = compare_first_order(
        step,
        theorems.theorem_2(z, reward, step_size),
        remainder.first_order_rounding(z, predicted_step) + remainder.first_order_effect(other, actions) + dropped,
        actions,
    )
    width, log_width = remainder.spread(predicted_step, support), remainder.spread(z, support)
    sd = abs(step_size) * rounding.sd
    second = compare_second_order(
        step,
        theorems.entropy_change_second_order(z, predicted_step),
        remainder.second_order_rounding(z, predicted_step)
        + remainder.second_order_effect(other, step.spread, actions)
        + dropped
        + width * (1 + log_width / 2) * sd
        + (1 + log_width) / 2 * sd.square(),
        actions,
    )
    return Evidence(first, second)


THEOREM_2 = Statement(
    id="theorem_2",
    name="Theorem 2",
    formula="H_new - H = -step_size Cov_pi(log pi, A) + O(spread(z_new - z)^2) after z_new = z + step_size F^+ grad J",
    source="Cui et al. 2025 (arXiv 2505.22617), Theorem 2",
    assumptions=(
        "tabular softmax",
        "exact expectation",
        "one step along F^+ grad J",
        "above 256 actions: full support and K min pi >= sqrt(u)",
    ),
    check=check,
    applies=applies,
)
