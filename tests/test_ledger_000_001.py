"""Claims 1 to 31: each comes out as recorded from two seeds, and differently once what it uses has a fault."""

import functools
import math
from collections import Counter
from itertools import accumulate
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import special, stats

from entropy_theory import claims, theorems
from entropy_theory.claims import Context, Verdict
from entropy_theory.claims.ledger import (
    common,
    cost,
    formulas,
    minibatch,
    note_000,
    note_000_chaos,
    note_000_controls,
    note_000_results,
    note_001,
    note_001_methods,
    note_001_runs,
    sampled_run,
)
from entropy_theory.claims.small import Problem, problems
from entropy_theory.cli.worlds import committed_data
from entropy_theory.control import control
from entropy_theory.controls import CONTROLS
from entropy_theory.records import Batch, Objective
from entropy_theory.remainder import unit_roundoff
from entropy_theory.softmax import entropy

QUICK = claims.PROFILES["quick"]
IDS = [f"claim_{number:02d}" for number in range(1, 32)]
U = unit_roundoff(torch.float64)


@functools.cache
def as_committed(id, seed):
    """What judging one claim finds with the stored results."""
    return found(id, seed, committed_data)


def found(id, seed=0, data=None, **options):
    """What judging one claim finds."""
    return claims.CLAIMS[id].judge(Context(QUICK, seed, data=data, **options))


def tables(**given):
    """A `data` function that knows these tables only, numbers as text."""
    text = {name: [{k: str(v) for k, v in row.items()} for row in rows] for name, rows in given.items()}
    return lambda name: text.get(name, [])


# --- the record ---------------------------------------------------------------------------------------------------


def test_the_notes_have_every_number_once():
    numbers = Counter(c.id for c in (*note_000.NOTE_000, *note_001.NOTE_001))
    assert sorted(numbers) == IDS and set(numbers.values()) == {1}
    for claim in (*note_000.NOTE_000, *note_001.NOTE_001):
        number = int(claim.id.removeprefix("claim_"))
        assert claim.source == f"study note {'000' if number <= 17 else '001'}, claim {number}"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("id", IDS)
def test_the_verdict_is_the_one_on_record(id, seed):
    finding = as_committed(id, seed)
    assert finding.verdict == claims.CLAIMS[id].recorded
    assert any(c.isdigit() for c in finding.evidence) and finding.evidence.endswith(".")
    needs_one = finding.verdict in (Verdict.REFUTED, Verdict.UNDER_ASSUMPTION)
    assert (finding.counterexample is not None) == needs_one


@pytest.mark.parametrize("id", ["claim_03", "claim_09", "claim_13", "claim_26", "claim_30", "claim_31"])
def test_a_seed_gives_the_same_finding_again(id):
    a, b = as_committed(id, 1), found(id, 1, committed_data)
    assert a.counterexample == b.counterexample
    assert {k: v for k, v in a.numbers.items() if "ns_per" not in k} == {
        k: v for k, v in b.numbers.items() if "ns_per" not in k
    }


@pytest.mark.parametrize("id", ["claim_10", "claim_21", "claim_22", "claim_23"])
def test_without_data_the_missing_table_is_named(id):
    finding = found(id)
    assert finding.verdict == Verdict.EMPIRICAL and ".csv" in finding.evidence and "takes" in finding.evidence


# --- planted faults -----------------------------------------------------------------------------------------------

TRUE_FIRST = theorems.entropy_change_first_order
TRUE_COVARIANCE = note_000.covariance
TRUE_BONUS = note_001_methods._bonus_change
TRUE_SHANNON = note_001_runs.shannon


def right_side(problem):
    """-Cov(log pi, dz) of the step, where the claim has Cov(s, r)."""
    return torch.tensor(-note_000.Step(problem, note_000.SMALL_STEP).covariance)


def entropy_reader():
    """A control that looks at the entropy, which Clip-Cov does not."""
    return control(lambda objective, batch, state: (batch.entropy, objective)[1])


def no_punished(*arguments, gains=None, **options):
    """EntroPIC's weight with one sign for rewarded and punished."""
    return formulas.entropic_weight(arguments[0], arguments[1], arguments[2], abs(arguments[3]), *arguments[4:])


