"""Claims 38 to 41 and 44: what the second note derives."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from entropy_theory import remainder, theorems
from entropy_theory.claims.claim import Counterexample, Verdict
from entropy_theory.claims.ledger.common import mean_rounding, noted
from entropy_theory.claims.ledger.evidence import also, remark
from entropy_theory.claims.search import by_search
from entropy_theory.claims.small import Problem, column, problems
from entropy_theory.claims.statement import Comparison
from entropy_theory.claims.step import compare_first_order, measure, return_gradient
from entropy_theory.covariances import covariance
from entropy_theory.softmax import finite_log_probs

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def numbers(values: Tensor) -> str:
    """A few numbers in brackets, four digits each."""
    return f"({', '.join(f'{v:.4g}' for v in values.tolist())})"


# --- 38: the sign of the gradient step ----------------------------------------------------------------------------


def _gradient(problem: Problem) -> Tensor:
    """Gradient of E_pi[r] by autograd, [actions]."""
    return return_gradient(problem.logits[None], problem.reward[None])[0]


def _descends(problem: Problem) -> bool:
    """The two steps differ, and the first of them lowers the return."""
    z, reward, gradient = problem.logits, problem.reward, _gradient(problem)
    gap = (-gradient - problem.probability * problem.advantage).abs()
    if not (gap > 3 * remainder.policy_gradient_step_rounding(z, reward, 1.0)).any():
        return False
    after = z - gradient
    lost = (z.softmax(-1) * reward).sum() - (after.softmax(-1) * reward).sum()
    return bool(lost > mean_rounding(z, reward) + mean_rounding(after, reward))


def _sign_of_step(problem: Problem) -> Counterexample:
    z, reward, gradient = problem.logits, problem.reward, _gradient(problem)
    returns = [(y.softmax(-1) * reward).sum() for y in (z - gradient, z, z + gradient)]
    return Counterexample(
        f"{problem.text}: -grad J = {numbers(-gradient)}, pi A = {numbers(problem.probability * problem.advantage)}; "
        f"the return is {returns[1]:.4g}, after -grad J {returns[0]:.4g}, after +grad J {returns[2]:.4g}",
        problem.code
        + "from entropy_theory import policy_gradient_step\n"
        + "z = logits.requires_grad_()\n"
        + "(gradient,) = torch.autograd.grad((z.softmax(-1) * reward).sum(), z)\n"
        + "print(-gradient, policy_gradient_step(z, reward, 1.0))\n"
        + "print([((z + s * gradient).softmax(-1) * reward).sum().item() for s in (-1, 0, 1)])\n",
    )


# --- 39: Lemma 1 --------------------------------------------------------------------------------------------------


def _lemma_1(problem: Problem) -> Comparison:
    """The rewards taken as a change of the logits."""
    z, change = problem.logits, problem.reward
    step = measure(z, z + change)
    rounding = remainder.first_order_rounding(z, step.change) + remainder.first_order_effect(step.change_error, len(z))
    return compare_first_order(step, theorems.entropy_change_first_order(z, step.change), rounding, len(z))


def _misses_lemma_1(problem: Problem) -> bool:
    return bool(_lemma_1(problem).ratio() > 1)


def _miss(problem: Problem) -> Counterexample:
    found = _lemma_1(problem)
    return Counterexample(
        f"{problem.text} as the change of the logits: misses by {found.error:.4g}, bound {found.bound:.4g}",
        problem.code
        + "from entropy_theory import entropy, entropy_change_first_order\n"
        + "print(entropy(logits + reward) - entropy(logits), entropy_change_first_order(logits, reward))\n",
    )


# --- 40: is the step proportional to the advantage? ---------------------------------------------------------------


def not_proportional(x: Tensor, y: Tensor) -> Tensor:
    """max over pairs of |dx_i dy_j - dx_j dy_i|, differences to entry 0: 0 iff x = k y + constant or y is constant."""
    dx, dy = x - x[0], y - y[0]
    return (dx[:, None] * dy[None] - dx[None] * dy[:, None]).abs().max()


def _not_along_advantage(problem: Problem) -> bool:
    z, reward, gradient = problem.logits, problem.reward, _gradient(problem)
    error = remainder.policy_gradient_step_rounding(z, reward, 1.0).max()
    width = reward.max() - reward.min()
    u = remainder.unit_roundoff(z.dtype)
    return bool(not_proportional(gradient, reward) > (4 * error + 16 * u * gradient.abs().max()) * width)


def _two_steps(problem: Problem) -> Counterexample:
    z, gradient = problem.logits, _gradient(problem)
    natural = theorems.fisher_pseudo_inverse_product(z, gradient)
    return Counterexample(
        f"{problem.text}: A = {numbers(problem.advantage)}, the gradient step is {numbers(gradient)}, the natural one "
        f"{numbers(natural)}; only the second is A up to a constant",
        problem.code
        + "from entropy_theory import policy_gradient_step\n"
        + "from entropy_theory.theorems import fisher_pseudo_inverse_product\n"
        + "step = policy_gradient_step(logits, reward, 1.0)\n"
        + "print(reward - (logits.softmax(-1) * reward).sum(), step, fisher_pseudo_inverse_product(logits, step))\n",
    )


# --- 41: rare and good --------------------------------------------------------------------------------------------


def _one_rewarded() -> "SearchStrategy[Problem]":
    """Problems in which one action, less likely than the others together, has reward 1 and the others 0."""
    from hypothesis import strategies as st

    def rewarded(weights: tuple[int, ...]) -> "SearchStrategy[Problem]":
        rare = [a for a, w in enumerate(weights) if 2 * w < sum(weights)]
        tenths = [tuple(10 * (b == a) for b in range(len(weights))) for a in rare]
        return st.sampled_from(tenths).map(lambda t: Problem(weights, t))

    whole = st.one_of(column(3, 1, 20), column(4, 1, 20))
    return whole.filter(lambda w: 2 * min(w) < sum(w)).flatmap(rewarded)


def _rewarded_below_threshold() -> "SearchStrategy[Problem]":
    def below(problem: Problem) -> bool:
        logp, probability = finite_log_probs(problem.logits)
        return bool(logp[problem.tenths.index(10)] < (probability * logp).sum())

    return _one_rewarded().filter(below)


def _lowers_entropy(problem: Problem) -> bool:
    z, reward = problem.logits, problem.reward
    change = theorems.theorem_1(z, reward, 1.0)
    if change >= 0:
        return False
    step = theorems.policy_gradient_step(z, reward, 1.0)
    moved = remainder.first_order_effect(remainder.policy_gradient_step_rounding(z, reward, 1.0).max(), len(z))
    return bool(change < -remainder.first_order_rounding(z, step) - moved)


def _rare_and_good(problem: Problem) -> Counterexample:
    logp, probability = finite_log_probs(problem.logits)
    threshold = (probability * logp).sum().exp()
    good = probability[problem.tenths.index(10)]
    change = theorems.theorem_1(problem.logits, problem.reward, 1.0)
    return Counterexample(
        f"{problem.text}: the rewarded action has pi = {good:.3g} < 1/2, exp(-H) is {threshold:.3g}, and entropy "
        f"changes by {change:.4g} per unit of step size",
        problem.code
        + "from entropy_theory import entropy, theorem_1\n"
        + "print(logits.softmax(-1), torch.exp(-entropy(logits)), theorem_1(logits, reward, 1.0))\n",
    )


# --- 44: where the token score comes from -------------------------------------------------------------------------


class Pair(NamedTuple):
    """Two states visited equally often; `centred`: whether the advantage has mean 0 at each of them."""

    first: Problem
    second: Problem
    centred: bool

    @property
    def logits(self) -> Tensor:
        """[2, actions]; -inf fills up the state of fewer actions."""
        return pad_sequence([self.first.logits, self.second.logits], True, -torch.inf)

    @property
    def advantage(self) -> Tensor:
        """[2, actions]."""
        return pad_sequence([p.advantage if self.centred else p.reward for p in self[:2]], True)


def pairs(centred: bool) -> "SearchStrategy[Pair]":
    """Two small problems with the advantage centred per state or not."""
    from hypothesis import strategies as st

    return st.builds(Pair, problems(2, 3), problems(2, 3), st.just(centred))


def _score_and_theorem(pair: Pair) -> tuple[Tensor, Tensor]:
    """Expectation of eq. 10 over the tokens of both states, and the mean of Theorem 2's covariances."""
    logp = pair.logits.log_softmax(-1)
    score = covariance(logp, pair.advantage, logp.exp() / 2, dim=(-2, -1))
    return score, theorems.theorem_2(pair.logits, pair.advantage, -1.0).mean()


