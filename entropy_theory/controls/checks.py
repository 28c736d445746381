"""Checks of hyper-parameters that several controls share."""

import math
from collections.abc import Callable, Iterable


def check_fraction(name: str, fraction: float) -> None:
    """Raise ValueError unless 0 < fraction <= 1; the message names the factor-100 trap."""
    if not 0 < fraction <= 1:
        raise ValueError(
            f"{name} must lie in (0, 1], got {fraction}; it is a fraction, not a percentage (0.002 = 0.2 %)"
        )


def check_coef(name: str, coef: float) -> None:
    """Raise ValueError unless coef is at least 0 and finite."""
    if not 0 <= coef < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite, got {coef}")


def check_seed(name: str, seed: int) -> None:
    """Raise ValueError unless the seed fits in a signed 64-bit integer, which is what random draws hold."""
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"{name} must fit in 64 bits, got {seed}")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_target(name: str, target: float, most: Callable[[int], float] = math.log) -> Callable[[int], None]:
    """A check of a target entropy: at once that it is positive, and later that so many actions can have it.

    Args:
      target: nats; most: the highest target that a number of actions allows, nats.
    Returns: actions -> None, raising ValueError.
    """
    if not 0 < target < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {target}")

    def check_actions(actions: int) -> None:
        if target > most(actions):
            raise ValueError(f"{name} is {target:g} nats, but {actions} actions allow at most {most(actions):.4g}")

    return check_actions
