"""What the worlds log, against plain loops."""

import math

import oracles
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory import measure
from entropy_theory.control import chain
from entropy_theory.controls import build
from entropy_theory.records import Objective

U = torch.finfo(torch.float64).eps / 2


@given(strategies.batches(leading=()))
def test_token_covariance_is_the_sorted_scores(batch):
    mask = oracles.flat(batch.mask.tolist())
    logp, advantage = (
        [x if m else 0.0 for x, m in zip(oracles.flat(t.tolist()), mask, strict=True)]
        for t in (batch.logp, batch.advantage)
    )
    scores = oracles.centred_product(logp, advantage, [float(m) for m in mask])
    valid = sorted(s for s, m in zip(scores, mask, strict=True) if m)
    found = {name: value.item() for name, value in measure.token_covariance(batch).items()}
    if not valid:
        assert set(found.values()) == {0.0}
        return
    bound = oracles.centred_product_rounding(logp, advantage, [float(m) for m in mask], 2 * U) + 1e-300
    for name, expected in (
        ("cov_token_mean", math.fsum(valid) / len(valid)),
        ("cov_token_p50", valid[(len(valid) - 1) // 2]),
        ("cov_token_p99", valid[int((len(valid) - 1) * 0.99)]),
        ("cov_token_max", valid[-1]),
    ):
        assert abs(found[name] - expected) <= bound + len(valid) * U * max(map(abs, valid)), name


@given(strategies.batches(fresh=False), st.sampled_from([(0.05, 0.2), (0.2, 0.2), (0.6, 0.05)]))
def test_clip_fractions_count_what_the_clip_silences(batch, widths):
    """A token counts if its advantage pushes its ratio further beyond the side of the clip it is already beyond."""
    objective = Objective.from_batch(batch, *widths)
    found = measure.clip_fractions(batch, objective)
    ratio = torch.exp(batch.logp - batch.old_logp)
    for name, sign, width in (("clip_fraction_low", -1, widths[0]), ("clip_fraction_high", 1, widths[1])):
        silenced = batch.mask & (sign * (ratio - 1) > width) & (sign * batch.advantage > 0)
        count = batch.mask.sum((-2, -1)).clamp(min=1)
        assert torch.equal(found[name], silenced.sum((-2, -1)).double() / count)


@given(strategies.batches(fresh=False))
def test_selection_counts_dropped_and_penalised_tokens(batch):
    plain = Objective.from_batch(batch)
    control = chain(
        build("clip_cov", {"clip_cov.fraction": 0.5, "clip_cov.low": -9.0, "clip_cov.high": 9.0}),
        build("kl_cov", {"kl_cov.fraction": 0.3}),
    )
    edited = control.edit(plain, batch, control.init(torch.zeros(batch.mask.shape[:-2])))
    chosen = batch.mask & ((edited.weight == 0) | (edited.penalties[0].coef > 0))
    found = measure.selection(plain, edited)
    assert torch.equal(found["selected_tokens"], chosen.sum((-2, -1)))
    negative = (chosen & (batch.advantage < 0)).sum((-2, -1))
    assert torch.equal(found["selected_negative_share"], negative.double() / chosen.sum((-2, -1)).clamp(min=1))
    assert torch.equal(found["selected_share"], chosen.sum((-2, -1)).double() / batch.mask.sum((-2, -1)).clamp(min=1))


@given(strategies.batches(leading=()))
def test_nothing_is_selected_without_a_control(batch):
    plain = Objective.from_batch(batch)
    assert measure.selection(plain, build("none", {}).edit(plain, batch, ()))["selected_tokens"] == 0


@given(strategies.batches(leading=()))
def test_group_covariance_by_hand(batch):
    rows = []
    for logp, advantage, mask in zip(*(t.tolist() for t in (batch.logp, batch.advantage, batch.mask)), strict=True):
        kept = [(x, a) for x, a, m in zip(logp, advantage, mask, strict=True) if m]
        rows.append([math.fsum(v) / len(kept) for v in zip(*kept, strict=True)] if kept else [0.0, 0.0])
    found = measure.group_covariance(batch).tolist()
    for i, group in enumerate(batch.group.tolist()):
        members = [rows[j] for j, other in enumerate(batch.group.tolist()) if other == group]
        logp, advantage = (math.fsum(v) / len(members) for v in zip(*members, strict=True))
        size = max(max(abs(x), abs(a)) for x, a in rows)
        # two means of at most 36 numbers each below `size`, then one product
        assert abs(found[i] - (rows[i][0] - logp) * (rows[i][1] - advantage)) <= 200 * U * (1 + size) ** 2


@given(strategies.logits(leading=(3,), max_actions=50))
def test_entropy_change_is_a_mean_over_states(logits):
    after = torch.where(torch.isfinite(logits), logits * 0.9, logits)
    found = measure.entropy_change(logits, after)
    rows = [(a, b) for a, b in zip(logits.tolist(), after.tolist(), strict=True)]
    measured = math.fsum(oracles.entropy(b) - oracles.entropy(a) for a, b in rows) / 3
    # 50 actions, logits up to 50: the rounding bounds of `remainder` stay below 1e-11 here
    assert abs(found["measured_entropy_change"].item() - measured) < 1e-11
    assert abs(found["measured_entropy_change"] - found["predicted_first_order"]) <= found["remainder_bound"] + 1e-11


@given(strategies.batches(fresh=True))
def test_theorem_predictions_are_token_means(batch):
    c = torch.full_like(batch.logp, 0.3)
    found = measure.theorem_predictions(batch, c)
    valid = batch.mask
    logp, h, a = (torch.where(valid, t, 0.0) for t in (batch.logp, batch.entropy, batch.advantage))
    first = torch.where(valid, -a * (logp.exp() * (logp + h) - 0.3), 0.0).sum((-2, -1))
    second = torch.where(valid, -a * (logp + h), 0.0).sum((-2, -1))
    count = valid.sum((-2, -1)).clamp(min=1)
    assert torch.allclose(found["theorem_1_per_step_size"], first / count, rtol=0, atol=1e-13)
    assert torch.allclose(found["theorem_2_per_step_size"], second / count, rtol=0, atol=1e-13)


@given(strategies.batches(fresh=True))
def test_minibatch_change_is_a_token_mean(batch):
    after = torch.where(batch.mask, batch.entropy * 0.5, batch.entropy)
    found = measure.minibatch_change(batch, after)["minibatch_entropy_change"]
    lost = torch.where(batch.mask, batch.entropy * 0.5, 0.0).sum((-2, -1)) / batch.mask.sum((-2, -1)).clamp(min=1)
    assert torch.allclose(found, -lost, rtol=0, atol=1e-13)
