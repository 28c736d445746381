"""Rounding bounds that are carried along contain the exact result, and are not so wide that they say nothing."""

import mpmath
import pytest
import torch
from exact import LAST_DIGITS, Policy, number
from hypothesis import given
from hypothesis import strategies as st
from strategies import generators, logits

from entropy_theory import enclosure
from entropy_theory.enclosure import Enclosed

OPERATIONS = {
    "add": (lambda x, y: x + y, lambda x, y: x + y),
    "subtract": (lambda x, y: x - y, lambda x, y: x - y),
    "multiply": (lambda x, y: x * y, lambda x, y: x * y),
    "divide": (lambda x, y: x / y, lambda x, y: x / y),
    "negate": (lambda x, y: -x, lambda x, y: -x),
    "square": (lambda x, y: x.square(), lambda x, y: x * x),
    "exp": (lambda x, y: x.exp(), lambda x, y: mpmath.exp(x)),
    "log": (lambda x, y: x.log(), lambda x, y: mpmath.log(x)),
}


def contains(enclosed: Enclosed, exact) -> bool:
    """Whether every exact number lies within the error of its value."""
    pairs = zip(enclosed.value.flatten(), enclosed.error.flatten(), exact, strict=True)
    return all(abs(number(v) - x) <= number(e) + LAST_DIGITS for v, e, x in pairs)


@st.composite
def operands(draw):
    """Numbers of many sizes, each with an exact counterpart somewhere within a drawn error."""
    rng = draw(generators())
    values = rng.normal(0, 1, 6) * 10.0 ** rng.integers(-8, 3, 6)
    errors = abs(values) * 10.0 ** rng.integers(-17, -2, 6) * rng.integers(0, 2, 6)
    shifts = rng.uniform(-1, 1, 6)
    exact = [number(v) + number(e) * number(s) for v, e, s in zip(values, errors, shifts, strict=True)]
    return Enclosed(torch.from_numpy(values), torch.from_numpy(errors)), exact


@pytest.mark.parametrize("name", OPERATIONS)
@given(operands(), operands())
def test_every_operation_contains_the_exact_result(name, left, right):
    (x, exact_x), (y, exact_y) = left, right
    if name == "log":
        x, exact_x = Enclosed(x.value.abs(), x.error), [abs(v) for v in exact_x]
    ours, theirs = OPERATIONS[name]
    assert contains(ours(x, y), [theirs(a, b) for a, b in zip(exact_x, exact_y, strict=True)])


@given(operands())
def test_sums_and_products_of_matrices_contain_the_exact_result(operand):
    x, exact = operand
    assert contains(Enclosed(x.sum().value.reshape(1), x.sum().error.reshape(1)), [mpmath.fsum(exact)])
    a = Enclosed(x.value.view(2, 3), x.error.view(2, 3))
    b = Enclosed(x.value.view(3, 2), x.error.view(3, 2))
    product = [mpmath.fsum(exact[3 * i + k] * exact[2 * k + j] for k in range(3)) for i in range(2) for j in range(2)]
    assert contains(enclosure.matmul(a, b), product)


@given(logits(max_actions=30))
def test_a_policys_numbers_contain_the_exact_ones(z):
    logp, pi = enclosure.policy(z)
    exact = Policy(z.tolist())
    kept = torch.tensor(exact.support)
    assert contains(logp[kept], exact.logp) and contains(pi[kept], exact.pi)
    h = -enclosure.mean(logp, pi)
    assert contains(Enclosed(h.value.reshape(1), h.error.reshape(1)), [exact.h])
    c = enclosure.centred_log_prob(logp, pi)[kept]
    assert contains(c, exact.c)
    cov = enclosure.covariance(logp, z.masked_fill(torch.isinf(z), 0.0), pi)
    exact_cov = exact.mean([a * b for a, b in zip(exact.c, exact.on_support(z.tolist()), strict=True)])
    assert contains(Enclosed(cov.value.reshape(1), cov.error.reshape(1)), [exact_cov])


@given(logits(max_actions=10, finite=True), generators())
def test_logits_that_may_be_off_widen_the_bounds_enough(z, rng):
    moved = torch.from_numpy(rng.uniform(-1, 1, z.shape[-1])) * 1e-3
    logp, pi = enclosure.policy(z, torch.tensor(1e-3, dtype=torch.float64))
    exact = Policy([number(a) + number(b) for a, b in zip(z, moved, strict=True)])
    assert contains(logp, exact.logp) and contains(pi, exact.pi)


def test_bounds_are_a_few_roundings_wide():
    x = torch.tensor([1.0, -3.0, 0.25], dtype=torch.float64)
    eps = torch.finfo(torch.float64).eps
    assert ((enclosure.enclosed(x) * x).error <= eps * x.square()).all()
    assert enclosure.enclosed(x).sum().error <= 3 * eps * x.abs().sum()
    logp, pi = enclosure.policy(x)
    assert logp.error.max() < 200 * eps and (pi.error < 200 * eps * pi.value).all()


def test_what_may_be_zero_divides_to_no_bound():
    small = Enclosed(torch.tensor([1e-3, 1.0], dtype=torch.float64), torch.tensor([1e-2, 0.1], dtype=torch.float64))
    assert torch.isinf((enclosure.enclosed(1.0) / small).error).tolist() == [True, False]
    assert torch.isinf(small.log().error).tolist() == [True, False]


def test_other_precisions_are_refused():
    with pytest.raises(ValueError, match=r"float64 only, got torch\.float32"):
        Enclosed(torch.zeros(2))
