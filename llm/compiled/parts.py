"""What a block does to tokens one by one, and its derivatives: norm, activation, a head's rotation."""

import numpy as np
from numba import njit

from entropy_theory.compiled.elementary import FLAGS, exp

SUMS = FLAGS | {"fastmath": {"contract", "reassoc"}}
"""Sums over one row may be taken lane by lane."""


@njit(**FLAGS)
def clear(x):
    """x = 0, a matrix."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[i, j] = 0


@njit(**FLAGS)
def copy(x, out):
    """out = x, matrices."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = x[i, j]


@njit(**FLAGS)
def add(x, out):
    """out += x, matrices."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] += x[i, j]


@njit(**FLAGS)
def fill_bias(bias, out):
    """Every row of `out` = bias, 0 where it is empty."""
    if bias.size == 0:
        clear(out)
        return
    for i in range(len(out)):
        for j in range(bias.size):
            out[i, j] = bias[j]


@njit(**SUMS)
def inverse_size(row, eps):
    """1 / sqrt(mean x^2 + eps)."""
    total = row.dtype.type(0)
    for j in range(row.size):
        total += row[j] * row[j]
    return row.dtype.type(1) / np.sqrt(total / row.dtype.type(row.size) + eps)


@njit(**FLAGS)
def norm(x, weight, eps, out):
    """out = weight x / sqrt(mean x^2 + eps), row by row."""
    for i in range(len(x)):
        size = inverse_size(x[i], eps)
        for j in range(weight.size):
            out[i, j] = weight[j] * (x[i, j] * size)


@njit(**SUMS)
def add_norm_gradient(x, weight, eps, d_out, d_x, d_weight):
    """Add the gradient of `norm` to d_x and d_weight.

    With y = x s, s = 1 / sqrt(mean x^2 + eps) and u = weight d_out: d_x = s (u - y mean(u y)), d_weight = d_out y.
    """
    for i in range(len(x)):
        size = inverse_size(x[i], eps)
        mean = x.dtype.type(0)
        for j in range(weight.size):
            mean += d_out[i, j] * weight[j] * x[i, j]
        mean *= size / x.dtype.type(weight.size)
        for j in range(weight.size):
            y = x[i, j] * size
            d_weight[j] += d_out[i, j] * y
            d_x[i, j] += size * (d_out[i, j] * weight[j] - y * mean)


@njit(**FLAGS)
def gated(gate_up, out):
    """out = silu(gate) up, silu(g) = g / (1 + exp(-g)); gate_up: [rows, 2 m], out: [rows, m]."""
    m, one = out.shape[1], out.dtype.type(1)
    for i in range(len(out)):
        gate, up, row = gate_up[i, :m], gate_up[i, m:], out[i]
        for j in range(m):
            row[j] = gate[j] / (one + exp(-gate[j])) * up[j]


@njit(**FLAGS)
def gated_gradient(gate_up, d_out, out, d_gate_up):
    """Also fills `out` as `gated` does; silu'(g) = s (1 + g (1 - s)), s = 1 / (1 + exp(-g))."""
    m, one = out.shape[1], out.dtype.type(1)
    for i in range(len(out)):
        gate, up, row, d_row = gate_up[i, :m], gate_up[i, m:], out[i], d_out[i]
        d_gate, d_up = d_gate_up[i, :m], d_gate_up[i, m:]
        for j in range(m):
            share = one / (one + exp(-gate[j]))
            active = gate[j] * share
            row[j] = active * up[j]
            d_up[j] = d_row[j] * active
            d_gate[j] = d_row[j] * up[j] * (share * (one + gate[j] * (one - share)))


@njit(**FLAGS)
def turn_heads(x, weight, eps, angles, tokens, heads, factor, out):
    """Queries or keys as attention sees them, times `factor`: normed where `weight` is not empty, then rotated.

    Args: x, out: [tokens, heads w]; weight: [w] or [0]; angles: cos and sin, [tokens, w] each, of which the
    first half of sin, which repeats the second with either sign, is not read; tokens, heads: first and end of those
    that are read and filled.
    """
    cos, sin = angles
    w = cos.shape[1]
    half = w // 2
    for t in range(tokens[0], tokens[1]):
        for start in range(heads[0] * w, heads[1] * w, w):
            if weight.size:
                size = inverse_size(x[t, start : start + w], eps) * factor
                for j in range(half):
                    a, b = x[t, start + j] * size * weight[j], x[t, start + half + j] * size * weight[half + j]
                    out[t, start + j] = a * cos[t, j] - b * sin[t, half + j]
                    out[t, start + half + j] = b * cos[t, half + j] + a * sin[t, half + j]
            else:
                for j in range(half):
                    a, b = x[t, start + j] * factor, x[t, start + half + j] * factor
                    out[t, start + j] = a * cos[t, j] - b * sin[t, half + j]
                    out[t, start + half + j] = b * cos[t, half + j] + a * sin[t, half + j]


@njit(**SUMS)
def turn_heads_gradient(x, weight, eps, angles, tokens, heads, factor, d_out, d_x, d_weight):
    """Fill d_x with the gradient of `turn_heads`, and add to d_weight where there is one."""
    cos, sin = angles
    w = cos.shape[1]
    half = w // 2
    for t in range(tokens[0], tokens[1]):
        for start in range(heads[0] * w, heads[1] * w, w):
            for j in range(half):
                a, b = d_out[t, start + j] * factor, d_out[t, start + half + j] * factor
                d_x[t, start + j] = a * cos[t, j] + b * sin[t, half + j]
                d_x[t, start + half + j] = b * cos[t, half + j] - a * sin[t, half + j]
            if weight.size:
                size = inverse_size(x[t, start : start + w], eps)
                mean = x.dtype.type(0)
                for j in range(w):
                    mean += d_x[t, start + j] * weight[j] * x[t, start + j]
                mean *= size / x.dtype.type(w)
                for j in range(w):
                    y, d = x[t, start + j] * size, d_x[t, start + j]
                    d_weight[j] += d * y
                    d_x[t, start + j] = size * (d * weight[j] - y * mean)
