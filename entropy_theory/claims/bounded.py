"""Statements with a proved bound, tallied over the instances of one place."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from entropy_theory.claims.order import orders
from entropy_theory.claims.shrink import shrunk
from entropy_theory.claims.statement import Statement, States

_CHUNK = 1 << 19
"""Logits checked at once, which bounds the memory beside the inputs."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Result:
    """One statement on the states of one place.

    statement:            its name
    where:                "random" or the name of the world
    instances:            how many were judged
    worst_ratio:          largest |measured - predicted| / proved bound of the statement's own prediction
    worst_ratio_second:   the same for its second-order form; None if it has none
    order, order_second:  median order of convergence over the states where it can be measured; None if nowhere
    order_states, order_second_states: how many states that median is over
    verdict:              "holds" or "refuted"
    violations:           number of instances above a bound
    counterexample:       the smallest violated instance as plain data, None if there is none
    """

    statement: str
    where: str
    instances: int
    worst_ratio: float
    worst_ratio_second: float | None
    order: float | None
    order_states: int
    order_second: float | None
    order_second_states: int
    verdict: str
    violations: int
    counterexample: dict[str, Any] | None


def judge_states(statement: Statement, where: str, batches: list[States], progress: Progress | None = None) -> Result:
    """One statement on all instances of one place.

    Args:
      progress: called with the number of instances done so far and their total.
    """
    tally, total = _Tally(statement, where), sum(len(s.logits) for s in batches)
    done = 0
    for states in _chunks(batches):
        tally.add(states)
        done += len(states.logits)
        if progress is not None:
            progress(done, total)
    return tally.result(batches)


def _chunks(batches: list[States]) -> Iterable[States]:
    for states in batches:
        rows = max(1, _CHUNK // states.logits.shape[1])
        for start in range(0, len(states.logits), rows):
            yield states.rows(slice(start, start + rows))


class _Tally:
    """Worst ratios and the smallest violation of one statement at one place, chunk by chunk."""

    def __init__(self, statement: Statement, where: str):
        self.statement, self.where = statement, where
        self.instances = self.violations = 0
        self.worst: dict[str, float] = {}
        self.counterexample: dict[str, Any] | None = None

    def add(self, states: States) -> None:
        states = states.rows(self.statement.applies(states))
        if len(states.logits) == 0:
            return
        evidence = self.statement.check(states)
        self.instances += len(states.logits)
        violated = evidence.violated()
        for form, comparison in evidence.forms():
            self.worst[form] = max(self.worst.get(form, 0.0), float(comparison.ratio().max()))
        self.violations += int(violated.sum())
        if violated.any() and self._smaller(states):
            first = violated.nonzero()[0]
            self.counterexample = shrunk(self.statement, states.rows(first))

    def _smaller(self, states: States) -> bool:
        return self.counterexample is None or states.logits.shape[1] < len(self.counterexample["logits"])

    def result(self, batches: list[States]) -> Result:
        first, second = orders(self.statement, batches)
        return Result(
            statement=self.statement.name,
            where=self.where,
            instances=self.instances,
            worst_ratio=self.worst.get("first", 0.0),
            worst_ratio_second=self.worst.get("second"),
            order=_median(first),
            order_states=len(first),
            order_second=_median(second),
            order_second_states=len(second),
            verdict="refuted" if self.violations else "holds",
            violations=self.violations,
            counterexample=self.counterexample,
        )


def _median(values: Tensor) -> float | None:
    return float(values.quantile(0.5)) if len(values) else None
