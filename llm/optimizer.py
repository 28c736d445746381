"""The optimizer of the policy and its learning rate."""

from __future__ import annotations

import torch

from llm.config import TrainConfig
from llm.models import LanguageModel


def make_optimizer(lm: LanguageModel, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over all weights that are trained, decay on each of them; without decay it is Adam bit for bit.

    On a CPU by torch's fused step, which passes through memory once and takes a third of the time.
    """
    trained = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    fused = lm.model.device.type == "cpu" or None  # None: what torch takes there
    return torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay, fused=fused)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of optimizer step `step`, from 0 on: lr times the warm-up times the annealing.

    warm-up   (step + 1) / warmup_steps, at most 1
    annealing 1 - step / steps, if asked for
    """
    left = 1 - step / config.steps if config.anneal_lr else 1.0
    return config.lr * left * (min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` in the next step."""
    for parameters in optimizer.param_groups:
        parameters["lr"] = lr