FAULTS = [
    ("claim_01", note_000, "_state_covariance", right_side, Verdict.HOLDS),
    ("claim_02", note_000, "covariance", lambda *a, **k: -TRUE_COVARIANCE(*a, **k), Verdict.HOLDS),
    ("claim_03", note_000, "covariance", lambda *a, **k: -TRUE_COVARIANCE(*a, **k), Verdict.HOLDS),
    ("claim_04", note_000, "_law", lambda law: (0.0, 1.0, 0.0), Verdict.HOLDS),
    ("claim_05", note_000, "_returns", lambda problem: (1.0, 0.0, 0.0), Verdict.HOLDS),
    ("claim_06", note_000_controls, "_entropy_after", lambda m, c: (0.5, 0.0), Verdict.HOLDS),
    ("claim_07", note_000_controls, "_entropy_after", lambda m, c: (float(entropy(m.logits)), 0.0), Verdict.HOLDS),
    ("claim_08", note_000_controls, "KL_COV", CONTROLS["kl_cov"](fraction=1.0), Verdict.HOLDS),
    ("claim_11", note_000_chaos, "digit_map", lambda base: (1 / math.log(base), math.log(base), 1e-15), Verdict.HOLDS),
    ("claim_14", note_000_chaos, "_loses_an_action", lambda problem: True, Verdict.EMPIRICAL),
    ("claim_16", note_000, "_kept_and_best", lambda problem: (1.0, 1.0), Verdict.HOLDS),
    ("claim_18", theorems, "entropy_change_first_order", lambda z, d: -TRUE_FIRST(z, d), Verdict.REFUTED),
    ("claim_18", theorems, "entropy_change_first_order", lambda z, d: 0.9 * TRUE_FIRST(z, d), Verdict.REFUTED),
    ("claim_19", note_001, "_effects", lambda p: p.probability * p.advantage, Verdict.REFUTED),
    ("claim_20", theorems, "entropy_change_first_order", lambda z, d: -TRUE_FIRST(z, d), Verdict.REFUTED),
    ("claim_25", note_001_methods, "entropic_weight", no_punished, Verdict.REFUTED),
    ("claim_26", note_001_methods, "era_discrete", lambda z, floor, tau: z, Verdict.REFUTED),
    ("claim_26", note_001_methods, "era_continuous", lambda z, *a, **k: [-9.0] * len(z), Verdict.REFUTED),
    ("claim_27", note_001_methods, "min_p_proxy", lambda pi, kappa: pi, Verdict.REFUTED),
    ("claim_28", note_001_methods, "_bonus_change", lambda problem: -TRUE_BONUS(problem), Verdict.HOLDS),
    (
        "claim_29",
        note_001_methods,
        "egsw_weights",
        lambda a, h, s, p: formulas.egsw_weights(a, h, -s, p),
        Verdict.REFUTED,
    ),
    ("claim_31", note_001_runs, "shannon", lambda weights: -TRUE_SHANNON(weights), Verdict.REFUTED),
]


@pytest.mark.parametrize(("id", "module", "name", "fault", "verdict"), FAULTS)
def test_a_planted_fault_changes_the_verdict(id, module, name, fault, verdict, monkeypatch):
    monkeypatch.setattr(module, name, fault)
    assert found(id).verdict == verdict != claims.CLAIMS[id].recorded


def test_valves_that_do_nothing_refute_nothing(monkeypatch):
    for name in ("CLIP_COV", "KL_COV"):
        monkeypatch.setattr(note_000_controls, name, note_000_controls.NONE)
    few = Context(claims.Profile("few", instances=1, examples=20, sweep=0))
    assert note_000_controls._valves(few).verdict == Verdict.HOLDS
    assert "more entropy on 0 and less on 0 and" in note_000_controls._census(Context(QUICK)).text


def test_a_control_that_reads_or_computes_more_is_dearer(monkeypatch):
    monkeypatch.setitem(CONTROLS, "kl_cov", entropy_reader)
    assert "takes more: entropy" in found("claim_09").evidence and found("claim_09").verdict == Verdict.HOLDS
    monkeypatch.undo()
    monkeypatch.setitem(CONTROLS, "clip_cov", CONTROLS["none"])
    assert found("claim_09").verdict == Verdict.HOLDS


def test_the_expected_ranking_follows_the_table(monkeypatch):
    sizes = {size: dict(table) for size, table in note_000_results.TABLE_2.items()}
    accuracies, printed = sizes["7B"]["Clip-Cov"]
    monkeypatch.setattr(note_000_results, "TABLE_2", sizes)
    sizes["7B"]["Clip-Cov"] = tuple(x - 1 for x in accuracies), printed
    assert found("claim_15").verdict == Verdict.HOLDS
    sizes["7B"]["Clip-Cov"] = accuracies, 41.0
    assert found("claim_15").verdict == Verdict.REFUTED


def test_a_wrong_quotation_is_refuted():
    printed = claims.CLAIMS["claim_24"]
    assert printed.judge(Context(QUICK)).verdict == Verdict.HOLDS
    entry = note_000.ENTROPY_MECHANISM["submitted"]
    finding = common.quoted({"submitted": "2025-05-29"}, entry)(Context(QUICK))
    assert finding.verdict == Verdict.REFUTED and "2025-05-28" in finding.counterexample.text


def test_a_control_that_acts_when_sampling_is_seen():
    assert not note_000.acts_when_sampling(CONTROLS["clip_cov"]())
    assert note_000.acts_when_sampling(control(activate=lambda logits: 2 * logits))
    assert note_000.acts_when_sampling(control(sample=lambda sampling, state: SimpleNamespace(temperature=2)))


# --- what is read from stored results -----------------------------------------------------------------------------


