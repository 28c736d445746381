"""CartPole-v1 as a differentiable map: gymnasium's equations of motion, in torch, for many states at once."""

import math

import torch
from torch import Tensor

from entropy_theory.draw import uniform

GRAVITY, CART, POLE, HALF_LENGTH = 9.8, 1.0, 0.1, 0.5
"""m/s^2, kg, kg, m."""
FORCE, TAU = 10.0, 0.02
"""Newton, either way, and seconds per step."""
LARGEST_POSITION, LARGEST_ANGLE = 2.4, 12 * 2 * math.pi / 360
"""m and rad: beyond them an episode ends."""
RESET = 0.05
"""Every coordinate of a first state is uniform in [-0.05, 0.05]."""


def move(state: Tensor, force: Tensor) -> Tensor:
    """The state after one step under a force (Euler's method, as gymnasium's CartPole-v1 has it by default).

    Args:
      state: [..., 4]: position m, velocity m/s, angle rad, angular velocity rad/s; force: [...], Newton.
    Returns: [..., 4].
    """
    position, velocity, angle, spin = state.unbind(-1)
    mass, moment = CART + POLE, POLE * HALF_LENGTH
    sine, cosine = angle.sin(), angle.cos()
    push = (force + moment * spin.square() * sine) / mass
    turn = (GRAVITY * sine - cosine * push) / (HALF_LENGTH * (4 / 3 - POLE * cosine.square() / mass))
    acceleration = push - moment * turn * cosine / mass
    return torch.stack(
        [position + TAU * velocity, velocity + TAU * acceleration, angle + TAU * spin, spin + TAU * turn], -1
    )


def plant_exponent() -> float:
    r"""Largest Lyapunov exponent, per step, of the upright pole under a force that does not depend on the state.

        log(1 + tau omega),    omega^2 = g / (l (4/3 - m_pole / m))

    About the upright position the angle obeys theta'' = omega^2 theta; the angle drives the cart, not the reverse.
    """
    omega = math.sqrt(GRAVITY / (HALF_LENGTH * (4 / 3 - POLE / (CART + POLE))))
    return math.log1p(TAU * omega)


def fallen(state: Tensor) -> Tensor:
    """Whether an episode ends in this state, bool [...]."""
    return (state[..., 0].abs() > LARGEST_POSITION) | (state[..., 2].abs() > LARGEST_ANGLE)


def first_states(key: Tensor, number: int) -> Tensor:
    """First states of an episode, [..., 4] float64, as gymnasium draws them but from (key, number).

    Args:
      key: [...] int64 draw keys.
    """
    draws = uniform(key, torch.full_like(key, number), 4)
    return RESET * (2 * draws - 1)
