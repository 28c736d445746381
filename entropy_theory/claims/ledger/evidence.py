"""How judges are put together: a claim of several parts, and further measurements beside a verdict."""

from collections.abc import Callable
from dataclasses import replace

from entropy_theory.claims.claim import Context, Finding, Judge, Verdict
from entropy_theory.claims.ledger.common import Measured

_WORST_FIRST = (
    Verdict.REFUTED,
    Verdict.NOT_TESTABLE,
    Verdict.EMPIRICAL,
    Verdict.UNDER_ASSUMPTION,
    Verdict.HOLDS,
)


def all_of(*parts: Judge) -> Judge:
    """A judge for a claim that says several things: its verdict is the worst of theirs."""

    def judge(context: Context) -> Finding:
        findings = [part(context) for part in parts]
        worst = min(findings, key=lambda f: _WORST_FIRST.index(f.verdict))
        numbers = {name: value for f in findings for name, value in f.numbers.items()}
        return replace(worst, evidence=" ".join(f.evidence for f in findings), numbers=numbers)

    return judge


def also(judge: Judge, *measures: Callable[[Context], Measured | None]) -> Judge:
    """The same judge with further measurements in its evidence; they do not touch the verdict."""

    def further(context: Context) -> Finding:
        finding = judge(context)
        added = [measured for measure in measures if (measured := measure(context)) is not None]
        numbers = {name: value for m in added for name, value in m.numbers.items()}
        evidence = " ".join([finding.evidence, *(m.text for m in added)])
        return replace(finding, evidence=evidence, numbers={**finding.numbers, **numbers})

    return further


def remark(text: str) -> Callable[[Context], Measured]:
    """A sentence that is the same in every run."""
    return lambda context: Measured(text, {})
