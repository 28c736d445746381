"""Claims 46 and 47: what Clip-Cov and KL-Cov do, as printed and as the package's controls do it."""

import math
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import torch

from entropy_theory.claims.claim import Context, Counterexample, Verdict
from entropy_theory.claims.ledger.common import Measured, noted, quoted
from entropy_theory.claims.ledger.evidence import all_of, also
from entropy_theory.claims.published import CUI_RUNS, TABLE_1
from entropy_theory.claims.search import by_search
from entropy_theory.claims.small import column
from entropy_theory.control import Control
from entropy_theory.controls.clip_cov import clip_cov
from entropy_theory.controls.kl_cov import kl_cov
from entropy_theory.loss import token_loss
from entropy_theory.records import Batch, Objective

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

SHARE = 0.25
"""Of the few tokens of an instance; the published 2e-4 would always mean one token."""


class Tokens(NamedTuple):
    """One response: log-probability, advantage and log-ratio to the rollout policy of each token, in tenths."""

    logp: tuple[int, ...]
    advantage: tuple[int, ...]
    drift: tuple[int, ...]
    seed: int

    @property
    def batch(self) -> Batch:
        """The response as a minibatch of one row."""
        logp, advantage, drift = (torch.tensor([c], dtype=torch.float64) / 10 for c in self[:3])
        return Batch(
            logp=logp,
            old_logp=logp - drift,
            advantage=advantage,
            mask=torch.ones_like(logp, dtype=torch.bool),
            entropy=torch.zeros_like(logp),
            outcome=torch.zeros(1, dtype=torch.float64),
            group=torch.zeros(1, dtype=torch.int64),
        )

    @property
    def scores(self) -> list[Fraction]:
        """Eq. 10 in exact arithmetic."""
        n = len(self.logp)
        return [
            Fraction((n * x - sum(self.logp)) * (n * a - sum(self.advantage)), 100 * n * n)
            for x, a in zip(self.logp, self.advantage, strict=True)
        ]

    @property
    def text(self) -> str:
        """In words."""
        return f"log pi = {self.logp}/10, A = {self.advantage}/10, log ratio = {self.drift}/10, seed {self.seed}"


def responses(drift: int) -> "SearchStrategy[Tokens]":
    """Responses of 2 to 8 tokens whose log-ratios lie within `drift` tenths."""
    from hypothesis import strategies as st

    def of(n: int) -> "SearchStrategy[Tokens]":
        logp, advantage, ratio = column(n, -60, 0), column(n, -25, 25), column(n, -drift, drift)
        return st.builds(Tokens, logp, advantage, ratio, st.integers(0, 99))

    return st.one_of(*[of(n) for n in range(2, 9)])


def edited(control: Control, batch: Batch) -> Objective:
    """The plain objective of the batch as the control edits it on its first step."""
    state = control.init(torch.zeros((), dtype=torch.float64))
    return control.edit(Objective.from_batch(batch), batch, state)


def _gradient(batch: Batch, objective: Objective) -> list[float]:
    """Of the loss with respect to each token's log-probability."""
    logp = batch.logp.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(token_loss(logp, batch.entropy, batch, objective).sum(), logp)
    return gradient[0].tolist()


def _clip_cov_differs(tokens: Tokens) -> bool:
    """Another set, another number or another gradient than claimed. A score on the band's edge may go either way."""
    printed, batch = CUI_RUNS["clip_cov"].values, tokens.batch
    low, high = printed["low"], printed["high"]
    objective = edited(clip_cov(SHARE, low, high, seed=tokens.seed), batch)
    dropped = [w == 0 for w in objective.weight[0].tolist()]
    inside, touching = [low < c < high for c in tokens.scores], [low <= c <= high for c in tokens.scores]
    wanted = max(1, math.floor(SHARE * len(dropped)))
    right_number = min(wanted, sum(inside)) <= sum(dropped) <= min(wanted, sum(touching))
    plain, changed = _gradient(batch, Objective.from_batch(batch)), _gradient(batch, objective)
    right_gradient = all(g == (0 if d else p) for g, p, d in zip(changed, plain, dropped, strict=True))
    return not (right_number and right_gradient and all(t for t, d in zip(touching, dropped, strict=True) if d))


def _kl_cov_differs(tokens: Tokens) -> bool:
    """Another number, tokens of a lower score than one that is left alone, or another target than claimed."""
    batch, scores = tokens.batch, tokens.scores
    (penalty,) = edited(kl_cov(SHARE), batch).penalties
    chosen = [c > 0 for c in penalty.coef[0].tolist()]
    taken = [s for s, c in zip(scores, chosen, strict=True) if c]
    left = [s for s, c in zip(scores, chosen, strict=True) if not c]
    right_number = len(taken) == max(1, math.floor(SHARE * len(scores)))
    return not (right_number and min(taken) >= max(left) and torch.equal(penalty.target, batch.old_logp))


def _described(name: str):
    def describe(tokens: Tokens) -> Counterexample:
        return Counterexample(
            f"{name} on {tokens.text}",
            f"from entropy_theory.claims.ledger.note_002_methods import SHARE, Tokens, edited\n"
            f"from entropy_theory.controls import CONTROLS\n"
            f"tokens = Tokens{tuple(tokens)!r}\n"
            f"print(tokens.scores, edited(CONTROLS[{name!r}](SHARE), tokens.batch))\n",
        )

    return describe


def _times_the_mean(context: Context) -> Measured:
    """The band's edges against the mean of Table 1, and the default parameters of the package."""
    printed, mean = CUI_RUNS["clip_cov"].values, TABLE_1[1.0]
    low, high = printed["low"] / mean, printed["high"] / mean
    over = printed["times the mean"]
    return Measured(
        f"The bounds are {low:.0f} and {high:.0f} times the mean {mean} of Table 1, so 'over {over} times' holds for "
        f"{(low > over) + (high > over)} of the two. The search ran the package's clip_cov on drawn responses.",
        {"low over mean": low, "high over mean": high},
    )


def _other_share(context: Context) -> Measured:
    printed = CUI_RUNS["kl_cov"].values
    ratio = printed["share at 7B"] / printed["share at 32B"]
    return Measured(
        f"The share at 7B is {ratio:.0f} times the quoted one. The search ran the package's kl_cov on drawn responses.",
        {"7B over 32B": ratio},
    )


METHODS_002 = (
    noted(
        "002",
        46,
        "Clip-Cov sets the gradient of a random small share (2e-4) of the tokens with a score in [low, high] to 0; "
        "both bounds lie far above the mean score.",
        Verdict.HOLDS,
        also(
            all_of(
                quoted({"share": 2e-4, "drawn": "at random", "becomes 0": "gradient"}, CUI_RUNS["clip_cov"]),
                by_search(lambda: responses(0), _clip_cov_differs, _described("clip_cov")),
            ),
            _times_the_mean,
        ),
    ),
    noted(
        "002",
        47,
        "KL-Cov puts a KL penalty towards the rollout policy on the top share of tokens by score, 2e-4 for example.",
        Verdict.HOLDS,
        also(
            all_of(
                quoted({"share at 32B": 2e-4, "target": "rollout policy"}, CUI_RUNS["kl_cov"]),
                by_search(lambda: responses(5), _kl_cov_differs, _described("kl_cov")),
            ),
            _other_share,
        ),
    ),
)
"""Claims 46 and 47."""
