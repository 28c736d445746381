"""Products of float32 matrices on a CPU with AVX-512, by oneDNN.

torch multiplies float32 with the BLAS it was built with. Its wheels have MKL, which leaves half of AVX-512 unused on
processors that are not Intel's; oneDNN, which is in the same wheels, does not: on one thread of an AMD EPYC it does
210 GFLOP/s where MKL does 95. Both add up in float32, in orders of their own.

oneDNN makes a program for each shape it meets, 2 to 5 ms, and keeps it. Tokens of a batch are never as many as in the
one before, so small products are cut into pieces whose rows are powers of two; what is left over, and what is too small
to be worth a call, torch multiplies. `torch.backends.mkldnn.enabled = False` leaves everything to torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

HERE = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether this processor gains by it and torch has it."""

WHOLE = 10**10
"""Operations of a product that is not cut up: making its program takes at most a tenth of its time."""

LEAST = {"logits": (64, 2 * 10**6), "inputs": (128, 4 * 10**6), "weights": (512, 12 * 10**6)}
"""Tokens and operations from which on a product is faster than torch's: a b^T, g b, g^T a."""


_linear_pointwise = torch.ops.mkldnn._linear_pointwise.default if HERE else None
"""x, weight, bias, name of an activation, its arguments, its kind -> x weight^T + bias."""


def known(*factors: Tensor) -> bool:
    """Whether `matmul` and `linear` leave these factors to oneDNN where the product is large enough."""
    return (
        HERE
        and all(f.dtype == torch.float32 and f.device.type == "cpu" and f.layout == torch.strided for f in factors)
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and not torch.compiler.is_compiling()
    )


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a b, [n, m], without grad.

    Args: a: [n, k]; b: [k, m]. A transposed b is that of a layer's forward pass, tokens n; neither is the gradient of
    its inputs, tokens n; a transposed a is that of its weights, tokens k.
    """
    if not known(a, b):
        return torch.mm(a, b)
    if b.mT.is_contiguous():
        return _logits(a, b.mT)
    if a.mT.is_contiguous():
        return _weights(a.mT, b)
    return _inputs(a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, [..., m], with grad where it is enabled; second derivatives are torch's only.

    Args: x: [..., k]; weight: [m, k]; bias: [m] or None.
    """
    tokens, least = x.numel() // max(x.shape[-1], 1), LEAST["logits"]
    if tokens < least[0] or 2 * x.numel() * len(weight) < least[1] or not known(x, weight):
        return nn.functional.linear(x, weight, bias)
    flat = x if x.ndim == 2 else x.reshape(tokens, -1)
    found = _Linear.apply(flat, weight, bias) if torch.is_grad_enabled() else _logits(flat, weight, bias)
    return found if x.ndim == 2 else found.view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """A linear layer that multiplies by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x weight^T + bias, [..., outputs]."""
        return linear(x, self.weight, self.bias)


def equip(model: nn.Module) -> None:
    """Let every linear layer of a model on a CPU multiply by `linear`, in place; its weights and names stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _logits(x.detach(), weight.detach(), None if bias is None else bias.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            _inputs(grad, weight) if wanted[0] else None,
            _weights(grad, x) if wanted[1] else None,
            grad.sum(0) if wanted[2] else None,
        )


def _logits(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b^T + bias."""
    b = b.contiguous()
    return _by_pieces(
        a,
        2 * b.numel(),
        LEAST["logits"],
        lambda part: _linear_pointwise(part, b, bias, "none", [], ""),
        lambda part: nn.functional.linear(part, b, bias),
    )


def _inputs(g: Tensor, b: Tensor) -> Tensor:
    """g b. oneDNN's own function for it hands back a tensor of another layout, which would have to be copied."""
    turned = b.mT.contiguous()
    return _by_pieces(
        g,
        2 * b.numel(),
        LEAST["inputs"],
        lambda part: _linear_pointwise(part, turned, None, "none", [], ""),
        lambda part: torch.mm(part, b),
    )


def _weights(g: Tensor, a: Tensor) -> Tensor:
    """g^T a."""
    like, found = g.new_empty(g.shape[1], a.shape[1]), None
    for rows, large in _pieces(len(g), 2 * like.numel(), LEAST["weights"]):
        if large:
            x, y = g[rows].contiguous().to_mkldnn(), a[rows].contiguous().to_mkldnn()
            part = torch.ops.aten.mkldnn_linear_backward_weights(x, y, like, False)[0]
            found = part if found is None else found.add_(part)
        else:
            found = torch.mm(g[rows].mT, a[rows]) if found is None else found.addmm_(g[rows].mT, a[rows])
    return found


def _by_pieces(
    a: Tensor,
    each: int,
    least: tuple[int, int],
    whole: Callable[[Tensor], Tensor],
    small: Callable[[Tensor], Tensor],
) -> Tensor:
    parts = [(whole if large else small)(a[rows].contiguous()) for rows, large in _pieces(len(a), each, least)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@lru_cache(maxsize=4096)
def _pieces(tokens: int, each: int, least: tuple[int, int]) -> list[tuple[slice, bool]]:
    """[0, tokens) in slices, and whether each is for oneDNN; one slice at least. `each`: operations of a token."""
    enough = 1 << (max(least[0], -(-least[1] // max(each, 1))) - 1).bit_length()
    if tokens < enough or tokens * each >= WHOLE:
        return [(slice(0, tokens), tokens >= enough)]
    found, start = [], 0
    while (size := 1 << (tokens - start).bit_length() >> 1) >= enough:
        found.append((slice(start, start + size), True))
        start += size
    if start < tokens:
        found.append((slice(start, tokens), False))
    return found
