"""`entropy_theory.draw.uniform` compiled: the same numbers, bit for bit."""

import numpy as np
from numba import njit

from entropy_theory.compiled.elementary import EXACT

_GAMMA, _MIX_1, _MIX_2 = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_30, _27, _31, _11 = (np.uint64(x) for x in (30, 27, 31, 11))


@njit(**EXACT)
def _mix(x):
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    return x ^ (x >> _31)


@njit(**EXACT)
def uniform(seed, step, position):
    """Number `position` (from 0) of the draws of (seed, step), in [0, 1), float64; all three are integers."""
    key = _mix(_mix(np.uint64(seed) * _GAMMA) + np.uint64(step) * _GAMMA)
    return np.float64(_mix(key + np.uint64(position + 1) * _GAMMA) >> _11) * 2.0**-53
