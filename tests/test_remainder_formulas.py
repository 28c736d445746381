"""The bounds of `remainder` are no looser than stated: formulas of docs/theory.md, sections 2 to 4, as plain numbers.

That a bound holds cannot tell a bound from a larger one; these do.
"""

import math
from contextlib import contextmanager

import numpy as np
import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory import remainder
from entropy_theory.remainder_tables import covariance_constant

EXP = 8
CLOSE = {torch.float64: 200 * 2.0**-52, torch.float32: 200 * 2.0**-23}
"""Relative error of at most 200 operations, on positive numbers that are added and multiplied, by type."""


class Sizes:
    """What the bounds depend on, as plain floats."""

    def __init__(self, logits, change):
        dtype = logits.dtype
        finite = [(z, d) for z, d in zip(logits.tolist(), change.tolist(), strict=True) if z > -math.inf]
        self.k, self.tiny = len(logits), torch.finfo(dtype).tiny
        self.u = remainder.unit_roundoff(dtype)
        self.largest = max(abs(z) for z, _ in finite)
        self.size = max(abs(d) for _, d in finite)
        self.width = max(d for _, d in finite) - min(d for _, d in finite)
        self.log_k, self.of_c = math.log(self.k), 2 * covariance_constant(self.k)
        self.log_prob = 1.01 * self.u * (4 * self.largest + 4 * self.log_k + self.k - 1 + EXP)
        self.weight = self.log_prob + EXP * self.u

    def lost(self, size):
        """To underflow."""
        return 8 * self.k * self.tiny * (1 + 2 * self.largest + 2 * self.log_k) * (1 + 2 * size) ** 2

    @property
    def entropy(self):
        relative = math.expm1(self.weight + self.k * self.u)
        return relative * self.log_k + (1 + relative) * self.log_prob + self.lost(0)

    @property
    def mean(self):
        return math.expm1(2 * self.weight + 2 * self.k * self.u)

    @property
    def deviation(self):
        return self.mean * self.size + 2 * self.u * (self.width + self.mean * self.size)

    @property
    def first_order(self):
        score = 2 * self.log_prob + self.mean * (self.log_k + self.log_prob)
        score += 2 * self.u * (self.of_c + score)
        relative = math.expm1(2 * self.weight + (2 * self.k + 1) * self.u)
        parts = self.of_c * self.deviation + (self.width + self.deviation) * score
        return relative * self.of_c * self.width + (1 + relative) * parts + self.lost(self.size)

    @property
    def second_order(self):
        curvature = 1 + self.of_c
        total = self.log_prob + self.entropy
        factor = total + 4 * self.u * (curvature + total + self.log_prob)
        relative = math.expm1(self.weight + (self.k + 2) * self.u)
        d, w = self.deviation, self.width
        parts = curvature * (2 * w * d + d * d) + factor * (w + d) ** 2
        quadratic = relative * curvature * w * w + (1 + relative) * parts + self.lost(self.size)
        result = self.first_order + self.of_c * w + (curvature * w * w + quadratic) / 2
        return self.first_order + quadratic / 2 + 2 * self.u * result


def steps(logits, advantage, step_size):
    """Bound for every entry of a policy-gradient step, with the policy in double precision."""
    s = Sizes(logits, advantage)
    z = np.array(logits.tolist())
    support = np.isfinite(z)
    pi = np.where(support, np.exp(z - z[support].max()), 0.0)
    pi /= pi.sum()
    a = np.where(support, np.array(advantage.tolist()), 0.0)
    of_mean = math.expm1(s.weight + s.k * s.u) * abs(a).max()
    centred = (1 + 2 * s.u) * abs(a - pi @ a) + of_mean
    of_centred = of_mean + 2 * s.u * (centred + of_mean)
    relative = math.expm1(s.weight + 2 * s.u)
    exact = pi * math.exp(s.weight) + s.tiny
    error = abs(step_size) * exact * (relative * centred + (1 + relative) * of_centred)
    return np.where(support, error + 4 * s.tiny * (1 + abs(step_size)) * (1 + centred + of_centred), 0.0)


@contextmanager
def roundoff(u):
    """Operations as inaccurate as that, so that terms of second order in u show; None for those of the type."""
    with pytest.MonkeyPatch.context() as patch:
        if u is not None:
            patch.setattr(remainder, "unit_roundoff", lambda dtype: u)
        yield


policies = strategies.logits(leading=(), max_actions=12, kinds=("normal", "uniform", "ties"))


