"""Judges for identities: both sides with their rounding bounds, on every instance of every chosen place."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from entropy_theory.claims.claim import Context, Counterexample, Finding, Judge, Verdict
from entropy_theory.claims.shrink import shrunk
from entropy_theory.claims.statement import Comparison, Evidence, Statement, States
from entropy_theory.enclosure import Enclosed

Check = Callable[[States], Comparison]
Applies = Callable[[States], Tensor]
CHUNK = 1 << 19
"""Numbers compared at once, which bounds the memory beside the inputs."""

SNIPPET = """\
import torch
from entropy_theory.claims import States
from {module} import {name}
inf = float("inf")
states = States(
    logits=torch.tensor([{logits}], dtype=torch.float64),
    change=torch.tensor([{change}], dtype=torch.float64),
    advantage=torch.tensor([{advantage}], dtype=torch.float64),
    step_size={step_size},
)
comparison = {name}(states)
print("difference", comparison.error.item(), "bound", comparison.bound.item())
"""


def agree(left: Enclosed, right: Enclosed) -> Comparison:
    """Two ways to the same number: their difference against the sum of their rounding bounds."""
    bound = left.error + right.error
    return Comparison((left.value - right.value).abs(), bound, bound)


def at_most(left: Enclosed, right: Enclosed | float) -> Comparison:
    """left <= right: the excess against the sum of the rounding bounds."""
    excess = left - right
    return Comparison(excess.value.clamp(min=0), excess.error, excess.error)


def chunks(
    batches: list[States], actions: int = 1 << 62, share: float = 1.0, numbers: int | None = 1
) -> Iterator[States]:
    """Instances in pieces that a check can take at once.

    Args:
      actions: leave out instances with more; share: the part of each batch to take, from its start.
      numbers: how many a check makes of each logit, so that a piece holds at most CHUNK; None: one per action.
    """
    for states in batches:
        size = states.logits.shape[1]
        rows = max(1, CHUNK // (size * (size if numbers is None else numbers)))
        last = max(1, round(share * len(states.logits)))
        for start in range(0, last if size <= actions else 0, rows):
            yield states.rows(slice(start, min(start + rows, last)))


def every_row(states: States) -> Tensor:
    """All instances."""
    return torch.ones(len(states.logits), dtype=torch.bool)


def everywhere(
    check: Check,
    actions: int = 1 << 62,
    share: float = 1.0,
    what: str = "the rounding bound",
    applies: Applies = every_row,
    numbers: int | None = 1,
) -> Judge:
    """A judge that compares both sides on every instance of every chosen place.

    Args:
      check: a function at the top level of its module, so that a counterexample can import it.
      actions, share, numbers: as `chunks`.
      what: what the bound consists of, in words.
      applies: bool [n], the instances the check can judge.
    """

    def judge(context: Context) -> Finding:
        instances = violations = 0
        worst, smallest = 0.0, None
        for batches in context.places.values():
            for states in (s.rows(applies(s)) for s in chunks(batches, actions, share, numbers)):
                if len(states.logits) == 0:
                    continue
                ratio = check(states).ratio()
                instances += len(ratio)
                worst = max(worst, float(ratio.max()))
                violations += int((ratio > 1).sum())
                if ratio.max() > 1 and (smallest is None or states.logits.shape[1] < smallest.logits.shape[1]):
                    smallest = states.rows((ratio > 1).nonzero()[0])
        counted = {"instances": instances, "violations": violations, "worst_ratio": worst}
        if smallest is None:
            where = ", ".join(context.places)
            text = f"No violation on {instances:,} states ({where}); largest difference {worst:.2g} of {what}."
            return Finding(Verdict.HOLDS, text, counted)
        found = _described(check, applies, smallest)
        return Finding(
            Verdict.REFUTED, f"{violations:,} of {instances:,} states violate it. {found.text}.", counted, found
        )

    return judge


def _described(check: Check, applies: Applies, row: States) -> Counterexample:
    name = check.__name__
    statement = Statement(name, name, "", "", (), lambda states: Evidence(check(states)), applies)
    instance = shrunk(statement, row)
    first, actions = instance["first"], len(instance["logits"])
    text = f"Smallest one ({actions} actions): difference {first['error']:.3g}, bound {first['bound']:.3g}"
    return Counterexample(text, SNIPPET.format(module=check.__module__, **instance | {"name": name}))


def within(id: str, context: Context, ratio: float, text: str, numbers: dict[str, float]) -> Finding:
    """HOLDS if the largest difference is at most its bound (ratio <= 1), else REFUTED; `text` names both."""
    numbers = {"worst_ratio": ratio, **numbers}
    if ratio <= 1:
        return Finding(Verdict.HOLDS, text, numbers)
    context_code = f"claims.Context(claims.PROFILES[{context.profile.name!r}], {context.seed})"
    snippet = (
        f"from entropy_theory import claims\ncontext = {context_code}\n"
        f"print(claims.table(claims.judge(claims.select([{id!r}], context), context)))\n"
    )
    return Finding(Verdict.REFUTED, text, numbers, Counterexample(text, snippet))


def entrywise(comparison: Comparison) -> Comparison:
    """Of comparisons [n, entries], the entry of each row that is nearest to (or furthest beyond) its bound, [n]."""
    index = comparison.ratio().argmax(-1, keepdim=True)
    return Comparison(*(x.gather(-1, index)[:, 0] for x in comparison))


def worst(parts: list[Comparison]) -> Comparison:
    """Several comparisons of the same instances as one: the one nearest to (or furthest beyond) its bound."""
    ratios = torch.stack([p.ratio() for p in parts])
    index = ratios.argmax(0, keepdim=True)
    error, bound, rounding = (
        torch.stack([getattr(p, f) for p in parts]).gather(0, index)[0] for f in Comparison._fields
    )
    return Comparison(error, bound, rounding)
