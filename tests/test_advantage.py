"""Group advantages against plain loops and the published numbers."""

import itertools
import math

import oracles
import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.advantage import ADVANTAGES, centred, dr_grpo, grpo, rloo, whitened

DOUBLE = torch.float64
NAMES = sorted(ADVANTAGES)


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


# --- every estimator, one number per token --------------------------------------------------------------------------


def deviations(reward, group):
    return [
        r - oracles.mean([q for q, h in zip(reward, group, strict=True) if h == g], [1] * group.count(g))
        for r, g in zip(reward, group, strict=True)
    ]


def white(values, mask, eps=1e-8):
    """(v - mean) / sqrt(var + eps) over the valid tokens, var with n - 1; nested lists."""
    kept = [v for v, m in zip(oracles.flat(values), oracles.flat(mask), strict=True) if m]
    if not kept:
        return [[0.0] * len(row) for row in mask]
    centre = math.fsum(kept) / len(kept)
    variance = math.fsum((v - centre) ** 2 for v in kept) / max(1, len(kept) - 1)
    return [
        [(v - centre) / math.sqrt(variance + eps) if m else 0.0 for v, m in zip(*pair, strict=True)]
        for pair in zip(values, mask, strict=True)
    ]


def by_loop(name, reward, group, mask):
    """Advantage of each valid token of one replica, nested lists; 0 where masked."""
    mean = math.fsum(reward) / len(reward)
    rows = {
        "grpo": oracles.grpo(reward, group),
        "rloo": oracles.rloo(reward, group),
        "dr_grpo": deviations(reward, group),
        "reinforce": reward,
        "reinforce_baseline": [r - mean for r in reward],
        "reinforce++": reward,
        "reinforce++_baseline": deviations(reward, group),
    }[name]
    tokens = [[a] * len(valid) for a, valid in zip(rows, mask, strict=True)]
    if name.startswith("reinforce++"):
        return white(tokens, mask)
    return [[a if m else 0.0 for a, m in zip(*pair, strict=True)] for pair in zip(tokens, mask, strict=True)]


@st.composite
def rewarded(draw, leading=(), dtype=DOUBLE):
    """(reward [..., rows], group, mask E) with rewards that every dtype sums exactly."""
    shape = (*leading, draw(st.integers(1, 7)))
    rng = draw(strategies.generators())
    mask = draw(strategies.masks((*shape, draw(st.integers(1, 5)))))
    few = draw(st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (0.0, 0.25, 0.5, -2.0), (3.0,)]))
    reward = torch.from_numpy(rng.choice(few, shape)).to(dtype)
    return reward, torch.from_numpy(strategies.groups(shape, rng)), mask


@pytest.mark.parametrize("name", NAMES)
@given(rewarded())
def test_every_estimator_equals_its_loop(name, drawn):
    reward, group, mask = drawn
    found = ADVANTAGES[name](reward, group, mask)
    assert found.shape == mask.shape and found.dtype == reward.dtype
    wanted = by_loop(name, *(t.tolist() for t in drawn))
    # some 50 roundings of numbers below 4; a quotient's divisor is at least 1e-4 or its dividend exactly 0
    found = torch.where(mask, found, 0.0).tolist()
    assert oracles.flat(found) == pytest.approx(oracles.flat(wanted), rel=1e-13, abs=1e-13)


# rewards 1 and 0 of one prompt and 1 of another, with 2, 1 and 1 tokens.
# grpo: mean 1/2, std sqrt(1/4 + 1/4); reinforce++ tokens 1 1 0 1: mean 3/4, variance (3/16 + 9/16) / 3 = 1/4
# reinforce++_baseline tokens .5 .5 -.5 0: mean 1/8, variance (.140625 * 2 + .390625 + .015625) / 3 = .6875 / 3
W = (0.6875 / 3 + 1e-8) ** 0.5
BY_HAND = {
    "grpo": [0.5 / (0.5**0.5 + 1e-6), -0.5 / (0.5**0.5 + 1e-6), 0],
    "rloo": [1, -1, 0],
    "dr_grpo": [0.5, -0.5, 0],
    "reinforce": [1, 0, 1],
    "reinforce_baseline": [1 / 3, -2 / 3, 1 / 3],
    "reinforce++": [0.25 / (0.25 + 1e-8) ** 0.5, -0.75 / (0.25 + 1e-8) ** 0.5, 0.25 / (0.25 + 1e-8) ** 0.5],
    "reinforce++_baseline": [0.375 / W, -0.625 / W, -0.125 / W],
}


