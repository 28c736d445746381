"""Claims 58 to 67: derivations of the fourth note. Here: tables and runs."""

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from entropy_theory import remainder, theorems
from entropy_theory.claims.claim import ALL_WORLDS, Context, Counterexample, Verdict
from entropy_theory.claims.ledger.common import Measured, empirical, entropy_change_rounding, noted
from entropy_theory.claims.ledger.evidence import also, remark
from entropy_theory.claims.ledger.note_002_runs import NOT_THE_SCALE, signs
from entropy_theory.claims.ledger.note_004_network import NETWORK_004
from entropy_theory.claims.ledger.note_004_tree import TREE_004
from entropy_theory.claims.ledger.tokens import correlation, minibatches, score
from entropy_theory.claims.places import RANDOM
from entropy_theory.claims.published import TABLE_1
from entropy_theory.claims.search import by_search
from entropy_theory.claims.small import Problem, column, problems
from entropy_theory.softmax import entropy

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


# --- 60: the sign of the covariance and the entropy ---------------------------------------------------------------


class Step(NamedTuple):
    """A policy-gradient step. `size`: eta, or for a small step tenths of the largest eta that the remainder allows.

    Small is eta |rate| > 1/2 C_K (eta spread)^2 at a step eta d, so that the first order decides the sign.
    """

    problem: Problem
    size: int
    small: bool

    @property
    def first_order(self) -> tuple[Tensor, Tensor, float]:
        """Logit change and entropy change per unit of step size, and the step size."""
        z = self.problem.logits
        change = theorems.policy_gradient_step(z, self.problem.advantage, 1.0)
        rate = theorems.entropy_change_first_order(z, change)
        if not self.small:
            return change, rate, float(self.size)
        bound = float(remainder.remainder_bound(change.max() - change.min(), len(z)))
        return change, rate, self.size / 10 * abs(float(rate)) / bound if bound else 0.0


def steps(small: bool) -> "SearchStrategy[Step]":
    """Steps of size 1 to 20, or of 0.1 to 0.9 of the largest small one."""
    from hypothesis import strategies as st

    return st.builds(Step, problems(2, 4), st.integers(1, 9 if small else 20), st.just(small))


def _wrong_sign(step: Step) -> bool:
    """Predicted and measured change are both certain and of opposite sign."""
    z, (change, rate, eta) = step.problem.logits, step.first_order
    after = z + eta * change
    measured = entropy(after) - entropy(z)
    if not rate * measured < 0 or measured.abs() <= entropy_change_rounding(z, after):
        return False
    of_step = remainder.policy_gradient_step_rounding(z, step.problem.advantage, 1.0).max()
    rounding = remainder.first_order_rounding(z, change) + remainder.first_order_effect(of_step, len(z))
    return bool(rate.abs() > rounding)


def _flip(step: Step) -> Counterexample:
    problem, z, (change, rate, eta) = step.problem, step.problem.logits, step.first_order
    told = [
        f"eta = {e:g}: predicted {e * rate:+.4g}, measured {entropy(z + e * change) - entropy(z):+.4g}"
        for e in (eta / 10, eta)
    ]
    return Counterexample(
        f"{problem.text}: {'; '.join(told)}",
        problem.code
        + "from entropy_theory import entropy, policy_gradient_step, theorem_1\n"
        + f"for eta in ({eta / 10}, {eta}):\n"
        + "    after = logits + policy_gradient_step(logits, reward, eta)\n"
        + "    print(eta, theorem_1(logits, reward, eta), entropy(after) - entropy(logits))\n",
    )


# --- 62: F^-1 grad log pi -----------------------------------------------------------------------------------------


def fisher_inverse_product(weights: tuple[int, ...], vector: list[Fraction]) -> list[Fraction]:
    """F^+ vector = P diag(1/pi) P vector for pi = weights / sum, in exact arithmetic."""
    count, total = len(weights), sum(weights)
    mean = sum(vector) / count
    scaled = [(v - mean) * total / w for v, w in zip(vector, weights, strict=True)]
    return [s - sum(scaled) / count for s in scaled]


