"""Run every statement on drawn instances and on the states of the worlds, and judge it against its bound."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from entropy_theory.claims.instances import drawn_advantage, drawn_change, generate
from entropy_theory.claims.lemma_1 import LEMMA_1
from entropy_theory.claims.order import orders
from entropy_theory.claims.proposition_1 import PROPOSITION_1
from entropy_theory.claims.statement import Comparison, Evidence, Statement, States
from entropy_theory.claims.theorem_1 import THEOREM_1
from entropy_theory.claims.theorem_2 import THEOREM_2

STATEMENTS = (LEMMA_1, PROPOSITION_1, THEOREM_1, THEOREM_2)
INSTANCES = 20_000
"""Default number of drawn instances."""
RANDOM = "random"
_CHUNK = 1 << 19
"""Logits checked at once, which bounds the memory beside the inputs."""

Progress = Callable[[int, int], None]


class WorldStates(NamedTuple):
    """States of a world, n of them with the same number of actions.

    logits:    [n, actions]; -inf masks an action
    change:    [n, actions], logits after minus before, nats; None draws one
    advantage: [n, actions], reward units; None draws one
    """

    logits: Tensor
    change: Tensor | None = None
    advantage: Tensor | None = None


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


def check(
    instances: int = INSTANCES,
    seed: int = 0,
    world_states: Mapping[str, WorldStates] | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Judge every statement on `instances` drawn instances and on every world's states.

    Args:
      instances: at least 1; seed: any integer.
      world_states: by name of the world; what a world does not give is drawn from the seed.
      progress: called with (done, total) in pairs of statement and instance.
    Raises: ValueError for fewer than one instance and for states that are no policies.
    """
    if instances < 1:
        raise ValueError(f"instances must be at least 1, got {instances}")
    places = {RANDOM: generate(instances, seed)}
    for name, states in (world_states or {}).items():
        places[name] = [_validated(name, states, seed)]
    done, total = 0, len(STATEMENTS) * sum(len(s.logits) for batches in places.values() for s in batches)
    results = []
    for statement in STATEMENTS:
        for where, batches in places.items():
            tally = _Tally(statement, where)
            for states in _chunks(batches):
                tally.add(states)
                done += len(states.logits)
                if progress is not None:
                    progress(done, total)
            results.append(tally.result(batches))
    return results


def _validated(name: str, states: WorldStates, seed: int) -> States:
    """Float64 states with everything present; one sentence for what is wrong with them."""
    states = WorldStates(*states)
    logits = states.logits.detach().double().cpu()
    if logits.ndim != 2 or logits.numel() == 0:
        raise ValueError(f"{name}: logits must have shape [states, actions] and not be empty, got {list(logits.shape)}")
    if logits.shape[1] < 2:
        raise ValueError(f"{name}: a policy needs at least 2 actions, got {logits.shape[1]}")
    if torch.isnan(logits).any() or (logits == torch.inf).any():
        raise ValueError(f"{name}: logits must be finite or -inf, got {_first_bad(logits, torch.inf)}")
    support = torch.isfinite(logits)
    if not support.any(-1).all():
        raise ValueError(f"{name}: state {int((~support.any(-1)).nonzero()[0])} has no action with a finite logit")

    def present(label: str, given: Tensor | None, draw: Callable[[Tensor, int], Tensor]) -> Tensor:
        values = draw(logits, seed) if given is None else given.detach().double().cpu()
        if values.shape != logits.shape:
            raise ValueError(f"{name}: {label} has shape {list(values.shape)}, its logits {list(logits.shape)}")
        values = values.masked_fill(~support, 0.0)
        if not torch.isfinite(values).all():
            raise ValueError(f"{name}: {label} must be finite where the logits are, got {_first_bad(values)}")
        return values

    return States(
        logits,
        present("change", states.change, drawn_change),
        present("advantage", states.advantage, drawn_advantage),
    )


def _first_bad(values: Tensor, *allowed_signs: float) -> str:
    """Where the first NaN or infinity stands; with `torch.inf` given only +inf is bad."""
    bad = torch.isnan(values) | ((values == torch.inf) if allowed_signs else torch.isinf(values))
    state, action = bad.nonzero()[0].tolist()
    return f"{values[state, action].item()} at state {state}, action {action}"


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
        violated = torch.zeros(len(states.logits), dtype=torch.bool)
        for form, comparison in _forms(evidence):
            ratio = comparison.ratio()
            self.worst[form] = max(self.worst.get(form, 0.0), float(ratio.max()))
            violated |= ratio > 1
        self.violations += int(violated.sum())
        if violated.any() and self._smaller(states):
            self.counterexample = _plain_instance(states, evidence, int(violated.nonzero()[0]))

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


def _forms(evidence: Evidence) -> list[tuple[str, Comparison]]:
    return [(form, c) for form, c in zip(evidence._fields, evidence, strict=True) if c is not None]


def _median(values: Tensor) -> float | None:
    return float(values.quantile(0.5)) if len(values) else None


def _plain_instance(states: States, evidence: Evidence, row: int) -> dict[str, Any]:
    """Everything needed to rebuild a violated instance, as lists and numbers."""
    found = {
        "logits": states.logits[row].tolist(),
        "change": states.change[row].tolist(),
        "advantage": states.advantage[row].tolist(),
        "step_size": states.step_size,
    }
    for form, comparison in _forms(evidence):
        found[form] = {"error": float(comparison.error[row]), "bound": float(comparison.bound[row])}
    return found


def holds(results: list[Result]) -> bool:
    """Whether every statement holds everywhere."""
    return all(result.verdict == "holds" for result in results)


def to_json(results: list[Result]) -> str:
    """Statements and results as JSON; numbers JSON lacks are strings that float() reads ("-inf")."""
    statements = [
        {"name": s.name, "formula": s.formula, "source": s.source, "assumptions": list(s.assumptions)}
        for s in STATEMENTS
    ]
    document = {"holds": holds(results), "statements": statements, "results": [asdict(r) for r in results]}
    return json.dumps(_finite(document), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


HEADER = ["statement", "states from", "instances", "worst/bound", "2nd order", "slope", "2nd", "verdict"]


def table_cells(document: Mapping[str, Any]) -> list[list[str]]:
    """The parsed JSON of `to_json` as cells of text: a header, then one line per statement and place."""
    lines = [HEADER]
    for r in document["results"]:
        ratios = [_short(r["worst_ratio"]), _short(r["worst_ratio_second"])]
        slopes = [_slope(r["order"]), _slope(r["order_second"])]
        lines.append([r["statement"], r["where"], f"{r['instances']:,}", *ratios, *slopes, r["verdict"]])
    return lines


def table(results: list[Result]) -> str:
    """The results as text: one line per statement and place, then the counterexamples."""
    rows = table_cells(json.loads(to_json(results)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = ["  ".join(_align(cell, widths[i], i) for i, cell in enumerate(row)).rstrip() for row in rows]
    for r in results:
        if r.counterexample is not None:
            lines.append(f"{r.statement} ({r.where}), smallest of {r.violations:,} violations: {r.counterexample}")
    return "\n".join(lines)


def _align(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if 2 <= column <= 6 else cell.ljust(width)


def _short(value: float | str | None) -> str:
    return "-" if value is None else f"{float(value):.2g}"


def _slope(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
