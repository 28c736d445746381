"""Theorems 1 and 2 without their covariances, and what Lemma 1's covariance does not see."""

from entropy_theory import remainder, theorems
from entropy_theory.claims.claim import ANYWHERE, Claim, Verdict
from entropy_theory.claims.statement import Comparison, States
from entropy_theory.claims.theory.over import agree, everywhere
from entropy_theory.enclosure import Enclosed, centred_log_prob, mean, policy


def check_theorem_1(states: States) -> Comparison:
    """-eta sum pi^2 c A against `theorems.theorem_1`."""
    z, reward, eta = states.logits, states.advantage, states.step_size
    logp, pi = policy(z)
    advantage = reward - mean(reward, pi, keepdim=True)
    compact = (pi.square() * centred_log_prob(logp, pi) * advantage).sum() * -eta
    return agree(compact, theorem_1(states))


def theorem_1(states: States) -> Enclosed:
    """`theorems.theorem_1` with its rounding, [n]."""
    z, reward, eta = states.logits, states.advantage, states.step_size
    step = theorems.policy_gradient_step(z, reward, eta)
    of_step = remainder.policy_gradient_step_rounding(z, reward, eta).amax(-1)
    rounding = remainder.first_order_rounding(z, step) + remainder.first_order_effect(of_step, z.shape[-1])
    return Enclosed(theorems.theorem_1(z, reward, eta), rounding)


def check_theorem_2(states: States) -> Comparison:
    """-eta sum pi c A against `theorems.theorem_2`."""
    z, advantage, eta = states.logits, states.advantage, states.step_size
    logp, pi = policy(z)
    compact = (pi * centred_log_prob(logp, pi) * advantage).sum() * -eta
    step = theorems.natural_gradient_step(advantage, eta)
    return agree(compact, _first_order(states, step, theorems.theorem_2(z, advantage, eta)))


def check_shift(states: States) -> Comparison:
    """Lemma 1's prediction for d against that for d + constant, the constant being the state's first advantage."""
    z, d = states.logits, states.change
    moved = d + states.advantage[:, :1]
    first = _first_order(states, d, theorems.entropy_change_first_order(z, d))
    return agree(first, _first_order(states, moved, theorems.entropy_change_first_order(z, moved)))


def _first_order(states: States, change, value) -> Enclosed:
    """A first-order prediction from a change whose entries carry one rounding."""
    stored = remainder.unit_roundoff(change.dtype) * change.abs().amax(-1)
    effect = remainder.first_order_effect(stored, states.logits.shape[-1])
    return Enclosed(value, remainder.first_order_rounding(states.logits, change) + effect)


DERIVED = "derived here (docs/theory.md, section 1.3)"
COMPACT = (
    Claim(
        id="theorem_1_compact",
        statement="-eta Cov_pi(log pi, pi A) = -eta sum_a pi_a^2 c_a A_a with c = log pi + H and E_pi A = 0.",
        source=DERIVED,
        recorded=Verdict.HOLDS,
        judge=everywhere(check_theorem_1),
        places=ANYWHERE,
    ),
    Claim(
        id="theorem_2_compact",
        statement="-eta Cov_pi(log pi, A) = -eta sum_a pi_a c_a A_a for every A.",
        source=DERIVED,
        recorded=Verdict.HOLDS,
        judge=everywhere(check_theorem_2),
        places=ANYWHERE,
    ),
    Claim(
        id="lemma_1_shift",
        statement="Lemma 1's prediction is the same for d and for d plus any constant.",
        source="derived here (docs/theory.md, section 1.2)",
        recorded=Verdict.HOLDS,
        judge=everywhere(check_shift),
        places=ANYWHERE,
    ),
)
