"""Every entropy control, by the name the command line uses. One paper per file.

A file may hold PRESETS, {name: {parameter: value}}, where publications disagree; what a preset does not name keeps its
default, and a parameter set beside it wins.
"""

import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from entropy_theory.control import Control, Need, chain
from entropy_theory.controls.adaptive_entropy import adaptive_entropy
from entropy_theory.controls.aent import aent
from entropy_theory.controls.aer import aer
from entropy_theory.controls.budget import budget
from entropy_theory.controls.clip_cov import clip_cov
from entropy_theory.controls.clip_higher import clip_higher
from entropy_theory.controls.cov_state import cov_state
from entropy_theory.controls.egsw import egsw
from entropy_theory.controls.entropic import entropic
from entropy_theory.controls.entropy_advantage import entropy_advantage
from entropy_theory.controls.entropy_bonus import entropy_bonus
from entropy_theory.controls.era import era
from entropy_theory.controls.era_activation import era_activation
from entropy_theory.controls.high_entropy_tokens import high_entropy_tokens
from entropy_theory.controls.kl_cov import kl_cov
from entropy_theory.controls.kl_to_reference import kl_to_reference
from entropy_theory.controls.lp_reg import lp_reg
from entropy_theory.controls.none import none
from entropy_theory.controls.quantile_advantage import quantile_advantage
from entropy_theory.controls.steer import steer
from entropy_theory.controls.temperature import temperature
from entropy_theory.controls.weighted_reinforce import weighted_reinforce

CONTROLS: dict[str, Callable[..., Control]] = {
    "none": none,
    "entropy_bonus": entropy_bonus,
    "kl_to_reference": kl_to_reference,
    "clip_higher": clip_higher,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
    "adaptive_entropy": adaptive_entropy,
    "aer": aer,
    "entropic": entropic,
    "lp_reg": lp_reg,
    "egsw": egsw,
    "era": era,
    "era_activation": era_activation,
    "high_entropy_tokens": high_entropy_tokens,
    "entropy_advantage": entropy_advantage,
    "weighted_reinforce": weighted_reinforce,
    "steer": steer,
    "quantile_advantage": quantile_advantage,
    "aent": aent,
    "temperature": temperature,
    "cov_state": cov_state,
    "budget": budget,
}

EXCLUSIVE = {
    Need.ACTIVATION: "replace the policy's activation",
    Need.SAMPLING: "set the sampling temperature",
    Need.PROXY_LOGP: "define the filtered policy",
    Need.ENTROPY_SUPPORT: "choose the policy of the entropy bonus",
}
"""What only one control of a chain can do."""

Settings = Mapping[str, float | str]
"""{"control.parameter": value}; the parameter "preset" names one of the control's presets."""


def parameters(name: str) -> dict[str, Any]:
    """Hyper-parameters of the control `name` and their defaults. ValueError if there is no such control."""
    if name not in CONTROLS:
        raise ValueError(f"unknown control {name!r}; choose from {', '.join(CONTROLS)}, or join several with +")
    return {p.name: p.default for p in inspect.signature(CONTROLS[name]).parameters.values()}


def presets(name: str) -> dict[str, dict[str, Any]]:
    """The presets of a control's file, none where it has none."""
    return getattr(sys.modules[CONTROLS[name].__module__], "PRESETS", {})


def resolve(names: str, settings: Settings) -> dict[str, dict[str, Any]]:
    """Full hyper-parameters of each control in `names` after `settings`; what a run prints and stores.

    Args:
      names: one control, or several joined by "+", applied from left to right.
    Raises: ValueError naming the control, parameter or value that does not fit.
    """
    parts = names.split("+")
    if len(set(parts)) != len(parts):
        raise ValueError(f"control {names!r} names one control twice; name each once")
    resolved = {name: parameters(name) for name in parts}
    for name, value in _presets_of(settings, names).items():
        resolved[name] |= _preset(name, value)
    for key, value in settings.items():
        name, _, parameter = key.partition(".")
        if parameter == "preset":
            continue
        if name not in resolved:
            raise ValueError(f"setting {key}={value} is for control {name!r}, but this run uses {names!r}")
        if parameter not in resolved[name]:
            known = ", ".join(resolved[name]) or "none"
            raise ValueError(f"control {name} has no parameter {parameter!r}; its parameters are: {known}")
        resolved[name][parameter] = _checked(key, value, typing.get_type_hints(CONTROLS[name])[parameter])
    return resolved


def build(names: str, settings: Settings) -> Control:
    """The control(s) `names` with `settings`; see `resolve` for the arguments and errors.

    Raises: ValueError, also if two controls do what only one can.
    """
    parts = {name: CONTROLS[name](**values) for name, values in resolve(names, settings).items()}
    for need, what in EXCLUSIVE.items():
        rivals = [name for name, part in parts.items() if need in part.needs]
        if len(rivals) > 1:
            raise ValueError(f"controls {' and '.join(rivals)} both {what}; keep one of them")
    return chain(*parts.values()) if len(parts) > 1 else parts[names]


def idle_parts(names: str, settings: Settings, provides: frozenset[Need]) -> dict[str, list[str]]:
    """Controls of `names` that will change nothing, and what the world lacks for them to act."""
    found = {}
    for name, values in resolve(names, settings).items():
        lacking = CONTROLS[name](**values).idle_without - provides
        if lacking:
            found[name] = sorted(need.value for need in lacking)
    return found


def _presets_of(settings: Settings, names: str) -> dict[str, str]:
    found = {}
    for key, value in settings.items():
        name, _, parameter = key.partition(".")
        if parameter == "preset":
            if name not in names.split("+"):
                raise ValueError(f"setting {key}={value} is for control {name!r}, but this run uses {names!r}")
            found[name] = value
    return found


def _preset(name: str, preset: Any) -> dict[str, Any]:
    known = presets(name)
    if not known:
        raise ValueError(f"control {name} has no presets, got {preset!r}; set its parameters one by one")
    if preset not in known:
        raise ValueError(f"control {name} has no preset {preset!r}; its presets are: {', '.join(known)}")
    return known[preset]


def _checked(key: str, value: Any, hint: Any) -> Any:
    """The value as the parameter's annotation wants it: float, int, a word of a Literal, or None where allowed."""
    choices = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    wanted = next(choice for choice in choices if choice is not type(None))
    if value is None and type(None) in choices:
        return None
    if typing.get_origin(wanted) is Literal:
        words = typing.get_args(wanted)
        if value not in words:
            raise ValueError(f"{key} must be one of {', '.join(words)}, got {value!r}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # NaN is in no range
        raise ValueError(f"{key} must be a number, got {value!r}")
    if wanted is int and isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{key} must be a whole number, got {value}")
    return wanted(value)
