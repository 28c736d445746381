"""Closed-loop CartPole as a dynamical system: how fast neighbouring states part under a policy.

Two closed loops. `mean action` replaces the sampled force by its mean, 10 (2 pi(1|s) - 1) N, which makes a
differentiable deterministic map; its exponents come from its Jacobians. `common noise` is the real, stochastic
policy: two trajectories take action 1 where one and the same draw falls below their own pi(1|s). Their separation is
set back to a fixed length after every step, and the exponent is its mean logarithmic growth; it counts how often
neighbours act differently, which happens in proportion to the separation, so it is given at two of them.

A trajectory that falls, or reaches 500 steps, goes on from gymnasium's distribution of first states, with the
separation (or the tangent frame) that it had. That jump has no derivative and is not counted; an exponent is a mean
over all steps of all pieces. It is per step (0.02 s), in gymnasium's units (m, m/s, rad, rad/s).
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
from entropy_theory.softmax import entropy
from sims.actor import actor_logits
from sims.cartpole_map import FORCE, fallen, first_states, move
from sims.environments import ENVIRONMENTS

SEPARATIONS = (1e-2, 1e-6)
"""Lengths to which the separation of two trajectories under common noise is set back."""

MAX_STEPS = ENVIRONMENTS["CartPole-v1"].max_steps

SETTLE = 100
"""Steps before those that count, on which the tangent frame turns to its directions."""


class Policies(NamedTuple):
    """Policies to measure: actor weights [..., seeds, in, out] by name, and temperature [..., seeds]."""

    weights: dict[str, Tensor]
    temperature: Tensor

    def logits(self, state: Tensor) -> Tensor:
        """Logits at the sampling temperature, [..., seeds, trajectories, 2], at states [..., trajectories, 4]."""
        return actor_logits(self.weights, state) / self.temperature[..., None, None]

    def right(self, state: Tensor) -> Tensor:
        """pi(1|s), the probability of pushing to the right."""
        logits = self.logits(state)
        return torch.sigmoid(logits[..., 1] - logits[..., 0])


class Episodes:
    """Restarts trajectories that end and keeps account of the lengths of their episodes."""

    def __init__(self, keys: Tensor, steps: int):
        self.keys, self.steps = keys, steps
        self.age = torch.zeros(keys.shape)
        self.total, self.count = torch.zeros(keys.shape), torch.zeros(keys.shape)

    def restart(self, state: Tensor, t: int) -> Tensor:
        """The state after step t [..., 4], or a first state where the episode ended by that step."""
        self.age += 1
        ended = fallen(state) | (self.age >= MAX_STEPS)
        # Those that begin in time to end whatever happens: the number of them is a stopping time, so that the sum of
        # their lengths over their number estimates the mean length (Wald's identity)
        counted = ended & (t + 1 - self.age <= self.steps - MAX_STEPS)
        self.total += torch.where(counted, self.age, 0.0)
        self.count += counted
        self.age = torch.where(ended, 0.0, self.age)
        return torch.where(ended.unsqueeze(-1), first_states(self.keys, t + 1), state)

    def mean_length(self) -> Tensor:
        """Mean episode length of each policy, [..., seeds]; NaN if the steps are too few for a whole episode."""
        return self.total.sum(-1) / self.count.sum(-1)


class Visited(NamedTuple):
    """What a closed loop did: state [steps, ..., seeds, trajectories, 4], growth [steps, ..., trajectories, k] and
    the mean episode length [..., seeds]."""

    state: Tensor
    growth: Tensor
    length: Tensor


def keys_of(policies: Policies, trajectories: int, first_seed: int) -> Tensor:
    """Draw keys [..., seeds, trajectories]: policies of one seed at other settings meet the same starts and noise."""
    seeds = policies.temperature.shape[-1]
    keys = first_seed + torch.arange(seeds)[:, None] + (torch.arange(trajectories) << 32)
    return keys.expand(*policies.temperature.shape, trajectories).contiguous()


def mean_action_loop(policies: Policies, trajectories: int, steps: int, seed: int) -> Visited:
    """Iterate the deterministic closed loop and its tangent frame, all four exponents."""
    keys = keys_of(policies, trajectories, seed)
    episodes = Episodes(keys, SETTLE + steps)

    def step(state):
        return move(state, FORCE * (2 * policies.right(state) - 1))

    state = first_states(keys, 0)
    frame = generic_frame(4, 4).expand(*keys.shape, 4, 4)
    states, growths = [], []
    for t in range(SETTLE + steps):
        states.append(state)
        state, frame, growth = tangent_step(step, state, frame)
        growths.append(growth)
        state = episodes.restart(state, t)
    return Visited(torch.stack(states[SETTLE:]), torch.stack(growths[SETTLE:]), episodes.mean_length())


@torch.no_grad()
def common_noise_loop(policies: Policies, trajectories: int, steps: int, seed: int) -> Visited:
    """Iterate the stochastic closed loop beside one neighbour at each of `SEPARATIONS`, on the same draws."""
    keys = keys_of(policies, trajectories, seed)
    episodes = Episodes(keys, SETTLE + steps)
    length = torch.tensor(SEPARATIONS, dtype=torch.float64).view(-1, *[1] * (keys.dim() + 1))

    def step(state, draw):
        return move(state, FORCE * (2.0 * (draw < policies.right(state)) - 1))

    state = first_states(keys, 0)
    apart = length * generic_frame(4, 1).squeeze(-1).expand(len(SEPARATIONS), *keys.shape, 4)
    states, growths = [], []
    for t in range(SETTLE + steps):
        states.append(state)
        draw = uniform(keys, torch.full_like(keys, -1 - t), 1).squeeze(-1)
        both = step(torch.cat([state.unsqueeze(0), state + apart]), draw)
        apart = both[1:] - both[0]
        grown = apart.norm(dim=-1, keepdim=True) / length
        growths.append(grown.squeeze(-1).log().movedim(0, -1))
        apart = apart / grown
        state = episodes.restart(both[0], t)
    return Visited(torch.stack(states[SETTLE:]), torch.stack(growths[SETTLE:]), episodes.mean_length())


def columns(policies: Policies, visited: Visited) -> dict[str, Tensor]:
    """Entropy, dimensions and return of each policy, [..., seeds]; the exponents are left to the loop's own rows."""
    cloud = visited.state.movedim(0, -2).flatten(-3, -2)  # [..., seeds, trajectories * steps, 4]
    logits = policies.logits(cloud)
    deviation = cloud.std(-2, keepdim=True)
    return {
        "entropy": entropy(logits).mean(-1),
        "participation_state": participation_dimension(cloud),
        "participation_unit": participation_dimension(cloud / deviation.masked_fill(deviation == 0, 1.0)),
        "participation_logits": participation_dimension(logits),
        "return": visited.length,
    }


