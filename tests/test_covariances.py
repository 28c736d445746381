"""The covariance against plain loops, its algebra, and the traps of taking it over the wrong set."""

import itertools
import math

import oracles
import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.covariances import centred_product, covariance


def replicas(tensor, axes=2):
    """The replicas of a stack as nested lists, in order; `axes` trailing axes belong to a replica."""
    return tensor.reshape(-1, *tensor.shape[tensor.ndim - axes :]).tolist()


def flat(nested):
    """One replica's rows as one list."""
    return [value for row in nested for value in row]


@given(strategies.batches())
def test_token_scores_equal_the_loop_replica_by_replica(batch):
    computed = centred_product(batch.logp, batch.advantage, batch.mask)
    assert computed.dtype == batch.logp.dtype and computed.shape == batch.logp.shape
    eps = torch.finfo(computed.dtype).eps
    stacks = (replicas(t) for t in (computed, batch.logp, batch.advantage, batch.mask))
    for ours, logp, advantage, mask in zip(*stacks, strict=True):
        arguments = flat(logp), flat(advantage), [float(m) for m in flat(mask)]
        slack = oracles.centred_product_rounding(*arguments, eps)
        for mine, expected, valid in zip(flat(ours), oracles.centred_product(*arguments), flat(mask), strict=True):
            assert abs(mine - expected) <= slack
            assert valid or mine == 0


@given(strategies.batches())
def test_covariance_equals_the_loop_replica_by_replica(batch):
    computed = covariance(batch.logp, batch.advantage, batch.mask).reshape(-1).tolist()
    eps = torch.finfo(batch.logp.dtype).eps
    stacks = (replicas(t) for t in (batch.logp, batch.advantage, batch.mask))
    for mine, logp, advantage, mask in zip(computed, *stacks, strict=True):
        arguments = flat(logp), flat(advantage), [float(m) for m in flat(mask)]
        # the mean of n products, each within the bound, adds at most n roundings of values <= 4XY
        assert abs(mine - oracles.covariance(*arguments)) <= 2 * oracles.centred_product_rounding(*arguments, eps)


@given(strategies.logits_and_changes(leading=None, max_actions=50))
def test_covariance_over_actions_equals_the_loop(pair):
    z, change = pair
    probability = torch.softmax(z, -1)
    x = torch.log_softmax(z, -1)  # -inf where the weight is 0: must be ignored
    computed = covariance(x, change, probability, dim=-1).reshape(-1).tolist()
    eps = torch.finfo(z.dtype).eps
    for mine, a, b, w in zip(computed, *(replicas(t, 1) for t in (x, change, probability)), strict=True):
        assert abs(mine - oracles.covariance(a, b, w)) <= 2 * oracles.centred_product_rounding(a, b, w, eps)


@given(strategies.batches(dtype=None))
def test_dtype_is_kept(batch):
    assert centred_product(batch.logp, batch.advantage, batch.mask).dtype == batch.logp.dtype
    assert covariance(batch.logp, batch.advantage, batch.mask).dtype == batch.logp.dtype


@given(strategies.batches(garbage=False), st.floats(-10, 10))
def test_symmetric_and_blind_to_constants(batch, constant):
    x, y, mask = batch.logp, batch.advantage, batch.mask
    assert torch.equal(centred_product(x, y, mask), centred_product(y, x, mask))
    moved = centred_product(x + constant, y, mask)
    flattened = (x.flatten() + abs(constant)).abs().tolist(), y.flatten().tolist(), [1.0] * x.numel()
    slack = 2 * oracles.centred_product_rounding([abs(v) + abs(constant) for v in flattened[0]], *flattened[1:], 2**-52)
    assert ((moved - centred_product(x, y, mask)).abs() <= slack).all()


