r"""How far a correct computation may be from the exact number, in a given dtype: proved in docs/conformance.md.

Model: inputs are rounded once to the dtype; one operation multiplies the exact result by exp(theta), |theta| <= u;
exp is accurate to 8 u and log to 2 u; sums may be taken in any order. Everything here is float64 NumPy.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_EXP, _LOG = 8, 2

Array = np.ndarray


class Precision(NamedTuple):
    """A floating-point format: unit roundoff, smallest normal number, and rounding to it (float64 -> float64)."""

    name: str
    u: float
    tiny: float
    cast: Callable[[Array], Array]

    def loss(self, x: Array) -> Array:
        """|rounded - x|, 0 at infinities."""
        return np.where(np.isfinite(x), np.abs(self.cast(x) - np.where(np.isfinite(x), x, 0.0)), 0.0)

    def growth(self, operations: float, exponent: Array | float = 0.0) -> Array:
        """exp(exponent + operations u) - 1: the relative error of so many operations."""
        return np.expm1(exponent + operations * self.u)


class Softmax(NamedTuple):
    """Exact statistics of softmax(logits) and bounds on their errors, actions last; masked actions hold 0.

    p, lp, z:  probabilities, log-probabilities, logits
    h:         entropy
    of_lp:     bound on the absolute error of a log-probability
    of_p:      bound on |theta| of a probability
    of_log_total: bound on the absolute error of log sum exp
    log_total: log sum exp
    """

    p: Array
    lp: Array
    z: Array
    h: Array
    of_lp: Array
    of_p: Array
    of_log_total: Array
    log_total: Array


def softmax(logits: Array, precision: Precision) -> Softmax:
    """Statistics and bounds of every state; logits [..., actions] must be exact in the precision."""
    u, actions = precision.u, logits.shape[-1]
    support = np.isfinite(logits)
    top = np.max(logits, -1, keepdims=True)
    z = np.where(support, logits, 0.0)
    below = np.where(support, top - z, 0.0)
    terms = np.where(support, np.exp(-below), 0.0)
    log_sum = np.log(terms.sum(-1, keepdims=True))
    p, lp = terms / np.exp(log_sum), np.where(support, -below - log_sum, 0.0)
    of_term = u * below + _EXP * u
    of_sum = np.log((p * np.exp(of_term)).sum(-1, keepdims=True)) + (actions - 1) * u
    of_log = of_sum + _LOG * u * (log_sum + of_sum)
    of_log_total = of_log + u * (np.abs(top + log_sum) + of_log)
    of_lp = np.where(support, (u * below + of_log_total + u * np.abs(lp)) * (1 + u) ** 2, 0.0)
    of_p = np.where(support, of_lp + (_EXP + 1) * u, 0.0)
    h = -(p * lp).sum(-1, keepdims=True)
    return Softmax(p, lp, z, h, of_lp, of_p, of_log_total, top + log_sum)


def log_prob_error(logits: Array, action: Array, precision: Precision) -> Array:
    """Bound for the log-probability of the action, [...]."""
    of_lp = softmax(logits, precision).of_lp
    return np.take_along_axis(of_lp, action[..., None], -1)[..., 0]


def entropy_error(logits: Array, precision: Precision) -> Array:
    """Bound for -sum p log p and for log sum exp - sum p z, [...]; never more than log actions + u log actions."""
    s, u, actions = softmax(logits, precision), precision.u, logits.shape[-1]
    relative = precision.growth(actions, s.of_p)
    by_log = (s.p * (relative * (np.abs(s.lp) + s.of_lp) + s.of_lp)).sum(-1)
    mean = (s.p * relative * np.abs(s.z)).sum(-1)
    by_total = mean + s.of_log_total[..., 0]
    by_total = by_total * (1 + u) + u * s.h[..., 0]
    size = 1 + np.abs(s.z).max(-1) + np.log(actions)
    return np.maximum(by_log, by_total) + 8 * actions * precision.tiny * size


def entropy_gradient_error(logits: Array, precision: Precision) -> Array:
    """Bound for dH/dz_a = -p_a (log p_a + H), by any formula or by differentiating either form, [..., actions]."""
    s, u, actions = softmax(logits, precision), precision.u, logits.shape[-1]
    relative = precision.growth(actions + 8, 2 * s.of_p)
    mean_z = (s.p * np.abs(s.z)).sum(-1, keepdims=True)
    spread = (s.p * precision.growth(actions + 8, 2 * s.of_p) * (1 + np.abs(s.lp) + np.abs(s.z))).sum(-1, keepdims=True)
    size = 2 + np.abs(s.lp) + s.h + np.abs(s.z) + mean_z
    inner = s.of_lp + entropy_error(logits, precision)[..., None] + spread + 4 * u * size
    tiny = 8 * actions * precision.tiny * size
    return s.p * (relative * size + (1 + relative) * inner) + tiny


class Tokens(NamedTuple):
    """The valid tokens of a minibatch as flat exact arrays."""

    logp: Array
    old_logp: Array
    advantage: Array

    @property
    def log_ratio(self) -> Array:
        """logp - old_logp."""
        return self.logp - self.old_logp


def score_error(x: Array, y: Array, precision: Precision) -> Array:
    """Bound for (x_i - mean x)(y_i - mean y) of flat arrays."""
    of_x, of_y = _deviation_error(x, precision), _deviation_error(y, precision)
    dx, dy = np.abs(x - x.mean()), np.abs(y - y.mean())
    error = of_x * dy + of_y * dx + of_x * of_y
    return error + precision.u * (dx * dy + error)


def covariance_error(x: Array, y: Array, precision: Precision) -> float:
    """Bound for the mean of the scores."""
    error = score_error(x, y, precision)
    size = np.abs((x - x.mean()) * (y - y.mean()))
    return float(error.mean() + precision.growth(len(x) + 1) * (size + error).mean())


def _deviation_error(x: Array, precision: Precision) -> Array:
    """x minus its mean; the mean of a single number is that number."""
    u, lost = precision.u, precision.loss(x)
    of_mean = lost.mean() + precision.growth(len(x) + 1 if len(x) > 1 else 0) * (np.abs(x) + lost).mean()
    return (lost + of_mean) * (1 + u) + u * np.abs(x - x.mean())


def log_ratio_error(tokens: Tokens, precision: Precision, of_logp: Array | None = None) -> Array:
    """Bound for logp - old_logp; `of_logp` if logp was computed rather than given."""
    lost = precision.loss(tokens.logp) if of_logp is None else of_logp
    lost = lost + precision.loss(tokens.old_logp)
    return lost * (1 + precision.u) + precision.u * np.abs(tokens.log_ratio)


def near_edge(tokens: Tokens, of_log_ratio: Array, precision: Precision, clip_low: float, clip_high: float) -> Array:
    """Tokens whose ratio is so close to an edge of PPO's clip that either side is right."""
    distance = np.full(tokens.logp.shape, np.inf)
    for edge in (1 - clip_low, 1 + clip_high):
        if edge > 0:
            distance = np.minimum(distance, np.abs(tokens.log_ratio - np.log(edge)))
    return distance <= of_log_ratio + (_EXP + 4) * precision.u


