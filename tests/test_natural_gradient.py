"""The Fisher matrix, its pseudo-inverse, and the proved distance of a computed step from the exact one."""

import itertools
import math

import mpmath
import strategies
import torch
from exact import DIGITS, Policy, number
from hypothesis import given

from entropy_theory import remainder, theorems
from entropy_theory.claims import States, instances, step, theorem_2


def exact_pseudo_inverse(policy):
    """P diag(1/pi) P as an mpmath matrix."""
    n = len(policy.pi)
    projection = mpmath.eye(n) - mpmath.ones(n) / n
    return projection * mpmath.diag([1 / p for p in policy.pi]) * projection


def exact_fisher(policy):
    pi = mpmath.matrix(policy.pi)
    return mpmath.diag(policy.pi) - pi * pi.T


@given(strategies.logits(finite=True, max_actions=6, kinds=("normal", "uniform", "ties")), strategies.generators())
def test_the_closed_form_is_the_moore_penrose_inverse_and_gives_the_advantage(z, rng):
    policy = Policy(z.tolist())
    fisher, inverse = exact_fisher(policy), exact_pseudo_inverse(policy)
    size = mpmath.mnorm(inverse, "f")
    slack = mpmath.mpf(10) ** (5 - DIGITS) * (1 + size) ** 2 * len(z)
    for a, b in (
        (fisher * inverse * fisher, fisher),
        (inverse * fisher * inverse, inverse),
        (fisher * inverse, (fisher * inverse).T),
        (inverse * fisher, (inverse * fisher).T),
    ):
        assert mpmath.mnorm(a - b, "f") <= slack
    reward = rng.normal(size=len(z))
    gradient = mpmath.matrix(policy.gradient_step(reward.tolist(), 1))
    centred = mpmath.matrix([mpmath.mpf(x) for x in reward]) - mpmath.fsum(mpmath.mpf(x) for x in reward) / len(
        z
    ) * mpmath.ones(len(z), 1)
    assert mpmath.mnorm(inverse * gradient - centred, "f") <= slack


@given(strategies.logits(finite=True, max_actions=12, kinds=("normal", "uniform", "ties")), strategies.generators())
def test_the_package_applies_the_closed_form(z, rng):
    policy = Policy(z.tolist())
    vector = torch.from_numpy(rng.normal(size=len(z)))
    expected = exact_pseudo_inverse(policy) * mpmath.matrix(vector.tolist())
    computed = theorems.fisher_pseudo_inverse_product(z, vector)
    # sizes: |v - mean v| <= 2 max|v|, divided by pi >= min pi, and once more minus a mean of the same size; each
    # entry carries the exponents of v - mean (K + 2), of pi, of the quotient and of the second mean (K + 2)
    u, size = remainder.unit_roundoff(z.dtype), 4 * float(vector.abs().max()) / float(min(policy.pi))
    allowed = 2 * size * math.expm1(float(remainder.probability_rounding(z)) + (2 * len(z) + 5) * u)
    assert max(abs(number(x) - e) for x, e in zip(computed, expected, strict=True)) <= allowed


