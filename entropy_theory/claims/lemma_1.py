"""Lemma 1: to first order, a change of the logits moves entropy by minus a covariance."""

from entropy_theory import remainder, theorems
from entropy_theory.claims.statement import Evidence, Statement, States
from entropy_theory.claims.step import compare_first_order, compare_second_order, measure


def check(states: States) -> Evidence:
    """Add the change, measure both entropies, compare with Lemma 1 and with its second-order form."""
    z, actions = states.logits, states.logits.shape[-1]
    step = measure(z, z + states.change)
    first = compare_first_order(
        step,
        theorems.entropy_change_first_order(z, step.change),
        remainder.first_order_rounding(z, step.change) + remainder.first_order_effect(step.change_error, actions),
        actions,
    )
    second = compare_second_order(
        step,
        theorems.entropy_change_second_order(z, step.change),
        remainder.second_order_rounding(z, step.change)
        + remainder.second_order_effect(step.change_error, step.spread, actions),
        actions,
    )
    return Evidence(first, second)


LEMMA_1 = Statement(
    id="lemma_1",
    name="Lemma 1",
    formula="H(z + d) - H(z) = -Cov_pi(log pi, d) + O(spread(d)^2)",
    source="Cui et al. 2025 (arXiv 2505.22617), Lemma 1",
    assumptions=("softmax policy", "d is the measured change of the logits at that state"),
    check=check,
)
