"""Claims 24 to 29: what other methods are said to do, against their published formulas."""

import math
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch

from entropy_theory.claims.claim import Context, Counterexample, Verdict
from entropy_theory.claims.ledger.common import Measured, noted, quoted
from entropy_theory.claims.ledger.evidence import all_of, also
from entropy_theory.claims.ledger.formulas import (
    LOG_SQRT_2_PI_E,
    egsw_weights,
    entropic_weight,
    era_continuous,
    era_discrete,
    era_language_model,
    min_p_proxy,
)
from entropy_theory.claims.published import OTHER_PAPERS
from entropy_theory.claims.search import by_search, smallest
from entropy_theory.claims.small import Problem, problems
from entropy_theory.remainder import entropy_rounding, log_prob_rounding, unit_roundoff
from entropy_theory.softmax import entropy, finite_log_probs

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

NOTE = "001"
U = unit_roundoff(torch.float64)


# --- 25: EntroPIC -------------------------------------------------------------------------------------------------


class History(NamedTuple):
    """Entropies so far in hundredths of a nat, and the probability of a token in hundredths."""

    entropies: tuple[int, ...]
    probability: int

    @property
    def weights(self) -> tuple[list[float], list[float], list[float]]:
        """Unclipped control signal, weight of a rewarded and of a punished token, after each entropy."""
        v = OTHER_PAPERS["entropic"].values
        errors = [h / 100 - v["target"] for h in self.entropies]
        gains, pi = (v["proportional"], v["integral"]), self.probability / 100
        pairs = list(zip(errors, accumulate(errors), strict=True))
        signal = [gains[0] * e + gains[1] * total for e, total in pairs]
        return signal, *(
            [entropic_weight(*pair, pi, sign, gains, v["threshold"]) for pair in pairs] for sign in (1, -1)
        )


def _histories(lowest: int) -> "SearchStrategy[History]":
    """Up to four entropies, and a token of probability at least `lowest` hundredths."""
    from hypothesis import strategies as st

    entropies = st.lists(st.integers(0, 150), min_size=1, max_size=4).map(tuple)
    return st.builds(History, entropies, st.integers(lowest, 100))


def _not_proportional_integral(history: History) -> bool:
    """Weights that are not 1 +- clip(K_P e + K_I sum e, -1, 1): rewarded and punished tokens in opposite senses."""
    for signal, rewarded, punished in zip(*history.weights, strict=True):
        alpha = min(1.0, max(-1.0, signal))
        if max(abs(rewarded - 1 - alpha), abs(punished - 1 + alpha)) > 4 * U * (1 + abs(alpha)):
            return True
    return False


def _describe_history(history: History) -> Counterexample:
    signal, rewarded, punished = (values[-1] for values in history.weights)
    h, pi = [x / 100 for x in history.entropies], history.probability / 100
    text = f"entropies {h}, pi = {pi:g}: signal {signal:.3g}, weights {rewarded:.3g} and {punished:.3g}"
    snippet = (
        "from entropy_theory.claims.ledger.note_001_methods import History\n"
        f"print(History({history.entropies}, {history.probability}).weights)\n"
    )
    return Counterexample(text, snippet)


def _confident_tokens_only(context: Context) -> Measured:
    """The smallest history in which the weights do not follow the controller, over tokens of every probability."""
    search, v = smallest(_histories(1), _not_proportional_integral, context), OTHER_PAPERS["entropic"].values
    text = f"That is for tokens of probability above {v['threshold']}, by the factors 1 + alpha and 1 - alpha."
    if isinstance(search.found, History):
        text += f" Others keep the weight 1: {_describe_history(search.found).text}."
    return Measured(text, {"threshold": v["threshold"]})


# --- 26: ERA ------------------------------------------------------------------------------------------------------


