"""Two ways to hold entropy up: an adaptive coefficient, which needs its clip at 0, and an activation with a floor."""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from entropy_theory.claims.claim import Claim, Counterexample, Verdict
from entropy_theory.claims.search import by_search
from entropy_theory.controller import step_to_target
from entropy_theory.records import Measurement
from entropy_theory.remainder import entropy_rounding, first_order_effect
from entropy_theory.softmax import entropy

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

TARGET = 0.2
TAU = 4
"""ERA's released value."""
MOVED = 2e-7
"""Sixteen roundings of h, whose terms are below 1.5, come to 2e-15, and with -z e^z = 1/e - (1 + z)^2/(2e) + ... they
move z by at most sqrt(2e * 2e-15) = 1.1e-7 next to its largest value and by less elsewhere."""


class Adaptive(NamedTuple):
    """An entropy trace in tenths of a nat, and whether the coefficient is clipped at 0."""

    tenths: tuple[int, ...]
    clipped: bool


def coefficients(case: Adaptive) -> list[float]:
    """The coefficient applied at each step: c where the last entropy was at or below the target, else 0."""
    controller = step_to_target(TARGET, 0.005, low=0.0 if case.clipped else -1.0)
    state, applied = controller.init(torch.zeros((), dtype=torch.float64)), []
    for tenths in case.tenths:
        measured = torch.tensor(tenths / 10, dtype=torch.float64)
        state = controller.advance(state, Measurement(measured))
        applied.append(float(controller.value(state)) if measured <= TARGET else 0.0)
    return applied


def _lowers(case: Adaptive) -> bool:
    """A negative coefficient is applied; by `entropy_bonus_gradient` its step lowers entropy."""
    return min(coefficients(case)) < 0


def _describe(case: Adaptive) -> Counterexample:
    return Counterexample(
        f"entropies {case.tenths} tenths, target {TARGET}: coefficients {coefficients(case)}",
        f"from {__name__} import Adaptive, coefficients\nprint(coefficients({case!r}))\n",
    )


def _traces(clipped: bool) -> "SearchStrategy[Adaptive]":
    from hypothesis import strategies as st

    return st.builds(Adaptive, st.lists(st.integers(0, 6), min_size=1, max_size=6).map(tuple), st.just(clipped))


class Floor(NamedTuple):
    """Logits, and the floor in hundredths of a nat."""

    logits: tuple[int, ...]
    hundredths: int

    @property
    def largest(self) -> float:
        """1 + ln(n ln(tau)/tau), the largest floor that keeps the order of the actions."""
        return 1 + math.log(len(self.logits) * math.log(TAU) / TAU)


def activated(case: Floor) -> list[float]:
    """ERA's discrete activation, z' = W_-1(-h), h = m + (C - n m)(1 - p)/(n - 1), m = ln tau/tau, C = e^(H0 - 1).

    Above 1/e, where -z e^z = h has no solution, h is cut to 1/e. Kang et al. 2025 (arXiv 2510.08549).
    """
    n, m = len(case.logits), math.log(TAU) / TAU
    total = math.exp(case.hundredths / 100 - 1)
    top = max(case.logits)
    weights = [math.exp(z - top) for z in case.logits]
    h = [max(m + (total - n * m) * (1 - w / math.fsum(weights)) / (n - 1), 0.0) for w in weights]
    return [_lambert(min(x, 1 / math.e)) for x in h]


def _lambert(h: float) -> float:
    """z <= -1 with -z e^z = h, by Newton's method on ln(-z) + z = ln h from the left."""
    if h >= 1 / math.e:
        return -1.0
    if h == 0:
        return -math.inf
    z = -1 - math.sqrt(-2 * (1 + math.log(h))) - 2 * -(1 + math.log(h))
    for _ in range(30):
        z -= (math.log(-z) + z - math.log(h)) / (1 / z + 1)
    return z


def _breaks(case: Floor) -> bool:
    """Entropy falls below the floor by more than rounding, or a likelier action becomes less likely."""
    after = torch.tensor(activated(case), dtype=torch.float64)
    rounding = entropy_rounding(after) + first_order_effect(torch.tensor(2 * MOVED), len(case.logits))
    below = entropy(after) < case.hundredths / 100 - rounding
    pairs = [(a, b) for a, x in enumerate(case.logits) for b, y in enumerate(case.logits) if x > y]
    return bool(below) or any(after[a] < after[b] - 2 * MOVED for a, b in pairs)


def _describe_floor(case: Floor) -> Counterexample:
    after = activated(case)
    h = float(entropy(torch.tensor(after, dtype=torch.float64)))
    return Counterexample(
        f"logits {case.logits}, floor {case.hundredths / 100:g} (feasible to {case.largest:.3f}): activated "
        f"({', '.join(f'{z:.4g}' for z in after)}), entropy {h:.4g}",
        f"from {__name__} import Floor, activated\nprint(activated({case!r}))\n",
    )


def _floors(feasible: bool) -> "SearchStrategy[Floor]":
    from hypothesis import strategies as st

    def of(logits: list[int]) -> "SearchStrategy[Floor]":
        case = Floor(tuple(logits), 0)
        lowest, highest = (0.05, case.largest) if feasible else (0.8 * math.log(len(logits)), math.log(len(logits)))
        hundredths = st.integers(math.ceil(100 * lowest), math.floor(100 * highest))
        return hundredths.map(lambda h: case._replace(hundredths=h))

    return st.lists(st.integers(0, 20), min_size=2, max_size=4).flatmap(of)


CONTROLLERS = (
    Claim(
        id="adaptive_coefficient",
        statement="An adaptive entropy coefficient, raised below and lowered above a target entropy and applied at or "
        "below it, never lowers entropy.",
        source="He et al. 2025 (Skywork-OR1, arXiv 2505.22312), eq. 3.2; the clip is in its code only",
        recorded=Verdict.UNDER_ASSUMPTION,
        judge=by_search(lambda: _traces(False), _lowers, _describe, lambda: _traces(True), "it is clipped at 0"),
        assumptions=("the coefficient is clipped at 0",),
    ),
    Claim(
        id="era_floor",
        statement="ERA's activation keeps entropy at or above H_0 <= ln n and the order of the actions.",
        source="Kang et al. 2025 (ERA, arXiv 2510.08549), discrete form",
        recorded=Verdict.UNDER_ASSUMPTION,
        judge=by_search(
            lambda: _floors(False), _breaks, _describe_floor, lambda: _floors(True), "H_0 <= 1 + ln(n ln(tau)/tau)"
        ),
        assumptions=("H_0 <= 1 + ln(n ln(tau)/tau), tau = 4",),
    ),
)
