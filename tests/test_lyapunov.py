"""Lyapunov exponents against maps whose exponents are known, and dimensions against clouds whose shape is."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.lyapunov import (
    BLOCKS,
    generic_frame,
    jacobian,
    kaplan_yorke_dimension,
    lyapunov_exponents,
    mean_and_error,
    participation_dimension,
    tangent_step,
)

F64 = torch.float64
U = torch.finfo(F64).eps / 2
SIGMAS = 5
"""Standard errors that a measured exponent may be off; the trajectories are always the same, so this is no lottery."""


def from_seed(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


# --- maps -----------------------------------------------------------------------------------------------------------


def logistic(x):
    return 4 * x * (1 - x)


def tent(x):
    return torch.where(x < 0.5, 2 * x, 2 * (1 - x))


def henon(s):
    x, y = s.unbind(-1)
    return torch.stack([1 - 1.4 * x**2 + y, 0.3 * x], -1)


STEP = 0.01


def lorenz(s):
    """One Runge-Kutta step of the Lorenz equations."""

    def speed(s):
        x, y, z = s.unbind(-1)
        return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], -1)

    a = speed(s)
    b = speed(s + STEP / 2 * a)
    c = speed(s + STEP / 2 * b)
    return s + STEP / 6 * (a + 2 * b + 2 * c + speed(s + STEP * c))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(0, 2))
def test_the_jacobian_is_the_derivative(seed, n, axes):
    weight = from_seed(n, n, seed=seed)
    state = from_seed(*[2] * axes, n, seed=seed + 1)

    def step(s):
        return torch.tanh(s @ weight.T) + s.square()

    following, derivative = jacobian(step, state)
    slope = 1 - torch.tanh(state @ weight.T).square()
    expected = slope.unsqueeze(-1) * weight + torch.diag_embed(2 * state)
    assert (following - step(state)).abs().max() <= (16 + 4 * n) * U * (1 + state.abs().max()).square()
    # tanh to 8 u, its argument to 2 n u |weight| |state|
    size = 1 + weight.abs().max() + 2 * state.abs().max()
    bound = (16 + 4 * n) * U * size**3
    assert (derivative - expected).abs().max() <= bound


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_a_diagonalisable_map_gives_the_logarithms_of_its_eigenvalues(seed, n):
    """With Q0 the frame and V the eigenvectors (orthonormal), volume_k after T steps is at most prod |lambda_i|^T, and
    at least that times |det of the first k rows and columns of V' Q0|: so the mean misses by at most log |det| / T."""
    rng = np.random.default_rng(seed)
    eigenvalues = np.sort(rng.uniform(0.2, 3.0, n))[::-1].copy()
    vectors = np.linalg.qr(rng.normal(size=(n, n)))[0]
    matrix = torch.from_numpy(vectors * eigenvalues @ vectors.T)
    steps = 60
    found = lyapunov_exponents(lambda s: s @ matrix.T, torch.zeros(n, dtype=F64), steps)
    overlap = vectors.T @ generic_frame(n, n).numpy()
    total = np.cumsum(found.value.numpy())
    rounding = 400 * n**2 * U  # of T factorisations, each backward stable, at condition numbers up to 15
    for k in range(1, n + 1):
        exact = np.log(eigenvalues[:k]).sum()
        slack = -np.log(np.abs(np.linalg.det(overlap[:k, :k]))) / steps
        assert exact - slack - rounding <= total[k - 1] <= exact + rounding
    assert abs(total[-1] - np.log(eigenvalues).sum()) <= rounding  # the whole volume: |det| at every step


def test_the_tent_map_stretches_by_2_at_every_step():
    """Its symbols have entropy log 2, and its exponent is log 2: equal, not inverse (Pesin)."""
    found = lyapunov_exponents(tent, torch.tensor([[0.3], [0.7]], dtype=F64), 40)
    assert (found.value - math.log(2)).abs().max() <= 40 * U
    assert found.error.max() <= 40 * U


def test_the_logistic_map_has_exponent_log_2_up_to_its_ends():
    """With h(x) = log sqrt(x (1 - x)), log |f'(x)| = log 2 + h(f(x)) - h(x): all but the ends cancels."""
    start = torch.tensor([[0.3], [0.123], [0.8]], dtype=F64)
    steps = 3000
    found = lyapunov_exponents(logistic, start, steps)
    x, closest = start, 1.0
    for _ in range(steps):
        x = logistic(x)
        closest = min(closest, float((x * (1 - x)).min()))
    assert torch.equal(x, found.state)
    ends = ((x * (1 - x)).log() - (start * (1 - start)).log()) / 2 / steps
    rounding = 8 * U / closest  # x is rounded by u, which moves h by u / (x (1 - x)) at most
    assert (found.value - math.log(2) - ends).abs().max() <= rounding
    assert (found.value - math.log(2)).abs().max() <= SIGMAS * found.error.max()


def over_replicas(found):
    """Mean exponents over replicas and their standard errors, from the scatter of the replicas."""
    return found.value.mean(0), found.value.std(0) / len(found.value) ** 0.5


def test_henon():
    found = lyapunov_exponents(henon, 0.1 * from_seed(100, 2), 400, discard=100)
    value, error = over_replicas(found)
    assert (found.value.sum(-1) - math.log(0.3)).abs().max() <= 2000 * U  # |det J| = 0.3 everywhere
    assert abs(value[0] - 0.41922) <= SIGMAS * error[0]  # Sprott 2003, table of strange attractors
    assert abs(value[1] + 1.62319) <= SIGMAS * error[1]
    assert kaplan_yorke_dimension(value) == pytest.approx(1 + 0.41922 / 1.62319, abs=SIGMAS * float(error[0]))


