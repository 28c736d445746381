"""Proposition 1 with an advantage whose mean under the policy is not 0."""

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from entropy_theory.claims.claim import Claim, Counterexample, Verdict
from entropy_theory.claims.search import by_search
from entropy_theory.claims.small import Problem, problems
from entropy_theory.claims.theory.baselines import gradient
from entropy_theory.claims.theory.mdp import shares

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


class Case(NamedTuple):
    """A problem whose advantage is its reward, minus the mean reward if `centre`."""

    problem: Problem
    centre: bool

    def published(self) -> list[Fraction]:
        """pi_a A_a, exactly."""
        pi = shares(self.problem.weights)
        reward = [Fraction(t, 10) for t in self.problem.tenths]
        mean = sum((p * r for p, r in zip(pi, reward, strict=True)), Fraction(0)) if self.centre else 0
        return [p * (r - mean) for p, r in zip(pi, reward, strict=True)]


def _violates(case: Case) -> bool:
    """The two steps differ by more than a constant, so they lead to different policies.

    The exact gradient is that of `proposition_1`, whose claim compares it with autograd.
    """
    away = [g - p for g, p in zip(gradient(case.problem), case.published(), strict=True)]
    return len(set(away)) > 1


def _describe(case: Case) -> Counterexample:
    exact, published = (", ".join(f"{float(x):.4g}" for x in v) for v in (gradient(case.problem), case.published()))
    code = (
        "from entropy_theory.claims.step import return_gradient\n"
        "print(return_gradient(logits, reward))\nprint(logits.softmax(-1) * reward)\n"
    )
    text = f"{case.problem.text} taken as the advantage: the gradient of J is ({exact}), pi A is ({published})"
    return Counterexample(text, case.problem.code + code)


def _cases(centre: bool) -> "SearchStrategy[Case]":
    return problems().map(lambda p: Case(p, centre))


def _granted() -> "SearchStrategy[Case]":
    """E_pi A = 0, or a uniform policy, for which pi_a E[A] is the same number for every action."""
    uniform = problems().map(lambda p: Case(p._replace(weights=(1,) * len(p.weights)), False))
    return _cases(centre=True) | uniform


UNCENTRED = Claim(
    id="proposition_1_uncentred",
    statement="One policy-gradient step changes the logits by eta pi_a A_a, up to a constant, whatever the mean of A.",
    source="Cui et al. 2025 (arXiv 2505.22617), Proposition 1 read without its centred advantage",
    recorded=Verdict.UNDER_ASSUMPTION,
    judge=by_search(
        lambda: _cases(centre=False), _violates, _describe, _granted, "E_pi A = 0 or pi_a E_pi A is constant"
    ),
    assumptions=("E_pi A = 0, or the policy is uniform",),
)
