"""Claims 50 to 57: cross-entropy, what entropy is traded for, and the tokens of high entropy."""

import math
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from entropy_theory import remainder, theorems
from entropy_theory.claims.claim import ALL_WORLDS, Context, Counterexample, Finding, Verdict
from entropy_theory.claims.ledger.common import WORLD_NAMES, Measured, empirical, mean_rounding, noted, quoted, rows
from entropy_theory.claims.ledger.evidence import all_of, also, remark
from entropy_theory.claims.ledger.note_002 import reward, reward_rounding
from entropy_theory.claims.ledger.note_002_runs import ARMS, PROBLEMS, signs
from entropy_theory.claims.ledger.tabular import ascend, drawn_problems
from entropy_theory.claims.ledger.tokens import minibatches, share_by_entropy
from entropy_theory.claims.places import RANDOM
from entropy_theory.claims.published import CUI_RUNS, EIGHTY_TWENTY
from entropy_theory.claims.search import by_search, smallest
from entropy_theory.claims.small import Problem, column, problems
from entropy_theory.softmax import entropy, finite_log_probs

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

U = remainder.unit_roundoff(torch.float64)
EVERYWHERE = (RANDOM, *ALL_WORLDS)


# --- 50: cross-entropy --------------------------------------------------------------------------------------------


class Two(NamedTuple):
    """Two distributions on the same actions, proportional to whole weights."""

    p: tuple[int, ...]
    q: tuple[int, ...]

    @property
    def logits(self) -> tuple[Tensor, Tensor]:
        """log of the weights, [actions] each, float64."""
        return tuple(torch.tensor(w, dtype=torch.float64).log() for w in self)


def twos() -> "SearchStrategy[Two]":
    """Distributions on 2 to 4 actions."""
    from hypothesis import strategies as st

    return st.one_of(*[st.builds(Two, column(n, 1, 20), column(n, 1, 20)) for n in (2, 3, 4)])


def _cross_entropy(two: Two) -> tuple[Tensor, Tensor, Tensor]:
    """H(P, Q), H(P), KL(P || Q)."""
    z, y = two.logits
    logp, probability = finite_log_probs(z)
    logq, _ = finite_log_probs(y)
    return -(probability * logq).sum(), entropy(z), (probability * (logp - logq)).sum()


def _does_not_add_up(two: Two) -> bool:
    """Rounding: of two means under P, of the log-probabilities in them, of H(P), of the difference and the sum."""
    cross, own, divergence = _cross_entropy(two)
    gap = (cross - own - divergence).abs()
    if gap == 0:
        return False
    z, y = two.logits
    logq = y.log_softmax(-1)
    error = remainder.log_prob_rounding(z) + 2 * remainder.log_prob_rounding(y)
    bound = mean_rounding(z, logq) + mean_rounding(z, z.log_softmax(-1) - logq) + remainder.entropy_rounding(z)
    return bool(gap > bound + 2 * error + 4 * U * (cross.abs() + own + divergence.abs() + logq.abs().max()))


def _three_terms(two: Two) -> Counterexample:
    cross, own, divergence = _cross_entropy(two)
    return Counterexample(
        f"P = {two.p}, Q = {two.q} (weights): H(P, Q) = {cross:.17g}, H(P) + KL = {own + divergence:.17g}",
        f"import torch\np, q = (torch.tensor(w, dtype=torch.float64) / sum(w) for w in ({two.p}, {two.q}))\n"
        "print(-(p * q.log()).sum(), -(p * p.log()).sum() + (p * (p / q).log()).sum())\n",
    )


# --- 51: inversely proportional? ----------------------------------------------------------------------------------


def _exact_covariance(problem: Problem) -> Fraction:
    """Cov_pi(pi, A) without rounding."""
    total = sum(problem.weights)
    pi = [Fraction(w, total) for w in problem.weights]
    mean = sum(p * t for p, t in zip(pi, problem.tenths, strict=True))
    return sum(p * p * (t - mean) for p, t in zip(pi, problem.tenths, strict=True)) / 10


def _change(problem: Problem, times: float = 1.0) -> Tensor:
    """Entropy change per unit of step size (Theorem 1), the advantage taken `times` as large."""
    return theorems.theorem_1(problem.logits, times * problem.advantage, 1.0)


