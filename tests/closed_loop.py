"""Batches written out by hand, and training in a closed loop on a policy small enough to enumerate."""

from dataclasses import replace

import torch

from entropy_theory.loss import token_loss
from entropy_theory.measure import reference_kl
from entropy_theory.records import Batch, Measurement, Objective
from entropy_theory.softmax import entropy

DOUBLE = torch.float64


def tensor(values):
    return torch.tensor(values, dtype=DOUBLE)


def batch_of(logp, advantage, **fields):
    """A batch of one replica from nested lists; whatever is not given is of no interest."""
    logp = tensor(logp)
    given_fields = {name: tensor(value) for name, value in fields.items() if name not in ("mask", "group")}
    plain = Batch(
        logp=logp,
        old_logp=logp,
        advantage=tensor(advantage),
        mask=torch.tensor(fields.get("mask", torch.ones_like(logp).bool().tolist())),
        entropy=torch.ones_like(logp),
        outcome=torch.zeros(len(logp), dtype=DOUBLE),
        group=torch.tensor(fields.get("group", [0] * len(logp))),
    )
    return replace(plain, **given_fields)


def after(control, entropies):
    """The control's state after steps of these mean entropies."""
    state = control.init(torch.zeros((), dtype=DOUBLE))
    for measured in entropies:
        state = control.advance(state, Measurement(tensor(measured)))
    return state


def objective_after(control, entropies, batch):
    return control.edit(Objective.from_batch(batch), batch, after(control, entropies))


def replicas(*tensors):
    """Nested [rows][steps] lists of each replica."""
    return zip(*(t.reshape(-1, *t.shape[-2:]).tolist() for t in tensors), strict=True)


def exact_gradient(control, logits, reward, reference, state=()):
    """Ascent direction of the logits at ratio 1: every action with either outcome, 1 with probability `reward`.

    Returns: the direction, the batch, and the probability of each of its rows.
    """
    logits = logits.clone().requires_grad_()
    logp = torch.log_softmax(logits, -1)
    chance = (logp.detach().exp() * torch.stack([1 - reward, reward])).reshape(-1, 1)
    outcome = torch.arange(2, dtype=DOUBLE).repeat_interleave(len(logits)).unsqueeze(-1)
    both = logp.repeat(2).unsqueeze(-1)
    batch = Batch(
        logp=both.detach(),
        old_logp=both.detach(),
        advantage=outcome - (chance * outcome).sum(),
        mask=chance > 0,
        entropy=entropy(logits).detach().expand(both.shape),
        outcome=outcome.squeeze(-1),
        group=torch.zeros(len(both), dtype=torch.int64),
        ref_logp=reference.repeat(2).unsqueeze(-1),
    )
    objective = control.edit(Objective.from_batch(batch), batch, state)
    spread = entropy(control.entropy_support(logits)).expand(both.shape)
    (gradient,) = torch.autograd.grad((chance * token_loss(both, spread, batch, objective)).sum(), logits)
    return -gradient, batch, chance


def train(control, logits, reward, steps, lr=0.5):
    """Gradient ascent in a closed loop: (last logits, entropy before each step)."""
    reference, seen = torch.log_softmax(logits, -1), []
    state = control.init(torch.zeros((), dtype=DOUBLE))
    for _ in range(steps):
        gradient, batch, chance = exact_gradient(control, logits, reward, reference, state)
        seen.append(float(entropy(logits)))
        state = control.advance(state, Measurement(entropy(logits), reference_kl(batch, chance)))
        logits = logits + lr * gradient
    return logits, seen


REWARD = tensor([1.0, 0.5, 0.0, 0.0])
FLAT = tensor([0.3, 0.0, -0.2, 0.1])
