"""Policies that are not tables: the natural step projects A on what the parameters can do, the plain step uses K."""

import math
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from entropy_theory.claims.claim import Claim, Context, Counterexample, Finding, Verdict
from entropy_theory.claims.search import by_search
from entropy_theory.claims.theory.fifty import ROUNDING, Policy, decimal, fifty_digits
from entropy_theory.claims.theory.mdp import shares, table
from entropy_theory.kernel import Parameters, agreement, natural_step

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Row = list[Fraction]


class OneParameter(NamedTuple):
    """pi(a|s) ~ fixed 2^(theta feature) at theta = 1, two states met equally often; rewards in tenths.

    The smallest policy that is not a table: one parameter moves both states.
    """

    fixed: tuple[tuple[int, ...], ...]
    feature: tuple[tuple[int, ...], ...]
    tenths: tuple[tuple[int, ...], ...]

    @property
    def weights(self) -> list[tuple[int, ...]]:
        """fixed 2^feature by state and action."""
        rows = zip(self.fixed, self.feature, strict=True)
        return [tuple(w * 2**f for w, f in zip(*row, strict=True)) for row in rows]

    def parts(self) -> tuple[list[Row], list[Row], list[Row]]:
        """(pi, the score psi = d log pi / d theta over ln 2, A = r - E r), by state and action; exact."""
        pi = [shares(w) for w in self.weights]
        score = [_centred(p, list(map(Fraction, f))) for p, f in zip(pi, self.feature, strict=True)]
        advantage = [_centred(p, [Fraction(t, 10) for t in r]) for p, r in zip(pi, self.tenths, strict=True)]
        return pi, score, advantage

    def natural(self) -> Fraction | None:
        """w = F^-1 dJ/dtheta with F = E psi^2; None where the parameter moves nothing."""
        pi, score, _ = self.parts()
        fisher = _mean(pi, [[x * x for x in row] for row in score])
        reward = [[Fraction(t, 10) for t in row] for row in self.tenths]
        slope = _mean(pi, [[x * r for x, r in zip(s, t, strict=True)] for s, t in zip(score, reward, strict=True)])
        return slope / fisher if fisher else None


def _centred(pi: Row, x: Row) -> Row:
    mean = sum((p * v for p, v in zip(pi, x, strict=True)), Fraction(0))
    return [v - mean for v in x]


def _mean(pi: list[Row], x: list[Row]) -> Fraction:
    """Over states met equally often and actions of the policy."""
    terms = (p * v for row, values in zip(pi, x, strict=True) for p, v in zip(row, values, strict=True))
    return sum(terms, Fraction(0)) / len(pi)


def misfit(policy: OneParameter, w: Fraction) -> Fraction:
    """E (A - w psi)^2."""
    pi, score, advantage = policy.parts()
    rows = [[(a - w * x) ** 2 for a, x in zip(*pair, strict=True)] for pair in zip(advantage, score, strict=True)]
    return _mean(pi, rows)


def _not_least(policy: OneParameter) -> bool:
    w = policy.natural()
    if w is None:
        return False
    best = misfit(policy, w)
    return any(misfit(policy, w + shift) <= best for shift in (Fraction(s, 1000) for s in (-1000, -1, 1, 1000)))


@fifty_digits
def rates(policy: OneParameter) -> list[tuple[float, float]]:
    """Entropy change per unit of step size of the natural step and by Theorem 2: at both states, then their mean.

    0 where fifty digits cannot tell a number, or a difference of the two, from it.
    """
    _, score, advantage = policy.parts()
    w = policy.natural() or Fraction(0)
    found = []
    for weights, psi, a in zip(policy.weights, score, advantage, strict=True):
        state = Policy(weights)
        found.append(tuple(-state.covariance([decimal(v) for v in d]) for d in ([w * x for x in psi], a)))
    found.append(tuple(sum(column) / len(found) for column in zip(*found, strict=True)))
    return [(float(n), float(t)) if abs(n - t) > ROUNDING else (float(t), float(t)) for n, t in found]


def _state_differs(policy: OneParameter) -> bool:
    return policy.natural() is not None and any(natural != theorem_2 for natural, theorem_2 in rates(policy)[:-1])


def _mean_differs(policy: OneParameter) -> bool:
    natural, theorem_2 = rates(policy)[-1]
    return policy.natural() is not None and natural != theorem_2


def _describe(policy: OneParameter) -> Counterexample:
    sides = [f"{natural:.4g} eta (Theorem 2: {theorem_2:.4g} eta)" for natural, theorem_2 in rates(policy)]
    text = (
        f"pi(a|s) ~ v 2^f with f = {policy.feature}, v = {policy.fixed}, rewards {policy.tenths} tenths, natural step "
        f"w = {policy.natural()}: entropy changes by {sides[0]} and {sides[1]}, in the mean by {sides[2]}"
    )
    return Counterexample(text, f"from {__name__} import OneParameter, rates\nprint(rates({policy!r}))\n")


def _policies(fixed: int = 4) -> "SearchStrategy[OneParameter]":
    from hypothesis import strategies as st

    return st.builds(
        OneParameter, table(2, st.integers(1, fixed)), table(2, st.integers(0, 3)), table(2, st.integers(0, 10))
    )


