"""The empirical law R = -a exp(H) + b between reward and entropy, as a linear regression on exp(H)."""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats


class EntropyRewardFit(NamedTuple):
    """R = -a exp(H) + b, standard errors, and the ceiling b - a it implies at H = 0.

    a, b, ceiling, their errors and rmse in reward units; r_squared of this law, and of the straight line
    R = b' - a' H through the same points for comparison.
    """

    a: float
    b: float
    a_error: float
    b_error: float
    ceiling: float
    ceiling_error: float
    rmse: float
    r_squared: float
    r_squared_line: float


def fit_entropy_reward(entropy, reward) -> EntropyRewardFit:
    r"""Least squares for R = -a exp(H) + b.

    Cui et al. 2025 (arXiv 2505.22617), eq. 6. Linear in x = exp(H), so a = -Cov(x, R)/Var(x). Late in a run all x
    are near 1 and only b - a is determined; its standard error is s sqrt(1/n + (1 - mean x)^2 / S_xx). The errors
    take residuals as independent, which successive training steps are not: read them as lower limits.

    Args:
      entropy: nats, one value per point; reward: same length.
    Raises: ValueError with fewer than 3 points or when all entropies are equal.
    """
    entropy, reward = np.asarray(entropy, float), np.asarray(reward, float)
    if len(entropy) < 3 or np.ptp(entropy) == 0:
        raise ValueError(f"a fit needs at least 3 points of different entropy, got {len(entropy)}")
    x = np.exp(entropy)
    line = stats.linregress(x, reward)
    residual = reward - line.slope * x - line.intercept
    variance = residual @ residual / (len(x) - 2)
    spread = ((x - x.mean()) ** 2).sum()
    return EntropyRewardFit(
        a=-line.slope,
        b=line.intercept,
        a_error=line.stderr,
        b_error=line.intercept_stderr,
        ceiling=line.intercept + line.slope,
        ceiling_error=math.sqrt(variance * (1 / len(x) + (1 - x.mean()) ** 2 / spread)),
        rmse=math.sqrt(residual @ residual / len(x)),
        r_squared=line.rvalue**2,
        r_squared_line=stats.linregress(entropy, reward).rvalue ** 2,
    )


def mean_interval(values, level: float = 0.95) -> tuple[float, float, float]:
    """Mean over seeds and its Student t interval; (mean, nan, nan) for a single value."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), math.nan, math.nan
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)
