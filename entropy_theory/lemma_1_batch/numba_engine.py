"""The sums of Lemma 1 compiled: both exponentials and all sums of an instance in one pass over its actions.

Every loop runs over LANES independent lanes, so that the compiler turns it into vector instructions without
reordering any sum. A lane is an instance where actions are few (a block of instances is laid out actions first),
and a slice of one instance's actions where they are many. All work space is one array with fixed offsets: with
separate arrays the compiler would have to prove that they do not overlap, and gives up.

`contract` lets a product and a sum become one fused operation with one rounding instead of two; nothing else may
be rearranged.
"""

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from entropy_theory.lemma_1_batch import formulas

LANES = 32
FEW = 128
"""Up to this many actions a lane is an instance."""
_FLAGS = {"contract"}
_FAR, _SMALLEST, _LOWEST = formulas.FAR, formulas.SMALLEST_EXPONENT, formulas.LOWEST
_statistics = njit(inline="always", fastmath=_FLAGS)(formulas.statistics)

# offsets of the work space: one row of LANES numbers each
_ROWS = 18
_OFFSETS = tuple(range(0, _ROWS * LANES, LANES))
_TOP, _HIGH, _LOW, _SHIFT = _OFFSETS[:4]
_S, _T, _D, _TD, _DD, _TDD, _S1, _T1 = _OFFSETS[4:12]
_H, _H1, _F1, _F2, _BOUND1, _BOUND2 = _OFFSETS[12:]