class Activated(NamedTuple):
    """An ERA form, whole-number outputs of a network, and the entropy wanted, in tenths of a nat."""

    form: str
    raw: tuple[int, ...]
    tenths: int

    @property
    def floor_and_entropy(self) -> tuple[float, float, float]:
        """The threshold, the entropy of the policy that is sampled, and the bound on its rounding."""
        v, floor = OTHER_PAPERS["era"].values, self.tenths / 10
        if self.form == "continuous":
            logs = era_continuous(self.raw, floor, largest=1.0, smallest=-5.0)
            size = math.fsum(map(abs, logs)) + abs(floor) + len(logs) * (2 + LOG_SQRT_2_PI_E)
            return floor, math.fsum(logs) + len(logs) * LOG_SQRT_2_PI_E, 32 * U * len(logs) * size
        if self.form == "language model":
            z, _ = era_language_model(self.raw, 0.0, 1.0, v["low"], v["high"], v["k"])
            sampled = torch.tensor(z, dtype=torch.float64)
            return v["low"], float(entropy(sampled)), float(entropy_rounding(sampled))
        z = torch.tensor(era_discrete(self.raw, floor, v["tau"]), dtype=torch.float64)
        # the floor of the stored z' is 1 + ln sum h(z'). A stored p makes h_i err by at most 16 u, so ln C by
        # 16 n u / C with C > 0.36; the inverse solves for ln h to the rounding of |z'|, ln |z'| and ln h: 8 |z'| u
        inverse = U * (48 * len(z) + 8 * float(z.abs().max()))
        return floor, float(entropy(z)), float(entropy_rounding(z)) + inverse


def _activated(*forms: str) -> "SearchStrategy[Activated]":
    """Two to four outputs and a feasible floor."""
    from hypothesis import strategies as st

    def of(form: str, actions: int):
        # discrete: 1 + ln m < floor <= 1 + ln(n m) at tau = 4, from 0 to 0.6, 1.0 and 1.3 for 2, 3 and 4 actions
        highest = {2: 6, 3: 10, 4: 13}[actions] if form == "discrete" else 20
        raw = st.tuples(*(st.integers(-30, 30) for _ in range(actions)))
        return st.builds(Activated, st.just(form), raw, st.integers(0, highest))

    return st.one_of(*(of(form, actions) for form in forms for actions in (2, 3, 4)))


def _below_floor(activated: Activated) -> bool:
    floor, h, rounding = activated.floor_and_entropy
    return h < floor - rounding


def _describe_activated(activated: Activated) -> Counterexample:
    floor, h, _ = activated.floor_and_entropy
    text = f"{activated.form} form, outputs {activated.raw}: sampling entropy {h:.3g}, threshold {floor:g}"
    snippet = (
        "from entropy_theory.claims.ledger.note_001_methods import Activated\n"
        f"print(Activated{tuple(activated)!r}.floor_and_entropy)\n"
    )
    return Counterexample(text, snippet)


def _least_surplus(context: Context) -> Measured:
    """How far above its floor the discrete form stays at one-hot outputs: the floor is not tight."""
    pairs = [Activated("discrete", (30, *[-30] * (n - 1)), t).floor_and_entropy for n, t in ((2, 3), (2, 6), (4, 10))]
    told = ", ".join(f"{floor:g} gives {h:.3f}" for floor, h, _ in pairs)
    return Measured(
        f"At nearly one-hot outputs a discrete floor of {told} nats.", {"entropy_at_floor_0.3": pairs[0][1]}
    )


# --- 27: Lp-Reg ---------------------------------------------------------------------------------------------------


def _probabilities(problem: Problem) -> list[float]:
    total = sum(problem.weights)
    return [w / total for w in problem.weights]


def _skewed() -> "SearchStrategy[Problem]":
    """Policies among whose actions are some far below a fiftieth of the largest."""
    return problems(weight=1000)


def _no_target(problem: Problem) -> bool:
    """Something other than: noise at 0, the rest in proportion, summing to 1, none of the rest lowered."""
    kappa, pi = OTHER_PAPERS["lp_reg"].values["kappa"], _probabilities(problem)
    proxy, rounding = min_p_proxy(pi, kappa), 8 * U * len(pi)
    noise = [p <= kappa * max(pi) for p in pi]
    kept = math.fsum(p for p, n in zip(pi, noise, strict=True) if not n)
    wrong = (abs(q * kept - p) > rounding if not n else q != 0 for p, q, n in zip(pi, proxy, noise, strict=True))
    lowered = any(q < p - rounding for p, q, n in zip(pi, proxy, noise, strict=True) if not n)
    return abs(math.fsum(proxy) - 1) > rounding or any(wrong) or lowered


