"""Nested states: a function applied to every tensor or array of a tuple, list or dict, or of several alike."""

from collections.abc import Callable
from typing import Any


def each_tensor(function: Callable[..., Any], *states: Any) -> Any:
    """`function` of the tensors that stand in the same place of several states; what holds them keeps its shape."""
    first = states[0]
    if isinstance(first, dict):
        return {name: each_tensor(function, *(state[name] for state in states)) for name in first}
    if isinstance(first, tuple | list):
        return type(first)(each_tensor(function, *parts) for parts in zip(*states, strict=True))
    return function(*states)
