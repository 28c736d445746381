"""The choice of a token from a last hidden state, as `llm.samplers.choice.choose` makes it of the logits."""

from pathlib import Path

import numpy as np
from numba import njit

from entropy_theory.compiled import forget_outdated
from entropy_theory.compiled.elementary import FLAGS, exp
from llm.compiled.parts import SUMS, fill_bias, norm
from llm.compiled.products import add_panels

ROWS = 16
"""Rows whose logits are held at once."""


@njit(**SUMS)
def _log_total(logits, largest):
    """log sum exp(logits - largest)."""
    total = 0.0
    for v in range(logits.size):
        total += exp(logits[v] - largest)
    return np.log(total)


@njit(**FLAGS)
def _choose(logits, uniform, share):
    """Token and log-probability; share: float64 of the logits' size."""
    largest = logits[0]
    for v in range(logits.size):
        largest = max(largest, logits[v])
    log_total = logits.dtype.type(_log_total(logits, largest))
    for v in range(logits.size):
        share[v] = exp(np.float64(logits[v] - largest - log_total))
    end = 0.0
    for v in range(logits.size):
        end += share[v]
        share[v] = end
    passed = min(uniform * end, np.nextafter(end, 0.0))
    token = 0
    while token + 1 < logits.size and not share[token] > passed:
        token += 1
    return token, logits[token] - largest - log_total


@njit(cache=True, **FLAGS)
def choose(x, weight, eps, head, bias, vocabulary, temperature, uniforms, tokens, logps):
    """Fill the first `rows` of tokens and logps.

    Args:
      x: [rows, d]; weight, eps: of the last norm; head: panels of its transposed weight, columns in whole vectors, of
        which `vocabulary` are tokens; bias: of as many columns, or empty.
      temperature: of x's dtype; uniforms: [rows] float64.
    """
    columns = head.size // x.shape[1]
    size = min(ROWS, len(x))
    h, logits = np.empty((size, x.shape[1]), x.dtype), np.empty((size, columns), x.dtype)
    share = np.empty(vocabulary)
    for start in range(0, len(x), ROWS):
        n = min(ROWS, len(x) - start)
        norm(x[start : start + n], weight, eps, h)
        fill_bias(bias, logits[:n])
        add_panels(h[:n], head, logits[:n])
        for i in range(n):
            row = logits[i, :vocabulary]
            for v in range(vocabulary):
                row[v] /= temperature
            tokens[start + i], logps[start + i] = _choose(row, uniforms[start + i], share)


forget_outdated((choose,), Path(__file__).parent)
