"""The records a control reads and edits: what happened (`Batch`) and what will be optimised (`Objective`).

Shapes: E = [..., rows, steps]. A row is a piece of an episode: one bandit pull (1 step), one CartPole segment,
one LLM response. Axes before rows are independent replicas (seeds). Nothing here requires grad.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Literal

import torch
from torch import Tensor

Divergence = Literal["abs", "k1", "k2", "k3"]


@dataclass(frozen=True)
class Batch:
    """What happened in one minibatch.

    logp:      log-probability of the sampled action under the policy as the objective is formed, E, nats
    old_logp:  the same under the policy that sampled (temperature included), E, nats
    advantage: E, reward units
    mask:      bool E, the valid tokens; anything may stand in the others
    entropy:   exact entropy of the policy at the token's state, E, nats
    outcome:   result of the row in [0, 1], [..., rows]
    group:     int64 ids in [0, rows); rows with one id are compared (the samples of a prompt), [..., rows]
    ref_logp, proxy_logp: log-probability under the reference / the filtered policy, E; None unless needed
    collision: Cov_pi(log pi, pi) at the token's state, E, nats; None unless needed
    micro_batch: int64 number of the row's micro-batch, [..., rows]; None where the minibatch is not split
    """

    logp: Tensor
    old_logp: Tensor
    advantage: Tensor
    mask: Tensor
    entropy: Tensor
    outcome: Tensor
    group: Tensor
    ref_logp: Tensor | None = None
    proxy_logp: Tensor | None = None
    collision: Tensor | None = None
    micro_batch: Tensor | None = None


@dataclass(frozen=True)
class Penalty:
    """coef * D(logp, target) added to the loss of each token; coef 0 switches a token's penalty off.

    coef, target: E; divergence: "abs" |x|, "k1" x, "k2" x^2/2, "k3" exp(-x)+x-1 with x = logp - target.
    """

    coef: Tensor
    target: Tensor
    divergence: Divergence


@dataclass(frozen=True)
class Objective:
    """What will be optimised for each token; all E, none requires grad.

    advantage:    reward units
    mask:         bool, counted in numerator and denominator
    weight:       float, numerator only
    clip_low, clip_high: distances of the ratio's clip range from 1; inf switches the clip off
    entropy_coef: reward units per nat
    logit_scale:  factor on the logits of the update's forward pass
    penalties:    see `Penalty`
    """

    advantage: Tensor
    mask: Tensor
    weight: Tensor
    clip_low: Tensor
    clip_high: Tensor
    entropy_coef: Tensor
    logit_scale: Tensor
    penalties: tuple[Penalty, ...] = field(default=())

    @classmethod
    def from_batch(cls, batch: Batch, clip_low: float = 0.2, clip_high: float = 0.2) -> "Objective":
        """The unedited objective: PPO's clipped surrogate, every valid token with weight 1."""
        ones = torch.ones_like(batch.advantage)
        return cls(
            advantage=batch.advantage,
            mask=batch.mask,
            weight=ones,
            clip_low=ones * clip_low,
            clip_high=ones * clip_high,
            entropy_coef=torch.zeros_like(ones),
            logit_scale=ones,
        )


@dataclass(frozen=True)
class Measurement:
    """What a control learns after an optimizer step about its minibatch, [...].

    entropy:      token mean of the exact entropy, nats
    reference_kl: estimate of KL(policy || reference), nats a token (`measure.reference_kl`); None without a reference
    """

    entropy: Tensor
    reference_kl: Tensor | None = None


@dataclass(frozen=True)
class Sampling:
    """How the next rollout samples: temperature [...] (1 leaves the policy as it is)."""

    temperature: Tensor


def map_tensors(record, function):
    """The record with `function` applied to each tensor field (penalties included)."""

    def convert(value):
        if isinstance(value, Tensor):
            return function(value)
        if isinstance(value, tuple):
            return tuple(convert(v) for v in value)
        if is_dataclass(value):
            return map_tensors(value, function)
        return value

    return type(record)(**{f.name: convert(getattr(record, f.name)) for f in fields(record)})


def map_pairs(one, two, function):
    """The record of `function(a, b)` for each pair of tensor fields of two records alike (penalties included)."""
    others = []
    map_tensors(two, lambda tensor: others.append(tensor) or tensor)
    rest = iter(others)
    return map_tensors(one, lambda tensor: function(tensor, next(rest)))
