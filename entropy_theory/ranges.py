"""Checks of settings: one sentence naming the field, what it must be, and the value. Imports nothing heavy."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def require_at_least(record: Any, smallest: float, *names: str) -> None:
    """Raise ValueError unless each named field is at least `smallest` (NaN is not)."""
    for name in names:
        if not getattr(record, name) >= smallest:
            raise ValueError(f"{name} must be at least {smallest}, got {getattr(record, name)}")


def require_positive(record: Any, *names: str) -> None:
    """Raise ValueError unless each named field is above 0."""
    for name in names:
        if not getattr(record, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(record, name)}")


def require_share(record: Any, *names: str) -> None:
    """Raise ValueError unless each named field lies in [0, 1]."""
    for name in names:
        if not 0 <= getattr(record, name) <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {getattr(record, name)}")


def require_choice(record: Any, name: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless the field is one of `choices`."""
    if getattr(record, name) not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(record, name)!r}")


def check_types(options: type, values: dict[str, Any], where: str) -> Any:
    """`options(**values)` after a check that each value has the type of the field's default."""
    for field in dataclasses.fields(options):
        if field.name not in values or field.default is dataclasses.MISSING:
            continue
        value, wanted = values[field.name], type(field.default)
        if isinstance(field.default, Path | None):  # every option without a default value is a path
            wanted = str
        if wanted is float and type(value) is int:
            values[field.name] = float(value)
        elif wanted is tuple and type(value) is list:
            values[field.name] = tuple(value)
        elif type(value) is not wanted:
            raise ValueError(f"{where}: {field.name} must be of type {wanted.__name__}, got {value!r}")
        elif isinstance(field.default, Path | None):
            values[field.name] = Path(value)
    return options(**values)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"kl_cov": {"fraction": 0.02}} and {"kl_cov.fraction": 0.02} both as the latter."""
    found = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
