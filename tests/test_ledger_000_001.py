"""Claims 1 to 31: each comes out as recorded from two seeds, and differently once what it uses has a fault."""

import functools
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from entropy_theory import claims, theorems
from entropy_theory.claims import Context, Verdict
from entropy_theory.claims.ledger import (
    common,
    formulas,
    note_000,
    note_000_chaos,
    note_000_controls,
    note_000_results,
    note_001,
    note_001_methods,
    note_001_runs,
)
from entropy_theory.cli.worlds import committed_data
from entropy_theory.control import control
from entropy_theory.controls import CONTROLS
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
    assert as_committed(id, 1) == found(id, 1, committed_data)


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
