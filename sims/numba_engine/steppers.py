"""One step of each environment, compiled: gymnasium's operations in gymnasium's order, so that states agree.

Each is `begin(key, episode, state)`, the first state of an episode, `move(state, action) -> (reward, terminated)`, and
`observe(state, out)`; states are float64 and changed in place. No operation may be fused or rearranged here.
"""

import math

import numpy as np
from numba import njit

from entropy_theory.compiled.elementary import EXACT
from sims.numba_engine.draws import uniform

# --- CartPole-v1 (gymnasium.envs.classic_control.cartpole, Euler integration) ---------------------------------------

_TOTAL_MASS = 0.1 + 1.0
_POLE_MOMENT = 0.1 * 0.5
_LARGEST_ANGLE = 12 * 2 * math.pi / 360


@njit(**EXACT)
def cartpole_begin(key, episode, state):
    """Every number uniform in [-0.05, 0.05)."""
    for i in range(4):
        state[i] = 0.05 * (2 * uniform(key, episode, i) - 1)


@njit(**EXACT)
def cartpole_move(state, action):
    """state: position, velocity, angle, angular velocity."""
    x, x_dot, theta, theta_dot = state[0], state[1], state[2], state[3]
    force = 10.0 if action == 1 else -10.0
    cos, sin = math.cos(theta), math.sin(theta)
    push = (force + _POLE_MOMENT * (theta_dot * theta_dot) * sin) / _TOTAL_MASS
    theta_acc = (9.8 * sin - cos * push) / (0.5 * (4.0 / 3.0 - 0.1 * (cos * cos) / _TOTAL_MASS))
    x_acc = push - _POLE_MOMENT * theta_acc * cos / _TOTAL_MASS
    x, x_dot = x + 0.02 * x_dot, x_dot + 0.02 * x_acc
    theta, theta_dot = theta + 0.02 * theta_dot, theta_dot + 0.02 * theta_acc
    state[0], state[1], state[2], state[3] = x, x_dot, theta, theta_dot
    return 1.0, x < -2.4 or x > 2.4 or theta < -_LARGEST_ANGLE or theta > _LARGEST_ANGLE


# --- Acrobot-v1 (gymnasium.envs.classic_control.acrobot, the book's dynamics, unit lengths and masses) ---------------


@njit(**EXACT)
def acrobot_begin(key, episode, state):
    """Every number uniform in [-0.1, 0.1), in float32."""
    for i in range(4):
        state[i] = np.float32(0.1 * (2 * uniform(key, episode, i) - 1))


@njit(**EXACT)
def _acrobot_rates(theta_1, theta_2, dtheta_1, dtheta_2, torque):
    """Time derivatives of the two angular velocities."""
    cos, sin = math.cos(theta_2), math.sin(theta_2)
    d1 = 0.25 + (1.25 + cos) + 1.0 + 1.0
    d2 = (0.25 + 0.5 * cos) + 1.0
    phi_2 = 0.5 * 9.8 * math.cos(theta_1 + theta_2 - math.pi / 2)
    phi_1 = -0.5 * (dtheta_2 * dtheta_2) * sin - dtheta_2 * dtheta_1 * sin
    phi_1 = phi_1 + 1.5 * 9.8 * math.cos(theta_1 - math.pi / 2) + phi_2
    top = torque + d2 / d1 * phi_1 - 0.5 * (dtheta_1 * dtheta_1) * sin - phi_2
    ddtheta_2 = top / (1.25 - d2 * d2 / d1)
    return -(d2 * ddtheta_2 + phi_1) / d1, ddtheta_2


@njit(**EXACT)
def _wrapped(angle):
    while angle > math.pi:
        angle = angle - 2 * math.pi
    while angle < -math.pi:
        angle = angle + 2 * math.pi
    return angle


@njit(**EXACT)
def acrobot_move(state, action):
    """state: both angles, both angular velocities; one Runge-Kutta step of 0.2 s."""
    torque = action - 1.0
    a, b, c, d = state[0], state[1], state[2], state[3]
    half, whole = 0.1, 0.2
    a1, b1 = c, d
    c1, d1 = _acrobot_rates(a, b, c, d, torque)
    a2, b2 = c + half * c1, d + half * d1
    c2, d2 = _acrobot_rates(a + half * a1, b + half * b1, a2, b2, torque)
    a3, b3 = c + half * c2, d + half * d2
    c3, d3 = _acrobot_rates(a + half * a2, b + half * b2, a3, b3, torque)
    a4, b4 = c + whole * c3, d + whole * d3
    c4, d4 = _acrobot_rates(a + whole * a3, b + whole * b3, a4, b4, torque)
    sixth = 0.2 / 6.0
    state[0] = _wrapped(a + sixth * (a1 + 2 * a2 + 2 * a3 + a4))
    state[1] = _wrapped(b + sixth * (b1 + 2 * b2 + 2 * b3 + b4))
    state[2] = min(max(c + sixth * (c1 + 2 * c2 + 2 * c3 + c4), -4 * math.pi), 4 * math.pi)
    state[3] = min(max(d + sixth * (d1 + 2 * d2 + 2 * d3 + d4), -9 * math.pi), 9 * math.pi)
    terminated = -math.cos(state[0]) - math.cos(state[1] + state[0]) > 1.0
    return 0.0 if terminated else -1.0, terminated


@njit(**EXACT)
def acrobot_observe(state, out):
    """Cosine and sine of both angles, both angular velocities."""
    out[0], out[1] = math.cos(state[0]), math.sin(state[0])
    out[2], out[3] = math.cos(state[1]), math.sin(state[1])
    out[4], out[5] = state[2], state[3]


# --- MountainCar-v0 (gymnasium.envs.classic_control.mountain_car) ----------------------------------------------------


@njit(**EXACT)
def mountain_car_begin(key, episode, state):
    """Position uniform in [-0.6, -0.4), at rest."""
    state[0], state[1] = -0.6 + 0.2 * uniform(key, episode, 0), 0.0


@njit(**EXACT)
def mountain_car_move(state, action):
    """state: position, velocity."""
    position, velocity = state[0], state[1]
    velocity += (action - 1) * 0.001 + math.cos(3 * position) * (-0.0025)
    velocity = min(max(velocity, -0.07), 0.07)
    position = min(max(position + velocity, -1.2), 0.6)
    if position == -1.2 and velocity < 0:
        velocity = 0.0
    state[0], state[1] = position, velocity
    return -1.0, position >= 0.5 and velocity >= 0


@njit(**EXACT)
def observe_state(state, out):
    """The observation is the state (CartPole, MountainCar)."""
    for i in range(out.size):
        out[i] = state[i]
