"""Clip-higher."""

from dataclasses import replace

import torch

from entropy_theory.control import Control, control


def clip_higher(clip_high: float = 0.28) -> Control:
    r"""Widen the upper side of PPO's clip range, so that rare good actions may grow faster.

        min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)

    Yu et al. 2025 (DAPO, arXiv 2503.14476). Does nothing while every ratio is 1: the first update of a rollout.

    Args:
      clip_high: distance of the upper clip from 1, dimensionless, > 0; inf removes it.
    Raises: ValueError if clip_high is not positive.
    """
    if not clip_high > 0:
        raise ValueError(f"clip_higher.clip_high must be positive, got {clip_high}")

    def edit(objective, batch, state):
        return replace(objective, clip_high=torch.full_like(objective.clip_high, clip_high))

    return control(edit)
