"""A violated instance of a bounded statement, made as small as it stays violated, and the code that rebuilds it."""

from collections.abc import Iterator
from typing import Any

import torch

from entropy_theory.claims.statement import Statement, States

SNIPPET = """\
import torch
from entropy_theory.claims import STATEMENTS, States
inf = float("inf")
states = States(
    logits=torch.tensor([{logits}], dtype=torch.float64),
    change=torch.tensor([{change}], dtype=torch.float64),
    advantage=torch.tensor([{advantage}], dtype=torch.float64),
    step_size={step_size},
)
for form, comparison in STATEMENTS["{id}"].check(states).forms():
    print(form, "order: error", comparison.error.item(), "bound", comparison.bound.item())
"""


def shrunk(statement: Statement, states: States) -> dict[str, Any]:
    """The smallest violated instance reached from one violated row, as plain data with its errors, bounds and code.

    Greedy: the first smaller instance that still violates is taken until there is none. Smaller means fewer
    actions, then numbers of fewer digits.
    """
    found = True
    while found:
        found = False
        for candidate in _smaller(states):
            if _violates(statement, candidate):
                states, found = candidate, True
                break
    instance: dict[str, Any] = {
        "logits": states.logits[0].tolist(),
        "change": states.change[0].tolist(),
        "advantage": states.advantage[0].tolist(),
        "step_size": states.step_size,
    }
    for form, comparison in statement.check(states).forms():
        instance[form] = {"error": float(comparison.error[0]), "bound": float(comparison.bound[0])}
    return instance | {"snippet": SNIPPET.format(id=statement.id, **instance)}


def _violates(statement: Statement, states: States) -> bool:
    applies = bool(torch.isfinite(states.logits).any()) and bool(statement.applies(states)[0])
    return applies and bool(statement.check(states).violated()[0])


def _smaller(states: States) -> Iterator[States]:
    """One instance with half of the actions, then each with one action fewer, then rounded and zeroed numbers."""
    actions = states.logits.shape[1]
    columns = torch.arange(actions)
    if actions > 3:
        for half in columns.chunk(2):
            yield _columns(states, half)
    if 2 < actions <= 64:
        for action in range(actions):
            yield _columns(states, columns[columns != action])
    for digits in range(1, 5):
        for name in ("advantage", "change", "logits"):
            if not torch.equal(rounded := _rounded(getattr(states, name), digits), getattr(states, name)):
                yield _replaced(states, **{name: rounded})
    for name in ("advantage", "change"):
        for action in getattr(states, name)[0].nonzero().flatten().tolist() if actions <= 64 else ():
            zeroed = getattr(states, name).clone()
            zeroed[0, action] = 0.0
            yield _replaced(states, **{name: zeroed})


def _rounded(values: torch.Tensor, digits: int) -> torch.Tensor:
    """To significant digits: the size of a change matters to the bound, its digits do not."""
    return torch.tensor([[float(f"{v:.{digits}g}") for v in values[0].tolist()]], dtype=values.dtype)


def _columns(states: States, kept: torch.Tensor) -> States:
    return States(states.logits[:, kept], states.change[:, kept], states.advantage[:, kept], states.step_size)


def _replaced(states: States, **parts: torch.Tensor) -> States:
    whole = {"logits": states.logits, "change": states.change, "advantage": states.advantage} | parts
    return States(**whole, step_size=states.step_size)
