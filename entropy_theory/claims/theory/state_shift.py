"""Averaging Lemma 1 over states freezes their distribution; the entropy of a policy also moves with what it visits."""

from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from entropy_theory import remainder
from entropy_theory.claims.claim import Claim, Context, Counterexample, Finding, Verdict
from entropy_theory.claims.instances import drawn_change
from entropy_theory.claims.search import by_search
from entropy_theory.claims.theory.fifty import Policy, decimal, differ, fifty_digits, ln, remainder_bound
from entropy_theory.claims.theory.mdp import Chain, chains, shares, table
from entropy_theory.claims.theory.over import agree, within
from entropy_theory.enclosure import Enclosed, enclosed, matmul
from entropy_theory.softmax import entropy

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

SIZES = ((2, 2), (3, 2), (5, 3), (8, 4), (20, 3))
"""States and actions of the drawn processes."""
DISCOUNT = 0.9


def _flow(logits: Tensor, moves: Tensor) -> Tensor:
    """P(s' | s) under a policy: [n, states, actions] logits and [n, states, actions, states] transitions."""
    return (torch.softmax(logits, -1).unsqueeze(-1) * moves).sum(-2)


def _discounted(flow: Tensor, right: Tensor, forward: bool) -> Enclosed:
    """x with (I - gamma P^T) x = right (forward: visits) or (I - gamma P) x = right (values), with a proved error.

    |x - computed| <= |residual| / (1 - gamma), in the sum norm forwards and in the maximum norm backwards, because
    the rows of P sum to 1. Rounded rows may sum to 1 + 1e-12 at most, which 1 - gamma - 1e-11 covers.
    """
    moved = flow.mT if forward else flow
    matrix = torch.eye(flow.shape[-1], dtype=flow.dtype) - DISCOUNT * moved
    solution = torch.linalg.solve(matrix, right.unsqueeze(-1))
    step = matmul(moved, solution) * DISCOUNT
    residual = enclosed(solution) - step - right.unsqueeze(-1)
    size = (residual.value.abs() + residual.error).squeeze(-1)
    norm = size.sum(-1, keepdim=True) if forward else size.amax(-1, keepdim=True)
    return Enclosed(solution.squeeze(-1), (norm / (1 - DISCOUNT - 1e-11)).expand_as(right) * (1 + 1e-9))


def shift_sides(before: Tensor, after: Tensor, moves: Tensor) -> tuple[Enclosed, Enclosed, Enclosed]:
    """The change of the policy's entropy from value functions, the frozen term and the shift term, each [n].

    The policy's entropy is (1 - gamma) V(start), V the discounted sum of H along the way; both terms use visits.
    """
    start = torch.zeros(before.shape[:-1], dtype=before.dtype)
    start[:, 0] = 1 - DISCOUNT
    flows = _flow(before, moves), _flow(after, moves)
    h = [Enclosed(entropy(z), remainder.entropy_rounding(z)) for z in (before, after)]
    visits = [_discounted(flow, start, forward=True) for flow in flows]
    values = []
    for flow, state in zip(flows, h, strict=True):
        v = _discounted(flow, state.value, forward=False)  # an error e of H moves V by at most e / (1 - gamma)
        values.append(Enclosed(v.value, v.error + state.error.amax(-1, keepdim=True) / (1 - DISCOUNT - 1e-11)))
    total = (values[1][:, 0] - values[0][:, 0]) * start[:, 0]
    frozen = (visits[0] * (h[1] - h[0])).sum()
    return total, frozen, ((visits[1] - visits[0]) * h[1]).sum()


