"""Proposition 1: what one policy-gradient step does to the logits of a one-state problem."""

import torch
from torch import Tensor

from entropy_theory import remainder, theorems
from entropy_theory.claims.statement import Comparison, Evidence, Statement, States
from entropy_theory.claims.step import Step, measure, sgd_step


def step_and_rounding(states: States) -> tuple[Step, Tensor]:
    """The step of autograd and SGD on the exact return, and how far the formula may be from it by rounding.

    The rounding of each entry, [n, actions] (docs/theory.md, section 4.5): the gradient of autograd and the
    formula err by `policy_gradient_step_rounding` each, storing z_new by u |z_new|, the difference by u |change|.
    """
    z, reward, step_size = states.logits, states.advantage, states.step_size
    after = sgd_step(z, reward, step_size)
    step = measure(z, after)
    u = remainder.unit_roundoff(z.dtype)
    stored = torch.where(torch.isfinite(z), after, 0.0).abs() + step.change.abs()
    return step, 2 * remainder.policy_gradient_step_rounding(z, reward, step_size) + 2 * u * stored


def check(states: States) -> Evidence:
    """Compare every logit's measured change with step_size pi (r - E_pi r); report the worst entry."""
    step, rounding = step_and_rounding(states)
    predicted = theorems.policy_gradient_step(states.logits, states.advantage, states.step_size)
    error = torch.where(torch.isfinite(states.logits), (step.change - predicted).abs(), 0.0)
    worst = Comparison(error, rounding, rounding).ratio().argmax(-1, keepdim=True)
    error, rounding = error.gather(-1, worst).squeeze(-1), rounding.gather(-1, worst).squeeze(-1)
    return Evidence(Comparison(error, rounding, rounding))


PROPOSITION_1 = Statement(
    id="proposition_1",
    name="Proposition 1",
    formula="z_new - z = step_size pi A,  A = r - E_pi r",
    source="Cui et al. 2025 (arXiv 2505.22617), Proposition 1, with the advantage centred",
    assumptions=("tabular softmax", "exact expectation", "one step of plain gradient ascent"),
    check=check,
)
