"""The engine compiled by Numba against torch, gymnasium and NumPy."""

import dataclasses
import math

import gymnasium
import numpy as np
import pytest
import torch
from cartpole_runs import SMALL, same
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches, generators, logits, objectives

from entropy_theory.draw import uniform
from entropy_theory.softmax import token_statistics
from entropy_theory.surrogate import SURROGATES
from sims import cartpole, rollouts
from sims.cartpole_env import env_state, make_envs
from sims.engine import TORCH, Head, Outputs
from sims.environments import ENVIRONMENTS
from sims.learner import fitted
from sims.networks import Networks, init_networks
from sims.ppo import PolicyTerm, Transitions, ValueTerm

numba = pytest.importorskip("numba")

from entropy_theory.compiled import elementary, tile  # noqa: E402
from sims import numba_engine  # noqa: E402
from sims.numba_engine import draws, product, steppers  # noqa: E402

FLOAT = {torch.float32: np.float32, torch.float64: np.float64}
FAST = dataclasses.replace(SMALL, engine="numba")
dtypes = st.sampled_from(list(FLOAT))
environments = st.sampled_from(list(ENVIRONMENTS))


def unit(dtype) -> float:
    """Unit roundoff: relative error of one operation."""
    return float(np.finfo(FLOAT.get(dtype, dtype)).eps) / 2


# --- elementary functions, products, draws ---------------------------------------------------------------------------


@numba.njit(**elementary.FLAGS)
def tanh_of(x, y):
    for i in range(x.size):
        y[i] = elementary.tanh(x[i])


@pytest.mark.parametrize(("dtype", "bits"), [(np.float32, np.uint32), (np.float64, np.uint64)])
def test_tanh_is_accurate_at_every_size(dtype, bits):
    """Relative error at most 6 units of roundoff u.

    r carries u, its polynomial 1.6 u more, both relative to exp(r) - 1: 2.6 u where k = 0. For k = 1 the worst case
    is r = -ln 2 / 2, where e = 2 (-0.29) + 1 = 0.41: 2.6 u 0.58 / 0.41 + u = 4.7 u. tanh has 2 / (e + 2) of e's
    relative error, at most 0.83 of it for k = 1, and e + 2 and the quotient add u each: at most 6 u.
    """
    largest = np.array(np.inf, dtype).view(bits)
    x = np.linspace(0, float(largest), 1_000_003).astype(bits).clip(0, largest).view(dtype)
    usual = np.linspace(0, 25, 1_000_003).astype(dtype)  # where nearly all of tanh happens
    x = np.concatenate([x, usual, -usual])
    y = np.empty_like(x)
    tanh_of(x, y)
    exact = np.tanh(x.astype(np.longdouble))
    # a subnormal result is rounded to a multiple of the smallest number
    allowed = 6 * unit(dtype) * abs(exact) + float(np.finfo(dtype).smallest_subnormal)
    assert (abs(y - exact) <= allowed).all()
    assert (np.signbit(x) == np.signbit(y)).all()
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], dtype)
    tanh_of(odd, out := np.empty_like(odd))
    np.testing.assert_array_equal(out, np.array([0.0, -0.0, 1.0, -1.0, np.nan], dtype))
    assert np.signbit(out[1])


@numba.njit(**elementary.FLAGS)
def exp_of(x, y):
    for i in range(x.size):
        y[i] = elementary.exp(x[i])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp_is_accurate_at_every_size(dtype):
    """Relative error at most 3 units of roundoff u.

    exp(r) - 1 has 2.6 u of its own size (see tanh), at most 0.41 of exp(r) (r = ln 2 / 2: 0.41 / 1.41 = 0.29; r =
    -ln 2 / 2: 0.29 / 0.71 = 0.41), so 1.1 u; the product adds 0.41 u and the sum u.
    """
    info = np.finfo(dtype)
    low, high = np.log(float(info.smallest_normal)), float(np.log(info.max))
    x = np.concatenate([np.linspace(low, high, 2_000_003), np.linspace(-3, 3, 1_000_003)]).astype(dtype)
    exp_of(x, y := np.empty_like(x))
    exact = np.exp(x.astype(np.longdouble))
    finite = np.isfinite(y) & (y > 0)
    assert (abs(y - exact) <= 3 * unit(dtype) * exact)[finite].all()
    assert (x[~finite & (x > 0)] > high - 0.5).all()  # it may overflow half a unit of x early
    assert (exact[~finite & (x < 0)] <= 1.001 * float(info.smallest_normal)).all()
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -1e30, 1e30], dtype)
    exp_of(odd, out := np.empty_like(odd))
    np.testing.assert_array_equal(out, np.array([1, 1, np.inf, 0, np.nan, 0, np.inf], dtype))


