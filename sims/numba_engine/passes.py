"""Forward and backward pass of actor and critic, seed by seed, so that one seed's numbers stay in the cache.

The derivatives are written out: for y = tanh(x W + b), dx = (1 - y^2) dy W^T, dW = x^T (1 - y^2) dy.
Arrays are C-ordered; the hidden layers' rows are padded with zeros to whole vectors, which stay zeros throughout.
"""

import numpy as np
from numba import njit

from entropy_theory.compiled.elementary import FLAGS, tanh
from sims.numba_engine.product import add_product, add_transposed_product

_SUMS = FLAGS | {"fastmath": {"contract", "reassoc"}}
"""Sums over one row of the last hidden layer may be taken lane by lane."""

BLOCK = 128
"""Rows evaluated together: two hidden layers of 64 units fit the second cache."""


@njit(**FLAGS)
def widen(matrix, rows, columns):
    """The matrix in the corner of zeros, [rows, columns]."""
    out = np.zeros((rows, columns), matrix.dtype)
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            out[i, j] = matrix[i, j]
    return out


@njit(**FLAGS)
def turn(matrix, columns):
    """The transposed matrix, its rows widened to `columns`."""
    out = np.zeros((matrix.shape[1], columns), matrix.dtype)
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            out[j, i] = matrix[i, j]
    return out


@njit(**FLAGS)
def _layer(x, weight, bias, y):
    """y = tanh(x weight + bias)."""
    for row in range(y.shape[0]):
        for k in range(y.shape[1]):
            y[row, k] = bias[0, k]
    add_product(x, weight, y)
    flat = y.ravel()
    for i in range(flat.size):
        flat[i] = tanh(flat[i])


@njit(**_SUMS)
def _head(hidden, weight, bias, out):
    """out = hidden weight + bias, with the transposed weight [outputs, stride]."""
    for row in range(out.shape[0]):
        for o in range(out.shape[1]):
            total = weight.dtype.type(0)
            for k in range(weight.shape[1]):
                total += hidden[row, k] * weight[o, k]
            out[row, o] = total + bias[0, o]


@njit(**FLAGS)
def prepared(weight_1, bias_1, weight_2, bias_2, weight, bias, stride):
    """One network's weights, rows widened to `stride` and the head transposed, as `run_network` takes them."""
    hidden = len(weight_2)
    return (
        widen(weight_1, len(weight_1), stride),
        widen(bias_1, 1, stride),
        widen(weight_2, hidden, stride),
        widen(bias_2, 1, stride),
        turn(weight, stride),
        bias,
    )


@njit(**FLAGS)
def run_network(observation, network, hidden_1, hidden_2, out):
    """A prepared network on [rows, inputs]: fills both hidden layers [rows, stride] and `out` [rows, outputs]."""
    weight_1, bias_1, weight_2, bias_2, weight, bias = network
    _layer(observation, weight_1, bias_1, hidden_1)
    _layer(hidden_1, weight_2, bias_2, hidden_2)
    _head(hidden_2, weight, bias, out)


@njit(cache=True, **FLAGS)
def forward(networks, observation, hidden_1, hidden_2, logits, value):
    """All seeds.

    Args:
      networks: `Networks` of arrays; observation: [seeds, rows, inputs].
      hidden_1, hidden_2: [2, seeds, rows, stride]; logits: [seeds, rows, actions]; value: [seeds, rows, 1]; filled.
    """
    w1, b1, w2, b2, actor, actor_bias, critic, critic_bias = networks
    stride = hidden_1.shape[3]
    for s in range(len(observation)):
        for net, weight, bias, out in ((0, actor, actor_bias, logits), (1, critic, critic_bias, value)):
            network = prepared(w1[net, s], b1[net, s], w2[net, s], b2[net, s], weight[s], bias[s], stride)
            run_network(observation[s], network, hidden_1[net, s], hidden_2[net, s], out[s])


