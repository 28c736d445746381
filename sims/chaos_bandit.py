"""The learning map of a bandit, z -> z + eta grad J(z), as a dynamical system.

Logits are taken modulo a constant, which does not change the policy: without that, every exponent spectrum would
hold a 0 that belongs to no policy. Two facts make the bandit a test of any law between entropy and exponent. With
the natural gradient and an entropy bonus beta the map is linear in the logits, z -> (1 - eta beta) z + eta r, so that
every exponent is log |1 - eta beta| whatever the entropy, which r / beta alone sets; and without bonus it is a
translation, with exponent 0 while entropy goes from its largest value to 0.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory.draw import uniform
from entropy_theory.lyapunov import (
    generic_frame,
    kaplan_yorke_dimension,
    mean_and_error,
    participation_dimension,
    tangent_step,
)
from entropy_theory.softmax import entropy, finite_log_probs
from entropy_theory.theorems import natural_gradient_step, policy_gradient_step
from sims.chaos_config import ChaosConfig


class Learning(NamedTuple):
    """Parameters of learning maps, each [..., 1] or a number, over replicas [..., arms].

    reward [..., arms]; step_size eta; bonus beta, reward units per nat; temperature of the softmax; natural gradient.
    """

    reward: Tensor
    step_size: Tensor | float
    bonus: Tensor | float
    temperature: Tensor | float
    natural: bool


def learning_map(learning: Learning):
    r"""z -> z + eta grad (E_pi r + beta H(pi)) with pi = softmax(z / temperature), less its mean over the arms.

    grad = (1/temperature) pi o (A - beta c), c = log pi + H; the natural gradient is temperature (A - beta c).
    """

    def step(logits: Tensor) -> Tensor:
        policy = logits / learning.temperature
        logp, probability = finite_log_probs(policy)
        score = learning.reward - learning.bonus * logp
        if learning.natural:
            centred = score - (probability * score).sum(-1, keepdim=True)
            change = natural_gradient_step(centred, 1.0) * learning.temperature
        else:
            change = policy_gradient_step(policy, score, 1.0) / learning.temperature
        after = logits + learning.step_size * change
        return after - after.mean(-1, keepdim=True)

    return step


class Trajectory(NamedTuple):
    """A learning trajectory: logits [steps, ..., arms] after each step and growth [steps, ..., arms - 1]."""

    logits: Tensor
    growth: Tensor


def learn(learning: Learning, logits: Tensor, steps: int, count: int | None = None) -> Trajectory:
    """Iterate the learning map from `logits` [..., arms] and record the growth of `count` directions."""
    step = learning_map(learning)
    arms = logits.shape[-1]
    frame = generic_frame(arms, arms - 1 if count is None else count)
    frame = torch.linalg.qr(frame - frame.mean(0)).Q.expand(*logits.shape, -1)
    visited, growths = [], []
    for _ in range(steps):
        logits, frame, growth = tangent_step(step, logits, frame)
        visited.append(logits)
        growths.append(growth)
    return Trajectory(torch.stack(visited), torch.stack(growths))


def problems(config: ChaosConfig) -> tuple[Tensor, Tensor]:
    """Rewards uniform in [0, 1] and standard normal logits, [seeds, arms], one problem a seed."""
    keys = config.seed + torch.arange(config.seeds)
    reward = uniform(keys, torch.full_like(keys, -1), config.arms)
    draws = uniform(keys, torch.full_like(keys, -2), config.arms).clamp(min=2.0**-53)
    logits = torch.special.ndtri(draws)
    return reward, logits - logits.mean(-1, keepdim=True)


BONUS, STEP_SIZE = 0.2, 0.5
"""beta and eta of the sweeps over the other settings."""

POLICY_KNOBS = {
    "bonus": (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 1.5),
    "temperature": (0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
    "reward_scale": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    "step_size": (1.0, 10.0, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0, 150.0, 300.0),
}
"""What is varied for the policy gradient; `step_size` reaches far beyond where ascent begins to overshoot."""

NATURAL_KNOBS = {
    "bonus": (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 1.5),
    "reward_scale": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    "step_size": (0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 9.0),
}
"""The same for the natural gradient, whose map a temperature only rescales and whose logits diverge from
step_size 2 / beta on."""

UPDATES = (20, 50, 100, 300, 1000)
"""Ends of the stretches of training without bonus, in gradient steps; none is shorter than `BLOCKS`."""


def knobs(natural: bool) -> dict[str, tuple[float, ...]]:
    """What `sweep` can vary, and the values it takes."""
    return NATURAL_KNOBS if natural else POLICY_KNOBS


def sweep(config: ChaosConfig, knob: str, natural: bool, values: tuple[float, ...] | None = None) -> list[dict]:
    """Exponents of the settled learning map over one knob, one row for each value and seed.

    The other settings are eta = 0.5, beta = 0.2 and temperature 1; rewards in [0, 1]. The whole spectrum, and with it
    the dimension of the attractor, is taken where there may be one that is not a point: over the policy gradient's
    step size.
    """
    values = values or knobs(natural)[knob]
    reward, logits = problems(config)
    column = torch.tensor(values, dtype=torch.float64)[:, None, None]
    settings = {"step_size": STEP_SIZE, "bonus": BONUS, "temperature": 1.0, "reward_scale": 1.0} | {knob: column}
    scale = settings.pop("reward_scale")
    learning = Learning(reward=reward * scale, natural=natural, **settings)
    start = logits.expand(len(values), *logits.shape)
    settled = learn(learning, start, config.updates // 2, count=1).logits[-1]
    whole = knob == "step_size" and not natural
    found = learn(learning, settled, config.updates, count=None if whole else 1)
    return rows(found, learning, knob, values, config.seed)


def training(config: ChaosConfig, natural: bool) -> list[dict]:
    """Largest exponent of stretches of a training without bonus, up to each of `UPDATES`, by stretch and seed."""
    reward, logits = problems(config)
    learning = Learning(reward, STEP_SIZE, 0.0, 1.0, natural)
    ends = [end for end in UPDATES if end <= config.updates]
    found = learn(learning, logits, ends[-1], count=1)
    result = []
    for begin, end in zip([0, *ends], ends, strict=False):
        stretch = Trajectory(found.logits[begin:end].unsqueeze(1), found.growth[begin:end].unsqueeze(1))
        result += rows(stretch, learning, "updates", (end,), config.seed)
    return result


def rows(found: Trajectory, learning: Learning, knob: str, values: tuple[float, ...], first_seed: int) -> list[dict]:
    """One row for each value and seed of a trajectory, whose replicas are [values, seeds]."""
    value, error = mean_and_error(found.growth.movedim(0, -1))  # [values, seeds, directions]
    probability = (found.logits / learning.temperature).softmax(-1)
    columns = {
        "entropy": entropy(found.logits / learning.temperature).mean(0),
        "exponent": value[..., 0],
        "exponent_error": error[..., 0],
        "return": (probability * learning.reward).sum(-1).mean(0),
    }
    if knob == "updates" or value.shape[-1] > 1:  # elsewhere the trajectory has come to rest and fills nothing
        columns["participation_logits"] = participation_dimension(found.logits.movedim(0, -2))
    if value.shape[-1] > 1:
        columns["dimension"] = kaplan_yorke_dimension(value)
    name = "natural gradient" if learning.natural else "policy gradient"
    return [
        {"world": "bandit", "map": name, "knob": knob, "value": float(setting), "seed": first_seed + seed}
        | {column: float(numbers[i, seed]) for column, numbers in columns.items()}
        for i, setting in enumerate(values)
        for seed in range(found.logits.shape[2])
    ]
