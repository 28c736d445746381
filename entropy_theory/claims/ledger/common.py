"""What the ledger's claims share: their numbering, the stored results, comparisons with print, two rounding bounds."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from entropy_theory.claims.claim import Claim, Context, Counterexample, Finding, Judge, Verdict
from entropy_theory.claims.places import RANDOM
from entropy_theory.claims.published import Published
from entropy_theory.remainder import entropy_rounding, probability_rounding, unit_roundoff

Row = dict[str, str]
WORLD_NAMES = {"bandit": "bandit", "cartpole": "CartPole", "llm": "language model"}


def noted(
    note: str,
    number: int,
    statement: str,
    recorded: Verdict,
    judge: Judge,
    assumptions: tuple[str, ...] = (),
    places: tuple[str, ...] = (RANDOM,),
) -> Claim:
    """Claim `number` of study note `note` ("000" to "004"), with the id claim_NN."""
    source = f"study note {note}, claim {number}"
    return Claim(f"claim_{number:02d}", statement, source, recorded, judge, assumptions, places)


# --- stored results -----------------------------------------------------------------------------------------------


def rows(context: Context, name: str, **equal: str) -> list[Row]:
    """The rows of paper_figs/data/`name`.csv whose columns equal what is given; [] if the file is not at hand."""
    try:
        table = context.data(name)
    except ValueError:
        return []
    return [row for row in table if all(row[key] == value for key, value in equal.items())]


def column(table: Sequence[Row], name: str) -> list[float]:
    """One column as numbers; an empty cell is NaN."""
    return [float(row[name] or "nan") for row in table]


def with_interval(row: Row, name: str) -> str:
    """`value [low, high]` of a column that is stored with its 95 % interval."""
    value, low, high = (float(row[name + end]) for end in ("", "_low", "_high"))
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


class Measured(NamedTuple):
    """What an empirical claim's measurement says, in words and numbers."""

    text: str
    numbers: Mapping[str, float]


def empirical(measure: Callable[[Context], Measured | None], needed: str, figure: str | None = None) -> Judge:
    """A judge that reports a measurement; None from `measure` means that the data named by `needed` is missing."""

    def judge(context: Context) -> Finding:
        measured = measure(context)
        if measured is None:
            return Finding(Verdict.EMPIRICAL, f"Not measured in this check: it takes {needed}.")
        return Finding(Verdict.EMPIRICAL, measured.text, measured.numbers, figure=figure)

    return judge


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's coefficient, equal numbers sharing their mean rank; NaN if either is constant."""
    a, b = _ranks(x), _ranks(y)
    middle = (len(x) + 1) / 2
    across = math.fsum((i - middle) * (j - middle) for i, j in zip(a, b, strict=True))
    along = math.prod(math.fsum((i - middle) ** 2 for i in ranks) for ranks in (a, b))
    return across / math.sqrt(along) if along else math.nan


def _ranks(values: Sequence[float]) -> list[float]:
    """Rank from 1 of each value, equal ones at their mean."""
    first, count = {}, Counter(values)
    for position, value in enumerate(sorted(values), 1):
        first.setdefault(value, position)
    return [first[v] + (count[v] - 1) / 2 for v in values]


# --- print --------------------------------------------------------------------------------------------------------


def quoted(asserted: Mapping[str, Any], published: Published, remark: str = "") -> Judge:
    """A judge that compares what a claim asserts, by name, with what is in print; one difference refutes it."""

    def judge(context: Context) -> Finding:
        where = f"{published.paper}, {published.place}"
        wrong = {k: v for k, v in asserted.items() if published.values[k] != v}
        numbers = {k: float(v) for k, v in published.values.items() if isinstance(v, int | float)}
        if not wrong:
            return Finding(Verdict.HOLDS, f"As printed in {where}: {published.says}.{remark}", numbers)
        told = "; ".join(f"{k} is {published.values[k]!r}, the claim has {v!r}" for k, v in wrong.items())
        snippet = f"print({dict(published.values)!r})\nprint({wrong!r})\n"
        found = Counterexample(f"{where}: {told}", snippet)
        return Finding(Verdict.REFUTED, f"{found.text}.{remark}", numbers, found)

    return judge


# --- rounding -----------------------------------------------------------------------------------------------------


def entropy_change_rounding(before: Tensor, after: Tensor) -> Tensor:
    """Bound on the rounding of entropy(after) - entropy(before), [...], nats."""
    actions = before.shape[-1]
    return entropy_rounding(before) + entropy_rounding(after) + unit_roundoff(before.dtype) * math.log(actions)


def mean_rounding(logits: Tensor, values: Tensor) -> Tensor:
    """Bound on the rounding of sum_a pi_a values_a computed from the softmax of `logits`, [...]."""
    count = logits.shape[-1] * unit_roundoff(logits.dtype)
    largest = values.abs().amax(-1)
    return torch.expm1(probability_rounding(logits) + count) * largest + logits.shape[-1] * torch.finfo(
        logits.dtype
    ).tiny * (1 + largest)
