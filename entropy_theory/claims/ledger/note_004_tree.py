"""Claims 65 and 67: decisions in two steps, where the visits of the states move with the policy."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from entropy_theory import remainder
from entropy_theory.claims.claim import Counterexample, Verdict
from entropy_theory.claims.ledger.common import noted
from entropy_theory.claims.ledger.evidence import also, remark
from entropy_theory.claims.ledger.note_002_runs import signs
from entropy_theory.claims.ledger.tree import (
    Tree,
    averages_rounding,
    crossroads,
    expected_return,
    mean_covariance,
    mean_entropy,
    policy_gradient,
    policy_gradient_rounding,
    trees,
    visits,
)
from entropy_theory.claims.search import by_search

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


# --- 65: the policy-gradient theorem ------------------------------------------------------------------------------


def _autograd(tree: Tree) -> Tensor:
    """dJ / dz, [3, actions]."""
    logits = tree.logits.requires_grad_()
    return torch.autograd.grad(expected_return(logits, tree.rewards), logits)[0]


def _another_gradient(tree: Tree) -> bool:
    gap = (_autograd(tree) - policy_gradient(tree.logits, tree.rewards)).abs().max()
    return bool(gap > 0) and bool(gap > 2 * policy_gradient_rounding(tree.logits, tree.rewards))


def _both_ways(tree: Tree) -> Counterexample:
    by_formula = policy_gradient(tree.logits, tree.rewards)
    return Counterexample(
        f"{tree.text}: autograd {_autograd(tree).tolist()}, E[A grad log pi] {by_formula.tolist()}",
        tree.code
        + "from entropy_theory.claims.ledger.tree import expected_return, policy_gradient\n"
        + "z = logits.clone().requires_grad_()\n"
        + "print(torch.autograd.grad(expected_return(z, rewards), z), policy_gradient(logits, rewards))\n",
    )


# --- 67: positive covariance and collapse -------------------------------------------------------------------------


class Descent(NamedTuple):
    """A policy-gradient step in a two-step decision.

    size:  eta, or for a small step tenths of the largest eta that the remainder allows
    small: the step is small and entropy is averaged over the states as they were visited before it
    """

    tree: Tree
    size: int
    small: bool

    @property
    def change(self) -> Tensor:
        """Of the logits, [3, actions]."""
        z = self.tree.logits
        rate, weights = policy_gradient(z, self.tree.rewards), visits(z)
        if not self.small:
            return self.size * rate
        bounds = remainder.remainder_bound(remainder.spread(rate, torch.isfinite(z)), z.shape[-1])
        bound = (weights * bounds).sum() / weights.sum()
        falling = mean_covariance(z, rate, weights).clamp(min=0)
        return self.size / 10 * falling / torch.where(bound > 0, bound, 1.0) * rate

    def sides(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Mean covariance before the step, and the change of the mean entropy."""
        z, weights = self.tree.logits, visits(self.tree.logits)
        after = z + change
        moved = weights if self.small else visits(after)
        return mean_covariance(z, change, weights), mean_entropy(after, moved) - mean_entropy(z, weights)


def descents(small: bool) -> "SearchStrategy[Descent]":
    """Steps of size 1 to 5, or small ones at frozen visits."""
    from hypothesis import strategies as st

    size = st.integers(1, 9 if small else 5)
    return st.builds(Descent, st.one_of(trees(), crossroads()), size, st.just(small))


def _rises(descent: Descent) -> bool:
    """The mean covariance is positive and the mean entropy rises, both by more than rounding."""
    change = descent.change
    cov, risen = descent.sides(change)
    if not (cov > 0 and risen > 0):
        return False
    rounding = averages_rounding(descent.tree.logits, change)
    return bool((cov > rounding) & (risen > 2 * rounding))


def _shifted(descent: Descent) -> Counterexample:
    cov, risen = descent.sides(descent.change)
    before, after = visits(descent.tree.logits), visits(descent.tree.logits + descent.change)
    return Counterexample(
        f"{descent.tree.text}, eta = {descent.size}: mean covariance {cov:.4g}, mean entropy changes by {risen:+.4g}; "
        f"the second states are visited ({before[1]:.3g}, {before[2]:.3g}), then ({after[1]:.3g}, {after[2]:.3g})",
        descent.tree.code
        + "from entropy_theory.claims.ledger.tree import mean_covariance, mean_entropy, policy_gradient, visits\n"
        + f"change = {descent.size} * policy_gradient(logits, rewards)\n"
        + "print(mean_covariance(logits, change, visits(logits)))\n"
        + "print(mean_entropy(logits + change, visits(logits + change)) - mean_entropy(logits, visits(logits)))\n",
    )


TREE_004 = (
    noted(
        "004",
        65,
        "grad J = E[A grad log pi] with A = Q - V.",
        Verdict.HOLDS,
        also(
            by_search(trees, _another_gradient, _both_ways),
            remark("Autograd on the exact return of two-step decisions against the formula."),
        ),
        ("exact expectation",),
    ),
    noted(
        "004",
        67,
        "The covariance is positive, so entropy falls monotonically until it collapses.",
        Verdict.UNDER_ASSUMPTION,
        also(
            by_search(
                lambda: descents(False),
                _rises,
                _shifted,
                lambda: descents(True),
                "the step is small and the visits of the states are frozen",
            ),
            signs,
        ),
        ("small steps", "a frozen state distribution", "a covariance per state", "exact expectations"),
    ),
)
"""Claims 65 and 67."""