@given(dtypes, st.integers(1, 11), st.integers(1, 40), st.integers(1, 9), st.booleans(), generators())
def test_products_are_sums_in_order(dtype, rows, depth, vectors, turned, rng):
    """Each element of C + A B is a chain of depth + 1 roundings; rows do not depend on each other."""
    number = FLOAT[dtype]
    columns = vectors * tile.lanes(number().itemsize)
    a, b, c = (rng.normal(size=shape).astype(number) for shape in ((rows, depth), (depth, columns), (rows, columns)))
    out = c.copy()
    laid_out = np.ascontiguousarray(a.T) if turned else a
    (product.add_transposed_product if turned else product.add_product)(laid_out, b, out)
    exact = c + a.astype(np.longdouble) @ b.astype(np.longdouble)
    size = abs(c) + abs(a).astype(np.longdouble) @ abs(b)
    assert (abs(out - exact) <= (depth + 1) * unit(dtype) * size).all()
    product.add_product(a[rows - 1 :], b, alone := c[rows - 1 :].copy())
    assert (alone == out[rows - 1 :]).all()


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(1, 5))
def test_draws_are_bit_for_bit_the_generic_ones(seed, step, count):
    expected = uniform(torch.tensor(seed), torch.tensor(step), count).tolist()
    assert [draws.uniform(seed, step, i) for i in range(count)] == expected


# --- environments ----------------------------------------------------------------------------------------------------

STEPPERS = {
    "CartPole-v1": (steppers.cartpole_move, steppers.observe_state),
    "Acrobot-v1": (steppers.acrobot_move, steppers.acrobot_observe),
    "MountainCar-v0": (steppers.mountain_car_move, steppers.observe_state),
}
# gymnasium squares Acrobot's numbers by pow, which may be off by one unit; one Runge-Kutta step forms about 4 * 40
# terms of size at most (9 pi)^2, scaled by at most 0.2
ACROBOT = 160 * (9 * math.pi) ** 2 * 0.2 * 2.0**-53


@pytest.mark.parametrize(("name", "allowed"), [("CartPole-v1", 0.0), ("MountainCar-v0", 0.0), ("Acrobot-v1", ACROBOT)])
def test_steps_are_gymnasiums(name, allowed):
    """From gymnasium's state each time, over whole episodes of random and of resonant actions."""
    env, (move, observe) = gymnasium.make(name).unwrapped, STEPPERS[name]
    rng, kind = np.random.default_rng(0), ENVIRONMENTS[name]
    ended = 0
    for episode in range(12):
        env.reset(seed=episode)
        for _ in range(kind.max_steps):
            state = np.array(env.state, np.float64)
            pushing = (kind.actions - 1) * int(state[-1] > 0)
            action = pushing if episode % 2 else int(rng.integers(kind.actions))
            expected = env.step(action)
            reward, terminated = move(state, action)
            observe(state, seen := np.empty(kind.inputs, np.float32))
            assert abs(state - np.array(env.state)).max() <= allowed
            assert (reward, terminated) == (expected[1], expected[2])
            assert abs(seen - expected[0]).max() <= np.float32(allowed) * 2 + allowed * 2.0**30
            if terminated:
                break
        ended += terminated
    assert ended > 0
    env.close()


def networks_of(kind, seeds: int, hidden: int, dtype, sharpness: float = 20.0) -> Networks:
    """Drawn networks whose policy is not uniform."""
    drawn = init_networks(torch.arange(2 * seeds).view(2, seeds), kind.inputs, hidden, kind.actions, dtype)
    bias = 0.1 * torch.arange(hidden, dtype=dtype)
    return drawn._replace(actor_weight=sharpness * drawn.actor_weight, bias_1=drawn.bias_1 + bias)


def plain_head(seeds: int) -> Head:
    return Head(lambda z: z, torch.ones(seeds), True)