def _certain(problem: Problem, change: Tensor) -> bool:
    """Whether the change is not 0 by more than its rounding."""
    z, advantage = problem.logits, problem.advantage
    of_step = remainder.policy_gradient_step_rounding(z, advantage, 1.0).max()
    rounding = remainder.first_order_rounding(z, theorems.policy_gradient_step(z, advantage, 1.0))
    return bool(change.abs() > rounding + remainder.first_order_effect(of_step, len(z)))


def _not_inverse(problem: Problem) -> bool:
    """Twice the advantage doubles the covariance; in inverse proportion it would not double the change as well."""
    if _exact_covariance(problem) == 0:
        return False
    change = _change(problem)
    return bool(_change(problem, 2.0).abs() > change.abs()) and _certain(problem, change)


def _doubled(problem: Problem) -> Counterexample:
    cov, change, doubled = float(_exact_covariance(problem)), _change(problem), _change(problem, 2.0)
    return Counterexample(
        f"{problem.text}: Cov(pi, A) = {cov:.4g} and dH = {change:.4g} eta; with twice the advantage {2 * cov:.4g} and "
        f"{doubled:.4g} eta, where an inverse proportion would give {change / 2:.4g} eta",
        problem.code
        + "from entropy_theory import theorem_1\nfrom entropy_theory.covariances import covariance\n"
        + "pi = logits.softmax(-1)\n"
        + "for r in (reward, 2 * reward):\n"
        + "    print(covariance(pi, r, pi, -1), theorem_1(logits, r, 1.0))\n",
    )


def _same_sign(problem: Problem) -> bool:
    """Cov(pi, A) > 0 and entropy rises, by more than rounding."""
    if _exact_covariance(problem) <= 0:
        return False
    change = _change(problem)
    return bool(change > 0) and _certain(problem, change)


def _even_with_a_minus(context: Context) -> Measured | None:
    """The reading meant, dH = -k Cov(pi, A): a policy where both are positive."""
    search = smallest(problems(3, 4), _same_sign, context)
    if search.found is None:
        return None
    cov, change = float(_exact_covariance(search.found)), _change(search.found)
    return Measured(
        "Nor is it minus-proportional to Cov(pi, A), for the variable is log pi, and pi A or A: at "
        f"{search.found.text} Cov(pi, A) = {cov:.4g} and entropy still rises by {change:.4g} eta.",
        {"covariance": cov, "entropy change": float(change)},
    )


# --- 52: reward for entropy ---------------------------------------------------------------------------------------


class Trade(NamedTuple):
    """Two equal amounts spent under R = -a exp(H) + b, from different levels; tenths. `unit`: nats or exp(H)."""

    a: int
    start: int
    other: int
    spent: int
    unit: str

    def gain(self, start: int) -> tuple[float, float]:
        """Reward gained by going down from `start` tenths, and a bound on its rounding."""
        a, high, low = self.a / 10, start / 10, (start - self.spent) / 10
        if self.unit == "exp(H)":
            high, low = (math.log1p(x) for x in (high, low))  # exp(H) = 1 + tenths, so H >= 0
        gain = reward(a, 0.0, low) - reward(a, 0.0, high)
        rounding = reward_rounding(a, 0.0, low) + reward_rounding(a, 0.0, high)
        # log1p to 2 u, then exp multiplies: a relative error of (2 u + u) H, and of the tenths u each
        return gain, rounding + math.expm1(8 * U * (1 + high)) * a * math.exp(high) * 2 + U * abs(gain)


def trades(*units: str) -> "SearchStrategy[Trade]":
    """Amounts between levels of 0 and 3 nats (or exp(H) between 1 and 4)."""
    from hypothesis import strategies as st

    def of(a: int, spent: int, left: int, other: int, unit: str) -> Trade:
        return Trade(a, spent + left, spent + other, spent, unit)

    left = st.integers(0, 20)
    return st.builds(of, st.integers(1, 20), st.integers(1, 10), left, left, st.sampled_from(units))


def _another_gain(trade: Trade) -> bool:
    (first, of_first), (second, of_second) = trade.gain(trade.start), trade.gain(trade.other)
    return abs(first - second) > of_first + of_second


