"""What a claim is, what judging it needs, and what comes out."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from entropy_theory.claims.bounded import Result
from entropy_theory.claims.places import RANDOM, WorldStates, place_states
from entropy_theory.claims.statement import States
from entropy_theory.records import Batch

ALL_WORLDS = ("bandit", "cartpole", "llm")
ANYWHERE = (RANDOM, *ALL_WORLDS, "model")
"""Places a claim about any softmax policy can be judged at; "model" is the caller's own causal language model."""


class Verdict(StrEnum):
    """What a check can say of a claim.

    HOLDS:            no violation of a proved bound, or an identity or a quotation that checks out
    REFUTED:          a counterexample was found
    UNDER_ASSUMPTION: counterexamples were found, none of them where the stated assumption holds
    EMPIRICAL:        neither provable nor refutable by an instance; measured here, or the missing data named
    NOT_TESTABLE:     no measurement could decide it as it is worded
    """

    HOLDS = "holds"
    REFUTED = "refuted"
    UNDER_ASSUMPTION = "holds under assumption"
    EMPIRICAL = "empirical"
    NOT_TESTABLE = "not testable"


@dataclass(frozen=True)
class Counterexample:
    """The smallest instance found against a claim.

    text:    one line naming the instance and both sides of what fails
    snippet: Python that rebuilds it and prints both sides, to be pasted as it is
    """

    text: str
    snippet: str


@dataclass(frozen=True)
class Finding:
    """The outcome of judging one claim.

    verdict:        what the check found, never what was expected
    evidence:       one to three sentences with the numbers found
    numbers:        the same numbers by name, for JSON
    counterexample: None unless refuted or true under an assumption only
    results:        one per place, for statements with a proved bound
    figure:         file name under docs/figures that shows it
    """

    verdict: Verdict
    evidence: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    counterexample: Counterexample | None = None
    results: tuple[Result, ...] = ()
    figure: str | None = None


@dataclass(frozen=True)
class Profile:
    """How much a check does.

    instances: drawn instances per bounded statement
    examples:  instances hypothesis tries in a search before it gives up
    sweep:     instances of the large run of Lemma 1
    """

    name: str
    instances: int
    examples: int
    sweep: int


PROFILES = {
    p.name: p
    for p in (
        Profile("quick", instances=2_000, examples=100, sweep=100_000),
        Profile("ci", instances=20_000, examples=500, sweep=1_000_000),
        Profile("thorough", instances=200_000, examples=5_000, sweep=100_000_000),
    )
}


class SampledTokens(NamedTuple):
    """A minibatch of a world: its record and Cov_pi(log pi, pi) at each token's state, E."""

    batch: Batch
    collision: Tensor


@dataclass(frozen=True)
class World:
    """What a world lends to the check; None where it has no such thing. Each is called when a claim first asks.

    states:    real states of the world
    minibatch: sampled tokens of a real rollout
    kernel:    one plain gradient step of the world's network, predicted through its logit kernel
    chaos:     exponents and dimensions of the world's orbits, in brief
    """

    states: Callable[[], WorldStates] | None = None
    minibatch: Callable[[], SampledTokens] | None = None
    kernel: Callable[[], Any] | None = None
    chaos: Callable[[], Any] | None = None


class Lent:
    """A World whose every part is computed once."""

    def __init__(self, world: World):
        self._world = world

    @cached_property
    def states(self) -> WorldStates | None:
        """Real states, or None."""
        return self._world.states and self._world.states()

    @cached_property
    def minibatch(self) -> SampledTokens | None:
        """Sampled tokens, or None."""
        return self._world.minibatch and self._world.minibatch()

    @cached_property
    def kernel(self) -> Any:
        """A kernel step, or None."""
        return self._world.kernel and self._world.kernel()

    @cached_property
    def chaos(self) -> Any:
        """Orbit measurements, or None."""
        return self._world.chaos and self._world.chaos()


class Context:
    """Everything a judge may use.

    profile, seed: how much, and from which seed
    worlds:        the chosen places other than "random", by name
    random:        whether drawn instances were chosen too
    data:          the committed results by name of their CSV file, as rows of text
    certified:     whether small instances are judged in ball arithmetic too
    folder:        where a run that may be killed keeps its state; None keeps none
    """

    def __init__(
        self,
        profile: Profile,
        seed: int = 0,
        worlds: Mapping[str, World] | None = None,
        random: bool = True,
        data: Callable[[str], list[dict[str, str]]] | None = None,
        certified: bool = False,
        folder: Path | None = None,
    ):
        self.profile, self.seed, self.random = profile, seed, random
        self.worlds = {name: Lent(world) for name, world in (worlds or {}).items()}
        self.data = data or (lambda name: [])
        self.certified, self.folder = certified, folder
        self.progress: Callable[[float], None] = lambda share: None

    @cached_property
    def places(self) -> dict[str, list[States]]:
        """Instances for the bounded statements by place: drawn ones and those of the chosen worlds."""
        given = {name: lent.states for name, lent in self.worlds.items() if lent.states is not None}
        return place_states(self.profile.instances if self.random else 0, self.seed, given)

    def chosen(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of `names` that this check may use."""
        return tuple(n for n in names if (self.random if n == RANDOM else n in self.worlds))


Judge = Callable[[Context], Finding]


@dataclass(frozen=True)
class Claim:
    """A claim about entropy, where it stands, what it assumes, and how it is judged.

    id:          as typed after --only
    statement:   the claim, a formula where it has one
    source:      paper and number, or the study note and its number
    assumptions: what the check grants; anything else is part of the claim
    recorded:    the verdict on record; a check that finds another one fails
    judge:       Context -> Finding; it computes the verdict and knows nothing of the record
    places:      where it can be judged; it is left out if none of them is chosen
    """

    id: str
    statement: str
    source: str
    recorded: Verdict
    judge: Judge
    assumptions: tuple[str, ...] = ()
    places: tuple[str, ...] = (RANDOM,)
