"""Attention of one text, which follows a prompt that others share, and its derivative.

A text's own tokens see those of its prompt and their own up to themselves. Queries are taken a few at a time, beside
each other on the lanes of vectors, with the tokens they see one under the other; softmax is formed anew in the backward
pass.
"""

import numpy as np
from numba import njit

from entropy_theory.compiled.elementary import FLAGS, exp
from llm.compiled.parts import clear
from llm.compiled.products import add_product, add_transposed

QUERIES = 32
"""Queries that are taken together."""


@njit(**FLAGS)
def _tokens(text, i):
    """The token number i that a text sees. text: first and count of its prompt's tokens, of its own."""
    first, before, own, _ = text
    return first + i if i < before else own + i - before


@njit(**FLAGS)
def _read(x, text, start, out):
    """out [tokens, w] = columns of x from `start` on, at the tokens that a text sees."""
    for i in range(len(out)):
        t = _tokens(text, i)
        for j in range(out.shape[1]):
            out[i, j] = x[t, start + j]


@njit(**FLAGS)
def _add_back(x, text, start, out):
    """The reverse of `_read`: out's columns += x [tokens, w]."""
    for i in range(len(x)):
        t = _tokens(text, i)
        for j in range(x.shape[1]):
            out[t, start + j] += x[i, j]


@njit(**FLAGS)
def _read_turned(x, first, count, start, rows, turned):
    """Fill the first of rows [QUERIES, w] with x's columns from `start` on at tokens `first` to first + count, and
    turned [w, QUERIES] with rows^T, 0 where there is no token."""
    for i in range(count):
        for j in range(rows.shape[1]):
            rows[i, j] = x[first + i, start + j]
    for j in range(len(turned)):
        for i in range(count):
            turned[j, i] = rows[i, j]
        for i in range(count, QUERIES):
            turned[j, i] = 0


@njit(**FLAGS)
def _softmax(score, before, seen):
    """exp(score - max) / sum down each column of the first `seen` rows, in place; query i sees before + i + 1 tokens,
    others become 0. Rows are passed through four at a time, which is twice as fast; score has that many."""
    whole = (seen + 3) // 4 * 4
    for c in range(before + 1, whole):
        for i in range(QUERIES if c >= seen else min(c - before, QUERIES)):
            score[c, i] = -np.inf
    largest, total = np.empty(QUERIES, score.dtype), np.zeros(QUERIES, score.dtype)
    for i in range(QUERIES):
        largest[i] = score[0, i]
    for c in range(0, whole, 4):
        for i in range(QUERIES):
            of_four = max(max(score[c, i], score[c + 1, i]), max(score[c + 2, i], score[c + 3, i]))
            largest[i] = of_four if of_four > largest[i] else largest[i]
    for c in range(seen):
        for i in range(QUERIES):
            e = exp(score[c, i] - largest[i])
            score[c, i] = e
            total[i] += e
    for i in range(QUERIES):
        total[i] = score.dtype.type(1) / total[i]
    for c in range(0, whole, 4):
        for i in range(QUERIES):
            scale = total[i]
            score[c, i] *= scale
            score[c + 1, i] *= scale
            score[c + 2, i] *= scale
            score[c + 3, i] *= scale


@njit(**FLAGS)
def attend(turned, qkv, shape, text, out):
    """Fill `out` [tokens, heads w] at the text's own tokens.

    Args:
      turned: [tokens, (heads + key heads) w], queries times the scale and keys, as `turn_heads` leaves them.
      qkv: [tokens, (heads + 2 key heads) w], whose last columns are values; shape: `Shape`; text: see `_tokens`.
    """
    _, before, own, count = text
    w, tokens, dtype = shape.width, before + count, qkv.dtype
    keys, values = np.empty((tokens, w), dtype), np.empty((tokens, w), dtype)
    query, query_turned = np.empty((QUERIES, w), dtype), np.empty((w, QUERIES), dtype)
    score, seen = np.empty((tokens + 3, QUERIES), dtype), np.empty((QUERIES, w), dtype)
    shared = shape.heads // shape.key_heads
    for k in range(shape.key_heads):
        _read(turned, text, (shape.heads + k) * w, keys)
        _read(qkv, text, (shape.heads + shape.key_heads + k) * w, values)
        for head in range(k * shared, (k + 1) * shared):
            for first in range(0, count, QUERIES):
                n = min(QUERIES, count - first)
                visible = before + first + n
                _read_turned(turned, own + first, n, head * w, query, query_turned)
                weight = score[:visible]
                clear(weight)
                add_product(keys[:visible], query_turned, weight)
                _softmax(score, before + first, visible)
                clear(seen)
                add_transposed(weight, values[:visible], seen)
                for i in range(n):
                    for j in range(w):
                        out[own + first + i, head * w + j] = seen[i, j]


