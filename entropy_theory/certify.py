"""Lemma 1, Proposition 1 and Theorems 1-2 on one instance, with a proof: nothing is left to rounding.

Both sides of a statement are enclosed in ball arithmetic (`balls`). If the enclosure of the error lies below the
enclosure of its bound, the statement holds on this instance; if above, it is violated; if they overlap, the
precision is raised. Unlike the checks in `claims`, no floating-point step is involved: the step is the exact one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from entropy_theory import remainder
from entropy_theory.balls import Ball, Policy, above, below, flint, largest, precision

MOST_ACTIONS = 64
BITS = (128, 512, 2048, 8192)
"""Precisions tried in turn. 8192 bits decide a spread down to 1e-300 at first and second order."""
EXACT_BITS = 100
"""An exact statement holds if the enclosure of its error contains 0 and is narrower than 2^-100 of its scale."""

HOLDS, VIOLATED, UNDECIDED = "certified holds", "certified violated", "undecided"


class Certificate(NamedTuple):
    """One form of one statement on one instance.

    statement: "Lemma 1", ...
    form:      "first order", "second order", or "exact" for an identity
    verdict:   `HOLDS`, `VIOLATED` or `UNDECIDED`
    error:     floats around |measured - predicted|, nats; logits (largest entry) for an identity
    bound:     floats around the proved bound; (0, 0) for an identity
    bits:      precision it took
    """

    statement: str
    form: str
    verdict: str
    error: tuple[float, float]
    bound: tuple[float, float]
    bits: int


class _Sides(NamedTuple):
    """|measured - predicted|, its bound, and the scale against which an exact agreement is judged."""

    error: Ball
    bound: Ball
    scale: Ball


Instance = tuple[Sequence[float], Sequence[float], Sequence[float], float]
"""(logits, change, advantage, step_size)."""


def _change_forms(policy: Policy, change: Sequence[Ball]) -> dict[str, _Sides]:
    """Entropy change of a step against both predictions and their remainder bounds."""
    true, width = policy.entropy_change(change), policy.spread(change)
    arb = flint().arb
    first = arb(remainder.remainder_constant(policy.size)) * width**2 / 2
    second = arb(remainder.second_order_remainder_constant(policy.size)) * width**3 / 6
    return {
        "first order": _Sides(abs(true - policy.first_order(change)), first, arb(1)),
        "second order": _Sides(abs(true - policy.second_order(change)), second, arb(1)),
    }


def _identity(one: Sequence[Ball], other: Sequence[Ball], scale: Ball) -> dict[str, _Sides]:
    """Two vectors that should be equal, entry by entry."""
    return {"exact": _Sides(largest([abs(x - y) for x, y in zip(one, other, strict=True)]), flint().arb(0), scale)}


def _lemma_1(policy: Policy, instance: Instance) -> dict[str, _Sides]:
    return _change_forms(policy, policy.exact(instance[1]))


def _scale(reward: Sequence[Ball], step_size: float) -> Ball:
    return abs(flint().arb(step_size)) * largest([abs(r) for r in reward])


def _proposition_1(policy: Policy, instance: Instance) -> dict[str, _Sides]:
    """step_size pi (A - E A) against step_size times the derivative of J, taken by power series."""
    _, _, advantage, step_size = instance
    reward = policy.exact(advantage)
    gradient = [step_size * g for g in policy.return_gradient(reward)]
    return _identity(policy.gradient_step(reward, step_size), gradient, _scale(reward, step_size))


def _theorem_1(policy: Policy, instance: Instance) -> dict[str, _Sides]:
    _, _, advantage, step_size = instance
    return _change_forms(policy, policy.gradient_step(policy.exact(advantage), step_size))


def _theorem_2(policy: Policy, instance: Instance) -> dict[str, _Sides]:
    """The step along F^+ grad J is step_size A up to a constant; and the entropy change of that step."""
    _, _, advantage, step_size = instance
    reward = policy.exact(advantage)
    shifted = [r - reward[0] for r in reward]
    mean = sum(shifted) / len(shifted)
    step = [step_size * (r - mean) for r in shifted]
    natural = policy.natural_step(policy.return_gradient(reward), step_size)
    return {**_identity(natural, step, _scale(reward, step_size)), **_change_forms(policy, step)}


STATEMENTS: dict[str, Callable[[Policy, Instance], dict[str, _Sides]]] = {
    "Lemma 1": _lemma_1,
    "Proposition 1": _proposition_1,
    "Theorem 1": _theorem_1,
    "Theorem 2": _theorem_2,
}


def _verdict(sides: _Sides) -> str:
    if sides.error > sides.bound:
        return VIOLATED
    if sides.bound > 0:
        return HOLDS if sides.error <= sides.bound else UNDECIDED
    narrow = sides.error.contains(0) and sides.error.rad() <= sides.scale * flint().arb(2) ** -EXACT_BITS
    return HOLDS if sides.bound == 0 and narrow else UNDECIDED


def certify(
    logits: Sequence[float],
    change: Sequence[float],
    advantage: Sequence[float],
    step_size: float = 1.0,
    statements: Sequence[str] = tuple(STATEMENTS),
) -> list[Certificate]:
    """Judge the named statements on one instance, raising the precision until every form of each is decided.

    Args:
      logits: [actions], floats taken as exact; -inf masks an action.
      change: [actions], logits after minus before, for Lemma 1.
      advantage: [actions], reward units, need not be centred; step_size: eta, for the others.
      statements: names out of `STATEMENTS`.
    Raises: ValueError for an unknown name, for fewer than 2 or more than `MOST_ACTIONS` actions, for vectors of
      different lengths and for entries that are not finite; ModuleNotFoundError without python-flint.
    """
    if not 2 <= len(logits) <= MOST_ACTIONS:
        raise ValueError(
            f"certify judges instances of 2 to {MOST_ACTIONS} actions, got {len(logits)}: take fewer actions, "
            "or check without --certified"
        )
    if not math.isfinite(step_size):
        raise ValueError(f"step_size must be finite, got {step_size}")
    unknown = [name for name in statements if name not in STATEMENTS]
    if unknown:
        raise ValueError(f"no statement {unknown[0]!r} to certify: choose from {', '.join(STATEMENTS)}")
    instance = (list(map(float, logits)), list(map(float, change)), list(map(float, advantage)), float(step_size))
    return [record for name in statements for record in _certify(name, instance)]


def _certify(name: str, instance: Instance) -> list[Certificate]:
    """Every form of one statement, each at the first precision that decides it."""
    records: dict[str, Certificate] = {}
    for bits in BITS:
        with precision(bits):
            for form, sides in STATEMENTS[name](Policy(instance[0]), instance).items():
                if form not in records or records[form].verdict == UNDECIDED:
                    ends = [(max(0.0, below(x)), above(x)) for x in (sides.error, sides.bound)]
                    ends = [(0.0, 0.0) if x == 0 else e for x, e in zip((sides.error, sides.bound), ends, strict=True)]
                    records[form] = Certificate(name, form, _verdict(sides), *ends, bits)
        if all(record.verdict != UNDECIDED for record in records.values()):
            break
    return list(records.values())


def certify_states(
    statement: str,
    logits: Sequence[Sequence[float]],
    change: Sequence[Sequence[float]],
    advantage: Sequence[Sequence[float]],
    step_size: float = 1.0,
) -> Iterator[list[Certificate]]:
    """`certify` for one statement, instance by instance; the arguments are [n, actions], tensors or nested lists.

    Under half a millisecond an instance at 10 actions, about 2 at 64 (more where the precision must rise).
    """
    rows = (x.tolist() if hasattr(x, "tolist") else x for x in (logits, change, advantage))
    for z, d, r in zip(*rows, strict=True):
        yield certify(z, d, r, step_size, (statement,))