def test_policies_side_by_side_are_those_alone():
    generator = torch.Generator().manual_seed(0)
    z, vector = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    together = theorems.fisher_pseudo_inverse_product(z, vector)
    matrices = theorems.fisher_matrix(z)
    for i, j in itertools.product(range(3), range(4)):
        # sums of 5 numbers below 100, in another order of instructions
        alone = theorems.fisher_pseudo_inverse_product(z[i, j], vector[i, j])
        torch.testing.assert_close(together[i, j], alone, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(matrices[i, j], theorems.fisher_matrix(z[i, j]), rtol=1e-15, atol=1e-17)


def test_fisher_matrix_is_the_covariance_of_the_score():
    z = torch.tensor([0.2, -1.0, 0.7, -torch.inf], dtype=torch.float64)
    probability = torch.softmax(z, -1)
    score = torch.eye(4, dtype=torch.float64) - probability
    expected = (score.T * probability) @ score
    # sums of four products of numbers at most 1: 8 u
    assert (theorems.fisher_matrix(z) - expected).abs().max() <= 8 * torch.finfo(torch.float64).eps


# --- bounds on the steps, against 60 digits -----------------------------------------------------------------------


@given(strategies.logits(max_actions=30), strategies.generators())
def test_the_gradient_of_autograd_stays_within_its_rounding_bound(z, rng):
    r = torch.from_numpy(rng.normal(size=z.shape[0]) * 10 ** rng.uniform(-3, 3))
    computed = step.return_gradient(z, r)
    bound = remainder.policy_gradient_step_rounding(z, r, 1.0)
    policy = Policy(z.tolist())
    for a, exact in zip(policy.support, policy.gradient_step(r.tolist(), 1), strict=True):
        assert abs(number(computed[a]) - exact) <= number(bound[a])


def fisher_cases():
    """Policies that strain the eigensolver: clusters, tiny probabilities spread over likely actions, masks."""
    generator = torch.Generator().manual_seed(0)
    cases = [torch.tensor([0.6, 0.4 - 1e-13, 1e-13], dtype=torch.float64).log()]
    for k in (2, 5, 17):
        cases += [kind(1, k, generator)[0] for kind in instances.LOGITS.values()]
    return cases


def fisher_residual(z, inverse):
    """|F X F - F| in the Frobenius norm with the exact F: all that the first-order effect sees of X."""
    policy = Policy(z.tolist())
    exact = mpmath.zeros(len(z), len(z))
    for (i, p), (j, q) in itertools.product(zip(policy.support, policy.pi, strict=True), repeat=2):
        exact[i, j] = (p if i == j else 0) - p * q
    return mpmath.mnorm(exact * mpmath.matrix(inverse.tolist()) * exact - exact, "f")


def fisher_residual_bound(z):
    """theory.md 4.7: tau + 3 e + e^2/tau, and |F|^2 times the error of forming X; sqrt(K) for the Frobenius norm."""
    k, u = len(z), remainder.unit_roundoff(z.dtype)
    tau = theorem_2.threshold(k, z.dtype)
    e = 10 * k * u + 2 * math.expm1(2 * float(remainder.probability_rounding(z)) + 4 * u)
    forming = 0.25 * (21 * k + 1.1 * k * (k + 1)) * u / tau
    return math.sqrt(k) * (tau + 3 * e + e**2 / tau + forming)


def test_the_pseudo_inverse_keeps_its_proved_distance_from_the_fisher_matrix():
    for z in fisher_cases():
        tau = theorem_2.threshold(len(z), z.dtype)
        computed = torch.linalg.pinv(theorems.fisher_matrix(z), atol=tau, rtol=0.0, hermitian=True)
        assert fisher_residual(z, computed) <= fisher_residual_bound(z)


def test_the_default_cut_off_of_pinv_would_not_keep_that_distance():
    z = fisher_cases()[0]
    computed = torch.linalg.pinv(theorems.fisher_matrix(z), hermitian=True)
    assert fisher_residual(z, computed) > 10 * fisher_residual_bound(z)


def test_the_eigensolver_meets_the_one_assumption_of_the_theory():
    # p(K) = 10 K: backward error of eigh, and distance of its vectors from orthogonality, in units of u
    generator = torch.Generator().manual_seed(1)
    for k in (2, 3, 10, 64, 256):
        for kind in instances.LOGITS.values():
            fisher = theorems.fisher_matrix(kind(1, k, generator)[0])
            values, vectors = torch.linalg.eigh(fisher)
            u = remainder.unit_roundoff(torch.float64)
            # |U^T U - I| <= 2 p u + (p u)^2 when U is within p u of an orthogonal matrix; products add K u each
            apart = torch.linalg.matrix_norm(vectors.T @ vectors - torch.eye(k, dtype=torch.float64), 2)
            assert apart <= 2 * 10 * k * u
            back = torch.linalg.matrix_norm((vectors * values) @ vectors.T - fisher, 2)
            assert back <= 10 * k * u * torch.linalg.matrix_norm(fisher, 2)


def test_dense_and_closed_form_of_the_natural_gradient_agree(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(20, 12, generator=generator, dtype=torch.float64)
    reward = torch.randn(20, 12, generator=generator, dtype=torch.float64)
    states = States(z, torch.zeros_like(z), reward)
    gradient = step.return_gradient(z, reward)
    dense, dense_bound = theorem_2.natural_gradient(z, gradient), theorem_2.step_rounding(states)
    monkeypatch.setattr(theorem_2, "DENSE_ACTIONS", 0)
    closed, closed_bound = theorem_2.natural_gradient(z, gradient), theorem_2.step_rounding(states)
    centred = reward - reward.mean(-1, keepdim=True)
    assert (dense_bound.first == 0).all() and (dense_bound.sd == 0).all()  # nothing dropped
    # both are A - mean A, up to a constant of at most the bound, which the spread of the difference does not see
    for x, bound in ((dense, dense_bound), (closed, closed_bound)):
        error = x - centred
        assert (error.amax(-1) - error.amin(-1) <= 2 * bound.entry).all()
        assert (bound.entry < 1e-6).all()
