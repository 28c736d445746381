"""Rules that set one number (a coefficient) from measured entropy, one value per replica."""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

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


Response = Literal["proportional", "sign"]
"""How an error moves a value: by so much for each nat, or by one step of fixed size."""

RESPONSES = {"proportional": lambda error: error, "sign": torch.sign}


def anchored(
    share: float,
    gain: float,
    low: float = 0.0,
    high: float = 1.0,
    start: float = 0.0,
    response: Response = "proportional",
) -> Controller:
    r"""Integral control towards a share of the entropy first measured.

        target = share * H_0,    v <- clip(v + gain f(target - H), low, high)

    Args:
      share: in (0, 1); low, high, start: units of the value.
      gain: units of the value per nat, with the response "sign" (f = sign) per step.
    Raises: ValueError if share is outside (0, 1), gain is not positive, start is outside [low, high], or the response
      is unknown.
    """
    if not 0 < share < 1 or not gain > 0:
        raise ValueError(f"share must lie in (0, 1) and gain be positive, got {share} and {gain}")
    _check_start(low, high, start)
    moved = _response(response)

    def advance(state, measurement):
        value, first = state
        entropy = measurement.entropy.to(value.dtype)
        first = torch.where(first.isnan(), entropy, first)
        return (value + gain * moved(share * first - entropy)).clamp(low, high), first

    return Controller(
        init=lambda like: (torch.full_like(like, start), torch.full_like(like, torch.nan)),
        value=lambda state: state[0],
        advance=advance,
    )


def integral(
    target: float, gain: float, low: float, high: float, start: float, response: Response = "proportional"
) -> Controller:
    r"""Integral control towards a fixed entropy.

        v <- clip(v + gain f(target - H), low, high)

    Args:
      target: nats, > 0; low, high, start: units of the value.
      gain: units of the value per nat, with the response "sign" (f = sign) per step; > 0.
    Raises: ValueError if target or gain is not positive, start is outside [low, high], or the response is unknown.
    """
    if not (target > 0 and gain > 0):
        raise ValueError(f"target and gain must be positive, got {target} and {gain}")
    _check_start(low, high, start)
    moved = _response(response)
    return Controller(
        init=lambda like: torch.full_like(like, start),
        value=lambda state: state,
        advance=lambda state, measurement: (state + gain * moved(target - measurement.entropy.to(state.dtype))).clamp(
            low, high
        ),
    )


def towards_range(
    entropy_low: float, entropy_high: float, gain: float, low: float, high: float, start: float
) -> Controller:
    r"""Integral control towards a range of entropies, at rest inside it.

        v <- clip(v - gain (min(0, H - entropy_low) + max(0, H - entropy_high)), low, high)

    The coefficient of AEnt (Shen 2025, arXiv 2509.03493), as in its code.

    Args:
      entropy_low, entropy_high: nats, 0 <= entropy_low <= entropy_high; gain: units of the value per nat, > 0.
      low, high, start: units of the value.
    Raises: ValueError if the range is empty, gain is not positive, or start is outside [low, high].
    """
    if not 0 <= entropy_low <= entropy_high:
        raise ValueError(f"entropy_low must lie between 0 and entropy_high, got {entropy_low} and {entropy_high}")
    if not gain > 0:
        raise ValueError(f"gain must be positive, got {gain}")
    _check_start(low, high, start)

    def advance(state, measurement):
        entropy = measurement.entropy.to(state.dtype)
        outside = (entropy - entropy_low).clamp(max=0.0) + (entropy - entropy_high).clamp(min=0.0)
        return (state - gain * outside).clamp(low, high)

    return Controller(init=lambda like: torch.full_like(like, start), value=lambda state: state, advance=advance)


