"""Clipping of each seed's gradient and the step of Adam, seed by seed and in place."""

import math

from numba import njit

from entropy_theory.compiled.elementary import FLAGS

_SUMS = FLAGS | {"fastmath": {"contract", "reassoc"}}
"""The norm's sum may be taken lane by lane."""


@njit(**_SUMS)
def _square(gradient):
    g = gradient.ravel()
    total = g.dtype.type(0)
    for i in range(g.size):
        total += g[i] * g[i]
    return total


@njit(**FLAGS)
def _step(weight, gradient, first, second, scale, rate, share):
    """One array, as `ppo.adam_step`; `rate` is lr / (1 - .9^t), `share` 1 / (1 - .999^t)."""
    w, g, m, v = weight.ravel(), gradient.ravel(), first.ravel(), second.ravel()
    to = w.dtype.type
    tenth, thousandth, keep, eps = to(0.1), to(0.001), to(0.999), to(1e-5)
    for i in range(w.size):
        x = g[i] * scale
        m[i] += tenth * (x - m[i])
        v[i] = keep * v[i] + thousandth * (x * x)
        w[i] -= rate * m[i] / (math.sqrt(v[i] * share) + eps)


@njit(cache=True, **FLAGS)
def clipped_adam(networks, gradients, first, second, max_norm, rate, share):
    """Every seed: gradients scaled to norm at most `max_norm` per seed, then one step of Adam.

    Args:
      networks, gradients, first, second: `Networks` of arrays in C order; max_norm, rate, share: of their dtype.
    """
    w1, b1, w2, b2, wa, ba, wc, bc = networks
    g1, d1, g2, d2, ga, da, gc, dc = gradients
    m1, n1, m2, n2, ma, na, mc, nc = first
    v1, u1, v2, u2, va, ua, vc, uc = second
    one = w1.dtype.type(1)
    for s in range(len(wa)):
        square = _square(ga[s]) + _square(da[s]) + _square(gc[s]) + _square(dc[s])
        for net in range(2):
            square += _square(g1[net, s]) + _square(d1[net, s]) + _square(g2[net, s]) + _square(d2[net, s])
        ratio = max_norm / math.sqrt(square)
        scale = one if ratio > one else ratio  # a NaN stays
        for net in range(2):
            _step(w1[net, s], g1[net, s], m1[net, s], v1[net, s], scale, rate, share)
            _step(b1[net, s], d1[net, s], n1[net, s], u1[net, s], scale, rate, share)
            _step(w2[net, s], g2[net, s], m2[net, s], v2[net, s], scale, rate, share)
            _step(b2[net, s], d2[net, s], n2[net, s], u2[net, s], scale, rate, share)
        _step(wa[s], ga[s], ma[s], va[s], scale, rate, share)
        _step(ba[s], da[s], na[s], ua[s], scale, rate, share)
        _step(wc[s], gc[s], mc[s], vc[s], scale, rate, share)
        _step(bc[s], dc[s], nc[s], uc[s], scale, rate, share)
