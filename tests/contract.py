"""The contract table: one row for every control in `entropy_theory.controls.CONTROLS`, and what compares them.

`test_every_control.py` holds each control to its row. A control without a row fails there.
"""

import contextlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import oracles
import torch

from entropy_theory import controls
from entropy_theory.control import chain
from entropy_theory.controls import CONTROLS, presets
from entropy_theory.loss import token_loss
from entropy_theory.records import Batch, Measurement, Objective, map_tensors


def unedited(objective: Objective, batch: Batch) -> Objective:
    """What `none` makes of the objective."""
    return objective


def without_clip(objective: Objective, batch: Batch) -> Objective:
    """The objective with PPO's clip switched off."""
    infinite = torch.full_like(objective.clip_low, torch.inf)
    return replace(objective, clip_low=infinite, clip_high=infinite)


@dataclass(frozen=True)
class Row:
    """What the contract needs to know about one control.

    acting:        parameters with which it edits a small batch
    acts_on_fresh: whether it changes the first update after a rollout (ratio 1 everywhere)
    acts_on_stale: whether it changes the later ones
    steps:         optimizer steps after which it acts, each with an entropy that rises by .1 from .1 nats
    drawn:         its edit holds random draws, so permuting rows permutes what is drawn from
    neutral:       parameters that switch it off; None when it has no such setting
    neutral_equals: what the neutral edit must equal
    """

    acting: dict[str, Any]
    acts_on_fresh: bool
    acts_on_stale: bool = True
    steps: int = 0
    drawn: bool = False
    neutral: dict[str, Any] | None = None
    neutral_equals: Callable[[Objective, Batch], Objective] = unedited


CONTRACT: dict[str, Row] = {
    "none": Row(acting={}, acts_on_fresh=False, acts_on_stale=False, neutral={}),
    "entropy_bonus": Row(acting={"coef": 0.3}, acts_on_fresh=True, neutral={"coef": 0.0}),
    "kl_to_reference": Row(acting={"coef": 0.3}, acts_on_fresh=True, neutral={"coef": 0.0}),
    # 0.2 is the clip of `Objective.from_batch`
    "clip_higher": Row(acting={"clip_high": 0.45}, acts_on_fresh=False, neutral={"clip_high": 0.2}),
    # no score lies above 1e9, so nothing is eligible
    "clip_cov": Row(
        acting={"fraction": 0.3, "low": -1e9, "high": 1e9},
        acts_on_fresh=True,
        drawn=True,
        neutral={"low": 1e9, "high": 2e9},
    ),
    "kl_cov": Row(
        acting={"fraction": 0.3, "coef": 0.7},
        acts_on_fresh=False,
        neutral={"coef": 0.0},
        neutral_equals=without_clip,
    ),
    # the first measured entropy is .1: below the targets of .2 and .3
    "adaptive_entropy": Row(acting={"delta": 0.3}, acts_on_fresh=True, steps=1, neutral={"high": 0.0}),
    "aer": Row(acting={"start": 0.3, "high": 0.3}, acts_on_fresh=True, neutral={"high": 0.0}),
    "entropic": Row(
        acting={"target": 0.3, "threshold": 0.3},
        acts_on_fresh=True,
        steps=1,
        neutral={"proportional": 0.0, "integral": 0.0},
    ),
    # the lowest half of the tokens holds punished ones; without a cap on ratios and a pull nothing is left
    "lp_reg": Row(
        acting={"fraction": 0.5, "coef": 0.7},
        acts_on_fresh=True,
        neutral={"coef": 0.0, "ratio_cap": None},
    ),
    # an infinite temperature compares nothing
    "egsw": Row(acting={"alpha": 0.3}, acts_on_fresh=True, neutral={"temperature": math.inf}),
    # the factor cancels in the advantage alone
    "era": Row(acting={"entropy_low": 0.9, "entropy_high": 1.0}, acts_on_fresh=True, neutral={"factor": 1.0}),
    # it edits no objective: the policy itself is another
    "era_activation": Row(acting={}, acts_on_fresh=False, acts_on_stale=False),
    "high_entropy_tokens": Row(acting={"fraction": 0.5}, acts_on_fresh=True, neutral={"fraction": 1.0}),
    "entropy_advantage": Row(acting={"alpha": 0.3}, acts_on_fresh=True, neutral={"alpha": 0.0}),
    "weighted_reinforce": Row(acting={}, acts_on_fresh=True, neutral={"positive_weight": 1.0}),
    "steer": Row(acting={}, acts_on_fresh=True, neutral={"lowest_weight": 1.0}),
    "quantile_advantage": Row(acting={}, acts_on_fresh=True),
    # the exact entropy of the batch stands for that of the policy without its unlikely actions
    "aent": Row(acting={"coef": 0.3}, acts_on_fresh=True, neutral={"coef": 0.0}),
    # it edits no objective: the next rollout is sampled otherwise
    "temperature": Row(acting={}, acts_on_fresh=False, acts_on_stale=False, neutral={"low": 1.0, "high": 1.0}),
    "cov_state": Row(acting={}, acts_on_fresh=True, neutral={"keep": 1.0}),
    "budget": Row(acting={}, acts_on_fresh=True, neutral={"share": 1.0}),
}

