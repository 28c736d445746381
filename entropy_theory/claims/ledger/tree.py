"""A decision in two steps: the first action chooses the state of the second. The smallest MDP in which states shift.

The three states, the root first, are rows of one tensor, [3, actions]; logits of -inf fill up shorter rows.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from entropy_theory import remainder, theorems
from entropy_theory.claims.ledger.common import mean_rounding
from entropy_theory.claims.small import Problem, column, problems
from entropy_theory.softmax import entropy

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

U = remainder.unit_roundoff(torch.float64)
Whole = tuple[int, ...]


class Tree(NamedTuple):
    """Whole weights of the two first actions, and the one-state problem that each of them leads to."""

    root: tuple[int, int]
    first: Problem
    second: Problem

    @property
    def logits(self) -> Tensor:
        """[3, actions], float64."""
        root = torch.tensor(self.root, dtype=torch.float64).log()
        return pad_sequence([root, self.first.logits, self.second.logits], True, -torch.inf)

    @property
    def rewards(self) -> Tensor:
        """Of both second decisions, [2, actions]."""
        return pad_sequence([self.first.reward, self.second.reward], True)

    @property
    def text(self) -> str:
        """In words."""
        return f"first ({self.root[0]}, {self.root[1]})/{sum(self.root)}, then {self.first.text} or {self.second.text}"

    @property
    def code(self) -> str:
        """Python lines that define `logits` and `rewards`."""
        return (
            "import torch\nfrom torch import inf\n"
            f"logits = torch.tensor({self.logits.tolist()}, dtype=torch.float64)\n"
            f"rewards = torch.tensor({self.rewards.tolist()}, dtype=torch.float64)\n"
        )


def trees() -> "SearchStrategy[Tree]":
    """Trees whose second decisions have 2 or 3 actions."""
    from hypothesis import strategies as st

    leaf = problems(2, 3)
    return st.builds(Tree, column(2, 1, 20), leaf, leaf)


def crossroads() -> "SearchStrategy[Tree]":
    """Trees where only the first action matters: the likelier branch is the better one and the less decided."""
    from hypothesis import strategies as st

    def of(
        root: tuple[int, ...], tenths: tuple[int, ...], undecided: tuple[int, ...], decided: tuple[int, ...]
    ) -> Tree:
        (less, more), (worse, better) = sorted(root), sorted(tenths)
        return Tree((more, less), Problem(undecided, (better,) * 3), Problem(decided, (worse,) * 2))

    return st.builds(of, column(2, 8, 12), column(2, 0, 10), column(3, 1, 3), column(2, 1, 20))


def action_values(logits: Tensor, rewards: Tensor) -> Tensor:
    """Q at the three states, [3, actions]."""
    values = (logits[1:].softmax(-1) * rewards).sum(-1)
    return torch.cat([torch.nn.functional.pad(values, (0, logits.shape[-1] - 2))[None], rewards])


def expected_return(logits: Tensor, rewards: Tensor) -> Tensor:
    """E[r] over both decisions."""
    return (logits[0].softmax(-1) * action_values(logits, rewards)[0]).sum()


def visits(logits: Tensor) -> Tensor:
    """How often the three states are visited per episode, [3]; the root always."""
    return torch.cat([torch.ones(1, dtype=logits.dtype), logits[0].softmax(-1)[:2]])


def policy_gradient(logits: Tensor, rewards: Tensor) -> Tensor:
    r"""E[A grad log pi] with A = Q - V: dJ / dz_sa = d(s) pi(a|s) (Q(s, a) - V(s)), [3, actions]."""
    step = theorems.policy_gradient_step(logits, action_values(logits, rewards), 1.0)
    return visits(logits)[:, None] * step


def policy_gradient_rounding(logits: Tensor, rewards: Tensor) -> Tensor:
    """Bound on the rounding of every entry of `policy_gradient`, and of the gradient of the return by autograd.

    Rounded action values at the root enter twice (Q and V) with pi <= 1; d(s) <= 1 has a relative error of its own.
    """
    of_values = mean_rounding(logits[1:], rewards).max()
    entry = remainder.policy_gradient_step_rounding(logits, action_values(logits, rewards), 1.0).max()
    relative = torch.expm1(remainder.probability_rounding(logits[0]) + 4 * U)
    return (1 + relative) * (entry + 3 * of_values) + relative * (rewards.max() - rewards.min())


def mean_entropy(logits: Tensor, weights: Tensor) -> Tensor:
    """Entropy averaged over the states with these visits."""
    return (weights * entropy(logits)).sum() / weights.sum()


def mean_covariance(logits: Tensor, changes: Tensor, weights: Tensor) -> Tensor:
    """Cov_pi(log pi, dz) averaged over the states with these visits."""
    return -(weights * theorems.entropy_change_first_order(logits, changes)).sum() / weights.sum()


def averages_rounding(logits: Tensor, changes: Tensor) -> Tensor:
    """Bound on the rounding of `mean_covariance`, and of `mean_entropy` at these logits or the changed ones.

    An average of x_s errs by the largest error of an x_s plus twice the relative error of the weights times |x_s|.
    """
    after, size = logits + changes, 2 * math.log(logits.shape[-1])
    of_entropy = torch.maximum(remainder.entropy_rounding(logits), remainder.entropy_rounding(after))
    entry = torch.maximum(of_entropy, remainder.first_order_rounding(logits, changes)).max()
    of_weights = torch.maximum(remainder.probability_rounding(logits[0]), remainder.probability_rounding(after[0]))
    relative = torch.expm1(2 * of_weights + 16 * U)
    return (1 + relative) * entry + relative * size * (1 + changes.max() - changes.min())
