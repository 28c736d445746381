"""Theorems 1 and 2 can predict opposite signs, and how often they do."""

import itertools
import math

import torch

from entropy_theory import remainder, theorems
from entropy_theory.claims.claim import Claim, Context, Counterexample, Finding, Verdict
from entropy_theory.claims.search import by_search
from entropy_theory.claims.small import Problem, problems
from entropy_theory.claims.theory.fifty import ROUNDING, Policy, fifty_digits, rewards

ACTIONS = (2, 3, 5, 10, 100, 1000)
_CHUNK = 1 << 18


@fifty_digits
def predictions(problem: Problem) -> tuple[float, float]:
    """(Theorem 1, Theorem 2) per unit of step size; 0 where fifty digits cannot tell the sign."""
    policy = Policy(problem.weights)
    a = policy.centred(rewards(problem))
    first = -policy.covariance([p * x for p, x in zip(policy.pi, a, strict=True)])
    second = -policy.covariance(a)
    return tuple(float(v) if abs(v) > ROUNDING else 0.0 for v in (first, second))


@fifty_digits
def opposed(problem: Problem) -> Problem | None:
    """The problem with its rewards dealt to other actions so that the two signs differ; None if no deal does it.

    Both are linear in the rewards, with coefficients -pi_a (pi_a c_a - C) and -pi_a c_a, times 10 for tenths.
    """
    policy = Policy(problem.weights)
    pushes = [p * c for p, c in zip(policy.pi, policy.c, strict=True)]
    plain = [p * (x - policy.collision) for p, x in zip(policy.pi, pushes, strict=True)]
    for tenths in sorted(set(itertools.permutations(problem.tenths))):
        first, second = (sum(x * t for x, t in zip(v, tenths, strict=True)) for v in (plain, pushes))
        if min(first, second) < -10 * ROUNDING and max(first, second) > 10 * ROUNDING:
            return problem._replace(tenths=tenths)
    return None


def _describe(problem: Problem) -> Counterexample:
    problem = opposed(problem)
    first, second = predictions(problem)
    return Counterexample(
        f"{problem.text}: Theorem 1 gives {first:.4g} eta, Theorem 2 {second:.4g} eta",
        problem.code
        + "from entropy_theory import theorem_1, theorem_2\n"
        + "print(theorem_1(logits, reward, 1.0), theorem_2(logits, reward, 1.0))\n",
    )


def interval(count: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """An interval for a probability of which `count` of `total` draws are known; its level is at least `level`.

    {p: total KL(count/total || p) <= ln(2 / (1 - level))}, by Chernoff's bound on each side.
    """
    share = count / total
    limit = math.log(2 / (1 - level)) / total

    def excess(p: float) -> float:
        parts = ((share, p), (1 - share, 1 - p))
        return sum(x * math.log(x / y) if y > 0 else math.inf for x, y in parts if x > 0) - limit

    def end(outside: float) -> float:
        inside = share
        if excess(outside) <= 0:
            return outside
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if excess(middle) <= 0 else (inside, middle)
        return outside

    return end(0.0), end(1.0)


def rate(actions: int, draws: int, seed: int) -> tuple[int, int]:
    """How many of `draws` instances certainly disagree in sign, and how many rounding leaves open.

    Policies are uniform on the simplex (Dirichlet(1)), advantages Gaussian; signs closer to 0 than their rounding
    bound are open.
    """
    generator = torch.Generator().manual_seed(seed)
    opposite = undecided = 0
    for start in range(0, draws, rows := max(1, _CHUNK // actions)):
        size = min(rows, draws - start), actions
        z = torch.rand(size, generator=generator, dtype=torch.float64).log().neg().log()
        advantage = torch.randn(size, generator=generator, dtype=torch.float64)
        step = theorems.policy_gradient_step(z, advantage, 1.0)
        first, second = theorems.theorem_1(z, advantage, 1.0), theorems.theorem_2(z, advantage, 1.0)
        moved = remainder.policy_gradient_step_rounding(z, advantage, 1.0).amax(-1)
        unsure = first.abs() <= remainder.first_order_rounding(z, step) + remainder.first_order_effect(moved, actions)
        unsure |= second.abs() <= remainder.first_order_rounding(z, advantage)
        opposite += int(((first * second < 0) & ~unsure).sum())
        undecided += int(unsure.sum())
    return opposite, undecided


def judge_rate(context: Context) -> Finding:
    """The rate by number of actions."""
    parts, numbers = [], {}
    for actions in ACTIONS:
        draws = context.profile.instances if actions < 1000 else max(1, context.profile.instances // 4)
        opposite, undecided = rate(actions, draws, context.seed)
        low, high = interval(opposite, draws)
        numbers |= {f"rate_{actions}": opposite / draws, f"low_{actions}": low, f"high_{actions}": high}
        numbers[f"undecided_{actions}"] = undecided
        parts.append(f"K={actions}: {opposite / draws:.2%} [{low:.2%}, {high:.2%}]")
    text = f"Opposite signs (95 % intervals) for {'; '.join(parts)}."
    return Finding(Verdict.EMPIRICAL, text, numbers)


DERIVED = "derived here (docs/theory.md, section 8.10)"
DISAGREEMENT = (
    Claim(
        id="theorems_same_sign",
        statement="Theorems 1 and 2 predict the same sign of the entropy change.",
        source="Cui et al. 2025 (arXiv 2505.22617), section 3, where Theorem 2's covariance stands for both",
        recorded=Verdict.UNDER_ASSUMPTION,
        judge=by_search(
            problems, lambda p: opposed(p) is not None, _describe, lambda: problems(2, 2), "there are two actions"
        ),
        assumptions=("two actions",),
    ),
    Claim(
        id="disagreement_rate",
        statement="How often Theorems 1 and 2 differ in sign, for policies uniform on the simplex and Gaussian "
        "advantages.",
        source=DERIVED,
        recorded=Verdict.EMPIRICAL,
        judge=judge_rate,
    ),
)