@given(strategies.batches(), st.floats(-10, 10))
def test_a_constant_has_exactly_no_covariance(batch, constant):
    """The rounded mean of equal numbers may differ from them; ranking that noise would select tokens by padding."""
    same = torch.full_like(batch.logp, constant)
    score = centred_product(batch.logp, same, batch.mask)
    assert torch.equal(score.abs(), torch.zeros_like(score))


def test_no_weight_gives_zero_whatever_stands_there():
    x = torch.tensor([[math.nan, math.inf], [-math.inf, 1.0]], dtype=torch.float64)
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    assert torch.equal(centred_product(x, x, nothing), torch.zeros(2, 2, dtype=torch.float64))
    assert float(covariance(x, x, nothing)) == 0.0


def test_plug_in_estimator_is_n_minus_one_over_n_of_the_covariance():
    """Exact enumeration: E over all samples of size n drawn from p, of the sampled covariance."""
    p, x, y = [0.5, 0.3, 0.2], [1.0, -2.0, 0.5], [0.3, 1.1, -1.7]
    true = oracles.covariance(x, y, p)
    for n in (1, 2, 3, 4):
        samples = list(itertools.product(range(3), repeat=n))
        index = torch.tensor(samples)
        weight = torch.tensor([math.prod(p[i] for i in s) for s in samples], dtype=torch.float64)
        xs, ys = (torch.tensor(v, dtype=torch.float64)[index].unsqueeze(-2) for v in (x, y))
        expected = (weight * covariance(xs, ys, torch.ones_like(xs))).sum()
        assert float(expected) == pytest.approx((n - 1) / n * true, abs=1e-13)  # 81 terms of size < 4 at eps


def test_token_covariance_is_the_states_covariance_plus_a_between_state_term():
    """Eq. 10 averaged over tokens is E_s Cov_s + Cov_s(means); the lemma has only the first."""
    logp = torch.tensor([[-0.1, -2.0, -3.0], [-1.0, -1.2, -0.9]], dtype=torch.float64)
    advantage = torch.tensor([[1.0, -1.0, 0.5], [2.0, 2.5, 3.0]], dtype=torch.float64)
    ones = torch.ones_like(logp)
    within = covariance(logp, advantage, ones, dim=-1).mean()
    between = covariance(logp.mean(-1), advantage.mean(-1), torch.ones(2, dtype=torch.float64), dim=-1)
    assert float(covariance(logp, advantage, ones)) == pytest.approx(float(within + between))
    assert abs(float(between)) > 0.01  # it is not negligible: the two covariances must not share a name


def test_one_sequence_with_one_advantage_has_no_token_covariance():
    """A sequence-level advantage is constant in its row: scored row by row every token gets 0."""
    logp = torch.tensor([[-0.1, -4.0], [-0.2, -3.0]], dtype=torch.float64)
    advantage = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    mask = torch.ones(2, 2, dtype=torch.bool)
    for row in range(2):
        alone = centred_product(logp[row : row + 1], advantage[row : row + 1], mask[row : row + 1])
        assert torch.equal(alone, torch.zeros_like(alone))
    together = centred_product(logp, advantage, mask)
    assert (together.abs() > 0.5).all()


def test_one_token_has_no_covariance():
    one = torch.ones(1, 1, dtype=torch.float64)
    assert float(covariance(-3 * one, 5 * one, one)) == 0.0


def test_equal_values_of_one_replica_are_equal_whatever_the_others_hold():
    """The rounded mean of three times .1 is not .1, so a score is exactly 0 only because equality is seen."""
    x = torch.tensor([[[0.1, 0.1, 0.1]], [[0.3, -5.0, 2.0]]], dtype=torch.float64)
    y = torch.tensor([[[1.0, 2.0, 4.0]], [[1.0, 2.0, 4.0]]], dtype=torch.float64)
    assert sum([0.1] * 3) / 3 != 0.1
    scores = centred_product(x, y, torch.ones_like(x))
    assert (scores[0] == 0).all() and (scores[1] != 0).all()
    assert torch.equal(scores, centred_product(y, x, torch.ones_like(x)))
