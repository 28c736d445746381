"""Claims 32, 36, 42, 43, 45 and 48: what the second note reports of training runs, beside the runs stored here."""

import itertools
import math

from entropy_theory.claims.claim import ALL_WORLDS, Context, Counterexample, Finding, Verdict
from entropy_theory.claims.ledger.common import (
    WORLD_NAMES,
    Measured,
    column,
    empirical,
    noted,
    rows,
    with_interval,
)
from entropy_theory.claims.ledger.evidence import also
from entropy_theory.claims.ledger.tabular import ascend, drawn_problems, law
from entropy_theory.claims.ledger.tokens import by_accuracy, minibatches, over_worlds, score, top
from entropy_theory.claims.places import RANDOM
from entropy_theory.claims.published import CUI_RUNS, TABLE_1

NOT_THE_SCALE = "These runs are small; they do not decide what happens at the paper's scale"
PROBLEMS, ARMS = 32, 10
"""The exact bandits that stand in where no run is stored."""


def _collapse(context: Context) -> Measured | None:
    """Entropy at the start, after a tenth of the steps and at the end, without control."""
    parts, numbers = [], {}
    for world, name in WORLD_NAMES.items():
        table = rows(context, "curves", world=world, control="none")
        final = rows(context, "final", world=world, control="none")
        if not table or not final:
            continue
        entropy = column(table, "entropy")
        start, end = float(final[0]["entropy_start"]), float(final[0]["entropy_final"])
        early = (start - entropy[len(entropy) // 10]) / (start - end)
        rising = sum(b > a for a, b in itertools.pairwise(entropy)) / (len(entropy) - 1)
        numbers |= {f"{world} entropy share left": end / start, f"{world} rising steps": rising}
        parts.append(
            f"{name} {start:.3g} to {end:.3g} nats ({end / start:.1%} left; {early:.0%} of the drop in the first "
            f"tenth; the mean rises in {rising:.0%} of the logged intervals)"
        )
    if not parts:
        return None
    return Measured(
        f"Without control entropy goes, here: {'; '.join(parts)}. It is no theorem: one step on a rare good action "
        f"raises it (see claim_41). {NOT_THE_SCALE}, where the report covers 11 models.",
        numbers,
    )


def _two_algorithms(context: Context) -> Measured:
    """The law's coefficients on exact bandits under the plain and under the natural gradient."""
    z, r = drawn_problems(PROBLEMS, ARMS, context.seed)
    plain, natural = law(ascend(z, r, 200, 4.0)), law(ascend(z, r, 200, 0.2, natural=True))
    ratio = (natural[0] / plain[0]).sort().values.tolist()
    ceiling = ((natural[1] - natural[0]) - (plain[1] - plain[0])).abs().sort().values.tolist()
    low, middle, high = (ratio[PROBLEMS * k // 4] for k in (1, 2, 3))
    printed = CUI_RUNS["coefficients"].values
    return Measured(
        f"On {PROBLEMS} exact bandits with {ARMS} arms a of the natural gradient is {middle:.2f} times a of the plain "
        f"one (quartiles {low:.2f} and {high:.2f}); the ceilings b - a differ by {ceiling[PROBLEMS // 2]:.2g} in the "
        f"median. The paper shows {len(printed['algorithms'])} algorithms on {printed['models per algorithm']} model "
        f"and sizes of {printed['families']} family as curves without printed coefficients. To decide it: a and b with "
        "errors for several algorithms on several models, and for at least 4 sizes in 2 families.",
        {"a natural over plain": middle, "quartile low": low, "quartile high": high},
    )


def signs(context: Context) -> Measured | None:
    """How often Lemma 1's covariance is positive in the stored runs, and how often entropy rises nevertheless."""
    parts, numbers = [], {}
    for world, name in WORLD_NAMES.items():
        table = rows(context, "change", world=world)
        if not table:
            continue
        covariances = [-x for x in column(table, "predicted_first_order")]
        changes = column(table, "measured_entropy_change")
        positive = [c > 0 for c in covariances]
        share = sum(positive) / len(table)
        against = sum(d > 0 for d, p in zip(changes, positive, strict=True) if p) / max(1, sum(positive))
        mean = math.fsum(covariances) / len(covariances)
        numbers |= {f"{world} share positive": share, f"{world} rises though positive": against}
        parts.append(f"{name} {share:.0%} positive (mean {mean:.2g}), and entropy rose in {against:.1%} of those steps")
    if not parts:
        return None
    return Measured(f"Cov(log pi, dz) over the logged updates: {'; '.join(parts)}.", numbers)


def _falls_till_exhausted(context: Context) -> Measured | None:
    """Signs in the stored runs, eq. 10's mean in real minibatches, and what entropy the stored runs end with."""
    stored = signs(context)
    told = [stored.text] if stored else []
    tokens = over_worlds(context, lambda t: f"{float(score(t).sum() / t.batch.mask.sum()):.3g}")
    told += [f"Mean of eq. 10 on a real minibatch: {tokens}."] if tokens else []
    left = {
        name: float(row["entropy_share"])
        for world, name in WORLD_NAMES.items()
        for row in rows(context, "final", world=world, control="none")
    }
    told += [f"Of the entropy at the start there is left at the end: {_listed(left, '.1%')}."] if left else []
    return Measured(f"{' '.join(told)} {NOT_THE_SCALE}.", stored.numbers if stored else {}) if told else None


def _listed(values: dict[str, float], form: str) -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in values.items())


def _by_operations(context: Context) -> Measured | None:
    """Covariance within prompts by number of operations in the stored language-model runs."""
    table = rows(context, "difficulty")
    if not table:
        return None
    levels = {row["difficulty"] for row in table}
    runs = {level: [row for row in table if row["difficulty"] == level] for level in sorted(levels, key=float)}
    means = {level: math.fsum(column(run, "cov_group")) / len(run) for level, run in runs.items()}
    rates = {level: math.fsum(column(run, "pass_rate")) / len(run) for level, run in runs.items()}
    told = "; ".join(f"difficulty {k} {means[k]:.3g} (pass rate {rates[k]:.2f})" for k in runs)
    easy, hard = (runs[k] for k in (next(iter(runs)), list(runs)[-1]))
    lower = sum(float(h["cov_group_high"]) < float(e["cov_group_low"]) for e, h in zip(easy, hard, strict=True))
    higher = sum(float(h["cov_group_low"]) > float(e["cov_group_high"]) for e, h in zip(easy, hard, strict=True))
    return Measured(
        f"Mean covariance within prompts over the runs here: {told}. The hardest lie below the easiest, with 95 % "
        f"intervals apart, at {lower} of {len(easy)} logged steps, above them at {higher}; the paper's figure has them "
        f"below.",
        {f"covariance at difficulty {k}": mean for k, mean in means.items()} | {"below": lower, "above": higher},
    )


def _difficulty(context: Context) -> Measured | None:
    """The stored runs, and prompts by pass rate in real minibatches."""
    stored = _by_operations(context)
    groups = []
    for name, tokens in minibatches(context).items():
        found = by_accuracy(tokens)
        thirds = ", ".join(f"{c:.3g} at pass rates up to {high:.2f} ({n} rows)" for high, c, n in found)
        groups += [f"{name} {thirds}"] if found else []
    told = [stored.text] if stored else []
    told += [f"Prompts with a signal in a real minibatch: {'; '.join(groups)}."] if groups else []
    return Measured(f"{' '.join(told)} {NOT_THE_SCALE}.", stored.numbers if stored else {}) if told else None


def _few_tokens(context: Context) -> Finding:
    r"""Whether the top 0.2 % of Table 1 supply most of the sum of scores, of its net and of its positive part.

    The top half contains at least half of what is positive: sum of positive scores >= 0.5 N mean(top half), so the
    share of the positive part is at most this.
    """
    share = 2e-3
    of_net = share * TABLE_1[share] / TABLE_1[1.0]
    of_positive = share * TABLE_1[share] / (0.5 * TABLE_1[0.5])
    numbers = {"of the net sum": of_net, "of the positive part, at most": of_positive}
    told = (
        f"By the paper's Table 1 the top {share:.1%} of tokens supply {of_net:.0%} of the net sum of scores, but at "
        f"most {of_positive:.1%} of its positive part; the rest cancels"
    )
    found = Counterexample(
        told,
        "from entropy_theory.claims.published import TABLE_1\n"
        f"top = {share} * TABLE_1[{share}]\n"
        "print(top / TABLE_1[1.0], top / (0.5 * TABLE_1[0.5]))\n",
    )
    if of_positive > 0.5:
        return Finding(Verdict.HOLDS, f"{told}.", numbers)
    if of_net > 0.5:
        return Finding(Verdict.UNDER_ASSUMPTION, f"{told}.", numbers, found)
    return Finding(Verdict.REFUTED, f"{told}.", numbers, found)


def _who_they_are(context: Context) -> Measured | None:
    """Sign, probability and exact effect of the top 2 % of tokens by eq. 10 in real minibatches."""
    parts, numbers = [], {}
    for name, tokens in minibatches(context).items():
        found = top(tokens, score(tokens), 0.02)
        numbers |= {f"{name} top 2 % negative": found.negative, f"{name} top 2 % of losses": found.of_losses}
        parts.append(
            f"{name} {found.negative:.0%} with A < 0, mean probability {found.probability:.2g}, {found.of_losses:.0%} "
            "of the entropy that tokens take away"
        )
    if not parts:
        return None
    return Measured(f"The top 2 % by score in a real minibatch: {'; '.join(parts)}.", numbers)


def _bonus(context: Context) -> Measured | None:
    """The stored runs with an entropy bonus, and exact bandits with a KL to the initial policy."""
    parts, numbers = [], {}
    for world, name in WORLD_NAMES.items():
        for row in rows(context, "final", world=world, control="entropy_bonus"):
            numbers[f"{world} return difference"] = float(row["return_difference"])
            parts.append(
                f"{name} {with_interval(row, 'entropy_ratio')} times the entropy, return "
                f"{with_interval(row, 'return_difference')}"
            )
    stored = f"An entropy bonus against no control here: {'; '.join(parts)}. " if parts else ""
    z, r = drawn_problems(PROBLEMS, ARMS, context.seed)
    ends = []
    for coefficient in (0.0, 0.05, 0.1):
        path = ascend(z, r, 200, 4.0, kl=coefficient)
        entropy, reward = float(path.entropy[-1].mean()), float(path.reward[-1].mean())
        numbers |= {f"KL {coefficient} entropy": entropy, f"KL {coefficient} reward": reward}
        ends.append(f"{coefficient:g}: {entropy:.2f} nats, reward {reward:.3f}")
    return Measured(
        f"{stored}A KL to the initial policy on {PROBLEMS} exact bandits, by coefficient: {'; '.join(ends)}. "
        f"{NOT_THE_SCALE}: it takes the coefficients of figs. 9 and 10 over several seeds.",
        numbers,
    )


EVERYWHERE = (RANDOM, *ALL_WORLDS)

RUNS_002 = (
    noted(
        "002",
        32,
        "Without intervention policy entropy drops early and goes to 0.",
        Verdict.EMPIRICAL,
        empirical(
            _collapse,
            "entropy per step of runs without control (curves.csv, final.csv)",
            "fig01_entropy_and_return.png",
        ),
    ),
    noted(
        "002",
        36,
        "a and b do not depend on the algorithm and are log-linear in the model's size.",
        Verdict.EMPIRICAL,
        empirical(_two_algorithms, "fits for several algorithms and sizes", "fig03_entropy_return_fit.png"),
    ),
    noted(
        "002",
        42,
        "The covariance is positive almost throughout, so entropy falls until it is exhausted.",
        Verdict.EMPIRICAL,
        empirical(_falls_till_exhausted, "logged updates (change.csv)", "fig02_predicted_change.png"),
        places=EVERYWHERE,
    ),
    noted(
        "002",
        43,
        "Hard prompts have the smaller covariance.",
        Verdict.EMPIRICAL,
        empirical(_difficulty, "covariance by difficulty (difficulty.csv) or a minibatch", "fig05_difficulty.png"),
        places=EVERYWHERE,
    ),
    noted(
        "002",
        45,
        "A few tokens contribute most of the decrease of entropy.",
        Verdict.UNDER_ASSUMPTION,
        also(_few_tokens, _who_they_are),
        ("'most' is counted against the net sum, in which positive and negative scores cancel",),
        EVERYWHERE,
    ),
    noted(
        "002",
        48,
        "An entropy loss does not beat the baseline; a KL to the reference holds entropy and costs accuracy.",
        Verdict.EMPIRICAL,
        empirical(_bonus, "runs with both regularisers", "fig01_entropy_and_return.png"),
    ),
)
"""Claims 32, 36, 42, 43, 45 and 48."""