def _natural_score(problem: Problem, action: int) -> list[Fraction]:
    """F^+ grad_z log pi(action), exactly."""
    total = sum(problem.weights)
    return fisher_inverse_product(
        problem.weights, [Fraction(int(b == action)) - Fraction(w, total) for b, w in enumerate(problem.weights)]
    )


def _not_the_advantage(problem: Problem) -> bool:
    """For some action the vector misses the advantage, up to a constant, by at least the spread of the advantage."""
    reward = [Fraction(t, 10) for t in problem.tenths]
    for action in range(len(reward)):
        miss = [x - r for x, r in zip(_natural_score(problem, action), reward, strict=True)]
        gap = max(miss) - min(miss)
        if gap > 0 and gap >= max(reward) - min(reward):
            return True
    return False


def _scores(problem: Problem) -> Counterexample:
    found = [
        f"({', '.join(f'{float(x):.4g}' for x in _natural_score(problem, a))})" for a in range(len(problem.tenths))
    ]
    advantage = ", ".join(f"{a:.4g}" for a in problem.advantage.tolist())
    return Counterexample(
        f"{problem.text}: A = ({advantage}), F^+ grad log pi(a) = {', '.join(found)}",
        problem.code
        + "from entropy_theory.theorems import fisher_matrix, fisher_pseudo_inverse_product, policy_gradient_step\n"
        + "pi = logits.softmax(-1)\n"
        + "print(torch.linalg.det(fisher_matrix(logits)))\n"
        + "for score in torch.eye(len(pi), dtype=torch.float64) - pi:\n"
        + "    print(fisher_pseudo_inverse_product(logits, score))\n"
        + "print(fisher_pseudo_inverse_product(logits, policy_gradient_step(logits, reward, 1.0)), reward)\n",
    )


# --- 64: which gradient has Theorem 2's covariance ----------------------------------------------------------------


class Gradient(NamedTuple):
    """A problem and the gradient it is improved by."""

    problem: Problem
    natural: bool

    @property
    def step(self) -> Tensor:
        """Logit change per unit of step size; the natural one through F^+."""
        z = self.problem.logits
        plain = theorems.policy_gradient_step(z, self.problem.advantage, 1.0)
        return theorems.fisher_pseudo_inverse_product(z, plain) if self.natural else plain


def gradients(natural: bool) -> "SearchStrategy[Gradient]":
    """Problems of 3 or 4 actions (with 2 actions both gradients point the same way)."""
    from hypothesis import strategies as st

    return st.builds(Gradient, problems(3, 4), st.just(natural))


def rivals() -> "SearchStrategy[Gradient]":
    """Plain gradients where the likeliest action is fairly good and the rarest the best: there the two may disagree."""
    from hypothesis import strategies as st

    def of(weights: tuple[int, ...]) -> "SearchStrategy[Gradient]":
        tenths = st.integers(1, 9).map(lambda good: (good, *(0 for _ in weights[2:]), 10))
        return tenths.map(lambda t: Gradient(Problem(weights, t), False))

    weights = st.one_of(column(3, 1, 20), column(4, 1, 20)).map(lambda w: tuple(sorted(w, reverse=True)))
    return st.one_of(gradients(False), weights.flatmap(of))


def _opposite_signs(gradient: Gradient) -> bool:
    """Cov(log pi, A) and the entropy change of the step have the same sign, both certain."""
    z, advantage, step = gradient.problem.logits, gradient.problem.advantage, gradient.step
    change, minus_cov = theorems.entropy_change_first_order(z, step), theorems.theorem_2(z, advantage, 1.0)
    if not change * minus_cov < 0:
        return False
    of_step = remainder.policy_gradient_step_rounding(z, advantage, 1.0)
    if gradient.natural:  # 1/pi amplifies the error of the gradient, and each of four sums and a division add u
        u, probability = remainder.unit_roundoff(z.dtype), z.softmax(-1)
        size = (step.abs().max() + advantage.abs().max()) * len(z) / probability.min()
        of_step = (
            2 * of_step.sum() / probability.min()
            + torch.expm1(remainder.probability_rounding(z) + 8 * len(z) * u) * size
        )
    moved = remainder.first_order_effect(of_step.max(), len(z))
    certain = change.abs() > remainder.first_order_rounding(z, step) + moved
    return bool(certain & (minus_cov.abs() > 2 * remainder.first_order_rounding(z, advantage)))


