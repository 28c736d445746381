"""Claims 6 to 8 and 13: what Clip-Cov and KL-Cov are said to do, against what their code does on a minibatch."""

import math
from itertools import product
from typing import TYPE_CHECKING

import torch

from entropy_theory.claims.claim import Context, Counterexample, Finding, Verdict
from entropy_theory.claims.ledger.common import WORLD_NAMES, Measured, noted, rows
from entropy_theory.claims.ledger.cost import fields_read, no_dearer
from entropy_theory.claims.ledger.evidence import also
from entropy_theory.claims.ledger.minibatch import (
    Minibatch,
    edited,
    entropy_after_rounding,
    logits_after,
    minibatches,
)
from entropy_theory.claims.ledger.sampled_run import sampled_run
from entropy_theory.claims.published import ENTROPY_MECHANISM
from entropy_theory.claims.search import by_search, smallest
from entropy_theory.claims.small import Problem
from entropy_theory.control import Control
from entropy_theory.controls import CONTROLS
from entropy_theory.remainder import entropy_rounding
from entropy_theory.softmax import entropy

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

NOTE = "000"
NONE = CONTROLS["none"]()
CLIP_COV = CONTROLS["clip_cov"](fraction=0.25, low=0.0, high=math.inf)
KL_COV = CONTROLS["kl_cov"](fraction=0.25)
"""With a quarter of the tokens and every positive score: a few tokens never reach the published 2e-4 and (1, 5)."""

_CONTROLS_CODE = """\
clip_cov = CONTROLS["clip_cov"](fraction=0.25, low=0.0, high=float("inf"))
kl_cov, none = CONTROLS["kl_cov"](fraction=0.25), CONTROLS["none"]()
"""


def _entropy_after(minibatch: Minibatch, control: Control) -> tuple[float, float]:
    """Entropy after one gradient step of size 1, and the bound on its rounding."""
    after = logits_after(minibatch, control)
    rounding = entropy_rounding(after) + entropy_after_rounding(minibatch, after)
    return float(entropy(after)), float(rounding)


def _drops(minibatch: Minibatch) -> bool:
    """Whether Clip-Cov silences a token."""
    return bool((edited(CLIP_COV, minibatch.batch).weight == 0).any())


# --- 6: H_new = clip(H) -------------------------------------------------------------------------------------------


def _two_rewards() -> "SearchStrategy[tuple[Minibatch, Minibatch]]":
    """Two minibatches of one policy, hence of one entropy, with different rewards."""
    from hypothesis import strategies as st

    another = st.tuples(minibatches(drift=0, largest=2), st.tuples(st.integers(0, 10), st.integers(0, 10)))
    return another.map(lambda pair: (pair[0], Minibatch(Problem(pair[0].problem.weights, pair[1]), pair[0].drift)))


def _no_function_of_entropy(pair: tuple[Minibatch, Minibatch]) -> bool:
    if not all(map(_drops, pair)):
        return False
    (one, one_rounding), (two, two_rounding) = (_entropy_after(m, CLIP_COV) for m in pair)
    return abs(one - two) > one_rounding + two_rounding


def _describe_two(pair: tuple[Minibatch, Minibatch]) -> Counterexample:
    before, (one, two) = entropy(pair[0].logits), (_entropy_after(m, CLIP_COV)[0] for m in pair)
    other = ", ".join(f"{t / 10:g}" for t in pair[1].problem.tenths)
    text = f"{pair[0].text}: entropy {before:.4g} becomes {one:.4g}; with reward ({other}) it becomes {two:.4g}"
    run = _CONTROLS_CODE + "print(entropy(logits), entropy(after(clip_cov)))\n"
    return Counterexample(text, "".join(m.code + run for m in pair))


_EXAMPLE = Minibatch(Problem((3, 1), (10, 0)), (0, 1))


def _what_is_read(context: Context) -> Measured:
    read = sorted(fields_read(CLIP_COV, _EXAMPLE.batch))
    text = f"Of the record of a batch its code reads {', '.join(read)}; entropy is not an input."
    if "entropy" in read:
        text = f"Its code does read the entropy, besides {', '.join(read)}."
    return Measured(text, {"reads_entropy": float("entropy" in read)})


# --- 7: a range for entropy ---------------------------------------------------------------------------------------


def _ranges() -> "SearchStrategy[tuple[Minibatch, int]]":
    """A minibatch, and how many twentieths of ln K the range around its entropy is wider than need be."""
    from hypothesis import strategies as st

    return st.tuples(minibatches(drift=0), st.integers(0, 5))


