"""Nested states: a function applied to every tensor of a tuple or dict of tensors, or of several alike."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def each_tensor(function: Callable[..., Tensor], *states: Any) -> Any:
    """`function` of the tensors that stand in the same place of several states; what holds them keeps its shape."""
    first = states[0]
    if isinstance(first, Tensor):
        return function(*states)
    if isinstance(first, dict):
        return {name: each_tensor(function, *(state[name] for state in states)) for name in first}
    return tuple(each_tensor(function, *parts) for parts in zip(*states, strict=True))
