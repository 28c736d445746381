"""Claims 11, 12 and 14: chaos. What of them can be computed is computed; the rest has no formal content."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from entropy_theory import theorems
from entropy_theory.claims.claim import Context, Counterexample, Finding, Verdict
from entropy_theory.claims.ledger.common import WORLD_NAMES, Measured, column, noted, rows
from entropy_theory.claims.ledger.evidence import also
from entropy_theory.claims.places import RANDOM
from entropy_theory.claims.published import ENTROPY_MECHANISM
from entropy_theory.claims.search import by_search, smallest
from entropy_theory.claims.small import Problem, problems
from entropy_theory.lyapunov import BLOCKS, lyapunov_exponents
from entropy_theory.remainder import entropy_rounding, log_prob_rounding, spread, unit_roundoff
from entropy_theory.softmax import entropy

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

NOTE = "000"
PLACES = (RANDOM, "bandit", "cartpole")


def _orbits(context: Context, table: str) -> Sequence[Mapping[str, Any]]:
    """The stored table chaos_`table`.csv, or the same of a brief measurement in a chosen world; [] without either."""
    stored = rows(context, f"chaos_{table}")
    if stored:
        return stored
    lent = [context.worlds[w] for w in ("bandit", "cartpole") if w in context.worlds]
    brief = next((world.chaos for world in lent if world.chaos is not None), None)
    return [] if brief is None else {"correlation": brief.correlations, "best": brief.best}[table]


def _number(row: Mapping[str, Any], name: str) -> float:
    """A cell; NaN where it is empty or there is none."""
    value = row.get(name)
    return math.nan if value in ("", None) else float(value)


def _correlated(quantity: str) -> Callable[[Context], Measured | None]:
    """A measure: Spearman's coefficients of policy entropy with `quantity`, by world."""

    def measure(context: Context) -> Measured | None:
        told, numbers = [], {}
        for world, name in WORLD_NAMES.items():
            sweeps = [r for r in _orbits(context, "correlation") if r["world"] == world and r["with"] == quantity]
            values = [v for r in sweeps if not math.isnan(v := _number(r, "spearman"))]
            if not values:
                continue
            numbers |= {f"{quantity}_{world}_lowest": min(values), f"{quantity}_{world}_highest": max(values)}
            told.append(
                f"{name} {min(values):.2f} to {max(values):.2f} in {len(values)} sweeps ({sum(v < 0 for v in values)} "
                f"negative), {len(sweeps) - len(values)} more with one of the two constant"
            )
        text = f"Measured rank correlation of policy entropy with {quantity.replace('_', ' ')}: {'; '.join(told)}."
        return Measured(text, numbers) if told else None

    return measure


# --- 11: entropy = 1 / exponent -----------------------------------------------------------------------------------


@functools.cache
def digit_map(base: int) -> tuple[float, float, float]:
    """Symbol entropy and Lyapunov exponent of x -> base x mod 1, nats per step, and a bound on the rounding of both.

    Each of its `base` branches has Lebesgue measure 1/base and digits are independent. A growth is |base| times a
    rounded unit vector, its logarithm and the mean over `BLOCKS` steps add some operations: at most 64 u (1 + value).
    """
    symbols = torch.zeros(base, dtype=torch.float64)
    start = torch.tensor([0.3], dtype=torch.float64)
    found = lyapunov_exponents(lambda x: torch.remainder(base * x, 1.0), start, BLOCKS)
    h, exponent = float(entropy(symbols)), float(found.value[0])
    return h, exponent, float(entropy_rounding(symbols)) + 64 * unit_roundoff(torch.float64) * (1 + exponent)


def _not_inverse(base: int) -> bool:
    h, exponent, rounding = digit_map(base)
    return abs(h * exponent - 1) > rounding * (2 + h + exponent)


def _bases() -> "SearchStrategy[int]":
    from hypothesis import strategies as st

    return st.integers(2, 10)


def _describe_map(base: int) -> Counterexample:
    (h, exponent, _), (next_h, next_exponent, _) = digit_map(base), digit_map(base + 1)
    text = (
        f"x -> {base}x mod 1 has symbol entropy {h:.4f} and exponent {exponent:.4f}, not {1 / h:.4f}; from {base} to "
        f"{base + 1} both grow, to {next_h:.4f} and {next_exponent:.4f}, as the note's next line wants and an inverse "
        "forbids"
    )
    snippet = (
        "import torch\n"
        "from entropy_theory import entropy\n"
        "from entropy_theory.lyapunov import lyapunov_exponents\n"
        f"for base in ({base}, {base + 1}):\n"
        "    found = lyapunov_exponents(lambda x: torch.remainder(base * x, 1.0), torch.tensor([0.3]), 20)\n"
        "    print(base, entropy(torch.zeros(base)), found.value)\n"
    )
    return Counterexample(text, snippet)


