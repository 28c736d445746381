"""How the losses of a minibatch's tokens become one number. Counts are those of the whole minibatch.

Each is a function (mask, horizon) -> (count, share): the loss is sum_t share_t loss_t / count. A replica's minibatch
without valid tokens gets 0.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from entropy_theory.reduce import token_count


class Parts(NamedTuple):
    """count: [...]; share: E, None where every token counts 1."""

    count: Tensor
    share: Tensor | None = None


Aggregation = Callable[[Tensor, int], Parts]


def _rows(mask: Tensor) -> Tensor:
    """Rows with a valid token, [...], at least 1."""
    return mask.any(-1).sum(-1).clamp(min=1)


def token_mean(mask: Tensor, horizon: int) -> Parts:
    """Mean over all valid tokens (Yu et al. 2025, DAPO, arXiv 2503.14476): long responses count for more."""
    return Parts(token_count(mask))


def sequence_mean_token_mean(mask: Tensor, horizon: int) -> Parts:
    """Mean over sequences of the mean over each one's tokens (Shao et al. 2024, GRPO, arXiv 2402.03300, eq. 3)."""
    length = mask.sum(-1, keepdim=True).clamp(min=1)
    return Parts(_rows(mask), (1.0 / length.double()).expand(mask.shape))


def sequence_mean_token_sum(mask: Tensor, horizon: int) -> Parts:
    """Mean over sequences of the sum over each one's tokens."""
    return Parts(_rows(mask))


def constant(mask: Tensor, horizon: int) -> Parts:
    """Mean over sequences of the sum over tokens / `horizon`, the longest a response may be, whatever their lengths.

    Liu et al. 2025 (Dr.GRPO, arXiv 2503.20783): no bias towards long wrong answers. verl 0.9.1's
    "seq-mean-token-sum-norm"; earlier versions leave out the division by the number of sequences.
    """
    return Parts(_rows(mask) * horizon)


AGGREGATIONS: dict[str, Aggregation] = {
    "token-mean": token_mean,
    "seq-mean-token-mean": sequence_mean_token_mean,
    "seq-mean-token-sum": sequence_mean_token_sum,
    "constant": constant,
}
"""By the name a config uses; the first three as verl's `loss_agg_mode`, all four equal to it (docs/conformance.md)."""
