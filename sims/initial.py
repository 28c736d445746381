"""How networks begin."""

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
