"""The engine compiled by Numba: the functions of `sims.engine.Engine`, seed by seed, each in the cache.

Equal to the engine in torch up to rounding (tests), and a seed's results do not depend on the seeds beside it. Nothing
here holds Python's lock while it computes, so blocks of seeds run side by side on threads. Sums of the networks may be
contracted to fused operations; the environments' steps may not.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from entropy_theory.compiled import forget_outdated
from entropy_theory.compiled.tile import padded
from entropy_theory.records import Batch, Objective
from sims import engine as generic
from sims.cartpole_env import Environments, Rollout
from sims.engine import Engine, Head, Outputs
from sims.networks import Networks
from sims.numba_engine import adam, head, passes
from sims.numba_engine.collect import COLLECT, Copies, Records
from sims.ppo import PolicyTerm, Transitions, ValueTerm

KERNELS = (
    *COLLECT.values(),
    passes.forward,
    passes.evaluate,
    passes.backward,
    head.statistics,
    head.policy_gradient,
    head.value_gradient,
    adam.clipped_adam,
)
"""Compiled functions that are kept on disk."""


forget_outdated(KERNELS, Path(__file__).parent)


def _array(tensor: Tensor, dtype: np.dtype | None = None) -> np.ndarray:
    """The tensor's memory, or a copy in C order (and of this dtype) where it is laid out otherwise."""
    return np.ascontiguousarray(tensor.numpy(), dtype)


def _arrays(tensors: Iterable[Tensor]) -> Networks:
    """The memory of weights, or of what has their shapes."""
    return Networks(*[tensor.numpy() for tensor in tensors])


def collect(envs: Environments, networks: Networks, policy: Head, draws: Tensor, dtype: torch.dtype) -> Rollout:
    """As `cartpole_env.collect`, which does it where the control changes the policy's logits."""
    if not policy.plain:
        return generic.collect(envs, networks, policy, draws, dtype)
    seeds, copies, steps = shape = draws.shape
    observation = torch.empty(seeds, copies, steps + 1, envs.kind.inputs, dtype=dtype)
    action, *flags = torch.empty(shape, dtype=torch.int64), *(torch.empty(shape, dtype=torch.bool) for _ in range(3))
    reward, total = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
    rollout = Rollout(observation, action, reward, *flags, total)
    weights = _arrays(networks)
    stride = padded(weights.weight_2.shape[-1], weights.weight_2.itemsize)
    moved = Copies(*(np.ascontiguousarray(getattr(envs, name)) for name in Copies._fields))
    records = Records(*(_array(field) for field in rollout))
    COLLECT[envs.name](
        envs.kind.max_steps,
        tuple(weights[:6]),
        stride,
        moved,
        _array(draws),
        records,
    )
    for name, array in moved._asdict().items():
        setattr(envs, name, array)
    return rollout


def forward(networks: Networks, observation: Tensor) -> Outputs:
    """Logits and values; keeps the observations and both hidden layers, [2, seeds, states, padded units]."""
    weights, x = _arrays(networks), _array(observation)
    seeds, states, _ = x.shape
    shape = (2, seeds, states, padded(weights.weight_2.shape[-1], x.itemsize))
    hidden_1, hidden_2 = np.empty(shape, x.dtype), np.empty(shape, x.dtype)
    logits, value = (np.empty((seeds, states, w.shape[-1]), x.dtype) for w in (weights.actor_weight, weights[6]))
    passes.forward(weights, x, hidden_1, hidden_2, logits, value)
    return Outputs(torch.from_numpy(logits), torch.from_numpy(value[..., 0]), (x, hidden_1, hidden_2))


def evaluate(networks: Networks, observation: Tensor) -> Outputs:
    """As `forward`, for outputs that are not differentiated."""
    weights, x = _arrays(networks), _array(observation)
    shape = x.shape[:2]
    logits, value = (np.empty((*shape, w.shape[-1]), x.dtype) for w in (weights.actor_weight, weights.critic_weight))
    stride = padded(weights.weight_2.shape[-1], x.itemsize)
    passes.evaluate(weights, stride, x, logits, value)
    return Outputs(torch.from_numpy(logits), torch.from_numpy(value[..., 0]), None)


