"""Range checks of settings: one sentence naming the field, what it must be, and the value. Imports nothing."""

from collections.abc import Sequence
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
