"""Random numbers as a pure function of (seed, step, position): the same on every device, split and replica."""

import torch
from torch import Tensor

# splitmix64 (Steele, Lea & Flood 2014), as signed 64-bit integers; torch's int64 arithmetic wraps
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def uniform(seed: Tensor, step: Tensor, count: int) -> Tensor:
    """`count` uniform numbers in [0, 1) for each (seed, step), float64.

    Args:
      seed, step: [...] int64.
      count: numbers per replica.
    Returns: [..., count].
    """
    key = _mix(_mix(seed * _GAMMA) + step * _GAMMA)
    position = torch.arange(1, count + 1, device=seed.device)
    return _shift(_mix(key.unsqueeze(-1) + position * _GAMMA), 11).double() * 2.0**-53