def _score_is_not_theorem(pair: Pair) -> bool:
    score, theorem = _score_and_theorem(pair)
    z, advantage = pair.logits, pair.advantage
    gap, width = (score - theorem).abs(), advantage.max() - advantage.min()
    if gap <= remainder.unit_roundoff(z.dtype) * width:  # one rounding: below any bound
        return False
    logp = z.log_softmax(-1).flatten()
    actions = len(logp)
    bound = remainder.first_order_rounding(logp, advantage.flatten())  # eq. 10 is Lemma 1's form on all tokens
    bound = bound + remainder.first_order_rounding(z, advantage).max()
    # its logits are rounded log-probabilities, and the mean that a centred advantage lacks is rounded too
    bound = bound + remainder.second_order_effect(remainder.log_prob_rounding(z).max(), width, actions)
    bound = bound + remainder.first_order_effect(mean_rounding(z, advantage).max(), actions)
    return bool(gap > bound)


def _between_states(pair: Pair) -> Counterexample:
    score, theorem = _score_and_theorem(pair)
    means = (pair.logits.softmax(-1) * pair.advantage).sum(-1)
    lines = "\n".join(
        f"z{i} = torch.tensor({list(map(float, p.weights))}, dtype=torch.float64).log()\n"
        f"a{i} = torch.tensor({[t / 10 for t in p.tenths]}, dtype=torch.float64)"
        + (f"\na{i} = a{i} - (z{i}.softmax(-1) * a{i}).sum()" if pair.centred else "")
        for i, p in enumerate(pair[:2])
    )
    return Counterexample(
        f"state 1 {pair.first.text}, state 2 {pair.second.text}: E[A|s] = {means[0]:.3g} and {means[1]:.3g}; eq. 10 "
        f"has mean {score:.4g}, Theorem 2's covariance {theorem:.4g}, the rest is between the states",
        "import torch\nfrom entropy_theory import theorem_2\nfrom entropy_theory.covariances import covariance\n"
        f"{lines}\n"
        "logp = torch.cat([z0.log_softmax(-1), z1.log_softmax(-1)])\n"
        "print(covariance(logp, torch.cat([a0, a1]), logp.exp() / 2, -1))\n"
        "print((theorem_2(z0, a0, -1.0) + theorem_2(z1, a1, -1.0)) / 2)\n",
    )


