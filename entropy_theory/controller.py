"""Rules that set one number (a coefficient) from measured entropy, one value per replica."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory.control import State
from entropy_theory.records import Measurement


class Controller(NamedTuple):
    """init(like) -> state; value(state) -> [...]; advance(state, measurement) -> state; all pure."""

    init: Callable[[Tensor], State]
    value: Callable[[State], Tensor]
    advance: Callable[[State, Measurement], State]


def constant(value: float) -> Controller:
    """The same value at every step."""
    return Controller(
        init=lambda like: torch.full_like(like, value),
        value=lambda state: state,
        advance=lambda state, measurement: state,
    )


def step_to_target(
    target_entropy: float, delta: float, low: float = 0.0, high: float = 1.0, start: float = 0.0
) -> Controller:
    r"""Raise the value by `delta` while entropy is below the target, lower it otherwise, within [low, high].

        v <- clip(v + delta * (1 if H < target else -1), low, high)

    He et al. 2025 (Skywork-OR1, arXiv 2505.22312), eq. 3.2, with the clip of their code: without the clip at 0
    the value goes negative while entropy is high and later *lowers* entropy.

    Args:
      target_entropy: nats; delta, low, high, start: units of the value.
    Raises: ValueError if target_entropy or delta is not positive, or low > high.
    """
    if target_entropy <= 0 or delta <= 0:
        raise ValueError(f"target_entropy and delta must be positive, got {target_entropy} and {delta}")
    if low > high:
        raise ValueError(f"low must not exceed high, got {low} > {high}")

    def advance(state, measurement):
        return torch.where(measurement.entropy < target_entropy, state + delta, state - delta).clamp(low, high)

    return Controller(
        init=lambda like: torch.full_like(like, start),
        value=lambda state: state,
        advance=advance,
    )