@njit(**FLAGS)
def _through_softmax(weight, d_weight, seen):
    """d_score = weight (d_weight - sum weight d_weight) down each column of the first `seen` rows, in the place of
    d_weight; four rows at a time, of which those behind `seen` become anything."""
    mean = np.zeros(QUERIES, weight.dtype)
    for c in range(seen // 4 * 4, seen):
        for i in range(QUERIES):
            mean[i] += weight[c, i] * d_weight[c, i]
    for c in range(0, seen // 4 * 4, 4):
        for i in range(QUERIES):
            two = weight[c, i] * d_weight[c, i] + weight[c + 1, i] * d_weight[c + 1, i]
            mean[i] += two + (weight[c + 2, i] * d_weight[c + 2, i] + weight[c + 3, i] * d_weight[c + 3, i])
    for c in range(0, seen, 4):
        for i in range(QUERIES):
            less = mean[i]
            d_weight[c, i] = weight[c, i] * (d_weight[c, i] - less)
            d_weight[c + 1, i] = weight[c + 1, i] * (d_weight[c + 1, i] - less)
            d_weight[c + 2, i] = weight[c + 2, i] * (d_weight[c + 2, i] - less)
            d_weight[c + 3, i] = weight[c + 3, i] * (d_weight[c + 3, i] - less)


@njit(**FLAGS)
def add_attention_gradient(turned, qkv, shape, text, d_out, d_turned, d_qkv):
    """Add the gradient of `attend` to d_turned and d_qkv, of the prompt's tokens too."""
    _, before, own, count = text
    w, tokens, dtype = shape.width, before + count, qkv.dtype
    keys, values = np.empty((tokens, w), dtype), np.empty((tokens, w), dtype)
    d_keys, d_values = np.empty((tokens, w), dtype), np.empty((tokens, w), dtype)
    query, query_turned = np.empty((QUERIES, w), dtype), np.empty((w, QUERIES), dtype)
    d_seen, d_seen_turned = np.empty((QUERIES, w), dtype), np.empty((w, QUERIES), dtype)
    score, d_score = np.empty((tokens + 3, QUERIES), dtype), np.empty((tokens + 3, QUERIES), dtype)
    d_query = np.empty((QUERIES, w), dtype)
    shared = shape.heads // shape.key_heads
    for k in range(shape.key_heads):
        key_start, value_start = (shape.heads + k) * w, (shape.heads + shape.key_heads + k) * w
        _read(turned, text, key_start, keys)
        _read(qkv, text, value_start, values)
        clear(d_keys)
        clear(d_values)
        for head in range(k * shared, (k + 1) * shared):
            for first in range(0, count, QUERIES):
                n = min(QUERIES, count - first)
                visible = before + first + n
                weight, d_weight = score[:visible], d_score[:visible]
                _read_turned(turned, own + first, n, head * w, query, query_turned)
                clear(weight)
                add_product(keys[:visible], query_turned, weight)
                _softmax(score, before + first, visible)
                _read_turned(d_out, own + first, n, head * w, d_seen, d_seen_turned)
                clear(d_weight)
                add_product(values[:visible], d_seen_turned, d_weight)
                _through_softmax(score, d_score, visible)
                add_product(weight, d_seen[:n], d_values[:visible])
                add_product(d_weight, query[:n], d_keys[:visible])
                clear(d_query)
                add_transposed(d_weight, keys[:visible], d_query)
                for i in range(n):
                    for j in range(w):
                        d_turned[own + first + i, head * w + j] += d_query[i, j]
        _add_back(d_keys, text, key_start, d_turned)
        _add_back(d_values, text, value_start, d_qkv)