def test_smoothness_compares_the_two_curves():
    curve = {"clip_cov": [8.0, 4.0, 2.0, 1.0, 2.0, 1.0], "kl_cov": [8.0, 4.0, 2.0, 1.0, 0.5, 0.25]}
    lines = [{"world": "bandit", "control": c, "entropy": h} for c, values in curve.items() for h in values]
    numbers = found("claim_10", data=tables(curves=lines)).numbers
    assert set(numbers) == {"ratio_bandit", "late_ratio_bandit"}
    assert max(numbers.values()) <= 4 * U  # halving throughout: log2 in equal steps, up to rounding
    # bends of log2: 0, 0, 2, -2 over four points
    assert note_000_results.roughness(curve["clip_cov"]) == pytest.approx(math.log(2) * math.sqrt(8 / 4), rel=1e-14)


def test_a_law_with_the_other_sign_is_reported():
    line = {"world": "bandit", "a": 1, "a_low": -1, "a_high": 3, "r_squared": 0.5, "r_squared_line": 0.4}
    assert "Not every a is positive" in found("claim_21", data=tables(fit=[line])).evidence
    assert "Every a is positive" in found("claim_21", data=tables(fit=[line | {"a_low": 0.5}])).evidence


def test_late_gains_are_those_of_the_curves():
    lines = [{"world": "llm", "control": "none", "return": r} for r in (0.0, 0.5, 0.75, 0.875)]
    lines += [{"world": "llm", "control": "kl_cov", "return": r} for r in (0.0, 1.0)]
    assert found("claim_22", data=tables(curves=lines)).numbers == {
        "late_gain_llm": 0.125,
        "best_minus_none_llm": 0.125,
    }


def test_the_best_entropy_is_taken_run_by_run():
    points = [{"seed": s, "entropy": h, "return": r} for s, h, r in ((0, 4, 0), (0, 1, 1), (1, 2, 1), (1, 1, 0))]
    assert note_000._best_share([{k: str(v) for k, v in p.items()} for p in points]) == (1 / 4 + 2 / 2) / 2


def test_explained_variance_needs_no_fit():
    measured = [1.0, 2.0, 4.0]
    assert note_001.explained(measured, measured) == 1
    assert note_001.explained([-m for m in measured], measured) < 0
    assert note_001.explained([7 / 3] * 3, measured) == pytest.approx(0, abs=1e-15)


CORRELATION = {"world": "bandit", "map": "x", "knob": "y", "with": "exponent", "points": 4, "seeds": 2}


def test_chaos_is_read_from_the_table_or_from_a_world():
    lines = [CORRELATION | {"spearman": value} for value in (-0.5, 0.25, "")]
    stored = found("claim_11", data=tables(chaos_correlation=lines))
    assert stored.numbers["exponent_bandit_lowest"] == -0.5 and stored.numbers["exponent_bandit_highest"] == 0.25
    assert "2 sweeps (1 negative), 1 more" in stored.evidence
    best = [{"world": "cartpole", "gain_low": 2.0}, {"world": "cartpole", "gain_low": math.nan}]
    brief = SimpleNamespace(correlations=[CORRELATION | {"spearman": 0.75}], best=best)
    worlds = {"cartpole": claims.World(chaos=lambda: brief)}
    assert found("claim_11", worlds=worlds).numbers["exponent_bandit_lowest"] == 0.75
    assert "CartPole 1 of 2" in found("claim_12", worlds=worlds).evidence
    assert "Measured" not in found("claim_11").evidence


def test_the_brief_chaos_measurement_of_the_worlds_is_understood():
    from sims.chaos import quick

    brief = quick(0)
    worlds = {"bandit": claims.World(chaos=lambda: brief)}
    for id in ("claim_11", "claim_14"):
        told = [name for name in found(id, worlds=worlds).numbers if "cartpole" in name]
        assert told, id
    assert found("claim_12", worlds=worlds).numbers["sweeps_cartpole"] >= 1


# --- the parts, against independent arithmetic --------------------------------------------------------------------


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


@given(st.floats(1e-6, math.exp(-1) - 1e-6))
def test_the_inverse_of_the_discrete_activation(h):
    z = formulas._inverse(h)
    reference = float(special.lambertw(-h, -1).real)
    # near h = 1/e the root is double: its error is that of ln h over the slope 1 - 1/w
    slope = 1 - 1 / -reference
    assert abs(z - reference) <= 64 * U * abs(reference) ** 2 / slope


@given(st.lists(st.integers(-30, 30), min_size=2, max_size=4), st.integers(1, 6))
def test_the_discrete_activation_keeps_its_floor_and_its_order(raw, tenths):
    z = formulas.era_discrete(raw, tenths / 10, 4.0)
    pi = np.exp(z) / np.exp(z).sum()
    assert -(pi * np.log(pi)).sum() >= tenths / 10 - 1e-12
    assert max(z) <= -1
    for a in range(len(raw)):
        for b in range(len(raw)):
            assert not (raw[a] > raw[b] and z[a] < z[b] - 1e-12)


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
