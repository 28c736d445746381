"""Products with a head whose weights may be of low precision: added up in float32, block by block of the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from llm.onednn import known, matmul

BLOCK = 4096
"""Rows of a head that are converted at once."""

LOW = (torch.bfloat16, torch.float16)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of logits and of what is computed from them: float32 for half precision, else `dtype` itself."""
    return torch.float32 if dtype in LOW else dtype


def operand_dtype(tensor: Tensor) -> torch.dtype:
    """Type of a product's factors: CUDA multiplies half precision with sums in float32, elsewhere it is converted."""
    return tensor.dtype if tensor.is_cuda else statistics_dtype(tensor.dtype)


def blocks(total: int, size: int) -> Iterator[slice]:
    """[0, total) in slices of at most `size`."""
    return (slice(i, min(i + size, total)) for i in range(0, total, size))


def add_product(out: Tensor, a: Tensor, b: Tensor, fresh: bool = False) -> Tensor:
    """out + a b, or a b alone where `fresh`, written into `out` and added up in its type.

    Args: out: [n, m]; a: [n, k]; b: [k, m], of one type; CUDA multiplies half precision as it is.
    """
    if not a.is_cuda:
        a, b = a.to(out.dtype), b.to(out.dtype)
    if known(a, b) and a.dtype == out.dtype:
        return out.copy_(matmul(a, b)) if fresh else out.add_(matmul(a, b))
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out) if fresh else out.addmm_(a, b)
    if fresh:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return torch.addmm(out, a, b, out_dtype=out.dtype, out=out)


def head_product(hidden: Tensor, head: Tensor, bias: Tensor | None = None) -> Tensor:
    """hidden head^T + bias, [tokens, vocabulary], without grad; half precision is added up and kept in float32.

    Args: hidden: [tokens, d]; head: [vocabulary, d]; bias: [vocabulary] or None.
    """
    operand = operand_dtype(head)
    hidden = hidden.detach().to(operand)
    logits = hidden.new_empty((len(hidden), len(head)), dtype=statistics_dtype(head.dtype))
    for block in blocks(len(head), len(head) if operand == head.dtype else BLOCK):
        part = head[block].detach().to(operand)
        # `out` must be contiguous to be written to without a copy
        logits[:, block] = add_product(logits.new_empty((len(hidden), len(part))), hidden, part.mT, True)
    return logits if bias is None else logits.add_(bias.detach())


def add_head_gradients(
    grad: Tensor, hidden: Tensor, head: Tensor, to_hidden: Tensor | None, to_head: Tensor | None, to_bias: Tensor | None
) -> None:
    """Add to the gradients of hidden, head and bias what a gradient of the logits makes of them, in place.

    Args:
      grad: [tokens, vocabulary]; hidden: [tokens, d]; head: [vocabulary, d].
      to_hidden, to_head, to_bias: of their shapes, in the type of `grad`; None where no gradient is wanted.
    """
    operand = operand_dtype(head)
    hidden = hidden.detach().to(operand)
    for block in blocks(len(head), len(head) if operand == head.dtype else BLOCK):
        part = grad[:, block].to(operand)
        if to_hidden is not None:
            add_product(to_hidden, part, head[block].detach().to(operand))
        if to_head is not None:
            add_product(to_head[block], part.mT, hidden)
    if to_bias is not None:
        to_bias += grad.sum(0)
