"""Our losses beside another trainer's, which are called on one micro-batch after the other; minibatches to compare on.

Bounds: both sides take at most a few dozen roundings for each token and sum n of them; `rounding` allows 64 + n units
of the summed sizes.
"""

import numpy as np
import torch

from entropy_theory.aggregation import AGGREGATIONS
from entropy_theory.conformance import batches
from entropy_theory.control import Control
from entropy_theory.controls.none import none
from entropy_theory.loss import minibatch_loss, token_loss
from entropy_theory.records import Batch, Objective
from entropy_theory.surrogate import SURROGATES

EPS = np.finfo(np.float64).eps


def minibatch(seed: int, rows: int = 8, steps: int = 12, constant: bool = False) -> dict[str, torch.Tensor]:
    """Tensors of a stale minibatch with rows of different length: logp, old_logp, advantage, mask.

    constant: the advantage is that of the response (no score is tied all the same); otherwise of each token.
    """
    rng = np.random.default_rng(seed)
    shape = (rows, steps)
    old = -rng.exponential(1.0, shape)
    new = -np.abs(old + rng.normal(0, 0.3, shape))
    advantage = rng.normal(size=(rows, 1)) * np.ones(shape) if constant else rng.normal(size=shape)
    mask = np.arange(steps) < rng.integers(2, steps + 1, rows)[:, None]
    return {k: torch.tensor(v) for k, v in (("logp", new), ("old_logp", old), ("advantage", advantage), ("mask", mask))}


def golden(*names: str) -> list[tuple[str, dict[str, torch.Tensor]]]:
    """Name and tensors of golden batches."""
    keys = ("logp", "old_logp", "advantage", "mask")
    return [(b.name, {k: torch.tensor(b[k]) for k in keys}) for b in batches(*names)]


def all_minibatches() -> list[tuple[str, dict[str, torch.Tensor]]]:
    """Every golden batch, and ten drawn minibatches."""
    return [*golden(), *((f"drawn {s}", minibatch(s, constant=s % 2 == 0)) for s in range(10))]


def ours(
    tensors: dict[str, torch.Tensor],
    control: Control | None = None,
    surrogate="ppo",
    aggregation: str = "token-mean",
    clip: tuple[float, float] = (0.2, 0.2),
    horizon: int = 0,
    micro_batch: torch.Tensor | None = None,
    entropy: torch.Tensor | None = None,
):
    """(loss, gradient by logp, objective) of one minibatch on the first step of a run.

    surrogate: a name of `SURROGATES` or a function; horizon: the steps of the minibatch if 0.
    """
    control = control or none()
    surrogate = SURROGATES.get(surrogate, surrogate)
    logp = tensors["logp"].clone().requires_grad_()
    mask, nothing = tensors["mask"], torch.zeros_like(tensors["logp"][:, 0])
    entropy = torch.zeros_like(logp) if entropy is None else entropy
    batch = Batch(
        tensors["logp"], tensors["old_logp"], tensors["advantage"], mask, entropy.detach(), nothing, nothing.long()
    )
    batch = batch if micro_batch is None else Batch(**(vars(batch) | {"micro_batch": micro_batch}))
    state = control.init(torch.zeros((), dtype=logp.dtype))
    objective = control.edit(Objective.from_batch(batch, *clip), batch, state)
    loss = token_loss(logp, entropy, batch, objective, surrogate)
    total = minibatch_loss(loss, *AGGREGATIONS[aggregation](objective.mask, horizon or mask.shape[-1]))
    return total.detach().item(), torch.autograd.grad(total, logp)[0].numpy(), objective


def theirs(tensors: dict[str, torch.Tensor], loss, parts: list[slice]):
    """(loss, gradient by logp) of `loss(logp, old_logp, advantage, mask)` called on one micro-batch at a time."""
    total, gradients = 0.0, []
    for part in parts:
        piece = {k: v[part] for k, v in tensors.items()}
        piece["logp"] = piece["logp"].clone().requires_grad_()
        value = loss(**piece)
        total += value.detach().item()
        gradients.append(torch.autograd.grad(value, piece["logp"])[0].numpy())
    return total, np.concatenate(gradients)


def splits(rows: int, each: int) -> list[slice]:
    """Micro-batches of `each` rows."""
    return [slice(first, min(first + each, rows)) for first in range(0, rows, each)]


def size(tensors: dict[str, torch.Tensor]) -> float:
    """Summed sizes of what stands in the valid tokens' losses."""
    mask = tensors["mask"]
    x = (tensors["logp"] - tensors["old_logp"])[mask]
    a, logp = tensors["advantage"][mask].abs(), tensors["logp"][mask].abs()
    return float(((1 + x.exp()) * a * (1 + logp) * 4 + x.abs()).sum())


def rounding(tensors: dict[str, torch.Tensor]) -> float:
    return (64 + int(tensors["mask"].sum())) * EPS * size(tensors)


def assert_equal(tensors, one, two):
    """Losses and gradients agree to their rounding."""
    bound = rounding(tensors)
    assert abs(one[0] - two[0]) <= bound, (one[0], two[0], bound)
    assert np.abs(np.where(tensors["mask"], one[1] - two[1], 0.0)).max() <= bound
