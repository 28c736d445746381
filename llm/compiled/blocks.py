"""A Qwen2 or Qwen3 block and its derivative, over packed prompts and responses, for the texts of some groups.

    middle = x + attention(norm(x)) out^T,   y = middle + (silu(gate) up) down^T,   gate, up = norm(middle) gate_up^T

Tokens are taken some at a time, so that what stands between two products does not leave the cache. The derivatives are
written out; what is cheap is computed anew in the backward pass.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit

from entropy_theory.compiled import forget_outdated
from entropy_theory.compiled.elementary import FLAGS
from llm.compiled.attention import add_attention_gradient, attend
from llm.compiled.parts import (
    SUMS,
    add,
    add_norm_gradient,
    clear,
    copy,
    fill_bias,
    gated,
    gated_gradient,
    norm,
    turn_heads,
    turn_heads_gradient,
)
from llm.compiled.products import add_panels, add_transposed

TOKENS = 128
"""Tokens that go through a product together."""


class Block(NamedTuple):
    """Weights of one block; matrices in panels: the transposed of the weights for the forward pass, themselves for
    the backward pass. Norms and biases that a model does not have are empty."""

    norm: np.ndarray
    qkv: np.ndarray
    qkv_bias: np.ndarray
    query_norm: np.ndarray
    key_norm: np.ndarray
    out: np.ndarray
    out_bias: np.ndarray
    mlp_norm: np.ndarray
    gate_up: np.ndarray
    down: np.ndarray


class Shape(NamedTuple):
    """heads of queries and of keys, width of a head; eps of norms, scale of scores and one, of the arrays' dtype."""

    heads: int
    key_heads: int
    width: int
    eps: np.floating
    scale: np.floating
    one: np.floating


class Share(NamedTuple):
    """Groups that are computed together: prompts [first, end) and the responses to them, [first, end)."""

    first_prompt: int
    end_prompt: int
    first_response: int
    end_response: int


class Texts(NamedTuple):
    """Where texts stand among packed tokens: text i is tokens starts[i] to starts[i + 1], prompts first.

    starts: [prompts + responses + 1] int64; group: [responses] int64, the prompt of each
    """

    starts: np.ndarray
    group: np.ndarray


class Kept(NamedTuple):
    """What the backward pass needs, a row a token: the block's input, what the first product gave, what attention
    gave, and what the MLP was given and its first product gave."""

    x: np.ndarray
    qkv: np.ndarray
    seen: np.ndarray
    middle: np.ndarray
    gate_up: np.ndarray


@njit(**FLAGS)
def _texts_of(texts, share):
    """Numbers of the share's prompts, first and end, and of its responses."""
    prompts = len(texts.starts) - 1 - len(texts.group)
    few = share.first_prompt, share.end_prompt
    return few, (prompts + share.first_response, prompts + share.end_response)


@njit(**FLAGS)
def _ranges(texts, share):
    """Tokens of the share's prompts, first and end, and of its responses."""
    few, many = _texts_of(texts, share)
    return (texts.starts[few[0]], texts.starts[few[1]]), (texts.starts[many[0]], texts.starts[many[1]])


@njit(**FLAGS)
def _text(texts, number):
    """As attention wants it: first and count of the prompt's tokens (of a prompt, none), of its own."""
    prompts, starts = len(texts.starts) - 1 - len(texts.group), texts.starts
    first, count = starts[number], starts[number + 1] - starts[number]
    if number < prompts:
        return np.int64(0), np.int64(0), first, count
    prompt = texts.group[number - prompts]
    return starts[prompt], starts[prompt + 1] - starts[prompt], first, count


@njit(**FLAGS)
def turn(qkv, block, shape, angles, tokens, turned):
    """Fill turned [tokens, (heads + key heads) w] with scaled queries and keys."""
    every = shape.heads + shape.key_heads
    turn_heads(qkv, block.query_norm, shape.eps, angles, tokens, (0, shape.heads), shape.scale, turned)
    turn_heads(qkv, block.key_norm, shape.eps, angles, tokens, (shape.heads, every), shape.one, turned)