def _describe_target(problem: Problem) -> Counterexample:
    pi = _probabilities(problem)
    text = f"{problem.text}: target {[f'{q:.3g}' for q in min_p_proxy(pi, 0.02)]}"
    snippet = f"from entropy_theory.claims.ledger.formulas import min_p_proxy\nprint(min_p_proxy({pi}, 0.02))\n"
    return Counterexample(text, snippet)


# --- 28: low-probability actions under a bonus and under KL -------------------------------------------------------


def _bonus_change(problem: Problem) -> torch.Tensor:
    """Log-probability change of each action in a step of size 1 up the entropy, dz = -pi c, [actions]."""
    logp, probability = finite_log_probs(problem.logits)
    after = problem.logits - probability * (logp + entropy(problem.logits))
    return after.log_softmax(-1) - logp


def _raises_rare(problem: Problem) -> bool:
    """Whether the bonus makes an action of probability below exp(-H) likelier."""
    change, logp = _bonus_change(problem), problem.logits.log_softmax(-1)
    rounding = 8 * log_prob_rounding(problem.logits)
    rare = logp < -entropy(problem.logits) - rounding
    return bool((rare & (change > rounding)).any())


def _lowers_rare(problem: Problem) -> bool:
    change, logp = _bonus_change(problem), problem.logits.log_softmax(-1)
    rounding = 8 * log_prob_rounding(problem.logits)
    rare = logp < -entropy(problem.logits) - rounding
    return bool((rare & (change < -rounding)).any())


def _describe_rare(problem: Problem) -> Counterexample:
    change, pi = _bonus_change(problem), _probabilities(problem)
    rarest = pi.index(min(pi))
    after = pi[rarest] * math.exp(float(change[rarest]))
    weights = f"({', '.join(map(str, problem.weights))})/{sum(problem.weights)}"
    text = f"pi = {weights}: a bonus step takes the rarest action from {pi[rarest]:.4g} to {after:.4g}"
    run = (
        "from entropy_theory import entropy\n"
        "z = logits.clone().requires_grad_()\n"
        "(up,) = torch.autograd.grad(entropy(z), z)\n"
        "print(logits.softmax(-1), (logits + up).softmax(-1))\n"
    )
    return Counterexample(text, problem.code + run)


def _never_lowered(context: Context) -> Measured:
    search = smallest(problems(), _lowers_rare, context)
    outcome = "no violation" if search.found is None else "violated"
    return Measured(f"The bonus lowers no action below exp(-H): {outcome} in {search.tried:,} instances.", {})


def _kl_keeps_reference(context: Context) -> Measured:
    r"""Exact ascent on -KL(pi || ref) from an even policy: where a rare action of the reference ends up.

    dz_a = -pi_a (log(pi_a / ref_a) - KL).
    """
    reference = torch.tensor([0.97, 0.03], dtype=torch.float64)
    z = torch.zeros(2, dtype=torch.float64)
    for _ in range(2_000):
        pi = z.softmax(-1)
        x = (pi / reference).log()
        z = z - pi * (x - (pi * x).sum())
    rare = float(z.softmax(-1)[1])
    text = f"A KL penalty keeps the reference's level instead: an action of 0.03 there goes from 0.5 to {rare:.4f}."
    return Measured(text, {"rare_action_under_kl": rare})


