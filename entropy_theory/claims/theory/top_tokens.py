"""Which tokens the top of eq. 10 really holds, and whether the score ranks tokens by what they do to entropy."""

import itertools
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

import torch

from entropy_theory.claims.claim import ALL_WORLDS, ANYWHERE, Claim, Context, Counterexample, Finding, Verdict
from entropy_theory.claims.search import by_search
from entropy_theory.claims.small import Problem, problems
from entropy_theory.claims.statement import Comparison, States
from entropy_theory.claims.theory.fifty import Policy, exceeds, fifty_digits, rewards
from entropy_theory.claims.theory.over import at_most, entrywise, everywhere
from entropy_theory.claims.theory.rare_action import only_first
from entropy_theory.covariances import centred_product
from entropy_theory.enclosure import Enclosed, policy
from entropy_theory.measure import top_tokens
from entropy_theory.reduce import token_fraction

FRACTIONS = (0.002, 0.02, 0.2)
ZERO = Decimal(0)


def judge_top(context: Context) -> Finding:
    """Each chosen world's real minibatch."""
    parts, numbers = [], {}
    for name, lent in context.worlds.items():
        if (sampled := lent.minibatch) is None:
            continue
        cells = []
        for fraction in FRACTIONS:
            tokens = int(token_fraction(sampled.batch.mask, fraction).sum())
            found = {key: float(x.mean()) for key, x in top_tokens(*sampled, fraction).items()}
            numbers |= {f"{name}_{key}_{fraction:g}": value for key, value in found.items()}
            cells.append(
                f"top {fraction:.1%} ({tokens} tokens) {found['top_negative_share']:.0%} with A < 0, mean probability "
                f"{found['top_probability']:.2g}, {found['top_overlap']:.0%} also at the top by exact effect"
            )
        valid = sampled.batch.mask
        average = float(sampled.batch.logp[valid].exp().double().mean())
        parts.append(f"{name}: {'; '.join(cells)} (all tokens: mean probability {average:.2g})")
    if not parts:
        return Finding(Verdict.EMPIRICAL, "Not measured in this check: it takes sampled tokens of a world's rollout.")
    return Finding(Verdict.EMPIRICAL, f"{'. '.join(parts)}.", numbers, figure="fig08_top_tokens.png")


def check_likely(states: States) -> Comparison:
    """Each state's actions as the tokens of a batch: where log pi is above its mean, the score against the bound."""
    mask = torch.isfinite(states.logits)
    logp, _ = policy(states.logits)
    advantage = Enclosed(torch.where(mask, states.advantage, 0.0))
    count = mask.sum(-1, keepdim=True).double()
    mean_logp, mean_advantage = (x.sum(keepdim=True) / count for x in (logp, advantage))
    score = centred_product(logp.value, advantage.value, mask, dim=-1)
    same_operations = (logp - mean_logp) * (advantage - mean_advantage)
    largest = advantage.value.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True)
    excess = Enclosed(score, same_operations.error) - -mean_logp * (Enclosed(largest) - mean_advantage)
    judged = mask & (logp.value >= mean_logp.value)
    return entrywise(at_most(Enclosed(excess.value.masked_fill(~judged, -torch.inf), excess.error), 0.0))


class Sample(NamedTuple):
    """An action with its score of eq. 10 and the entropy a step on it takes, per unit of step size."""

    action: int
    score: Decimal
    fall: Decimal


@fifty_digits
def samples(problem: Problem) -> list[Sample]:
    """Every action of one state, scored in a batch with the policy's own frequencies.

    The batch means are then -H and 0, so the score is c A; a step on the sample lowers entropy by A (pi c - C).
    """
    pi = Policy(problem.weights)
    advantage = pi.centred(rewards(problem))
    rows = zip(pi.pi, pi.c, advantage, strict=True)
    return [Sample(i, c * a, a * (p * c - pi.collision)) for i, (p, c, a) in enumerate(rows)]


def _raising(problem: Problem) -> list[Sample]:
    """The first action, rewarded alone, if its score is positive and a step on it raises entropy."""
    first = samples(only_first(problem))[0]
    return [first] if exceeds(first.score, ZERO) and exceeds(ZERO, first.fall) else []


def _misranked(problem: Problem) -> list[tuple[Sample, Sample]]:
    """Pairs of which the first has the larger score and the smaller fall."""
    pairs = itertools.permutations(samples(problem), 2)
    return [(a, b) for a, b in pairs if exceeds(a.score, b.score) and exceeds(b.fall, a.fall)]


def _describe(problem: Problem, found: Sequence[Sample]) -> Counterexample:
    parts = (f"action {s.action} scores {s.score:.4g} and changes entropy by {-s.fall:+.4g} eta" for s in found)
    return Counterexample(
        f"{problem.text}: {', '.join(parts)}",
        f"from entropy_theory.claims.small import Problem\nfrom {__name__} import samples\n"
        f"print(samples({problem!r}))\n",
    )


PAPER = "Cui et al. 2025 (arXiv 2505.22617), section 4"
TOP_TOKENS = (
    Claim(
        id="top_tokens",
        statement="The tokens at the top of eq. 10 are likely tokens with a high advantage.",
        source=PAPER,
        recorded=Verdict.EMPIRICAL,
        judge=judge_top,
        places=ALL_WORLDS,
    ),
    Claim(
        id="likely_token_score",
        statement="A token whose log-probability is above the batch mean has a score of at most "
        "(-mean log pi)(A_max - mean A).",
        source="derived here (docs/theory.md, section 8.14)",
        recorded=Verdict.HOLDS,
        judge=everywhere(check_likely),
        places=ANYWHERE,
    ),
    Claim(
        id="score_ranks_effects",
        statement="Of two sampled tokens, a policy-gradient step on the one with the larger score of eq. 10 lowers "
        "entropy more.",
        source=PAPER,
        recorded=Verdict.REFUTED,
        judge=by_search(problems, lambda p: bool(_misranked(p)), lambda p: _describe(p, _misranked(p)[0])),
    ),
    Claim(
        id="score_sign",
        statement="A policy-gradient step on a sampled token with a positive score of eq. 10 lowers entropy.",
        source=PAPER,
        recorded=Verdict.REFUTED,
        judge=by_search(
            lambda: problems(3, 5), lambda p: bool(_raising(p)), lambda p: _describe(only_first(p), _raising(p))
        ),
    ),
)