THEORY_002 = (
    noted(
        "002",
        38,
        "z_new - z = -eta grad_z J, which for a tabular softmax is eta pi A.",
        Verdict.REFUTED,
        also(
            by_search(lambda: problems(2, 4), _descends, _sign_of_step),
            remark(
                "The sign is copied from section 3.2 of the paper (its appendix E has +). The second formula also "
                "needs E_pi A = 0, an exact expectation and one state."
            ),
        ),
    ),
    noted(
        "002",
        39,
        "Lemma 1: to first order H(z + dz) - H(z) = -Cov_pi(log pi, dz).",
        Verdict.HOLDS,
        also(
            by_search(lambda: problems(2, 4, -20, 20), _misses_lemma_1, _miss),
            remark(
                "Judged against the proved remainder bound. Two slips of the pen in the note are left aside: the index "
                "of the softmax denominator (s' for a') and a limit of theta where its maximum is meant."
            ),
        ),
    ),
    noted(
        "002",
        40,
        "In policy-gradient methods the change of a logit is proportional to its advantage.",
        Verdict.REFUTED,
        also(
            by_search(lambda: problems(2, 4), _not_along_advantage, _two_steps),
            remark("The plain gradient gives pi A, the natural gradient A."),
        ),
    ),
    noted(
        "002",
        41,
        "Raising a rare action of high advantage increases entropy.",
        Verdict.UNDER_ASSUMPTION,
        by_search(
            _one_rewarded,
            _lowers_entropy,
            _rare_and_good,
            _rewarded_below_threshold,
            "rare means pi < exp(-H)",
        ),
        ("rare: pi_a < exp(-H)",),
    ),
    noted(
        "002",
        44,
        "The token score of eq. 10 has Theorem 2's covariance as its expectation.",
        Verdict.UNDER_ASSUMPTION,
        by_search(
            lambda: pairs(False),
            _score_is_not_theorem,
            _between_states,
            lambda: pairs(True),
            "E[A|s] = 0 at every state",
        ),
        ("E[A|s] = 0 at every state, which a response's group-normalised advantage does not grant",),
    ),
)
"""Claims 38 to 41 and 44."""
