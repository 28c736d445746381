"""Settings of the bandit world. Imports no torch, so that --help is instant."""

from dataclasses import dataclass, field
from typing import Literal

from entropy_theory.ranges import require_at_least, require_choice, require_positive


@dataclass(frozen=True)
class BanditConfig:
    """Softmax policies on K-armed Bernoulli bandits, all seeds and problems at once."""

    control: str = "none"
    """Entropy control, or several joined by +, applied from left to right (`entropy-theory controls` lists them)."""
    set: dict[str, float] = field(default_factory=dict)
    """A control's own parameter as NAME.parameter=value, for example kl_cov.fraction=0.02; repeatable."""
    seeds: int = 20
    """Independent repetitions, trained together."""
    problems: int = 8
    """Bandits per seed; metrics are means over them. Problem p has the same arms in every seed."""
    arms: int = 10
    """Actions K."""
    prior_scale: float = 1.0
    """Standard deviation of the initial logits, nats (0 starts uniform)."""
    gradient: Literal["sampled", "exact"] = "sampled"
    """Policy gradient from sampled pulls, or exactly by summing over all arms."""
    natural: bool = False
    """Multiply the gradient by the pseudo-inverse of the Fisher matrix."""
    advantage: Literal["grpo", "rloo"] = "grpo"
    """Advantage of a sampled pull, over the pulls of one rollout. Exact gradients use reward minus its mean."""
    samples: int = 64
    """Pulls per bandit and rollout."""
    updates_per_rollout: int = 4
    """Gradient steps on one rollout, at least 2: some controls cannot act on the first."""
    rollouts: int = 200
    """Rollouts in the run."""
    step_size: float = 0.5
    """Gradient step eta on the logits, nats per advantage unit."""
    clip_low: float = 0.2
    """Distance of PPO's lower clip from ratio 1."""
    clip_high: float = 0.2
    """Distance of PPO's upper clip from ratio 1."""
    seed: int = 0
    """First seed; seed i of the run draws the same numbers whatever the number of seeds."""
    threads: int = 1
    """CPU threads."""

    def __post_init__(self):
        require_at_least(self, 1, "seeds", "problems", "samples", "rollouts", "threads")
        require_at_least(self, 2, "arms", "updates_per_rollout")
        require_at_least(self, 0, "prior_scale")
        require_positive(self, "step_size", "clip_low", "clip_high")
        require_choice(self, "gradient", ("sampled", "exact"))
        require_choice(self, "advantage", ("grpo", "rloo"))
