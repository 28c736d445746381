"""Claims 58, 59, 61 and 63: policies that are no table, in exact or bounded terms."""

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from entropy_theory import remainder, theorems
from entropy_theory.claims.claim import Counterexample, Verdict
from entropy_theory.claims.ledger.common import noted
from entropy_theory.claims.ledger.evidence import also, remark
from entropy_theory.claims.ledger.network import (
    Network,
    derivative_rounding,
    entropy_gradient_rounding,
    linear_error,
    networks,
    slope_bound,
)
from entropy_theory.claims.search import by_search
from entropy_theory.claims.small import Problem, column, problems
from entropy_theory.claims.step import compare_first_order, measure
from entropy_theory.softmax import entropy

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


# --- 58: the gradient of entropy is a covariance ------------------------------------------------------------------


def _gradient_and_covariance(network: Network) -> tuple[Tensor, Tensor, Tensor]:
    """dH / d theta by autograd and -Cov_pi(log pi, dz / d theta_j), [parameters] each, and a bound on their rounding.

    sum |dH/dz| <= E|c| <= 2 N_K carries the error of a derivative, as does the covariance.
    """
    theta = network.parameters.requires_grad_()
    (gradient,) = torch.autograd.grad(entropy(network.logits(theta)), theta)
    theta = theta.detach()
    jacobian, slope = network.jacobian(theta).T, slope_bound(network, theta)
    z = network.logits(theta)
    states = z.expand(len(theta), -1)
    derivative = remainder.first_order_effect(z.new_tensor(derivative_rounding(network, slope)), len(z))
    rounding = entropy_gradient_rounding(z) * slope + remainder.first_order_rounding(states, jacobian) + 2 * derivative
    return gradient, theorems.entropy_change_first_order(states, jacobian), rounding


def _is_no_covariance(network: Network) -> bool:
    gradient, covariances, rounding = _gradient_and_covariance(network)
    return bool(((gradient - covariances).abs() > rounding).any())


def _entropy_gradient(network: Network) -> Counterexample:
    gradient, covariances, _ = _gradient_and_covariance(network)
    return Counterexample(
        f"{network.text}: dH/dtheta = {gradient.tolist()}, -Cov = {covariances.tolist()}",
        network.code
        + "from entropy_theory import entropy, entropy_change_first_order\n"
        + "jacobian = torch.autograd.functional.jacobian(logits, theta)\n"
        + "print(torch.autograd.functional.jacobian(lambda p: entropy(logits(p)), theta))\n"
        + "print(entropy_change_first_order(logits(theta).expand(len(theta), -1), jacobian.T))\n",
    )


# --- 59 and 61: steps of the parameters ---------------------------------------------------------------------------


def _entropy_misses(network: Network) -> bool:
    """The entropy change against Lemma 1 fed with J step: remainder of the measured change, and of J step for it."""
    before, change = network.parameters, network.step
    z, after = network.logits(before), network.logits(before + change)
    actions, linear = len(z), network.jacobian(before) @ change
    step = measure(z, after)
    predicted = theorems.entropy_change_first_order(z, linear)
    moved = remainder.first_order_effect(linear_error(network, before, change).max() + step.change_error, actions)
    found = compare_first_order(step, predicted, moved, actions)
    return bool(found.error > found.bound) and bool(
        found.error > found.bound + remainder.first_order_rounding(z, linear)
    )


def _step_text(network: Network) -> Counterexample:
    before, change = network.parameters, network.step
    z, after = network.logits(before), network.logits(before + change)
    linear = network.jacobian(before) @ change
    return Counterexample(
        f"{network.text}, step {change.tolist()}: dH = {entropy(after) - entropy(z):.6g}, "
        f"-Cov(log pi, J step) = {theorems.entropy_change_first_order(z, linear):.6g}",
        network.code
        + "from entropy_theory import entropy, entropy_change_first_order\n"
        + "linear = torch.autograd.functional.jacobian(logits, theta) @ step\n"
        + "print(entropy(logits(theta + step)) - entropy(logits(theta)))\n"
        + "print(entropy_change_first_order(logits(theta), linear))\n",
    )


