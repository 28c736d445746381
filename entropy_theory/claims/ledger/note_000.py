"""Claims 1 to 17."""

import torch

from entropy_theory import theorems
from entropy_theory.claims.claim import Claim, Counterexample, Verdict
from entropy_theory.claims.search import by_search
from entropy_theory.claims.small import Problem, problems
from entropy_theory.covariance import covariance
from entropy_theory.remainder import entropy_rounding, first_order_rounding
from entropy_theory.softmax import entropy, finite_log_probs

NOTE = "study note 000"


def _step(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Cov(log pi, dz) and the entropy change of a policy-gradient step of size 1."""
    change = theorems.policy_gradient_step(problem.logits, problem.advantage, 1.0)
    logp, probability = finite_log_probs(problem.logits)
    return covariance(logp, change, probability, dim=-1), entropy(problem.logits + change) - entropy(problem.logits)


def _opposite(problem: Problem) -> bool:
    cov, change = _step(problem)
    certain = first_order_rounding(problem.logits, problem.advantage)
    return bool((cov > certain) & (change < -2 * entropy_rounding(problem.logits)))


def _describe(problem: Problem) -> Counterexample:
    cov, change = _step(problem)
    return Counterexample(
        f"{problem.text}: Cov(log pi, dz) = {cov:.4g}, entropy changes by {change:.4g}",
        problem.code
        + "from entropy_theory import covariance, entropy, policy_gradient_step\n"
        + "change = policy_gradient_step(logits, reward, 1.0)\n"
        + "print(covariance(logits.log_softmax(-1), change, logits.softmax(-1), -1))\n"
        + "print(entropy(logits + change) - entropy(logits))\n",
    )


NOTE_000 = (
    Claim(
        id="claim_02",
        statement="A positive covariance raises entropy, a negative one makes it collapse.",
        source=f"{NOTE}, claim 2",
        recorded=Verdict.REFUTED,
        judge=by_search(problems, _opposite, _describe),
    ),
)