@given(environments, st.integers(1, 3), st.integers(1, 5), st.integers(1, 20), st.integers(0, 2**40))
def test_rollouts_are_the_generic_ones(name, seeds, copies, hidden, key):
    """Three rollouts, one going on from the other: every record and all of the environments' state, bit for bit.

    In float64 a probability differs by some 1e-15, and no draw falls in between.
    """
    kind, head = ENVIRONMENTS[name], plain_head(seeds)
    networks = networks_of(kind, seeds, hidden, torch.float64)
    keys = key + torch.arange(seeds * copies).view(seeds, copies)
    ours, theirs = make_envs(name, keys), make_envs(name, keys)
    fast = numba_engine.ENGINE
    for number in range(3):
        draw = uniform(keys, torch.full_like(keys, number), 120)
        found, expected = (
            e.collect(envs, networks, head, draw, torch.float64) for e, envs in ((fast, ours), (TORCH, theirs))
        )
        assert same(found, expected)
        assert same(env_state(ours).values(), env_state(theirs).values())


# --- the networks ----------------------------------------------------------------------------------------------------


def absolute(matrix) -> np.ndarray:
    return np.abs(np.asarray(matrix, np.float64))


def pass_bounds(weights, x, d_out, u: float):
    """First-order bounds on the errors of one network's outputs and gradients, each sum of n terms losing n u.

    Args:
      weights: W1, b1, W2, b2, W, b of one network, float64 [in, out]; x: [rows, inputs]; d_out: [rows, outputs].
    Returns: (bound on the outputs, bounds on the gradients in the order of `weights`).
    """
    w1, b1, w2, b2, w, b = weights
    (inputs, hidden), (rows, outputs) = w1.shape, d_out.shape
    h1 = np.tanh(x @ w1 + b1)
    e1 = (inputs + 2) * u * (absolute(x) @ absolute(w1) + absolute(b1)) + 6 * u * absolute(h1)
    h2 = np.tanh(h1 @ w2 + b2)
    e2 = (hidden + 2) * u * (absolute(h1) @ absolute(w2) + absolute(b2)) + e1 @ absolute(w2) + 6 * u * absolute(h2)
    out = (hidden + 2) * u * (absolute(h2) @ absolute(w) + absolute(b)) + e2 @ absolute(w)

    def through(size, error, h, e):
        """Error of (1 - h^2) times a gradient of this size and error."""
        return error + size * (2 * absolute(h) * e + 3 * u)

    size = absolute(d_out) @ absolute(w).T
    g2 = through(size, (outputs + 1) * u * size, h2, e2)
    d2 = size  # 1 - h^2 is at most 1
    size = d2 @ absolute(w2).T
    g1 = through(size, (hidden + 1) * u * size + g2 @ absolute(w2).T, h1, e1)
    add = (rows + 1) * u
    gradients = (
        add * absolute(x).T @ size + absolute(x).T @ g1,
        (add * size + g1).sum(0, keepdims=True),
        add * absolute(h1).T @ d2 + e1.T @ d2 + absolute(h1).T @ g2,
        (add * d2 + g2).sum(0, keepdims=True),
        add * absolute(h2).T @ absolute(d_out) + e2.T @ absolute(d_out),
        add * absolute(d_out).sum(0, keepdims=True),
    )
    return out, gradients


def of_net(networks: Networks, net: int, seed: int) -> list[np.ndarray]:
    """W1, b1, W2, b2 and the head of one network, float64."""
    heads = (networks.actor_weight, networks.actor_bias), (networks.critic_weight, networks.critic_bias)
    tensors = (*(w[net, seed] for w in networks[:4]), *(w[seed] for w in heads[net]))
    return [w.detach().double().numpy() for w in tensors]


