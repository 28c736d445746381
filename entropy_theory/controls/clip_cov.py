"""Clip-Cov."""

from dataclasses import replace

import torch

from entropy_theory.control import Control, Need, control
from entropy_theory.controls.checks import check_fraction, check_seed
from entropy_theory.covariances import centred_product
from entropy_theory.draw import uniform
from entropy_theory.loss import clipped
from entropy_theory.reduce import lowest, token_fraction
from entropy_theory.scope import Scope, scoped

PRESETS = {
    "paper-7b": {"fraction": 2e-4, "low": 1.0, "high": 5.0, "clip_low": 1.0, "clip_high": 1.0},
    "paper-32b": {"fraction": 2e-4, "low": 1.0, "high": 5.0, "clip_low": 1.0, "clip_high": 1.0},
    "verl": {
        "fraction": 2e-4,
        "low": 1.0,
        "high": 5.0,
        "scope": "microbatch",
    },  # with its own clip of 0.2: not the paper's
}


def clip_cov(
    fraction: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
    clip_low: float | None = None,
    clip_high: float | None = None,
    scope: Scope = "minibatch",
    seed: int = 0,
) -> Control:
    r"""Drop a random `fraction` of tokens whose centred product lies in (`low`, `high`).

        c_i = (logp_i - mean logp)(A_i - mean A),    weight_i = 0 for i in the draw

    Cui et al. 2025 (arXiv 2505.22617), eqs. 10-12. Means over the valid tokens of the minibatch. Tokens that
    the PPO clip has already silenced are not drawn. The loss still divides by all valid tokens. The number
    dropped is max(1, floor(fraction * tokens)), as far as tokens are eligible.

    The authors' runs also set both PPO clip distances to 1 (ratios in [0, 2]), as the presets named after the paper do.

    Args:
      fraction: share of valid tokens to drop, in (0, 1].
      low, high: bounds on c_i, nats x advantage units.
      clip_low, clip_high: distances of PPO's clip from 1, > 0; None leaves those of the run.
      scope: tokens whose means and number count: the whole minibatch, or each micro-batch as in the published code.
      seed: of the draw, which depends on nothing else but the number of optimizer steps taken.
    Raises: ValueError if fraction is outside (0, 1], low >= high, a clip distance is not positive, scope is unknown, or
      seed does not fit in 64 bits.
    """
    check_fraction("clip_cov.fraction", fraction)
    if not low < high:
        raise ValueError(f"clip_cov.low must be below clip_cov.high, got {low} and {high}")
    clips = {name: value for name, value in (("clip_low", clip_low), ("clip_high", clip_high)) if value is not None}
    for name, value in clips.items():
        if not value > 0:
            raise ValueError(f"clip_cov.{name} must be positive, got {value}")
    check_seed("clip_cov.seed", seed)

    def init(like):
        replica = torch.arange(like.numel(), device=like.device).view(like.shape)
        return seed + replica, torch.zeros_like(replica)

    def edit(objective, batch, state):
        mask = objective.mask
        objective = replace(objective, **{k: torch.full_like(objective.clip_low, v) for k, v in clips.items()})
        score = centred_product(batch.logp, batch.advantage, mask)
        eligible = mask & ~clipped(batch, objective) & (score > low) & (score < high)
        # the n-th valid token of the minibatch gets the n-th number, so that padding does not change the draw
        numbers = uniform(*state, mask.shape[-2] * mask.shape[-1])
        position = (batch.mask.flatten(-2).cumsum(-1) - 1).clamp(min=0)
        draw = numbers.gather(-1, position).view(mask.shape)
        dropped = lowest(draw, eligible, token_fraction(mask, fraction))
        return replace(objective, weight=objective.weight.masked_fill(dropped, 0.0))

    def advance(state, measurement):
        seeds, step = state
        return seeds, step + 1

    return control(scoped("clip_cov", scope, edit), init=init, advance=advance, needs={Need.SAMPLES})
