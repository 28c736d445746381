"""Judge claims and compare each verdict with the one on record."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from entropy_theory.claims.catalogue import CLAIMS
from entropy_theory.claims.claim import Claim, Context, Finding


@dataclass(frozen=True)
class Judged:
    """A claim, what its check found, and how long that took in seconds."""

    claim: Claim
    finding: Finding
    seconds: float

    @property
    def as_recorded(self) -> bool:
        """Whether the verdict found is the verdict on record."""
        return self.finding.verdict == self.claim.recorded


def select(ids: Iterable[str], context: Context) -> list[Claim]:
    """The claims named, or all that the context can judge if none is named, in the catalogue's order.

    Raises: ValueError for an unknown id, and for a named claim whose places were not chosen.
    """
    ids = list(ids)
    for id in ids:
        if id not in CLAIMS:
            raise ValueError(f"unknown claim {id!r}; `entropy-theory check --list` shows the {len(CLAIMS)} there are")
        if not context.chosen(CLAIMS[id].places):
            raise ValueError(f"claim {id} cannot be judged at the chosen places; it takes {_any(CLAIMS[id].places)}")
    wanted = ids or list(CLAIMS)
    return [c for id, c in CLAIMS.items() if id in wanted and context.chosen(c.places)]


def _any(places: tuple[str, ...]) -> str:
    return "--world " + " or ".join(places)


def judge(claims: Iterable[Claim], context: Context, progress: Callable[[str, float], None] | None = None):
    """Judge one claim after the other.

    Args:
      progress: called with the claim's id and the number of claims done, fractions of a claim included.
    Returns: a list of Judged in the order given.
    """
    judged = []
    for done, claim in enumerate(claims):

        def show(share: float, id: str = claim.id, done: int = done):
            if progress is not None:
                progress(id, done + share)

        context.progress = show
        start = time.monotonic()
        show(0.0)
        finding = claim.judge(context)
        judged.append(Judged(claim, finding, time.monotonic() - start))
        show(1.0)
    return judged


def agrees(judged: Iterable[Judged]) -> bool:
    """Whether every verdict is the one on record."""
    return all(j.as_recorded for j in judged)