# --- 29: EGSW -----------------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """A group's advantages and entropies, the response that is raised, by how much in A and H; all in tenths.

    strength, temperature: alpha and P in tenths.
    """

    advantages: tuple[int, ...]
    entropies: tuple[int, ...]
    raised: tuple[int, int]
    strength: int
    temperature: int

    @property
    def weights(self) -> tuple[float, float]:
        """Weight of the first response before and after."""

        def first(up: tuple[int, int]) -> float:
            a, h = (
                [(v + (u if i == 0 else 0)) / 10 for i, v in enumerate(c)] for c, u in zip(self[:2], up, strict=True)
            )
            return egsw_weights(a, h, self.strength / 10, self.temperature / 10)[0]

        return first((0, 0)), first(self.raised)


def _groups() -> "SearchStrategy[Group]":
    from hypothesis import strategies as st

    def of(size: int):
        def tenths(low: int, high: int):
            return st.lists(st.integers(low, high), min_size=size, max_size=size).map(tuple)

        more = st.sampled_from([(1, 0), (0, 1), (5, 0), (0, 5)])
        return st.builds(Group, tenths(-20, 20), tenths(0, 20), more, st.integers(1, 20), st.integers(5, 20))

    return st.one_of(*map(of, (2, 3, 4)))


def _not_raised(group: Group) -> bool:
    before, after = group.weights
    return not after > before * math.exp(-64 * U * len(group.advantages))


def _describe_group(group: Group) -> Counterexample:
    before, after = group.weights
    text = f"A {group.advantages}, H {group.entropies}, raised by {group.raised}: weight {before:.4g} to {after:.4g}"
    snippet = f"from entropy_theory.claims.ledger.note_001_methods import Group\nprint(Group{tuple(group)!r}.weights)\n"
    return Counterexample(text, snippet)


def _punished_suppressed(context: Context) -> Measured:
    """What the softmax over A does to a punished response of the same entropy."""
    good, bad = egsw_weights([1.0, -1.0], [0.5, 0.5], 1.0, 1.0)
    text = (
        f"At equal entropy, A = 1 against -1 (P = 1) weighs {good:.3f} against {bad:.3f}: punished ones hardly count."
    )
    return Measured(text, {"weight_of_punished": bad})


# --- the list -----------------------------------------------------------------------------------------------------

_AER, _LP_REG = OTHER_PAPERS["aer"], OTHER_PAPERS["lp_reg"]

METHOD_CLAIMS = (
    noted(
        NOTE,
        24,
        "AER combines a difficulty-aware coefficient, a target anchored at the initial entropy, a global adjustment.",
        Verdict.HOLDS,
        quoted(
            {"parts": ("difficulty-aware coefficient", "initial-anchored target", "dynamic global coefficient")}, _AER
        ),
    ),
    noted(
        NOTE,
        25,
        "EntroPIC controls the weights of positive and negative samples by a proportional-integral rule.",
        Verdict.HOLDS,
        also(by_search(lambda: _histories(96), _not_proportional_integral, _describe_history), _confident_tokens_only),
    ),
    noted(
        NOTE,
        26,
        "ERA's output activation forces the sampling entropy above a threshold.",
        Verdict.UNDER_ASSUMPTION,
        also(
            by_search(
                lambda: _activated("discrete", "continuous", "language model"),
                _below_floor,
                _describe_activated,
                lambda: _activated("discrete", "continuous"),
                "the form is the discrete or the continuous one",
            ),
            _least_surplus,
        ),
        ("the discrete or the continuous form",),
    ),
    noted(
        NOTE,
        27,
        "Lp-Reg filters noise, renormalises, and pulls low-probability tokens towards the result.",
        Verdict.HOLDS,
        all_of(
            quoted(
                {"parts": ("filter noise", "renormalise", "soft target for low-probability tokens")},
                _LP_REG,
                f" Only for tokens with {' in the '.join(_LP_REG.values['only'])}.",
            ),
            by_search(_skewed, _no_target, _describe_target),
        ),
    ),
    noted(
        NOTE,
        28,
        "A KL penalty or an entropy bonus systematically eliminates low-probability tokens.",
        Verdict.REFUTED,
        also(by_search(problems, _raises_rare, _describe_rare), _never_lowered, _kl_keeps_reference),
    ),
    noted(
        NOTE,
        29,
        "EGSW favours high reward and high uncertainty.",
        Verdict.HOLDS,
        also(by_search(_groups, _not_raised, _describe_group), _punished_suppressed),
    ),
)
