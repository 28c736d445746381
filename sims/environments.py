"""The classic-control environments: many copies of one stepped together, with gymnasium's dynamics.

CartPole-v1 is gymnasium's own vectorised class. Acrobot-v1 and MountainCar-v0 have none there, so their equations are
written out for arrays, in gymnasium's order of operations; the tests hold each to gymnasium's step.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import gymnasium
import numpy as np

Move = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""(state [n, dims] float64, action [n] int64) -> (next state, reward [n], terminated [n])."""


class Environment(NamedTuple):
    """What there is to know about an environment. States are [n, dims] float64, one row per copy.

    inputs, actions:   numbers in an observation, actions to choose from
    max_steps:         length at which an episode is truncated
    least, largest:    no return lies outside
    draws:             uniform numbers that a first state takes
    first_states:      draws [n, draws] in [0, 1) -> states
    observe:           states -> observations [n, inputs] float32
    make_move:         number of copies -> their `Move`
    """

    inputs: int
    actions: int
    max_steps: int
    least: float
    largest: float
    draws: int
    first_states: Callable[[np.ndarray], np.ndarray]
    observe: Callable[[np.ndarray], np.ndarray]
    make_move: Callable[[int], Move]


def _as_it_is(state: np.ndarray) -> np.ndarray:
    return state.astype(np.float32)


# --- CartPole-v1 ----------------------------------------------------------------------------------------------------


def _cartpole_first(draws: np.ndarray) -> np.ndarray:
    return 0.05 * (2 * draws - 1)


def _cartpole_move(count: int) -> Move:
    """gymnasium's vectorised step. Its own reset and time limit are not used: both need to know of seeds."""
    env = gymnasium.make_vec("CartPole-v1", num_envs=count, vectorization_mode="vector_entry_point").unwrapped
    never = np.zeros(count, bool)

    def move(state, action):
        env.state, env.prev_done = state.T, never
        _, reward, terminated, _, _ = env.step(action)
        return np.ascontiguousarray(env.state.T), reward, terminated

    return move


# --- Acrobot-v1 -----------------------------------------------------------------------------------------------------

_GRAVITY, _TIME_STEP = 9.8, 0.2
_LARGEST_SPINS = (4 * math.pi, 9 * math.pi)


def _acrobot_first(draws: np.ndarray) -> np.ndarray:
    return (0.1 * (2 * draws - 1)).astype(np.float32).astype(float)  # gymnasium draws them in float32


def _acrobot_slope(state: np.ndarray, torque: np.ndarray) -> np.ndarray:
    """Time derivative of [4, n] states: both angles (rad) and spins (rad/s) of links of length 1 m and mass 1 kg.

    Sutton & Barto 2018, section 11.3 of the first edition: the book's equations, gymnasium's default.
    """
    theta1, theta2, spin1, spin2 = state
    centre, inertia = 0.5, 1.0
    cosine, sine = np.cos(theta2), np.sin(theta2)
    d1 = centre**2 + (1.0 + centre**2 + 2 * centre * cosine) + inertia + inertia
    d2 = (centre**2 + centre * cosine) + inertia
    phi2 = centre * _GRAVITY * np.cos(theta1 + theta2 - math.pi / 2.0)
    phi1 = (
        -centre * spin2**2 * sine
        - 2 * centre * spin2 * spin1 * sine
        + (centre + 1.0) * _GRAVITY * np.cos(theta1 - math.pi / 2)
        + phi2
    )
    turn2 = (torque + d2 / d1 * phi1 - centre * spin1**2 * sine - phi2) / (centre**2 + inertia - d2**2 / d1)
    turn1 = -(d2 * turn2 + phi1) / d1
    return np.stack((spin1, spin2, turn1, turn2))


def _wrap(angle: np.ndarray) -> np.ndarray:
    """Angles brought to [-pi, pi] by whole turns, one subtraction at a time as gymnasium does."""
    while (high := angle > math.pi).any():
        angle = np.where(high, angle - 2 * math.pi, angle)
    while (low := angle < -math.pi).any():
        angle = np.where(low, angle + 2 * math.pi, angle)
    return angle


def _acrobot_move(count: int) -> Move:
    half = _TIME_STEP / 2.0

    def move(state, action):
        start, torque = state.T, action - 1.0
        k1 = _acrobot_slope(start, torque)
        k2 = _acrobot_slope(start + half * k1, torque)
        k3 = _acrobot_slope(start + half * k2, torque)
        k4 = _acrobot_slope(start + _TIME_STEP * k3, torque)
        theta1, theta2, *spins = start + _TIME_STEP / 6.0 * (k1 + 2 * k2 + 2 * k3 + k4)
        theta1, theta2 = _wrap(theta1), _wrap(theta2)
        spins = [np.clip(spin, -most, most) for spin, most in zip(spins, _LARGEST_SPINS, strict=True)]
        terminated = -np.cos(theta1) - np.cos(theta2 + theta1) > 1.0
        return np.stack((theta1, theta2, *spins), -1), np.where(terminated, 0.0, -1.0), terminated

    return move


def _acrobot_observe(state: np.ndarray) -> np.ndarray:
    theta1, theta2, spin1, spin2 = state.T
    seen = (np.cos(theta1), np.sin(theta1), np.cos(theta2), np.sin(theta2), spin1, spin2)
    return np.stack(seen, -1).astype(np.float32)


# --- MountainCar-v0 -------------------------------------------------------------------------------------------------


def _mountain_first(draws: np.ndarray) -> np.ndarray:
    return np.concatenate((-0.6 + 0.2 * draws, np.zeros_like(draws)), -1)


def _mountain_move(count: int) -> Move:
    def move(state, action):
        position, velocity = state.T
        velocity = velocity + ((action - 1) * 0.001 + np.cos(3 * position) * (-0.0025))
        velocity = np.clip(velocity, -0.07, 0.07)
        position = np.clip(position + velocity, -1.2, 0.6)
        velocity = np.where((position == -1.2) & (velocity < 0), 0.0, velocity)
        terminated = (position >= 0.5) & (velocity >= 0)
        return np.stack((position, velocity), -1), np.full(len(state), -1.0), terminated

    return move


ENVIRONMENTS = {
    "CartPole-v1": Environment(4, 2, 500, 0.0, 500.0, 4, _cartpole_first, _as_it_is, _cartpole_move),
    "Acrobot-v1": Environment(6, 3, 500, -500.0, 0.0, 4, _acrobot_first, _acrobot_observe, _acrobot_move),
    "MountainCar-v0": Environment(2, 3, 200, -200.0, 0.0, 1, _mountain_first, _as_it_is, _mountain_move),
}