# --- 12: the edge of chaos ----------------------------------------------------------------------------------------


def _no_optimum_defined(context: Context) -> Finding:
    """There is no quantity to compare: the nearest measurement is where runs and sweeps earned most."""
    print_ = ENTROPY_MECHANISM["no_optimum"]
    text = (
        "Neither the edge of chaos nor the sense of optimal is defined for a policy, and no entropy is named; the "
        f"paper ({print_.place}) knows no best entropy."
    )
    return Finding(Verdict.NOT_TESTABLE, text)


def _best_of_runs(context: Context) -> Measured | None:
    """Entropy at the best mean return of any run, relative to the range of entropies there."""
    told, numbers = [], {}
    for world, name in WORLD_NAMES.items():
        table = rows(context, "curves", world=world)
        if table:
            h, r = column(table, "entropy"), column(table, "return")
            best = h[r.index(max(r))]
            numbers[f"entropy_at_best_{world}"] = best
            told.append(f"{name} {best:.3g} of {min(h):.2g} to {max(h):.3g}")
    return (
        Measured(f"Entropy at the best mean return of all runs here: {', '.join(told)} nats.", numbers)
        if told
        else None
    )


def _best_of_sweeps(context: Context) -> Measured | None:
    told, numbers = [], {}
    for world, name in WORLD_NAMES.items():
        sweeps = [row for row in _orbits(context, "best") if row["world"] == world]
        if sweeps:
            better = sum(_number(row, "gain_low") > 0 for row in sweeps)
            numbers |= {f"sweeps_{world}": len(sweeps), f"better_above_lowest_{world}": better}
            told.append(f"{name} {better} of {len(sweeps)}")
    text = f"Sweeps in which an entropy above the lowest earned more (95 % interval above 0): {', '.join(told)}."
    return Measured(text, numbers) if told else None


# --- 14: the attractor's dimension --------------------------------------------------------------------------------

_STEP_SIZE = 50.0


def _loses_an_action(problem: Problem) -> bool:
    r"""Whether a large step takes an action's log-probability below log pi_a - spread(d), which is finite.

    log pi'_a = log pi_a + d_a - log sum_b pi_b exp(d_b) >= log pi_a - (max d - min d).
    """
    change = theorems.policy_gradient_step(problem.logits, problem.advantage, _STEP_SIZE)
    after = problem.logits + change
    floor = problem.logits.log_softmax(-1) - spread(change, problem.probability)
    size = 8 * unit_roundoff(torch.float64) * (change.abs().amax() + after.abs().amax())
    rounding = log_prob_rounding(problem.logits) + log_prob_rounding(after) + size
    return not bool((after.log_softmax(-1) >= floor - rounding).all())


def _no_formal_content(context: Context) -> Finding:
    """The one exact statement near it: a step of any size keeps every action in the support."""
    search = smallest(problems(), _loses_an_action, context)
    numbers = {"tried": search.tried}
    if search.found is not None:
        return Finding(Verdict.EMPIRICAL, f"A finite step removed an action of {search.found.text}.", numbers)
    even = Problem((1, 1), (10, 0))
    after = even.logits + theorems.policy_gradient_step(even.logits, even.advantage, _STEP_SIZE)
    h, rarest = float(entropy(after)), float(after.softmax(-1).min())
    text = (
        "A policy has no attractor, and long-term memory is not defined. Read as the support, the dimension never "
        f"shrinks: log pi falls by at most the spread of the change (no violation in {search.tried:,} steps of size "
        f"{_STEP_SIZE:g}). {even.text}: such a step takes entropy from {entropy(even.logits):.3g} to {h:.2g} and the "
        f"rarer action to {rarest:.2g}, not to 0."
    )
    return Finding(Verdict.NOT_TESTABLE, text, {**numbers, "entropy_after": h, "rarest_after": rarest})


CHAOS = (
    noted(
        NOTE,
        11,
        "Policy entropy is the inverse of the Lyapunov exponent; high entropy goes with a large exponent.",
        Verdict.REFUTED,
        also(by_search(_bases, _not_inverse, _describe_map), _correlated("exponent")),
        places=PLACES,
    ),
    noted(
        NOTE,
        12,
        "A middle entropy at the edge of chaos is optimal.",
        Verdict.NOT_TESTABLE,
        also(_no_optimum_defined, _best_of_runs, _best_of_sweeps),
        places=PLACES,
    ),
    noted(
        NOTE,
        14,
        "Entropy collapse is a shrinking of the attractor's dimension; long-term memory is lost.",
        Verdict.NOT_TESTABLE,
        also(_no_formal_content, _correlated("participation_state"), _correlated("participation_logits")),
        places=PLACES,
    ),
)
