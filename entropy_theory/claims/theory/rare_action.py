"""Entropy does not always fall: rewarding a rare action raises it. And the two-action case in closed form."""

import torch

from entropy_theory import softmax
from entropy_theory.claims.claim import Claim, Counterexample, Verdict
from entropy_theory.claims.search import by_search
from entropy_theory.claims.small import Problem, problems
from entropy_theory.claims.statement import Comparison, States
from entropy_theory.claims.theory.disagreement import predictions
from entropy_theory.claims.theory.fifty import Policy, fifty_digits
from entropy_theory.claims.theory.over import agree, everywhere
from entropy_theory.enclosure import Enclosed, enclosed, policy

TWO = 2


def only_first(problem: Problem) -> Problem:
    """The same policy with reward 1 on the first action and 0 elsewhere."""
    return problem._replace(tenths=(10,) + (0,) * (len(problem.weights) - 1))


@fifty_digits
def _lowers(problem: Problem) -> bool:
    """The first action is less likely than exp(-H), and rewarding it alone does not raise entropy."""
    first, second = predictions(only_first(problem))
    return Policy(problem.weights).c[0] < 0 and (first <= 0 or second <= 0)


def _describe(problem: Problem) -> Counterexample:
    rewarded = only_first(problem)
    first, second = predictions(rewarded)
    code = "from entropy_theory import theorem_1, theorem_2\n"
    code += "print(theorem_1(logits, reward, 1.0), theorem_2(logits, reward, 1.0))\n"
    return Counterexample(f"{rewarded.text}: {first:.4g} eta and {second:.4g} eta", rewarded.code + code)


def check_two_actions(states: States) -> Comparison:
    """dH/du at gap u = z_0 - z_1 by autograd (z_0 moves, z_1 stays) against -u p (1 - p)."""
    z = states.logits
    z = torch.where(torch.isfinite(z), z, 0.0)
    parameter = z.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(softmax.entropy(parameter).sum(), parameter)
    logp, pi = policy(z)
    arriving = -(pi * logp) - pi  # autograd's own operations, for their rounding
    measured = Enclosed(gradient, (arriving - pi * arriving.sum(keepdim=True)).error)[:, 0]
    u = enclosed(z[:, 0]) - z[:, 1]
    return agree(measured, -(u * pi[:, 0] * pi[:, 1]))


RARE_ACTION = (
    Claim(
        id="rare_good_action",
        statement="Rewarding one action alone raises entropy to first order, under both theorems, if its probability "
        "is below exp(-H).",
        source="derived here (docs/theory.md, section 8.15)",
        recorded=Verdict.HOLDS,
        judge=by_search(problems, _lowers, _describe),
    ),
    Claim(
        id="two_actions",
        statement="With two actions, logit gap u and p = sigmoid(u): dH/du = -u p (1 - p).",
        source="derived here (docs/theory.md, section 1.3)",
        recorded=Verdict.HOLDS,
        judge=everywhere(check_two_actions, actions=TWO),
    ),
)
