"""Settings of the LLM world: frozen records that import neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class MakeTinyConfig:
    """Pretraining of the tiny Qwen2 that ships with the package."""

    out: Path = Path("tiny-qwen2")
    """Directory to write; must not exist yet or be empty."""
    seed: int = 0
    """Seed of the weights and of the demonstrations."""
    steps: int = 2000
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


@dataclass(frozen=True)
class TrainConfig:
    """A GRPO run; the defaults train the tiny model on its task."""

    model: str = "tiny"
    """"tiny", a directory of a Qwen2/2.5/3 model, or a hub id."""
    task: str = "tiny"
    """Verifiable task: tiny (arithmetic modulo 11)."""
    control: str = "none"
    """Entropy control, or several joined by + and applied from left to right."""
    set: dict[str, float] = field(default_factory=dict)
    """Parameters of the controls, name.parameter=value."""
    seeds: int = 3
    """Number of independent runs, seeds 0, 1, ..."""
    rollouts: int = 70
    """Rollouts per run."""
    prompts_per_rollout: int = 32
    """Prompts per rollout; a multiple of updates_per_rollout."""
    group_size: int = 8
    """Responses per prompt."""
    updates_per_rollout: int = 2
    """Optimizer steps per rollout, each on its own share of the prompts; at least 2 (kl_cov and
    clip_higher do nothing on the first)."""
    micro_batch_rows: int = 128
    """Responses per forward and backward pass; changes memory and speed, not the gradient."""
    lr: float = 3e-4
    """Learning rate of Adam."""
    grad_clip: float = 1.0
    """Largest norm of the gradient."""
    temperature: float = 1.0
    """Sampling temperature, > 0; log-probabilities and entropies are of the policy at it."""
    clip_low: float = 0.2
    """PPO clip: distance of the lowest ratio from 1."""
    clip_high: float = 0.2
    """PPO clip: distance of the highest ratio from 1."""
    advantage: str = "grpo"
    """Advantage from a group's rewards: grpo (divided by their std) or rloo."""
    max_new_tokens: int = 28
    """Longest response, end token included."""
    dtype: str = "float32"
    """Precision of weights: float32, float64 or bfloat16 (whose 3 digits swallow small lr)."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:1, ..."""
    probe_every: int = 1
    """Optimizer steps between two measurements on the probe batch; 0 switches the probe off."""
    probe_responses: int = 64
    """Responses in the fixed probe batch; a multiple of 4."""

    @property
    def rows_per_update(self) -> int:
        """Responses in one optimizer step."""
        return self.prompts_per_rollout // self.updates_per_rollout * self.group_size
