"""The parts of PPO that do not depend on the environment; replicas (seeds) are the leading axis of everything."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from entropy_theory.aggregation import Aggregation
from entropy_theory.aggregation import token_mean as mean_of_tokens
from entropy_theory.draw import uniform
from entropy_theory.loss import minibatch_loss, token_loss
from entropy_theory.records import Batch, Objective
from entropy_theory.reduce import token_mean
from entropy_theory.softmax import entropy, token_statistics
from entropy_theory.surrogate import ppo_clip


def gae(
    reward: Tensor,
    value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    r"""Generalised advantage estimate.

        A_t = sum_{k >= 0} (gamma lambda)^k delta_{t+k} up to the end of the episode or of the segment
        delta_t = r_t + gamma V(s_{t+1}) [not terminated_t] - V(s_t)

    Schulman et al. 2016 (arXiv 1506.02438), eq. 16. An episode that was truncated, or that goes on, is bootstrapped
    from the value of the state that came next; a terminated one is not.

    Args:
      reward, terminated, truncated: [..., steps].
      value: [..., steps + 1]; value[t + 1] is of the state that step t led to (not of one after a reset).
      gamma, gae_lambda: in [0, 1].
    Returns: [..., steps], reward units.
    """
    delta = reward + gamma * value[..., 1:] * (~terminated) - value[..., :-1]
    carry = gamma * gae_lambda * (~(terminated | truncated)).to(delta.dtype)
    # steps first and in NumPy, whose calls on small arrays cost a fifth of torch's
    delta, carry = (x.movedim(-1, 0).contiguous().numpy() for x in (delta, carry))
    advantage = np.empty_like(delta)
    last = np.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        advantage[t] = last = delta[t] + carry[t] * last
    return torch.from_numpy(advantage).movedim(0, -1).contiguous()


def normalise(advantage: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    r"""(A - mean) / (std + eps) over the valid tokens of each replica, 0 where masked.

    `eps` (reward units) only bounds the quotient where all advantages are equal.
    """
    deviation = torch.where(mask, advantage - token_mean(advantage, mask)[..., None, None], 0.0)
    std = token_mean(deviation.square(), mask).sqrt()
    return deviation / (std + eps)[..., None, None]


def value_loss(value: Tensor, target: Tensor, mask: Tensor, old_value: Tensor, clip: float) -> Tensor:
    r"""Half the squared error, averaged over each replica's valid states, replicas summed.

        max((V - target)^2, (V_old + clip(V - V_old, -c, c) - target)^2) / 2

    Engstrom et al. 2020 (arXiv 2005.12729), section 3; c = inf leaves (V - target)^2 / 2. All E, reward units.
    """
    error = torch.where(mask, value - target, 0.0)  # before the square: its gradient at a masked inf would be NaN
    change = (value - old_value).detach()
    held = torch.where(mask & (change.abs() > clip), old_value + clip * change.sign() - target, 0.0)
    squared = torch.where(held.square() > error.square(), held.square(), error.square())
    return token_mean(squared / 2, mask).sum()


class ValueTerm(NamedTuple):
    """The critic's part of the loss: its weight, and the largest change of a value that still has a gradient."""

    coef: float
    clip: float = math.inf


class PolicyTerm(NamedTuple):
    """The actor's part of the loss.

    surrogate, aggregation: of `surrogate.SURROGATES` and `aggregation.AGGREGATIONS`; horizon: longest row, in steps.
    entropy_support: logits -> those of the policy whose entropy the bonus raises; None for the policy itself.
    """

    surrogate: Callable = ppo_clip
    aggregation: Aggregation = mean_of_tokens
    horizon: int = 1
    entropy_support: Callable[[Tensor], Tensor] | None = None

    @property
    def plain(self) -> bool:
        """Whether it is PPO's: the clipped surrogate and the policy's own entropy, averaged over all valid steps."""
        return self.surrogate is ppo_clip and self.aggregation is mean_of_tokens and self.entropy_support is None


