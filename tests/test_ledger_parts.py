"""What the ledger's judges are made of, against arithmetic that shares no code with it."""

import math
from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import special, stats

from entropy_theory.claims.ledger import (
    common,
    cost,
    formulas,
    minibatch,
    note_000_chaos,
    note_000_controls,
    note_001_methods,
    note_001_runs,
    sampled_run,
)
from entropy_theory.claims.small import Problem, problems
from entropy_theory.control import control
from entropy_theory.controls import CONTROLS
from entropy_theory.records import Batch, Objective
from entropy_theory.remainder import entropy_rounding, unit_roundoff
from entropy_theory.softmax import entropy

U = unit_roundoff(torch.float64)


# --- arithmetic, minibatches, runs, cost --------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_rank_correlation_is_scipys(pairs):
    x, y = map(list, zip(*pairs, strict=True))
    mine = common.rank_correlation(x, y)
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert math.isnan(mine)
    else:
        # both are a quotient of sums of at most 12 half-integers below 7: exact but for the last few operations
        assert abs(mine - stats.spearmanr(x, y).statistic) <= 1e3 * U


@given(problems())
def test_the_rounding_of_a_mean_covers_it(problem):
    exact = sum(w * t for w, t in zip(*problem, strict=True)) / (10 * sum(problem.weights))
    computed = float((problem.logits.softmax(-1) * problem.reward).sum())
    # the logits are stored logarithms: |log w| u moves a probability by that share, twice for its sum
    stored = 2 * U * math.log(max(problem.weights)) * max(problem.tenths) / 10
    assert abs(computed - exact) <= float(common.mean_rounding(problem.logits, problem.reward)) + stored + 4 * U


def plain_step(pulls):
    """One step of PPO's clipped surrogate by hand: loops over pulls and arms."""
    weights = np.array(pulls.problem.weights, float)
    old = np.log(weights)
    now = old + np.array(pulls.drift) / 10
    pi_old, pi = (np.exp(z) / np.exp(z).sum() for z in (old, now))
    reward = np.array(pulls.problem.tenths) / 10
    advantage = reward - pi_old @ reward
    gradient, count = np.zeros(len(now)), 0
    for arm, times in enumerate(pulls.problem.weights):
        ratio = pi[arm] / pi_old[arm]
        clipped = min(max(ratio, 0.8), 1.2)
        for _ in range(times):
            count += 1
            if ratio * advantage[arm] <= clipped * advantage[arm]:
                gradient += ratio * advantage[arm] * (np.eye(len(now))[arm] - pi)
    return now + gradient / count


@given(minibatch.minibatches(drift=10))
def test_a_step_on_the_minibatch_is_the_hand_made_one(pulls):
    after = minibatch.logits_after(pulls, note_000_controls.NONE)
    # each side errs by at most the bound
    error = (after - torch.from_numpy(plain_step(pulls))).abs().max()
    assert error <= 2 * minibatch.step_rounding(pulls, after)


@given(minibatch.minibatches(drift=3))
def test_a_minibatch_has_the_proportions_of_its_policy(pulls):
    batch = pulls.batch
    assert len(batch.logp) == sum(pulls.problem.weights)
    assert [int((pulls.arms == a).sum()) for a in range(len(pulls.drift))] == list(pulls.problem.weights)
    mean = batch.advantage.mean()
    assert abs(mean) <= 8 * U * len(batch.logp)
    if not any(pulls.drift):
        assert torch.equal(batch.logp, batch.old_logp)


def test_pulls_follow_the_policy():
    logits = torch.tensor([[0.0, -torch.inf, 0.0]]).double()
    arms = sampled_run.pulled(logits, 4000, seed=5, step=2).flatten()
    # 4000 draws at 1/2: the count stays within 6 standard deviations
    assert not (arms == 1).any() and abs((arms == 0).sum() - 2000) < 6 * math.sqrt(1000)


