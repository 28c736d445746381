"""Statistics over seeds against plain loops, exact enumeration of all resamples, and what holds for every sample."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory import statistics
from entropy_theory.statistics import (
    block_bootstrap,
    block_length,
    bootstrap_interval,
    curve_band,
    iqm,
    performance_profile,
    probability_of_improvement,
)

scores = st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=12)


def resampled(values, statistic):
    """A statistic of every resample of a sample, all n^n of them, sorted."""
    return np.sort([statistic(np.array(chosen)) for chosen in itertools.product(values, repeat=len(values))])


def near_quantile(end, everything, q, draws):
    """Whether `end` is a q-quantile of `draws` draws from `everything` (sorted), but for a chance of 1e-6.

    The number of draws below a point of probability p is binomial, within sqrt(draws ln(2e6) / 2) of its mean by
    Hoeffding's inequality; interpolation between two draws moves the quantile by less than one draw more.
    """
    slack = math.sqrt(draws * math.log(2e6) / 2) / draws + 2 / draws
    tiny = 1e-9  # two orders of one sum differ by rounding, and the statistics here by 1/36 at least
    below, upto = np.mean(everything < end - tiny), np.mean(everything <= end + tiny)
    return below <= q + slack and upto >= q - slack


# --- interquartile mean and intervals ------------------------------------------------------------------------------


@given(scores)
def test_iqm_is_the_mean_of_the_middle(values):
    cut = len(values) // 4
    middle = sorted(values)[cut : len(values) - cut]
    assert iqm(values) == pytest.approx(sum(middle) / len(middle), rel=1e-14, abs=1e-14)  # sums of whole numbers: exact


@pytest.mark.parametrize("statistic", [np.mean, np.median, iqm])
def test_the_interval_is_that_of_all_resamples(statistic):
    values = [3.0, 1.0, 7.0, 2.5, 11.0]
    found = bootstrap_interval(values, statistic)
    everything = resampled(values, statistic)
    assert found.estimate == pytest.approx(statistic(np.array(values)), rel=1e-15)
    assert near_quantile(found.low, everything, 0.025, statistics.RESAMPLES)
    assert near_quantile(found.high, everything, 0.975, statistics.RESAMPLES)


def test_tasks_are_resampled_among_themselves():
    """Seeds agree within a task and tasks differ: mixing them would give a wide interval, and it has none."""
    found = bootstrap_interval(np.array([[0.0, 10.0]] * 6))
    assert found == (5.0, 5.0, 5.0)
    a, b = [0.0, 1.0, 3.0], [100.0, 104.0, 120.0]
    found = bootstrap_interval(np.array([a, b]).T)
    sums = np.sort([x + y for x in resampled(a, np.mean) for y in resampled(b, np.mean)]) / 2
    assert found.estimate == pytest.approx(np.mean(a + b), rel=1e-15)
    assert near_quantile(found.low, sums, 0.025, statistics.RESAMPLES)
    assert near_quantile(found.high, sums, 0.975, statistics.RESAMPLES)


def test_what_cannot_be_averaged_is_nan():
    for values in ([], [math.nan], np.array([[1.0, math.nan], [2.0, math.nan]])):
        assert all(math.isnan(x) for x in bootstrap_interval(values))
    assert bootstrap_interval([4.0])[0] == 4 and math.isnan(bootstrap_interval([4.0]).high)
    assert bootstrap_interval([1.0, math.nan, 5.0, 2.0]) == bootstrap_interval([1.0, 5.0, 2.0])


# --- curves --------------------------------------------------------------------------------------------------------


def test_a_band_is_the_interval_at_each_point():
    values = np.array([[3.0, 0.0], [1.0, 5.0], [7.0, 5.0], [2.5, 5.0], [11.0, 5.0]])
    band = curve_band(values)
    for point in range(2):
        everything = resampled(values[:, point], np.mean)
        assert band.estimate[point] == pytest.approx(values[:, point].mean(), rel=1e-15)
        assert near_quantile(band.low[point], everything, 0.025, statistics.BAND_RESAMPLES)
        assert near_quantile(band.high[point], everything, 0.975, statistics.BAND_RESAMPLES)


def test_a_band_resamples_whole_curves():
    """A curve and the same one moved up by 10 keep their distance in every resample."""
    values = np.random.default_rng(1).integers(0, 50, (7, 1)).astype(float)
    band = curve_band(np.hstack([values, values + 10]))
    for line in band:
        # a sum of 7 terms and a quotient on either side, rounded to 2^-53 of at most 60 each
        assert line[1] - line[0] == pytest.approx(10, abs=2 * 8 * 60 * 2.0**-53)


def test_a_band_leaves_out_what_is_missing():
    nan = math.nan
    band = curve_band([[1.0, nan, nan, 4.0], [3.0, 5.0, nan, 4.0], [8.0, 7.0, nan, 4.0]])
    assert band.estimate[1] == 6 and band.low[1] == 5 and band.high[1] == 7
    assert all(math.isnan(line[2]) for line in band)
    assert [line[3] for line in band] == [4, 4, 4]
    alone = curve_band([[2.0], [nan]])
    assert alone.estimate[0] == 2 and math.isnan(alone.low[0]) and math.isnan(alone.high[0])


# --- profiles and probability of improvement -------------------------------------------------------------------------


@given(st.lists(st.tuples(*[st.integers(0, 5).map(float)] * 2), min_size=1, max_size=8))
def test_a_profile_counts_the_runs_above(values):
    thresholds = [-1.0, 0.0, 2.0, 2.5, 5.0]
    found = performance_profile(np.array(values), thresholds)
    for tau, share, low, high in zip(thresholds, *found, strict=True):
        counted = sum(x > tau for row in values for x in row) / (2 * len(values))
        assert share == pytest.approx(counted, rel=1e-15, abs=0)
        assert 0 <= low <= high <= 1
    assert found.estimate[0] == found.low[0] == 1 and found.estimate[-1] == found.high[-1] == 0


def test_the_band_of_a_profile_is_that_of_all_resamples():
    values = [0.0, 1.0, 2.0, 3.0, 9.0]
    found = performance_profile(values, [1.5])
    everything = resampled([x > 1.5 for x in values], np.mean)
    assert near_quantile(found.low[0], everything, 0.025, statistics.BAND_RESAMPLES)
    assert near_quantile(found.high[0], everything, 0.975, statistics.BAND_RESAMPLES)


def test_a_profile_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one score"):
        performance_profile([math.nan], [0.0])


@given(scores, scores)
def test_improvement_counts_pairs_and_half_of_the_ties(x, y):
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in x for b in y)
    found = probability_of_improvement(x, y)
    # a sum of halves is exact; the mean divides once, and one task's mean is that number itself
    assert found.estimate == pytest.approx(wins / (len(x) * len(y)), rel=2.0**-52, abs=0)
    assert found.estimate + probability_of_improvement(y, x).estimate == pytest.approx(1, rel=2.0**-50)


def test_the_interval_of_improvement_is_that_of_all_resamples():
    x, y = [1.0, 4.0, 4.0], [0.0, 4.0, 2.0]
    found = probability_of_improvement(x, y)
    pairs = itertools.product(itertools.product(x, repeat=3), itertools.product(y, repeat=3))
    everything = np.sort([np.mean([np.sign(a - b) / 2 + 0.5 for a in u for b in v]) for u, v in pairs])
    assert near_quantile(found.low, everything, 0.025, statistics.BAND_RESAMPLES)
    assert near_quantile(found.high, everything, 0.975, statistics.BAND_RESAMPLES)


def test_improvement_compares_within_tasks():
    """Every seed of the first method is better on its task, although the tasks' scores lie far apart."""
    assert probability_of_improvement([[1.0, 101.0]] * 3, [[0.0, 100.0]] * 4) == (1, 1, 1)
    with pytest.raises(ValueError):
        probability_of_improvement([[1.0, 2.0]] * 3, [[1.0]] * 3)
    assert math.isnan(probability_of_improvement([math.nan], [1.0]).estimate)
    assert math.isnan(probability_of_improvement([1.0], [0.0, 2.0]).low)