def statistics(logits: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """As `softmax.token_statistics`."""
    logp = torch.empty(action.shape, dtype=logits.dtype)
    entropy = torch.empty_like(logp)
    head.statistics(_array(logits), _array(action), logp.numpy(), entropy.numpy())
    return logp, entropy


def _rows(field: Tensor, dtype: np.dtype | None = None) -> np.ndarray:
    """A record's field E as [seeds, states]."""
    return _array(field, dtype).reshape(len(field), -1)


def knows(policy: Head, actor: PolicyTerm) -> bool:
    """Whether the compiled derivative is that of this loss: PPO's, of the networks' own logits."""
    return policy.plain and actor.plain


_TOKENS = ("weight", "advantage", "clip_low", "clip_high", "entropy_coef", "logit_scale")


def head_gradient(
    policy: Head,
    outputs: Outputs,
    minibatch: Transitions,
    batch: Batch,
    objective: Objective,
    critic: ValueTerm,
    actor: PolicyTerm,
) -> tuple[Tensor, Tensor]:
    """As `engine.head_gradient`, for what `knows` says."""
    logits, value = (_array(output) for output in outputs[:2])
    dtype = value.dtype
    d_logits, d_value = np.empty_like(logits), np.empty_like(value)
    penalties = np.empty((len(objective.penalties), 2, *value.shape), value.dtype)
    for penalty, field in zip(objective.penalties, penalties, strict=True):
        field[0], field[1] = _rows(penalty.coef), _rows(penalty.target)
    slopes = np.array([head.SLOPES[penalty.divergence] for penalty in objective.penalties]).reshape(-1, 4)
    tokens = (_rows(batch.old_logp, dtype), *(_rows(getattr(objective, name), dtype) for name in _TOKENS))
    action, mask = _rows(minibatch.action), _rows(objective.mask)
    head.policy_gradient(logits, action, mask, tokens, penalties, slopes.astype(np.int64), d_logits)
    target, old_value = _rows(minibatch.value_target, dtype), _rows(minibatch.old_value, dtype)
    head.value_gradient(value, target, old_value, _rows(batch.mask), critic.coef, dtype.type(critic.clip), d_value)
    return torch.from_numpy(d_logits), torch.from_numpy(d_value)


def backward(networks: Networks, outputs: Outputs, d_logits: Tensor, d_value: Tensor) -> Networks:
    """Gradients of sum(d_logits logits) + sum(d_value value), as `Networks`."""
    weights = _arrays(networks)
    gradients = Networks(*map(np.empty_like, weights))
    passes.backward(
        weights,
        *outputs.kept,
        _array(d_logits),
        _array(d_value.unsqueeze(-1)),
        gradients,
    )
    return Networks(*map(torch.from_numpy, gradients))


def clipped_adam(
    networks: Networks,
    gradients: Networks,
    first: Networks,
    second: Networks,
    max_norm: float,
    step: int,
    lr: float,
) -> None:
    """As `ppo.clip_gradients`, then `ppo.adam_step`; the gradients are left as they are."""
    arrays = [_arrays(tensors) for tensors in (networks, gradients, first, second)]
    # a matrix in another order would be flattened into a copy, and the copy changed
    assert all(array.flags.c_contiguous for tensors in arrays for array in tensors), "weights not in C order"
    number = arrays[0].bias_1.dtype.type
    settings = (number(max_norm), number(lr / (1 - 0.9**step)), number(1 / (1 - 0.999**step)))
    adam.clipped_adam(*arrays, *settings)


ENGINE = Engine(
    collect=collect,
    forward=forward,
    evaluate=evaluate,
    statistics=statistics,
    head_gradient=head_gradient,
    knows=knows,
    backward=backward,
    adam=clipped_adam,
)