def test_a_sampled_run_without_signal_stays_where_it_is():
    logits = torch.zeros(2, 3, dtype=torch.float64)
    run = sampled_run.sampled_run(logits, torch.ones(2, 3).double(), CONTROLS["none"](), 5, 16, 2.0, 0)
    assert run.shape == (6, 2) and torch.equal(run, run[:1].expand(6, 2))


def test_an_update_of_a_sampled_run_is_the_hand_made_one():
    logits, reward = torch.tensor([[0.5, 0.0, -1.0]]).double(), torch.tensor([[1.0, 0.0, 0.25]]).double()
    pulls, step_size = 16, 2.0
    run = sampled_run.sampled_run(logits, reward, CONTROLS["none"](), 1, pulls, step_size, seed=4)
    pi = np.exp(logits[0].numpy()) / np.exp(logits[0].numpy()).sum()
    advantage = reward[0].numpy() - pi @ reward[0].numpy()
    gradient = np.zeros(3)
    for arm in sampled_run.pulled(logits, pulls, seed=4, step=0).flatten().tolist():
        gradient += advantage[arm] * (np.eye(3)[arm] - pi) / pulls
    by_hand = entropy(logits[0] + step_size * torch.from_numpy(gradient))
    # |A| <= 1; a logit errs by at most 16 + 3 + 64 roundings of step_size on each side, entropy by 2 ln 3 times that
    assert abs(run[1, 0] - by_hand) <= 2 * math.log(3) * 2 * step_size * (pulls + 3 + 64) * U
    assert abs(run[1, 0] - run[0, 0]) > 1e-3


def test_a_sampled_run_keeps_its_runs_apart():
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0]]).double()
    reward = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    control = CONTROLS["clip_cov"](fraction=0.2, low=0.0)
    both = sampled_run.sampled_run(logits, reward, control, 8, 16, 2.0, 7)
    alone = sampled_run.sampled_run(logits[:1], reward[:1], control, 8, 16, 2.0, 7)
    assert torch.equal(both[:, 0], alone[:, 0]) and not torch.equal(both[:, 0], both[:, 1])


def test_fields_read_and_elements_are_counted():
    batch = cost.drawn_batch(0)
    reader = control(lambda objective, batch, state: (batch.entropy, batch.mask, objective)[2])
    assert cost.fields_read(reader, batch) == {"entropy", "mask"}
    doubler = control(lambda objective, batch, state: (objective.weight * 2, objective)[1])
    assert cost.elements(doubler, batch) - cost.elements(CONTROLS["none"](), batch) == 1
    assert cost.drawn_batch(1).logp.ne(batch.logp).any()


def test_backward_nodes_are_counted_once():
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    assert cost.backward_nodes(y + y) == 3  # add, multiply, accumulate


def test_a_denied_field_is_an_error_not_a_guess():
    with pytest.raises(AttributeError):
        cost.fields_read(control(lambda objective, batch, state: batch.nothing), cost.drawn_batch(0))


def test_the_symbol_entropy_and_exponent_of_digit_maps():
    for base in (2, 3, 7):
        h, exponent, rounding = note_000_chaos.digit_map(base)
        assert abs(h - math.log(base)) <= rounding and abs(exponent - math.log(base)) <= rounding < 1e-12


# --- published formulas -------------------------------------------------------------------------------------------


def inverse_error(z):
    """Bound on the error of z with -z exp(z) = h: that of the terms of w - ln w = -ln h, at most 8 w u, over the slope.

    Eight times that, for SciPy's own iteration; near h = 1/e the root is double and the slope 1 - 1/w small.
    """
    return 64 * U * abs(z) / (1 - 1 / abs(z))


@given(st.floats(1e-6, math.exp(-1) - 1e-6))
def test_the_inverse_of_the_discrete_activation(h):
    z = formulas._inverse(h)
    reference = float(special.lambertw(-h, -1).real)
    assert abs(z - reference) <= inverse_error(reference)


