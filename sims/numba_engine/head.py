"""Statistics of the policy at every row, and the gradient of the loss with respect to the networks' outputs.

The derivative of `entropy_theory.loss.token_loss`, written out; tests hold the two equal. Sums are float64.
"""

import math

import numpy as np
from numba import njit

from entropy_theory.compiled.elementary import FLAGS

SLOPES = {"abs": (1, 0, 0, 0), "k1": (0, 1, 0, 0), "k2": (0, 0, 1, 0), "k3": (0, 1, 0, -1)}
"""Derivatives of `loss.DIVERGENCES` as multiples of sign(x), 1, x and exp(-x)."""


@njit(inline="always", **FLAGS)
def _log_softmax(logits, i, scale, logp, share):
    """Fills log softmax(scale * logits[i]) and its exponentials; the entropy, to which a share of 0 adds nothing."""
    top = -np.inf
    for a in range(logp.size):
        logp[a] = scale * logits[i, a]
        top = max(top, logp[a])
    total = 0.0
    for a in range(logp.size):
        share[a] = math.exp(logp[a] - top)
        total += share[a]
    shift = top + math.log(total)
    entropy = 0.0
    for a in range(logp.size):
        logp[a] -= shift
        share[a] /= total
        entropy -= share[a] * logp[a] if share[a] > 0 else 0.0
    return entropy


@njit(cache=True, **FLAGS)
def statistics(logits, action, logp, entropy):
    """Every seed: fills `softmax.token_statistics` of logits [seeds, rows, actions]."""
    row, share = np.empty(logits.shape[2]), np.empty(logits.shape[2])
    for s in range(len(logits)):
        z = logits[s]
        for i in range(len(z)):
            entropy[s, i] = _log_softmax(z, i, 1.0, row, share)
            logp[s, i] = row[action[s, i]]


@njit(inline="always", **FLAGS)
def _surrogate_slope(ratio, advantage, low, high):
    """Derivative of min(r A, clip(r) A) by log r: r A, or 0 where the clip has silenced the token."""
    inside = min(max(ratio, 1 - low), 1 + high)
    return 0.0 if ratio * advantage > inside * advantage else ratio * advantage


@njit(inline="always", **FLAGS)
def _penalty_slope(penalties, slopes, i, logp):
    """Derivative of all penalties of token i by its log-probability; penalties: [penalties, 2, rows].

    A term that does not occur is not formed: 0 * inf is NaN, and where a penalty is off its target may be anything.
    """
    total = 0.0
    for j in range(len(slopes)):
        coefficient, x = penalties[j, 0, i], logp - penalties[j, 1, i]
        if coefficient != 0:
            slope = float(slopes[j, 1])
            if slopes[j, 0] != 0:
                slope += slopes[j, 0] * np.sign(x)
            if slopes[j, 2] != 0:
                slope += slopes[j, 2] * x
            if slopes[j, 3] != 0:
                slope += slopes[j, 3] * math.exp(-x)
            total += coefficient * slope
    return total


@njit(**FLAGS)
def _count(mask):
    """Valid tokens of a seed, at least 1, as `reduce.token_count`."""
    return max(mask.sum(), 1)


@njit(**FLAGS)
def _policy_gradient(logits, action, mask, tokens, penalties, slopes, d_logits):
    """One seed; tokens: [7, rows], see `policy_gradient`."""
    count = _count(mask)
    row, share = np.empty(logits.shape[1]), np.empty(logits.shape[1])
    old_logp, weight, advantage, low, high, entropy_coef, scale = tokens
    for i in range(len(logits)):
        if not mask[i]:
            for a in range(row.size):
                d_logits[i, a] = 0
            continue
        entropy = _log_softmax(logits, i, scale[i], row, share)
        # as `statistics` gives it, so that |logp - old_logp| is 0 where the policy has not moved
        logp = np.float64(logits.dtype.type(row[action[i]]))
        surrogate = _surrogate_slope(math.exp(logp - old_logp[i]), advantage[i], low[i], high[i])
        slope = _penalty_slope(penalties, slopes, i, logp) - weight[i] * surrogate
        for a in range(row.size):
            chosen = 1.0 if a == action[i] else 0.0
            bonus = entropy_coef[i] * share[a] * (row[a] + entropy) if share[a] > 0 else 0.0
            d_logits[i, a] = (slope * (chosen - share[a]) + bonus) * scale[i] / count


@njit(cache=True, **FLAGS)
def policy_gradient(logits, action, mask, tokens, penalties, slopes, d_logits):
    """Every seed: fills d loss / d logits, 0 where masked; E = [seeds, rows].

    Args:
      logits, d_logits: E + [actions]; action, mask: E.
      tokens: old_logp, weight, advantage, clip_low, clip_high, entropy_coef and logit_scale, each E.
      penalties: [penalties, 2] + E, coefficient and target; slopes: [penalties, 4], see `SLOPES`.
    """
    old_logp, weight, advantage, low, high, entropy_coef, scale = tokens
    for s in range(len(logits)):
        fields = old_logp[s], weight[s], advantage[s], low[s], high[s], entropy_coef[s], scale[s]
        _policy_gradient(logits[s], action[s], mask[s], fields, penalties[:, :, s], slopes, d_logits[s])


@njit(cache=True, **FLAGS)
def value_gradient(value, target, old_value, mask, coefficient, clip, d_value):
    """Every seed: fills coefficient * (V - target) / valid states; 0 where masked or held by the clip.

    All [seeds, rows]; see `ppo.value_loss`.
    """
    for s in range(len(value)):
        count = _count(mask[s])
        for i in range(value.shape[1]):
            error = value[s, i] - target[s, i] if mask[s, i] else value.dtype.type(0)
            change = value[s, i] - old_value[s, i]
            if abs(change) > clip:
                held = old_value[s, i] + math.copysign(clip, change) - target[s, i]
                if held * held > error * error:
                    error = value.dtype.type(0)
            d_value[s, i] = coefficient * error / count
