"""Claims 18 to 31. Here: those about Lemma 1 and the sign of a step."""

from typing import TYPE_CHECKING, NamedTuple

import torch

from entropy_theory import theorems
from entropy_theory.claims.claim import Context, Counterexample, Verdict
from entropy_theory.claims.ledger.common import WORLD_NAMES, Measured, column, entropy_change_rounding, noted, rows
from entropy_theory.claims.ledger.evidence import also
from entropy_theory.claims.ledger.note_001_methods import METHOD_CLAIMS
from entropy_theory.claims.ledger.note_001_runs import RUN_CLAIMS
from entropy_theory.claims.search import by_search
from entropy_theory.claims.small import Problem, problems
from entropy_theory.remainder import first_order_rounding, remainder_bound, spread
from entropy_theory.softmax import entropy, finite_log_probs

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

NOTE = "001"
STEP_SIZE = 2.0**-7

# --- 18: covariance drives entropy --------------------------------------------------------------------------------


def _updates() -> "SearchStrategy[Problem]":
    """Problems whose second column is read as a logit update, -3 to 3 nats."""
    return problems(lowest=-30, highest=30)


def _beyond_remainder(update: Problem) -> bool:
    change, after = update.reward, update.logits + update.reward
    error = entropy(after) - entropy(update.logits) - theorems.entropy_change_first_order(update.logits, change)
    rounding = entropy_change_rounding(update.logits, after) + first_order_rounding(update.logits, change)
    return bool(error.abs() > remainder_bound(spread(change, update.probability), len(change)) + rounding)


def _describe_update(update: Problem) -> Counterexample:
    predicted = theorems.entropy_change_first_order(update.logits, update.reward)
    measured = entropy(update.logits + update.reward) - entropy(update.logits)
    run = (
        "from entropy_theory import entropy, entropy_change_first_order\n"
        "print(entropy(logits + reward) - entropy(logits), entropy_change_first_order(logits, reward))\n"
    )
    text = f"{update.text.replace('reward', 'update')}: entropy changes by {measured:.4g}, predicted {predicted:.4g}"
    return Counterexample(text, update.code + run)


def explained(predicted: list[float], measured: list[float]) -> float:
    """Share of the variance of `measured` that `predicted` explains, without any fit."""
    mean = sum(measured) / len(measured)
    missed = sum((m - p) ** 2 for m, p in zip(measured, predicted, strict=True))
    return 1 - missed / sum((m - mean) ** 2 for m in measured)


def _explained_here(context: Context) -> Measured | None:
    numbers = {}
    for world in WORLD_NAMES:
        table = rows(context, "change", world=world)
        if table:
            numbers[world] = explained(
                *(column(table, c) for c in ("predicted_first_order", "measured_entropy_change"))
            )
    if not numbers:
        return None
    told = ", ".join(f"{WORLD_NAMES[w]} {share:.2%}" for w, share in numbers.items())
    text = f"Of the variance of the entropy changes of whole updates here, -Cov(log pi, dz) explains: {told}."
    return Measured(text, {f"explained_{w}": share for w, share in numbers.items()})


# --- 19: likely and good ------------------------------------------------------------------------------------------


class Likely(NamedTuple):
    """A problem and what counts as a likely action: above average (1/K), or above exp(-H)."""

    problem: Problem
    above_average: bool

    @property
    def threshold(self) -> float:
        """Probability above which an action counts as likely."""
        weights, h = self.problem.weights, entropy(self.problem.logits)
        return 1 / len(weights) if self.above_average else float((-h).exp())


def _likely(above_average: bool) -> "SearchStrategy[Likely]":
    return problems(smallest=3).map(lambda problem: Likely(problem, above_average))


def _effects(problem: Problem) -> torch.Tensor:
    """First-order entropy effect -pi_a c_a A_a of each action in a natural-gradient step of size 1, [actions]."""
    logp, probability = finite_log_probs(problem.logits)
    return -probability * (logp + entropy(problem.logits)) * problem.advantage