def kl_adaptive(start: float, target: float, horizon: float, most: float = 0.2) -> Controller:
    r"""Grow the value while the KL to the reference is above its target, shrink it while it is below.

        v <- v (1 + clip(KL / target - 1, -most, most) / horizon)

    Ziegler et al. 2019 (arXiv 1909.08593), section 2.2. verl counts its horizon in samples (10,000); here it is counted
    in optimizer steps: divide by the samples of a step. verl moves the value once per rollout.

    Args:
      start: units of the value, > 0 (a product never leaves 0); target: nats a token, > 0; horizon: steps, > most,
        so that the value stays positive; most: largest relative error that counts, in (0, 1].
    Raises: ValueError if one of these does not hold; and, when it advances, if the measurement holds no KL.
    """
    if not (start > 0 and target > 0 and 0 < most <= 1 and horizon > most):
        raise ValueError(
            "start and target must be positive, most must lie in (0, 1] and horizon above it, got "
            f"{start}, {target}, {most} and {horizon}"
        )

    def advance(state, measurement):
        if measurement.reference_kl is None:
            raise ValueError("this coefficient follows the KL to the reference, but the world measured none")
        error = (measurement.reference_kl.to(state.dtype) / target - 1).clamp(-most, most)
        return state * (1 + error / horizon)

    return Controller(init=lambda like: torch.full_like(like, start), value=lambda state: state, advance=advance)


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


AtTarget = Literal["raise", "hold", "lower"]
"""What a rule does at an entropy that equals the target."""

DIRECTIONS = {
    "raise": lambda below: torch.where(below >= 0, 1.0, -1.0),
    "hold": torch.sign,
    "lower": lambda below: torch.where(below > 0, 1.0, -1.0),
}
"""+1 or -1 of target - H."""

OPEN = {"raise": torch.ge, "hold": torch.ge, "lower": torch.gt}
"""Whether a gate is open, of (target - H, 0)."""


def step_to_target(
    target_entropy: float,
    delta: float,
    low: float = 0.0,
    high: float = 1.0,
    start: float = 0.0,
    at_target: AtTarget = "lower",
) -> Controller:
    r"""Raise the value by `delta` while entropy is below the target, lower it while it is above, within [low, high].

        v <- clip(v + delta sign(target - H), low, high)

    He et al. 2025 (Skywork-OR1, arXiv 2505.22312), eq. 3.2, with the clip of their code: without the clip at 0
    the value goes negative while entropy is high and later *lowers* entropy.

    Args:
      target_entropy: nats; delta, low, high, start: units of the value.
      at_target: what happens where H equals the target: the paper holds, its code lowers, TRL raises.
    Raises: ValueError if target_entropy or delta is not positive, start is outside [low, high], or at_target is
      unknown.
    """
    if target_entropy <= 0 or delta <= 0:
        raise ValueError(f"target_entropy and delta must be positive, got {target_entropy} and {delta}")
    _check_start(low, high, start)
    _check_word("at_target", at_target, DIRECTIONS)
    direction = DIRECTIONS[at_target]

    def advance(state, measurement):
        below = target_entropy - measurement.entropy
        return (state + delta * direction(below).to(state.dtype)).clamp(low, high)

    return Controller(
        init=lambda like: torch.full_like(like, start),
        value=lambda state: state,
        advance=advance,
    )


def gated(controller: Controller, target_entropy: float, at_target: AtTarget = "hold") -> Controller:
    r"""The controller's value while the last measured entropy is at or below the target, 0 otherwise.

        v 1[H <= target],    with at_target "lower" v 1[H < target]

    He et al. 2025 (Skywork-OR1, arXiv 2505.22312), eq. 3.2. Closed until something is measured, and one step late.

    Raises: ValueError if at_target is unknown.
    """
    _check_word("at_target", at_target, OPEN)
    is_open = OPEN[at_target]

    def advance(state, measurement):
        inner, share = state
        below = target_entropy - measurement.entropy
        return controller.advance(inner, measurement), is_open(below, torch.zeros_like(below)).to(share.dtype)

    return Controller(
        init=lambda like: (controller.init(like), torch.zeros_like(like)),
        value=lambda state: controller.value(state[0]) * state[1],
        advance=advance,
    )


def _response(name: str) -> Callable[[Tensor], Tensor]:
    _check_word("response", name, RESPONSES)
    return RESPONSES[name]


def _check_word(name: str, word: str, known: Iterable[str]) -> None:
    if word not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {word!r}")


def _check_start(low: float, high: float, start: float) -> None:
    if not low <= start <= high:
        raise ValueError(f"start must lie between low and high, got {low}, {start} and {high}")