def _within_reach() -> "SearchStrategy[OneParameter]":
    """A is a multiple of the score: rewards proportional to the feature."""
    from hypothesis import strategies as st

    def rewarded(policy: OneParameter, slope: int) -> OneParameter:
        return policy._replace(tenths=tuple(tuple(slope * f for f in row) for row in policy.feature))

    return st.builds(rewarded, _policies(), st.integers(-3, 3))


# --- random networks ------------------------------------------------------------------------------------------------

STATES, INPUTS, ACTIONS, NETWORKS = 10, 3, 4, 3
SPREAD = 1e-6
"""Largest spread of the logit change of a network's step, nats."""


class Network(NamedTuple):
    """A tanh network with one hidden layer at fixed states, and advantages; see `kernel.kernel_step`."""

    parameters: dict[str, Tensor]
    states: Tensor
    advantage: Tensor
    weight: Tensor

    def policy(self, parameters: Parameters) -> Tensor:
        """Logits [states, actions]."""
        return torch.tanh(self.states @ parameters["w_1"]) @ parameters["w_2"]


def network(hidden: int, seed: int) -> Network:
    """Weights of variance 1/inputs, states and advantages Gaussian, every state equally often."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    states, advantage = normal(STATES, INPUTS), normal(STATES, ACTIONS)
    parameters = {"w_1": normal(INPUTS, hidden) / math.sqrt(INPUTS), "w_2": normal(hidden, ACTIONS) / math.sqrt(hidden)}
    return Network(parameters, states, advantage, torch.full((STATES,), 1 / STATES, dtype=torch.float64))


class Off(NamedTuple):
    """Of one natural step: the share of A out of reach, and Theorem 2's relative error by state and in the mean."""

    residual: float
    by_state: float
    in_mean: float


def _off(hidden: int, seed: int) -> Off:
    net = network(hidden, seed)
    arguments = (net.policy, net.parameters, net.advantage, net.weight)
    unit = natural_step(*arguments, 1.0).natural_change
    step = natural_step(*arguments, SPREAD / float((unit.amax(-1) - unit.amin(-1)).max()))
    predicted, measured = step.theorem_2_prediction, step.measured
    mean = float((predicted.mean() - measured.mean()).abs() / measured.mean().abs())
    return Off(step.residual, agreement(predicted, measured).relative_error, mean)


def judge_networks(context: Context) -> Finding:
    """Natural steps of narrow and wide networks: what part of A is out of reach, and how far off Theorem 2 is."""
    parts, numbers = [], {}
    for hidden in (2, 64):
        found = [_off(hidden, context.seed * NETWORKS + n) for n in range(NETWORKS)]
        off = Off(*(sorted(column)[NETWORKS // 2] for column in zip(*found, strict=True)))
        numbers |= {f"{name}_{hidden}": value for name, value in off._asdict().items()}
        shares = f"{off.residual:.2g} of A, {off.by_state:.2g} by state, {off.in_mean:.2g} in the mean"
        parts.append(f"{hidden} hidden units: {shares}")
    text = (
        f"Median share of A out of reach and median relative errors of Theorem 2 by state and in the mean over states "
        f"({NETWORKS} random tanh networks, {STATES} states, {ACTIONS} actions, logits moved by {SPREAD:g}): "
        f"{'; '.join(parts)}."
    )
    return Finding(Verdict.EMPIRICAL, text, numbers)


DERIVED = "derived here (docs/theory.md, section 8.4)"
READ = "Cui et al. 2025 (arXiv 2505.22617), Theorem 2 read without its tabular policy"
NETWORK = (
    Claim(
        id="natural_gradient_projection",
        statement="The natural step of any policy is the least-squares projection of A on its scores grad log pi.",
        source="Kakade 2001; " + DERIVED,
        recorded=Verdict.HOLDS,
        judge=by_search(_policies, _not_least, _describe),
    ),
    Claim(
        id="theorem_2_by_state",
        statement="Theorem 2 gives the entropy change of the natural step of any policy at each state, to first order.",
        source=READ,
        recorded=Verdict.UNDER_ASSUMPTION,
        judge=by_search(_policies, _state_differs, _describe, _within_reach, "A is a combination of the scores"),
        assumptions=("A is a combination of the scores (compatible features)",),
    ),
    Claim(
        id="theorem_2_in_the_mean",
        statement="Theorem 2 gives the entropy change of the natural step of any policy in the mean over d(s), to "
        "first order.",
        source=READ,
        recorded=Verdict.UNDER_ASSUMPTION,
        judge=by_search(
            _policies,
            _mean_differs,
            _describe,
            lambda: _policies(fixed=1),
            "log pi is a combination of the scores, as where the logits are linear in some of the parameters",
        ),
        assumptions=("log pi or A is a combination of the scores",),
    ),
    Claim(
        id="theorem_2_network",
        statement="How far Theorem 2 is from the natural step of a small network.",
        source=DERIVED,
        recorded=Verdict.EMPIRICAL,
        judge=judge_networks,
    ),
)
