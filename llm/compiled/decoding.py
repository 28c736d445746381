"""Tokens through all blocks, one of each row, with the keys and values of what was read before; whole responses."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit

from entropy_theory.compiled import forget_outdated
from entropy_theory.compiled.elementary import FLAGS, exp
from entropy_theory.compiled.tile import VECTOR_BYTES
from llm.compiled.blocks import Block, turn
from llm.compiled.choice import choose
from llm.compiled.parts import add, clear, fill_bias, gated, norm
from llm.compiled.products import add_columns, add_panels, add_product

ROWS = 128
"""Rows that go through the blocks together."""


@njit(**FLAGS)
def _softmax(score, first, end, columns):
    """exp(score - max) / sum over columns [first, end) of each row, in place; others up to `columns` become 0."""
    for i in range(len(score)):
        largest = score[i, first]
        for c in range(first, end):
            largest = max(largest, score[i, c])
        for c in range(first):
            score[i, c] = -np.inf
        for c in range(end, columns):
            score[i, c] = -np.inf
        for c in range(columns):
            score[i, c] = exp(score[i, c] - largest)
        total = score.dtype.type(0)
        for c in range(first, end):
            total += score[i, c]
        scale = score.dtype.type(1) / total
        for c in range(columns):
            score[i, c] *= scale


@njit(cache=True, **FLAGS)
def read_one(layers, shape, rows, angles, keys, values, first, column, x):
    """Take x [n, d] from the embedding to the last hidden state, in place.

    Args:
      layers: `Block` of arrays with one more axis in front, the blocks; shape: `Shape`.
      rows: [n] int64, which rows of the cache they are; angles: cos and sin, [n, w] each.
      keys: [layers, rows, key heads, w, columns], whole vectors of them; values: [layers, rows, key heads, columns, w];
        `column` is filled, those from `first` [rows] on are seen.
    """
    d, m = x.shape[1], layers.gate_up.shape[1] // (2 * x.shape[1])
    heads, key_heads, w = shape.heads, shape.key_heads, shape.width
    size = min(ROWS, len(x))
    h, qkv = np.empty((size, d), x.dtype), np.empty((size, (heads + 2 * key_heads) * w), x.dtype)
    turned, seen = np.empty((size, (heads + key_heads) * w), x.dtype), np.empty((size, heads * w), x.dtype)
    gate_up, active = np.empty((size, 2 * m), x.dtype), np.empty((size, m), x.dtype)
    shared, lane = heads // key_heads, VECTOR_BYTES // x.itemsize
    columns = (column + lane) // lane * lane
    score = np.empty((shared, columns), x.dtype)
    by_head, seen_by_head = turned.reshape((size * (heads + key_heads), w)), seen.reshape((size * heads, w))
    for start in range(0, len(x), ROWS):
        n = min(ROWS, len(x) - start)
        here = x[start : start + n]
        cos_sin = angles[0][start : start + n], angles[1][start : start + n]
        for number in range(len(layers.norm)):
            block = Block(
                layers.norm[number],
                layers.qkv[number],
                layers.qkv_bias[number],
                layers.query_norm[number],
                layers.key_norm[number],
                layers.out[number],
                layers.out_bias[number],
                layers.mlp_norm[number],
                layers.gate_up[number],
                layers.down[number],
            )
            norm(here, block.norm, shape.eps, h)
            fill_bias(block.qkv_bias, qkv[:n])
            add_panels(h[:n], block.qkv, qkv[:n])
            turn(qkv, block, shape, cos_sin, (0, n), turned)
            clear(seen)
            for i in range(n):
                for k in range(key_heads):
                    own_keys, own_values = keys[number, rows[start + i], k], values[number, rows[start + i], k]
                    for j in range(w):
                        own_keys[j, column] = turned[i, (heads + k) * w + j]
                        own_values[column, j] = qkv[i, (heads + key_heads + k) * w + j]
                    clear(score)
                    query = i * (heads + key_heads) + k * shared
                    add_columns(by_head[query : query + shared], own_keys, score, columns)
                    _softmax(score, first[rows[start + i]], column + 1, columns)
                    query = i * heads + k * shared
                    add_product(score, own_values[: column + 1], seen_by_head[query : query + shared])
            if block.out_bias.size:
                fill_bias(block.out_bias, h[:n])
                add(h[:n], here)
            add_panels(seen[:n], block.out, here)
            norm(here, block.mlp_norm, shape.eps, h)
            clear(gate_up[:n])
            add_panels(h[:n], block.gate_up, gate_up[:n])
            gated(gate_up[:n], active[:n])
            add_panels(active[:n], block.down, here)


class Ending(NamedTuple):
    """What makes tokens of last hidden states: the last norm's weight and eps, the head as `choose` wants it, the
    temperature of the weights' dtype, and the tokens [ends] that end a response."""

    norm: np.ndarray
    eps: np.floating
    head: np.ndarray
    bias: np.ndarray
    vocabulary: int
    temperature: np.floating
    ends: np.ndarray


@njit(cache=True, **FLAGS)
def write(layers, shape, ending, embedding, angles, keys, values, first, length, width, rows, x, uniforms, out):
    """Write responses until each has ended or is full.

    Args:
      ending: `Ending`; embedding: [vocabulary, d]; angles: cos and sin at every position, [positions, w] each.
      length, width: tokens of each row's prompt, [rows]; column of the first response token.
      rows: first and end of those to be written; x: [rows, d], last hidden states of their prompts; is changed.
      uniforms: [rows, steps].
      out: tokens and logps [rows, steps] and counts [rows], filled; a row stops at a log-probability that is NaN.
    """
    tokens, logps, counts = out
    alive, x = np.arange(rows[0], rows[1]), x[rows[0] : rows[1]]
    cos, sin = np.empty((len(x), shape.width), x.dtype), np.empty((len(x), shape.width), x.dtype)
    numbers, chosen = np.empty(len(x)), np.empty(len(x), np.int64)
    chosen_logp = np.empty(len(x), x.dtype)
    n, steps = len(x), uniforms.shape[1]
    for t in range(steps):
        for i in range(n):
            numbers[i] = uniforms[alive[i], t]
        choose(
            x[:n],
            ending.norm,
            ending.eps,
            ending.head,
            ending.bias,
            ending.vocabulary,
            ending.temperature,
            numbers,
            chosen,
            chosen_logp,
        )
        left = 0
        for i in range(n):
            row, token = alive[i], chosen[i]
            tokens[row, t], logps[row, t], counts[row] = token, chosen_logp[i], t + 1
            ended = np.isnan(chosen_logp[i])
            for end in ending.ends:
                ended = ended or token == end
            if not ended:
                alive[left] = row
                for j in range(x.shape[1]):
                    x[left, j] = embedding[token, j]
                for j in range(shape.width):
                    cos[left, j], sin[left, j] = angles[0][length[row] + t, j], angles[1][length[row] + t, j]
                left += 1
        n = left
        if n == 0 or t + 1 == steps:
            break
        read_one(layers, shape, alive[:n], (cos[:n], sin[:n]), keys, values, first, width + t, x[:n])


forget_outdated((read_one, write), Path(__file__).parent)