STEP_SIZE = 0.5
"""eta of the gradient step in claim 61."""


def _gradient_step(network: Network) -> Tensor:
    """STEP_SIZE dJ / d theta for the return E_pi[r], by autograd, [parameters]."""
    theta = network.parameters.requires_grad_()
    expected = (network.logits(theta).softmax(-1) * network.reward).sum()
    return STEP_SIZE * torch.autograd.grad(expected, theta)[0]


def _kernel_change(network: Network) -> Tensor:
    """STEP_SIZE J J^T (pi A), [actions]."""
    theta = network.parameters
    jacobian = network.jacobian(theta)
    return jacobian @ (jacobian.T @ theorems.policy_gradient_step(network.logits(theta), network.reward, STEP_SIZE))


def _logits_miss(network: Network) -> bool:
    """The measured change of the logits against eta J grad J, grad J once by autograd and once as J^T (pi A)."""
    before, change = network.parameters, _gradient_step(network)
    z, moved = network.logits(before), network.logits(before + change) - network.logits(before)
    bound = linear_error(network, before, change)
    if ((moved - network.jacobian(before) @ change).abs() > bound).any():
        return True
    slope, count = slope_bound(network, before), len(before)
    of_step = remainder.policy_gradient_step_rounding(z, network.reward, STEP_SIZE).sum()
    size = theorems.policy_gradient_step(z, network.reward, STEP_SIZE).abs().sum()
    # J^T (pi A) by autograd and by formula: each errs by this per parameter, and J carries it to the logits
    per_parameter = slope * of_step + derivative_rounding(network, slope) * (size + of_step)
    carried = 2 * count * (slope * per_parameter + derivative_rounding(network, slope) * slope * size)
    return bool(((moved - _kernel_change(network)).abs() > bound + carried).any())


def _changes(network: Network) -> Counterexample:
    before, change = network.parameters, _gradient_step(network)
    moved = network.logits(before + change) - network.logits(before)
    return Counterexample(
        f"{network.text}, eta = {STEP_SIZE}: dz = {moved.tolist()}, eta J grad J = {_kernel_change(network).tolist()}",
        network.code
        + "z = torch.autograd.functional.jacobian(logits, theta)\n"
        + "g = torch.autograd.functional.jacobian(lambda p: (logits(p).softmax(-1) * reward).sum(), theta)\n"
        + f"print(logits(theta + {STEP_SIZE} * g) - logits(theta), {STEP_SIZE} * z @ g)\n",
    )


# --- 63: the natural gradient under shared parameters -------------------------------------------------------------


class Shared(NamedTuple):
    """A problem whose logits are z_a = base_a + theta feature_a; None: a table, one parameter per action."""

    problem: Problem
    feature: tuple[int, ...] | None


def shared(tabular: bool) -> "SearchStrategy[Shared]":
    """Problems with a drawn feature of whole numbers, or with a table."""
    from hypothesis import strategies as st

    def of(count: int) -> "SearchStrategy[Shared]":
        return st.builds(Shared, problems(count, count), st.none() if tabular else column(count, -3, 3))

    return st.one_of(*[of(count) for count in (2, 3, 4)])


def natural_change(instance: Shared) -> list[Fraction]:
    r"""Logit change of a natural-gradient step of size 1, exactly.

    Table: F^+ (pi A) = P diag(1/pi) P (pi A), P the centring. One shared parameter: the Fisher information is
    Var(f), the gradient Cov(f, A), so dz = f Cov(f, A) / Var(f), the least-squares projection of A (0 if Var(f) = 0).
    """
    weights, reward = instance.problem.weights, [Fraction(t, 10) for t in instance.problem.tenths]
    pi = [Fraction(w, sum(weights)) for w in weights]

    def mean(values: list[Fraction]) -> Fraction:
        return sum(p * v for p, v in zip(pi, values, strict=True))

    advantage = [r - mean(reward) for r in reward]
    if instance.feature is None:
        gradient = [p * a for p, a in zip(pi, advantage, strict=True)]
        centre = sum(gradient) / len(pi)
        scaled = [(g - centre) / p for g, p in zip(gradient, pi, strict=True)]
        return [s - sum(scaled) / len(pi) for s in scaled]
    feature = [f - mean([Fraction(f) for f in instance.feature]) for f in instance.feature]
    variance = mean([f * f for f in feature])
    slope = mean([f * a for f, a in zip(feature, advantage, strict=True)]) / variance if variance else Fraction(0)
    return [slope * f for f in instance.feature]


