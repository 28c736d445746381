"""The token covariance of eq. 10 is not that of Theorem 2: its mean also holds what differs between states."""

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import torch

from entropy_theory.claims.claim import ANYWHERE, Claim, Context, Counterexample, Finding, Verdict
from entropy_theory.claims.search import by_search
from entropy_theory.claims.small import Problem, problems
from entropy_theory.claims.statement import Comparison, States
from entropy_theory.claims.theory.fifty import Policy, decimal, differ, fifty_digits, rewards
from entropy_theory.claims.theory.mdp import shares
from entropy_theory.claims.theory.over import agree, chunks, within
from entropy_theory.covariances import covariance
from entropy_theory.enclosure import Enclosed, mean, policy
from entropy_theory.enclosure import covariance as enclosed_covariance

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

SHARES = (0.5, 0.25, 0.125, 0.125)
"""How often each of a group of states occurs; powers of two, so that they sum to 1 exactly."""


def check_decomposition(states: States) -> Comparison:
    """The package's token covariance over groups of four states against within plus between, one number per group."""
    count = len(states.logits) // len(SHARES) * len(SHARES)
    shape = (-1, len(SHARES), states.logits.shape[1])
    z, advantage = (x[:count].reshape(shape) for x in (states.logits, states.advantage))
    share = Enclosed(torch.tensor(SHARES, dtype=torch.float64))
    logp, pi = policy(z)
    joint = pi * share.unsqueeze(-1)
    total = covariance(logp.value, advantage, joint.value, dim=(-2, -1))
    rounding = _same_operations(logp, Enclosed(advantage), joint).error
    inside = (enclosed_covariance(logp, advantage, pi) * share).sum()
    between = enclosed_covariance(mean(logp, pi), mean(advantage, pi), share)
    return agree(Enclosed(total, rounding), inside + between)


def _same_operations(x: Enclosed, y: Enclosed, weights: Enclosed) -> Enclosed:
    """The package's covariance step by step, for its rounding."""
    total = weights.sum((-2, -1), keepdim=True)
    x, y = (v - (weights * v).sum((-2, -1), keepdim=True) / total for v in (x, y))
    return (weights * (x * y)).sum((-2, -1)) / weights.sum((-2, -1))


def judge_decomposition(context: Context) -> Finding:
    """Groups of four states with one number of actions, of every chosen place."""
    worst, groups = 0.0, 0
    for batches in context.places.values():
        for states in chunks(batches):
            if len(states.logits) >= len(SHARES):
                ratio = check_decomposition(states).ratio()
                worst, groups = max(worst, float(ratio.max())), groups + len(ratio)
    text = f"Largest difference {worst:.2g} of the rounding bound on {groups:,} groups of {len(SHARES)} states."
    return within("eq_10_decomposition", context, worst, text, {"groups": groups})


@fifty_digits
def token_and_state(policies: Sequence[Problem], centre: bool) -> tuple[Decimal, Decimal]:
    """(mean of eq. 10 over many tokens, mean over states of Cov_s(log pi, A)); the states occur equally often."""
    pi = [Policy(p.weights) for p in policies]
    a = [p.centred(rewards(q)) if centre else rewards(q) for p, q in zip(pi, policies, strict=True)]
    return _eq_10(pi, a, [Fraction(1, len(pi))] * len(pi))


def _eq_10(pi: Sequence[Policy], a: Sequence[Sequence[Decimal]], share: Sequence[Fraction]) -> tuple[Decimal, Decimal]:
    d = [decimal(s) for s in share]
    means = [p.mean(x) for p, x in zip(pi, a, strict=True)]
    all_logp = sum(s * -p.h for s, p in zip(d, pi, strict=True))
    all_a = sum(s * m for s, m in zip(d, means, strict=True))
    product = sum(s * p.mean(lp * v for lp, v in zip(p.logp, x, strict=True)) for s, p, x in zip(d, pi, a, strict=True))
    inside = sum(s * p.covariance(x) for s, p, x in zip(d, pi, a, strict=True))
    return product - all_logp * all_a, inside


class Centred(NamedTuple):
    """Two states, and whether the advantage has mean 0 at each of them."""

    states: tuple[Problem, Problem]
    centre: bool


def _differs(case: Centred) -> bool:
    token, state = token_and_state(*case)
    return differ(token, state)