def _bounds(instance: tuple[Minibatch, int]) -> tuple[float, float]:
    """H_min and H_max, multiples of ln K / 20 inside (0, ln K)."""
    minibatch, slack = instance
    twentieth = math.log(len(minibatch.drift)) / 20
    below = math.floor(float(entropy(minibatch.logits)) / twentieth)
    return max(1, below - slack) * twentieth, min(19, below + 1 + slack) * twentieth


def _leaves(instance: tuple[Minibatch, int]) -> bool:
    low, high = _bounds(instance)
    before, certain = float(entropy(instance[0].logits)), float(entropy_rounding(instance[0].logits))
    if not low + certain < before < high - certain or not _drops(instance[0]):
        return False
    after, rounding = _entropy_after(instance[0], CLIP_COV)
    return after < low - rounding or after > high + rounding


def _describe_range(instance: tuple[Minibatch, int]) -> Counterexample:
    (low, high), minibatch = _bounds(instance), instance[0]
    before, after = float(entropy(minibatch.logits)), _entropy_after(minibatch, CLIP_COV)[0]
    text = f"range [{low:.3g}, {high:.3g}], {minibatch.text}: one step takes entropy from {before:.4g} to {after:.4g}"
    run = _CONTROLS_CODE + f"print({low}, entropy(logits), {high}, entropy(after(clip_cov)))\n"
    return Counterexample(text, minibatch.code + run)


_UPDATES, _PULLS, _STEP_SIZE = 200, 32, 2.0


def _visited(context: Context) -> Measured:
    """The range that two short runs with the published parameters see: from an even start, from a confident mistake."""
    logits, reward = (torch.tensor(x, dtype=torch.float64) for x in ([[0, 0], [4, 0]], [[1, 0], [0, 1]]))
    h = sampled_run(logits, reward, CONTROLS["clip_cov"](), _UPDATES, _PULLS, _STEP_SIZE, context.seed)
    low, high = float(h.min()), float(h[:, 1].max())
    text = (
        f"With the published parameters, two-armed runs of {_UPDATES} updates take entropy from {h[0, 0]:.3g} down to "
        f"{h[-1, 0]:.2g}, and from a confident mistake at {h[0, 1]:.2g} up to {high:.3g} of at most {math.log(2):.3g}."
    )
    return Measured(text, {"lowest_entropy": low, "highest_entropy": high})


# --- 8: KL on every token -----------------------------------------------------------------------------------------


def _moved() -> "SearchStrategy[Minibatch]":
    return minibatches(drift=10)


def _unpenalised(minibatch: Minibatch) -> bool:
    """Whether a token that moved by more than its rounding bears no penalty."""
    batch, tenths = minibatch.batch, minibatch.problem.tenths
    if max(tenths) == min(tenths):
        return False  # nothing to learn from it
    (penalty,) = edited(KL_COV, batch).penalties
    moved = (batch.logp - batch.old_logp).abs() > entropy_after_rounding(minibatch, minibatch.logits)
    return bool((moved & (penalty.coef == 0)).any())


def _describe_unpenalised(minibatch: Minibatch) -> Counterexample:
    batch = minibatch.batch
    (penalty,) = edited(KL_COV, batch).penalties
    charged = float((penalty.coef * (batch.logp - batch.old_logp).abs()).mean())
    old, new = (z.log_softmax(-1) for z in (minibatch.problem.logits, minibatch.logits))
    divergence = float((old.exp() * (old - new)).sum())
    share = f"{int((penalty.coef != 0).sum())} of {batch.mask.sum()} tokens"
    text = f"{minibatch.text}: {share} bear a penalty, which adds {charged:.4g}; KL(pi_old || pi) = {divergence:.4g}"
    run = (
        _CONTROLS_CODE
        + "penalty = edited(kl_cov).penalties[0]\n"
        + "print(penalty.coef.T, (penalty.coef * (batch.logp - batch.old_logp).abs()).mean())\n"
        + "print(old.softmax(-1) @ (old.log_softmax(-1) - logits.log_softmax(-1)))\n"
    )
    return Counterexample(text, minibatch.code + run)


def _restricted(context: Context) -> Measured:
    """What is right about the formula: the direction of the divergence in print, on selected tokens."""
    v = ENTROPY_MECHANISM["kl_cov"].values
    text = f"In print {v['divergence']} is charged on the {v['tokens']} only; the code charges |log ratio| there."
    return Measured(text, {})


# --- 13: reduction valves -----------------------------------------------------------------------------------------


