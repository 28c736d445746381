"""Statistics of tokens under the policy of a language model's head."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from entropy_theory.softmax import collision as policy_collision
from entropy_theory.softmax import entropy as policy_entropy
from entropy_theory.softmax import token_statistics
from llm.onednn import linear
from llm.products import LOW, add_head_gradients, blocks, head_product, statistics_dtype
from llm.token_tiles import WIDTH, Tiles

LOGITS = 2**24
"""Logits that are held at once where nothing else is said: 64 MB in float32, a few times that with their gradients."""

LogitMap = Callable[[Tensor], Tensor]
"""Logits [..., vocabulary] -> logits of another policy, -inf where an action is left out; row by row."""


class TokenStats(NamedTuple):
    """What was read of the policy at each token, [tokens], nats.

    logp:       of the chosen token, with grad
    entropy:    exact, with grad
    raised:     entropy of softmax(support(logits)), with grad; the entropy itself where no support is given
    collision:  Cov_pi(log pi, pi), without grad; None unless asked for
    proxy_logp: of the chosen token under softmax(proxy(logits)), -inf where left out, without grad; None without proxy
    """

    logp: Tensor
    entropy: Tensor
    raised: Tensor
    collision: Tensor | None
    proxy_logp: Tensor | None


def policy_logits(
    raw: Tensor, temperature: float, activate: LogitMap | None = None, logit_scale: Tensor | None = None
) -> Tensor:
    """Logits of the policy: activate(raw) * logit_scale / temperature, in float32 at least.

    Args:
      raw: [tokens, vocabulary] from the model; logit_scale: [tokens] or None for 1.
    """
    raw = raw.float() if raw.dtype in (torch.bfloat16, torch.float16) else raw
    logits = (raw if activate is None else activate(raw)) / temperature
    return logits if logit_scale is None else logits * logit_scale.unsqueeze(-1).to(logits.dtype)


def read_logits(
    logits: Tensor,
    chosen: Tensor,
    support: LogitMap | None = None,
    proxy: LogitMap | None = None,
    collision: bool = False,
) -> TokenStats:
    """`TokenStats` of logits that are there.

    Args: logits: [tokens, vocabulary] of the policy; chosen: [tokens] int64.
    """
    logp, entropy = token_statistics(logits, chosen)
    left = logits.detach()
    return TokenStats(
        logp,
        entropy,
        entropy if support is None else policy_entropy(support(logits)),
        policy_collision(left) if collision else None,
        None if proxy is None else chosen_logp(proxy(left), chosen),
    )


def chosen_logp(logits: Tensor, chosen: Tensor) -> Tensor:
    """Log-probability of the chosen tokens, [tokens], nats; -inf where the logits leave one out.

    Args: logits: [tokens, vocabulary]; chosen: [tokens] int64.
    """
    return torch.log_softmax(logits, -1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


def token_stats(
    hidden: Tensor,
    head: Tensor,
    chosen: Tensor,
    temperature: float = 1.0,
    *,
    bias: Tensor | None = None,
    logit_scale: Tensor | None = None,
    activate: LogitMap | None = None,
    support: LogitMap | None = None,
    proxy: LogitMap | None = None,
    collision: bool = False,
    chunk: int | None = None,
) -> TokenStats:
    """`TokenStats` of softmax(activate(hidden head^T + bias) * logit_scale / temperature), never [tokens, V] at once.

    Where all tokens fit one chunk their logits are formed and differentiated as usual. Otherwise logits are formed
    chunk by chunk, and again in backward: by tiles of tokens and vocabulary (`token_tiles`, with its error bound) where
    nothing but log-probability, entropy and collision is asked for; by chunks of tokens where there are maps of logits.
    Half precision is multiplied in chunks always, so that logits are added up and kept in float32.

    Args:
      hidden: [tokens, d]; head: [V, d]; chosen: [tokens] int64; bias: [V].
      temperature: > 0; logit_scale: [tokens] or None for 1.
      activate, support, proxy: maps of logits [n, V], row by row; see `llm.forward.Reading`.
      chunk: most tokens whose logits are held at once; None for about 2^24 logits.
    Raises: ValueError if chunk is below 1.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"token_chunk must be at least 1, got {chunk}; leave it out to choose by the vocabulary")
    chunk = max(1, LOGITS // max(1, len(head))) if chunk is None else chunk
    if hidden.dtype in LOW and head.dtype not in LOW:
        hidden = hidden.to(head.dtype)
    if len(hidden) == 0 or (len(hidden) <= chunk and head.dtype not in LOW):
        logits = policy_logits(linear(hidden, head, bias), temperature, activate, logit_scale)
        return read_logits(logits, chosen, support, proxy, collision)
    if activate is None and support is None and proxy is None:
        scale = token_scale(hidden, temperature, logit_scale)
        logp, entropy, spread = TILES.get(hidden.device.type, tiled)(hidden, head, bias, chosen, scale, collision)
        return TokenStats(logp, entropy, entropy, spread, None)
    read = _Read(temperature, activate, support, proxy, collision, chunk)
    return TokenStats(*Chunks.apply(hidden, head, bias, chosen, logit_scale, read))


def token_scale(hidden: Tensor, temperature: float, logit_scale: Tensor | None) -> Tensor | None:
    """What multiplies each token's logits, [tokens], or None for 1."""
    if logit_scale is not None:
        return logit_scale.to(statistics_dtype(hidden.dtype)) / temperature
    if temperature == 1:
        return None
    return hidden.new_full((len(hidden),), 1 / temperature, dtype=statistics_dtype(hidden.dtype))


def tiled(hidden: Tensor, head: Tensor, bias, chosen: Tensor, scale, collision: bool):
    """(logp, entropy, collision or None), each [tokens], by tiles of a few MB; see `token_tiles`."""
    width = WIDTH.get(hidden.device.type, WIDTH["cpu"])
    return Tiles.apply(hidden, head, bias, chosen, scale, collision, width)


TILES: dict[str, Callable] = {}
"""By device type what reads plain policies instead of `tiled`; `token_stats_triton.install` puts its kernels here."""


class _Read(NamedTuple):
    """Arguments of `token_stats` that are no tensors."""

    temperature: float
    activate: LogitMap | None
    support: LogitMap | None
    proxy: LogitMap | None
    collision: bool
    chunk: int

    def of(self, logits: Tensor, chosen: Tensor, logit_scale: Tensor | None) -> TokenStats:
        """Statistics of raw logits [n, V]."""
        policy = policy_logits(logits, self.temperature, self.activate, logit_scale)
        return read_logits(policy, chosen, self.support, self.proxy, self.collision)


class Chunks(torch.autograd.Function):
    """`TokenStats` chunk by chunk of tokens, for any maps of logits; backward forms each chunk's logits again."""

    @staticmethod
    def forward(ctx, hidden, head, bias, chosen, logit_scale, read: _Read):
        """`TokenStats` as a tuple."""
        columns = []
        for rows in blocks(len(hidden), read.chunk):
            logits = head_product(hidden[rows], head, bias)
            columns.append(read.of(logits, chosen[rows], None if logit_scale is None else logit_scale[rows]))
        found = [None if column[0] is None else torch.cat(column) for column in zip(*columns, strict=True)]
        ctx.save_for_backward(hidden, head, bias, chosen, logit_scale)
        ctx.set_materialize_grads(False)
        ctx.read = read
        if read.support is None:
            found[2] = found[1].clone()  # two results of one function may not be one tensor
        ctx.mark_non_differentiable(*(t for t in found[3:] if t is not None))
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        """Gradients of hidden, head and bias, added up in float32 at least."""
        hidden, head, bias, chosen, logit_scale = ctx.saved_tensors
        if all(grad is None for grad in grads[:3]):
            return (None,) * 6
        dtype = statistics_dtype(head.dtype)
        tensors = (hidden, head, bias)
        sums = [
            torch.zeros_like(t, dtype=dtype) if wanted and t is not None else None
            for t, wanted in zip(tensors, ctx.needs_input_grad[:3], strict=True)
        ]
        for rows in blocks(len(hidden), ctx.read.chunk):
            logits = head_product(hidden[rows], head, bias).requires_grad_()
            with torch.enable_grad():
                found = ctx.read._replace(proxy=None, collision=False).of(
                    logits, chosen[rows], None if logit_scale is None else logit_scale[rows]
                )
            pairs = [(f, g[rows]) for f, g in zip(found[:3], grads[:3], strict=True) if g is not None]
            (grad,) = torch.autograd.grad([f for f, _ in pairs], logits, [g for _, g in pairs])
            to_hidden = None if sums[0] is None else sums[0][rows]
            add_head_gradients(grad, hidden[rows], head, to_hidden, *sums[1:])
        return *(None if s is None else s.to(t.dtype) for s, t in zip(sums, tensors, strict=True)), None, None, None
