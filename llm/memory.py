"""Less memory and faster arithmetic for the blocks of a model, whatever runs them."""

from __future__ import annotations

import ctypes
import functools
import sys

import torch
from torch.utils.checkpoint import checkpoint

from llm import token_stats
from llm.models import LanguageModel

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h; 32 MiB is the largest threshold it takes for memory of its own."""


def keep_freed_memory() -> None:
    """Let this process keep what it has freed, for its next step, in place of handing it back to the system.

    Every update frees its activations and asks for as many again; pages that come anew from the system are zeroed and
    mapped one by one. On Linux with glibc (elsewhere nothing is done); 6 % of a small model's step.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(M_MMAP_THRESHOLD, 2**25)


def use_threads(lm: LanguageModel, count: int) -> None:
    """Let torch, and compiled blocks where the model has them, use so many threads from now on."""
    torch.set_num_threads(count)
    if getattr(lm.model.get_decoder(), "compiled", False):
        from llm.compiled.crew import share_threads

        share_threads(count, sum(parameter.numel() for parameter in lm.model.parameters()))


def checkpoint_blocks(lm: LanguageModel) -> None:
    """Keep only the input of each block for the backward pass, which runs the block again.

    Only where a gradient is asked for: transformers' own switch acts in training mode, and there it takes the cache
    away from sampling.
    """
    for block in lm.model.get_decoder().layers:
        block.forward = _checkpointed(block.forward)


def choose_token_kernel(name: str, device: torch.device) -> None:
    """Read logits of plain policies on `device` by "tiles" of torch operations or by "triton" from now on.

    Raises: ValueError where Triton is not installed, on other devices than CUDA, and if its kernels are off.
    """
    if name == "tiles":
        token_stats.TILES.pop(device.type, None)
        return
    if device.type != "cuda":
        raise ValueError(f"token_kernel triton runs on CUDA only, the device is {device}; use token_kernel tiles")
    try:
        from llm import token_stats_triton
    except ImportError:
        raise ValueError("token_kernel triton needs Triton: pip install triton, or use token_kernel tiles") from None
    token_stats_triton.install(device.type)


def autocast_decoder(lm: LanguageModel) -> None:
    """Multiply matrices in bfloat16 inside of the decoder; its head, and what is read of the logits, stay as they are.

    In sampling too, so that both read one policy.
    """
    decoder = lm.model.get_decoder()
    decoder.forward = torch.autocast(lm.model.device.type, torch.bfloat16)(decoder.forward)
    decoder.product_dtype = torch.bfloat16  # for what reads the blocks without this forward


def _checkpointed(forward):
    @functools.wraps(forward)
    def run(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
