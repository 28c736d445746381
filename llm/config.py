"""Settings of the LLM world: frozen records that import neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from entropy_theory.names import Advantage, Aggregation, Surrogate
from entropy_theory.ranges import require_at_least, require_choice, require_positive, require_share
from llm.presets import PRESETS

ADVANTAGES = (*get_args(Advantage), "prime")
SURROGATES = get_args(Surrogate)
AGGREGATIONS = get_args(Aggregation)
DTYPES = ("float32", "float64", "bfloat16")
SAMPLERS = ("cached", "transformers", "continuous", "vllm")
TRACKERS = ("tensorboard", "trackio", "wandb")
REWARDS = ("task", "exact", "math")
MODELS = {"tiny": "tiny", "tiny-deceptive": "tiny-deceptive"}
"""The model in the package that is made for a task, for tasks that have one."""


@dataclass(frozen=True)
class MakeTinyConfig:
    """Pretraining of a tiny Qwen2; the defaults make the one of the task tiny that ships with the package."""

    out: Path = Path("tiny-qwen2")
    """Directory to write; must not exist yet or be empty."""
    task: str = "tiny"
    """Task whose demonstrations are learnt: tiny or tiny-deceptive (with --steps 700 --layers 2 --stepwise 0.065
    --stepwise-noise 0.58 --clean 0.5 the one that ships)."""
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
    stepwise_noise: float = -1.0
    """The same of stepwise demonstrations alone; -1 for that of all."""
    clean: float = 0.0
    """Share of the optimizer steps, from the first on, in which demonstrations are without noise and half of them are
    stepwise, in [0, 1]: what is rare and noisy afterwards is learnt there."""
    hidden: int = 64
    """Width of the residual stream."""
    layers: int = 3
    """Number of blocks."""
    threads: int = 1
    """CPU threads; the weights are bit-equal only for the same number."""

    def __post_init__(self):
        require_at_least(self, 1, "steps", "rows", "layers", "threads")
        require_share(self, "stepwise", "noise", "clean")
        require_positive(self, "lr")
        require_choice(self, "task", tuple(MODELS))
        if self.stepwise_noise != -1:
            require_share(self, "stepwise_noise")
        if self.hidden < 8 or self.hidden % 8:
            raise ValueError(f"hidden must be a multiple of 8 (4 heads of even width), got {self.hidden}")


@dataclass(frozen=True)
class TrainConfig:
    """A GRPO run; the defaults train the tiny model on its task."""

    model: str = "tiny"
    """"tiny" (the model in the package that is made for the task), a directory of a Qwen2, Qwen2.5 or Qwen3 model, or
    a hub id."""
    task: str = "tiny"
    """Verifiable task: tiny (arithmetic modulo 11), tiny-deceptive, countdown, gsm8k, math, math-500, dapo-math, aime,
    or `data` for any file with a column of prompts and one of answers."""
    data: str = ""
    """Where the task's questions lie: a .jsonl or .parquet file, a directory of them, or a hub data set; empty for the
    task's own place."""
    split: str = ""
    """Split of the data set to train on; empty for the task's own, else train."""
    prompt_column: str = ""
    """Column of the questions; empty for the task's own, else prompt."""
    answer_column: str = ""
    """Column of the answers; empty for the task's own, else answer."""
    reward: str = "task"
    """What scores a response: task (the task's own), exact (the last words are the answer), math (math-verify), or a
    Python function as module:function."""
    reward_timeout: float = 10.0
    """Seconds that the check of one response may take; then it is stopped, counted and scored 0."""
    system: str = ""
    """System message of the chat template; empty for the template's own."""
    chat: Literal["auto", "never"] = "auto"
    """`auto` puts a task's questions into the model's chat template (a model without one is refused), and leaves the
    texts of the tiny tasks as they are; `never` leaves every text as it stands."""
    max_prompt_tokens: int = 0
    """Longest prompt in tokens, chat template included; 0 for no limit."""
    overlong_prompts: Literal["drop", "refuse"] = "drop"
    """What is done with a longer one: another takes its place, or the run stops with its text."""
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
    dynamic_sampling: bool = False
    """Draw further prompts in place of those whose responses all earn the same, which nothing is learned from. Where
    `dynamic_tries` batches of prompts do not fill the rollout, such groups fill it up and are counted."""
    dynamic_tries: int = 10
    """Most batches of prompts_per_rollout prompts that are answered for one rollout."""
    sampler: Literal["cached", "transformers", "continuous", "vllm"] = "cached"
    """What generates responses: the smallest loop over a key-value cache, transformers' own generation, its continuous
    batching, or vLLM (extra vllm)."""
    updates_per_rollout: int = 4
    """Optimizer steps per rollout, each on its own share of the prompts. With 1 every ratio is 1, and some controls
    change nothing."""
    micro_batch_rows: int = 128
    """Responses per forward and backward pass; sets memory and speed, not the gradient."""
    token_chunk: int = 0
    """Tokens whose logits are in memory at once; sets memory and speed. 0 for as many as make 64 MiB of them."""
    token_kernel: Literal["tiles", "triton"] = "tiles"
    """What reads logits of a large vocabulary: tiles of torch operations, or fused Triton kernels (CUDA), which are
    checked against the tiles before the run and were not measured on a GPU yet."""
    gradient_checkpointing: bool = False
    """Keep the input of each block only and compute the rest again in the backward pass: less memory, a third more
    time."""
    lr: float = 6e-4
    """Learning rate of AdamW at the start."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises linearly from lr / warmup_steps to its value."""
    anneal_lr: bool = True
    """Lower the learning rate linearly to 0 over the run."""
    weight_decay: float = 0.0
    """Share of each weight taken away per unit of learning rate (AdamW); 0 is Adam."""
    grad_clip: float = 1.0
    """Largest norm of the gradient."""
    skip_nonfinite: int = 0
    """Optimizer steps of a run that may be left out, and counted, because their gradient is not finite; the next one
    ends the run."""
    lora_rank: int = 0
    """Rank of the low-rank matrices trained in place of the weights (LoRA, peft); 0 trains all weights."""
    lora_alpha: float = 32.0
    """Their product enters with factor lora_alpha / lora_rank."""
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
    """Precision of the weights; bfloat16 has 3 digits and swallows the steps of a small lr; see `autocast`."""
    autocast: bool = False
    """Multiply matrices in bfloat16 while the weights and the token statistics stay as `dtype` says."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:1, ..."""
    engine: Literal["auto", "torch", "numba"] = "auto"
    """What computes the blocks of a float32 model on a CPU: torch, numba (faster for small models; extra fast), or
    auto, numba where it is installed and knows the model."""
    probe_every: int = 25
    """Optimizer steps from one measurement of predicted and measured entropy change to the next; 0 for none. A number
    without a common divisor with updates_per_rollout measures first and later updates alike."""
    probe_responses: int = 32
    """Responses of the initial policy that make up the probe."""
    probe_rows: int = 32
    """Responses of the step's own minibatch that are probed beside them, for Theorems 1 and 2; 0 for none."""
    probe_tokens: int = 256
    """Most tokens probed of each. Their logits before and after the step are held: 4 bytes times the vocabulary a
    token, at most four times."""
    eval_every: int = 0
    """Optimizer steps from one evaluation to the next; 0 for one after the last step only."""
    eval_prompts: int = 0
    """Held-out prompts that an evaluation answers, for pass_at_k in its line of metrics; 0 for no evaluation."""
    eval_samples: int = 16
    """Responses to each of them; pass_at_k is logged for k = 1, 2, 4, ... up to it."""
    eval_temperature: float = 1.0
    """Sampling temperature of the evaluation."""
    track: str = ""
    """Where metrics go besides metrics.jsonl: tensorboard, trackio, wandb, or several joined by + (extra trackers)."""
    project: str = "entropy-theory"
    """Name of the project there."""
    preset: str = ""
    """Published recipe whose settings are those of the command line that it does not name: paper-7b, paper-32b."""
    keep_checkpoints: int = 2
    """Saved states that are kept, the newest first."""
    save_every: int = 1
    """Optimizer steps between saved states, the most that a kill can cost; raise it for a large model, whose state
    (weights and optimizer) takes 12 bytes a parameter."""
    threads: int = 1
    """CPU threads; results are bit-equal only for the same number."""

    def __post_init__(self):
        require_at_least(self, 1, "seeds", "rollouts", "prompts_per_rollout", "micro_batch_rows")
        require_at_least(self, 1, "max_new_tokens", "probe_responses", "probe_tokens", "save_every", "threads")
        require_at_least(self, 1, "updates_per_rollout", "eval_samples")
        require_at_least(self, 1, "dynamic_tries", "keep_checkpoints")
        require_at_least(self, 2, "group_size")
        require_at_least(
            self, 0, "probe_every", "probe_rows", "eval_prompts", "eval_every", "max_prompt_tokens", "token_chunk"
        )
        require_at_least(self, 0, "weight_decay", "warmup_steps", "lora_rank", "skip_nonfinite")
        require_positive(self, "lr", "grad_clip", "temperature", "clip_low", "clip_high", "prime_lr", "prime_beta")
        require_positive(self, "reward_timeout", "lora_alpha", "eval_temperature")
        require_choice(self, "advantage", ADVANTAGES)
        require_choice(self, "surrogate", SURROGATES)
        require_choice(self, "aggregation", AGGREGATIONS)
        require_choice(self, "prime_norm", ("none", "batch"))
        require_choice(self, "dtype", DTYPES)
        require_choice(self, "chat", ("auto", "never"))
        require_choice(self, "overlong_prompts", ("drop", "refuse"))
        require_choice(self, "sampler", SAMPLERS)
        require_choice(self, "token_kernel", ("tiles", "triton"))
        require_choice(self, "engine", ("auto", "torch", "numba"))
        self._check_words()
        if self.model == "tiny":  # the words of a task are known to its own model only
            object.__setattr__(self, "model", MODELS.get(self.task, "tiny"))
        if self.prompts_per_rollout % self.updates_per_rollout:
            raise ValueError(
                f"prompts_per_rollout must be a multiple of updates_per_rollout, got "
                f"{self.prompts_per_rollout} and {self.updates_per_rollout}"
            )

    def _check_words(self) -> None:
        """Check settings whose value is a name in a table or a word of several."""
        if self.reward not in REWARDS and not all(self.reward.partition(":")):
            raise ValueError(f"reward must be {', '.join(REWARDS)} or module:function, got {self.reward!r}")
        for tracker in filter(None, self.track.split("+")):
            if tracker not in TRACKERS:
                raise ValueError(f"track must be made of {', '.join(TRACKERS)}, joined by +, got {self.track!r}")
        if self.preset not in ("", *PRESETS):
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        if self.eval_every and not self.eval_prompts:
            raise ValueError(f"eval_every is {self.eval_every} but there is nothing to evaluate; set eval_prompts")
        if self.lora_rank and self.advantage == "prime":
            raise ValueError("lora_rank goes with every advantage but prime, whose process reward model is a whole one")

    @property
    def steps(self) -> int:
        """Optimizer steps of a run."""
        return self.rollouts * self.updates_per_rollout

    @property
    def rows_per_update(self) -> int:
        """Responses in one optimizer step."""
        return self.prompts_per_rollout // self.updates_per_rollout * self.group_size
