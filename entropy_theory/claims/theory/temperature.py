"""Lemma 1 and Theorem 1 for pi = softmax(z / tau)."""

import torch
from torch import Tensor

from entropy_theory import remainder, theorems
from entropy_theory.claims.claim import ANYWHERE, Claim, Verdict
from entropy_theory.claims.statement import Comparison, States
from entropy_theory.claims.step import Step, compare_first_order, measure
from entropy_theory.claims.theory.over import everywhere


def temperatures(states: States) -> Tensor:
    """One temperature per state in [1/2, 5/2], read off its first advantage, [n, 1]."""
    size = states.advantage[:, :1].abs()
    return 0.5 + 2 * size / (1 + size)


def _measured(before: Tensor, after: Tensor, tau: Tensor) -> tuple[Step, Tensor]:
    """The tempered step, and a bound on how far its change is from (after - before) / tau, [n]."""
    step = measure(before / tau, after / tau)
    # both quotients were rounded, each by at most u of itself
    largest = _finite(before / tau).abs().amax(-1) + _finite(after / tau).abs().amax(-1)
    return step, 2 * remainder.unit_roundoff(before.dtype) * largest + step.change_error


def _finite(values: Tensor) -> Tensor:
    return values.masked_fill(torch.isinf(values), 0.0)


def check_lemma_1(states: States) -> Comparison:
    """H(softmax((z + d)/tau)) - H(softmax(z/tau)) against -Cov(log pi, d)/tau."""
    z, d, tau = states.logits, states.change, temperatures(states)
    actions, u = z.shape[-1], remainder.unit_roundoff(z.dtype)
    step, away = _measured(z, z + d, tau)
    away = away + 2 * u * (_finite(z + d).abs().amax(-1) / tau[:, 0])
    predicted = theorems.entropy_change_first_order(z / tau, d) / tau[:, 0]
    rounding = remainder.first_order_rounding(z / tau, d) / tau[:, 0] + 2 * u * predicted.abs()
    return compare_first_order(step, predicted, rounding + remainder.first_order_effect(away, actions), actions)


def check_theorem_1(states: States) -> Comparison:
    """One step of gradient ascent on sum softmax(z/tau) r against -eta/tau^2 Cov(log pi, pi A)."""
    z, reward, tau = states.logits, states.advantage, temperatures(states)
    actions, u, eta = z.shape[-1], remainder.unit_roundoff(z.dtype), states.step_size
    after = _tempered_step(z, reward, tau, eta)
    step, away = _measured(z, after, tau)
    # d J / d z = (d J / d (z/tau)) / tau: two more roundings than at tau = 1, and the new logit is stored
    of_step = remainder.policy_gradient_step_rounding(z / tau, reward, eta)
    formula = theorems.policy_gradient_step(z / tau, reward, eta)
    of_step = (of_step + 4 * u * formula.abs()).amax(-1) / tau[:, 0].square()
    away = away + 2 * of_step + 2 * u * _finite(after).abs().amax(-1) / tau[:, 0]
    predicted = theorems.theorem_1(z / tau, reward, eta) / tau[:, 0].square()
    rounding = remainder.first_order_rounding(z / tau, formula) / tau[:, 0].square() + 4 * u * predicted.abs()
    return compare_first_order(step, predicted, rounding + remainder.first_order_effect(away, actions), actions)


def _tempered_step(logits: Tensor, reward: Tensor, tau: Tensor, step_size: float) -> Tensor:
    """z + eta grad_z J; the chain rule through z / tau is autograd's."""
    parameter = logits.detach().clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((torch.softmax(parameter / tau, -1) * reward).sum(), parameter)
    return logits + step_size * gradient


PROVED = "the proved bound"
DERIVED = "derived here (docs/theory.md, section 8.6)"
TEMPERATURE = (
    Claim(
        id="lemma_1_temperature",
        statement="For pi = softmax(z/tau): H(z + d) - H(z) = -(1/tau) Cov_pi(log pi, d) to first order.",
        source=DERIVED,
        recorded=Verdict.HOLDS,
        judge=everywhere(check_lemma_1, what=PROVED),
        places=ANYWHERE,
    ),
    Claim(
        id="theorem_1_temperature",
        statement="A policy-gradient step on z with pi = softmax(z/tau) changes entropy by "
        "-(eta/tau^2) Cov_pi(log pi, pi A) to first order.",
        source=DERIVED,
        recorded=Verdict.HOLDS,
        judge=everywhere(check_theorem_1, what=PROVED),
        assumptions=("tabular softmax", "A = r - E_pi r"),
        places=ANYWHERE,
    ),
)