@given(policies, strategies.generators(), st.sampled_from(list(CLOSE)), st.sampled_from([None, 1e-3]))
def test_rounding_bounds_are_the_stated_ones(logits, rng, dtype, u):
    logits, change = logits.to(dtype), torch.from_numpy(rng.normal(0, 2, len(logits))).to(dtype)
    with roundoff(u):
        s = Sizes(logits, change)
        for found, expected in (
            (remainder.log_prob_rounding(logits), s.log_prob),
            (remainder.probability_rounding(logits), s.weight),
            (remainder.entropy_rounding(logits), s.entropy),
            (remainder.first_order_rounding(logits, change), s.first_order),
            (remainder.second_order_rounding(logits, change), s.second_order),
        ):
            assert found.item() == pytest.approx(expected, rel=CLOSE[dtype], abs=0)


@given(policies, st.sampled_from(list(CLOSE)), st.sampled_from([0.0, 0.3, 40.0]))
def test_what_is_lost_to_underflow_is_the_stated_bound(logits, dtype, size):
    """By itself: beside other errors nothing of it shows."""
    logits = logits.to(dtype)
    s = Sizes(logits, torch.zeros_like(logits))
    found = remainder._underflow(logits, torch.tensor(size, dtype=dtype))
    assert found.item() / s.tiny == pytest.approx(s.lost(size) / s.tiny, rel=CLOSE[dtype], abs=0)


@given(
    policies,
    strategies.generators(),
    st.sampled_from([-3.0, 0.01, 0.5]),
    st.sampled_from(list(CLOSE)),
    st.sampled_from([None, 1e-3]),
)
def test_the_rounding_bound_of_a_step_is_the_stated_one(logits, rng, step_size, dtype, u):
    logits, advantage = logits.to(dtype), torch.from_numpy(rng.normal(0, 2, len(logits))).to(dtype)
    with roundoff(u):
        found = remainder.policy_gradient_step_rounding(logits, advantage, step_size)
        expected = steps(logits, advantage, step_size)
    # where A - E A cancels, what is left of it is off by the rounding of the mean
    slack = CLOSE[dtype] * expected.max()
    assert np.allclose(np.array(found.tolist()), expected, rtol=CLOSE[dtype], atol=slack)


def test_rounding_bounds_of_policies_side_by_side_are_those_alone():
    generator = torch.Generator().manual_seed(0)
    logits, change = 3 * torch.randn(2, 2, 3, 4, generator=generator, dtype=torch.float64)
    logits[0, 1, 2] = -math.inf
    for function in (remainder.first_order_rounding, remainder.second_order_rounding):
        together = function(logits, change)
        for i in range(2):
            for j in range(3):
                alone = function(logits[i, j], change[i, j]).item()
                assert together[i, j].item() == pytest.approx(alone, rel=1e-12, abs=0)
    together = remainder.policy_gradient_step_rounding(logits, change, 0.5)
    for i in range(2):
        alone = remainder.policy_gradient_step_rounding(logits[i], change[i], 0.5)
        torch.testing.assert_close(together[i], alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("actions", [2, 7, 1000])
def test_bounds_of_the_expansions_are_the_stated_multiples(actions):
    spread, error = torch.tensor([0.3, 2.0], dtype=torch.float64), torch.tensor([0.01, 0.2], dtype=torch.float64)
    c, d = remainder.remainder_constant(actions), remainder.second_order_remainder_constant(actions)
    n = covariance_constant(actions)
    first = [2 * n * e for e in error.tolist()]
    second = [
        f + (1 + 2 * n) * (2 * w * 2 * e + (2 * e) ** 2) / 2
        for f, w, e in zip(first, spread.tolist(), error.tolist(), strict=True)
    ]
    for found, expected in (
        (remainder.remainder_bound(spread, actions), [c / 2 * w**2 for w in spread.tolist()]),
        (remainder.second_order_remainder_bound(spread, actions), [d / 6 * w**3 for w in spread.tolist()]),
        (remainder.first_order_effect(error, actions), first),
        (remainder.second_order_effect(error, spread, actions), second),
    ):
        assert found.tolist() == pytest.approx(expected, rel=1e-14, abs=0)


def test_the_unit_roundoff_is_half_an_eps_and_its_square():
    assert remainder.unit_roundoff(torch.float64) == 2.0**-53 * (1 + 2.0**-52)
    assert remainder.unit_roundoff(torch.float32) == 2.0**-24 * (1 + 2.0**-23)
