"""Fixed numbers of small whole numbers, as hypothesis draws them fastest: tuples, not lists of fixed length."""

from typing import TYPE_CHECKING

from entropy_theory.claims.small import Problem

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def column(count: int, low: int, high: int) -> "SearchStrategy[tuple[int, ...]]":
    """`count` whole numbers from low to high."""
    from hypothesis import strategies as st

    return st.tuples(*[st.integers(low, high)] * count)


def one_state(smallest: int, largest: int, lowest: int = 0, highest: int = 10) -> "SearchStrategy[Problem]":
    """Problems of `smallest` to `largest` actions, weights up to 20, rewards from `lowest` to `highest` tenths."""
    from hypothesis import strategies as st

    sizes = range(smallest, largest + 1)
    return st.one_of(*[st.builds(Problem, column(n, 1, 20), column(n, lowest, highest)) for n in sizes])
