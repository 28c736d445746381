"""Clip-higher."""

from dataclasses import replace

import torch

from entropy_theory.control import Control, Need, control

PRESETS = {
    "dapo": {"clip_high": 0.28},
    "skywork": {"clip_high": 0.265},  # on their data .28 made entropy rise sharply
    "qae": {"clip_high": 0.26},  # best of .20, .26, .28 for Qwen3-8B (arXiv 2509.22611, table 1)
}


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

    return control(edit, idle_without={Need.STALE})
