"""Claims 1 to 17; those about the controls' code, about chaos and about the runs have files of their own."""

import math
from collections.abc import Callable
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from entropy_theory import theorems
from entropy_theory.claims.claim import Claim, Context, Counterexample, Verdict
from entropy_theory.claims.ledger.common import (
    WORLD_NAMES,
    Measured,
    column,
    entropy_change_rounding,
    mean_rounding,
    noted,
    quoted,
    rank_correlation,
    rows,
    with_interval,
)
from entropy_theory.claims.ledger.evidence import also
from entropy_theory.claims.ledger.note_000_chaos import CHAOS
from entropy_theory.claims.ledger.note_000_controls import CONTROL_CLAIMS
from entropy_theory.claims.ledger.note_000_results import RESULT_CLAIMS
from entropy_theory.claims.published import ENTROPY_MECHANISM
from entropy_theory.claims.search import by_search, smallest
from entropy_theory.claims.small import Problem, problems
from entropy_theory.control import Control
from entropy_theory.covariances import covariance
from entropy_theory.remainder import first_order_rounding, remainder_bound, spread, unit_roundoff
from entropy_theory.softmax import entropy, finite_log_probs

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

NOTE = "000"
SMALL_STEP = 2.0**-7
"""Small enough that the first order of the instances exceeds its remainder bound."""


class Step:
    """A policy-gradient step, exactly; bounds are computed when a sign alone does not settle the matter."""

    def __init__(self, problem: Problem, step_size: float):
        self._logits = problem.logits
        self._logp, self._probability = finite_log_probs(self._logits)
        self._change = theorems.policy_gradient_step(self._logits, problem.advantage, step_size)
        self._after = self._logits + self._change
        self.covariance = float(covariance(self._logp, self._change, self._probability, dim=-1))
        self.change = float(entropy(self._after) - entropy(self._logits))

    @cached_property
    def change_rounding(self) -> float:
        """Of the entropy change."""
        return float(entropy_change_rounding(self._logits, self._after))

    @cached_property
    def certain(self) -> float:
        """Bound on |entropy change + Cov(log pi, dz)| as computed: Lemma 1's remainder and all rounding."""
        remainder = remainder_bound(spread(self._change, self._probability), len(self._change))
        return float(remainder + first_order_rounding(self._logits, self._change)) + self.change_rounding


_STEP_CODE = """\
from entropy_theory import entropy, policy_gradient_step
from entropy_theory.covariances import covariance
change = policy_gradient_step(logits, reward, {step_size})
print(covariance(logits.log_softmax(-1), change, logits.softmax(-1), -1), entropy(logits + change) - entropy(logits))
"""


def _stepped(problem: Problem, step_size: float) -> Counterexample:
    step = Step(problem, step_size)
    text = f"{problem.text}, step size {step_size:g}: Cov(log pi, dz) = {step.covariance:.4g}"
    text = f"{text}, entropy changes by {step.change:.4g}"
    return Counterexample(text, problem.code + _STEP_CODE.format(step_size=step_size))


# --- 1: Cov(state, reward) ----------------------------------------------------------------------------------------


def _state_covariance(problem: Problem) -> Tensor:
    """Cov(s, r) where there is one state, numbered 1."""
    return covariance(torch.ones_like(problem.reward), problem.reward, problem.probability, dim=-1)


def _not_the_state(problem: Problem) -> bool:
    step = Step(problem, SMALL_STEP)
    return abs(step.change - float(_state_covariance(problem))) > step.certain


def _describe_state(problem: Problem) -> Counterexample:
    found = _stepped(problem, SMALL_STEP)
    code = "print(covariance(torch.ones_like(reward), reward, logits.softmax(-1), -1))\n"
    text = f"one state, {found.text}, but Cov(s, r) = {float(_state_covariance(problem)):g}"
    return Counterexample(text, found.snippet + code)


# --- 2: the sign --------------------------------------------------------------------------------------------------


def _falls_at_positive(problem: Problem) -> bool:
    """Whether the covariance is so positive that no remainder could decide the sign, and entropy falls."""
    step = Step(problem, 1.0)
    return step.covariance > step.certain and step.change < -step.change_rounding


def _rises_at_positive(problem: Problem) -> bool:
    """Whether entropy moves with the covariance where no remainder could decide the sign."""
    step = Step(problem, 1.0)
    return step.covariance * step.change > 0 and abs(step.covariance) > step.certain


def _reversed_sign(context: Context) -> Measured:
    search = smallest(problems(), _rises_at_positive, context)
    outcome = f"no violation in {search.tried:,} instances" if search.found is None else "violated as well"
    text = f"With the sign reversed, where the covariance exceeds the remainder bound: {outcome}."
    return Measured(text, {"reversed_holds": float(search.found is None)})


# --- 3: strong and weak coupling ----------------------------------------------------------------------------------


def _pairs() -> "SearchStrategy[tuple[Problem, Problem]]":
    """One policy and two rewards."""
    from hypothesis import strategies as st

    def of(actions: int):
        tenths = st.tuples(*(st.integers(0, 10) for _ in range(actions)))
        pairs = st.tuples(problems(actions, actions), tenths)
        return pairs.map(lambda pair: (pair[0], Problem(pair[0].weights, pair[1])))

    return st.one_of(of(2), of(3))