def test_lorenz():
    start = torch.tensor([1.0, 1.0, 25.0], dtype=F64) + from_seed(200, 3)
    found = lyapunov_exponents(lorenz, start, 400, discard=400)
    value, error = (x / STEP for x in over_replicas(found))
    # the divergence is -(10 + 1 + 8/3); Runge-Kutta errs by (h |J|)^5 / 120 a step and direction, |J| <= 60
    assert abs(float(value.sum()) + 41 / 3) <= 3 * (60 * STEP) ** 5 / 120 / STEP
    assert abs(value[0] - 0.9056) <= SIGMAS * error[0]  # Sprott 2003
    assert abs(value[1]) <= SIGMAS * error[1]  # along the flow


def test_only_the_largest_are_taken_and_are_the_same():
    start = 0.1 * from_seed(3, 2)
    both, first = (lyapunov_exponents(henon, start, 200, count=count) for count in (2, 1))
    assert first.value.shape == (3, 1)
    # the first column of a QR factorisation does not know of the others; the frames start out alike up to rounding,
    # which is forgotten, as directions converge at the gap of the exponents
    ends = math.log(1e3) / 200
    assert (both.value[:, :1] - first.value).abs().max() <= ends


def test_what_is_discarded_is_not_averaged():
    start = 0.1 * from_seed(2)
    found = lyapunov_exponents(henon, start, 40, discard=30)
    state, frame, growths = start, generic_frame(2, 2), []
    for _ in range(70):
        state, frame, growth = tangent_step(henon, state, frame)
        growths.append(growth)
    assert torch.equal(found.state, state)
    assert (found.value - torch.stack(growths)[30:].mean(0)).abs().max() <= 80 * U


def test_a_direction_that_is_flattened_has_growth_minus_infinity():
    _, frame, growth = tangent_step(
        lambda s: s * torch.tensor([1.0, 0.0], dtype=F64), from_seed(2), generic_frame(2, 2)
    )
    assert growth[1] == -torch.inf and torch.isfinite(growth[0])
    assert (frame.mT @ frame - torch.eye(2, dtype=F64)).abs().max() <= 16 * U


# --- standard errors ------------------------------------------------------------------------------------------------


def test_the_error_of_independent_steps_is_sigma_over_root_n():
    series = from_seed(4000, 200)
    mean, error = mean_and_error(series)
    assert (mean - series.mean(-1)).abs().max() <= 200 * U
    # sd of a standard deviation from b values is 1/sqrt(2 (b - 1)) of it
    spread = 1 / math.sqrt(2 * (BLOCKS - 1) * 4000)
    assert error.square().mean() * 200 == pytest.approx(1, abs=SIGMAS * 2 * spread)


def test_steps_that_say_the_same_twice_count_once():
    series = from_seed(7, 20 * BLOCKS)
    _, error = mean_and_error(series)
    _, repeated = mean_and_error(series.repeat_interleave(5, dim=-1))
    assert (error - repeated).abs().max() <= 200 * U


def test_too_few_steps_for_an_error_are_refused():
    with pytest.raises(ValueError, match="at least 20 steps, got 19"):
        lyapunov_exponents(henon, from_seed(2), 19)
    with pytest.raises(ValueError, match=r"count must lie in \[1, 2\]"):
        lyapunov_exponents(henon, from_seed(2), 20, count=3)


# --- dimensions -----------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6))
def test_kaplan_yorke_by_its_definition(exponents):
    ordered = sorted(exponents, reverse=True)
    total, expected = 0.0, float(len(ordered))
    for j, value in enumerate(ordered):
        if total + value < 0:
            expected = j + total / abs(value)
            break
        total += value
    found = kaplan_yorke_dimension(torch.tensor([exponents, exponents[::-1]], dtype=F64))
    assert found[0] == found[1]
    assert found[0] == pytest.approx(expected, rel=64 * U)


def test_kaplan_yorke_at_a_fixed_point_and_where_a_direction_is_flattened():
    inf = math.inf
    cases = torch.tensor([[-1.0, -2.0], [0.5, -inf], [-inf, -inf], [0.0, 0.0]], dtype=F64)
    assert kaplan_yorke_dimension(cases).tolist() == [0.0, 1.0, 0.0, 2.0]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_an_isotropic_cloud_fills_its_space_and_a_line_one_dimension(n):
    axes = torch.eye(n, dtype=F64)
    cloud = torch.cat([axes, -axes]) * 1e-200 + 1  # neither the size nor the place of a cloud matters
    assert participation_dimension(torch.cat([axes, -axes])) == n
    assert participation_dimension(torch.cat([axes, -axes]) * 1e-200) == pytest.approx(n, rel=16 * U)
    line = from_seed(50, 1) * from_seed(1, n, seed=3)
    assert participation_dimension(line) == pytest.approx(1, rel=200 * U)
    assert participation_dimension(cloud) == 0  # 1e-200 vanishes beside 1: a single point


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_participation_by_eigenvalues(seed, n):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(40, n)) * 10 ** rng.uniform(-2, 2, n)
    eigenvalues = np.linalg.eigvalsh(np.atleast_2d(np.cov(points.T)))
    expected = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    found = float(participation_dimension(torch.from_numpy(points)))
    assert found == pytest.approx(expected, rel=2000 * U)
    assert 1 - 2000 * U <= found <= n + 2000 * U
    turn = np.linalg.qr(rng.normal(size=(n, n)))[0]
    assert float(participation_dimension(torch.from_numpy(points @ turn))) == pytest.approx(expected, rel=2000 * U)