NAMES = sorted(CONTRACT)
PRESETS = tuple(f"{name}:{preset}" for name in NAMES for preset in presets(name))
"""Each control with each of its presets, and what a preset does not name at its default."""


def chains():
    """Each control before its neighbour in the alphabet, as the command line joins them, where the two go together."""
    for one, two in itertools.pairwise([*NAMES, NAMES[0]]):
        with contextlib.suppress(ValueError):  # they do what only one can
            controls.build(f"{one}+{two}", {})
            yield f"{one}+{two}"


LARGE = 10  # rows of the fixed batches: enough for every fraction in the table to select some and spare some


def build(name, parameters=None):
    """A control of the table with its acting parameters unless others are given, "name:preset", or a chain "a+b"."""
    if ":" in name:
        name, _, preset = name.partition(":")
        return CONTROLS[name](**presets(name)[preset])
    parts = [CONTROLS[n](**(CONTRACT[n].acting if parameters is None else parameters)) for n in name.split("+")]
    return parts[0] if len(parts) == 1 else chain(*parts)


CHAINS = tuple(chains())


def by_micro_batch(name):
    """Whether a preset takes its statistics over each micro-batch, whose number is then read from the batch."""
    name, _, preset = name.partition(":")
    return bool(preset) and presets(name)[preset].get("scope") == "microbatch"


def drawn(name):
    """Whether the control holds random draws."""
    return any(CONTRACT[n.partition(":")[0]].drawn for n in name.split("+"))


def leading_of(batch):
    return batch.advantage.shape[:-2]


def start(control, batch, steps=0):
    """State after `steps` optimizer steps, for the batch's replicas."""
    like = torch.zeros(leading_of(batch), dtype=batch.advantage.dtype, device=batch.advantage.device)
    state = control.init(like)
    for step in range(steps):
        state = control.advance(state, Measurement(like + 0.1 * (step + 1)))
    return state


def edited(control, batch, steps=0, objective=None):
    """The control's objective for a batch, from the plain objective."""
    return control.edit(objective or Objective.from_batch(batch), batch, start(control, batch, steps))


def leaves(value):
    """All tensors in nested tuples or a record, in order."""
    found = []
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, tuple | list):
        for v in value:
            found += leaves(v)
        return found
    map_tensors(value, lambda t: found.append(t) or t)
    return found


def map_state(state, function):
    """The state with `function` applied to each tensor."""
    if isinstance(state, tuple):
        return tuple(map_state(s, function) for s in state)
    return function(state)


def bits(tensor):
    """The tensor's bytes: NaN equals NaN, 0 differs from -0."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8) if tensor.numel() else tensor


def identical(one, two):
    """Whether two records or states hold the same bits in the same dtypes and shapes."""
    pairs = list(zip(leaves(one), leaves(two), strict=True))
    return all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b)) for a, b in pairs)


def gradients(batch, objective):
    """(loss, its gradients with respect to log-probability and entropy) of every token."""
    logp, entropy = batch.logp.clone().requires_grad_(), batch.entropy.clone().requires_grad_()
    loss = token_loss(logp, entropy, batch, objective)
    return (loss.detach(), *torch.autograd.grad(loss.sum(), (logp, entropy)))


def same_effect(batch, one, two):
    """Whether two objectives give every token the same gradient, bit for bit."""
    pairs = zip(gradients(batch, one)[1:], gradients(batch, two)[1:], strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def tie_free(batch):
    """Whether no two valid tokens of a replica have (nearly) the same score, so that a ranking is well defined."""
    stacks = (t.reshape(-1, *t.shape[-2:]).tolist() for t in (batch.logp, batch.advantage, batch.mask))
    for logp, advantage, mask in zip(*stacks, strict=True):
        scores = oracles.published_scores(logp, advantage, mask)
        valid = sorted(s for s, m in zip(scores, oracles.flat(mask), strict=True) if m)
        # 1e-9: a million times the rounding of scores of size 10
        if any(b - a < 1e-9 for a, b in itertools.pairwise(valid)):
            return False
    return True


def fixed_batch(fresh):
    """A batch with tokens on every side: likely and rare, praised and blamed, ratios inside and outside the clip."""
    rng = torch.Generator().manual_seed(7)
    shape = (LARGE, 4)
    normal = partial(torch.randn, generator=rng, dtype=torch.float64)
    old = -normal(shape).abs() - 0.1
    ratio = torch.tensor([0.6, 0.9, 1.1, 1.35], dtype=torch.float64).expand(shape)
    new = old if fresh else old + ratio.log()
    advantage = normal(shape)
    return Batch(
        logp=new,
        old_logp=old,
        advantage=advantage,
        mask=torch.arange(4) < torch.tensor([4, 3] * (LARGE // 2))[:, None],
        entropy=normal(shape).abs(),
        outcome=torch.tensor([0.0, 1.0] * (LARGE // 2), dtype=torch.float64),
        group=torch.arange(LARGE) // 5,
        ref_logp=new + 0.1 * normal(shape),
        proxy_logp=new + 0.1 * normal(shape),
        # on the whole, entropy is predicted to fall
        collision=(0.1 + 0.5 * (advantage < 0)) * normal(shape).abs(),
        micro_batch=torch.arange(LARGE) % 3,
    )