def _stronger_loses_more(pair: tuple[Problem, Problem]) -> bool:
    """Whether, of two positive covariances that differ beyond the remainders, the larger loses more entropy."""
    weak, strong = (Step(problem, 1.0) for problem in pair)
    if not 0 < weak.covariance < strong.covariance or strong.change >= weak.change:
        return False
    certain = weak.certain + strong.certain
    clear = weak.change - strong.change > weak.change_rounding + strong.change_rounding
    return weak.covariance > weak.certain and strong.covariance - weak.covariance > certain and clear


def _describe_pair(pair: tuple[Problem, Problem]) -> Counterexample:
    weak, strong = (_stepped(problem, 1.0) for problem in pair)
    return Counterexample(f"weak: {weak.text}; strong: {strong.text}", weak.snippet + strong.snippet)


# --- 4: moderate entropy is best ----------------------------------------------------------------------------------


def _laws() -> "SearchStrategy[tuple[int, int, int]]":
    """(a, b, H) in hundredths, hundredths and tenths: the coefficients that the published axes span, and an entropy."""
    from hypothesis import strategies as st

    v = ENTROPY_MECHANISM["law"].values
    a = st.integers(round(100 * v["a_low"]) + 1, round(100 * v["a_high"]))
    return st.tuples(a, st.integers(round(100 * v["b_low"]), round(100 * v["b_high"])), st.integers(1, 30))


def _law(law: tuple[int, int, int]) -> tuple[float, float, float]:
    """Return at entropy 0, at entropy H, and the rounding of their difference (exp is taken to 1 u, as math.exp)."""
    a, b, h = law[0] / 100, law[1] / 100, law[2] / 10
    at_h, rounding = -a * math.exp(h) + b, 8 * unit_roundoff(torch.float64) * (a * math.exp(h) * (1 + h) + b)
    return b - a, at_h, rounding


def _best_at_zero(law: tuple[int, int, int]) -> bool:
    at_zero, at_h, rounding = _law(law)
    return at_zero > at_h + rounding


def _describe_law(law: tuple[int, int, int]) -> Counterexample:
    at_zero, at_h, _ = _law(law)
    a, b, h = law[0] / 100, law[1] / 100, law[2] / 10
    text = f"R = -{a:g} exp(H) + {b:g} is {at_zero:.4g} at H = 0 and {at_h:.4g} at H = {h:g}"
    return Counterexample(text, f"import math\nprint(-{a} + {b}, -{a} * math.exp({h}) + {b})\n")


def _entropy_at_best(context: Context) -> Measured | None:
    """Slopes of the fitted law, and the entropy at which each run earned most, as a share of its largest."""
    fits, points = rows(context, "fit"), rows(context, "fit_points")
    if not fits or not points:
        return None
    slopes = ", ".join(f"{WORLD_NAMES[f['world']]} {with_interval(f, 'a')}" for f in fits)
    shares = {f["world"]: _best_share([p for p in points if p["world"] == f["world"]]) for f in fits}
    told = ", ".join(f"{WORLD_NAMES[w]} {share:.2g}" for w, share in shares.items())
    numbers = {f"entropy_share_at_best_{w}": share for w, share in shares.items()}
    text = f"Fitted here, a is: {slopes}; the best return of a run comes at this share of its largest entropy: {told}."
    kept = rows(context, "final", world="bandit", control="entropy_bonus")
    if kept:
        text += (
            f" The bandit with an entropy bonus earns {with_interval(kept[0], 'return_difference')} more than without."
        )
    return Measured(text, numbers)


def _best_share(points: list[dict[str, str]]) -> float:
    """Mean over seeds of (entropy at the best return) / (largest entropy)."""
    shares = []
    for seed in {p["seed"] for p in points}:
        run = [(float(p["return"]), float(p["entropy"])) for p in points if p["seed"] == seed]
        shares.append(max(run)[1] / max(h for _, h in run))
    return fmean(shares)


# --- 5: collapse and performance ----------------------------------------------------------------------------------


def _returns(problem: Problem) -> tuple[float, float, float]:
    """Expected reward before and after a policy-gradient step of size 1, and the rounding of their difference."""
    after = problem.logits + theorems.policy_gradient_step(problem.logits, problem.advantage, 1.0)
    rounding = mean_rounding(problem.logits, problem.reward) + mean_rounding(after, problem.reward)
    before, then = (float((z.softmax(-1) * problem.reward).sum()) for z in (problem.logits, after))
    return before, then, float(rounding) + unit_roundoff(torch.float64)


def _falls_and_gains(problem: Problem) -> bool:
    step, (before, after, rounding) = Step(problem, 1.0), _returns(problem)
    return step.change < -step.change_rounding and after - before > rounding


def _describe_gain(problem: Problem) -> Counterexample:
    found, (before, after, _) = _stepped(problem, 1.0), _returns(problem)
    code = "print(logits.softmax(-1) @ reward, (logits + change).softmax(-1) @ reward)\n"
    return Counterexample(f"{found.text}, expected reward rises from {before:.4g} to {after:.4g}", found.snippet + code)