@pytest.mark.parametrize("name", NAMES)
def test_three_responses_by_hand(name):
    reward = torch.tensor([1.0, 0.0, 1.0], dtype=DOUBLE)
    mask = torch.tensor([[True, True], [True, False], [True, False]])
    found = ADVANTAGES[name](reward, torch.tensor([0, 0, 1]), mask)
    assert found[:, 0].tolist() == pytest.approx(BY_HAND[name], rel=1e-14)  # some 20 roundings
    assert found[0, 1] == found[0, 0]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "reinforce"])
@given(
    level=st.floats(-1e6, 1e6, width=32),
    rows=st.integers(1, 9),
    dtype=st.sampled_from(strategies.DTYPES),
    data=st.data(),
)
def test_equal_rewards_get_exactly_nothing_from_any_estimator(name, level, rows, dtype, data):
    mask = data.draw(strategies.masks((rows, 3)))
    reward = torch.full((rows,), level).to(dtype)
    advantage = ADVANTAGES[name](reward, torch.zeros(rows, dtype=torch.int64), mask)
    assert torch.equal(advantage, torch.zeros_like(advantage)) and advantage.dtype == dtype


@pytest.mark.parametrize("name", ["grpo", "rloo", "dr_grpo"])
@given(rewarded())
def test_a_group_of_one_gets_exactly_nothing(name, drawn):
    reward, group, mask = drawn
    alone = [group.tolist().count(g) == 1 for g in group.tolist()]
    assert (ADVANTAGES[name](reward, group, mask)[torch.tensor(alone)] == 0).all()


@pytest.mark.parametrize("name", NAMES)
@given(rewarded(leading=(3,)))
def test_replicas_of_every_estimator_do_not_mix(name, drawn):
    together = ADVANTAGES[name](*drawn)
    for i in range(3):
        assert torch.equal(together[i], ADVANTAGES[name](*(t[i] for t in drawn)))


@pytest.mark.parametrize("name", NAMES)
@given(rewarded(), st.data())
def test_order_of_rows_and_padding_of_steps_change_nothing(name, drawn, data):
    reward, group, mask = drawn
    found = torch.where(mask, ADVANTAGES[name](*drawn), 0.0)
    order = torch.from_numpy(data.draw(strategies.generators()).permutation(len(reward)))
    other = torch.where(mask[order], ADVANTAGES[name](*(t[order] for t in drawn)), 0.0)
    # sums in another order: as many roundings as above
    torch.testing.assert_close(other, found[order], rtol=1e-13, atol=1e-13)
    wide = torch.nn.functional.pad(mask, (0, 2))
    padded = ADVANTAGES[name](reward, group, wide)
    torch.testing.assert_close(torch.where(wide, padded, 0.0)[:, :-2], found, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_branches_on_a_value(name):
    reward = torch.zeros(2, 4, device="meta")
    group, mask = reward.long(), reward.new_zeros(2, 4, 3) == 0
    assert ADVANTAGES[name](reward, group, mask).device.type == "meta"


@given(strategies.masks((2, 3, 4)), strategies.generators(), st.sampled_from(strategies.GARBAGE))
def test_whitening_ignores_what_is_masked(mask, rng, garbage):
    """Mean 0 and variance 1 but for eps, over the valid tokens of each replica; exactly 0 at the others."""
    advantage = torch.from_numpy(rng.normal(size=(2, 3, 4)))
    found = whitened(torch.where(mask, advantage, garbage), mask)
    assert torch.equal(found, whitened(torch.where(mask, advantage, 0.0), mask))
    assert (found[~mask] == 0).all()
    for replica in range(2):
        kept = found[replica][mask[replica]].tolist()
        if len(kept) < 2:
            assert kept in ([], [0.0])
            continue
        raw = advantage[replica][mask[replica]].tolist()
        centre = math.fsum(raw) / len(raw)
        variance = math.fsum((v - centre) ** 2 for v in raw) / (len(raw) - 1)
        assert abs(math.fsum(kept)) <= 12 * 2**-50 * max(map(abs, kept))  # 12 tokens
        assert math.fsum(v * v for v in kept) / (len(kept) - 1) == pytest.approx(
            variance / (variance + 1e-8), rel=1e-12
        )


@given(rewards_in_groups())
def test_dr_grpo_is_a_share_of_leave_one_out(pair):
    """(K - 1)/K of it: `test_rloo_gradient_is_unbiased...` shows the same share of the gradient."""
    reward, group = torch.tensor(pair[0], dtype=DOUBLE), torch.tensor(pair[1])
    size = torch.tensor([pair[1].count(g) for g in pair[1]], dtype=DOUBLE)
    torch.testing.assert_close(dr_grpo(reward, group), rloo(reward, group) * (size - 1) / size, rtol=1e-15, atol=1e-15)
