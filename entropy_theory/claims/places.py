"""The instances a statement is judged on, by the place they come from: drawn, or real states of a world."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory.claims.instances import drawn_advantage, drawn_change, generate
from entropy_theory.claims.statement import States

RANDOM = "random"


class WorldStates(NamedTuple):
    """States of a world, n of them with the same number of actions.

    logits:    [n, actions]; -inf masks an action
    change:    [n, actions], logits after minus before, nats; None draws one
    advantage: [n, actions], reward units; None draws one
    """

    logits: Tensor
    change: Tensor | None = None
    advantage: Tensor | None = None


def place_states(
    instances: int, seed: int, world_states: Mapping[str, WorldStates] | None = None
) -> dict[str, list[States]]:
    """Instances by place: `instances` drawn ones under "random" (none for 0), and every world's states.

    Args:
      seed: any integer; what a world does not give is drawn from it as well.
    Raises: ValueError for a negative number of instances and for states that are no policies.
    """
    if instances < 0:
        raise ValueError(f"instances must be at least 0, got {instances}")
    places = {RANDOM: generate(instances, seed)} if instances else {}
    for name, states in (world_states or {}).items():
        places[name] = [_validated(name, states, seed)]
    return places


def _validated(name: str, states: WorldStates, seed: int) -> States:
    """Float64 states with everything present; one sentence for what is wrong with them."""
    states = WorldStates(*states)
    logits = states.logits.detach().double().cpu()
    if logits.ndim != 2 or logits.numel() == 0:
        raise ValueError(f"{name}: logits must have shape [states, actions] and not be empty, got {list(logits.shape)}")
    if logits.shape[1] < 2:
        raise ValueError(f"{name}: a policy needs at least 2 actions, got {logits.shape[1]}")
    if torch.isnan(logits).any() or (logits == torch.inf).any():
        raise ValueError(f"{name}: logits must be finite or -inf, got {_first_bad(logits, torch.inf)}")
    support = torch.isfinite(logits)
    if not support.any(-1).all():
        raise ValueError(f"{name}: state {int((~support.any(-1)).nonzero()[0])} has no action with a finite logit")

    def present(label: str, given: Tensor | None, draw: Callable[[Tensor, int], Tensor]) -> Tensor:
        values = draw(logits, seed) if given is None else given.detach().double().cpu()
        if values.shape != logits.shape:
            raise ValueError(f"{name}: {label} has shape {list(values.shape)}, its logits {list(logits.shape)}")
        values = values.masked_fill(~support, 0.0)
        if not torch.isfinite(values).all():
            raise ValueError(f"{name}: {label} must be finite where the logits are, got {_first_bad(values)}")
        return values

    return States(
        logits,
        present("change", states.change, drawn_change),
        present("advantage", states.advantage, drawn_advantage),
    )


def _first_bad(values: Tensor, *allowed_signs: float) -> str:
    """Where the first NaN or infinity stands; with `torch.inf` given only +inf is bad."""
    bad = torch.isnan(values) | ((values == torch.inf) if allowed_signs else torch.isinf(values))
    state, action = bad.nonzero()[0].tolist()
    return f"{values[state, action].item()} at state {state}, action {action}"