def _not_the_advantage(instance: Shared) -> bool:
    """dz is not k A + constant for any k; exact, so without a tolerance."""
    dz, tenths = natural_change(instance), instance.problem.tenths
    dz, reward = [x - dz[0] for x in dz], [t - tenths[0] for t in tenths]
    pairs = range(len(dz))
    return any(dz[i] * reward[j] != dz[j] * reward[i] for i in pairs for j in pairs)


def _projection(instance: Shared) -> Counterexample:
    dz = [float(x) for x in natural_change(instance)]
    feature, problem = instance.feature, instance.problem
    kind = "a table" if feature is None else f"z = base + theta {feature}"
    code = (
        "from entropy_theory.theorems import fisher_pseudo_inverse_product, policy_gradient_step\n"
        "print(fisher_pseudo_inverse_product(logits, policy_gradient_step(logits, reward, 1.0)))\n"
        if feature is None
        else f"f = torch.tensor({[float(f) for f in feature]}, dtype=torch.float64)\n"
        "from entropy_theory.covariances import covariance\n"
        "pi = logits.softmax(-1)\n"
        "print(f * covariance(f, reward, pi, -1) / covariance(f, f, pi, -1))\n"
    )
    return Counterexample(
        f"{problem.text}, {kind}: dz = ({', '.join(f'{x:.4g}' for x in dz)}), A = "
        f"({', '.join(f'{x:.4g}' for x in problem.advantage.tolist())})",
        problem.code + code + "print(reward - (logits.softmax(-1) * reward).sum())\n",
    )


NETWORK_004 = (
    noted(
        "004",
        58,
        "grad_theta H = -sum_a grad_theta pi_a log pi_a = -Cov_pi(log pi, grad_theta z).",
        Verdict.HOLDS,
        also(
            by_search(networks, _is_no_covariance, _entropy_gradient),
            remark("An identity for every differentiable softmax policy, judged on small tanh networks by autograd."),
        ),
        ("softmax of differentiable logits",),
    ),
    noted(
        "004",
        59,
        "dH = -Cov_pi(log pi, dz) with dz = dtheta^T grad_theta z, to first order, for any softmax policy.",
        Verdict.HOLDS,
        also(
            by_search(networks, _entropy_misses, _step_text),
            remark(
                "Judged on small tanh networks: Lemma 1's remainder in the measured change of the logits, plus what "
                "the logits may be from linear in the parameters."
            ),
        ),
        ("first order in dtheta",),
    ),
    noted(
        "004",
        61,
        "Under vanilla policy gradient dz = eta grad J^T grad z.",
        Verdict.HOLDS,
        also(
            by_search(networks, _logits_miss, _changes),
            remark("To first order, judged on small tanh networks; grad J by autograd and as J^T (pi A)."),
        ),
        ("first order in eta", "plain gradient ascent"),
    ),
    noted(
        "004",
        63,
        "Under natural policy gradient dz is proportional to A.",
        Verdict.UNDER_ASSUMPTION,
        also(
            by_search(
                lambda: shared(False),
                _not_the_advantage,
                _projection,
                lambda: shared(True),
                "every action has its own parameter (or the features can express A)",
            ),
            remark(
                "Up to a constant per state, so that a logit with A > 0 rises only relative to the others. Shared "
                "parameters give the least-squares projection of A."
            ),
        ),
        ("tabular or compatible features",),
    ),
)
"""Claims 58, 59, 61 and 63."""
