"""The one loss against a scalar loop, its gradients against their formulas, and the divergences' expectations."""

import math
from dataclasses import replace

import oracles
import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.loss import clipped, minibatch_loss, score_coefficient, token_loss
from entropy_theory.records import Batch, Objective, Penalty, map_tensors
from entropy_theory.reduce import token_count

# A token's loss is a sum of at most five terms; each is a product of three factors and an exponential that torch
# and libm each give within 2 ulp. 16 eps of the summed sizes covers both sides.
ROUNDING = 16 * 2**-52


def tokens(batch, objective):
    """Arguments of the oracles for each valid or masked token, and the token's entropy."""
    found = []
    fields = (batch.logp, batch.old_logp, objective.advantage, objective.mask, batch.entropy)
    edits = (objective.weight, objective.clip_low, objective.clip_high, objective.entropy_coef)
    columns = [t.flatten().tolist() for t in (*fields, *edits)]
    penalties = [(p.coef.flatten().tolist(), p.target.flatten().tolist(), p.divergence) for p in objective.penalties]
    for i, (logp, old, advantage, mask, h, weight, low, high, bonus) in enumerate(zip(*columns, strict=True)):
        common = {
            "logp": logp,
            "old_logp": old,
            "advantage": advantage,
            "mask": mask,
            "weight": weight,
            "clip_low": low,
            "clip_high": high,
            "penalties": [(coef[i], target[i], kind) for coef, target, kind in penalties],
        }
        found.append((common, h, bonus))
    return found


def size(common, h, bonus):
    """Summed sizes of the terms of one token's loss and of its slope."""
    if not common["mask"]:
        return 0.0
    ratio = math.exp(common["logp"] - common["old_logp"])
    total = common["weight"] * ratio * abs(common["advantage"]) + bonus * h
    for coef, target, kind in common["penalties"]:
        x = common["logp"] - target
        total += coef * (abs(oracles.divergence(kind, x)) + math.exp(-x) + abs(x) + 1)
    return total


def drawn(**options):
    """(batch, objective) pairs."""
    return strategies.batches(**options).flatmap(lambda b: st.tuples(st.just(b), strategies.objectives(b)))


@given(drawn())
def test_loss_equals_the_scalar_loop(pair):
    batch, objective = pair
    loss = token_loss(batch.logp, batch.entropy, batch, objective)
    assert loss.shape == batch.logp.shape
    for mine, (common, h, bonus) in zip(loss.flatten().tolist(), tokens(batch, objective), strict=True):
        expected = oracles.token_loss(entropy=h, entropy_coef=bonus, **common)
        assert abs(mine - expected) <= ROUNDING * size(common, h, bonus)


@given(drawn())
def test_gradient_equals_the_formula(pair):
    batch, objective = pair
    logp, h = batch.logp.clone().requires_grad_(), batch.entropy.clone().requires_grad_()
    loss = token_loss(logp, h, batch, objective)
    coefficient = score_coefficient(loss, logp)
    for mine, (common, entropy, bonus) in zip(coefficient.flatten().tolist(), tokens(batch, objective), strict=True):
        assert abs(mine - oracles.score_coefficient(**common)) <= ROUNDING * size(common, entropy, bonus)
    (of_entropy,) = torch.autograd.grad(loss.sum(), h)
    assert torch.equal(of_entropy, torch.where(objective.mask, -objective.entropy_coef, 0.0))


@given(drawn(dtype=None))
def test_loss_keeps_the_dtype(pair):
    batch, objective = pair
    assert token_loss(batch.logp, batch.entropy, batch, objective).dtype == batch.logp.dtype


@given(drawn(garbage=True), st.sampled_from([math.nan, math.inf]))
def test_masked_tokens_carry_neither_loss_nor_gradient(pair, garbage):
    batch, objective = pair

    def spoil(t):
        return torch.where(batch.mask, t, garbage) if t.is_floating_point() else t

    spoiled = map_tensors(objective, spoil)
    logp, h = spoil(batch.logp).requires_grad_(), spoil(batch.entropy).requires_grad_()
    loss = token_loss(logp, h, batch, spoiled)
    clean = token_loss(batch.logp, batch.entropy, batch, objective)
    assert torch.equal(loss.detach(), clean)
    assert (loss[~batch.mask] == 0).all()
    gradients = torch.autograd.grad(loss.sum(), (logp, h))
    assert all(torch.isfinite(g).all() and (g[~batch.mask] == 0).all() for g in gradients)