def _describe(case: Centred) -> Counterexample:
    token, state = map(float, token_and_state(*case))
    code = f"from entropy_theory.claims.small import Problem\nfrom {__name__} import token_and_state\n"
    return Counterexample(
        f"two states met equally often, {'; '.join(p.text for p in case.states)} taken as A: eq. 10 has mean "
        f"{token:.4g}, Theorem 2's covariance is {state:.4g}",
        f"{code}print(token_and_state({case.states!r}, {case.centre}))\n",
    )


def _cases(centre: bool) -> "SearchStrategy[Centred]":
    from hypothesis import strategies as st

    state = problems(2, 2)
    return st.builds(Centred, st.tuples(state, state), st.just(centre))


class Tree(NamedTuple):
    """Sequences of two tokens from {0, 1}: weights of the first, of the second after each, and reward by sequence."""

    first: tuple[int, int]
    second: tuple[tuple[int, int], tuple[int, int]]
    reward: tuple[tuple[int, int], tuple[int, int]]


@fifty_digits
def grpo_token_and_state(tree: Tree) -> tuple[Decimal, Decimal]:
    """`token_and_state` for GRPO advantages of groups of two, each token weighted equally, by enumerating the groups.

    Of two unequal rewards the better gets (r - mean)/std = +1/sqrt(2), the other minus that; equal ones get 0.
    """
    first, second = shares(tree.first), [shares(w) for w in tree.second]
    chance = {(a, b): first[a] * second[a][b] for a in (0, 1) for b in (0, 1)}
    sign = {
        s: sum(p * ((_of(tree, s) > _of(tree, t)) - (_of(tree, s) < _of(tree, t))) for t, p in chance.items())
        for s in chance
    }
    scale = 1 / Decimal(2).sqrt()
    at_root = [scale * decimal(sum((second[a][b] * sign[a, b] for b in (0, 1)), Fraction(0))) for a in (0, 1)]
    after = [[scale * decimal(Fraction(sign[a, b])) for b in (0, 1)] for a in (0, 1)]
    pi = [Policy(tree.first), *map(Policy, tree.second)]
    return _eq_10(pi, [at_root, *after], [Fraction(1, 2), first[0] / 2, first[1] / 2])


def _of(tree: Tree, sequence: tuple[int, int]) -> int:
    return tree.reward[sequence[0]][sequence[1]]


def _grpo_differs(tree: Tree) -> bool:
    token, state = grpo_token_and_state(tree)
    return differ(token, state)


def _describe_tree(tree: Tree) -> Counterexample:
    token, state = map(float, grpo_token_and_state(tree))
    return Counterexample(
        f"first token {tree.first}, second {tree.second} as weights, rewards {tree.reward}, groups of 2: eq. 10 has "
        f"mean {token:.4g}, Theorem 2's covariance is {state:.4g}",
        f"from {__name__} import Tree, grpo_token_and_state\nprint(grpo_token_and_state({tree!r}))\n",
    )


def _trees() -> "SearchStrategy[Tree]":
    from hypothesis import strategies as st

    def pair(low: int, high: int) -> "SearchStrategy[tuple[int, int]]":
        return st.tuples(st.integers(low, high), st.integers(low, high))

    return st.builds(Tree, pair(1, 9), st.tuples(pair(1, 9), pair(1, 9)), st.tuples(pair(0, 1), pair(0, 1)))


SOURCE = "Cui et al. 2025 (arXiv 2505.22617), section 4: the expectation of eq. 10 is the covariance of Theorem 2"
EQ_10 = (
    Claim(
        id="eq_10_decomposition",
        statement="The mean of eq. 10 over tokens is E_s[Cov_s(log pi, A)] + Cov_s(E[log pi | s], E[A | s]).",
        source="derived here (docs/theory.md, section 8.13)",
        recorded=Verdict.HOLDS,
        judge=judge_decomposition,
        places=ANYWHERE,
    ),
    Claim(
        id="eq_10_is_theorem_2",
        statement="The mean of eq. 10 over tokens is Theorem 2's covariance, averaged over states.",
        source=SOURCE,
        recorded=Verdict.UNDER_ASSUMPTION,
        judge=by_search(
            lambda: _cases(False), _differs, _describe, lambda: _cases(True), "E[A | s] = 0 at every state"
        ),
        assumptions=("E[A | s] = 0 at every state",),
    ),
    Claim(
        id="eq_10_grpo",
        statement="With GRPO's sequence-level advantages the mean of eq. 10 is Theorem 2's covariance.",
        source=SOURCE,
        recorded=Verdict.REFUTED,
        judge=by_search(_trees, _grpo_differs, _describe_tree),
    ),
)
