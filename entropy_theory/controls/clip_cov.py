"""Clip-Cov."""

from dataclasses import replace

import torch

from entropy_theory.control import Control, Need, control
from entropy_theory.controls.checks import check_fraction, check_seed
from entropy_theory.covariances import centred_product
from entropy_theory.draw import uniform
from entropy_theory.loss import clipped
from entropy_theory.reduce import lowest, token_fraction


def clip_cov(fraction: float = 2e-4, low: float = 1.0, high: float = 5.0, seed: int = 0) -> Control:
    r"""Drop a random `fraction` of tokens whose centred product lies in (`low`, `high`).

        c_i = (logp_i - mean logp)(A_i - mean A),    weight_i = 0 for i in the draw

    Cui et al. 2025 (arXiv 2505.22617), eqs. 10-12. Means over the valid tokens of the minibatch. Tokens that
    the PPO clip has already silenced are not drawn. The loss still divides by all valid tokens. The number
    dropped is max(1, floor(fraction * tokens)), as far as tokens are eligible.

    The authors' runs also set both PPO clip distances to 1 (ratios in [0, 2]); here that is the run's choice.

    Args:
      fraction: share of valid tokens to drop, in (0, 1].
      low, high: bounds on c_i, nats x advantage units.
      seed: of the draw, which depends on nothing else but the number of optimizer steps taken.
    Raises: ValueError if fraction is outside (0, 1], low >= high, or seed does not fit in 64 bits.
    """
    check_fraction("clip_cov.fraction", fraction)
    if not low < high:
        raise ValueError(f"clip_cov.low must be below clip_cov.high, got {low} and {high}")

    check_seed("clip_cov.seed", seed)

    def init(like):
        replica = torch.arange(like.numel(), device=like.device).view(like.shape)
        return seed + replica, torch.zeros_like(replica)

    def edit(objective, batch, state):
        mask = objective.mask
        score = centred_product(batch.logp, batch.advantage, mask)
        eligible = mask & ~clipped(batch, objective) & (score > low) & (score < high)
        # the n-th valid token gets the n-th number, so that padding does not change the draw
        numbers = uniform(*state, mask.shape[-2] * mask.shape[-1])
        position = (mask.flatten(-2).cumsum(-1) - 1).clamp(min=0)
        draw = numbers.gather(-1, position).view(mask.shape)
        dropped = lowest(draw, eligible, token_fraction(mask, fraction))
        return replace(objective, weight=objective.weight.masked_fill(dropped, 0.0))

    def advance(state, measurement):
        seeds, step = state
        return seeds, step + 1

    return control(edit, init=init, advance=advance, needs={Need.SAMPLES})
