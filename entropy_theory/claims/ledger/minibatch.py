"""One sampled minibatch of a one-state problem, run through a control's own edit and the package's own loss.

An arm is pulled as often as its weight says, so that the minibatch has the proportions of the sampling policy exactly.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from entropy_theory.claims.small import Problem, problems
from entropy_theory.control import Control
from entropy_theory.loss import minibatch_loss, token_loss
from entropy_theory.records import Batch, Objective
from entropy_theory.reduce import token_count
from entropy_theory.remainder import first_order_effect, log_prob_rounding, probability_rounding, unit_roundoff
from entropy_theory.softmax import entropy

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


class Minibatch(NamedTuple):
    """Pulls of the arms of one state.

    problem: its weights count the pulls, so that pi_old = weights / sum(weights)
    drift:   logits of the policy now minus those at sampling, in tenths; all 0 on the first update of a rollout
    """

    problem: Problem
    drift: tuple[int, ...]

    @property
    def logits(self) -> Tensor:
        """Of the policy now, [actions]."""
        return self.problem.logits + torch.tensor(self.drift, dtype=torch.float64) / 10

    @property
    def arms(self) -> Tensor:
        """The arm of each pull, [pulls]."""
        weights = torch.tensor(self.problem.weights)
        return torch.arange(len(weights)).repeat_interleave(weights)

    @property
    def batch(self) -> Batch:
        """What happened; the advantage is the reward minus its mean under the sampling policy. One step per row."""
        arms, problem = self.arms.unsqueeze(-1), self.problem
        reward = problem.reward[arms]
        return Batch(
            logp=self.logits.log_softmax(-1)[arms],
            old_logp=problem.logits.log_softmax(-1)[arms],
            advantage=problem.advantage[arms],
            mask=torch.ones_like(arms, dtype=torch.bool),
            entropy=entropy(self.logits).expand(arms.shape),
            outcome=reward.squeeze(-1).clamp(0, 1),
            group=torch.zeros_like(arms.squeeze(-1)),
        )

    @property
    def text(self) -> str:
        """In words."""
        moved = f", logits moved by ({', '.join(f'{d / 10:g}' for d in self.drift)}) since" if any(self.drift) else ""
        return f"{sum(self.problem.weights)} pulls of {self.problem.text}{moved}"

    @property
    def code(self) -> str:
        """Python lines that define `logits`, `arms`, `batch` and the function `after(control)`."""
        return (
            self.problem.code
            + f"old, logits = logits, logits + torch.tensor({[d / 10 for d in self.drift]}, dtype=torch.float64)\n"
            + f"arms = torch.arange({len(self.drift)}).repeat_interleave(torch.tensor({list(self.problem.weights)}))\n"
            + _SNIPPET
        )


_SNIPPET = """\
from entropy_theory import CONTROLS, Batch, Objective, entropy, token_loss
arms = arms.unsqueeze(-1)
advantage = (reward - old.softmax(-1) @ reward)[arms]
batch = Batch(logits.log_softmax(-1)[arms], old.log_softmax(-1)[arms], advantage, torch.ones_like(arms).bool(),
              entropy(logits).expand(arms.shape), reward[arms[:, 0]], torch.zeros_like(arms[:, 0]))

def edited(control):
    return control.edit(Objective.from_batch(batch), batch, control.init(torch.zeros(())))

def after(control, step_size=1.0):
    z = logits.clone().requires_grad_()
    loss = token_loss(z.log_softmax(-1)[arms], entropy(z).expand(arms.shape), batch, edited(control))
    return (z - step_size * torch.autograd.grad(loss.mean(), z)[0]).detach()

"""


def edited(control: Control, batch: Batch) -> Objective:
    """The plain objective (clip distances 0.2) after the control's edit in its first state."""
    return control.edit(Objective.from_batch(batch), batch, control.init(torch.zeros(())))


def logits_after(minibatch: Minibatch, control: Control, step_size: float = 1.0) -> Tensor:
    """Logits after one step of plain gradient descent on the edited objective's loss, [actions]."""
    batch, arms = minibatch.batch, minibatch.arms.unsqueeze(-1)
    objective = edited(control, batch)
    z = minibatch.logits.requires_grad_()
    loss = token_loss(z.log_softmax(-1)[arms], entropy(z).expand(arms.shape), batch, objective)
    (gradient,) = torch.autograd.grad(minibatch_loss(loss, token_count(objective.mask)), z)
    return (z - step_size * gradient).detach()


def step_rounding(minibatch: Minibatch, after: Tensor, step_size: float = 1.0) -> Tensor:
    """Bound on the rounding of each of the logits `after` a step, nats.

    A ratio errs by the exponents of two log-probabilities and an exponential, a probability by its own; a mean of
    N products over K actions adds N + K operations, the loss and its derivative at most 20 more. All tokens' terms
    are at most max(ratio) max|A| (+ 1 for a penalty of coefficient 1).
    """
    logits, pulls, u = minibatch.logits, sum(minibatch.problem.weights), unit_roundoff(torch.float64)
    old = minibatch.problem.logits
    exponent = log_prob_rounding(logits) + log_prob_rounding(old) + probability_rounding(logits)
    exponent = exponent + (pulls + len(logits) + 28) * u
    ratio = (logits.log_softmax(-1) - old.log_softmax(-1)).exp().amax()
    largest = step_size * (ratio * minibatch.problem.advantage.abs().amax() + 1)
    return 2 * torch.expm1(exponent) * largest + u * after.abs().amax()


def entropy_after_rounding(minibatch: Minibatch, after: Tensor, step_size: float = 1.0) -> Tensor:
    """Bound on how far the rounding of the logits `after` a step moves their entropy, nats."""
    return first_order_effect(step_rounding(minibatch, after, step_size), len(after))


def minibatches(drift: int, largest: int = 3, weight: int = 8) -> "SearchStrategy[Minibatch]":
    """Strategy of minibatches of 2 to `largest` arms, up to `weight` pulls each, logits moved by up to `drift` tenths.

    The first logit stays, as only differences count. A ratio is then 1 exactly (nothing moved) or transcendental, never
    on the edge of a clip or of |log ratio|, where rounding would choose the side.
    """
    from hypothesis import strategies as st

    def of(arms: int) -> "SearchStrategy[Minibatch]":
        moved = st.tuples(st.just(0), *(st.integers(-drift, drift) for _ in range(arms - 1)))
        return st.builds(Minibatch, problems(arms, arms, weight=weight), moved)

    return st.one_of(*map(of, range(2, largest + 1)))