@given(strategies.batches(garbage=True, mask_kinds=("full", "ragged")), st.sampled_from(["abs", "k1", "k2", "k3"]))
def test_an_inactive_penalty_needs_no_target(batch, kind):
    nowhere = torch.full_like(batch.logp, -math.inf)
    nowhere[..., 0] = math.nan
    plain = Objective.from_batch(batch)
    penalised = replace(plain, penalties=(Penalty(torch.zeros_like(batch.logp), nowhere, kind),))
    logp = batch.logp.clone().requires_grad_()
    losses = [token_loss(logp, batch.entropy, batch, o) for o in (plain, penalised)]
    assert torch.equal(*(loss.detach() for loss in losses))
    assert torch.equal(*(torch.autograd.grad(loss.sum(), logp)[0] for loss in losses))


@given(strategies.batches(fresh=True, mask_kinds=("full", "ragged", "random")))
def test_on_the_first_update_the_effective_advantage_is_the_advantage(batch):
    logp = batch.logp.clone().requires_grad_()
    loss = token_loss(logp, batch.entropy, batch, Objective.from_batch(batch))
    assert torch.equal(score_coefficient(loss, logp)[batch.mask], batch.advantage[batch.mask])


@given(strategies.batches(fresh=True))
def test_the_abs_penalty_has_exactly_no_gradient_at_ratio_one(batch):
    plain = Objective.from_batch(batch)
    held = replace(plain, penalties=(Penalty(torch.ones_like(batch.logp), batch.old_logp, "abs"),))
    logp = batch.logp.clone().requires_grad_()
    gradients = [torch.autograd.grad(token_loss(logp, batch.entropy, batch, o).sum(), logp)[0] for o in (plain, held)]
    assert torch.equal(*gradients)


def test_hand_worked_tokens():
    """ratio 1.5 at A = 2 is clipped to 1.2; ratio .5 at A = -1 to .8; ratio .5 at A = 2 is not clipped."""
    log = math.log
    old = torch.tensor([[-1.0, -1.0, -1.0]], dtype=torch.float64)
    batch = Batch(
        logp=old + torch.tensor([[log(1.5), log(0.5), log(0.5)]], dtype=torch.float64),
        old_logp=old,
        advantage=torch.tensor([[2.0, -1.0, 2.0]], dtype=torch.float64),
        mask=torch.ones(1, 3, dtype=torch.bool),
        entropy=torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64),
        outcome=torch.ones(1, dtype=torch.float64),
        group=torch.zeros(1, dtype=torch.int64),
    )
    objective = replace(Objective.from_batch(batch), entropy_coef=torch.full_like(old, 0.1))
    loss = token_loss(batch.logp, batch.entropy, batch, objective)
    assert loss.tolist() == [pytest.approx([-1.2 * 2 - 0.1, 0.8 - 0.2, -0.5 * 2 - 0.3], abs=1e-15)]


@given(drawn())
def test_clipped_tokens_are_those_the_clip_has_silenced(pair):
    """Against the loop, and against the gradient: 0 although there is an advantage."""
    batch, objective = pair
    plain = replace(objective, weight=torch.ones_like(objective.weight), penalties=())
    found = clipped(batch, plain) & batch.mask
    logp = batch.logp.clone().requires_grad_()
    slope = score_coefficient(token_loss(logp, batch.entropy, batch, plain), logp)
    assert torch.equal(found, batch.mask & (slope == 0) & (batch.advantage != 0))
    for mine, (common, _, _) in zip(found.flatten().tolist(), tokens(batch, plain), strict=True):
        if common["mask"]:
            ratio, a = math.exp(common["logp"] - common["old_logp"]), common["advantage"]
            assert mine == (min(max(ratio, 1 - common["clip_low"]), 1 + common["clip_high"]) * a < ratio * a)