def exponents(growth: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard error of a growth [steps, ..., seeds, trajectories] over steps and trajectories.

    Trajectories are independent, blocks of steps nearly so: the errors of the trajectories add in squares.
    """
    value, error = mean_and_error(growth.movedim(0, -1))
    return value.mean(-1), error.square().mean(-1).sqrt() / value.shape[-1] ** 0.5


def measure(policies: Policies, trajectories: int, steps: int, seed: int) -> dict[str, dict[str, Tensor]]:
    """Columns [..., seeds] of every closed loop by its name."""
    smooth = mean_action_loop(policies, trajectories, steps, seed)
    spectrum = smooth.growth.mean((0, -2))  # [..., seeds, 4]
    value, error = exponents(smooth.growth[..., 0])
    found = {
        "mean action": columns(policies, smooth)
        | {"exponent": value, "exponent_error": error, "dimension": kaplan_yorke_dimension(spectrum)}
    }
    noisy = common_noise_loop(policies, trajectories, steps, seed)
    shared = columns(policies, noisy)
    for i, separation in enumerate(SEPARATIONS):
        value, error = exponents(noisy.growth[..., i])
        found[f"common noise, {separation:g} apart"] = shared | {"exponent": value, "exponent_error": error}
        shared = {"entropy": shared["entropy"]}  # the neighbours differ, the trajectory is the same
    return found


def rows(found: dict[str, dict[str, Tensor]], knob: str, values, first_seed: int) -> list[dict]:
    """One row for each loop, value and seed; columns are [values, seeds]."""
    return [
        {"world": "cartpole", "map": name, "knob": knob, "value": float(value), "seed": first_seed + seed}
        | {column: float(numbers[i, seed]) for column, numbers in of_loop.items()}
        for name, of_loop in found.items()
        for i, value in enumerate(values)
        for seed in range(of_loop["entropy"].shape[-1])
    ]
