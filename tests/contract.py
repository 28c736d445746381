"""The contract table: one row for every control in `entropy_theory.controls.CONTROLS`.

`test_every_control.py` holds each control to its row. A control without a row fails there.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from entropy_theory.records import Batch, Objective


def unedited(objective: Objective, batch: Batch) -> Objective:
    """What `none` makes of the objective."""
    return objective


def without_clip(objective: Objective, batch: Batch) -> Objective:
    """The objective with PPO's clip switched off."""
    infinite = torch.full_like(objective.clip_low, torch.inf)
    return replace(objective, clip_low=infinite, clip_high=infinite)


@dataclass(frozen=True)
class Row:
    """What the contract needs to know about one control.

    acting:        parameters with which it edits a small batch
    acts_on_fresh: whether it changes the first update after a rollout (ratio 1 everywhere)
    acts_on_stale: whether it changes the later ones
    drawn:         its edit holds random draws, so permuting rows permutes what is drawn from
    neutral:       parameters that switch it off; None when it has no such setting
    neutral_equals: what the neutral edit must equal
    """

    acting: dict[str, Any]
    acts_on_fresh: bool
    acts_on_stale: bool = True
    drawn: bool = False
    neutral: dict[str, Any] | None = None
    neutral_equals: Callable[[Objective, Batch], Objective] = unedited


CONTRACT: dict[str, Row] = {
    "none": Row(acting={}, acts_on_fresh=False, acts_on_stale=False, neutral={}),
    "entropy_bonus": Row(acting={"coef": 0.3}, acts_on_fresh=True, neutral={"coef": 0.0}),
    # 0.2 is the clip of `Objective.from_batch`
    "clip_higher": Row(acting={"clip_high": 0.45}, acts_on_fresh=False, neutral={"clip_high": 0.2}),
    # no score lies above 1e9, so nothing is eligible
    "clip_cov": Row(
        acting={"fraction": 0.3, "low": -1e9, "high": 1e9},
        acts_on_fresh=True,
        drawn=True,
        neutral={"low": 1e9, "high": 2e9},
    ),
    "kl_cov": Row(
        acting={"fraction": 0.3, "coef": 0.7},
        acts_on_fresh=False,
        neutral={"coef": 0.0},
        neutral_equals=without_clip,
    ),
}
