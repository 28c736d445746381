"""Gradient steps of policies that are not tables: exact to first order through the logit kernel K, not with K = I."""

from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from entropy_theory.claims.claim import Claim, Context, Counterexample, Finding, Verdict
from entropy_theory.claims.search import by_search
from entropy_theory.claims.theory.fifty import Policy, differ, fifty_digits, remainder_bound
from entropy_theory.claims.theory.mdp import table
from entropy_theory.claims.theory.network import network
from entropy_theory.claims.theory.over import within
from entropy_theory.kernel import agreement, error_slope, kernel_step_of_spread

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

NETWORKS, SPREAD = 5, 0.05
"""Random networks, and the spread of the logit change of the largest of five halved steps, nats."""
HALF_WIDTH = 0.1
"""As for `error_orders`: the ratio of successive errors differs from 4 by a relative O(spread), a few hundredths here;
a missing or wrong first-order term makes the slope 1."""


def judge_slope(context: Context) -> Finding:
    """Order of the error of the kernel's prediction, median over random tanh networks."""
    slopes = []
    for n in range(NETWORKS):
        net = network(6, context.seed * NETWORKS + n)
        arguments = (net.policy, net.parameters, net.advantage, net.weight)
        slopes.append(error_slope(*arguments, kernel_step_of_spread(*arguments, SPREAD).step_size))
    median = sorted(slopes)[NETWORKS // 2]
    text = (
        f"Slope of log error against log step: median {median:.3f}, {min(slopes):.3f} to {max(slopes):.3f} over "
        f"{NETWORKS} random tanh networks."
    )
    return within("kernel_first_order", context, abs(median - 2) / HALF_WIDTH, text, {"slope": median})


class Linear(NamedTuple):
    """z(s, a) = sum_i x_i(s) theta_i(a) with features x, at theta_i(a) = ln weight_i(a); rewards in tenths.

    Two states met equally often, two features, two actions, one step of size 1/100.
    """

    features: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[int, ...], ...]
    tenths: tuple[tuple[int, ...], ...]

    @property
    def policies(self) -> list[Policy]:
        """softmax(z) at both states."""
        return [Policy([w[0] ** x[0] * w[1] ** x[1] for w in zip(*self.weights, strict=True)]) for x in self.features]


@fifty_digits
def identity_and_true(case: Linear) -> list[tuple[Decimal, Decimal, Decimal]]:
    """At each state: Theorem 1 with d(s) = 1/2 (K = I), the true entropy change, Lemma 1's bound."""
    step, policies = Decimal("0.01"), case.policies
    push = []
    for policy, tenths in zip(policies, case.tenths, strict=True):
        advantage = policy.centred([Decimal(t) / 10 for t in tenths])
        push.append([step / 2 * p * a for p, a in zip(policy.pi, advantage, strict=True)])
    result = []
    for policy, x, own in zip(policies, case.features, push, strict=True):
        kernel = [x[0] * y[0] + x[1] * y[1] for y in case.features]
        change = [sum(k * p[a] for k, p in zip(kernel, push, strict=True)) for a in range(len(own))]
        moved = policy.moved(change)
        bound = max(remainder_bound(change), remainder_bound(own))
        result.append((-policy.covariance(own), moved.h - policy.h, bound))
    return result


def _violates(case: Linear) -> bool:
    return any(differ(*sides) for sides in identity_and_true(case))


def _describe(case: Linear) -> Counterexample:
    sides = "; ".join(f"{float(p):.4g} predicted, {float(c):.4g} true" for p, c, _ in identity_and_true(case))
    return Counterexample(
        f"features {case.features}, weights {case.weights}, rewards {case.tenths} tenths, eta = 0.01: {sides}",
        f"from {__name__} import Linear, identity_and_true\nprint(identity_and_true({case!r}))\n",
    )


def _cases(one_hot: bool) -> "SearchStrategy[Linear]":
    from hypothesis import strategies as st

    features = st.just(((1, 0), (0, 1))) if one_hot else table(2, st.integers(0, 2))
    return st.builds(Linear, features, table(2, st.integers(1, 5)), table(2, st.integers(0, 10)))


def judge_worlds(context: Context) -> Finding:
    """One plain gradient step of each chosen world's network."""
    parts, numbers = [], {}
    for name, lent in context.worlds.items():
        step = lent.kernel
        if step is None:
            continue
        with_kernel, with_identity = (
            agreement(p, step.measured) for p in (step.kernel_prediction, step.identity_prediction)
        )
        numbers |= {f"{name}_kernel": with_kernel.r_squared, f"{name}_identity": with_identity.r_squared}
        parts.append(
            f"{name} ({len(step.measured)} states): R^2 = {with_kernel.r_squared:.6f} through K, "
            f"{with_identity.r_squared:.3g} with K = I (correlation {with_identity.correlation:.2f}, best step-size "
            f"factor {with_identity.slope:.3g}, {with_identity.sign_agreement:.0%} of signs)"
        )
    if not parts:
        return Finding(Verdict.EMPIRICAL, "Not measured in this check: it takes a world with a network.")
    return Finding(Verdict.EMPIRICAL, f"One gradient step, predicted against measured: {'; '.join(parts)}.", numbers)


DERIVED = "derived here (docs/theory.md, section 8.9)"
KERNEL_STEPS = (
    Claim(
        id="kernel_first_order",
        statement="A gradient step on any policy moves the logits by dz(s) = eta sum_s' K(s, s') d(s') pi A(s') to "
        "first order, so entropy by -Cov(log pi, dz): the error has slope 2 in the step.",
        source="Jacot et al. 2018 (arXiv 1806.07572); " + DERIVED,
        recorded=Verdict.HOLDS,
        judge=judge_slope,
    ),
    Claim(
        id="kernel_identity",
        statement="Theorem 1 with the state's weight, K = I, gives the entropy change at each state to first order.",
        source="Cui et al. 2025 (arXiv 2505.22617), Theorem 1 read without its tabular policy",
        recorded=Verdict.UNDER_ASSUMPTION,
        judge=by_search(
            lambda: _cases(one_hot=False), _violates, _describe, lambda: _cases(one_hot=True), "features are one-hot"
        ),
        assumptions=("one parameter per state and action",),
    ),
    Claim(
        id="kernel_worlds",
        statement="How far Theorem 1 is from a gradient step of the worlds' networks, with their kernel and K = I.",
        source=DERIVED,
        recorded=Verdict.EMPIRICAL,
        judge=judge_worlds,
        places=("cartpole", "llm"),
    ),
)
