"""Theorem 1: the entropy change of one policy-gradient step."""

from entropy_theory import remainder, theorems
from entropy_theory.claims.proposition_1 import step_and_rounding
from entropy_theory.claims.statement import Evidence, Statement, States
from entropy_theory.claims.step import compare_first_order, compare_second_order


def check(states: States) -> Evidence:
    """Take the step with autograd and SGD, measure both entropies, compare with -step_size Cov(log pi, pi A)."""
    z, reward, step_size = states.logits, states.advantage, states.step_size
    actions = z.shape[-1]
    step, rounding = step_and_rounding(states)
    other = rounding.amax(-1) + step.change_error  # between the exact change and the one predicted from
    predicted_step = theorems.policy_gradient_step(z, reward, step_size)
    first = compare_first_order(
        step,
        theorems.theorem_1(z, reward, step_size),
        remainder.first_order_rounding(z, predicted_step) + remainder.first_order_effect(other, actions),
        actions,
    )
    second = compare_second_order(
        step,
        theorems.entropy_change_second_order(z, predicted_step),
        remainder.second_order_rounding(z, predicted_step) + remainder.second_order_effect(other, step.spread, actions),
        actions,
    )
    return Evidence(first, second)


THEOREM_1 = Statement(
    id="theorem_1",
    name="Theorem 1",
    formula="H_new - H = -step_size Cov_pi(log pi, pi A) + O(spread(z_new - z)^2)",
    source="Cui et al. 2025 (arXiv 2505.22617), Theorem 1",
    assumptions=("tabular softmax", "exact expectation", "one step of plain gradient ascent", "A = r - E_pi r"),
    check=check,
)