@given(dtypes, st.integers(1, 3), st.integers(1, 9), st.integers(1, 40), environments, generators())
def test_passes_are_autograds(dtype, seeds, rows, hidden, name, rng):
    """Outputs and gradients within the bounds of both computations, ours and torch's in float64 of the same weights."""
    kind = ENVIRONMENTS[name]
    networks = networks_of(kind, seeds, hidden, dtype, 300.0)
    exact = Networks(*(w.double() for w in networks))
    x, d_logits, d_value = (
        torch.from_numpy(rng.normal(size=shape)).to(dtype)
        for shape in ((seeds, rows, kind.inputs), (seeds, rows, kind.actions), (seeds, rows))
    )
    fast = numba_engine.ENGINE
    found = fast.forward(networks, x)
    gradients = fast.backward(networks, found, d_logits, d_value)
    expected = TORCH.forward(exact, x.double())
    exact_gradients = TORCH.backward(exact, expected, d_logits.double(), d_value.double())
    u = unit(dtype) + unit(torch.float64)
    pairs = ((found.logits, expected.logits, d_logits), (found.value, expected.value, d_value))
    for seed in range(seeds):
        for net, (ours, theirs, d_out) in enumerate(pairs):
            d_out = d_out[seed].double().numpy().reshape(rows, -1)
            of_output, of_gradients = pass_bounds(of_net(exact, net, seed), x[seed].double().numpy(), d_out, u)
            difference = absolute(ours[seed].double() - theirs[seed]).reshape(rows, -1)
            assert (difference <= 1.01 * of_output).all()  # what is left out is u times smaller
            both = zip(of_net(gradients, net, seed), of_net(exact_gradients, net, seed), of_gradients, strict=True)
            assert all((absolute(a - b) <= 1.01 * bound).all() for a, b, bound in both)


@given(dtypes, st.integers(1, 2), st.integers(1, 400), st.integers(1, 20), generators())
def test_evaluation_in_blocks_is_the_forward_pass(dtype, seeds, rows, hidden, rng):
    """Bit for bit: no row's sums depend on the rows beside it."""
    kind, fast = ENVIRONMENTS["CartPole-v1"], numba_engine.ENGINE
    networks, x = networks_of(kind, seeds, hidden, dtype), torch.from_numpy(rng.normal(size=(seeds, rows, 4))).to(dtype)
    assert same(fast.evaluate(networks, x)[:2], fast.forward(networks, x)[:2])


@given(
    dtypes, st.integers(1, 3), st.integers(1, 20), st.sampled_from([1e-3, 0.5, 1e6]), st.integers(1, 50), generators()
)
def test_adam_is_the_generic_one(dtype, seeds, hidden, max_norm, step, rng):
    """One clipped step; about 30 roundings in a row, and a sum over all parameters in the norm."""
    networks = networks_of(ENVIRONMENTS["CartPole-v1"], seeds, hidden, torch.float64)
    count = sum(w.numel() for w in networks) // seeds
    drawn = lambda scale: Networks(*(torch.from_numpy(rng.normal(size=w.shape)) * scale for w in networks))  # noqa: E731
    gradients, first, second = drawn(1.0), drawn(0.1), Networks(*(w.square() for w in drawn(1.0)))

    def stepped(eng, dtype):
        weights, *moments = (Networks(*(w.to(dtype, copy=True) for w in x)) for x in (networks, first, second))
        eng.adam(weights, Networks(*(g.to(dtype, copy=True) for g in gradients)), *moments, max_norm, step, 1e-2)
        return [w.double() for x in (weights, *moments) for w in x]

    u = unit(dtype) + unit(torch.float64)
    for ours, exact in zip(stepped(numba_engine.ENGINE, dtype), stepped(TORCH, torch.float64), strict=True):
        # the second moment's share is 1 - .999^t, rounded in float64; a weight's step is at most lr |m| / (1 - .9^t)
        # over sqrt(v), which the drawn moments keep below a few
        size = absolute(exact) + 1e-2 / (1 - 0.9**step) * 10 + 1
        assert (absolute(ours - exact) <= (30 + count) * u * size).all()


# --- the head --------------------------------------------------------------------------------------------------------