def judge_identity(context: Context) -> Finding:
    """Both sides of the identity on random processes; the share of the shift term for the evidence."""
    generator = torch.Generator().manual_seed(context.seed)
    count = max(1, context.profile.instances // (4 * len(SIZES)))
    worst, shares_, instances = 0.0, [], 0
    for states, actions in SIZES:
        before = 2 * torch.randn(count, states, actions, generator=generator, dtype=torch.float64)
        change = drawn_change(before.flatten(0, 1), context.seed).view_as(before)
        raw = torch.rand(count, states, actions, states, generator=generator, dtype=torch.float64).pow(4)
        total, frozen, shift = shift_sides(before, before + change, raw / raw.sum(-1, keepdim=True))
        worst = max(worst, float(agree(total, frozen + shift).ratio().max()))
        sizes = shift.value.abs(), frozen.value.abs()
        shares_.append((sizes[0] / (sizes[0] + sizes[1]))[sizes[0] + sizes[1] > 0])
        instances += count
    share = float(torch.cat(shares_).median())
    text = (
        f"Both sides agree to {worst:.2g} of the rounding bound on {instances:,} random processes; the shift term is "
        f"{share:.0%} of the two in the median."
    )
    return within("state_shift", context, worst, text, {"instances": instances, "median_shift_share": share})


class Step(NamedTuple):
    """A process, a policy as whole weights by state and action, and by how many percent each weight grows."""

    chain: Chain
    weights: tuple[tuple[int, ...], ...]
    percent: tuple[tuple[int, ...], ...]


@fifty_digits
def frozen_and_true(step: Step) -> tuple[Decimal, Decimal, Decimal]:
    """(-sum_s d_k Cov_s(log pi, dz), true change of the policy's entropy, Lemma 1's largest bound at a state)."""
    states = range(len(step.weights))
    after = [[w * (100 + p) for w, p in zip(step.weights[s], step.percent[s], strict=True)] for s in states]
    d = [[decimal(x) for x in step.chain.visits([shares(w) for w in p])] for p in (step.weights, after)]
    old, new = ([Policy(w) for w in p] for p in (step.weights, after))
    dz = [[ln(100 + p) - ln(100) for p in row] for row in step.percent]
    predicted = -sum(weight * policy.covariance(x) for weight, policy, x in zip(d[0], old, dz, strict=True))
    change = sum(w * p.h for w, p in zip(d[1], new, strict=True)) - sum(w * p.h for w, p in zip(d[0], old, strict=True))
    return predicted, change, max(map(remainder_bound, dz))


def _violates(step: Step) -> bool:
    return differ(*frozen_and_true(step))


def _describe(step: Step) -> Counterexample:
    predicted, change, bound = map(float, frozen_and_true(step))
    text = (
        f"{step.chain.text}, weights {step.weights} growing by {step.percent} %: the policy's entropy "
        f"changes by {change:.4g}, frozen states give {predicted:.4g}, Lemma 1's bound is {bound:.2g}"
    )
    code = f"from entropy_theory.claims.theory.mdp import Chain\nfrom {__name__} import Step, frozen_and_true\n"
    return Counterexample(text, f"{code}print(frozen_and_true({step!r}))\n")


def _steps(following: "SearchStrategy[Chain]") -> "SearchStrategy[Step]":
    from hypothesis import strategies as st

    return st.builds(Step, following, table(2, st.integers(1, 9)), table(2, st.integers(-3, 3)))


def _unmoved() -> "SearchStrategy[Step]":
    """What comes next does not depend on the action (a bandit is the case of one state)."""
    return _steps(chains().map(lambda c: c._replace(following=tuple((row[0],) * len(row) for row in c.following))))


SOURCE = "Cui et al. 2025 (arXiv 2505.22617), Lemma 1 averaged over s ~ d(policy k)"
STATE_SHIFT = (
    Claim(
        id="state_shift",
        statement="In a Markov decision process the entropy sum_s d(s) H(s) of a policy changes by exactly "
        "sum_s d_k (H_k+1 - H_k) + sum_s (d_k+1 - d_k) H_k+1.",
        source="derived here (docs/theory.md, section 8.2)",
        recorded=Verdict.HOLDS,
        judge=judge_identity,
    ),
    Claim(
        id="state_shift_frozen",
        statement="The policy's entropy changes by -E_{s ~ d_k} Cov(log pi, dz) to first order.",
        source=SOURCE,
        recorded=Verdict.UNDER_ASSUMPTION,
        judge=by_search(
            lambda: _steps(chains()), _violates, _describe, _unmoved, "the step does not move the state distribution"
        ),
        assumptions=("the state distribution does not move",),
    ),
)
