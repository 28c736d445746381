"""A whole rollout of each seed in one compiled loop: policy, draw, step, automatic reset.

The records and the rules are those of `cartpole_env.collect`. One thin function per environment, so that each can be
kept on disk.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from entropy_theory.compiled.elementary import EXACT, FLAGS
from sims.numba_engine import steppers
from sims.numba_engine.passes import prepared, run_network


class Copies(NamedTuple):
    """The arrays of `cartpole_env.Environments`, [seeds * envs, ...], moved on in place."""

    key: np.ndarray
    state: np.ndarray
    steps: np.ndarray
    episode: np.ndarray
    total: np.ndarray
    done: np.ndarray


class Records(NamedTuple):
    """The arrays of a `Rollout`, [seeds, envs, steps, ...], to be filled."""

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    mask: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    total: np.ndarray


@njit(**FLAGS)
def _choose(logits, shares, draw):
    """`cartpole_env.choose`: the action in whose share `draw` falls, the last action lying lowest."""
    top = logits[0]
    for a in range(1, logits.size):
        top = max(top, logits[a])
    total = 0.0
    for a in range(logits.size - 1, -1, -1):
        shares[a] = math.exp(logits[a] - top)
        total += shares[a]
    tail = 0.0
    for a in range(logits.size - 1, 0, -1):
        tail += shares[a]
        if draw * total < tail:
            return a
    return 0


@njit(inline="always", **EXACT)
def _step(move, begin, max_steps, copies, n, action):
    """One step of copy n, or its automatic reset; (reward, terminated, truncated)."""
    if copies.done[n]:
        copies.episode[n] += 1
        begin(copies.key[n], copies.episode[n], copies.state[n])
        copies.steps[n], copies.total[n], copies.done[n] = 0, 0.0, False
        return 0.0, False, False
    reward, terminated = move(copies.state[n], action)
    copies.steps[n] += 1
    copies.total[n] += reward
    truncated = copies.steps[n] >= max_steps
    copies.done[n] = terminated or truncated
    return reward, terminated, truncated


@njit(inline="always", **EXACT)
def _observe(observe, state, seen, records, s, e, t, x):
    """The observation, rounded to float32 as gymnasium's, into the records and row e of the network's input."""
    observe(state, seen)
    for i in range(seen.size):
        records.observation[s, e, t, i] = seen[i]
        x[e, i] = seen[i]


@njit(**FLAGS)
def _collect(begin, move, observe, max_steps, actor, stride, copies, draws, records):
    _, envs, steps = draws.shape
    dtype = records.observation.dtype
    inputs, actions = records.observation.shape[3], actor[4].shape[2]
    x, logits = np.empty((envs, inputs), dtype), np.empty((envs, actions), dtype)
    hidden_1, hidden_2 = np.empty((envs, stride), dtype), np.empty((envs, stride), dtype)
    seen, shares = np.empty(inputs, np.float32), np.empty(actions)
    w1, b1, w2, b2, weight, bias = actor
    for s in range(len(draws)):
        network = prepared(w1[0, s], b1[0, s], w2[0, s], b2[0, s], weight[s], bias[s], stride)
        for e in range(envs):
            _observe(observe, copies.state[s * envs + e], seen, records, s, e, 0, x)
        for t in range(steps):
            run_network(x, network, hidden_1, hidden_2, logits)
            for e in range(envs):
                n = s * envs + e
                action = _choose(logits[e], shares, draws[s, e, t])
                records.action[s, e, t] = action
                records.mask[s, e, t] = not copies.done[n]
                reward, terminated, truncated = _step(move, begin, max_steps, copies, n, action)
                records.reward[s, e, t], records.total[s, e, t] = reward, copies.total[n]
                records.terminated[s, e, t], records.truncated[s, e, t] = terminated, truncated
                _observe(observe, copies.state[n], seen, records, s, e, t + 1, x)


@njit(cache=True, **FLAGS)
def cartpole(max_steps, actor, stride, copies, draws, records):
    """All seeds of CartPole-v1.

    Args:
      actor: the actor's six arrays, those of the layers with the critic's beside them; stride: width of padded rows.
      draws: [seeds, envs, steps], uniform in [0, 1).
    """
    begin, move, observe = steppers.cartpole_begin, steppers.cartpole_move, steppers.observe_state
    _collect(begin, move, observe, max_steps, actor, stride, copies, draws, records)


@njit(cache=True, **FLAGS)
def acrobot(max_steps, actor, stride, copies, draws, records):
    """All seeds of Acrobot-v1, as `cartpole`."""
    begin, move, observe = steppers.acrobot_begin, steppers.acrobot_move, steppers.acrobot_observe
    _collect(begin, move, observe, max_steps, actor, stride, copies, draws, records)


@njit(cache=True, **FLAGS)
def mountain_car(max_steps, actor, stride, copies, draws, records):
    """All seeds of MountainCar-v0, as `cartpole`."""
    begin, move, observe = steppers.mountain_car_begin, steppers.mountain_car_move, steppers.observe_state
    _collect(begin, move, observe, max_steps, actor, stride, copies, draws, records)


COLLECT = {"CartPole-v1": cartpole, "Acrobot-v1": acrobot, "MountainCar-v0": mountain_car}
"""Compiled rollout of each environment."""
