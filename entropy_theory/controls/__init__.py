"""Every entropy control, by the name the command line uses. One paper per file."""

import inspect
from collections.abc import Mapping

from entropy_theory.control import Control, chain
from entropy_theory.controls.clip_cov import clip_cov
from entropy_theory.controls.clip_higher import clip_higher
from entropy_theory.controls.entropy_bonus import entropy_bonus
from entropy_theory.controls.kl_cov import kl_cov
from entropy_theory.controls.none import none

CONTROLS = {
    "none": none,
    "entropy_bonus": entropy_bonus,
    "clip_higher": clip_higher,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
}


def parameters(name: str) -> dict[str, float]:
    """Hyper-parameters of the control `name` and their defaults. ValueError if there is no such control."""
    if name not in CONTROLS:
        raise ValueError(f"unknown control {name!r}; choose from {', '.join(CONTROLS)}, or join several with +")
    return {p.name: p.default for p in inspect.signature(CONTROLS[name]).parameters.values()}


def resolve(names: str, settings: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Full hyper-parameters of each control in `names` after `settings`; what a run prints and stores.

    Args:
      names: one control, or several joined by "+", applied from left to right.
      settings: {"control.parameter": value}.
    Raises: ValueError naming the control, parameter or value that does not fit.
    """
    parts = names.split("+")
    if len(set(parts)) != len(parts):
        raise ValueError(f"control {names!r} names one control twice; name each once")
    resolved = {name: parameters(name) for name in parts}
    for key, value in settings.items():
        name, _, parameter = key.partition(".")
        if name not in resolved:
            raise ValueError(f"setting {key}={value} is for control {name!r}, but this run uses {names!r}")
        if parameter not in resolved[name]:
            known = ", ".join(resolved[name]) or "none"
            raise ValueError(f"control {name} has no parameter {parameter!r}; its parameters are: {known}")
        default = resolved[name][parameter]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{key} must be a number, got {value!r}")
        if isinstance(default, int) and isinstance(value, float) and not value.is_integer():
            raise ValueError(f"{key} must be a whole number, got {value}")
        resolved[name][parameter] = type(default)(value)
    return resolved


def build(names: str, settings: Mapping[str, float]) -> Control:
    """The control(s) `names` with `settings`; see `resolve` for the arguments and errors."""
    parts = [CONTROLS[name](**values) for name, values in resolve(names, settings).items()]
    return parts[0] if len(parts) == 1 else chain(*parts)
