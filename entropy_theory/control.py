"""What an entropy control is: a few pure functions and an honest list of what it needs.

Reading and writing are apart: `edit` reads the state once per optimizer step, `advance` writes it once after.
Every statistic over tokens is taken in `edit`, on the whole minibatch over all micro-batches, without grad, so
that no result depends on the micro-batch split, the order of rows or the padding.
"""

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from torch import Tensor

from entropy_theory.records import Batch, Measurement, Objective, Sampling

State = Any
"""Nested tuples of tensors with replica axes first."""


class Need(Enum):
    """What a world must provide for a control to act."""

    ENTROPY_GRAD = "entropy_grad"  # exact entropy with gradient in the update's forward pass
    SAMPLES = "samples"  # rows are draws from the policy, not an enumeration of the actions
    REF_LOGP = "ref_logp"
    PROXY_LOGP = "proxy_logp"
    COLLISION = "collision"
    LOGIT_SCALE = "logit_scale"
    ACTIVATION = "activation"
    SAMPLING = "sampling"
    WHOLE_GROUPS = "whole_groups"
    STALE = "several updates per rollout"  # ratios that differ from 1
    SEVERAL_STATES = "several states"  # of different entropy in one minibatch
    ENTROPY_SUPPORT = "entropy_support"


class Control(NamedTuple):
    """An edit of the objective; hyper-parameters live in the closure of the factory that made it.

    init(like):                     state for replicas shaped, typed and placed as `like` [...]
    edit(objective, batch, state):  the edited objective; pure
    advance(state, measurement):    the next state; pure, branch-free over replicas
    sample(sampling, state):        how the next rollout samples
    activate(logits):               logits -> logits in every forward pass, sampling included
    proxy(logits):                  logits of the filtered policy of `Batch.proxy_logp`, -inf where filtered out
    entropy_support(logits):        logits of the policy whose entropy the bonus raises, -inf where left out
    needs:                          checked against the world when a run is built
    idle_without:                   where the world lacks one of these the control changes nothing, and a run says so
    check_actions(actions):         raises ValueError where it cannot work with so many actions
    """

    init: Callable[[Tensor], State]
    edit: Callable[[Objective, Batch, State], Objective]
    advance: Callable[[State, Measurement], State]
    sample: Callable[[Sampling, State], Sampling]
    activate: Callable[[Tensor], Tensor]
    proxy: Callable[[Tensor], Tensor]
    entropy_support: Callable[[Tensor], Tensor]
    needs: frozenset[Need]
    idle_without: frozenset[Need]
    check_actions: Callable[[int], None]


def control(
    edit=lambda objective, batch, state: objective,
    init=lambda like: (),
    advance=lambda state, measurement: state,
    sample=lambda sampling, state: sampling,
    activate=lambda logits: logits,
    proxy=lambda logits: logits,
    entropy_support=lambda logits: logits,
    needs=(),
    idle_without=(),
    check_actions=lambda actions: None,
) -> Control:
    """A `Control` in which everything not given is the identity (no state, no needs)."""
    return Control(
        init=init,
        edit=edit,
        advance=advance,
        sample=sample,
        activate=activate,
        proxy=proxy,
        entropy_support=entropy_support,
        needs=frozenset(needs),
        idle_without=frozenset(idle_without),
        check_actions=check_actions,
    )


def chain(*controls: Control) -> Control:
    """Controls one after the other; the order matters where edits do not commute (left acts first)."""

    def edit(objective, batch, state):
        for part, part_state in zip(controls, state, strict=True):
            objective = part.edit(objective, batch, part_state)
        return objective

    def sample(sampling, state):
        for part, part_state in zip(controls, state, strict=True):
            sampling = part.sample(sampling, part_state)
        return sampling

    def in_turn(name):
        def function(logits):
            for part in controls:
                logits = getattr(part, name)(logits)
            return logits

        return function

    def check_actions(actions):
        for part in controls:
            part.check_actions(actions)

    return Control(
        init=lambda like: tuple(part.init(like) for part in controls),
        edit=edit,
        advance=lambda state, measurement: tuple(
            part.advance(s, measurement) for part, s in zip(controls, state, strict=True)
        ),
        sample=sample,
        activate=in_turn("activate"),
        proxy=in_turn("proxy"),
        entropy_support=in_turn("entropy_support"),
        needs=frozenset().union(*(part.needs for part in controls)),
        idle_without=frozenset(),  # of a part, not of the whole
        check_actions=check_actions,
    )


def check_fits(name: str, control: Control, world: str, provides: frozenset[Need], actions: int) -> None:
    """Raise ValueError when `world` does not provide what the control needs, or has too few actions for it."""
    missing = sorted(need.value for need in control.needs - provides)
    if missing:
        raise ValueError(
            f"control {name} needs {', '.join(missing)}, which {world} does not provide; "
            f"choose another control or another setting of {world}"
        )
    control.check_actions(actions)