def surrogate_error(tokens: Tokens, of_log_ratio: Array, precision: Precision, edge: float) -> Array:
    """Bound for -min(r A, clip(r) A) with `edge` = 1 + clip_high, and for -r A with edge 0."""
    ratio, size = np.exp(tokens.log_ratio), np.abs(tokens.advantage)
    relative = precision.growth(_EXP + 2, of_log_ratio)
    of_ratio = ratio * relative + 3 * precision.u * edge
    lost = precision.loss(tokens.advantage)
    return size * of_ratio + lost * (np.maximum(ratio, edge) + of_ratio)


def surrogate_gradient_error(tokens: Tokens, of_log_ratio: Array, precision: Precision) -> Array:
    """Bound for r A where the token is not clipped."""
    ratio, lost = np.exp(tokens.log_ratio), precision.loss(tokens.advantage)
    relative = precision.growth(_EXP + 6, of_log_ratio)
    return ratio * (np.abs(tokens.advantage) * relative + lost * (1 + relative))


def mean_error(values: Array, errors: Array, tokens: int, precision: Precision) -> float:
    """Bound for sum(values) / tokens when each value has its own error."""
    growth = precision.growth(len(values) + 3)
    return float((errors.sum() * (1 + growth) + growth * np.abs(values).sum()) / tokens)


def grpo_error(reward: Array, group: Array, eps: float, precision: Precision) -> Array:
    """Bound for (reward - mean) / (std + eps) within each group, [rows]."""
    u, allowed = precision.u, np.zeros(len(reward))
    for g in np.unique(group):
        rows = group == g
        r, n = reward[rows], int(rows.sum())
        of_deviation = _deviation_error(r, precision)
        deviation = np.abs(r - r.mean())
        std = np.sqrt((deviation**2).sum() / max(1, n - 1))
        growth = precision.growth(n + 6)
        # the 2-norm of errors is at most that of the deviations' errors, then n + 6 roundings
        of_std = np.sqrt((of_deviation**2).sum() / max(1, n - 1)) * (1 + growth) + growth * std
        of_std = of_std + np.sqrt(2 * n * precision.tiny)  # squares that underflow
        advantage = deviation / (std + eps)
        quotient = (of_deviation + advantage * (of_std + 2 * u * (std + eps))) / max(std + eps - of_std, eps)
        allowed[rows] = quotient * (1 + 2 * u) + 2 * u * advantage + precision.tiny
    return allowed