@njit(cache=True, **FLAGS)
def evaluate(networks, stride, observation, logits, value):
    """As `forward` for many rows, in blocks whose hidden layers, padded to `stride`, are not kept."""
    w1, b1, w2, b2, actor, actor_bias, critic, critic_bias = networks
    rows = observation.shape[1]
    hidden_1, hidden_2 = np.empty((BLOCK, stride), w2.dtype), np.empty((BLOCK, stride), w2.dtype)
    for s in range(len(observation)):
        for net, weight, bias, out in ((0, actor, actor_bias, logits), (1, critic, critic_bias, value)):
            network = prepared(w1[net, s], b1[net, s], w2[net, s], b2[net, s], weight[s], bias[s], stride)
            for row in range(0, rows, BLOCK):
                end = min(row + BLOCK, rows)
                of_block = hidden_1[: end - row], hidden_2[: end - row], out[s, row:end]
                run_network(observation[s, row:end], network, *of_block)


@njit(**FLAGS)
def _through_tanh(hidden, gradient):
    one = hidden.dtype.type(1)
    h, g = hidden.ravel(), gradient.ravel()
    for i in range(h.size):
        g[i] *= one - h[i] * h[i]


@njit(**FLAGS)
def _narrow(source, out):
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = source[i, j]


@njit(**FLAGS)
def _differentiate(observation, weight_2, weight, hidden_1, hidden_2, d_out, d_1, d_2, d_w1, d_w2, d_w, d_bias):
    """Gradients of one network, into the widened arrays d_w1, d_w2 and d_w (transposed); d_1, d_2 [rows, stride]."""
    d_w1[:], d_w2[:], d_w[:], d_bias[:], d_1[:], d_2[:] = 0, 0, 0, 0, 0, 0
    for row in range(d_out.shape[0]):
        for o in range(d_out.shape[1]):
            d_bias[0, o] += d_out[row, o]
    add_transposed_product(d_out, hidden_2, d_w)
    add_product(d_out, weight, d_2)
    _through_tanh(hidden_2, d_2)
    add_transposed_product(hidden_1, d_2, d_w2)
    add_product(d_2, weight_2, d_1)
    _through_tanh(hidden_1, d_1)
    add_transposed_product(observation, d_1, d_w1)


@njit(**FLAGS)
def _bias_gradient(ones, d_layer, wide, out):
    """Sums of the columns of d_layer [rows, stride], through `wide` [1, stride] into out [1, width]."""
    wide[:] = 0
    add_transposed_product(ones, d_layer, wide)
    _narrow(wide, out)


@njit(cache=True, **FLAGS)
def backward(networks, observation, hidden_1, hidden_2, d_logits, d_value, gradients):
    """Every seed: fills `gradients` (`Networks` of arrays); d_logits, d_value as `forward`'s outputs."""
    w1, _, w2, _, actor, _, critic, _ = networks
    g1, gb1, g2, gb2, g_actor, g_actor_bias, g_critic, g_critic_bias = gradients
    stride, rows, inputs = hidden_1.shape[3], hidden_1.shape[2], w1.shape[2]
    d_1, d_2 = np.empty((rows, stride), w1.dtype), np.empty((rows, stride), w1.dtype)
    d_w1, d_w2 = np.empty((inputs, stride), w1.dtype), np.empty((w2.shape[2], stride), w1.dtype)
    ones, wide = np.ones((rows, 1), w1.dtype), np.empty((1, stride), w1.dtype)
    for s in range(len(observation)):
        for net, weight, d_out, g, g_bias in (
            (0, actor, d_logits, g_actor, g_actor_bias),
            (1, critic, d_value, g_critic, g_critic_bias),
        ):
            turned = turn(weight[s], stride)
            d_w = np.empty_like(turned)
            _differentiate(
                observation[s],
                turn(w2[net, s], stride),
                turned,
                hidden_1[net, s],
                hidden_2[net, s],
                d_out[s],
                d_1,
                d_2,
                d_w1,
                d_w2,
                d_w,
                g_bias[s],
            )
            _narrow(d_w1, g1[net, s])
            _narrow(d_w2, g2[net, s])
            _narrow(d_w.T, g[s])
            _bias_gradient(ones, d_1, wide, gb1[net, s])
            _bias_gradient(ones, d_2, wide, gb2[net, s])
