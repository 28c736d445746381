"""A constant baseline changes neither the gradient nor the entropy."""

from decimal import Decimal
from fractions import Fraction

from entropy_theory.claims.claim import Claim, Counterexample, Verdict
from entropy_theory.claims.search import by_search
from entropy_theory.claims.small import Problem, problems
from entropy_theory.claims.theory.fifty import Policy, fifty_digits, rewards
from entropy_theory.claims.theory.mdp import shares

BASELINES = (0, 1)


def step(problem: Problem, baseline: int) -> list[Fraction]:
    """The exact gradient of sum pi (r - b): pi_a ((r_a - b) - E(r - b))."""
    pi = shares(problem.weights)
    advantage = [Fraction(t, 10) - baseline for t in problem.tenths]
    mean = sum((p * a for p, a in zip(pi, advantage, strict=True)), Fraction(0))
    return [p * (a - mean) for p, a in zip(pi, advantage, strict=True)]


@fifty_digits
def published(problem: Problem, baseline: int) -> Decimal:
    """-Cov(log pi, pi (r - b)), the change the proposition computes, per unit of step size."""
    pi = Policy(problem.weights)
    return -pi.covariance([p * (r - baseline) for p, r in zip(pi.pi, rewards(problem), strict=True)])


def _unchanged(problem: Problem) -> bool:
    """The published change grows with the baseline while the step, and so the true change, stays the same."""
    low, high = (published(problem, b) for b in BASELINES)
    return low < high and step(problem, BASELINES[0]) == step(problem, BASELINES[1]) and any(step(problem, 0))


def _describe(problem: Problem) -> Counterexample:
    low, high = (float(published(problem, b)) for b in BASELINES)
    exact = ", ".join(f"{float(x):.4g}" for x in step(problem, 0))
    return Counterexample(
        f"{problem.text}: for b = 0 and 1 the proposition computes {low:.4g} and {high:.4g} per unit step, while the "
        f"step is ({exact}) for both, so the entropy changes equally",
        f"from entropy_theory.claims.small import Problem\nfrom {__name__} import published, step\n"
        f"problem = {problem!r}\nprint([step(problem, b) for b in (0, 1)], [published(problem, b) for b in (0, 1)])\n",
    )


BASELINE_SHIFT = Claim(
    id="baseline_raises_entropy",
    statement="The entropy change of a policy-gradient step is strictly increasing in a constant baseline b.",
    source="Quantile advantage estimation (arXiv 2509.22611), Proposition 4.2",
    recorded=Verdict.REFUTED,
    judge=by_search(problems, _unchanged, _describe),
)
