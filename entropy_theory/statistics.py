"""Statistics over seeds: interquartile means, bootstrap intervals, performance profiles, probability of improvement.

A score is one number per seed, [seeds], or per seed and task, [seeds, tasks]. What is resampled are the seeds of each
task separately (the stratified bootstrap), never the steps of one run: those are not independent of each other. Agarwal
et al. 2021, arXiv 2108.13264, say why a few seeds want this and not a mean with a standard error.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

RESAMPLES = 9999
"""Resamples of an interval; scipy's default."""

BAND_RESAMPLES = 1999
"""Resamples of a band along a curve, all points of which share them."""

LEVEL = 0.95


class Interval(NamedTuple):
    """A statistic over seeds and the ends of its 95 % bootstrap interval; all NaN where there are no scores."""

    estimate: float
    low: float
    high: float


class Band(NamedTuple):
    """A statistic at each point of a curve and its pointwise 95 % interval; three arrays of one length."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray


def iqm(values: ArrayLike, axis: int | None = None) -> np.ndarray:
    """Interquartile mean: the mean of what is left without the floor(n/4) smallest and as many of the largest.

    Agarwal et al. 2021, section 4.3: as robust against single seeds as the median, and almost as precise as the mean.

    Args:
      values: any shape; axis: along which n values lie, None for all of them.
    """
    return stats.trim_mean(values, 0.25, axis=axis)


def bootstrap_interval(
    scores: ArrayLike, statistic: Callable[..., np.ndarray] = np.mean, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """A statistic of the scores, with the percentile interval of the stratified bootstrap (`scipy.stats.bootstrap`).

    Args:
      scores: [seeds] or [seeds, tasks]; NaN are left out. Each task's seeds are resampled among themselves.
      statistic: of an array and an axis, over the scores of all tasks together: `np.mean`, `np.median`, `iqm`, ...
      seed: of the resampling.
    """
    tasks = _tasks(scores)
    everything = np.concatenate(tasks) if tasks else np.array([])
    if not len(everything) or not all(len(task) for task in tasks):
        return Interval(*(math.nan,) * 3)
    estimate = float(statistic(everything, axis=0))
    if min(map(len, tasks)) < 2:
        return Interval(estimate, math.nan, math.nan)
    if all(np.ptp(task) == 0 for task in tasks):  # every resample is the same
        return Interval(*(estimate,) * 3)

    def pooled(*samples, axis):
        return statistic(np.concatenate(samples, axis=axis), axis=axis)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            tasks,
            pooled,
            vectorized=True,
            n_resamples=resamples,
            method="percentile",
            confidence_level=LEVEL,
            rng=np.random.default_rng(seed),
        )
    return Interval(estimate, *map(float, found.confidence_interval))


def curve_band(curves: ArrayLike, seed: int = 0) -> Band:
    """Mean curve over seeds and its pointwise 95 % interval; whole curves are resampled.

    Args:
      curves: [seeds, points]; where a seed has no value (NaN) the mean is over the others.
    Returns: NaN where no seed has a value, and ends of NaN where only one has.
    """
    curves = np.asarray(curves, float)
    there = np.isfinite(curves)
    counts = _draw_counts(len(curves), np.random.default_rng(seed))
    values, weights = np.where(there, curves, 0.0), there.astype(float)
    with np.errstate(invalid="ignore"):  # 0 / 0 where a resample has no seed with a value
        means = (counts @ values) / (counts @ weights)
        estimate = values.sum(0) / weights.sum(0)
    low, high = _percentiles(means)
    alone = weights.sum(0) < 2
    return Band(estimate, np.where(alone, math.nan, low), np.where(alone, math.nan, high))


def performance_profile(scores: ArrayLike, thresholds: ArrayLike, seed: int = 0) -> Band:
    """Share of runs whose score is above tau, for each threshold tau, with a pointwise bootstrap band.

    P(tau) = mean over tasks m and seeds n of 1[x_mn > tau]; Agarwal et al. 2021, eq. 2. Where the profile of one method
    lies above another's everywhere, its scores are stochastically larger.

    Args:
      scores: [seeds] or [seeds, tasks]; NaN are left out. thresholds: [points], in the unit of the scores.
    Raises: ValueError if a task has no score.
    """
    tasks, thresholds = _tasks(scores), np.asarray(thresholds, float)
    if not tasks or not all(len(task) for task in tasks):
        raise ValueError("a performance profile needs at least one score for each task, got none")
    rng = np.random.default_rng(seed)
    above = [(task[:, None] > thresholds).astype(float) for task in tasks]
    means = np.mean([_draw_counts(len(a), rng) @ a / len(a) for a in above], axis=0)
    return Band(np.mean([a.mean(0) for a in above], axis=0), *_percentiles(means))


def probability_of_improvement(scores: ArrayLike, others: ArrayLike, seed: int = 0) -> Interval:
    """P(X > Y) + P(X = Y) / 2 for a seed X of one method and Y of another on the same task, averaged over tasks.

    Agarwal et al. 2021, section 4.4: the Mann-Whitney statistic over the number of pairs. Its interval resamples the
    seeds of both methods, per task. Above 1/2 throughout: the first method is better; it does not say by how much.

    Args:
      scores, others: [seeds] or [seeds, tasks], with as many tasks and any numbers of seeds; NaN are left out.
    Raises: ValueError if the numbers of tasks differ.
    """
    pairs = list(zip(_tasks(scores), _tasks(others), strict=True))
    if not pairs or not all(len(x) and len(y) for x, y in pairs):
        return Interval(*(math.nan,) * 3)
    rng = np.random.default_rng(seed)
    wins = [np.sign(x[:, None] - y[None, :]) / 2 + 0.5 for x, y in pairs]
    estimate = float(np.mean([w.mean() for w in wins]))
    if min(min(w.shape) for w in wins) < 2:
        return Interval(estimate, math.nan, math.nan)
    resampled = [((_draw_counts(len(w), rng) @ w) * _draw_counts(w.shape[1], rng)).sum(1) / w.size for w in wins]
    return Interval(estimate, *map(float, _percentiles(np.mean(resampled, axis=0))))


def block_length(points: int) -> int:
    """Block length for a series of so many points: the whole number above points^(1/3).

    The rate at which the error of a bootstrapped variance falls fastest (Hall, Horowitz & Jing 1995, Biometrika 82).
    """
    return max(1, math.ceil(round(points ** (1 / 3), 9)))  # 1000 ** (1 / 3) is below 10 by rounding, 343's above 7


def block_bootstrap(
    series: ArrayLike,
    statistic: Callable[..., np.ndarray] = np.mean,
    block: int | None = None,
    seed: int = 0,
    resamples: int = BAND_RESAMPLES,
) -> Interval:
    """A statistic of one time series, with the percentile interval of the circular block bootstrap.

    Blocks of successive points, chosen anywhere and wrapped at the end, are joined to a series of the same length,
    which keeps the dependence within a block (Politis & Romano 1992).

    Args:
      series: [points], in order; block: points in a block, `block_length` if not given.
      statistic: of an array [resamples, points] and an axis; it sees a resampled series in order.
    Raises: ValueError for an empty series, NaN, or a block that does not lie in [1, points].
    """
    series = np.asarray(series, float)
    if series.ndim != 1 or not len(series) or np.isnan(series).any():
        raise ValueError(f"a series must be one row of numbers without NaN, got shape {series.shape}; leave NaN out")
    points = len(series)
    block = block_length(points) if block is None else block
    if not 1 <= block <= points:
        raise ValueError(f"block must lie in [1, {points}], the points of the series, got {block}")
    starts = np.random.default_rng(seed).integers(points, size=(resamples, -(-points // block), 1))
    places = ((starts + np.arange(block)) % points).reshape(resamples, -1)[:, :points]
    found = statistic(series[places], axis=1)
    return Interval(float(statistic(series[None], axis=1)[0]), *map(float, _percentiles(found)))


def _tasks(scores: ArrayLike) -> list[np.ndarray]:
    """The scores of each task without NaN."""
    scores = np.asarray(scores, float)
    columns: Sequence[np.ndarray] = [scores] if scores.ndim == 1 else list(scores.T)
    return [column[~np.isnan(column)] for column in columns]


def _draw_counts(seeds: int, rng: np.random.Generator) -> np.ndarray:
    """How often each seed is in each resample, [BAND_RESAMPLES, seeds]."""
    drawn = rng.integers(seeds, size=(BAND_RESAMPLES, seeds))
    first = np.arange(BAND_RESAMPLES)[:, None] * seeds
    return np.bincount((drawn + first).ravel(), minlength=drawn.size).reshape(drawn.shape).astype(float)


def _percentiles(resampled: np.ndarray) -> np.ndarray:
    """Both ends of the percentile interval along the first axis, resamples of NaN left out."""
    tail = (1 - LEVEL) / 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a point at which every resample is NaN
        return np.nanquantile(resampled, (tail, 1 - tail), axis=0)
