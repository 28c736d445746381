"""Claims 21 to 23, 30 and 31: what the stored runs, and small exact problems, say of entropy and performance."""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from entropy_theory.claims.claim import Context, Counterexample, Verdict
from entropy_theory.claims.ledger.common import (
    WORLD_NAMES,
    Measured,
    column,
    empirical,
    noted,
    rank_correlation,
    rows,
    with_interval,
)
from entropy_theory.claims.ledger.evidence import also, remark
from entropy_theory.claims.ledger.tabular import ascend, drawn_problems
from entropy_theory.claims.published import ENTROPY_MECHANISM, OTHER_PAPERS
from entropy_theory.claims.search import by_search
from entropy_theory.claims.small import LARGEST_WEIGHT
from entropy_theory.remainder import unit_roundoff

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

NOTE = "001"
U = unit_roundoff(torch.float64)


# --- 21: the law --------------------------------------------------------------------------------------------------


def _law_here(context: Context) -> Measured | None:
    fits = rows(context, "fit")
    if not fits:
        return None
    told = "; ".join(
        f"{WORLD_NAMES[f['world']]} a = {with_interval(f, 'a')}, R2 = {float(f['r_squared']):.3f} (a line in H: "
        f"{float(f['r_squared_line']):.3f})"
        for f in fits
    )
    numbers = {f"r_squared_{f['world']}": float(f["r_squared"]) for f in fits}
    text = (
        f"Fitted to the runs without control: {told}. Every a is positive, so entropy is given up for return in all of "
        "them; with a control on, the paper itself sees no such relation."
    )
    if not all(float(f["a_low"]) > 0 for f in fits):
        text = f"Fitted to the runs without control: {told}. Not every a is positive."
    return Measured(text, numbers)


# --- 22: no lasting gain without management -----------------------------------------------------------------------


