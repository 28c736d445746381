"""Claims 32 to 49. Here: the law R = -a exp(H) + b, and what is quoted from the paper."""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from entropy_theory.claims.claim import Context, Counterexample, Finding, Verdict
from entropy_theory.claims.ledger.common import WORLD_NAMES, Measured, column, noted, quoted, rows
from entropy_theory.claims.ledger.evidence import also, remark
from entropy_theory.claims.ledger.note_002_methods import METHODS_002
from entropy_theory.claims.ledger.note_002_runs import RUNS_002
from entropy_theory.claims.ledger.note_002_theory import THEORY_002
from entropy_theory.claims.published import CUI_RUNS
from entropy_theory.claims.search import by_search
from entropy_theory.remainder import unit_roundoff

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

U = unit_roundoff(torch.float64)


class Law(NamedTuple):
    """R = -a exp(H) + b at an entropy H >= 0 and at H + step; all in tenths, `step` in hundredths."""

    a: int
    b: int
    entropy: int
    step: int

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """a, b, H in nats, step in nats."""
        return self.a / 10, self.b / 10, self.entropy / 10, self.step / 100


def reward(a: float, b: float, entropy: float) -> float:
    """R = -a exp(H) + b."""
    return -a * math.exp(entropy) + b


def reward_rounding(a: float, b: float, entropy: float) -> float:
    """Bound on the rounding of `reward`: exp to 8 u, a product, a sum."""
    size = abs(a) * math.exp(entropy)
    return math.expm1(10 * U) * size + 2 * U * (size + abs(b))


def laws(lowest: int) -> "SearchStrategy[Law]":
    """Laws with a >= `lowest` tenths."""
    from hypothesis import strategies as st

    return st.builds(Law, st.integers(lowest, 20), st.integers(-20, 20), st.integers(0, 30), st.integers(1, 100))


def _no_ceiling(law: Law) -> bool:
    """R(0) is not b - a, or some entropy gives more than R(0)."""
    a, b, h, _ = law.numbers
    at_zero = reward(a, b, 0.0)
    rounding = reward_rounding(a, b, 0.0) + reward_rounding(a, b, h)
    return abs(at_zero - (b - a)) > rounding or reward(a, b, h) > at_zero + rounding


def _above(law: Law) -> Counterexample:
    a, b, h, _ = law.numbers
    return Counterexample(
        f"a = {a}, b = {b}: R is {reward(a, b, 0.0):.4g} at H = 0 (b - a = {b - a:.4g}) and {reward(a, b, h):.4g} at "
        f"H = {h}",
        f"from math import exp\na, b = {a}, {b}\nprint(-a * exp(0.0) + b, b - a, -a * exp({h}) + b)\n",
    )


def _not_the_rate(law: Law) -> bool:
    r"""The slope in H is not -a exp(H), the slope in exp(H) not -a, or R(H) is above b - a.

    By Taylor |R(H + s) - R(H) + a exp(H) s| <= a exp(H + s) s^2 / 2 for s >= 0. Rounding: that of the two rewards and
    of their difference, and up to 12 u for the other term (exp to 8 u, three operations).
    """
    a, b, h, s = law.numbers
    after = h + s
    s = after - h
    low, high = a * math.exp(h), a * math.exp(after)
    change = reward(a, b, after) - reward(a, b, h)
    rounding = reward_rounding(a, b, h) + reward_rounding(a, b, after) + 2 * U * abs(change)
    other = math.expm1(12 * U)
    in_entropy = abs(change + low * s) > high * s * s / 2 * (1 + other) + rounding + other * (low * s + high)
    in_exponential = abs(change + (high - low)) > rounding + other * (low + high)
    return in_entropy or in_exponential or reward(a, b, h) > b - a + rounding


def _slopes(law: Law) -> Counterexample:
    a, b, h, s = law.numbers
    slope = (reward(a, b, h + s) - reward(a, b, h)) / s
    return Counterexample(
        f"a = {a}, b = {b}, H = {h}, step {s}: slope {slope:.6g}, -a exp(H) = {-a * math.exp(h):.6g}",
        f"from math import exp\na, b, h, s = {law.numbers}\nprint(-a * (exp(h + s) - exp(h)) / s, -a * exp(h))\n",
    )


def _ceilings(context: Context) -> Measured | None:
    """b - a of the fits stored here, beside the return the runs ended at."""
    fits = rows(context, "fit")
    if not fits:
        return None
    parts = []
    for fit in fits:
        final = rows(context, "final", world=fit["world"], control="none")
        reached = f" (runs end at {float(final[0]['return_final']):.3g})" if final else ""
        parts.append(
            f"{WORLD_NAMES[fit['world']]} a = {float(fit['a']):.3g}, b - a = {float(fit['ceiling']):.3g}{reached}"
        )
    return Measured(
        f"Fitted here: {'; '.join(parts)}. A ceiling above what can be reached is an extrapolation, not a limit.",
        {f"ceiling {fit['world']}": float(fit["ceiling"]) for fit in fits},
    )


