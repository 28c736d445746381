"""Settings of the LLM world: frozen records that import neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from entropy_theory.names import Advantage, Aggregation, Surrogate
from entropy_theory.ranges import require_at_least, require_choice, require_positive, require_share

ADVANTAGES = (*get_args(Advantage), "prime")
SURROGATES = get_args(Surrogate)
AGGREGATIONS = get_args(Aggregation)
DTYPES = ("float32", "float64", "bfloat16")


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
    threads: int = 1
    """CPU threads; the weights are bit-equal only for the same number."""

    def __post_init__(self):
        require_at_least(self, 1, "steps", "rows", "layers", "threads")
        require_share(self, "stepwise", "noise")
        require_positive(self, "lr")
        if self.hidden < 8 or self.hidden % 8:
            raise ValueError(f"hidden must be a multiple of 8 (4 heads of even width), got {self.hidden}")


@dataclass(frozen=True)
class TrainConfig:
    """A GRPO run; the defaults train the tiny model on its task."""

    model: str = "tiny"
    """"tiny" (the model in the package), a directory of a Qwen2, Qwen2.5 or Qwen3 model, or a hub id."""
    task: str = "tiny"
    """Verifiable task: tiny (arithmetic modulo 11)."""
    control: str = "none"
    """Entropy control, or several joined by +, applied from left to right (`entropy-theory controls` lists them)."""
    set: dict[str, float | str] = field(default_factory=dict)
    """A control's own parameter as NAME.parameter=value, for example kl_cov.fraction=0.02; repeatable."""
    seeds: int = 3
    """Independent runs, one directory each."""
    seed: int = 0
    """First seed; the others follow it."""
    rollouts: int = 80
    """Rollouts per run."""
    prompts_per_rollout: int = 32
    """Prompts per rollout; a multiple of updates_per_rollout."""
    group_size: int = 8
    """Responses per prompt, at least 2."""
    updates_per_rollout: int = 4
    """Optimizer steps per rollout, each on its own share of the prompts. With 1 every ratio is 1, and some controls
    change nothing."""
    micro_batch_rows: int = 128
    """Responses per forward and backward pass; sets memory and speed, not the gradient."""
    lr: float = 6e-4
    """Learning rate of Adam at the start."""
    anneal_lr: bool = True
    """Lower the learning rate linearly to 0 over the run."""
    grad_clip: float = 1.0
    """Largest norm of the gradient."""
    temperature: float = 1.0
    """Sampling temperature; log-probabilities and entropies are those of the policy at it."""
    surrogate: Surrogate = "ppo"
    """What is maximised for a token, as a function of its ratio. The clip distances of gspo are small (3e-4, 4e-4)."""
    aggregation: Aggregation = "token-mean"
    """How the tokens' losses become one number; `constant` divides by the number of responses times
    `max_new_tokens`."""
    clip_low: float = 0.2
    """Distance of PPO's lower clip from ratio 1."""
    clip_high: float = 0.2
    """Distance of PPO's upper clip from ratio 1."""
    advantage: Literal[Advantage, "prime"] = "grpo"
    """Advantage of a response within its group, or within the minibatch; `prime` adds an implicit process reward that
    is learned on the way."""
    prime_lr: float = 1e-3
    """Learning rate (Adam) of the process reward model of `advantage = prime`, one step per rollout; 1e-6 for 7B."""
    prime_beta: float = 0.05
    """Process reward per nat of log(pi_phi/pi_ref), reward units per nat."""
    prime_norm: Literal["none", "batch"] = "none"
    """`batch` divides the process rewards of a rollout by the largest |sum of them from a token on|, as published code
    does."""
    max_new_tokens: int = 28
    """Longest response in tokens, its end included; a response cut there earns nothing."""
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    """Precision of the weights; bfloat16 has 3 digits and swallows the steps of a small lr."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:1, ..."""
    probe_every: int = 1
    """Optimizer steps from one measurement of predicted and measured entropy change to the next; 0 for none."""
    probe_responses: int = 32
    """Responses of the initial policy that make up the probe."""
    eval_prompts: int = 0
    """Held-out prompts that are answered after the last update, for pass_at_k in the last line of metrics; 0 for
    none."""
    eval_samples: int = 16
    """Responses to each of them, at temperature 1; pass_at_k is logged for k = 1, 2, 4, ... up to it."""
    save_every: int = 1
    """Optimizer steps between saved states, the most that a kill can cost; raise it for a large model, whose state
    (weights and optimizer) takes 12 bytes a parameter."""
    threads: int = 1
    """CPU threads; results are bit-equal only for the same number."""

    def __post_init__(self):
        require_at_least(self, 1, "seeds", "rollouts", "prompts_per_rollout", "micro_batch_rows")
        require_at_least(self, 1, "max_new_tokens", "probe_responses", "save_every", "threads")
        require_at_least(self, 1, "updates_per_rollout", "eval_samples")
        require_at_least(self, 2, "group_size")
        require_at_least(self, 0, "probe_every", "eval_prompts")
        require_positive(self, "lr", "grad_clip", "temperature", "clip_low", "clip_high", "prime_lr", "prime_beta")
        require_choice(self, "advantage", ADVANTAGES)
        require_choice(self, "surrogate", SURROGATES)
        require_choice(self, "aggregation", AGGREGATIONS)
        require_choice(self, "prime_norm", ("none", "batch"))
        require_choice(self, "dtype", DTYPES)
        if self.prompts_per_rollout % self.updates_per_rollout:
            raise ValueError(
                f"prompts_per_rollout must be a multiple of updates_per_rollout, got "
                f"{self.prompts_per_rollout} and {self.updates_per_rollout}"
            )

    @property
    def rows_per_update(self) -> int:
        """Responses in one optimizer step."""
        return self.prompts_per_rollout // self.updates_per_rollout * self.group_size
