"""The token covariance of eq. 10 taken apart: within and between states, and which tokens it ranks first."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory.covariances import centred_product, covariance
from entropy_theory.measure import top_tokens
from entropy_theory.records import Batch
from entropy_theory.reduce import lowest, token_count, token_fraction
from entropy_theory.theorems import sampled_theorem_1

FRACTIONS = (0.002, 0.02, 0.2)
"""Top fractions that are tabulated: that of KL-Cov's paper for 7B models, and ten and a hundred times it."""

POINTS = 1500
"""Most tokens of a minibatch that a CSV file keeps."""


class Parts(NamedTuple):
    """total = within + between, each [...], in units of x times units of y; `states`, the number of states met, [...].

    within:  mean over tokens of the covariance at their state, sum_s n_s Cov_s(x, y) / n
    between: covariance of the states' means, Cov_s(E[x | s], E[y | s]) with weights n_s / n
    """

    total: Tensor
    within: Tensor
    between: Tensor
    states: Tensor


def within_between(x: Tensor, y: Tensor, mask: Tensor, state: Tensor) -> Parts:
    r"""The law of total covariance for the tokens of a minibatch.

        Cov(x, y) = E_s[Cov_s(x, y)] + Cov_s(E[x | s], E[y | s])

    With x = log pi and y = A the left side is the mean of eq. 10 (Cui et al. 2025, arXiv 2505.22617). Theorem 2 is
    about the first term on the right; the second is not an effect on entropy, and vanishes where E[A | s] = 0. The
    covariance at a state met once is 0, and at one met n times it is (n - 1)/n of the unbiased estimate.

    Args:
      x, y: [..., rows, steps]; mask: bool, of the same shape; what stands at masked tokens is ignored.
      state: int64 ids, of the same shape, in [0, rows * steps).
    """
    shape = mask.flatten(-2)
    state = state.flatten(-2).masked_fill(~shape, 0)
    count = _sums(shape.to(x.dtype), state)
    size = count.clamp(min=1)
    x_mean, y_mean = (_sums(v.flatten(-2).masked_fill(~shape, 0.0), state) / size for v in (x, y))
    x_rest, y_rest = (
        (v.flatten(-2) - mean.gather(-1, state)).masked_fill(~shape, 0.0) for v, mean in ((x, x_mean), (y, y_mean))
    )
    return Parts(
        total=covariance(x, y, mask),
        within=(x_rest * y_rest).sum(-1) / token_count(mask),
        between=covariance(x_mean, y_mean, count, dim=-1),
        states=(count > 0).sum(-1),
    )


def _sums(values: Tensor, state: Tensor) -> Tensor:
    return torch.zeros_like(values).scatter_add(-1, state, values)


def part_rows(parts: Mapping[str, Parts], place: Mapping) -> list[dict]:
    """One row per notion of a state (or of an advantage) and replica."""
    rows = []
    for name, part in parts.items():
        for values in zip(*(t.reshape(-1).tolist() for t in part), strict=True):
            rows.append(dict(place) | {"of": name} | dict(zip(Parts._fields, values, strict=True)))
    return rows


def top_rows(batch: Batch, collision: Tensor, place: Mapping) -> list[dict]:
    """`measure.top_tokens` at each of `FRACTIONS`, one row per fraction and replica; with the number of tokens."""
    rows = []
    tokens = token_count(batch.mask).reshape(-1).tolist()
    for fraction in FRACTIONS:
        columns = {name: value.reshape(-1).tolist() for name, value in top_tokens(batch, collision, fraction).items()}
        for i, count in enumerate(tokens):
            row = {"replica": i, "tokens": count, "fraction": fraction}
            rows.append(dict(place) | row | {name: values[i] for name, values in columns.items()})
    return rows


def point_rows(batch: Batch, collision: Tensor, place: Mapping, fraction: float = 0.02) -> list[dict]:
    """Probability, score, entropy loss and advantage of single tokens, at most about `POINTS` of them.

    `top` is 1 for the `fraction` of highest score in their own replica; of both kinds every n-th is kept.
    """
    mask = batch.mask
    score = centred_product(batch.logp, batch.advantage, mask)
    loss = -sampled_theorem_1(batch.logp, batch.entropy, collision, batch.advantage)
    top = lowest(-score, mask, token_fraction(mask, fraction))
    columns = torch.stack([x[mask].double() for x in (batch.logp.exp(), score, loss, batch.advantage, top)], -1)
    names = ("probability", "score", "loss", "advantage", "top")
    rows = []
    for kind in (columns[top[mask]], columns[~top[mask]]):
        rows += kind[:: max(1, -(-2 * len(kind) // POINTS))].tolist()
    return [dict(place) | dict(zip(names, row, strict=True)) for row in rows]
