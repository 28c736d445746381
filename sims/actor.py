"""The actor as a plain function of its weights, which torch differentiates any number of times."""

import torch
from torch import Tensor

from sims.networks import ACTOR, Networks


def actor_weights(networks: Networks, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The actor's weights and biases by name, [seeds, in, out], detached; not copied if of `dtype`."""
    hidden = {name: getattr(networks, name)[ACTOR] for name in Networks._fields[:4]}
    head = {"weight_3": networks.actor_weight, "bias_3": networks.actor_bias}
    return {name: value.detach().to(dtype) for name, value in (hidden | head).items()}


def actor_logits(weights: dict[str, Tensor], observation: Tensor) -> Tensor:
    """`networks.actor` in plain torch.

    Args:
      weights: as `actor_weights`; or one seed's, [in, out].
      observation: [..., seeds, states, inputs], or [..., states, inputs] for one seed's weights.
    Returns: [..., seeds, states, actions].
    """
    x = torch.tanh(observation @ weights["weight_1"] + weights["bias_1"])
    x = torch.tanh(x @ weights["weight_2"] + weights["bias_2"])
    return x @ weights["weight_3"] + weights["bias_3"]


def leaves_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies to differentiate by."""
    return {name: value.clone().requires_grad_() for name, value in weights.items()}


def flat(tensors) -> Tensor:
    """Tensors [seeds, in, out] as one vector a seed, [seeds, parameters]."""
    return torch.cat([tensor.flatten(1) for tensor in tensors], -1)


def split(vector: Tensor, weights: dict[str, Tensor]) -> list[Tensor]:
    """A vector [seeds, parameters] as tensors of the shapes of `weights`."""
    pieces = vector.split([value[0].numel() for value in weights.values()], -1)
    return [piece.view_as(value) for piece, value in zip(pieces, weights.values(), strict=True)]
