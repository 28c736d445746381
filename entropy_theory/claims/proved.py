"""The statements of the paper that have a proved bound, as claims about every instance of every place."""

from entropy_theory.claims.bounded import Result, judge_states
from entropy_theory.claims.claim import ANYWHERE, Claim, Context, Counterexample, Finding, Judge, Verdict
from entropy_theory.claims.lemma_1 import LEMMA_1
from entropy_theory.claims.proposition_1 import PROPOSITION_1
from entropy_theory.claims.statement import Statement
from entropy_theory.claims.theorem_1 import THEOREM_1
from entropy_theory.claims.theorem_2 import THEOREM_2

STATEMENTS = {s.id: s for s in (LEMMA_1, PROPOSITION_1, THEOREM_1, THEOREM_2)}


def over_places(statement: Statement) -> Judge:
    """A judge that runs the statement on every chosen place."""

    def judge(context: Context) -> Finding:
        total = sum(len(s.logits) for batches in context.places.values() for s in batches)
        results: list[Result] = []
        done = 0
        for where, batches in context.places.items():
            before = done

            def show(count: int, _: int, before: int = before):
                context.progress((before + count) / total)

            results.append(judge_states(statement, where, batches, show))
            done += sum(len(s.logits) for s in batches)
        return summed(statement, results)

    return judge


def summed(statement: Statement, results: list[Result]) -> Finding:
    """One finding from the results of all places."""
    instances, violations = sum(r.instances for r in results), sum(r.violations for r in results)
    worst = max(max(r.worst_ratio, r.worst_ratio_second or 0.0) for r in results)
    numbers = {"instances": instances, "violations": violations, "worst_ratio": worst}
    places = ", ".join(r.where for r in results)
    if not violations:
        text = f"No violation on {instances:,} states ({places}); largest error {worst:.2g} of the proved bound."
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
