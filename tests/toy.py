"""A toy policy with real gradients, in which micro-batches, row order and padding can be varied."""

import torch
from contract import tie_free
from hypothesis import assume
from hypothesis import strategies as st
from strategies import generators

from entropy_theory.loss import minibatch_loss, token_loss
from entropy_theory.records import Batch, Objective, map_tensors
from entropy_theory.reduce import token_count
from entropy_theory.softmax import token_statistics


class Toy:
    """A linear softmax policy on fixed features: parameters move every row's logits, as a network's do."""

    FEATURES, ACTIONS = 3, 4

    def __init__(self, rng, rows, steps, stale):
        def normal(*shape):
            return torch.from_numpy(rng.normal(size=shape))

        self.features = normal(rows, steps, self.FEATURES)
        self.action = torch.from_numpy(rng.integers(0, self.ACTIONS, (rows, steps)))
        self.advantage = normal(rows, steps)
        self.mask = torch.from_numpy(rng.random((rows, steps)) < 0.8)
        self.parameters = normal(self.FEATURES, self.ACTIONS)
        self.old_parameters = self.parameters + stale * 0.3 * normal(self.FEATURES, self.ACTIONS)
        self.group = torch.arange(rows) // 2
        self.outcome = torch.from_numpy(rng.choice([0.0, 1.0], rows))
        self.micro_batch = torch.arange(rows) % 2

    def reordered(self, order):
        """The same rows in another order."""
        other = object.__new__(Toy)
        row_fields = ("features", "action", "advantage", "mask", "group", "outcome", "micro_batch")
        other.__dict__ = {k: v[order] if k in row_fields else v for k, v in self.__dict__.items()}
        return other

    def padded(self, rows, steps):
        """The same tokens in a larger tensor, with garbage in the padding."""
        other = object.__new__(Toy)
        other.__dict__ = dict(self.__dict__)
        old_rows, old_steps = self.mask.shape

        def pad(t, value):
            shape = (old_rows + rows, old_steps + steps, *t.shape[2:]) if t.ndim > 1 else (old_rows + rows,)
            wide = torch.full(shape, value, dtype=t.dtype)
            wide[(slice(old_rows), slice(old_steps))[: t.ndim]] = t
            return wide

        for field, value in (("features", 1.0), ("advantage", 1e9), ("action", 0), ("mask", False)):
            setattr(other, field, pad(getattr(self, field), value))
        other.group, other.outcome = pad(self.group, 0), pad(self.outcome, 0.0)
        other.micro_batch = pad(self.micro_batch, 0)
        return other

    def statistics(self, parameters, rows=slice(None), scale=1.0):
        """(logp, entropy) of the sampled actions. A product and a sum, not a matmul: bit-equal for any split."""
        logits = (self.features[rows].unsqueeze(-1) * parameters).sum(-2)
        return token_statistics(logits * scale, self.action[rows])

    def batch(self):
        logp, entropy = self.statistics(self.parameters)
        old_logp, _ = self.statistics(self.old_parameters)
        reference = logp - 0.1
        return Batch(
            logp,
            old_logp,
            self.advantage,
            self.mask,
            entropy,
            self.outcome,
            self.group,
            reference,
            reference - 0.1,
            entropy / 7,
            self.micro_batch,
        )

    def gradient(self, control, state, splits):
        """Parameter gradient accumulated over micro-batches of rows, and the summed size of its parts."""
        batch = self.batch()
        objective = control.edit(Objective.from_batch(batch), batch, state)
        count = token_count(objective.mask)
        total, size = torch.zeros_like(self.parameters), 0.0
        for rows in splits:
            parameters = self.parameters.clone().requires_grad_()
            scale = objective.logit_scale[rows].unsqueeze(-1)
            logp, entropy = self.statistics(parameters, rows, scale)
            pick = lambda t, rows=rows: t[rows]  # noqa: E731
            loss = token_loss(logp, entropy, map_tensors(batch, pick), map_tensors(objective, pick))
            (gradient,) = torch.autograd.grad(minibatch_loss(loss, count), parameters)
            total, size = total + gradient, size + float(gradient.norm())
        return total, size


@st.composite
def toys(draw):
    """(toy, fresh) with well-separated scores."""
    fresh = draw(st.booleans())
    toy = Toy(draw(generators()), draw(st.integers(2, 6)), draw(st.integers(2, 5)), stale=not fresh)
    assume(tie_free(toy.batch()))
    return toy


def one_row_each(toy):
    return [slice(i, i + 1) for i in range(toy.mask.shape[0])]