def _loses_less(control: Control):
    """Whether entropy falls with the control, but by less than without."""

    def violates(minibatch: Minibatch) -> bool:
        before, certain = float(entropy(minibatch.logits)), float(entropy_rounding(minibatch.logits))
        (plain, plain_rounding), (kept, kept_rounding) = (_entropy_after(minibatch, c) for c in (NONE, control))
        return plain + plain_rounding < kept - kept_rounding and kept + kept_rounding < before - certain

    return violates


def _describe_less(minibatch: Minibatch, name: str, control: Control) -> Counterexample:
    before = float(entropy(minibatch.logits))
    plain, kept = (_entropy_after(minibatch, c)[0] - before for c in (NONE, control))
    run = _CONTROLS_CODE + f"print(*(entropy(after(c)) - entropy(logits) for c in (none, {name})))\n"
    text = f"{minibatch.text}: entropy changes by {plain:.4g} without control, by {kept:.4g} with {name}"
    return Counterexample(text, minibatch.code + run)


def _valves(context: Context) -> Finding:
    """Refuted once either control loses less entropy than no control; both are shown."""
    found, numbers = [], {}
    for name, control, drift in (("clip_cov", CLIP_COV, 0), ("kl_cov", KL_COV, 10)):
        search = smallest(minibatches(drift, largest=2), _loses_less(control), context)
        numbers[f"{name}_tried"] = search.tried
        if search.found is not None:
            found.append(_describe_less(search.found, name, control))
    if not found:
        return Finding(Verdict.HOLDS, "No minibatch on which either control loses less entropy.", numbers)
    both = Counterexample("; ".join(c.text for c in found), "".join(c.snippet for c in found))
    return Finding(Verdict.REFUTED, f"Smallest counterexamples: {both.text}.", numbers, both)


def _census(context: Context) -> Measured:
    """Every minibatch of a grid: on how many the entropy after the step is higher, or lower, than without control."""
    grid = [
        Minibatch(Problem((many, few), reward), (0, drift))
        for many, few in product((1, 3), (1, 2))
        for reward in ((10, 0), (0, 10))
        for drift in (-3, 0, 3)
    ]
    plain = [_entropy_after(m, NONE) for m in grid]
    told, numbers = [], {}
    for name, control in (("Clip-Cov", CLIP_COV), ("KL-Cov", KL_COV)):
        higher = lower = 0
        for m, (h, rounding) in zip(grid, plain, strict=True):
            after, after_rounding = _entropy_after(m, control)
            higher += after - h > rounding + after_rounding
            lower += h - after > rounding + after_rounding
        numbers |= {f"{name} higher": higher, f"{name} lower": lower}
        told.append(f"{name} leaves more entropy on {higher} and less on {lower}")
    return Measured(f"Of {len(grid)} two-armed minibatches of a grid {' and '.join(told)}.", numbers)


def _ratios_here(context: Context) -> Measured | None:
    told = []
    for world, name in WORLD_NAMES.items():
        pair = [rows(context, "final", world=world, control=c) for c in ("clip_cov", "kl_cov")]
        if all(pair):
            clip, kl = (float(x[0]["entropy_ratio"]) for x in pair)
            told.append(f"{name} {clip:.3g} and {kl:.3g}")
    return (
        Measured(f"Final entropy over that without control, Clip-Cov and KL-Cov: {', '.join(told)}.", {})
        if told
        else None
    )


# --- the list -----------------------------------------------------------------------------------------------------

CONTROL_CLAIMS = (
    noted(
        NOTE,
        6,
        "Clip-Cov sets H_new = clip(H, H_min, H_max).",
        Verdict.REFUTED,
        also(by_search(_two_rewards, _no_function_of_entropy, _describe_two), _what_is_read),
    ),
    noted(
        NOTE,
        7,
        "Clip-Cov keeps entropy within [H_min, H_max].",
        Verdict.REFUTED,
        also(by_search(_ranges, _leaves, _describe_range), _visited),
    ),
    noted(
        NOTE,
        8,
        "KL-Cov minimises L_RL + alpha KL(pi_old || pi_new).",
        Verdict.REFUTED,
        also(by_search(_moved, _unpenalised, _describe_unpenalised), _restricted),
    ),
    noted(NOTE, 9, "KL-Cov costs more compute than Clip-Cov.", Verdict.REFUTED, no_dearer("kl_cov", "clip_cov")),
    noted(
        NOTE,
        13,
        "Clip-Cov and KL-Cov are both valves that reduce entropy.",
        Verdict.REFUTED,
        also(_valves, _census, _ratios_here),
    ),
)
