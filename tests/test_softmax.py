"""Softmax statistics against plain loops, their gradients, and the inputs that break the usual formulas."""

import math

import oracles
import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.remainder import entropy_rounding, log_prob_rounding
from entropy_theory.softmax import collision, entropy, finite_log_probs, token_statistics

# The package's proved rounding bounds hold for float64 formulas of this kind, so for the oracle too: twice the
# bound covers both.
BOTH = 2


def statistic_rounding(z):
    """Bound on the joint error of a sum over actions of pi^k (log pi + H), k = 1 or 2, and of its terms.

    Each term has size <= pi |c| <= 1 + ln K on average; pi errs by `log_prob_rounding` relative (once per factor),
    c by `log_prob_rounding` + `entropy_rounding`, the sum by K eps.
    """
    count = z.shape[-1]
    size = 1 + math.log(count)
    error = log_prob_rounding(z)
    return BOTH * (size * (2 * error + (count + 4) * torch.finfo(z.dtype).eps) + error + entropy_rounding(z))


@given(strategies.logits(leading=None))
def test_entropy_equals_the_loop(z):
    computed = entropy(z)
    assert computed.shape == z.shape[:-1] and computed.dtype == z.dtype
    expected = torch.tensor([oracles.entropy(row) for row in z.reshape(-1, z.shape[-1]).tolist()], dtype=z.dtype)
    assert ((computed.reshape(-1) - expected).abs() <= BOTH * entropy_rounding(z).reshape(-1)).all()


@given(strategies.logits(leading=None, max_actions=50), st.sampled_from([torch.float32, torch.bfloat16]))
def test_entropy_keeps_a_lower_precision_and_errs_by_its_rounding(z, dtype):
    low = z.to(dtype)
    computed = entropy(low)
    assert computed.dtype == dtype
    assert ((computed.double() - entropy(low.double())).abs() <= BOTH * entropy_rounding(low).double()).all()


@given(strategies.logits())
def test_entropy_lies_between_zero_and_log_actions(z):
    slack = float(entropy_rounding(z))
    assert -slack <= float(entropy(z)) <= math.log(z.shape[-1]) + slack


@given(strategies.logits(), st.floats(-100, 100))
def test_entropy_ignores_a_shift_of_all_logits(z, shift):
    moved = z + shift
    # z + shift is rounded once per logit, |z + shift| u each, which moves a log-probability by at most twice that
    input_error = torch.finfo(z.dtype).eps * (abs(shift) + strategies.LARGEST_LOGIT)
    size = 1 + math.log(z.shape[-1])
    slack = entropy_rounding(z) + entropy_rounding(moved) + 2 * size * input_error
    assert abs(float(entropy(moved) - entropy(z))) <= float(slack)


def test_entropy_of_known_policies():
    assert float(entropy(torch.tensor([0.0, -math.inf, -math.inf]))) == 0.0
    assert float(entropy(torch.tensor([-math.inf, 3.0, 3.0], dtype=torch.float64))) == pytest.approx(math.log(2))
    assert float(entropy(torch.full((1000,), 7.0, dtype=torch.float64))) == pytest.approx(math.log(1000))
    third = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
    assert float(entropy(third)) == pytest.approx(-(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1)))


@given(strategies.logits(leading=None))
def test_entropy_gradient_is_minus_pi_c(z):
    z = z.requires_grad_()
    (gradient,) = torch.autograd.grad(entropy(z).sum(), z)
    assert torch.isfinite(gradient).all()
    slack = statistic_rounding(z.detach()).unsqueeze(-1)
    rows = z.detach().reshape(-1, z.shape[-1]).tolist()
    expected = torch.tensor([oracles.entropy_gradient(row) for row in rows], dtype=z.dtype).view_as(z)
    assert ((gradient - expected).abs() <= slack).all()
    assert (gradient[torch.isinf(z.detach())] == 0).all()


def test_the_usual_entropy_formulas_fail_at_minus_infinity_and_ours_does_not():
    z = torch.tensor([1.0, 0.5, -math.inf], dtype=torch.float64)
    probability, logp = torch.softmax(z, -1), torch.log_softmax(z, -1)
    assert math.isnan(float(-(probability * logp).sum()))
    assert math.isnan(float(torch.logsumexp(z, -1) - (probability * z).sum()))
    assert float(entropy(z)) == pytest.approx(oracles.entropy(z.tolist()))
    assert float(token_statistics(z, torch.tensor(0))[1]) == pytest.approx(oracles.entropy(z.tolist()))


@given(strategies.logits(leading=None))
def test_collision_equals_the_loop_and_is_never_negative(z):
    computed = collision(z).reshape(-1)
    slack = statistic_rounding(z).reshape(-1)
    expected = torch.tensor([oracles.collision(row) for row in z.reshape(-1, z.shape[-1]).tolist()], dtype=z.dtype)
    assert ((computed - expected).abs() <= slack).all()
    assert (computed >= -slack).all()


@given(strategies.logits(leading=None))
def test_log_probs_are_zero_exactly_where_the_logit_is_minus_infinity(z):
    logp, probability = finite_log_probs(z)
    assert torch.isfinite(logp).all()
    assert torch.equal(probability == 0, torch.isinf(z))  # within +-50 nothing underflows
    assert (logp[torch.isinf(z)] == 0).all()
    assert (logp <= 0).all()


@given(strategies.logits(leading=None, max_actions=50), strategies.generators())
def test_token_statistics_and_their_gradients(z, rng):
    rows = z.reshape(-1, z.shape[-1])
    # only actions that can be sampled: those of positive probability
    chosen = [int(rng.choice(torch.nonzero(torch.isfinite(row)).flatten().numpy())) for row in rows]
    action = torch.tensor(chosen).view(z.shape[:-1])
    z = z.requires_grad_()
    logp, h = token_statistics(z, action)
    expected = [oracles.log_probabilities(row)[a] for row, a in zip(rows.tolist(), chosen, strict=True)]
    slack = BOTH * log_prob_rounding(z.detach())
    assert ((logp.detach() - torch.tensor(expected, dtype=z.dtype).view_as(logp)).abs() <= slack).all()
    assert ((h - entropy(z)).abs() <= 2 * entropy_rounding(z.detach())).all()
    (gradient,) = torch.autograd.grad(logp.sum(), z, retain_graph=True)
    one_hot = torch.nn.functional.one_hot(action, z.shape[-1]).to(z.dtype)
    assert ((gradient - (one_hot - torch.softmax(z.detach(), -1))).abs() <= slack.unsqueeze(-1)).all()
    (of_entropy,) = torch.autograd.grad(h.sum(), z)
    assert torch.isfinite(of_entropy).all()


@given(strategies.logits(leading=None))
def test_states_do_not_mix(z):
    """Statistics of a stack are the stack of statistics, up to the order of each sum."""
    rows = z.reshape(-1, z.shape[-1])
    for statistic, slack in ((entropy, BOTH * entropy_rounding(z)), (collision, statistic_rounding(z))):
        alone = torch.stack([statistic(row) for row in rows])
        assert ((statistic(z).reshape(-1) - alone).abs() <= slack.reshape(-1)).all()