def _gains(trade: Trade) -> Counterexample:
    levels = [level / 10 for level in (trade.start, trade.other)]
    first, second = (trade.gain(level)[0] for level in (trade.start, trade.other))
    spent = trade.spent / 10
    return Counterexample(
        f"a = {trade.a / 10}: {spent} nats spent from H = {levels[0]} gain {first:.4g}, from {levels[1]} {second:.4g}",
        f"from math import exp\nfor h in {levels}:\n    print({trade.a / 10} * (exp(h) - exp(h - {spent})))\n",
    )


def _line_or_exponential(context: Context) -> Measured | None:
    """R squared of both laws in the stored runs."""
    fits = rows(context, "fit")
    if not fits:
        return None
    parts = [
        f"{WORLD_NAMES[f['world']]} {float(f['r_squared']):.3f} and {float(f['r_squared_line']):.3f}" for f in fits
    ]
    return Measured(
        f"R^2 of the law in exp(H) and of a line in H on the runs here: {'; '.join(parts)}.",
        {
            f"{f['world']} R^2 {c}": float(f[k])
            for f in fits
            for c, k in (("law", "r_squared"), ("line", "r_squared_line"))
        },
    )


# --- 53: low-hanging fruit ----------------------------------------------------------------------------------------


def _priors(context: Context) -> Measured:
    """Exact bandits whose prior agrees or disagrees with the reward, and the stored runs."""
    _, r = drawn_problems(PROBLEMS, ARMS, context.seed)
    parts, numbers = [], {}
    for name, sign in (("agrees with", 5.0), ("opposes", -5.0)):
        path = ascend(sign * (r - r.mean(-1, keepdim=True)), r, 300, 4.0)
        early = float((path.entropy[:31].diff(dim=0) < 0).double().mean())
        start, end = float(path.entropy[0].mean()), float(path.entropy[-1].mean())
        numbers |= {f"prior {name} reward, falling early": early, f"prior {name} reward, end": end}
        parts.append(f"{name} the reward: {early:.0%} ({start:.2f} to {end:.2f} nats)")
    stored = signs(context)
    return Measured(
        f"Share of the first 30 exact steps that lower entropy on {PROBLEMS} bandits with {ARMS} arms, by whether the "
        f"prior {'; '.join(parts)}. {stored.text + ' ' if stored else ''}It is a heuristic: it takes runs of one model "
        "whose prior is made to agree with the reward to a varied degree.",
        numbers | dict(stored.numbers if stored else {}),
    )


# --- 54 to 57: tokens of high entropy -----------------------------------------------------------------------------


def _from_the_top(context: Context) -> Measured:
    """The printed accuracies, and how much of the push on the logits falls on the top 20 % of tokens here."""
    sizes = {k: v for k, v in EIGHTY_TWENTY["results"].values.items() if isinstance(v, tuple)}
    gains = {size: top - full for size, (full, top) in sizes.items()}
    told = ", ".join(f"{size} {full:.2f} to {top:.2f} ({gains[size]:+.2f})" for size, (full, top) in sizes.items())
    bottom = EIGHTY_TWENTY["results"].values["bottom 80 %"]
    shares = {name: share_by_entropy(tokens, 0.2) for name, tokens in minibatches(context).items()}
    here = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    measured = f" In a real minibatch here they carry of sum |A|(1 - pi): {here}." if here else ""
    return Measured(
        f"{EIGHTY_TWENTY['results'].paper}: all tokens against the top 20 %, {told}; {bottom} on the bottom 80 %. So "
        f"parity at 8B, a gain at 14B and 32B.{measured} No run here trains on the top 20 % alone.",
        {f"gain {size}": gain for size, gain in gains.items()} | shares,
    )


SAME_WORD = {"therefore": ("therefore", "thus", "hence", "so")}
"""What the word in the note (a Chinese conjunction) is in English."""


def _on_the_list(context: Context) -> Finding:
    """Whether the word is on the paper's list of tokens with high entropy."""
    printed = EIGHTY_TWENTY["forks"]
    words = printed.values["words"]
    listed = [word for word in SAME_WORD["therefore"] if word in words]
    kin = [word for word in ("since", "because") if word in words]
    where = f"{printed.paper}, {printed.place}"
    if not listed:
        return Finding(Verdict.EMPIRICAL, f"{where}: not on the list {words}; it takes the entropy of its tokens.")
    told = f"{where} lists {', '.join(map(repr, listed + kin))} among the words of high entropy"
    return Finding(
        Verdict.REFUTED, f"{told}.", {"words listed": len(listed)}, Counterexample(told, f"print({words})\n")
    )


