"""The Hessian of the entropy: its entries, and when the quadratic term raises entropy."""

from typing import TYPE_CHECKING

from entropy_theory import remainder, theorems
from entropy_theory.claims.claim import ANYWHERE, Claim, Counterexample, Verdict
from entropy_theory.claims.search import by_search
from entropy_theory.claims.small import Problem, problems
from entropy_theory.claims.statement import Comparison, States
from entropy_theory.claims.theory.fifty import ROUNDING, Policy, fifty_digits, rewards
from entropy_theory.claims.theory.over import agree, everywhere
from entropy_theory.enclosure import Enclosed, centred_log_prob, policy

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def check_entries(states: States) -> Comparison:
    """sum_ij d_i d_j Hess_ij over the stated entries against twice the package's quadratic term."""
    z, d = states.logits, states.change
    logp, pi = policy(z)
    c = centred_log_prob(logp, pi)
    by_rows = (pi.unsqueeze(-1) * pi.unsqueeze(-2)) * (c.unsqueeze(-1) + c.unsqueeze(-2) + 1.0)
    whole = ((by_rows * d.unsqueeze(-2)).sum() * d).sum()
    diagonal = (pi * (c + 1.0) * d * d).sum()
    value = theorems.entropy_change_second_order(z, d) - theorems.entropy_change_first_order(z, d)
    rounding = remainder.second_order_rounding(z, d) + remainder.first_order_rounding(z, d)
    quadratic = Enclosed(value, rounding + remainder.unit_roundoff(z.dtype) * value.abs())
    return agree(whole - diagonal, quadratic * 2.0)


@fifty_digits
def quadratic_term(problem: Problem) -> float:
    """-1/2 E[(1 + c)(d - E d)^2] for the problem's reward as the change d; 0 if fifty digits cannot tell its sign."""
    pi = Policy(problem.weights)
    d = pi.centred(rewards(problem))
    value = -pi.mean((1 + c) * x * x for c, x in zip(pi.c, d, strict=True)) / 2
    return float(value) if abs(value) > ROUNDING else 0.0


@fifty_digits
def _likely(problem: Problem) -> bool:
    """c_a >= -1 for every action: no probability below exp(-1 - H)."""
    return min(Policy(problem.weights).c) >= -1


def _describe(problem: Problem) -> Counterexample:
    value = quadratic_term(problem)
    text = problem.text.replace("reward", "change")
    code = (
        "from entropy_theory import entropy_change_first_order, entropy_change_second_order\n"
        "print(entropy_change_second_order(logits, reward) - entropy_change_first_order(logits, reward))\n"
    )
    return Counterexample(f"{text}: the quadratic term is {value:+.4g}", problem.code + code)


def _granted() -> "SearchStrategy[Problem]":
    return problems().filter(_likely)


CURVATURE = (
    Claim(
        id="hessian_entries",
        statement="d2H/dz_i dz_j = -delta_ij pi_i (1 + c_i) + pi_i pi_j (1 + c_i + c_j).",
        source="derived here (docs/theory.md, section 2.1)",
        recorded=Verdict.HOLDS,
        judge=everywhere(check_entries, actions=101, numbers=None),
        places=ANYWHERE,
    ),
    Claim(
        id="quadratic_term_negative",
        statement="The quadratic term of a step always costs entropy.",
        source="derived here (docs/theory.md, section 2.1)",
        recorded=Verdict.UNDER_ASSUMPTION,
        judge=by_search(
            problems, lambda p: quadratic_term(p) > 0, _describe, _granted, "no probability is below exp(-1 - H)"
        ),
        assumptions=("every pi_a >= exp(-1 - H)",),
    ),
)
