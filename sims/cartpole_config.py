"""Settings of the CartPole world. Imports no torch, so that --help is instant."""

from dataclasses import dataclass, field
from typing import Literal

from entropy_theory.ranges import require_at_least, require_choice, require_positive, require_share

ENVS = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0")


@dataclass(frozen=True)
class CartPoleConfig:
    """PPO on CartPole-v1, all seeds trained together as batched networks."""

    env: Literal["CartPole-v1", "Acrobot-v1", "MountainCar-v0"] = "CartPole-v1"
    """gymnasium's name of the environment."""
    control: str = "none"
    """Entropy control, or several joined by +, applied from left to right (`entropy-theory controls` lists them)."""
    set: dict[str, float] = field(default_factory=dict)
    """A control's own parameter as NAME.parameter=value, for example kl_cov.fraction=0.02; repeatable."""
    seeds: int = 10
    """Independent repetitions, trained together."""
    total_timesteps: int = 153_600
    """Environment steps per seed; rounded down to whole rollouts."""
    envs: int = 16
    """Parallel environments per seed."""
    steps: int = 32
    """Steps of each environment per rollout."""
    epochs: int = 10
    """Passes over a rollout."""
    minibatches: int = 4
    """Optimizer steps per epoch; must divide envs * steps."""
    lr: float = 1e-3
    """Learning rate of Adam at the start, in (0, 1]."""
    anneal_lr: bool = True
    """Lower the learning rate linearly to 0 over the run."""
    gamma: float = 0.99
    """Discount per step, in [0, 1]."""
    gae_lambda: float = 0.9
    """Decay of the advantage estimate per step, in [0, 1]."""
    clip_low: float = 0.2
    """Distance of PPO's lower clip from ratio 1."""
    clip_high: float = 0.2
    """Distance of PPO's upper clip from ratio 1."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Largest norm of one seed's gradient, actor and critic together."""
    hidden: int = 64
    """Units in each of the two tanh layers of actor and critic."""
    probe_states: int = 64
    """States per seed, from the first rollout, on which entropy changes are measured."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of networks and losses."""
    engine: Literal["auto", "torch", "numba"] = "auto"
    """What computes: torch, numba (faster; one that is compiled), or auto, the fastest that is installed."""
    seed: int = 0
    """First seed. Nothing of seed i depends on the number of seeds: weights, first states, actions, shuffles."""
    threads: int = 1
    """CPU threads."""

    @property
    def rollout_size(self) -> int:
        """Steps per seed and rollout."""
        return self.envs * self.steps

    @property
    def rollouts(self) -> int:
        """Rollouts in the run."""
        return self.total_timesteps // self.rollout_size

    @property
    def updates_per_rollout(self) -> int:
        """Optimizer steps on one rollout."""
        return self.epochs * self.minibatches

    def __post_init__(self):
        require_at_least(self, 1, "seeds", "envs", "steps", "epochs", "minibatches", "hidden", "threads")
        require_at_least(self, 0, "value_coef")
        require_positive(self, "clip_low", "clip_high", "max_grad_norm")
        require_share(self, "gamma", "gae_lambda")
        require_choice(self, "env", ENVS)
        require_choice(self, "dtype", ("float32", "float64"))
        require_choice(self, "engine", ("auto", "torch", "numba"))
        if not 0 < self.lr <= 1:
            raise ValueError(f"lr must lie in (0, 1], got {self.lr}")
        if self.total_timesteps < self.rollout_size:
            raise ValueError(
                f"total_timesteps must be at least one rollout, envs * steps = {self.rollout_size}, "
                f"got {self.total_timesteps}"
            )
        if self.rollout_size % self.minibatches:
            raise ValueError(f"minibatches must divide envs * steps = {self.rollout_size}, got {self.minibatches}")
        if self.updates_per_rollout < 2:
            raise ValueError(
                f"epochs * minibatches must be at least 2, got {self.epochs} * {self.minibatches}: "
                "some controls (kl_cov, clip_higher) cannot act on the first update of a rollout"
            )
        if not 1 <= self.probe_states <= self.rollout_size // 2:
            raise ValueError(
                f"probe_states must lie in [1, {self.rollout_size // 2}] (half of envs * steps), "
                f"got {self.probe_states}"
            )
