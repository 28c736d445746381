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


def test_a_step_raises_what_was_drawn_and_lowers_the_rest():
    """pi = (1/2, 1/4, 1/4); actions 0 and 2 are drawn, with weights 2 and -1:

    0.3 / 2 [2 (e_0 - pi) - (e_2 - pi)] = 0.15 (1.5, -0.25, -1.25)
    """
    z = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64).log()
    found = drift.sampled_step(z, torch.tensor([0, 2]), torch.tensor([2.0, -1.0], dtype=torch.float64), 0.3)
    # a few roundings of numbers below 1
    assert found.tolist() == pytest.approx([0.225, -0.0375, -0.1875], abs=1e-15)


@given(st.lists(problems(), min_size=2, max_size=3), st.integers(1, 3))
def test_policies_side_by_side_are_those_alone(listed, samples):
    """[2, policies, actions] of unequal numbers of actions, filled up with masked ones."""
    wide = max(len(logits) for logits, *_ in listed)
    z = torch.tensor([logits + [-float("inf")] * (wide - len(logits)) for logits, *_ in listed], dtype=torch.float64)
    w = torch.tensor([weight + [0.0] * (wide - len(weight)) for _, weight, *_ in listed], dtype=torch.float64)
    z, w = torch.stack([z, z.flip(0)]), torch.stack([w, w.flip(0)])
    action = z.argmax(-1, keepdim=True).expand(*z.shape[:-1], samples + 1)
    factor = torch.linspace(-1, 2, samples + 1, dtype=torch.float64).expand(action.shape)
    together = drift.expected_drift(z, w, 0.5, samples)
    steps = drift.sampled_step(z, action, factor, 0.5)
    for place in itertools.product(range(2), range(len(listed))):
        alone = drift.expected_drift(z[place], w[place], 0.5, samples)
        for whole, one in zip(together, alone, strict=True):
            # sums of at most 4 numbers below 100, in another order of instructions
            torch.testing.assert_close(whole[place], one, rtol=1e-12, atol=1e-13)
        one = drift.sampled_step(z[place], action[place], factor[place], 0.5)
        torch.testing.assert_close(steps[place], one, rtol=1e-13, atol=1e-15)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        drift.expected_drift(torch.zeros(2), torch.zeros(2), 0.1, 0)