def additions(actions: int) -> int:
    """Most additions that one term of a sum goes through."""
    if actions <= FEW:
        return actions - 1
    return -(-actions // LANES) - 1 + LANES.bit_length() - 1


# --- exp and log on lanes -----------------------------------------------------------------------------------------


@intrinsic
def _as_float(context, bits):
    """The float64 with these 64 bits."""
    return types.float64(types.int64), lambda c, builder, s, args: builder.bitcast(args[0], ir.DoubleType())


@intrinsic
def _as_bits(context, number):
    """The 64 bits of a float64."""
    return types.int64(types.float64), lambda c, builder, s, args: builder.bitcast(args[0], ir.IntType(64))


_LOG2_E = 1 / math.log(2)
_LN2_HIGH = float.fromhex("0x1.62e42fefa3800p-1")  # 42 bits: its product with an exponent is exact
_LN2_LOW = float.fromhex("0x1.ef35793c76730p-45")
_ROUND = float.fromhex("0x1.8p52")  # adding it rounds to an integer, which then stands in the low bits
_E = tuple(1 / math.factorial(i) for i in range(14))
_L = tuple(2 / (2 * i + 1) for i in range(11))
_SQRT_HALF_BITS = 0x3FE6A09E667F3BCD


@njit(inline="always", fastmath=_FLAGS)
def exp(x):
    """e^x for -708 <= x <= 709: x = k ln 2 + r, |r| <= ln 2 / 2, Taylor polynomial of degree 13 in r."""
    shifted = x * _LOG2_E + _ROUND
    k = shifted - _ROUND
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    s = r * r
    ab = (_E[2] + _E[3] * r) + (_E[4] + _E[5] * r) * s
    cd = (_E[6] + _E[7] * r) + (_E[8] + _E[9] * r) * s
    ef = (_E[10] + _E[11] * r) + (_E[12] + _E[13] * r) * s
    s2 = s * s
    power = 1.0 + (r + s * (ab + s2 * (cd + s2 * ef)))
    return _as_float(_as_bits(power) + (_as_bits(shifted) << 52))


@njit(inline="always", fastmath=_FLAGS)
def log(x):
    """ln x for a normal x > 0: x = 2^k (1 + m) with 1 + m in [sqrt(1/2), sqrt(2)), and with s = m / (2 + m)
    ln(1 + m) = 2 artanh s = m - s (m - series), series = 2 s^2/3 + 2 s^4/5 + ...; m is exact."""
    bits = _as_bits(x)
    k = (bits - _SQRT_HALF_BITS) >> 52
    m = _as_float(bits - (k << 52)) - 1.0  # exact
    s = m / (2.0 + m)
    z = s * s
    z2 = z * z
    z4 = z2 * z2
    low = (_L[1] + _L[2] * z) + z2 * (_L[3] + _L[4] * z)
    middle = (_L[5] + _L[6] * z) + z2 * (_L[7] + _L[8] * z)
    series = z * (low + z4 * (middle + z4 * (_L[9] + _L[10] * z)))
    return k * _LN2_HIGH + (m + (k * _LN2_LOW - s * (m - series)))


# --- the loops over lanes -----------------------------------------------------------------------------------------


@njit(inline="always", fastmath=_FLAGS)
def _extremes(z, d, b):
    """Largest logit, largest and smallest change over the finite logits, lane by lane."""
    for j in range(LANES):
        x, y = z[j], d[j]
        masked = x == -np.inf
        high, low = -np.inf if masked else y, np.inf if masked else y
        b[_TOP + j] = x if x > b[_TOP + j] else b[_TOP + j]
        b[_HIGH + j] = high if high > b[_HIGH + j] else b[_HIGH + j]
        b[_LOW + j] = low if low < b[_LOW + j] else b[_LOW + j]


@njit(inline="always", fastmath=_FLAGS)
def _centred(x, y, top, middle):
    """(t, d): logit below the largest, change from its middle; (LOWEST, 0) at a masked action."""
    t = x - top
    return _LOWEST if t < _LOWEST else t, 0.0 if x == -np.inf else y - middle


@njit(inline="always", fastmath=_FLAGS)
def _largest_after(z, d, b):
    for j in range(LANES):
        t, c = _centred(z[j], d[j], b[_TOP + j], b[_LOW + j])
        b[_SHIFT + j] = t + c if t + c > b[_SHIFT + j] else b[_SHIFT + j]


@njit(inline="always", fastmath=_FLAGS)
def _add(z, d, b):
    """Both exponentials of one action per lane, added to the sums."""
    for j in range(LANES):
        t, c = _centred(z[j], d[j], b[_TOP + j], b[_LOW + j])
        p = exp(t if t > _SMALLEST else _SMALLEST)
        p = 0.0 if t < _SMALLEST else p
        after = (t + c) - b[_SHIFT + j]
        p1 = exp(after if after > _SMALLEST else _SMALLEST)
        p1 = 0.0 if after < _SMALLEST else p1
        pt, pc = p * t, p * c
        ptc = pt * c
        b[_S + j] += p
        b[_T + j] += pt
        b[_D + j] += pc
        b[_TD + j] += ptc
        b[_DD + j] += pc * c
        b[_TDD + j] += ptc * c
        b[_S1 + j] += p1
        b[_T1 + j] += p1 * after


@njit(inline="always", fastmath=_FLAGS)
def _finish(b, k):
    """From the sums to the results, each in its row of the work space; R stays in _HIGH."""
    for j in range(LANES):
        width = b[_HIGH + j]
        log_total, log_after = log(b[_S + j]), log(b[_S1 + j])
        h, h1, f1, f2 = _statistics(
            b[_S + j],
            log_total,
            b[_T + j],
            b[_D + j],
            b[_TD + j],
            b[_DD + j],
            b[_TDD + j],
            b[_S1 + j],
            log_after,
            b[_T1 + j],
        )
        b[_H + j], b[_H1 + j], b[_F1 + j], b[_F2 + j] = h, h1, f1, f2
        b[_BOUND1 + j] = k.a0 + width * (k.a1 + width * k.a2)
        b[_BOUND2 + j] = k.a0 + width * (k.a1 + width * (k.b2 + width * k.b3))


@njit(inline="always")
def _store(b, out, i, rows):
    for j in range(rows):
        out[0, i + j] = b[_H + j]
        out[1, i + j] = b[_H1 + j]
        out[2, i + j] = b[_F1 + j]
        out[3, i + j] = b[_F2 + j]
        out[4, i + j] = b[_HIGH + j]
        out[5, i + j] = b[_BOUND1 + j]
        out[6, i + j] = b[_BOUND2 + j]


@njit(inline="always")
def _clear(b):
    for j in range(LANES):
        b[_TOP + j], b[_HIGH + j], b[_LOW + j], b[_SHIFT + j] = -np.inf, -np.inf, np.inf, -np.inf
    for j in range(_S, _T1 + LANES):
        b[j] = 0.0


@njit(inline="always")
def _centre(b):
    """Spread into _HIGH and the middle of the change into _LOW; whether some lane needs the shift after the change."""
    far = False
    for j in range(LANES):
        high, low = b[_HIGH + j], b[_LOW + j]
        b[_HIGH + j] = high - low
        b[_LOW + j] = 0.5 * (high + low)
        far |= high - low > _FAR
    return far


@njit(inline="always")
def _keep_far(b):
    for j in range(LANES):
        b[_SHIFT + j] = b[_SHIFT + j] if b[_HIGH + j] > _FAR else 0.0


@njit(inline="always")
def _transpose(source, i, rows, actions, target):
    """Actions first, LANES instances wide; missing instances are left as they are."""
    for j in range(rows):
        for a in range(actions):
            target[a, j] = source[i + j, a]


@njit(nogil=True, error_model="numpy", fastmath=_FLAGS)
def few_actions(z, d, out, offset, k):
    """`fill` with instances as lanes."""
    n, actions = z.shape
    zt, dt, b = np.zeros((actions, LANES)), np.zeros((actions, LANES)), np.empty(_ROWS * LANES)
    for i in range(0, n, LANES):
        rows = min(LANES, n - i)
        _transpose(z, i, rows, actions, zt)
        _transpose(d, i, rows, actions, dt)
        _clear(b)
        for a in range(actions):
            _extremes(zt[a], dt[a], b)
        if _centre(b):
            for a in range(actions):
                _largest_after(zt[a], dt[a], b)
        _keep_far(b)
        for a in range(actions):
            _add(zt[a], dt[a], b)
        _finish(b, k)
        _store(b, out, offset + i, rows)


@njit(inline="always")
def _join_extremes(b):
    """The extremes of one instance from its lanes, on every lane."""
    half = LANES // 2
    while half > 0:
        for j in range(half):
            b[_TOP + j] = max(b[_TOP + j], b[_TOP + half + j])
            b[_HIGH + j] = max(b[_HIGH + j], b[_HIGH + half + j])
            b[_LOW + j] = min(b[_LOW + j], b[_LOW + half + j])
            b[_SHIFT + j] = max(b[_SHIFT + j], b[_SHIFT + half + j])
        half //= 2
    top, high, low, shift = b[_TOP], b[_HIGH], b[_LOW], b[_SHIFT]
    for j in range(LANES):
        b[_TOP + j], b[_HIGH + j], b[_LOW + j], b[_SHIFT + j] = top, high, low, shift


@njit(inline="always")
def _join_sums(b, result, r):
    """Sums of one instance from its lanes, halving the lanes, into its lane of `result`."""
    half = LANES // 2
    while half > 0:
        for j in range(half):
            b[_S + j] += b[_S + half + j]
            b[_T + j] += b[_T + half + j]
            b[_D + j] += b[_D + half + j]
            b[_TD + j] += b[_TD + half + j]
            b[_DD + j] += b[_DD + half + j]
            b[_TDD + j] += b[_TDD + half + j]
            b[_S1 + j] += b[_S1 + half + j]
            b[_T1 + j] += b[_T1 + half + j]
        half //= 2
    for first in range(_S, _T1 + 1, LANES):
        result[first + r] = b[first]
    result[_HIGH + r] = b[_HIGH]


@njit(inline="always")
def _pad(row, whole, target, empty):
    """The last actions of an instance in a slice of full width."""
    for j in range(LANES):
        target[j] = row[whole + j] if whole + j < row.size else empty


@njit(inline="always", fastmath=_FLAGS)
def _one_instance(z, d, whole, b, tail_z, tail_d):
    """Sums of one instance: `whole` actions in full slices, then the padded tail."""
    _clear(b)
    for a in range(0, whole + LANES, LANES):
        x, y = (tail_z, tail_d) if a == whole else (z[a : a + LANES], d[a : a + LANES])
        _extremes(x, y, b)
    _join_extremes(b)
    if _centre(b):
        for a in range(0, whole + LANES, LANES):
            x, y = (tail_z, tail_d) if a == whole else (z[a : a + LANES], d[a : a + LANES])
            _largest_after(x, y, b)
        _join_extremes(b)
    _keep_far(b)
    for a in range(0, whole + LANES, LANES):
        x, y = (tail_z, tail_d) if a == whole else (z[a : a + LANES], d[a : a + LANES])
        _add(x, y, b)


@njit(nogil=True, error_model="numpy", fastmath=_FLAGS)
def many_actions(z, d, out, offset, k):
    """`fill` with slices of one instance's actions as lanes."""
    n, actions = z.shape
    whole = actions // LANES * LANES
    b, result = np.empty(_ROWS * LANES), np.ones(_ROWS * LANES)
    tail_z, tail_d = np.empty(LANES), np.empty(LANES)
    for i in range(0, n, LANES):
        rows = min(LANES, n - i)
        for r in range(rows):
            row_z, row_d = z[i + r], d[i + r]
            _pad(row_z, whole, tail_z, -np.inf)
            _pad(row_d, whole, tail_d, 0.0)
            _one_instance(row_z, row_d, whole, b, tail_z, tail_d)
            _join_sums(b, result, r)
        _finish(result, k)
        _store(result, out, offset + i, rows)


def fill(z, d, out, offset, k):
    """Results of n instances, into columns offset to offset + n.

    Args:
      z, d: [n, actions] float64, C order.
      out: [7, ...] float64: H, H after, first order, second order, spread, first bound, second bound.
      k: `formulas.Coefficients` for `additions(actions)`.
    """
    (few_actions if z.shape[1] <= FEW else many_actions)(z, d, out, offset, k)