@njit(cache=True, **FLAGS)
def forward(block, shape, texts, share, angles, kept, turned, y):
    """Fill `kept`, all but x, turned [tokens, (heads + key heads) w] and y [tokens, d] at the tokens of the share."""
    d, m = kept.x.shape[1], kept.gate_up.shape[1] // 2
    h, active = np.empty((TOKENS, d), y.dtype), np.empty((TOKENS, m), y.dtype)
    ranges = _ranges(texts, share)
    for begin, end in ranges:
        for t in range(begin, end, TOKENS):
            stop = min(t + TOKENS, end)
            norm(kept.x[t:stop], block.norm, shape.eps, h)
            fill_bias(block.qkv_bias, kept.qkv[t:stop])
            add_panels(h[: stop - t], block.qkv, kept.qkv[t:stop])
    for tokens in ranges:
        turn(kept.qkv, block, shape, angles, tokens, turned)
    for first, end in _texts_of(texts, share):
        for text in range(first, end):
            attend(turned, kept.qkv, shape, _text(texts, text), kept.seen)
    for begin, end in ranges:
        for t in range(begin, end, TOKENS):
            stop = min(t + TOKENS, end)
            middle, gate_up, out = kept.middle[t:stop], kept.gate_up[t:stop], y[t:stop]
            fill_bias(block.out_bias, middle)
            add(kept.x[t:stop], middle)
            add_panels(kept.seen[t:stop], block.out, middle)
            norm(middle, block.mlp_norm, shape.eps, h)
            clear(gate_up)
            add_panels(h[: stop - t], block.gate_up, gate_up)
            gated(gate_up, active[: stop - t])
            copy(middle, out)
            add_panels(active[: stop - t], block.down, out)


@njit(**SUMS)
def _add_rows(rows, out):
    for i in range(len(rows)):
        for j in range(out.size):
            out[j] += rows[i, j]


@njit(cache=True, **FLAGS)
def backward(block, shape, texts, share, angles, kept, d_y, turned, d_turned, d_seen, d_qkv, d_x, gradients):
    """Fill turned, d_turned, d_seen, d_qkv and d_x at the tokens of the share, and add the share's part to `gradients`.

    gradients: `Block` of matrices [outputs, inputs], and of vectors.
    """
    d, m = kept.x.shape[1], kept.gate_up.shape[1] // 2
    h, d_h = np.empty((TOKENS, d), d_y.dtype), np.empty((TOKENS, d), d_y.dtype)
    active, d_active = np.empty((TOKENS, m), d_y.dtype), np.empty((TOKENS, m), d_y.dtype)
    d_gate_up = np.empty((TOKENS, 2 * m), d_y.dtype)
    ranges = _ranges(texts, share)
    for begin, end in ranges:
        for t in range(begin, end, TOKENS):
            stop = min(t + TOKENS, end)
            n = stop - t
            d_out, d_middle = d_y[t:stop], d_x[t:stop]
            clear(d_active[:n])
            add_panels(d_out, block.down, d_active[:n])
            gated_gradient(kept.gate_up[t:stop], d_active[:n], active[:n], d_gate_up[:n])
            add_transposed(d_out, active[:n], gradients.down)
            norm(kept.middle[t:stop], block.mlp_norm, shape.eps, h)
            add_transposed(d_gate_up[:n], h[:n], gradients.gate_up)
            clear(d_h[:n])
            add_panels(d_gate_up[:n], block.gate_up, d_h[:n])
            copy(d_out, d_middle)
            add_norm_gradient(kept.middle[t:stop], block.mlp_norm, shape.eps, d_h, d_middle, gradients.mlp_norm)
            if block.out_bias.size:
                _add_rows(d_middle, gradients.out_bias)
            add_transposed(d_middle, kept.seen[t:stop], gradients.out)
            clear(d_seen[t:stop])
            clear(d_qkv[t:stop])
            clear(d_turned[t:stop])
            add_panels(d_middle, block.out, d_seen[t:stop])
    for tokens in ranges:
        turn(kept.qkv, block, shape, angles, tokens, turned)
    for first, end in _texts_of(texts, share):
        for text in range(first, end):
            add_attention_gradient(turned, kept.qkv, shape, _text(texts, text), d_seen, d_turned, d_qkv)
    for tokens in ranges:
        for heads, weight, factor, d_weight in (
            ((0, shape.heads), block.query_norm, shape.scale, gradients.query_norm),
            ((shape.heads, shape.heads + shape.key_heads), block.key_norm, shape.one, gradients.key_norm),
        ):
            turn_heads_gradient(kept.qkv, weight, shape.eps, angles, tokens, heads, factor, d_turned, d_qkv, d_weight)
    for begin, end in ranges:
        for t in range(begin, end, TOKENS):
            stop = min(t + TOKENS, end)
            n = stop - t
            if block.qkv_bias.size:
                _add_rows(d_qkv[t:stop], gradients.qkv_bias)
            norm(kept.x[t:stop], block.norm, shape.eps, h)
            add_transposed(d_qkv[t:stop], h[:n], gradients.qkv)
            clear(d_h[:n])
            add_panels(d_qkv[t:stop], block.qkv, d_h[:n])
            add_norm_gradient(kept.x[t:stop], block.norm, shape.eps, d_h, d_x[t:stop], gradients.norm)


forget_outdated((forward, backward), Path(__file__).parent)
