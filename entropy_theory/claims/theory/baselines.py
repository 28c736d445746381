"""What a baseline taken from the group does to the expected gradient, by enumerating every group, in whole numbers."""

import itertools
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import torch

from entropy_theory import advantage
from entropy_theory.claims.claim import Claim, Counterexample, Verdict
from entropy_theory.claims.search import by_search
from entropy_theory.claims.small import Problem, problems

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_U = 2.0**-53


class Group(NamedTuple):
    """A problem of which `size` actions are drawn independently."""

    problem: Problem
    size: int


def gradient(problem: Problem) -> list[Fraction]:
    """grad_z J = pi (r - E r), exactly."""
    weights, tenths = problem
    total = sum(weights)
    mean = Fraction(sum(w * t for w, t in zip(weights, tenths, strict=True)), total)
    return [Fraction(w, total) * (t - mean) / 10 for w, t in zip(weights, tenths, strict=True)]


def expected_gradient(group: Group, sign_only: bool = False) -> list[Fraction]:
    """E[1/n sum_i A_i (e_{a_i} - pi)] over all groups of n with A_i = r_i - mean r.

    sign_only: A_i = sign(r_i - r_j) instead; for n = 2 that is (r_i - mean)/std up to the factor sqrt(2).
    """
    (weights, tenths), n = group
    total, actions = sum(weights), range(len(weights))
    result = [0] * len(weights)
    for drawn in itertools.product(actions, repeat=n):
        chance = 1
        for a in drawn:
            chance *= weights[a]
        rewards = [tenths[a] for a in drawn]
        for a in drawn:
            own = n * tenths[a] - sum(rewards)  # n times 10 A
            own = (own > 0) - (own < 0) if sign_only else own
            for b in actions:
                result[b] += chance * own * (total * (a == b) - weights[b])
    return [Fraction(x, n * total ** (n + 1) * (1 if sign_only else 10 * n)) for x in result]


def _computed(group: Group) -> tuple[torch.Tensor, torch.Tensor]:
    """The package's RLOO advantages of every group and the exact ones, rounded once, [groups, n]."""
    (_, tenths), n = group
    drawn = list(itertools.product(tenths, repeat=n))
    reward = torch.tensor(drawn, dtype=torch.float64) / 10
    exact = [[(n * t - sum(row)) / (10 * (n - 1)) for t in row] for row in drawn]
    ids = torch.zeros(reward.shape, dtype=torch.int64)
    return advantage.rloo(reward, ids), torch.tensor(exact, dtype=torch.float64)


def _scaled_wrongly(group: Group) -> bool:
    """The mean of the group as the baseline does not scale the gradient by (n - 1)/n."""
    factor = Fraction(group.size - 1, group.size)
    return expected_gradient(group) != [factor * g for g in gradient(group.problem)]


def _rloo_biased(group: Group) -> bool:
    """n/(n - 1) times the above is not the gradient, or the package's advantage is not that."""
    factor = Fraction(group.size, group.size - 1)
    computed, exact = _computed(group)
    # r/10 is rounded, the smallest is subtracted, n are averaged and subtracted, and one quotient scales
    off = (computed - exact).abs().max() > (group.size + 10) * _U * 2
    return bool(off) or [factor * g for g in expected_gradient(group)] != gradient(group.problem)


def _turned(problem: Problem) -> bool:
    """The direction of the expected gradient changes when each group's advantages are divided by their std."""
    plain, scaled = gradient(problem), expected_gradient(Group(problem, 2), sign_only=True)
    pairs = itertools.combinations(range(len(plain)), 2)
    crossed = any(plain[a] * scaled[b] != plain[b] * scaled[a] for a, b in pairs)
    return crossed or sum(p * s for p, s in zip(plain, scaled, strict=True)) < 0


def _describe(group: Group) -> Counterexample:
    text = f"{group.problem.text}, groups of {group.size}: expected {_floats(expected_gradient(group))}, "
    code = f"from {__name__} import Group, expected_gradient, gradient\n"
    code += f"from entropy_theory.claims.small import Problem\ngroup = {group!r}\n"
    code += "print(expected_gradient(group), gradient(group.problem))\n"
    return Counterexample(f"{text}gradient {_floats(gradient(group.problem))}", code)


def _describe_turned(problem: Problem) -> Counterexample:
    scaled = expected_gradient(Group(problem, 2), sign_only=True)
    code = f"from {__name__} import Group, expected_gradient, gradient\n"
    code += f"from entropy_theory.claims.small import Problem\nproblem = {problem!r}\n"
    code += "print(expected_gradient(Group(problem, 2), sign_only=True), gradient(problem))\n"
    return Counterexample(
        f"{problem.text}, groups of 2: the expected direction is {_floats(scaled)}, the gradient "
        f"{_floats(gradient(problem))}",
        code,
    )


def _floats(values: list[Fraction]) -> str:
    return f"({', '.join(f'{float(v):.4g}' for v in values)})"


def _groups() -> "SearchStrategy[Group]":
    from hypothesis import strategies as st

    return st.builds(Group, problems(2, 3, weight=9), st.integers(2, 3))


def _binary() -> "SearchStrategy[Problem]":
    return problems(2, 3, highest=1, weight=9).map(lambda p: p._replace(tenths=tuple(10 * t for t in p.tenths)))


DERIVED = "derived here (docs/theory.md, section 8.7)"
BASELINES = (
    Claim(
        id="group_mean_baseline",
        statement="With n independent samples per prompt, r_i - mean r has expected gradient (n - 1)/n grad J.",
        source=DERIVED,
        recorded=Verdict.HOLDS,
        judge=by_search(_groups, _scaled_wrongly, _describe),
    ),
    Claim(
        id="rloo_unbiased",
        statement="RLOO, r_i minus the mean of the others, has expected gradient grad J.",
        source="Ahmadian et al. 2024 (arXiv 2402.14740); " + DERIVED,
        recorded=Verdict.HOLDS,
        judge=by_search(_groups, _rloo_biased, _describe),
    ),
    Claim(
        id="grpo_direction",
        statement="Dividing by the standard deviation of the group, as GRPO does, leaves the direction of a prompt's "
        "expected gradient unchanged (groups of two).",
        source="Shao et al. 2024 (arXiv 2402.03300); " + DERIVED,
        recorded=Verdict.UNDER_ASSUMPTION,
        judge=by_search(
            lambda: problems(2, 3, weight=9), _turned, _describe_turned, _binary, "rewards take two values only"
        ),
        assumptions=("rewards take two values only",),
    ),
)
