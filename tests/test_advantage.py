"""Group advantages against plain loops and the published numbers."""

import itertools
import math

import oracles
import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.advantage import centred, grpo, rloo

DOUBLE = torch.float64


@st.composite
def rewards_in_groups(draw):
    """(reward, group) as lists; rewards that float64 sums exactly."""
    rows = draw(st.integers(1, 9))
    reward = draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, -2.0]), min_size=rows, max_size=rows))
    group = draw(st.lists(st.integers(0, rows - 1), min_size=rows, max_size=rows))
    return reward, group


@given(rewards_in_groups())
def test_grpo_equals_the_loop(pair):
    reward, group = pair
    computed = grpo(torch.tensor(reward, dtype=DOUBLE), torch.tensor(group)).tolist()
    # about 20 roundings, advantages of size < 3, and the square root of a variance of at least 1/8
    assert computed == pytest.approx(oracles.grpo(reward, group), rel=1e-14, abs=1e-14)


@given(rewards_in_groups())
def test_rloo_equals_the_loop(pair):
    reward, group = pair
    computed = rloo(torch.tensor(reward, dtype=DOUBLE), torch.tensor(group)).tolist()
    assert computed == pytest.approx(oracles.rloo(reward, group), rel=1e-14, abs=1e-14)


@pytest.mark.parametrize("estimator", [grpo, rloo])
@given(
    level=st.floats(-1e6, 1e6, width=32),
    rows=st.integers(1, 9),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_equal_rewards_get_exactly_nothing(estimator, level, rows, dtype):
    """The mean of equal numbers is off by a rounding; divided by eps it would be a push at random."""
    reward = torch.full((rows,), level, dtype=dtype)
    advantage = estimator(reward, torch.zeros(rows, dtype=torch.int64))
    assert torch.equal(advantage, torch.zeros_like(reward))


@pytest.mark.parametrize(
    ("right", "up", "down"),
    [(1, 2.475, -0.354), (2, 1.620, -0.540), (3, 1.208, -0.725), (4, 0.935, -0.935)],
)
def test_grpo_of_eight_binary_rewards(right, up, down):
    reward = torch.tensor([1.0] * right + [0.0] * (8 - right), dtype=DOUBLE)
    advantage = grpo(reward, torch.zeros(8, dtype=torch.int64))
    assert advantage[0].item() == pytest.approx(up, abs=5e-4)  # published to three decimals
    assert advantage[-1].item() == pytest.approx(down, abs=5e-4)


@pytest.mark.parametrize("estimator", [grpo, rloo])
def test_groups_and_replicas_do_not_mix(estimator):
    reward = torch.tensor([[1.0, 0.0, 5.0, 7.0, 3.0], [0.0, 0.0, 1.0, 1.0, 1.0]], dtype=DOUBLE)
    group = torch.tensor([[4, 4, 1, 1, 0], [2, 3, 2, 3, 2]])
    together = estimator(reward, group)
    for replica in range(2):
        assert torch.equal(together[replica], estimator(reward[replica], group[replica]))
        for g in group[replica].unique():
            rows = group[replica] == g
            alone = estimator(reward[replica][rows], torch.zeros(int(rows.sum()), dtype=torch.int64))
            torch.testing.assert_close(together[replica][rows], alone, rtol=1e-15, atol=1e-15)
    assert together[0, 4] == 0  # a group of one row


def test_rloo_gradient_is_unbiased_and_the_group_mean_baseline_shrinks_it():
    """Exact enumeration of three samples: E[mean_i A_i grad log pi(a_i)] against the gradient of E[r]."""
    z = torch.tensor([0.4, -0.3, 1.1], dtype=DOUBLE)
    reward = torch.tensor([1.0, 0.2, -0.5], dtype=DOUBLE)
    p = torch.softmax(z, 0)
    true = p * (reward - (p * reward).sum())
    k = 3
    index = torch.tensor(list(itertools.product(range(3), repeat=k)))
    probability = p[index].prod(-1)
    sampled = reward[index]
    score = torch.eye(3, dtype=DOUBLE)[index] - p
    one_group = torch.zeros_like(index)

    def expected(advantage):
        return (probability[:, None] * (advantage[..., None] * score).mean(1)).sum(0)

    torch.testing.assert_close(expected(rloo(sampled, one_group)), true, rtol=1e-13, atol=1e-15)
    baseline = sampled - sampled.mean(-1, keepdim=True)
    torch.testing.assert_close(expected(baseline), true * (k - 1) / k, rtol=1e-13, atol=1e-15)


@given(strategies.logits(leading=None, max_actions=50), strategies.generators())
def test_centred_advantage_has_no_mean(z, rng):
    probability = torch.softmax(z, -1)
    reward = torch.from_numpy(rng.normal(size=tuple(z.shape)))
    mean = (probability * centred(reward, probability)).sum(-1)
    # sum pi is 1 to K eps; rewards are below 10
    assert float(mean.abs().max()) <= 10 * (2 * z.shape[-1] + 4) * 2**-52


def test_eps_is_all_that_separates_grpo_from_a_standard_score():
    reward = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    assert grpo(reward, torch.zeros(2, dtype=torch.int64), eps=0.5)[1].item() == pytest.approx(
        0.5 / (math.sqrt(0.5) + 0.5)
    )
