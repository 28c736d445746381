"""Counterexamples are searched for and shrunk, not typed in: hypothesis, from a seed, without its database."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch

from entropy_theory.claims.claim import Context, Counterexample, Finding, Judge, Verdict

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

T = TypeVar("T")


class Search(NamedTuple):
    """The smallest instance found, None if there is none, and how many instances were tried."""

    found: object | None
    tried: int


def smallest(instances: "SearchStrategy[T]", violates: Callable[[T], bool], context: Context) -> Search:
    """The smallest instance that violates, as hypothesis shrinks it; the same for the same profile and seed."""
    from hypothesis import HealthCheck, Phase, find, settings
    from hypothesis.errors import NoSuchExample, Unsatisfiable

    tried = 0

    def counted(instance: T) -> bool:
        nonlocal tried
        tried += 1
        return violates(instance)

    limits = settings(
        max_examples=context.profile.examples,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # instances are a few numbers each
    try:
        with _only_the_seed():
            return Search(find(instances, counted, settings=limits, random=Random(context.seed)), tried)
    except (NoSuchExample, Unsatisfiable):
        return Search(None, tried)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _only_the_seed() -> Iterator[None]:
    """Without this hypothesis also draws constants that stand in whatever local modules are loaded at the time.

    It has no setting for that. If its inside changes, the search still works and a test says what it depends on.
    """
    from hypothesis.internal.conjecture import providers

    replaced = {}
    if hasattr(providers, "_get_local_constants") and hasattr(providers, "CONSTANTS_CACHE"):
        empty = providers.Constants()
        replaced = {"_get_local_constants": lambda: empty, "CONSTANTS_CACHE": providers.LRUCache(1024)}
    kept = {name: getattr(providers, name) for name in replaced}
    try:
        for name, value in replaced.items():
            setattr(providers, name, value)
        yield
    finally:
        for name, value in kept.items():
            setattr(providers, name, value)


def by_search(
    instances: Callable[[], "SearchStrategy[T]"],
    violates: Callable[[T], bool],
    describe: Callable[[T], Counterexample],
    assuming: Callable[[], "SearchStrategy[T]"] | None = None,
    assumption: str = "",
) -> Judge:
    """A judge for a claim about every instance.

    Args:
      instances: called for the strategy of all valid instances (a function, so that hypothesis loads when used).
      violates: whether the claim fails at an instance by more than the proved bound of what was computed.
      describe: a violating instance in words and code.
      assuming: called for the strategy of the instances where the assumption holds; None if none would help.
      assumption: what `assuming` grants, in words.
    Verdict: HOLDS if no instance violates, UNDER_ASSUMPTION if some do but none under the assumption, else REFUTED.
    """

    def judge(context: Context) -> Finding:
        search = smallest(instances(), violates, context)
        if search.found is None:
            return Finding(Verdict.HOLDS, f"No violation in {search.tried:,} instances.", {"tried": search.tried})
        if assuming is not None:
            inside = smallest(assuming(), violates, context)
            if inside.found is None:
                found = describe(search.found)
                return Finding(
                    Verdict.UNDER_ASSUMPTION,
                    f"No violation in {inside.tried:,} instances where {assumption}. Without it: {found.text}.",
                    {"tried_under_assumption": inside.tried},
                    found,
                )
            search = inside
        found = describe(search.found)
        return Finding(Verdict.REFUTED, f"Smallest counterexample: {found.text}.", {"tried": search.tried}, found)

    return functools.wraps(violates)(judge)
