"""How fast a prediction's error falls as the step shrinks: measured order of convergence."""

import math

import torch
from torch import Tensor

from entropy_theory import remainder
from entropy_theory.claims.statement import Comparison, Statement, States

START = 0.5
"""Spread of the change (of step_size times the advantage) at the first of the halvings, nats."""
HALVINGS = 8
FAR_ABOVE = 100
"""A point counts when its error exceeds this many times its rounding bound, so rounding moves it by at most 1 %."""
_POINTS = 3
_STATES, _ACTIONS = 192, 128
"""States taken for each number of actions, and the largest number of actions taken."""


def _normalised(states: States) -> States:
    """The same instances with change and advantage scaled to a spread of START and step size 1."""
    support = torch.isfinite(states.logits)

    def scaled(x: Tensor) -> Tensor:
        width = remainder.spread(x, support).unsqueeze(-1)
        return torch.where(support & (width > 0), START * x / width, 0.0)

    return States(states.logits, scaled(states.change), scaled(states.advantage))


def _by_actions(statement: Statement, batches: list[States]) -> list[States]:
    """Normalised states the statement applies to, one batch for each number of actions."""
    grouped: dict[int, list[States]] = {}
    for states in batches:
        if states.logits.shape[1] <= _ACTIONS:
            grouped.setdefault(states.logits.shape[1], []).append(_normalised(states.rows(slice(_STATES))))
    joined = []
    for parts in grouped.values():
        columns = zip(*((s.logits, s.change, s.advantage) for s in parts), strict=True)
        states = States(*(torch.cat(column)[:_STATES] for column in columns))
        joined.append(states.rows(statement.applies(states)))
    return joined


def _slopes(points: list[Comparison]) -> Tensor:
    """Least-squares slope of log error against log step over each row's last three points far above rounding."""
    error = torch.stack([p.error for p in points], -1)
    rounding = torch.stack([p.rounding for p in points], -1)
    far = (error > FAR_ABOVE * rounding).to(torch.int64).cumprod(-1).sum(-1)
    usable = far >= _POINTS
    error, last = error[usable], far[usable].unsqueeze(-1) - 1
    if len(error) == 0:
        return torch.empty(0, dtype=torch.float64)
    # equally spaced abscissae: the least-squares slope of three points is that of the outer two
    return (error.gather(-1, last - (_POINTS - 1)) / error.gather(-1, last)).log().squeeze(-1) / (
        (_POINTS - 1) * math.log(2)
    )


def orders(statement: Statement, batches: list[States]) -> tuple[Tensor, Tensor]:
    """Order after the first- and after the second-order prediction, one number per state where it can be measured.

    2 and 3 are expected wherever the second and third derivatives of the entropy along the step are not 0.
    """
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for states in _by_actions(statement, batches):
        evidence = [statement.check(states.shrunk(2.0**-k)) for k in range(HALVINGS)]
        found[0].append(_slopes([e.first for e in evidence]))
        if all(e.second is not None for e in evidence):
            found[1].append(_slopes([e.second for e in evidence]))
    empty = torch.empty(0, dtype=torch.float64)
    return torch.cat([*found[0], empty]), torch.cat([*found[1], empty])