@given(strategies.batches(fresh=True, mask_kinds=("full", "ragged", "random")))
def test_the_edge_of_the_clip_is_not_clipped(batch):
    """Ratio 1 in a range that is 1 alone."""
    assert not (clipped(batch, Objective.from_batch(batch, 0.0, 0.0)) & batch.mask).any()


def test_two_tokens_are_divided_by_their_count_and_replicas_added():
    """(1 + 3) / 2 + (10 + 0) / 1."""
    loss = torch.tensor([[[1.0, 3.0]], [[10.0, 0.0]]], dtype=torch.float64)
    assert minibatch_loss(loss, torch.tensor([2, 1])).item() == 12.0


@given(drawn(min_rows=2), st.integers(1, 5))
def test_micro_batches_add_up_to_the_minibatch(pair, cut):
    batch, objective = pair
    count = token_count(objective.mask)
    loss = token_loss(batch.logp, batch.entropy, batch, objective)
    whole = minibatch_loss(loss, count)
    parts = minibatch_loss(loss[..., :cut, :], count) + minibatch_loss(loss[..., cut:, :], count)
    rounding = loss.numel() * 2**-52 * float(loss.abs().sum())
    assert abs(float(whole - parts)) <= rounding
    # replicas are summed, not averaged: each replica's gradient is what it would be alone
    stack = [(piece, n) for piece, n in zip(loss.flatten(0, -3), count.flatten(), strict=True)] if loss.ndim > 2 else []
    if stack:
        assert abs(float(whole - sum(minibatch_loss(piece, n) for piece, n in stack))) <= rounding


@given(strategies.logits_and_changes(max_actions=50, finite=True))
def test_expected_gradients_of_the_divergences(pair):
    """Under on-policy sampling k1 has no expected gradient, k2 that of KL(pi|target), k3 that of KL(target|pi)."""
    z, change = pair
    target_logp = torch.log_softmax(z + change, -1)
    z = z.requires_grad_()
    logp = torch.log_softmax(z, -1)
    sampled = logp.detach().exp()
    flat = {"mask": torch.ones(1, z.numel(), dtype=torch.bool), "entropy": torch.zeros(1, z.numel(), dtype=z.dtype)}
    batch = Batch(
        logp=logp.detach()[None],
        old_logp=logp.detach()[None],
        advantage=torch.zeros(1, z.numel(), dtype=z.dtype),
        outcome=torch.zeros(1, dtype=z.dtype),
        group=torch.zeros(1, dtype=torch.int64),
        **flat,
    )
    expected = {
        "k1": torch.zeros_like(sampled),
        "k2": torch.autograd.grad((logp.exp() * (logp - target_logp)).sum(), z, retain_graph=True)[0],
        "k3": torch.autograd.grad(-(target_logp.exp() * logp).sum(), z, retain_graph=True)[0],
    }
    for kind, gradient in expected.items():
        # every action once, its penalty weighted by its probability: the expectation in full
        objective = replace(Objective.from_batch(batch), penalties=(Penalty(sampled[None], target_logp[None], kind),))
        loss = token_loss(logp[None], batch.entropy, batch, objective).sum()
        (computed,) = torch.autograd.grad(loss, z, retain_graph=True)
        # terms are of size pi (|log pi| + |log target|) and pi e^-x <= target probability <= 1; K of them per entry
        rounding = 64 * z.numel() * 2**-52 * float(1 + logp.detach().abs().max() + target_logp.detach().abs().max())
        assert float((computed - gradient).abs().max()) <= rounding


def test_records_map_every_tensor_once():
    ones = torch.ones(1, 2, dtype=torch.float64)
    objective = Objective(ones, ones > 0, *[ones] * 5, penalties=(Penalty(ones, ones, "k2"),))
    doubled = map_tensors(objective, lambda t: t * 2)
    assert torch.equal(doubled.advantage, 2 * ones) and torch.equal(doubled.penalties[0].target, 2 * ones)
    assert doubled.penalties[0].divergence == "k2"
    assert torch.equal(objective.advantage, ones)
