"""Actor and critic of many seeds as one batched network: separate weights, one matrix product.

Every weight has the axes [nets, seeds, in, out] with nets = (actor, critic), so a layer of all networks is one
`baddbmm`. No number of one seed enters another's.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from entropy_theory.draw import uniform

ACTOR, CRITIC = 0, 1


class Networks(NamedTuple):
    """Weights of two hidden tanh layers [2, seeds, in, out] and of the two heads [seeds, hidden, out].

    Biases have 1 in place of `in`. The actor's head gives logits, the critic's the value in reward units.
    """

    weight_1: Tensor
    bias_1: Tensor
    weight_2: Tensor
    bias_2: Tensor
    actor_weight: Tensor
    actor_bias: Tensor
    critic_weight: Tensor
    critic_bias: Tensor


def orthogonal(key: Tensor, layer: int, rows: int, columns: int, gain: float) -> Tensor:
    """Random (semi-)orthogonal matrices times `gain`, [..., rows, columns], one for each key; float64.

    Saxe et al. 2014 (arXiv 1312.6120): Q of a normal matrix, signs fixed by R so that Q is uniform.
    """
    tall, flat = max(rows, columns), min(rows, columns)
    draws = uniform(key, torch.full_like(key, -1 - layer), tall * flat).clamp(min=2.0**-53)
    q, r = torch.linalg.qr(torch.special.ndtri(draws).unflatten(-1, (tall, flat)))
    q = q * torch.sign(torch.diagonal(r, dim1=-2, dim2=-1)).unsqueeze(-2)
    return gain * (q if rows >= columns else q.mT)


def init_networks(key: Tensor, inputs: int, hidden: int, actions: int, dtype: torch.dtype) -> Networks:
    """Orthogonal weights of gain sqrt 2, actor head .01 (a nearly uniform policy), critic head 1; biases 0.

    As CleanRL's PPO (Huang et al. 2022, "The 37 implementation details of PPO").

    Args:
      key: [2, seeds] int64, one draw key per network.
    """
    actor, critic = key
    weights = {
        "weight_1": orthogonal(key, 0, inputs, hidden, math.sqrt(2)),
        "weight_2": orthogonal(key, 1, hidden, hidden, math.sqrt(2)),
        "actor_weight": orthogonal(actor, 2, hidden, actions, 0.01),
        "critic_weight": orthogonal(critic, 2, hidden, 1, 1.0),
    }
    biases = {name.replace("weight", "bias"): torch.zeros_like(weight[..., :1, :]) for name, weight in weights.items()}
    return Networks(**{name: value.to(dtype).contiguous() for name, value in (weights | biases).items()})


def keep_freed_memory() -> None:
    """Make glibc keep freed blocks of up to 30 MiB for the next allocation instead of giving them back.

    Its threshold for that rises to the largest such block freed so far (mallopt(3), M_MMAP_THRESHOLD). Without it
    every hidden layer is fresh memory from the kernel, page by page: a fifth of the time of an update.
    """
    torch.empty(30 << 20, dtype=torch.uint8)


class _Tanh(torch.autograd.Function):
    """tanh by NumPy, whose vectorised loop is about ten times torch's on one core."""

    @staticmethod
    def forward(ctx, x):
        y = torch.from_numpy(np.tanh(x.detach().numpy()))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradient, y)


def _layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.baddbmm(bias, x, weight)


def _hidden(networks: Networks, observation: Tensor, nets: int) -> Tensor:
    """Last hidden layer of the first `nets` networks, [nets * seeds, states, hidden]."""
    weights = (w[:nets].flatten(0, 1) for w in networks[:4])
    weight_1, bias_1, weight_2, bias_2 = weights
    x = observation.repeat(nets, 1, 1)
    x = _Tanh.apply(_layer(x, weight_1, bias_1))
    return _Tanh.apply(_layer(x, weight_2, bias_2))


def actor(networks: Networks, observation: Tensor) -> Tensor:
    """Logits [seeds, states, actions] for observations [seeds, states, inputs]."""
    return _layer(_hidden(networks, observation, 1), networks.actor_weight, networks.actor_bias)


def actor_critic(networks: Networks, observation: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [seeds, states, actions] and values [seeds, states]."""
    seeds = len(observation)
    hidden = _hidden(networks, observation, 2)
    logits = _layer(hidden[:seeds], networks.actor_weight, networks.actor_bias)
    value = _layer(hidden[seeds:], networks.critic_weight, networks.critic_bias)
    return logits, value.squeeze(-1)


def actor_numpy(networks: Networks):
    """`actor` as a NumPy function of observations, for the rollout, where a torch call costs more than it computes.

    Shares memory with the weights, so it is the policy as it is when called.
    """
    weight_1, bias_1, weight_2, bias_2 = (w[ACTOR].detach().numpy() for w in networks[:4])
    weight, bias = networks.actor_weight.detach().numpy(), networks.actor_bias.detach().numpy()

    def forward(observation: np.ndarray) -> np.ndarray:
        x = np.tanh(observation @ weight_1 + bias_1)
        x = np.tanh(x @ weight_2 + bias_2)
        return x @ weight + bias

    return forward
