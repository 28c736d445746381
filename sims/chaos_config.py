"""Settings of the chaos measurement. Imports no torch, so that --help is instant."""

from dataclasses import dataclass

from entropy_theory.ranges import require_at_least, require_positive


@dataclass(frozen=True)
class ChaosConfig:
    """Lyapunov exponents and dimensions against policy entropy, in the bandit's learning and in CartPole."""

    seeds: int = 10
    """Independent repetitions: bandit problems, and CartPole training runs."""
    arms: int = 10
    """Actions of the bandit."""
    updates: int = 2000
    """Gradient steps of the bandit's learning map that are averaged over, after half as many to settle."""
    checkpoints: int = 6
    """States of CartPole's training to measure, from its start to its end."""
    temperatures: int = 8
    """Sampling temperatures of the trained CartPole policies."""
    lowest_temperature: float = 0.1
    """First temperature of the grid, which is even in the logarithm."""
    highest_temperature: float = 16.0
    """Last temperature of the grid."""
    trajectories: int = 8
    """CartPole trajectories per seed and point."""
    steps: int = 1000
    """Environment steps of each."""
    total_timesteps: int = 153_600
    """Environment steps of each CartPole training run."""
    seed: int = 0
    """First seed."""
    threads: int = 1
    """CPU threads."""

    def __post_init__(self):
        require_at_least(self, 1, "trajectories", "threads")
        require_at_least(self, 2, "seeds", "arms", "checkpoints", "temperatures")
        require_at_least(self, 40, "updates")
        require_at_least(self, 500, "steps")
        require_positive(self, "lowest_temperature")
        if not self.highest_temperature > self.lowest_temperature:
            raise ValueError(
                f"highest_temperature must be above lowest_temperature ({self.lowest_temperature}), "
                f"got {self.highest_temperature}"
            )