def _both_gradients(gradient: Gradient) -> Counterexample:
    problem, z = gradient.problem, gradient.problem.logits
    return Counterexample(
        f"{problem.text}: -Cov(log pi, A) = {theorems.theorem_2(z, problem.advantage, 1.0):+.4g}, entropy changes by "
        f"{theorems.theorem_1(z, problem.advantage, 1.0):+.4g} eta under the plain gradient",
        problem.code
        + "from entropy_theory import theorem_1, theorem_2\n"
        + "print(theorem_1(logits, reward, 1.0), theorem_2(logits, reward, 1.0))\n",
    )


# --- 66: log pi and A ---------------------------------------------------------------------------------------------


def _correlation(context: Context) -> Measured:
    """Printed mean of eq. 10, the sign of the covariance in the stored runs, the correlation in real minibatches."""
    parts, numbers = [], {}
    for name, tokens in minibatches(context).items():
        rho, mean = correlation(tokens), float(score(tokens).sum() / tokens.batch.mask.sum())
        numbers |= {f"{name} correlation": rho, f"{name} mean score": mean}
        parts.append(f"{name} correlation {rho:+.3f}, mean score {mean:+.3g}")
    here = f" In a real minibatch here: {'; '.join(parts)}." if parts else ""
    stored = signs(context)
    logged = f" {stored.text}" if stored else ""
    return Measured(
        f"Printed for Qwen2.5-7B at step 1: mean score {TABLE_1[1.0]}, positive but small against {TABLE_1[0.5]} for "
        f"the upper half of the tokens.{here}{logged} {NOT_THE_SCALE}: it takes the correlation of "
        "log pi and A over the tokens of every step of such a run.",
        numbers | dict(stored.numbers if stored else {}),
    )


TABLES_004 = (
    noted(
        "004",
        60,
        "Positive covariance makes the policy sharper, negative covariance flatter.",
        Verdict.UNDER_ASSUMPTION,
        by_search(
            lambda: steps(False),
            _wrong_sign,
            _flip,
            lambda: steps(True),
            "the step is so small that the proved remainder is below the first order",
        ),
        ("a small step",),
    ),
    noted(
        "004",
        62,
        "F^-1 grad log pi(a|s) is approximately the advantage.",
        Verdict.REFUTED,
        also(
            by_search(lambda: problems(2, 4), _not_the_advantage, _scores),
            remark(
                "F^+ grad log pi(a) is e_a / pi_a and F^+ grad J is A, both up to a constant. F itself is singular "
                "(F 1 = 0), so it takes the pseudo-inverse."
            ),
        ),
    ),
    noted(
        "004",
        64,
        "Under (natural) policy gradient dH is proportional to -Cov_pi(log pi, A).",
        Verdict.UNDER_ASSUMPTION,
        by_search(
            rivals,
            _opposite_signs,
            _both_gradients,
            lambda: gradients(True),
            "the gradient is the natural one",
        ),
        ("natural gradient",),
    ),
    noted(
        "004",
        66,
        "A language model's prior makes log pi and A strongly positively correlated for most of training.",
        Verdict.EMPIRICAL,
        empirical(_correlation, "log pi and A of the tokens of a run", "fig02_predicted_change.png"),
        places=(RANDOM, *ALL_WORLDS),
    ),
)
"""Claims 60, 62, 64 and 66."""

NOTE_004 = tuple(sorted((*TABLES_004, *NETWORK_004, *TREE_004), key=lambda claim: claim.id))
"""Claims 58 to 67."""
