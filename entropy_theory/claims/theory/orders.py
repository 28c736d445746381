"""Lemma 1 is a first-order statement: its error falls by 4 when the step is halved, with the quadratic term by 8."""

from entropy_theory.claims.claim import Claim, Context, Finding, Verdict
from entropy_theory.claims.instances import generate
from entropy_theory.claims.lemma_1 import LEMMA_1
from entropy_theory.claims.order import orders
from entropy_theory.claims.theory.over import within

INSTANCES = 400
"""Drawn states; a median of a few hundred slopes needs no more in any profile."""
HALF_WIDTH = 0.1
"""An error a h^2 (1 + x h) has slope 2 + log2((1 + x h)/(1 + x h/4))/2 over two halvings. The last counting steps have
a spread h of 1/16 at most, and derivatives of one order are at most a few times those of the next, so the median
slope lies well within a tenth of its whole number; a missing or wrong term moves it by 1."""


def judge_orders(context: Context) -> Finding:
    """Median slopes over drawn states."""
    first, second = orders(LEMMA_1, generate(INSTANCES, context.seed))
    slopes = float(first.quantile(0.5)), float(second.quantile(0.5))
    ratio = max(abs(slopes[0] - 2), abs(slopes[1] - 3)) / HALF_WIDTH
    text = (
        f"Median slope of log error against log step {slopes[0]:.3f} over {len(first)} states, with the quadratic term "
        f"{slopes[1]:.3f} over {len(second)}."
    )
    return within("error_orders", context, ratio, text, {"slope": slopes[0], "slope_second": slopes[1]})


ORDERS = Claim(
    id="error_orders",
    statement="The error of Lemma 1 is of second order in the step, with the quadratic term of third order: median "
    "slopes within [1.9, 2.1] and [2.9, 3.1].",
    source="Cui et al. 2025 (arXiv 2505.22617), Lemma 1; quadratic term derived here (docs/theory.md, section 2)",
    recorded=Verdict.HOLDS,
    judge=judge_orders,
)
