"""Counter-based random numbers: exact, uniform, and a function of nothing but (seed, step, position)."""

import math

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from entropy_theory.draw import uniform

SIGNED = st.integers(-(2**63), 2**63 - 1)


def tensor(value):
    return torch.tensor(value, dtype=torch.int64)


@given(SIGNED, SIGNED, st.integers(1, 20))
def test_equals_integer_arithmetic_bit_for_bit(seed, step, count):
    drawn = uniform(tensor(seed), tensor(step), count)
    assert drawn.dtype == torch.float64
    assert drawn.tolist() == [oracles.uniform(seed, step, position) for position in range(count)]


@given(SIGNED, SIGNED)
def test_known_by_position_alone(seed, step):
    """More numbers, other replicas beside it: nothing changes what stands at a position."""
    few, many = (uniform(tensor(seed), tensor(step), n) for n in (5, 64))
    assert torch.equal(few, many[:5])
    stacked = uniform(tensor([[7, seed], [seed, 0]]), tensor([[0, step], [step, 1]]), 5)
    assert torch.equal(stacked[0, 1], few) and torch.equal(stacked[1, 0], few)
    assert not torch.equal(stacked[0, 0], few) or (seed, step) == (7, 0)


@pytest.mark.parametrize("stream", ["positions", "steps", "seeds"])
def test_uniform_along_every_axis(stream):
    """Kolmogorov-Smirnov on 50,000 numbers; a sound generator fails one such test in 1,000."""
    n = 50_000
    index = torch.arange(n)
    numbers = {
        "positions": lambda: uniform(tensor(3), tensor(5), n),
        "steps": lambda: uniform(torch.full((n,), 3), index, 1)[:, 0],
        "seeds": lambda: uniform(index, torch.full((n,), 5), 1)[:, 0],
    }[stream]()
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert numbers.unique().numel() == n  # 53 random bits: a collision among 50,000 has probability 1e-7
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("other", [(3, 6), (4, 5), (4, 4)])
def test_neighbouring_streams_are_uncorrelated(other):
    n = 50_000
    first, second = uniform(tensor(3), tensor(5), n), uniform(tensor(other[0]), tensor(other[1]), n)
    for lag in (0, 1):
        correlation = torch.corrcoef(torch.stack([first[lag:], second[: n - lag]]))[0, 1]
        assert abs(float(correlation)) < 4 / math.sqrt(n)  # 4 standard deviations


def test_neighbours_in_one_stream_are_uncorrelated():
    numbers = uniform(tensor(0), tensor(0), 50_000)
    correlation = torch.corrcoef(torch.stack([numbers[1:], numbers[:-1]]))[0, 1]
    assert abs(float(correlation)) < 4 / math.sqrt(50_000)


def test_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    uniform(tensor(1), tensor(2), 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_equal_on_every_device(device):
    seed, step = tensor([1, -5]), tensor([0, 9])
    numbers = uniform(seed.to(device), step.to(device), 1000)
    assert numbers.device.type == device
    expected = [[oracles.uniform(s, t, i) for i in range(1000)] for s, t in ((1, 0), (-5, 9))]
    assert numbers.tolist() == expected


def test_numbers_stay_on_the_device_of_the_seed():
    """On "meta" tensors one made on the CPU raises."""
    seed = torch.zeros(2, dtype=torch.int64, device="meta")
    assert uniform(seed, seed, 3).device.type == "meta"
