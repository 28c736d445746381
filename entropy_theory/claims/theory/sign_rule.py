"""Which action of a natural-gradient step pushes entropy down: the threshold is exp(-H), not a fixed probability."""

import torch

from entropy_theory import remainder, softmax
from entropy_theory.claims.claim import Claim, Counterexample, Verdict
from entropy_theory.claims.search import by_search
from entropy_theory.claims.small import Problem, problems


def _effects(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Sign by the rule, and A_a times the fall of entropy per unit of logit a by autograd, both [actions]."""
    logits = problem.logits.requires_grad_(True)
    h = softmax.entropy(logits)
    (slope,) = torch.autograd.grad(h, logits)
    logp = torch.log_softmax(logits.detach(), -1)
    above = (logp > -h).double() - (logp < -h).double()
    return above * problem.advantage.sign(), -slope * problem.advantage


def _violates(problem: Problem) -> bool:
    rule, effect = _effects(problem)
    rounding = remainder.first_order_rounding(problem.logits, problem.advantage)
    return bool(((rule * effect) < -rounding).any())


def _describe(problem: Problem) -> Counterexample:
    rule, effect = _effects(problem)
    return Counterexample(
        f"{problem.text}: rule {rule.tolist()}, effects {effect.tolist()}",
        problem.code
        + "from entropy_theory.softmax import entropy, finite_log_probs\n"
        + "logp, pi = finite_log_probs(logits)\n"
        + "print(logp > -entropy(logits), pi * (logp + entropy(logits)) * (reward - (pi * reward).sum()))\n",
    )


SIGN_RULE = Claim(
    id="sign_rule",
    statement="Action a lowers entropy to first order iff (log pi_a + H) A_a > 0: likelier than exp(-H) and good, or "
    "less likely and bad.",
    source="derived here from Lemma 1 (docs/theory.md, section 1.3)",
    recorded=Verdict.HOLDS,
    judge=by_search(problems, _violates, _describe),
)