def _return_while_collapsing(context: Context) -> Measured | None:
    told, numbers = [], {}
    for world, name in WORLD_NAMES.items():
        curve = rows(context, "curves", world=world, control="none")
        if curve:
            h, r = column(curve, "entropy"), column(curve, "return")
            numbers[f"rank_correlation_{world}"] = rank_correlation(h, r)
            told.append(
                f"{name}: entropy {h[0]:.3g} to {h[-1]:.2g}, return {r[0]:.3g} to {r[-1]:.3g}, rank correlation "
                f"{numbers[f'rank_correlation_{world}']:.2f}"
            )
    return Measured(f"Without control, first to last update: {'; '.join(told)}.", numbers) if told else None


# --- 16: a universal solution -------------------------------------------------------------------------------------


def _kept_and_best(problem: Problem) -> tuple[float, float]:
    """The most that a two-armed policy of at least the initial entropy can earn, and the most that any can."""
    likelier, low, high = (
        max(problem.weights) / sum(problem.weights),
        min(problem.tenths) / 10,
        max(problem.tenths) / 10,
    )
    return low + likelier * (high - low), high


def _costs_return(problem: Problem) -> bool:
    kept, best = _kept_and_best(problem)
    return best - kept > 8 * unit_roundoff(torch.float64) * max(problem.tenths)


def _describe_cost(problem: Problem) -> Counterexample:
    kept, best = _kept_and_best(problem)
    code = (
        "from entropy_theory import entropy\n"
        f"print(entropy(logits), logits.softmax(-1).max() * {max(problem.tenths) / 10} + "
        f"logits.softmax(-1).min() * {min(problem.tenths) / 10}, reward.max())\n"
    )
    text = (
        f"{problem.text}: with entropy kept at {entropy(problem.logits):.3g} or more the return is at most {kept:.3g}"
    )
    return Counterexample(f"{text}, without {best:.3g}", problem.code + code)


def acts_when_sampling(control: Control) -> bool:
    """Whether a control changes the logits or the temperature of a rollout in its first state."""
    from entropy_theory.records import Sampling

    logits, sampling = torch.zeros(2), Sampling(torch.ones(()))
    same = control.activate(logits) is logits and control.sample(sampling, control.init(torch.zeros(()))) is sampling
    return not same


def _at_inference(context: Context) -> Measured:
    from entropy_theory.controls import CONTROLS

    acting = [name for name in ("clip_cov", "kl_cov") if acts_when_sampling(CONTROLS[name]())]
    where = f"sampling is changed by {', '.join(acting)}" if acting else "neither method changes sampling in any way"
    text = f"Inference: run on logits and a temperature, {where}."
    llm = [rows(context, "final", world="llm", control=c) for c in ("clip_cov", "kl_cov")]
    if all(llm):
        differences = " and ".join(with_interval(x[0], "return_difference") for x in llm)
        text += f" In the language model Clip-Cov and KL-Cov changed the pass rate by {differences}."
    return Measured(text, {"methods_acting_when_sampling": len(acting)})


# --- the list -----------------------------------------------------------------------------------------------------


def _refuted(
    number: int, statement: str, violates: Callable, describe: Callable, instances=problems, note=None
) -> Claim:
    judge = by_search(instances, violates, describe)
    return noted(NOTE, number, statement, Verdict.REFUTED, judge if note is None else also(judge, note))


def _two_arms() -> "SearchStrategy[Problem]":
    return problems(largest=2)


_CLAIMS = (
    _refuted(1, "dH ~ Cov(s, r), s the state and r the reward.", _not_the_state, _describe_state),
    _refuted(
        2,
        "A positive covariance raises entropy, a negative one makes it collapse.",
        _falls_at_positive,
        lambda problem: _stepped(problem, 1.0),
        note=_reversed_sign,
    ),
    _refuted(
        3,
        "Strong coupling (a large covariance) promotes exploration, weak coupling suppresses it.",
        _stronger_loses_more,
        _describe_pair,
        _pairs,
    ),
    _refuted(
        4,
        "Performance is a function of entropy whose best is at moderate entropy (said of the law R = -a exp(H) + b).",
        _best_at_zero,
        _describe_law,
        _laws,
        _entropy_at_best,
    ),
    _refuted(
        5,
        "Entropy collapse makes performance fall.",
        _falls_and_gains,
        _describe_gain,
        note=_return_while_collapsing,
    ),
    _refuted(
        16,
        "Preserving entropy is a solution for any RL system, at inference too.",
        _costs_return,
        _describe_cost,
        _two_arms,
        _at_inference,
    ),
    noted(
        NOTE,
        17,
        "The paper was submitted on 28 May 2025.",
        Verdict.HOLDS,
        quoted({"submitted": "2025-05-28"}, ENTROPY_MECHANISM["submitted"]),
    ),
)

NOTE_000 = tuple(sorted((*_CLAIMS, *CONTROL_CLAIMS, *CHAOS, *RESULT_CLAIMS), key=lambda claim: claim.id))
