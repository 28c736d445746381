"""Three per-sample estimators of KL(pi || q): what they are worth as values, and as terms of a loss."""

from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

import torch

from entropy_theory.claims.claim import ANYWHERE, Claim, Counterexample, Verdict
from entropy_theory.claims.search import by_search
from entropy_theory.claims.statement import Comparison, States
from entropy_theory.claims.theory.fifty import Policy, differ, fifty_digits
from entropy_theory.claims.theory.over import agree, entrywise, everywhere, worst
from entropy_theory.enclosure import Enclosed, mean, policy
from entropy_theory.loss import DIVERGENCES
from entropy_theory.softmax import finite_log_probs

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


class Sides(NamedTuple):
    """pi, q = softmax(z + d) and x = log pi - log q, all [n, actions]."""

    pi: Enclosed
    q: Enclosed
    x: Enclosed


def _sides(states: States) -> Sides:
    logp, pi = policy(states.logits)
    other, q = policy(states.logits + states.change)
    return Sides(pi, q, logp - other)


def _expected_gradient(states: States, kind: str, slope: Callable[[Sides], Enclosed]) -> Enclosed:
    """Gradient of sum_a sg(pi_a) D(log pi_a - log q_a) by autograd, with the rounding of the same operations.

    autograd multiplies by D' (`slope`) and goes back through log_softmax: g - pi sum g with g = pi D'.
    """
    target, _ = finite_log_probs(states.logits + states.change)
    parameter = states.logits.detach().clone().requires_grad_(True)
    logp, probability = finite_log_probs(parameter)
    loss = (probability.detach() * DIVERGENCES[kind](logp - target)).sum()
    (gradient,) = torch.autograd.grad(loss, parameter)
    sides = _sides(states)
    arriving = sides.pi * slope(sides)
    return Enclosed(gradient, (arriving - sides.pi * arriving.sum(keepdim=True)).error)


def _one(sides: Sides) -> Enclosed:
    return Enclosed(torch.ones_like(sides.x.value))


def check_k1(states: States) -> Comparison:
    """The expected gradient of k1 = x is 0."""
    gradient = _expected_gradient(states, "k1", _one)
    return entrywise(agree(gradient, Enclosed(torch.zeros_like(gradient.value))))


def check_k2(states: States) -> Comparison:
    """The expected gradient of k2 = x^2/2 is grad KL(pi || q) = pi (x - KL)."""
    pi, _, x = _sides(states)
    kl = mean(x, pi, keepdim=True)
    return entrywise(agree(_expected_gradient(states, "k2", lambda s: s.x), pi * (x - kl)))


def check_k3(states: States) -> Comparison:
    """The expected gradient of k3 = e^-x + x - 1 is grad KL(q || pi) = pi - q."""
    pi, q, _ = _sides(states)
    gradient = _expected_gradient(states, "k3", lambda s: 1.0 - (-s.x).exp())
    masked = torch.isinf(states.logits)  # x is 0 there by convention, and so is everything else
    difference = pi - q
    return entrywise(agree(gradient, Enclosed(difference.value.masked_fill(masked, 0.0), difference.error)))


def check_values(states: States) -> Comparison:
    """E k1 = E k3 = KL(pi || q), computed as cross entropy minus entropy."""
    logp, _ = policy(states.logits)
    other, _ = policy(states.logits + states.change)
    pi, _, x = _sides(states)
    kl = mean(logp, pi) - mean(other, pi)
    k3 = mean((-x).exp() + x - 1.0, pi)
    return worst([agree(mean(x, pi), kl), agree(k3, kl)])


class Pair(NamedTuple):
    """Two policies as whole weights."""

    pi: tuple[int, ...]
    q: tuple[int, ...]


@fifty_digits
def k2_and_kl(pair: Pair) -> tuple[Decimal, Decimal]:
    """(E_pi k2, KL(pi || q))."""
    pi, q = Policy(pair.pi), Policy(pair.q)
    x = [a - b for a, b in zip(pi.logp, q.logp, strict=True)]
    return pi.mean(v * v / 2 for v in x), pi.mean(x)


def _biased(pair: Pair) -> bool:
    k2, kl = k2_and_kl(pair)
    return differ(k2, kl)


def _describe(pair: Pair) -> Counterexample:
    k2, kl = map(float, k2_and_kl(pair))
    code = (
        f"import torch\npi, q = (torch.tensor(w).double() for w in {tuple(pair)})\npi, q = pi / pi.sum(), q / q.sum()\n"
    )
    code += "x = (pi / q).log()\nprint((pi * x.square() / 2).sum(), (pi * x).sum())\n"
    return Counterexample(f"weights {pair.pi} and {pair.q}: E k2 = {k2:.4g}, KL = {kl:.4g}", code)


def _pairs() -> "SearchStrategy[Pair]":
    from hypothesis import strategies as st

    weights = st.tuples(*[st.integers(1, 9)] * 2)
    return st.builds(Pair, weights, weights)


SOURCE = "Schulman 2020, Approximating KL divergence; derived here (docs/theory.md, section 6)"


def _gradient_claim(kind: str, statement: str, check: Callable[[States], Comparison]) -> Claim:
    return Claim(f"{kind}_gradient", statement, SOURCE, Verdict.HOLDS, everywhere(check), places=ANYWHERE)


KL = (
    _gradient_claim("k1", "The expected gradient of k1 = log(pi/q) as a loss term on samples of pi is 0.", check_k1),
    _gradient_claim("k2", "The expected gradient of k2 = log(pi/q)^2 / 2 is that of KL(pi || q).", check_k2),
    _gradient_claim("k3", "The expected gradient of k3 = q/pi - log(q/pi) - 1 is that of KL(q || pi).", check_k3),
    Claim("kl_values", "E k1 = E k3 = KL(pi || q).", SOURCE, Verdict.HOLDS, everywhere(check_values), places=ANYWHERE),
    Claim(
        "k2_unbiased",
        "E k2 = KL(pi || q): k2 is an unbiased estimate.",
        SOURCE,
        Verdict.REFUTED,
        by_search(_pairs, _biased, _describe),
    ),
)
