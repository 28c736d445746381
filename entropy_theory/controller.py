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


def schedule(kind: str, start: float, end: float, steps: int) -> Controller:
    r"""From `start` to `end` in `steps` optimizer steps, then `end`.

        linear: v = start + (end - start) t / steps;  cosine: v = end + (start - end) (1 + cos(pi t / steps)) / 2

    Args:
      kind: "constant" (`start` throughout), "linear" or "cosine"; steps: >= 1.
    Raises: ValueError if kind is unknown or steps is below 1.
    """
    if kind not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {kind!r}")
    if steps < 1:
        raise ValueError(f"steps of a schedule must be at least 1, got {steps}")
    share_left = SCHEDULES[kind]
    return Controller(
        init=torch.zeros_like,
        value=lambda state: end + (start - end) * share_left((state / steps).clamp(max=1.0)),
        advance=lambda state, measurement: state + 1,
    )


SCHEDULES = {
    "constant": torch.ones_like,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + torch.cos(torch.pi * done)) / 2,
}
"""Share of the way from end to start that is left when a share of the steps is done."""


def anchored(share: float, gain: float, low: float = 0.0, high: float = 1.0, start: float = 0.0) -> Controller:
    r"""Integral control towards a share of the entropy first measured.

        target = share * H_0,    v <- clip(v + gain (target - H), low, high)

    Args:
      share: in (0, 1); gain: units of the value per nat; low, high, start: units of the value.
    Raises: ValueError if share is outside (0, 1), gain is not positive, or low > high.
    """
    if not 0 < share < 1 or not gain > 0:
        raise ValueError(f"share must lie in (0, 1) and gain be positive, got {share} and {gain}")
    if low > high:
        raise ValueError(f"low must not exceed high, got {low} > {high}")

    def advance(state, measurement):
        value, first = state
        first = torch.where(first.isnan(), measurement.entropy.to(first.dtype), first)
        return (value + gain * (share * first - measurement.entropy)).clamp(low, high).to(value.dtype), first

    return Controller(
        init=lambda like: (torch.full_like(like, start), torch.full_like(like, torch.nan)),
        value=lambda state: state[0],
        advance=advance,
    )


def proportional_integral(target: float, proportional: float, integral: float, limit: float = 1.0) -> Controller:
    r"""PI control of e = H - target, the value clipped and the sum held while it would push further beyond the clip.

        v = clip(K_P e + K_I sum e, -limit, limit)

    Args:
      target: nats, > 0; proportional, integral: K_P, K_I >= 0, units of the value per nat; limit: > 0.
    Raises: ValueError if one of these does not hold.
    """
    if not (target > 0 and limit > 0 and proportional >= 0 and integral >= 0):
        raise ValueError(
            "target and limit must be positive and both gains at least 0, got "
            f"{target}, {limit}, {proportional} and {integral}"
        )

    def raw(error, total):
        return proportional * error + integral * total

    def advance(state, measurement):
        _, total = state
        error = (measurement.entropy - target).to(total.dtype)
        longer = total + error
        # anti-windup: a sum that only drives the value deeper into the clip is not kept
        held = (raw(error, longer).abs() > limit) & (error * longer > 0)
        total = torch.where(held, total, longer)
        return raw(error, total).clamp(-limit, limit), total

    return Controller(
        init=lambda like: (torch.zeros_like(like), torch.zeros_like(like)),
        value=lambda state: state[0],
        advance=advance,
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
