"""Checks of hyper-parameters that several controls share."""

import math


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
