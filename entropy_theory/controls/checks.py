"""Checks of hyper-parameters that several controls share."""


def check_fraction(name: str, fraction: float) -> None:
    """Raise ValueError unless 0 < fraction <= 1; the message names the factor-100 trap."""
    if not 0 < fraction <= 1:
        raise ValueError(
            f"{name} must lie in (0, 1], got {fraction}; it is a fraction, not a percentage (0.002 = 0.2 %)"
        )
