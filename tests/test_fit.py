"""The fit R = -a exp(H) + b and the t interval."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.fit import fit_entropy_reward, mean_interval

numbers = st.floats(-5, 5)


@given(numbers, numbers, st.lists(st.floats(0, 3), min_size=3, max_size=30))
def test_recovers_the_law_without_noise(a, b, entropy):
    entropy = np.array(entropy)
    if np.ptp(entropy) < 0.1:
        entropy[0] = entropy[1] + 0.5
    fit = fit_entropy_reward(entropy, -a * np.exp(entropy) + b)
    # least squares is exact up to rounding times the condition of two nearly equal x (ptp of exp(H) >= .1)
    assert fit.a == pytest.approx(a, abs=1e-8)
    assert fit.ceiling == pytest.approx(b - a, abs=1e-8)
    assert fit.rmse < 1e-8


def test_standard_error_of_the_ceiling_covers_the_truth():
    """Over repeated noise the ceiling's z-score has standard deviation 1."""
    rng = np.random.default_rng(0)
    entropy = np.linspace(0, 0.4, 60)
    scores = []
    for _ in range(2000):
        fit = fit_entropy_reward(entropy, 0.9 - 0.3 * np.exp(entropy) + rng.normal(0, 0.05, 60))
        scores.append((fit.ceiling - 0.6) / fit.ceiling_error)
    # t with 58 degrees of freedom: standard deviation sqrt(58/56) = 1.018; five standard errors of 2000 draws
    assert abs(np.std(scores) - 1.018) < 5 / math.sqrt(2 * 2000)
    assert abs(np.mean(scores)) < 5 / math.sqrt(2000)


def test_equal_entropies_have_no_fit():
    with pytest.raises(ValueError, match="at least 3 points of different entropy"):
        fit_entropy_reward([0.5, 0.5, 0.5], [0, 1, 0])
    with pytest.raises(ValueError, match="got 2"):
        fit_entropy_reward([0.5, 0.6], [0, 1])


def test_interval_covers_the_mean_nineteen_times_in_twenty():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(2000):
        _, low, high = mean_interval(rng.normal(3, 2, 5))
        inside += low <= 3 <= high
    # binomial(2000, 0.95), five standard deviations
    assert abs(inside - 1900) < 5 * math.sqrt(2000 * 0.95 * 0.05)


def test_one_value_has_no_interval():
    mean, low, high = mean_interval([2.0])
    assert mean == 2 and math.isnan(low) and math.isnan(high)