def _no_fine_tuning(context: Context) -> Measured:
    """What the paper's runs start from, and what its comparison measures."""
    models = EIGHTY_TWENTY["models"].values
    tuned = [name for name, start in models.items() if start != "base"]
    gains = [top - full for full, top in list(EIGHTY_TWENTY["results"].values.values())[:3]]
    return Measured(
        f"{len(tuned)} of the {len(models)} models ({', '.join(models)}) had supervised fine-tuning, so the runs say "
        f"nothing of what it taught. That leaving 80 % of the tokens out changes accuracy by {min(gains):+.2f} to "
        f"{max(gains):+.2f} fits 'wasted or harmful' but does not give the reason. To decide it: one model before and "
        "after fine-tuning, trained by RL on all, on the top 20 % and on the bottom 80 % of tokens, with the "
        "log-probability of the 80 % before and after each stage.",
        {"fine-tuned starts": len(tuned), "smallest gain": min(gains), "largest gain": max(gains)},
    )


def _mean_of_tokens(context: Context) -> Measured | None:
    """Mean and spread of the token entropies behind one policy entropy."""
    parts, numbers = [], {}
    for name, tokens in minibatches(context).items():
        entropies = tokens.batch.entropy[tokens.batch.mask].sort(descending=True).values
        top = entropies[: max(1, len(entropies) // 5)]
        mean, share = float(entropies.mean()), float(top.sum() / entropies.sum())
        numbers |= {f"{name} mean": mean, f"{name} share of the top fifth": share}
        parts.append(f"{name} {mean:.3g} nats, {share:.0%} of it on the top fifth of the tokens")
    return Measured(f"Mean token entropy of a real minibatch: {'; '.join(parts)}.", numbers) if parts else None


NOTE_003 = (
    noted(
        "003",
        50,
        "H(P, Q) = H(P) + KL(P || Q), for P absolutely continuous to Q.",
        Verdict.HOLDS,
        by_search(twos, _does_not_add_up, _three_terms),
        ("P << Q",),
    ),
    noted(
        "003",
        51,
        "The entropy change is inversely proportional to the covariance of action probability and advantage.",
        Verdict.REFUTED,
        also(by_search(lambda: problems(2, 4), _not_inverse, _doubled), _even_with_a_minus),
    ),
    noted(
        "003",
        52,
        "Reward gained is proportional to entropy consumed, wherever it is consumed (under R = -a exp(H) + b).",
        Verdict.UNDER_ASSUMPTION,
        also(
            by_search(
                lambda: trades("nats", "exp(H)"),
                _another_gain,
                _gains,
                lambda: trades("exp(H)"),
                "entropy is counted as exp(H), the effective number of actions",
            ),
            _line_or_exponential,
        ),
        ("entropy is counted as exp(H)",),
    ),
    noted(
        "003",
        53,
        "The model first picks low-hanging fruit, so the covariance stays positive and entropy collapses.",
        Verdict.EMPIRICAL,
        empirical(
            _priors, "runs from priors that agree with the reward to a varied degree", "fig02_predicted_change.png"
        ),
    ),
    noted(
        "003",
        54,
        "RL owes its effect almost entirely to the 20 % of tokens of highest entropy.",
        Verdict.EMPIRICAL,
        empirical(_from_the_top, "training on the top 20 % of tokens"),
        places=EVERYWHERE,
    ),
    noted(
        "003",
        55,
        "The tokens of low entropy include words like 'therefore'.",
        Verdict.REFUTED,
        _on_the_list,
    ),
    noted(
        "003",
        56,
        "The other 80 % were learnt well in supervised fine-tuning; RL on them is wasted or harmful.",
        Verdict.EMPIRICAL,
        empirical(_no_fine_tuning, "RL before and after fine-tuning on parts of the tokens"),
    ),
    noted(
        "003",
        57,
        "The entropy mechanism looks at the policy's entropy as a whole, the 80/20 paper at that of single tokens.",
        Verdict.HOLDS,
        also(
            all_of(
                quoted({"entropy of": "the policy"}, CUI_RUNS["entropy"]),
                quoted({"entropy of": "a token"}, EIGHTY_TWENTY["entropy"]),
            ),
            remark("Roughly: the first is the mean of the second."),
            _mean_of_tokens,
        ),
        places=EVERYWHERE,
    ),
)
"""Claims 50 to 57."""
