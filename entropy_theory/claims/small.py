"""Small instances of a one-state problem with short decimals, so that a shrunk counterexample can be read aloud."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

LARGEST_WEIGHT = 20
"""Policies are pi = weights / sum(weights) with whole weights from 1 to this."""


class Problem(NamedTuple):
    """A policy pi = weights / sum(weights) and a reward per action, in tenths.

    weights: positive whole numbers, one per action
    tenths:  reward of each action times 10
    """

    weights: tuple[int, ...]
    tenths: tuple[int, ...]

    @property
    def logits(self) -> Tensor:
        """log of the weights, [actions], float64."""
        return torch.tensor(self.weights, dtype=torch.float64).log()

    @property
    def probability(self) -> Tensor:
        """[actions], float64."""
        weights = torch.tensor(self.weights, dtype=torch.float64)
        return weights / weights.sum()

    @property
    def reward(self) -> Tensor:
        """[actions], float64."""
        return torch.tensor(self.tenths, dtype=torch.float64) / 10

    @property
    def advantage(self) -> Tensor:
        """reward minus its mean under the policy, [actions]."""
        return self.reward - (self.probability * self.reward).sum()

    @property
    def text(self) -> str:
        """pi and the reward in words."""
        weights = ", ".join(map(str, self.weights))
        return f"pi = ({weights})/{sum(self.weights)}, reward = ({', '.join(f'{t / 10:g}' for t in self.tenths)})"

    @property
    def code(self) -> str:
        """Python lines that define `logits` and `reward`."""
        return (
            "import torch\n"
            f"logits = torch.tensor({list(map(float, self.weights))}, dtype=torch.float64).log()\n"
            f"reward = torch.tensor({[t / 10 for t in self.tenths]}, dtype=torch.float64)\n"
        )


def column(count: int, low: int, high: int) -> "SearchStrategy[tuple[int, ...]]":
    """`count` whole numbers from low to high."""
    from hypothesis import strategies as st

    return st.tuples(*[st.integers(low, high)] * count)


def problems(
    smallest: int = 2, largest: int = 4, lowest: int = 0, highest: int = 10, weight: int = LARGEST_WEIGHT
) -> "SearchStrategy[Problem]":
    """Problems of `smallest` to `largest` actions with rewards from `lowest` to `highest` tenths."""
    from hypothesis import strategies as st

    # made once for each size: `flatmap` and lists would be made anew for each instance
    sizes = range(smallest, largest + 1)
    return st.one_of(*(st.builds(Problem, column(n, 1, weight), column(n, lowest, highest)) for n in sizes))
