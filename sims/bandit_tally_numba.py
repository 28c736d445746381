"""Drawing and counting pulls compiled: the numbers of `draw.uniform`, the arms and rewards of `bandit_rollout.pull`."""

import numpy as np
import torch
from numba import njit, uint64
from torch import Tensor

from sims.bandit_config import BanditConfig
from sims.bandit_form import Problem

_GAMMA, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_FIRST, _SECOND, _THIRD, _TOP = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


@njit(inline="always")
def _mix(x):
    x = (x ^ (x >> _FIRST)) * _MIX_1
    x = (x ^ (x >> _SECOND)) * _MIX_2
    return x ^ (x >> _THIRD)


@njit
def _fill(numbers, key, first):
    """Uniform numbers at positions first, first + 1, ... of a mixed key."""
    for i in range(len(numbers)):
        numbers[i] = (_mix(key + uint64(first + i) * _GAMMA) >> _TOP) * 2.0**-53


@njit
def _count(seeds, step, cumulative, reward, context, samples, offset, counts):
    replicas, contexts, arms = counts.shape[:3]
    which, luck, arm = np.empty(samples), np.empty(samples), np.empty(samples, np.int64)
    for r in range(replicas):
        key = _mix(_mix(uint64(seeds[r]) * _GAMMA) + uint64(step) * _GAMMA)
        for g in range(contexts):
            first = 1 + offset + g * samples
            _fill(which, key, first)
            _fill(luck, key, first + contexts * samples)
            row, chance = cumulative[r, context[r, g]], reward[r, context[r, g]]
            which *= row[arms - 1]
            arm[:] = 0
            for a in range(arms - 1):  # a search would be fewer comparisons, but not eight at a time
                edge = row[a]
                for i in range(samples):
                    arm[i] += edge <= which[i]
            for i in range(samples):
                counts[r, g, arm[i], int(luck[i] < chance[arm[i]])] += 1.0


def count_pulls(config: BanditConfig, problem: Problem, cumulative: Tensor, context: Tensor, step: int) -> Tensor:
    """`bandit_tally.count_pulls`, exactly.

    Args:
      cumulative: probabilities of the arms up to each, [seeds, problems, states, arms].
      context: states of the contexts, [seeds, problems, contexts]; step: of the draw.
    """
    counts = torch.zeros(*context.shape, config.arms, 2, dtype=torch.float64)
    tables = [x.flatten(0, 1).contiguous().numpy() for x in (cumulative, problem.reward, context)]
    key = problem.key.flatten().numpy()
    _count(key, step, *tables, config.samples, config.drawn_contexts, counts.flatten(0, 1).numpy())
    return counts
