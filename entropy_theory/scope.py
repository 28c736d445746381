"""The tokens over which a control takes its statistics: the whole minibatch, or each micro-batch by itself."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

import torch

from entropy_theory.control import State
from entropy_theory.records import Batch, Objective, map_pairs

Scope = Literal["minibatch", "microbatch"]

Edit = Callable[[Objective, Batch, State], Objective]


def scoped(name: str, scope: Scope, edit: Edit) -> Edit:
    """The edit as it is, or the one that edits each micro-batch as if it were the minibatch.

    Published trainers call their losses once per micro-batch, so what they select depends on how the minibatch is
    split; "microbatch" reproduces that.

    Args:
      name: of the control, for the error.
    Raises: ValueError if there is no such scope.
    """
    if scope not in get_args(Scope):
        raise ValueError(f"{name}.scope must be one of {', '.join(get_args(Scope))}, got {scope!r}")
    return edit if scope == "minibatch" else _by_micro_batch(edit)


def _by_micro_batch(edit: Edit) -> Edit:
    def edit_each(objective, batch, state):
        if batch.micro_batch is None:
            return edit(objective, batch, state)
        found = None
        for number in range(int(batch.micro_batch.max()) + 1):
            inside = (batch.micro_batch == number).unsqueeze(-1)
            part = edit(replace(objective, mask=objective.mask & inside), batch, state)
            found = part if found is None else map_pairs(part, found, _choose(inside))
        return found

    return edit_each


def _choose(inside):
    return lambda part, others: torch.where(inside, part, others)
