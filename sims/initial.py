"""How networks begin."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory.draw import uniform
from sims.networks import Networks, init_networks


def _pair(key: Tensor, layer: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Weight [..., rows, columns] and bias [..., 1, columns] of a layer, uniform in +-1 / sqrt(rows)."""
    draws = uniform(key, torch.full_like(key, -1 - layer), (rows + 1) * columns).unflatten(-1, (rows + 1, columns))
    numbers = (2 * draws - 1) / rows**0.5
    return numbers[..., :-1, :], numbers[..., -1:, :]


def default_networks(key: Tensor, inputs: int, hidden: int, actions: int, dtype: torch.dtype) -> Networks:
    """Weights and biases as `torch.nn.Linear` begins, uniform in +-1 / sqrt(inputs of the layer).

    The actor's head is a hundred times that of the orthogonal start: a policy that is not uniform, and differs from
    state to state.

    Args:
      as `networks.init_networks`.
    """
    actor, critic = key
    layers = (
        *_pair(key, 0, inputs, hidden),
        *_pair(key, 1, hidden, hidden),
        *_pair(actor, 2, hidden, actions),
        *_pair(critic, 2, hidden, 1),
    )
    return Networks(*(layer.to(dtype).contiguous() for layer in layers))


INITIALISATIONS = {"orthogonal": init_networks, "default": default_networks}
"""(draw keys [2, seeds], inputs, hidden, actions, dtype) -> networks."""


class Beginning(NamedTuple):
    """The networks that were chosen, their policies' mean entropy (nats) and how many were drawn, both [seeds]."""

    networks: Networks
    entropy: Tensor
    draws: Tensor


def first_above(
    draw: Callable[[int], Networks], entropy_of: Callable[[Networks], Tensor], least: float, tries: int
) -> Beginning:
    """Of each seed the first networks whose entropy is at least `least`, and after `tries` the best of them.

    Entropy-aware model initialisation: Sensors 2022, 22(15), 5845 (arXiv 2108.10533). The rule is the paper's; its
    threshold and number of tries are unverified (its body could not be read), and keeping the best is ours.

    Args:
      draw: number of the try -> networks; entropy_of: networks -> [seeds], nats; least: nats; tries: >= 1.
    """
    networks = draw(0)
    best = entropy_of(networks)
    draws = torch.ones(best.shape, dtype=torch.int64)
    for number in range(1, tries):
        searching = best < least
        if not searching.any():
            break
        drawn = draw(number)
        found = entropy_of(drawn)
        better = (searching & (found > best))[:, None, None]
        networks = Networks(*(torch.where(better, a, b).contiguous() for a, b in zip(drawn, networks, strict=True)))
        best = torch.where(searching, torch.maximum(best, found), best)
        draws = draws + searching
    return Beginning(networks, best, draws)