@given(st.data(), dtypes, st.integers(1, 3), st.integers(2, 4))
def test_head_gradients_are_autograds(data, dtype, seeds, actions):
    """Against autograd of the one token_loss in float64, for drawn batches, objectives, masks with garbage."""
    batch = data.draw(batches((seeds,), torch.float64, fresh=False))
    objective = data.draw(objectives(batch))
    shape = batch.logp.shape
    rng = data.draw(generators())
    z = torch.from_numpy(rng.normal(0, 2, (seeds, shape[1] * shape[2], actions)))
    value, target, old_value = (torch.from_numpy(rng.normal(size=shape)) for _ in range(3))
    critic = ValueTerm(0.5, data.draw(st.sampled_from([math.inf, 0.2, 1.0])))
    scale = data.draw(st.sampled_from([1.0, 0.5, 2.0]))
    objective = dataclasses.replace(objective, logit_scale=torch.full(shape, scale, dtype=torch.float64))
    action = torch.from_numpy(rng.integers(actions, size=shape))
    minibatch = Transitions(
        None, action, batch.mask, batch.old_logp, batch.advantage, target, old_value, batch.outcome, batch.group
    )
    head = plain_head(seeds)
    expected = TORCH.head_gradient(
        head, Outputs(z, value.flatten(1), None), minibatch, batch, objective, critic, PolicyTerm()
    )
    outputs = Outputs(z.to(dtype), value.flatten(1).to(dtype), None)
    found = numba_engine.ENGINE.head_gradient(head, outputs, minibatch, batch, objective, critic, PolicyTerm())
    size = scale * z.abs().amax() + 1

    def finite(x):
        return torch.where(batch.mask, x, 0.0)

    shift = finite(batch.old_logp).abs().amax() + sum(finite(p.target).abs().amax() for p in objective.penalties)
    size = float(size + shift)
    # a log-probability is off by some 4 u size, its exponentials relatively by as much; every term of the slope is at
    # most exp(2 size + shift) times its coefficient, and everything is multiplied by the scale
    ratio = torch.exp(finite(token_statistics(z.view(*shape, -1) * scale, action)[0] - batch.old_logp))
    terms = finite(objective.weight * objective.advantage * ratio).abs() + objective.entropy_coef * 2 * size
    for penalty in objective.penalties:
        x = finite(token_statistics(z.view(*shape, -1) * scale, action)[0] - penalty.target)
        terms = terms + penalty.coef * (1 + x.abs() + torch.exp(-x))
    allowed = 20 * size * (unit(dtype) + unit(torch.float64)) * scale * (terms + 1e-300)
    assert ((found[0] - expected[0]).abs() <= allowed.flatten(1).unsqueeze(-1)).all()
    assert (
        (found[1] - expected[1]).abs() <= 8 * unit(dtype) * (finite(value).abs() + finite(target).abs()).flatten(1)
    ).all()
    assert (found[0][~batch.mask.flatten(1)] == 0).all() and (found[1][~batch.mask.flatten(1)] == 0).all()


@given(dtypes, logits(leading=(2, 5), max_actions=5, dtype=torch.float64), generators())
def test_statistics_are_token_statistics(dtype, z, rng):
    """Also for ties, masked actions and one-hot policies. Logits lie in +-50, so log-probabilities in +-101."""
    action = torch.from_numpy(rng.integers(z.shape[-1], size=z.shape[:-1]))
    found = numba_engine.ENGINE.statistics(z.to(dtype), action)
    for ours, exact in zip(found, token_statistics(z.to(dtype).double(), action), strict=True):
        off = torch.where(ours == exact, 0.0, (ours - exact).abs())
        assert (off <= (unit(dtype) + unit(torch.float64)) * 101 * 4 * z.shape[-1]).all()


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_penalty_on_the_ratio_is_silent_on_the_first_update(surrogate, temperature):
    """|logp - old_logp| is 0 there, not some rounding error with a gradient of full size, whichever code computes it.

    The clip is wide, as kl_cov makes it.
    """
    settings = {"kl_cov.fraction": 1.0, "kl_cov.coef": 1e6}
    config = dataclasses.replace(FAST, control="kl_cov", set=settings, surrogate=surrogate)
    head = Head(lambda z: z, torch.full((config.seeds,), temperature), temperature == 1)
    learner = fitted(cartpole.make_learner(config), head)
    compiled = learner.engine is numba_engine.ENGINE
    assert compiled == (surrogate == "ppo" and temperature == 1)
    transitions = cartpole.play(learner, rollouts.new_envs(config), head, 0).transitions
    outputs = learner.engine.forward(learner.networks, transitions.states)
    logp, now = (
        x.view(transitions.mask.shape)
        for x in learner.engine.statistics(head.policy(outputs.logits), transitions.action.flatten(1))
    )
    transitions = transitions._replace(old_logp=logp)
    batch = cartpole.make_batch(transitions, logp, now)
    plain = cartpole.Objective.from_batch(batch, math.inf, math.inf)
    edited = learner.control.edit(plain, batch, learner.control.init(torch.zeros(config.seeds)))
    assert any((p.coef != 0).any() for p in edited.penalties)
    pair = [
        learner.engine.head_gradient(head, outputs, transitions, batch, o, ValueTerm(0.5), learner.actor)
        for o in (plain, edited)
    ]
    assert same(*pair)
