"""The expected drift of a sampled step, against loops over every draw in 60 digits."""

import itertools

import mpmath
import pytest
import torch
from exact import LAST_DIGITS, Policy, number
from hypothesis import given
from hypothesis import strategies as st
from strategies import generators

from entropy_theory import drift, enclosure


@st.composite
def problems(draw):
    """Logits with now and then a masked action, a weight per action, a step size and a number of samples."""
    rng, actions = draw(generators()), draw(st.integers(2, 4))
    logits = rng.normal(0, 2, actions)
    if draw(st.booleans()) and actions > 2:
        logits[rng.integers(actions)] = -float("inf")
    return (
        logits.tolist(),
        rng.normal(0, 1, actions).tolist(),
        draw(st.sampled_from([0.01, 0.5])),
        draw(st.integers(1, 3)),
    )


def enumerated(logits, weight, step_size, samples):
    """(first, second) order of the expected entropy change, every draw weighted by its probability."""
    policy = Policy(logits)
    w = policy.on_support(weight)
    first = second = mpmath.mpf(0)
    for drawn in itertools.product(range(len(policy.pi)), repeat=samples):
        chance = mpmath.fprod(policy.pi[a] for a in drawn)
        change = [0.0] * policy.size
        for place, index in enumerate(policy.support):
            own = mpmath.fsum(w[a] * ((a == place) - policy.pi[place]) for a in drawn)
            change[index] = own * number(step_size) / samples
        slope, curvature, _ = policy.derivatives(change)
        first, second = first + chance * slope, second + chance * curvature / 2
    return first, second


@given(problems())
def test_drift_is_the_mean_over_every_draw(problem):
    logits, weight, step_size, samples = problem
    z, w = (torch.tensor(x, dtype=torch.float64) for x in (logits, weight))
    found = drift.expected_drift(z, w, step_size, samples)
    bounds = drift.drift_of_policy(*enclosure.policy(z), w, step_size, samples)
    first, second = enumerated(*problem)
    assert abs(number(found.first) - first) <= number(bounds.first.error) + LAST_DIGITS
    assert abs(number(found.second) - second) <= number(bounds.second.error) + LAST_DIGITS
    assert float(bounds.second.error) < 1e-10  # the bound says something


@given(problems())
def test_only_the_variance_depends_on_the_number_of_samples(problem):
    logits, weight, step_size, samples = problem
    z, w = (torch.tensor(x, dtype=torch.float64) for x in (logits, weight))
    one, many = drift.expected_drift(z, w, step_size, 1), drift.expected_drift(z, w, step_size, samples)
    assert torch.equal(one.first, many.first) and torch.equal(one.mean, many.mean)
    torch.testing.assert_close(one.variance / samples, many.variance, rtol=1e-15, atol=0)


def test_a_step_on_several_samples_is_the_mean_of_the_steps_on_each():
    z = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64)
    action, weight = torch.tensor([[2, 0, 2]]), torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    parts = [drift.sampled_step(z, action[:, i : i + 1], weight[:, i : i + 1], 0.1) for i in range(3)]
    torch.testing.assert_close(drift.sampled_step(z, action, weight, 0.1), sum(parts) / 3, rtol=1e-14, atol=1e-17)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        drift.expected_drift(torch.zeros(2), torch.zeros(2), 0.1, 0)