def _raisers(likely: Likely) -> torch.Tensor:
    """Likely actions of positive advantage that push entropy up, by more than rounding, bool [actions]."""
    problem = likely.problem
    rounding = first_order_rounding(problem.logits, problem.advantage)
    good = problem.advantage > rounding
    return (problem.probability > likely.threshold) & good & (_effects(problem) > rounding)


def _raises_entropy(likely: Likely) -> bool:
    return bool(_raisers(likely).any())


def _describe_likely(likely: Likely) -> Counterexample:
    problem, action = likely.problem, int(_raisers(likely).nonzero()[0])
    threshold, effect = float((-entropy(problem.logits)).exp()), float(_effects(problem)[action])
    run = (
        "from entropy_theory import entropy\n"
        "pi, advantage = logits.softmax(-1), reward - logits.softmax(-1) @ reward\n"
        "print(pi, (-entropy(logits)).exp(), advantage, -pi * (pi.log() + entropy(logits)) * advantage)\n"
    )
    text = (
        f"{problem.text}: action {action} has pi = {float(problem.probability[action]):.3g}, above "
        f"1/{len(problem.weights)} but below exp(-H) = {threshold:.3g}, A = {float(problem.advantage[action]):.3g}; it "
        f"raises entropy by {effect:.3g} per unit of step size"
    )
    return Counterexample(text, problem.code + run)


# --- 20: collapse is systematic -----------------------------------------------------------------------------------


def _pushed(problem: Problem) -> tuple[float, float, float]:
    """First-order entropy change of a small policy-gradient step, the exact one, and the bounds on both."""
    change = theorems.policy_gradient_step(problem.logits, problem.advantage, STEP_SIZE)
    after = problem.logits + change
    bound = remainder_bound(spread(change, problem.probability), len(change))
    rounding = entropy_change_rounding(problem.logits, after) + first_order_rounding(problem.logits, change)
    exact = entropy(after) - entropy(problem.logits)
    return float(theorems.entropy_change_first_order(problem.logits, change)), float(exact), float(bound + rounding)


def _rises(problem: Problem) -> bool:
    _, exact, bound = _pushed(problem)
    return exact > bound


def _covariance_positive(problem: Problem) -> bool:
    return _pushed(problem)[0] < 0


def _describe_rise(problem: Problem) -> Counterexample:
    first, exact, _ = _pushed(problem)
    run = (
        "from entropy_theory import entropy, policy_gradient_step, theorem_1\n"
        f"change = policy_gradient_step(logits, reward, {STEP_SIZE})\n"
        f"print(theorem_1(logits, reward, {STEP_SIZE}), entropy(logits + change) - entropy(logits))\n"
    )
    text = (
        f"{problem.text}: Cov(log pi, pi A) = {-first / STEP_SIZE:.4g}, a step of size {STEP_SIZE:g} changes entropy "
        f"by {exact:.4g}"
    )
    return Counterexample(text, problem.code + run)


_CLAIMS = (
    noted(
        NOTE,
        18,
        "Entropy change is driven by the covariance of log-probability and logit update (to first order).",
        Verdict.HOLDS,
        also(by_search(_updates, _beyond_remainder, _describe_update), _explained_here),
        ("first order: what is left is at most the remainder bound of Lemma 1",),
    ),
    noted(
        NOTE,
        19,
        "Actions of high probability and high advantage lower entropy.",
        Verdict.UNDER_ASSUMPTION,
        by_search(
            lambda: _likely(above_average=True),
            _raises_entropy,
            _describe_likely,
            lambda: _likely(above_average=False),
            "the action is likelier than exp(-H)",
        ),
        ("high probability means above exp(-H), not above average",),
    ),
    noted(
        NOTE,
        20,
        "Collapse is systematic: the path of RL optimisation determines it.",
        Verdict.UNDER_ASSUMPTION,
        by_search(
            problems,
            _rises,
            _describe_rise,
            lambda: problems().filter(_covariance_positive),
            "Cov(log pi, pi A) is positive",
        ),
        ("the covariance stays positive along the path",),
    ),
)

NOTE_001 = tuple(sorted((*_CLAIMS, *METHOD_CLAIMS, *RUN_CLAIMS), key=lambda claim: claim.id))
