"""KL to a reference: by hand, against loops, its expected gradients, and where training with it ends."""

import math

import oracles
import pytest
import strategies
import torch
from closed_loop import FLAT, REWARD, batch_of, exact_gradient, replicas, tensor, train
from contract import edited, gradients, same_effect
from hypothesis import assume, given
from hypothesis import strategies as st

from entropy_theory.controls.kl_to_reference import kl_to_reference
from entropy_theory.controls.none import none
from entropy_theory.measure import reference_kl
from entropy_theory.records import Measurement, Objective

# x = logp - ref_logp = 1, -2, 0.5; the last token of the second row is padding
LOGP = [[-1.0, -3.0, -2.0], [-1.0, -1.0, -1.0]]
REF_LOGP = [[-2.0, -1.0, -2.5], [-1.0, -4.0, math.nan]]
VALID = [[True, True, True], [True, True, False]]


@pytest.mark.parametrize(
    ("form", "losses", "slopes"),
    [
        # x^2 / 2 and x, of x = 1, -2, 0.5 and 0, 3
        ("k2", [0.5, 2.0, 0.125, 0.0, 4.5], [1.0, -2.0, 0.5, 0.0, 3.0]),
        # exp(-x) + x - 1 and 1 - exp(-x)
        (
            "k3",
            [math.exp(-1), math.exp(2) - 3, math.exp(-0.5) - 0.5, 0.0, math.exp(-3) + 2],
            [1 - math.exp(-1), 1 - math.exp(2), 1 - math.exp(-0.5), 0.0, 1 - math.exp(-3)],
        ),
    ],
)
def test_kl_in_the_loss_by_hand(form, losses, slopes):
    batch = batch_of(LOGP, [[0.0] * 3] * 2, ref_logp=REF_LOGP, mask=VALID)
    loss, slope, _ = gradients(batch, edited(kl_to_reference(form, coef=0.5), batch))
    # 1e-15 relative: a rounding or two of numbers below 8
    assert loss[batch.mask].tolist() == pytest.approx([0.5 * v for v in losses], rel=1e-14)
    assert slope[batch.mask].tolist() == pytest.approx([0.5 * v for v in slopes], rel=1e-14)


def test_kl_in_the_reward_by_hand():
    """Rewards -x of 1, -2, 0.5 have returns -(1 - 2 + 0.5), -(-2 + 0.5), -0.5; of 0, 3: -3, -3. Times 0.5."""
    batch = batch_of(LOGP, [[1.0] * 3, [0.0] * 3], ref_logp=REF_LOGP, mask=VALID)
    result = edited(kl_to_reference("k1", coef=0.5), batch)
    assert result.advantage[batch.mask].tolist() == [1 + 0.25, 1 + 0.75, 1 - 0.25, -1.5, -1.5]
    assert not result.penalties


@given(strategies.batches(fresh=False), st.sampled_from([0.0, 0.3, 2.0]), st.sampled_from([0.05, 0.4, math.inf]))
def test_kl_in_the_reward_equals_the_loop(batch, coef, limit):
    result = edited(kl_to_reference("k1", coef, limit), batch)
    arrays = (batch.old_logp, batch.ref_logp, batch.mask, batch.advantage, result.advantage)
    for old, ref, mask, advantage, found in replicas(*arrays):
        for row in zip(old, ref, mask, advantage, found, strict=True):
            tokens = list(zip(*row, strict=True))
            for t, (*_, valid, before, now) in enumerate(tokens):
                ratios = [o - r for o, r, v, *_ in tokens[t:] if v]
                spent = math.fsum(x for x in ratios if abs(x) <= limit)
                # 1e-14: six roundings of numbers below 10, times at most 2
                assert not valid or now == pytest.approx(before - coef * spent, abs=1e-14)


@given(strategies.batches(fresh=False), st.sampled_from(["k2", "k3"]), st.sampled_from([0.01, 0.1, math.inf]))
def test_kl_in_the_loss_equals_the_loop(batch, form, limit):
    """Tokens whose estimate exceeds the limit have no gradient, as under verl's clamp at 10."""
    control = kl_to_reference(form, 0.3, limit)
    plain, result = Objective.from_batch(batch), edited(control, batch)
    slopes = gradients(batch, result)[1] - gradients(batch, plain)[1]
    for logp, ref, mask, found in replicas(batch.logp, batch.ref_logp, batch.mask, slopes):
        for one, two, valid, slope in zip(*map(oracles.flat, (logp, ref, mask, found)), strict=True):
            x = one - two
            estimate, derivative = (x * x / 2, x) if form == "k2" else (math.exp(-x) + x - 1, 1 - math.exp(-x))
            assume(not valid or abs(estimate - limit) > 1e-12)  # on the edge either answer is right
            # 1e-13: the difference of two sums of numbers up to 100 (ratios up to e^0.6 times advantages)
            assert not valid or slope == pytest.approx(0.3 * derivative if estimate <= limit else 0.0, abs=1e-13)


@given(
    strategies.logits(max_actions=8, kinds=("normal",)), strategies.generators(), st.sampled_from(["k1", "k2", "k3"])
)
def test_expected_gradients_of_the_three_forms(logits, rng, form):
    """k1 in the reward and k2 descend KL(policy || reference), k3 KL(reference || policy), each over all actions."""
    logits = logits.clamp(-5, 5)
    reference = torch.log_softmax(torch.from_numpy(rng.normal(size=logits.shape)), -1)
    found, *_ = exact_gradient(kl_to_reference(form, 0.7), logits, torch.zeros_like(logits), reference, tensor(0.7))
    here = logits.clone().requires_grad_()
    logp = torch.log_softmax(here, -1)
    forward, backward = (logp.exp() * (logp - reference)).sum(), (reference.exp() * (reference - logp)).sum()
    (expected,) = torch.autograd.grad(backward if form == "k3" else forward, here)
    # 1e-12: sums of eight terms pi x of size up to 100 (k3: exp(-x) pi with -x up to 15 has size 1 at most)
    assert torch.allclose(found, -0.7 * expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["k1", "k2"])
