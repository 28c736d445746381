"""Settings of the LLM world: frozen records that import neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MakeTinyConfig:
    """Pretraining of the tiny Qwen2 that ships with the package."""

    out: Path = Path("tiny-qwen2")
    """Directory to write; must not exist yet or be empty."""
    seed: int = 0
    """Seed of the weights and of the demonstrations."""
    steps: int = 1500
    """Optimizer steps."""
    rows: int = 128
    """Demonstrations per step."""
    lr: float = 3e-3
    """Peak learning rate of AdamW; warm-up over the first 5 %, then a cosine down to zero."""
    stepwise: float = 0.25
    """Share of stepwise demonstrations, in [0, 1]; the rest answers directly."""
    noise: float = 0.1
    """Probability that a result in a demonstration is a random residue, in [0, 1]."""
    hidden: int = 64
    """Width of the residual stream."""
    layers: int = 3
    """Number of blocks."""
