"""Reductions over tokens and groups against plain loops."""

import math

import oracles
import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.reduce import (
    group_mean,
    group_size,
    lowest,
    token_count,
    token_fraction,
    token_mean,
    token_sum,
)


def by_replica(*tensors):
    """Flat lists of each replica's tokens, one tuple per replica."""
    return zip(*(t.reshape(-1, t.shape[-2] * t.shape[-1]).tolist() for t in tensors), strict=True)


@given(strategies.batches())
def test_token_reductions_equal_the_loop(batch):
    count = token_count(batch.mask).reshape(-1).tolist()
    total = token_sum(batch.entropy, batch.mask).reshape(-1).tolist()
    mean = token_mean(batch.entropy, batch.mask).reshape(-1).tolist()
    for n, s, m, (values, mask) in zip(count, total, mean, by_replica(batch.entropy, batch.mask), strict=True):
        kept = [v for v, valid in zip(values, mask, strict=True) if valid]
        assert n == max(len(kept), 1)
        slack = len(kept) * 2**-52 * math.fsum(map(abs, kept))  # n additions, each within eps of the sum of sizes
        assert abs(s - math.fsum(kept)) <= slack
        assert abs(m - math.fsum(kept) / n) <= 2 * slack / n


@given(strategies.batches(garbage=True, min_rows=2), st.integers(1, 5))
def test_mean_is_the_sum_of_the_shards_over_the_whole_count(batch, cut):
    """Means of shards averaged would be wrong when the shards hold different numbers of tokens."""
    parts = [(batch.entropy[..., rows, :], batch.mask[..., rows, :]) for rows in (slice(None, cut), slice(cut, None))]
    assembled = sum(token_sum(e, m) for e, m in parts) / token_count(batch.mask)
    torch.testing.assert_close(assembled, token_mean(batch.entropy, batch.mask), rtol=1e-14, atol=1e-14)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=3), st.floats(1e-6, 1.0))
def test_token_fraction_is_the_published_count_of_each_replica(sizes, fraction):
    mask = torch.arange(40).view(5, 8) < torch.tensor(sizes).view(-1, 1, 1)
    assert token_fraction(mask, fraction).tolist() == [oracles.published_count(fraction, n) for n in sizes]


@pytest.mark.parametrize(("tokens", "fraction", "count"), [(1_000_000, 2e-4, 200), (50_000, 2e-3, 100), (3, 2e-4, 1)])
def test_token_fraction_of_large_minibatches(tokens, fraction, count):
    """In float32, 1e6 * 2e-4 is 199.99999 and loses a token."""
    assert int(token_fraction(torch.ones(tokens, 1, dtype=torch.bool), fraction)) == count


@given(strategies.batches(leading=None, garbage=False))
def test_group_statistics_equal_the_loop(batch):
    rows = batch.outcome.shape[-1]
    outcome, group = batch.outcome.reshape(-1, rows).tolist(), batch.group.reshape(-1, rows).tolist()
    means = group_mean(batch.outcome, batch.group).reshape(-1, rows).tolist()
    sizes = group_size(batch.group).reshape(-1, rows).tolist()
    for mean, size, values, ids in zip(means, sizes, outcome, group, strict=True):
        for i in range(rows):
            peers = [v for v, g in zip(values, ids, strict=True) if g == ids[i]]
            assert size[i] == len(peers)
            # outcomes are multiples of 1/4, so the sums are exact and one division rounds
            assert mean[i] == math.fsum(peers) / len(peers)


@given(st.data())
def test_lowest_selects_what_sorting_selects(data):
    """Ties to the earlier token, also among infinite scores; never an ineligible token."""
    shape = data.draw(st.sampled_from([(2, 3), (1, 7), (2, 2, 4), (5, 1)]))
    size = math.prod(shape)
    score = data.draw(st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 0.5, math.inf]), min_size=size, max_size=size))
    eligible = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    replicas = size // (shape[-1] * shape[-2])
    count = data.draw(st.lists(st.integers(0, size + 1), min_size=replicas, max_size=replicas))
    selected = lowest(
        torch.tensor(score, dtype=torch.float64).view(shape),
        torch.tensor(eligible).view(shape),
        torch.tensor(count).view(shape[:-2]),
    )
    per = size // replicas
    for r in range(replicas):
        positions = [i for i in range(r * per, (r + 1) * per) if eligible[i]]
        expected = set(sorted(positions, key=lambda i: (score[i], i))[: count[r]])
        assert {i for i in range(r * per, (r + 1) * per) if selected.flatten()[i]} == expected


@given(strategies.batches(dtype=None))
def test_reductions_keep_the_dtype(batch):
    assert token_mean(batch.entropy, batch.mask).dtype == batch.entropy.dtype
    assert group_mean(batch.outcome, batch.group).dtype == batch.outcome.dtype


@pytest.mark.parametrize("tokens", [1, 20, 1000])
def test_ties_go_to_the_earlier_token_however_many(tokens):
    """A sort that is not stable keeps short runs in order by luck."""
    score, eligible = torch.zeros(2, 1, tokens), torch.ones(2, 1, tokens, dtype=torch.bool)
    count = torch.tensor([tokens // 2, tokens])
    found = lowest(score, eligible, count)
    assert torch.equal(found.squeeze(1), torch.arange(tokens) < count.unsqueeze(-1))
