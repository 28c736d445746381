"""What the worlds log, against plain loops."""

import math
from dataclasses import replace

import oracles
import strategies
import torch
from exact import Policy, number
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory import measure, remainder
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


@given(strategies.logits(leading=(3,), max_actions=9, kinds=("normal", "uniform", "ties")), strategies.generators())
def test_state_entropy_change_is_lemma_1_at_each_state(logits, rng):
    change = torch.from_numpy(rng.normal(0, 0.5, logits.shape))
    found = measure.state_entropy_change(logits, logits + change)
    for state in range(3):
        before, after = Policy(logits[state].tolist()), Policy((logits[state] + change[state]).tolist())
        step = [0.0] * before.size
        moved = [number(a) - number(b) for a, b in zip(after.z, before.z, strict=True)]
        for place, d in zip(before.support, moved, strict=True):
            step[place] = d
        slope, curvature, _ = before.derivatives(step)
        # 9 actions, logits up to 50, changes up to 3: rounding of sums of terms below 500
        for name, expected in (
            ("measured_entropy_change", after.h - before.h),
            ("predicted_first_order", slope),
            ("predicted_second_order", slope + curvature / 2),
        ):
            assert abs(found[name][state].item() - expected) < 1e-11, name
        width = float(max(moved) - min(moved))
        bound = remainder.remainder_constant(before.size) / 2 * width**2
        assert abs(found["remainder_bound"][state].item() - bound) <= 1e-11 * (1 + bound)


def test_group_covariance_of_replicas_is_that_of_each():
    generator = torch.Generator().manual_seed(0)
    logp, advantage = -torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 4, 5, generator=generator) < 0.7
    group = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1], [2, 2, 2, 2]])
    batch = by_hand(logp, advantage, mask=mask, group=group)
    together = measure.group_covariance(batch)
    for i in range(3):
        alone = by_hand(logp[i], advantage[i], mask=mask[i], group=group[i])
        # means of at most 20 numbers below 1
        torch.testing.assert_close(together[i], measure.group_covariance(alone), rtol=0, atol=1e-15)


def by_hand(logp, advantage, mask=None, **others):
    """A batch of log-probabilities and advantages [..., rows, steps]; one group, all tokens valid, if not given."""
    mask = torch.ones(logp.shape, dtype=torch.bool) if mask is None else mask
    group = torch.zeros(logp.shape[:-1], dtype=torch.long)
    given_ = {"logp": logp, "old_logp": logp, "advantage": advantage, "mask": mask, "entropy": torch.ones_like(logp)}
    return measure.Batch(**{**given_, "outcome": torch.zeros_like(logp[..., 0]), "group": group, **others})


def test_a_token_without_advantage_counts_as_not_negative():
    logp = torch.tensor([[-0.5, -1.0, -2.0, -3.0]], dtype=torch.float64)
    batch = by_hand(logp, torch.tensor([[-1.0, 0.0, 2.0, 0.0]], dtype=torch.float64))
    plain = Objective.from_batch(batch)
    found = measure.selection(plain, replace(plain, weight=torch.zeros_like(plain.weight)))
    assert (found["selected_tokens"].item(), found["selected_negative_share"].item()) == (4, 0.25)
    assert measure.top_tokens(batch, torch.zeros_like(logp), 1.0)["top_negative_share"].item() == 0.25


def test_no_valid_token_has_no_score():
    logp = torch.full((2, 3), -1.0, dtype=torch.float64)
    found = measure.token_covariance(by_hand(logp, logp, mask=torch.zeros(2, 3, dtype=torch.bool)))
    assert {value.item() for value in found.values()} == {0.0}


def test_the_kl_to_the_reference_leaves_out_tokens_without_a_share():
    """k3 at x = log 2 and x = -log 2: 1/2 + log 2 - 1 and 2 - log 2 - 1, counted one and three times."""
    x = math.log(2)
    logp = torch.tensor([[-1.0, -1.0, -1.0]], dtype=torch.float64)
    batch = by_hand(logp, logp, ref_logp=torch.tensor([[-1 - x, -1 + x, -math.inf]], dtype=torch.float64))
    share = torch.tensor([[1.0, 3.0, 0.0]], dtype=torch.float64)
    expected = ((0.5 + x - 1) + 3 * (2 - x - 1)) / 4
    assert abs(measure.reference_kl(batch, share).item() - expected) < 1e-15  # roundings of numbers below 1


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