# --- time series -----------------------------------------------------------------------------------------------------


def test_blocks_keep_their_order_and_wrap_around():
    """Differences of neighbours are 1, at the wrap -5, and anything only at joints: 2 of 5 here."""
    seen = []

    def watch(series, axis):
        seen.append(series)
        return series.mean(axis)

    block_bootstrap(np.arange(6.0), watch, block=2, resamples=200)
    steps = np.diff(seen[0], axis=1)
    assert set(steps[:, ::2].ravel()) == {1.0, -5.0}
    assert len(set(steps[:, 1::2].ravel())) > 5
    assert seen[0].shape == (200, 6) and set(seen[0].ravel()) == set(range(6))


def test_one_block_of_everything_has_no_spread_and_single_points_are_the_plain_bootstrap():
    series = np.array([3.0, 1.0, 7.0, 2.5, 11.0])
    whole = block_bootstrap(series, block=5)
    assert whole.low == pytest.approx(whole.high, rel=2.0**-50)  # the same five numbers in another order
    single = block_bootstrap(series, block=1)
    everything = resampled(series, np.mean)
    assert near_quantile(single.low, everything, 0.025, statistics.BAND_RESAMPLES)
    assert near_quantile(single.high, everything, 0.975, statistics.BAND_RESAMPLES)


def test_blocks_widen_the_interval_of_a_persistent_series():
    """Each value stands five times: 40 independent numbers, so sqrt(5) times the interval that 200 would have."""
    series = np.repeat(np.random.default_rng(3).normal(size=40), 5)
    plain, blocks = (block_bootstrap(series, block=block, resamples=4000) for block in (1, 20))
    # a moving block of 20 covers 4 or 5 values with weights that sum to 20: variance (20 - 5/3) / 20 of the limit or
    # more, and the spread of 4000 draws is known to 5 %
    assert 0.75 * math.sqrt(5) < (blocks.high - blocks.low) / (plain.high - plain.low) < 1.2 * math.sqrt(5)


@given(st.integers(1, 10**9))
def test_block_length_is_the_cube_root_rounded_up(points):
    found = block_length(points)
    assert (found - 1) ** 3 < points <= found**3


@pytest.mark.parametrize(
    ("series", "block", "message"),
    [([], None, "without NaN"), ([1.0, math.nan], None, "leave NaN out"), ([[1.0]], None, "one row"),
     ([1.0, 2.0], 0, r"block must lie in \[1, 2\]"), ([1.0, 2.0], 3, "got 3")],
)  # fmt: skip
def test_a_bad_series_is_named(series, block, message):
    with pytest.raises(ValueError, match=message):
        block_bootstrap(series, block=block)


def test_the_same_seed_gives_the_same_interval_and_another_one_another():
    values = np.random.default_rng(0).normal(size=9)
    assert (
        bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    )