def _late_gains(context: Context) -> Measured | None:
    """Return at half of the run and at its end, without control and with the control that ends best."""
    told, numbers = [], {}
    for world, name in WORLD_NAMES.items():
        table = rows(context, "curves", world=world)
        ends = {row["control"]: float(row["return"]) for row in table}  # the last row of each control stands
        if "none" not in ends:
            continue
        curve = column([row for row in table if row["control"] == "none"], "return")
        half = curve[len(curve) // 2]
        best = max(ends, key=lambda control: ends[control])
        numbers |= {f"late_gain_{world}": curve[-1] - half, f"best_minus_none_{world}": ends[best] - curve[-1]}
        told.append(
            f"{name} {half:.3g} at half time, {curve[-1]:.3g} at the end, best of all {ends[best]:.3g} ({best})"
        )
    if not told:
        return None
    v, where = OTHER_PAPERS["lp_reg_results"].values, OTHER_PAPERS["lp_reg_results"]
    text = (
        f"Return without control: {'; '.join(told)}. Partly contradicted in print: {where.paper}, {where.place}, has "
        f"GRPO with one update per rollout at {v['on_policy_grpo']} and KL-Cov at {v['kl_cov']}."
    )
    return Measured(text, numbers)


# --- 23: a fixed bonus --------------------------------------------------------------------------------------------


def _bonus_here(context: Context) -> Measured | None:
    lines = [row for row in rows(context, "final", control="entropy_bonus")]
    if not lines:
        return None
    told = "; ".join(
        f"{WORLD_NAMES[r['world']]} {with_interval(r, 'entropy_ratio')} times the entropy, return "
        f"{with_interval(r, 'return_difference')} more"
        for r in lines
    )
    paper, skywork, lp = ENTROPY_MECHANISM["bonus"], OTHER_PAPERS["skywork_bonus"], OTHER_PAPERS["lp_reg_bonus"]
    text = (
        f"One coefficient per world, against no control: {told}. In print: {paper.place} has little effect at 1e-4 and "
        f"1e-3 and an explosion at {paper.values['explodes']:g}; {skywork.paper} sees explosions from "
        f"{min(skywork.values['explodes']):g} on; {lp.paper} {lp.values['entropy_bonus']} with a bonus of "
        f"{lp.values['coef']:g} against {lp.values['grpo']} without."
    )
    return Measured(text, {f"entropy_ratio_{r['world']}": float(r["entropy_ratio"]) for r in lines})


# --- 30: a high initial entropy -----------------------------------------------------------------------------------

_PROBLEMS, _ACTIONS, _STEPS = 400, 10, 100
_SCALE = 4.0
"""Standard deviation of the initial logits: wide enough that many policies start nearly decided."""


def _initial_entropy(context: Context) -> Measured:
    """Exact ascent from many random initial policies: what those of high and of low initial entropy reach."""
    logits, reward = drawn_problems(_PROBLEMS, _ACTIONS, context.seed)
    path = ascend(_SCALE * logits, reward, steps=_STEPS, step_size=2.0)
    share = path.reward[-1] / reward.amax(-1)
    high = path.entropy[0] > path.entropy[0].median()
    ends = [float(share[half].mean()) for half in (high, ~high)]
    failed = [float((share[half] < 0.9).double().mean()) for half in (high, ~high)]
    along = rank_correlation(path.entropy[0].tolist(), share.tolist())
    text = (
        f"{_PROBLEMS} one-state problems of {_ACTIONS} actions, {_STEPS} exact steps: the half of higher initial "
        f"entropy ends at {ends[0]:.3f} of the best return, {failed[0]:.0%} below 0.9, the other half {ends[1]:.3f} "
        f"and {failed[1]:.0%}; rank correlation {along:.2f}. {OTHER_PAPERS['entropy_aware_init'].paper} reports it for "
        "tasks with discrete actions; there is no evidence for language models, which start from one checkpoint: it "
        "would take final accuracy from several checkpoints of different entropy."
    )
    return Measured(text, {"high_end": ends[0], "low_end": ends[1], "high_failed": failed[0], "low_failed": failed[1]})


# --- 31: a proxy of exploration -----------------------------------------------------------------------------------


DRAWS = (2, 3, 5, 10, 30)
"""How often a policy may draw."""


class Explorers(NamedTuple):
    """Two policies on the same actions, by whole weights."""

    one: tuple[int, ...]
    other: tuple[int, ...]


def shannon(weights: tuple[int, ...]) -> float:
    """Entropy of the policy weights / sum(weights), nats."""
    total = sum(weights)
    return math.fsum(-w / total * math.log(w / total) for w in weights)


def coverage(weights: tuple[int, ...], draws: int) -> float:
    """Expected number of different actions in so many draws, sum_a 1 - (1 - pi_a)^draws."""
    total = sum(weights)
    return math.fsum(1 - (1 - w / total) ** draws for w in weights)


def _policies(actions: int) -> "SearchStrategy[tuple[int, ...]]":
    from hypothesis import strategies as st

    return st.tuples(*(st.integers(1, LARGEST_WEIGHT) for _ in range(actions)))


def _explorers() -> "SearchStrategy[Explorers]":
    """Two policies on three or four actions; on two, every measure of spread agrees."""
    from hypothesis import strategies as st

    return st.one_of(*(st.builds(Explorers, _policies(k), _policies(k)) for k in (3, 4)))


def _by_temperature() -> "SearchStrategy[Explorers]":
    """The second policy is the first at temperature 1/2, 1/3 or 1/4: its weights are powers of the first's."""
    from hypothesis import strategies as st

    def of(actions: int):
        pairs = st.tuples(_policies(actions), st.integers(2, 4))
        return pairs.map(lambda pair: Explorers(pair[0], tuple(w ** pair[1] for w in pair[0])))

    return st.one_of(of(3), of(4))


def _explores_less(pair: Explorers) -> int | None:
    """The first number of draws in which the policy of higher entropy covers fewer actions; None if there is none.

    A term errs by at most 4 u (a logarithm, a quotient, a product) or (draws + 3) u, their sum is exact to 1 u.
    """
    actions, more_entropy = len(pair.one), shannon(pair.one) - shannon(pair.other)
    if abs(more_entropy) <= 16 * U * actions:
        return None
    for draws in DRAWS:
        more = coverage(pair.one, draws) - coverage(pair.other, draws)
        if more_entropy * more < 0 and abs(more) > 4 * U * actions * (draws + 4):
            return draws
    return None


def _describe_explorers(pair: Explorers) -> Counterexample:
    draws = _explores_less(pair)
    told = " and ".join(
        f"pi = ({', '.join(map(str, w))})/{sum(w)} with entropy {shannon(w):.4g} tries {coverage(w, draws):.4g}"
        for w in pair
    )
    run = f"""\
import torch
from entropy_theory import entropy
for weights in {tuple(pair)}:
    pi = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    print(entropy(pi.log()), (1 - (1 - pi) ** {draws}).sum())
"""
    return Counterexample(f"in {draws} draws {told} different actions", run)


_POOR = OTHER_PAPERS["lp_reg_entropy"]

RUN_CLAIMS = (
    noted(
        NOTE,
        21,
        "R = -a exp(H) + b: performance is bought with entropy.",
        Verdict.EMPIRICAL,
        empirical(
            _law_here, "returns and entropies along runs without control (fit.csv)", "fig03_entropy_return_fit.png"
        ),
        ("runs without entropy or KL terms",),
    ),
    noted(
        NOTE,
        22,
        "Without entropy management RL cannot keep gaining.",
        Verdict.EMPIRICAL,
        empirical(
            _late_gains, "return along runs with and without control (curves.csv)", "fig01_entropy_and_return.png"
        ),
    ),
    noted(
        NOTE,
        23,
        "A fixed entropy bonus is unstable or without effect in language models.",
        Verdict.EMPIRICAL,
        empirical(
            _bonus_here, "final entropy and return of runs with a bonus (final.csv)", "fig01_entropy_and_return.png"
        ),
    ),
    noted(
        NOTE,
        30,
        "A high initial entropy helps (entropy-aware initialisation).",
        Verdict.EMPIRICAL,
        empirical(_initial_entropy, "runs from initial policies of different entropy"),
    ),
    noted(
        NOTE,
        31,
        "Entropy is a proxy of exploration.",
        Verdict.UNDER_ASSUMPTION,
        also(
            by_search(
                _explorers,
                lambda pair: _explores_less(pair) is not None,
                _describe_explorers,
                _by_temperature,
                "the policies differ by their temperature only",
            ),
            remark(f"{_POOR.paper}, {_POOR.place}: {_POOR.says}."),
        ),
        ("the policies that are compared differ by temperature only",),
    ),
)