def clip_gradients(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
    """Scale each seed's gradient, over all its parameters, to norm at most `max_norm`, in place.

    Args:
      gradients: [nets, seeds, in, out] or [seeds, in, out].
    Returns: the norms before, [seeds].
    """
    squares = [g.square().sum((-2, -1)) for g in gradients]
    norm = torch.stack([s.sum(0) if s.dim() == 2 else s for s in squares]).sum(0).sqrt()
    scale = (max_norm / norm.clamp(min=1e-30)).clamp(max=1.0)
    for g in gradients:
        g.mul_(scale[..., None, None])
    return norm


@torch.no_grad()
def adam_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    step: int,
    lr: float,
    eps: float = 1e-5,
) -> None:
    r"""One step of Adam with decay rates .9 and .999, in place on the weights and both moments.

        m <- .9 m + .1 g,    v <- .999 v + .001 g^2
        w <- w - lr (m / (1 - .9^t)) / (sqrt(v / (1 - .999^t)) + eps)

    Kingma & Ba 2015 (arXiv 1412.6980), algorithm 1. Elementwise, so seeds stay apart.

    Args:
      first, second: m and v, zero before the first step; step: t, from 1.
      eps: gradient units; it bounds the step of a weight whose gradient has long been near 0. 1e-5 as in Huang et
        al. 2022.
    """
    for w, g, m, v in zip(weights, gradients, first, second, strict=True):
        m.lerp_(g, 0.1)
        v.mul_(0.999).addcmul_(g, g, value=0.001)
        w.addcdiv_(m, (v / (1 - 0.999**step)).sqrt_().add_(eps), value=-lr / (1 - 0.9**step))


class Transitions(NamedTuple):
    """What one rollout (or a minibatch of its rows) gives to learn from, E = [seeds, rows, steps].

    A row is one transition (1 step) or one episode. observation E + [inputs]; old_logp nats; advantage, value_target
    reward units, and so is old_value, the critic's when the rollout was made; outcome in [0, 1] and group int64
    [seeds, rows]. ref_logp, proxy_logp: under the reference and the filtered policy, nats; None unless needed.
    """

    observation: Tensor
    action: Tensor
    mask: Tensor
    old_logp: Tensor
    advantage: Tensor
    value_target: Tensor
    old_value: Tensor
    outcome: Tensor
    group: Tensor
    ref_logp: Tensor | None = None
    proxy_logp: Tensor | None = None

    @property
    def states(self) -> Tensor:
        """The observations as one list a seed, [seeds, rows * steps, inputs]."""
        return self.observation.flatten(1, 2)

    def take(self, index: Tensor) -> "Transitions":
        """The rows at `index` [..., seeds, n], each seed its own; the fields get the index's leading axes."""
        seeds, count = self.outcome.shape
        flat = (index + count * torch.arange(seeds).unsqueeze(-1)).flatten()
        return self.map(lambda field: field.flatten(0, 1).index_select(0, flat).unflatten(0, index.shape))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Transitions":
        """With `function` of every field that there is."""
        return Transitions(*(None if field is None else function(field) for field in self))

    def unbind(self) -> Iterator["Transitions"]:
        """Those of each index of the first axis."""
        fields = (repeat(None) if field is None else field for field in self)
        return map(Transitions._make, zip(*fields, strict=False))


def ppo_loss(
    policy: Tensor,
    value: Tensor,
    minibatch: Transitions,
    batch: Batch,
    objective: Objective,
    critic: ValueTerm,
    actor: PolicyTerm = PolicyTerm(),  # noqa: B008 - a tuple
) -> Tensor:
    """The control's objective plus the critic's term: a mean per seed, seeds summed.

    Args:
      policy: logits of the policy that acts [seeds, rows * steps, actions]; value: [seeds, rows * steps]; with grad.
    """
    shape = minibatch.mask.shape
    scaled = policy.unflatten(1, shape[1:]) * objective.logit_scale.unsqueeze(-1)
    logp, entropies = token_statistics(scaled, minibatch.action)
    if actor.entropy_support:
        entropies = entropy(actor.entropy_support(scaled))
    losses = token_loss(logp, entropies, batch, objective, actor.surrogate)
    errors = value_loss(
        value.unflatten(1, shape[1:]), minibatch.value_target, batch.mask, minibatch.old_value, critic.clip
    )
    return minibatch_loss(losses, *actor.aggregation(objective.mask, actor.horizon)) + critic.coef * errors


def minibatch_indices(key: Tensor, step: int, count: int, epochs: int, minibatches: int) -> Iterator[Tensor]:
    """Index of the minibatches of each epoch, [minibatches, seeds, count / minibatches], shuffled anew in each.

    Args:
      key: [seeds] draw keys; step: number of the rollout.
    """
    numbers = torch.arange(step * epochs, (step + 1) * epochs)
    draws = uniform(key, numbers.unsqueeze(-1).expand(-1, len(key)), count)
    order = torch.from_numpy(draws.numpy().argsort(-1))  # NumPy sorts with vector instructions
    yield from order.unflatten(-1, (minibatches, -1)).movedim(2, 1)