@given(st.lists(st.integers(-30, 30), min_size=2, max_size=4), st.integers(1, 6))
def test_the_discrete_activation_keeps_its_floor_and_its_order(raw, tenths):
    z = formulas.era_discrete(raw, tenths / 10, 4.0)
    pi = np.exp(z) / np.exp(z).sum()
    _, _, rounding = note_001_methods.Activated("discrete", tuple(raw), tenths).floor_and_entropy
    # NumPy's softmax and entropy err by at most the bound of the package's own once more
    assert -(pi * np.log(pi)).sum() >= tenths / 10 - rounding - float(entropy_rounding(torch.tensor(z)))
    assert max(z) <= -1
    ranked = [z[i] for i in sorted(range(len(raw)), key=lambda i: raw[i])]
    for lower, higher in pairwise(ranked):
        # the inverse is monotone; each z' errs as in the test above, |z'| > 1.3 at tau = 4
        assert higher - lower >= -2 * inverse_error(min(lower, higher))


@pytest.mark.parametrize("floor", [-0.1, 0.7])
def test_an_infeasible_floor_is_refused(floor):
    with pytest.raises(ValueError, match=f"floor must lie in .* got {floor}"):
        formulas.era_discrete([0.0, 1.0], floor, 4.0)


def test_the_language_model_form_leaves_sampling_alone():
    for h, advantage, factor in ((0.1, 1.0, 2.0), (5.0, 1.0, 0.5), (1.0, 1.0, 1.0), (0.1, -1.0, 1.0)):
        sampled, updated = formulas.era_language_model([1.0, 3.0], h, advantage, 0.45, 3.0, 2.0)
        assert sampled == [1.0, 3.0] and updated == [factor, 3 * factor]


@given(st.lists(st.integers(0, 150), min_size=1, max_size=4), st.integers(1, 100))
@example([20], 95)
@example([20], 96)
def test_entropic_follows_its_controller(entropies, hundredths):
    errors = [h / 100 - 0.1 for h in entropies]
    total = list(accumulate(errors))[-1]
    alpha = max(-1.0, min(1.0, errors[-1] + 0.01 * total))
    pi = hundredths / 100
    for advantage, expected in ((2.0, 1 + alpha), (-0.5, 1 - alpha), (0.0, 1.0)):
        weight = formulas.entropic_weight(errors[-1], total, pi, advantage, (1.0, 0.01), 0.95)
        assert weight == (expected if pi > 0.95 else 1.0)


def test_egsw_and_the_filtered_target_by_hand():
    good, bad = formulas.egsw_weights([1.0, 0.0], [0.0, 0.0], 1.0, 0.5)
    assert good == pytest.approx(1 / (1 + math.exp(-2)), rel=1e-15) and abs(good + bad - 1) <= 2 * U
    assert formulas.min_p_proxy([0.9, 0.018, 0.082], 0.02) == [0.9 / 0.982, 0.0, 0.082 / 0.982]
    assert formulas.min_p_proxy([0.5, 0.5], 0.02) == [0.5, 0.5]


def test_coverage_counts_different_actions():
    # two draws from (1/2, 1/2): the same action twice with probability 1/2
    assert note_001_runs.coverage((1, 1), 2) == 1.5
    assert note_001_runs.coverage((1, 0, 3), 1) == 1.0
    assert note_001_runs.shannon((1, 1, 1, 1)) == pytest.approx(math.log(4), rel=1e-15)


def test_what_a_minibatch_prints_defines_the_same_step():
    pulls = minibatch.Minibatch(Problem((3, 1), (10, 0)), (0, 2))
    scope = {}
    exec(pulls.code + note_000_controls._CONTROLS_CODE, scope)
    for mine, printed in ((note_000_controls.KL_COV, "kl_cov"), (note_000_controls.CLIP_COV, "clip_cov")):
        after = minibatch.logits_after(pulls, mine)
        assert (scope["after"](scope[printed]) - after).abs().max() <= 2 * minibatch.step_rounding(pulls, after)
    assert isinstance(scope["batch"], Batch) and isinstance(scope["edited"](scope["none"]), Objective)
