"""Claims 10 and 15: what Clip-Cov and KL-Cov do in comparison, in print and in the stored runs."""

import math
from itertools import pairwise
from statistics import fmean

from entropy_theory.claims.claim import Context, Counterexample, Finding, Verdict
from entropy_theory.claims.ledger.common import WORLD_NAMES, Measured, column, empirical, noted, rows
from entropy_theory.claims.ledger.evidence import also
from entropy_theory.claims.published import ENTROPY_MECHANISM, TABLE_2

NOTE = "000"

# --- 10: smoothness -----------------------------------------------------------------------------------------------


def roughness(curve: list[float]) -> float:
    """Root mean square second difference of the logarithm."""
    logs = [math.log(x) for x in curve]
    bends = [a - 2 * b + c for a, b, c in zip(logs, logs[1:], logs[2:], strict=False)]
    return math.sqrt(fmean(x * x for x in bends))


def _smoothness(context: Context) -> Measured | None:
    told, numbers = [], {}
    for world, name in WORLD_NAMES.items():
        curves = [column(rows(context, "curves", world=world, control=c), "entropy") for c in ("clip_cov", "kl_cov")]
        if not all(curves):
            continue
        whole, late = ([roughness(c[start * len(c) // 2 :]) for c in curves] for start in (0, 1))
        numbers[f"ratio_{world}"], numbers[f"late_ratio_{world}"] = whole[1] / whole[0], late[1] / late[0]
        told.append(f"{name} {whole[1] / whole[0]:.2f} over the run, {late[1] / late[0]:.2f} over its second half")
    if not told:
        return None
    return Measured(
        f"The paper's {ENTROPY_MECHANISM['smoothness'].place} shows the smoother curves for KL-Cov. Roughness of the "
        "mean entropy curve here (root mean square second difference of its logarithm), KL-Cov's over Clip-Cov's: "
        f"{'; '.join(told)}. What breaks a natural evolution is not defined.",
        numbers,
    )


# --- 15: the expected ranking -------------------------------------------------------------------------------------

EXPECTED_ORDER = ("GRPO", "Clip-Cov", "KL-Cov")
"""Worst to best, as the claim expects it."""


def _increasing(values: list[float]) -> bool:
    return all(a < b for a, b in pairwise(values))


def _ranking(context: Context) -> Finding:
    """The expected order by the averages as printed, and by the plain mean of the printed accuracies."""
    printed = {size: [table[m][1] for m in EXPECTED_ORDER] for size, table in TABLE_2.items()}
    plain = {size: [round(fmean(table[m][0]), 1) for m in EXPECTED_ORDER] for size, table in TABLE_2.items()}
    wrong = {size: means for size, means in plain.items() if not _increasing(means)}
    order = ", ".join(EXPECTED_ORDER)
    by_print = "; ".join(f"{size} {', '.join(map(str, means))}" for size, means in printed.items())
    numbers = {
        f"plain_{m}_{size}": x for size, means in plain.items() for m, x in zip(EXPECTED_ORDER, means, strict=True)
    }
    if not all(map(_increasing, printed.values())):
        return Finding(Verdict.REFUTED, f"Printed averages of {order}: {by_print}.", numbers)
    if not wrong:
        return Finding(Verdict.HOLDS, f"Printed averages and plain means of {order} rise: {by_print}.", numbers)
    size, means = next(iter(wrong.items()))
    text = f"plain means of the {size} model's seven benchmarks for {order}: {', '.join(map(str, means))}"
    snippet = (
        "from entropy_theory.claims.published import TABLE_2\n"
        f"print({{m: (sum(a) / len(a), printed) for m, (a, printed) in TABLE_2[{size!r}].items()}})\n"
    )
    evidence = f"The averages printed in Table 2 rise for {order}: {by_print}. Without that average: {text}."
    return Finding(Verdict.UNDER_ASSUMPTION, evidence, numbers, Counterexample(text, snippet))


def _ranking_here(context: Context) -> Measured | None:
    told, numbers = [], {}
    for world, name in WORLD_NAMES.items():
        lines = [rows(context, "final", world=world, control=c) for c in ("none", "clip_cov", "kl_cov")]
        if all(lines):
            returns, entropies = (column([x[0] for x in lines], c) for c in ("return_final", "entropy_final"))
            numbers |= {f"kl_minus_clip_{world}": returns[2] - returns[1]}
            told.append(f"{name} return {_three(returns)}, entropy {_three(entropies)}")
    return Measured(f"Here, none, Clip-Cov, KL-Cov: {'; '.join(told)}.", numbers) if told else None


def _three(values: list[float]) -> str:
    return ", ".join(f"{x:.3g}" for x in values)


RESULT_CLAIMS = (
    noted(
        NOTE,
        10,
        "Clip-Cov's hard cut breaks the natural evolution of entropy, KL-Cov keeps it smooth.",
        Verdict.EMPIRICAL,
        empirical(_smoothness, "entropy curves of both controls (curves.csv)", "fig01_entropy_and_return.png"),
    ),
    noted(
        NOTE,
        15,
        "No control gives low accuracy and diversity, Clip-Cov medium, KL-Cov high.",
        Verdict.UNDER_ASSUMPTION,
        also(_ranking, _ranking_here),
        ("accuracy is the average printed in Table 2",),
    ),
)
