"""Small Markov decision processes whose state distributions are exact fractions."""

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Matrix = Sequence[Sequence[Fraction]]
ACTIONS = 2


def solve(matrix: Matrix, right: Sequence[Fraction]) -> list[Fraction]:
    """x with matrix x = right, by Gauss-Jordan elimination; ZeroDivisionError if the matrix is singular."""
    rows = [[*row, b] for row, b in zip(matrix, right, strict=True)]
    n = len(rows)
    for i in range(n):
        pivot = next((j for j in range(i, n) if rows[j][i]), i)
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for j in range(n):
            if j != i and rows[j][i]:
                rows[j] = [x - rows[j][i] * y for x, y in zip(rows[j], rows[i], strict=True)]
    return [row[-1] for row in rows]


class Chain(NamedTuple):
    """A process that starts in state 0; action a in state s leads to following[s][a].

    following: next state by state and action
    discount:  in tenths
    """

    following: tuple[tuple[int, ...], ...]
    discount: int

    @property
    def gamma(self) -> Fraction:
        """The discount factor."""
        return Fraction(self.discount, 10)

    @property
    def text(self) -> str:
        """The process in words."""
        return f"next state by state and action {self.following}, discount {self.discount / 10:g}, start in state 0"

    def transitions(self, pi: Matrix) -> list[list[Fraction]]:
        """P(s' | s) under a policy."""
        states = range(len(self.following))
        return [
            [sum((p for p, t in zip(pi[s], self.following[s], strict=True) if t == to), Fraction(0)) for to in states]
            for s in states
        ]

    def resolvent(self, pi: Matrix) -> list[list[Fraction]]:
        """I - gamma P."""
        moves = self.transitions(pi)
        n = range(len(moves))
        return [[Fraction(i == j) - self.gamma * moves[i][j] for j in n] for i in n]

    def visits(self, pi: Matrix) -> list[Fraction]:
        """d(s) = (1 - gamma) sum_t gamma^t P(s_t = s), which sums to 1."""
        transposed = [list(column) for column in zip(*self.resolvent(pi), strict=True)]
        start = [1 - self.gamma, *[Fraction(0)] * (len(transposed) - 1)]
        return solve(transposed, start)

    def values(self, pi: Matrix, reward: Matrix) -> list[Fraction]:
        """V(s), the expected discounted sum of rewards[state][action]."""
        return solve(self.resolvent(pi), [_dot(p, r) for p, r in zip(pi, reward, strict=True)])


def _dot(x: Sequence[Fraction], y: Sequence[Fraction]) -> Fraction:
    return sum((a * b for a, b in zip(x, y, strict=True)), Fraction(0))


def shares(weights: Sequence[int]) -> list[Fraction]:
    """weights / sum(weights)."""
    return [Fraction(w, sum(weights)) for w in weights]


def chains(states: int = 2, discount: int = 5) -> "SearchStrategy[Chain]":
    """Processes of `states` states and two actions."""
    from hypothesis import strategies as st

    return st.builds(Chain, table(states, st.integers(0, states - 1)), st.just(discount))


def table(states: int, entry: "SearchStrategy[int]") -> "SearchStrategy[tuple[tuple[int, ...], ...]]":
    """One number per state and action."""
    from hypothesis import strategies as st

    return st.tuples(*[st.tuples(*[entry] * ACTIONS)] * states)
