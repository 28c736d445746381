"""The rounding bounds in float64 and float32 against ball arithmetic: the exact error is enclosed, not estimated."""

import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory import balls, remainder, theorems
from entropy_theory.claims import instances
from entropy_theory.softmax import entropy, finite_log_probs

DTYPES = (torch.float64, torch.float32)
BITS = 160


def distance(computed, ball):
    """An upper bound on |computed - exact|, as a float."""
    return balls.above(abs(balls.flint().arb(float(computed)) - ball))


def check_log_probs(z, policy):
    """Every log-probability and probability within its bound; the largest error of a log-probability by its bound."""
    logp, probability = finite_log_probs(z)
    softmax, tiny = torch.softmax(z, -1), torch.finfo(z.dtype).tiny
    allowed, arb = float(remainder.log_prob_rounding(z)), balls.flint().arb
    relative = arb(float(remainder.probability_rounding(z))).expm1()
    worst = 0.0
    for a, lp, p in zip(policy.support, policy.log_probs, policy.probabilities, strict=True):
        worst = max(worst, distance(logp[a], lp) / allowed)
        for computed in (probability[a], softmax[a]):
            assert distance(computed, p) <= balls.above(p * relative + tiny)
    assert worst <= 1
    return worst


def check_sums(z, d, policy):
    """Entropy and both predictions within their bounds."""
    change = policy.exact(d.tolist())
    assert distance(entropy(z), policy.entropy) <= float(remainder.entropy_rounding(z))
    first, second = theorems.entropy_change_first_order(z, d), theorems.entropy_change_second_order(z, d)
    assert distance(first, policy.first_order(change)) <= float(remainder.first_order_rounding(z, d))
    assert distance(second, policy.second_order(change)) <= float(remainder.second_order_rounding(z, d))


@given(strategies.small_pairs(dtypes=DTYPES), st.sampled_from([0.0, 0.0, 37.7, -5e3]))
def test_rounding_bounds_hold_on_every_kind_of_instance(pair, offset):
    z, d = pair
    z = z + offset  # a common offset changes no policy but rounds every logit
    with balls.precision(BITS):
        policy = balls.Policy(z.tolist())
        check_log_probs(z, policy)
        check_sums(z, d, policy)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", sorted(instances.LOGITS))
def test_rounding_bounds_hold_at_many_actions(dtype, kind):
    generator = torch.Generator().manual_seed(7)
    z = instances.LOGITS[kind](1, 2000, generator)[0].to(dtype)
    d = (torch.randn(2000, generator=generator, dtype=torch.float64) + 10).to(dtype)
    with balls.precision(BITS):
        policy = balls.Policy(z.tolist())
        check_log_probs(z, policy)
        check_sums(z, d, policy)


def test_the_entropy_of_a_whole_vocabulary_in_float32():
    generator = torch.Generator().manual_seed(1)
    z = instances.LOGITS["zipf"](1, 151_936, generator)[0].float()
    with balls.precision(64):
        policy = balls.Policy(z.tolist())
        assert distance(entropy(z), policy.entropy) <= float(remainder.entropy_rounding(z))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bound_on_log_probabilities_is_not_idle(dtype):
    # errors above a third of the bound occur: with a bound three times smaller these tests would fail
    generator = torch.Generator().manual_seed(1)
    with balls.precision(BITS):
        rows = instances.LOGITS["wide"](60, 10, generator).to(dtype)
        assert max(check_log_probs(z, balls.Policy(z.tolist())) for z in rows) > 1 / 3