def _consumption(context: Context) -> Measured | None:
    """Shares of the entropy loss and of the gain at 1/12 and 1/3 of the runs without control."""
    parts, numbers = [], {}
    for world, name in WORLD_NAMES.items():
        table = rows(context, "curves", world=world, control="none")
        if not table:
            continue
        steps, entropy, gain = (column(table, c) for c in ("step", "entropy", "return"))
        shares = []
        for part in (12, 3):
            at = max(i for i, s in enumerate(steps) if s <= max(steps[-1] / part, steps[0]))
            lost, won = ((v[0] - v[at]) / (v[0] - v[-1]) for v in (entropy, gain))
            shares.append(f"{lost:.0%} and {won:.0%} after 1/{part}")
            numbers |= {f"{world} entropy lost at 1/{part}": lost, f"{world} gain at 1/{part}": won}
        parts.append(f"{name} {', '.join(shares)}")
    return Measured(f"Entropy lost and gain made here: {'; '.join(parts)} of the steps.", numbers) if parts else None


def _within(context: Context) -> Finding:
    """Compare the printed errors with 2 %."""
    printed = CUI_RUNS["extrapolation"]
    errors = {name: printed.values[name] for name in ("math", "code", "math, final", "code, final")}
    told = f"{printed.paper}, {printed.place}: {printed.values['steps fitted']} steps; errors in % {errors}"
    if printed.values["steps fitted"] == 36 and max(errors.values()) <= 2:
        return Finding(Verdict.HOLDS, f"As printed in {told}.", errors)
    found = Counterexample(told, f"print({dict(printed.values)!r})\n")
    return Finding(Verdict.REFUTED, f"{told}.", errors, found)


def _extrapolated(context: Context) -> Measured | None:
    """The law fitted to the first 15 % of each stored run, and its error on the rest."""
    parts, numbers = [], {}
    for world, name in WORLD_NAMES.items():
        table, errors = rows(context, "fit_points", world=world), []
        for seed in sorted({row["seed"] for row in table}):
            run = [row for row in table if row["seed"] == seed]
            errors.append(_prediction_error(column(run, "entropy"), column(run, "return")))
        if errors:
            numbers[f"{world} error of prediction"] = mean = sum(errors) / len(errors)
            parts.append(f"{name} {mean:.3g}")
    if not parts:
        return None
    return Measured(
        f"Here the law, fitted to the first 15 % of a run, misses the rest by (root mean square, share of the run's "
        f"range of return): {', '.join(parts)}.",
        numbers,
    )


def _prediction_error(entropy: list[float], gain: list[float]) -> float:
    """Root mean square error on the last 85 % of the points of a fit to the first 15 %, over the range of return."""
    x, first = [math.exp(h) for h in entropy], max(3, round(0.15 * len(entropy)))
    mean_x, mean_r = math.fsum(x[:first]) / first, math.fsum(gain[:first]) / first
    slope = math.fsum((u - mean_x) * (r - mean_r) for u, r in zip(x[:first], gain[:first], strict=True)) / math.fsum(
        (u - mean_x) ** 2 for u in x[:first]
    )
    misses = [r - mean_r - slope * (u - mean_x) for u, r in zip(x[first:], gain[first:], strict=True)]
    return math.sqrt(math.fsum(m * m for m in misses) / len(misses)) / (max(gain) - min(gain))


QUOTED_002 = (
    noted(
        "002",
        33,
        "At H = 0 the law R = -a exp(H) + b gives b - a, and that is its ceiling.",
        Verdict.UNDER_ASSUMPTION,
        also(
            by_search(lambda: laws(-20), _no_ceiling, _above, lambda: laws(1), "a > 0"),
            remark("R(0) = b - a itself needs no assumption."),
            _ceilings,
        ),
        ("a > 0",),
    ),
    noted(
        "002",
        34,
        "200 of 2,400 steps take 73 % of the entropy and give 76 % of the gain; 800 steps take 93 % of the entropy and "
        "give 94 % of the gain.",
        Verdict.REFUTED,
        also(
            quoted(
                {
                    "% of entropy in 200 steps": 73,
                    "% of gain in 200 steps": 76,
                    "% of entropy in 800 steps": 93,
                    "% of gain in 800 steps": 94,
                },
                CUI_RUNS["consumption"],
                " The pair for 200 steps is right, that for 800 is swapped.",
            ),
            _consumption,
        ),
    ),
    noted(
        "002",
        35,
        "The first 36 steps suffice to predict the rest within 2 % (root mean square).",
        Verdict.HOLDS,
        also(_within, remark("Reported for Qwen2.5 models only."), _extrapolated),
    ),
    noted(
        "002",
        37,
        "With a > 0, b - a bounds the law from above, dR/dH = -a exp(H), and a is the reward paid per unit of exp(H).",
        Verdict.HOLDS,
        by_search(lambda: laws(1), _not_the_rate, _slopes),
        ("a > 0",),
    ),
    noted(
        "002",
        49,
        "The runs take batch 256, micro-batch 128, 8 responses per prompt, learning rate 5e-7 and clip 0.2.",
        Verdict.HOLDS,
        quoted(
            {"batch": 256, "micro-batch": 128, "responses per prompt": 8, "learning rate": 5e-7, "clip": 0.2},
            CUI_RUNS["settings of the fits"],
            " Left out: 512 prompts per rollout; and the runs with controls (section 4.3) take 256 prompts and 8 "
            "updates per rollout.",
        ),
    ),
)
"""Claims 33, 34, 35, 37 and 49."""

NOTE_002 = tuple(sorted((*QUOTED_002, *THEORY_002, *METHODS_002, *RUNS_002), key=lambda claim: claim.id))
"""Claims 32 to 49."""
