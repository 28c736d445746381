"""No control."""

from entropy_theory.control import Control, control


def none() -> Control:
    """Leave the objective as it is (the baseline of every comparison)."""
    return control()
