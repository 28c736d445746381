"""What an entropy bonus does: it raises entropy, by an amount that vanishes on nearly deterministic states."""

import torch
from torch import Tensor

from entropy_theory import softmax
from entropy_theory.claims.claim import ANYWHERE, Claim, Verdict
from entropy_theory.claims.statement import Comparison, States
from entropy_theory.claims.theory.over import agree, at_most, entrywise, everywhere, worst
from entropy_theory.claims.theory.steps import first_order
from entropy_theory.enclosure import Enclosed, centred_log_prob, policy


def _gradient(logits: Tensor) -> Enclosed:
    """grad H by autograd through `softmax.entropy`, with its rounding, [n, actions].

    autograd works backwards from g = -pi log pi - pi through log_softmax: g - pi sum g.
    """
    parameter = logits.detach().clone().requires_grad_(True)
    (value,) = torch.autograd.grad(softmax.entropy(parameter).sum(), parameter)
    logp, pi = policy(logits)
    arriving = -(pi * logp) - pi
    return Enclosed(value, (arriving - pi * arriving.sum(keepdim=True)).error)


def check_gradient(states: States) -> Comparison:
    """The bonus's own gradient step: dz = eta grad H raises entropy by eta sum pi^2 c^2."""
    logp, pi = policy(states.logits)
    c = centred_log_prob(logp, pi)
    gradient, formula = _gradient(states.logits), -(pi * c)
    entries = entrywise(agree(gradient, formula))
    drift = (pi.square() * c.square()).sum() * states.step_size
    taken = first_order(states.logits, gradient * states.step_size, drift)
    return worst([entries, taken, at_most(-drift, 0.0)])


def check_natural(states: States) -> Comparison:
    """The natural step F^+ grad H = -(c - mean c) raises entropy by eta Var(log pi)."""
    logp, pi = policy(states.logits)
    c = centred_log_prob(logp, pi)
    drift = (pi * c.square()).sum() * states.step_size
    taken = first_order(states.logits, c * -states.step_size, drift)
    return worst([taken, at_most(-drift, 0.0)])


DERIVED = "derived here (docs/theory.md, section 8.8)"
BONUS = (
    Claim(
        id="entropy_bonus_gradient",
        statement="A gradient step eta grad H changes entropy by eta sum_a pi_a^2 c_a^2 >= 0 to first order.",
        source=DERIVED,
        recorded=Verdict.HOLDS,
        judge=everywhere(check_gradient, what="the proved bound"),
        assumptions=("tabular softmax",),
        places=ANYWHERE,
    ),
    Claim(
        id="entropy_bonus_natural",
        statement="A natural gradient step on H changes entropy by eta Var_pi(log pi) >= 0 to first order.",
        source=DERIVED,
        recorded=Verdict.HOLDS,
        judge=everywhere(check_natural, what="the proved bound"),
        assumptions=("tabular softmax",),
        places=ANYWHERE,
    ),
)
