"""What a checked statement is, and what its check returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class States:
    """n instances with the same number of actions, float64.

    logits:    [n, actions]; -inf masks an action
    change:    [n, actions], logits after minus before, nats, finite
    advantage: [n, actions], reward units, finite; need not be centred
    step_size: eta, nats per reward unit
    """

    logits: Tensor
    change: Tensor
    advantage: Tensor
    step_size: float = 1.0

    def rows(self, index: slice | Tensor) -> "States":
        """Some of the instances."""
        return States(self.logits[index], self.change[index], self.advantage[index], self.step_size)

    def shrunk(self, factor: float) -> "States":
        """The same policies under a change and a step `factor` times as large."""
        return States(self.logits, self.change * factor, self.advantage, self.step_size * factor)


class Comparison(NamedTuple):
    """One prediction on n instances: |measured - predicted|, its proved bound, and the rounding part of that bound.

    All [n]; NaN in `error` counts as a violation.
    """

    error: Tensor
    bound: Tensor
    rounding: Tensor

    def ratio(self) -> Tensor:
        """error / bound, [n]; above 1 the statement is violated."""
        ratio = torch.where(self.error == 0, 0.0, self.error / self.bound)
        return ratio.nan_to_num(nan=torch.inf, posinf=torch.inf)


class Evidence(NamedTuple):
    """What one statement says about n instances.

    first:  the statement's own prediction
    second: the same with the exact quadratic term; None where the statement has none
    """

    first: Comparison
    second: Comparison | None = None

    def forms(self) -> list[tuple[str, Comparison]]:
        """The predictions there are, by name."""
        return [(form, c) for form, c in zip(self._fields, self, strict=True) if c is not None]

    def violated(self) -> Tensor:
        """Whether any prediction misses its bound, [n]."""
        return torch.stack([comparison.ratio() > 1 for _, comparison in self.forms()]).any(0)


def _everywhere(states: States) -> Tensor:
    return torch.ones(states.logits.shape[0], dtype=torch.bool)


@dataclass(frozen=True)
class Statement:
    """A claim, where it stands, what it assumes, and a check against a proved bound.

    id:          as typed on the command line, for example "lemma_1"
    name:        as printed, for example "Lemma 1"
    formula:     plain text
    source:      paper and number
    assumptions: what the check grants; anything else is part of the claim
    check:       States -> Evidence
    applies:     States -> bool [n], the instances the check can judge
    """

    id: str
    name: str
    formula: str
    source: str
    assumptions: tuple[str, ...]
    check: Callable[[States], Evidence]
    applies: Callable[[States], Tensor] = _everywhere