def test_training_with_kl_ends_at_the_known_optimum(form):
    """max E_pi[r] - coef KL(pi || ref) has the solution pi proportional to ref exp(r / coef)."""
    logits, _ = train(kl_to_reference(form, 0.5), FLAT, REWARD, 400, lr=1.0)
    optimum = torch.softmax(torch.log_softmax(FLAT, -1) + REWARD / 0.5, -1)
    # contraction by at least 1 - coef min(pi) = 0.97 a step: 0.97^400 = 5e-6 of an error below 1
    assert torch.allclose(logits.softmax(-1), optimum, rtol=0, atol=5e-6)


def test_training_with_k3_ends_where_its_gradient_balances_the_reward():
    """pi_a (r_a - mean r) = coef (pi_a - ref_a)."""
    logits, _ = train(kl_to_reference("k3", 0.5), FLAT, REWARD, 600, lr=1.0)
    probability, reference = logits.softmax(-1), FLAT.softmax(-1)
    push = probability * (REWARD - (probability * REWARD).sum())
    # the step that is left after 600 of them
    assert torch.allclose(push, 0.5 * (probability - reference), rtol=0, atol=1e-6)


def test_one_step_rows_pay_for_their_own_step_only():
    """The same tokens as three rows of one step and as one row of three."""
    row = batch_of([[-1.0, -1.0, -1.0]], [[0.0] * 3], ref_logp=[[-2.0, -3.0, -4.0]])
    pulls = batch_of([[-1.0]] * 3, [[0.0]] * 3, ref_logp=[[-2.0], [-3.0], [-4.0]])
    control = kl_to_reference("k1", 1.0)
    assert edited(control, row).advantage.tolist() == [[-6.0, -5.0, -3.0]]
    assert edited(control, pulls).advantage.tolist() == [[-1.0], [-2.0], [-3.0]]


@pytest.mark.parametrize("form", ["k1", "k2", "k3"])
def test_an_action_the_reference_never_takes_has_no_part(form):
    batch = batch_of([[-1.0, -1.0]], [[1.0, 1.0]], ref_logp=[[-math.inf, -1.0]])
    assert same_effect(batch, edited(kl_to_reference(form, 1.0), batch), Objective.from_batch(batch))


def test_an_adaptive_coefficient_follows_the_measured_kl():
    """Target 0.1, horizon 2: KL 0.3 is cut at +0.2, so times 1.1; KL 0.09 is -0.1, so times 0.95."""
    control = kl_to_reference("k2", 1.0, target_kl=0.1, horizon=2.0)
    state = control.init(tensor([0.0, 0.0]))
    state = control.advance(state, Measurement(tensor([1.0, 1.0]), tensor([0.3, 0.09])))
    assert state.tolist() == pytest.approx([1.1, 0.95], rel=1e-15)
    with pytest.raises(ValueError, match="the world measured none"):
        control.advance(state, Measurement(tensor([1.0, 1.0])))


def test_an_adaptive_coefficient_holds_its_target_in_training():
    control = kl_to_reference("k2", 0.05, target_kl=0.1, horizon=2.0)
    logits, _ = train(control, FLAT, REWARD, 2000, lr=0.3)
    reference, logp = FLAT.log_softmax(-1), logits.log_softmax(-1)
    # measured: 0.1000; 1 % leaves room for the last steps' swing, |KL / target - 1| <= 0.2 / horizon a step
    assert float((logp.exp() * (logp - reference)).sum()) == pytest.approx(0.1, rel=0.01)


@given(strategies.batches(), st.booleans(), strategies.generators())
def test_reference_kl_equals_the_loop(batch, weighted, rng):
    share = torch.from_numpy(rng.choice([0.0, 0.5, 2.0], tuple(batch.mask.shape)))
    share[..., 0, 0] = 1.0  # some weight somewhere
    found = reference_kl(batch, share if weighted else None).reshape(-1)
    arrays = (batch.logp, batch.ref_logp, batch.mask, share)
    for measured, fields in zip(found.tolist(), replicas(*arrays), strict=True):
        logp, ref, mask, weight = map(oracles.flat, fields)
        ratios = [a - b if m else 0.0 for a, b, m in zip(logp, ref, mask, strict=True)]
        kept = [m * (w if weighted else 1.0) for m, w in zip(mask, weight, strict=True)]
        assume(not weighted or any(kept))
        expected = oracles.mean([math.exp(-x) + x - 1 for x in ratios], kept)
        # 1e-14: means of numbers of size below 10
        assert measured == pytest.approx(expected, abs=1e-14)


def test_reference_kl_is_none_without_a_reference():
    assert reference_kl(batch_of([[-1.0]], [[1.0]])) is None


@given(strategies.logits(max_actions=8, kinds=("normal", "uniform", "ties")), strategies.generators())
def test_reference_kl_is_the_kl_when_every_action_is_weighted_by_its_probability(logits, rng):
    logits = logits.clamp(-3, 3)
    reference = torch.log_softmax(torch.from_numpy(rng.normal(size=logits.shape)), -1)
    _, batch, chance = exact_gradient(none(), logits, torch.zeros_like(logits), reference)
    logp = logits.log_softmax(-1)
    exact = float((logp.exp() * (logp - reference)).sum())
    # 1e-13: k3 adds sum_a ref_a - 1 = 0 as numbers of size 1
    assert float(reference_kl(batch, chance)) == pytest.approx(exact, abs=1e-13)
