"""Settings of the CartPole world. Imports no torch, so that --help is instant."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from entropy_theory.names import Advantage, Aggregation, Surrogate
from entropy_theory.ranges import require_at_least, require_choice, require_positive, require_share

MAX_STEPS = {"CartPole-v1": 500, "Acrobot-v1": 500, "MountainCar-v0": 200}
"""Length at which an episode is truncated, by environment."""

EPISODES = ("grpo", "reinforce")
"""Algorithms that play whole episodes; the others play segments of a fixed length."""

SURROGATES = get_args(Surrogate)
AGGREGATIONS = get_args(Aggregation)
ADVANTAGES = get_args(Advantage)
"""The names of `entropy_theory.surrogate`, `aggregation` and `advantage`, which import torch."""

SHORTEST_EPISODE = 4
"""No episode of these environments ends earlier."""


@dataclass(frozen=True)
class CartPoleConfig:
    """A policy-gradient method on CartPole, Acrobot or MountainCar, all seeds trained together as batched networks."""

    env: Literal["CartPole-v1", "Acrobot-v1", "MountainCar-v0"] = "CartPole-v1"
    """gymnasium's name of the environment."""
    algorithm: Literal["ppo", "grpo", "reinforce", "npg"] = "ppo"
    """ppo; npg (natural gradient) with PPO's advantages; grpo or reinforce on whole episodes, without critic. All take
    several clipped updates on a rollout; --epochs 1 --minibatches 2 comes closest to the textbook."""
    surrogate: Surrogate = "ppo"
    """What is maximised for a step, as a function of its ratio."""
    aggregation: Aggregation = "token-mean"
    """How the losses of a minibatch's steps become one number. With ppo and npg a sequence is one step, and all four
    are the same."""
    advantage: Advantage = "grpo"
    """grpo: advantage of an episode from the outcomes of its group or rollout; every step has it."""
    control: str = "none"
    """Entropy control, or several joined by +, applied from left to right (`entropy-theory controls` lists them)."""
    set: dict[str, float | str] = field(default_factory=dict)
    """A control's own parameter as NAME.parameter=value, for example kl_cov.fraction=0.02; repeatable."""
    seeds: int = 10
    """Independent repetitions, trained together."""
    total_timesteps: int = 153_600
    """ppo, npg: environment steps per seed, automatic resets included; rounded down to whole rollouts."""
    episode_rollouts: int = 60
    """grpo, reinforce: rollouts in the run. How many steps their episodes take is known only afterwards."""
    envs: int = 16
    """ppo, npg: parallel environments per seed."""
    steps: int = 32
    """ppo, npg: steps of each environment per rollout."""
    groups: int = 4
    """grpo, reinforce: first states per rollout, each that of one group of episodes."""
    group_size: int = 4
    """grpo, reinforce: episodes from one first state."""
    epochs: int = 10
    """Passes over a rollout."""
    minibatches: int = 4
    """Optimizer steps per epoch; must divide envs * steps (ppo, npg) or groups (grpo, reinforce)."""
    lr: float = 1e-3
    """Learning rate of Adam at the start, in (0, 1]. npg uses it for the critic."""
    target_kl: float = 0.01
    """npg: KL divergence that the updates on one rollout may add up to, to second order, nats."""
    damping: float = 0.1
    """npg: added to the Fisher matrix's diagonal."""
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
    value_clip: float = math.inf
    """ppo, npg: change of a state's value, reward units, beyond which the value loss holds it; inf for no such clip."""
    bootstrap_truncated: bool = True
    """ppo, npg: expect further reward where the time limit cut an episode; False takes that for the end, as CleanRL
    and PureJaxRL do."""
    normalise: Literal["rollout", "minibatch"] = "rollout"
    """ppo, npg: what an advantage is centred and scaled over, within a seed."""
    max_grad_norm: float = 0.5
    """Largest norm of one seed's gradient, actor and critic together."""
    hidden: int = 64
    """Units in each of the two tanh layers of actor and critic."""
    init: Literal["orthogonal", "default"] = "orthogonal"
    """Weights at the start: orthogonal with a nearly uniform policy, or as torch.nn.Linear begins."""
    init_gain: float = 1.0
    """Factor on the actor's head at the start: above 1 for a policy that begins more decided."""
    init_entropy: float = 0.0
    """Entropy-aware initialisation: a seed's weights are drawn again until its policy's mean entropy over a short
    rollout is this share of ln(actions), 0 for off."""
    init_tries: int = 10
    """Entropy-aware initialisation: most draws; if none reaches init_entropy, the best is kept."""
    measure_every: int = 1
    """Rollouts between measurements of entropy changes, 0 for none; one in every rollout takes 7 % of a default run's
    time with engine numba, 14 % with torch."""
    save_every: int = 1
    """Rollouts between saved states, the most that a kill can cost."""
    probe_states: int = 64
    """States per seed, from the first rollout, on which entropy changes are measured."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of networks and losses."""
    engine: Literal["auto", "torch", "numba"] = "auto"
    """What computes: torch, numba (faster; one that is compiled), or auto, the fastest that is installed."""
    seed: int = 0
    """First seed. Nothing of seed i depends on which others run beside it. (A single seed may differ in the last bits
    with engine torch or npg: torch multiplies a batch of one matrix by other code.)"""
    threads: int = 1
    """CPU threads; with engine numba, processes of one thread that share the seeds."""

    @property
    def copies(self) -> int:
        """Environments per seed."""
        return self.groups * self.group_size if self.algorithm in EPISODES else self.envs

    @property
    def starts(self) -> int:
        """Different first states per seed."""
        return self.groups if self.algorithm in EPISODES else self.envs

    @property
    def rollout_size(self) -> int:
        """Steps per seed and rollout, at most."""
        return self.copies * (MAX_STEPS[self.env] if self.algorithm in EPISODES else self.steps)

    @property
    def horizon(self) -> int:
        """Steps of a row of the records, at most."""
        return MAX_STEPS[self.env] if self.algorithm in EPISODES else 1

    @property
    def rollouts(self) -> int:
        """Rollouts in the run."""
        return self.episode_rollouts if self.algorithm in EPISODES else self.total_timesteps // self.rollout_size

    @property
    def updates_per_rollout(self) -> int:
        """Optimizer steps on one rollout."""
        return self.epochs * self.minibatches

    def __post_init__(self):
        require_at_least(self, 1, "seeds", "envs", "steps", "groups", "epochs", "minibatches", "hidden", "threads")
        require_at_least(self, 1, "save_every")
        require_at_least(self, 1, "episode_rollouts", "init_tries")
        require_at_least(self, 0, "value_coef", "damping", "measure_every")
        require_positive(self, "clip_low", "clip_high", "max_grad_norm", "target_kl", "value_clip", "init_gain")
        require_share(self, "gamma", "gae_lambda", "init_entropy")
        require_choice(self, "env", tuple(MAX_STEPS))
        require_choice(self, "algorithm", ("ppo", "npg", *EPISODES))
        require_choice(self, "surrogate", SURROGATES)
        require_choice(self, "aggregation", AGGREGATIONS)
        require_choice(self, "advantage", ADVANTAGES)
        require_choice(self, "init", ("orthogonal", "default"))
        require_choice(self, "normalise", ("rollout", "minibatch"))
        require_choice(self, "dtype", ("float32", "float64"))
        require_choice(self, "engine", ("auto", "torch", "numba"))
        if not 0 < self.lr <= 1:
            raise ValueError(f"lr must lie in (0, 1], got {self.lr}")
        if self.advantage != "grpo" and self.algorithm != "grpo":
            raise ValueError(
                f"advantage {self.advantage!r} compares the episodes of algorithm grpo; {self.algorithm} has an "
                "advantage of its own, so leave advantage at grpo"
            )
        if self.algorithm in EPISODES:
            self._check_episodes()
        else:
            self._check_segments()

    def _check_segments(self) -> None:
        if self.total_timesteps < self.rollout_size:
            raise ValueError(
                f"total_timesteps must be at least one rollout, envs * steps = {self.rollout_size}, "
                f"got {self.total_timesteps}"
            )
        if self.rollout_size % self.minibatches:
            raise ValueError(f"minibatches must divide envs * steps = {self.rollout_size}, got {self.minibatches}")
        if not 1 <= self.probe_states <= self.rollout_size // 2:
            raise ValueError(
                f"probe_states must lie in [1, {self.rollout_size // 2}] (half of envs * steps), "
                f"got {self.probe_states}"
            )

    def _check_episodes(self) -> None:
        require_at_least(self, 2, "group_size")
        if self.normalise != "rollout":
            raise ValueError(
                f"normalise must be rollout with algorithm {self.algorithm}, which compares whole episodes; "
                f"got {self.normalise!r}"
            )
        if self.groups % self.minibatches:
            raise ValueError(f"minibatches must divide groups = {self.groups}, got {self.minibatches}")
        most = SHORTEST_EPISODE * self.copies
        if not 1 <= self.probe_states <= most:
            raise ValueError(
                f"probe_states must lie in [1, {most}] ({SHORTEST_EPISODE} * groups * group_size), "
                f"got {self.probe_states}"
            )
