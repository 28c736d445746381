"""The statements of the paper that have a proved bound, as claims about every instance of every place."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from entropy_theory.claims.bounded import Progress, Result, judge_states
from entropy_theory.claims.certified import certified
from entropy_theory.claims.claim import ANYWHERE, Claim, Context, Counterexample, Finding, Judge, Verdict
from entropy_theory.claims.lemma_1 import LEMMA_1
from entropy_theory.claims.places import WorldStates, place_states
from entropy_theory.claims.proposition_1 import PROPOSITION_1
from entropy_theory.claims.statement import Statement, States
from entropy_theory.claims.theorem_1 import THEOREM_1
from entropy_theory.claims.theorem_2 import THEOREM_2

STATEMENTS = {s.id: s for s in (LEMMA_1, PROPOSITION_1, THEOREM_1, THEOREM_2)}


INSTANCES = 20_000
"""Default number of drawn instances."""


def check(
    instances: int = INSTANCES,
    seed: int = 0,
    world_states: Mapping[str, WorldStates] | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Judge the four statements on `instances` drawn instances and on every world's states.

    Args:
      instances: at least 0; seed: any integer.
      world_states: by name; what a world does not give is drawn from the seed.
      progress: called with (done, total) in pairs of statement and instance.
    Returns: one result per statement and place, statements in the order of STATEMENTS.
    Raises: ValueError for a negative number of instances, for nothing to judge, and for states that are no policies.
    """
    places = place_states(instances, seed, world_states)
    if not places:
        raise ValueError("there is nothing to judge: give instances or states")
    each = _size(places)
    results = []
    for index, statement in enumerate(STATEMENTS.values()):

        def show(done: int, start: int = index * each):
            if progress is not None:
                progress(start + done, len(STATEMENTS) * each)

        results += _everywhere(statement, places, show)
    return results


def holds(results: list[Result]) -> bool:
    """Whether every statement holds everywhere."""
    return all(result.verdict == "holds" for result in results)


def _size(places: Mapping[str, list[States]]) -> int:
    return sum(len(s.logits) for batches in places.values() for s in batches)


def _everywhere(
    statement: Statement, places: Mapping[str, list[States]], progress: Callable[[int], None]
) -> list[Result]:
    """One statement at every place; progress is called with the number of instances done."""
    results, done = [], 0
    for where, batches in places.items():
        results.append(judge_states(statement, where, batches, lambda count, _, done=done: progress(done + count)))
        done += _size({where: batches})
    return results


def over_places(statement: Statement) -> Judge:
    """A judge that runs the statement on every chosen place."""

    def judge(context: Context) -> Finding:
        total = _size(context.places)
        found = summed(_everywhere(statement, context.places, lambda done: context.progress(done / total)))
        if not context.certified:
            return found
        return replace(found, evidence=f"{found.evidence} {certified(statement, context)}")

    return judge


def summed(results: list[Result]) -> Finding:
    """One finding from the results of all places."""
    instances, violations = sum(r.instances for r in results), sum(r.violations for r in results)
    worst = max(max(r.worst_ratio, r.worst_ratio_second or 0.0) for r in results)
    numbers = {"instances": instances, "violations": violations, "worst_ratio": worst}
    places = ", ".join(r.where for r in results)
    if not violations:
        text = f"No violation on {instances:,} states ({places}); largest error {worst:.4f} of the proved bound."
        return Finding(Verdict.HOLDS, text, numbers, results=tuple(results))
    smallest = min((r for r in results if r.counterexample), key=lambda r: len(r.counterexample["logits"]))
    found = _described(smallest)
    text = f"{violations:,} of {instances:,} states violate the bound. {found.text}."
    return Finding(Verdict.REFUTED, text, numbers, found, tuple(results))


def _described(result: Result) -> Counterexample:
    instance = result.counterexample
    sides = "; ".join(
        f"{form} order misses by {instance[form]['error']:.3g}, bound {instance[form]['bound']:.3g}"
        for form in ("first", "second")
        if form in instance
    )
    actions = len(instance["logits"])
    return Counterexample(f"Smallest one ({result.where}, {actions} actions): {sides}", instance["snippet"])


PROVED = tuple(
    Claim(
        id=s.id,
        statement=s.formula,
        source=s.source,
        recorded=Verdict.HOLDS,
        judge=over_places(s),
        assumptions=s.assumptions,
        places=ANYWHERE,
    )
    for s in STATEMENTS.values()
)
