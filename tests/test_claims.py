"""The check itself: it passes on the theory, fails on every planted fault, and refuses what is no policy."""

import math
import subprocess
import sys

import pytest
import torch

from entropy_theory import claims, remainder, theorems
from entropy_theory.claims import bounded, instances, order, step, theorem_2

NAMES = ["Lemma 1", "Proposition 1", "Theorem 1", "Theorem 2"]
FEW = 150
"""Instances for tests that only need every number of actions and most kinds of policies."""


def verdicts(results):
    """Statement -> verdict."""
    return {r.statement: r.verdict for r in results}


@pytest.fixture(scope="module")
def results():
    return claims.check(2000, seed=1)


def test_every_statement_holds_on_drawn_instances(results):
    assert [r.statement for r in results] == NAMES
    assert claims.holds(results)
    for r in results:
        assert 0 < r.worst_ratio <= 1 and r.violations == 0 and r.counterexample is None
    assert results[0].instances == results[1].instances == results[2].instances == 2000
    # Theorem 2 leaves out large policies for which the closed form of F^+ has no digits left
    large = [s for s in instances.generate(2000, 1) if s.logits.shape[1] > theorem_2.DENSE_ACTIONS]
    left_out = sum(int((~theorem_2.applies(s)).sum()) for s in large)
    assert 0 < left_out < sum(len(s.logits) for s in large)
    assert results[3].instances == 2000 - left_out


def test_measured_orders_are_two_and_three(results):
    # the median of hundreds of states: nearer to its whole number than to the halves beside it by far
    for r in (results[0], results[2], results[3]):
        assert abs(r.order - 2) < 1 / 8 and abs(r.order_second - 3) < 1 / 8
        assert r.order_states > 100 and r.order_second_states > 100
    assert results[1].order is None and results[1].worst_ratio_second is None


def test_the_check_is_a_function_of_seed_and_number():
    # 12 instances: only policies of few actions, which is quick
    assert claims.check(12, seed=3) == claims.check(12, seed=3)
    assert claims.check(12, seed=3) != claims.check(12, seed=4)


def test_world_states_are_judged_beside_the_drawn_ones(rng_states):
    world = {"bandit": rng_states, "llm": claims.WorldStates(rng_states.logits.float())}
    seen = []
    results = claims.check(20, world_states=world, progress=lambda done, total: seen.append((done, total)))
    assert [(r.statement, r.where) for r in results] == [(n, w) for n in NAMES for w in ("random", "bandit", "llm")]
    assert claims.holds(results)
    assert all(r.instances == 6 for r in results if r.where != "random")
    assert seen[-1] == (4 * 32, 4 * 32) and seen == sorted(seen)


@pytest.fixture
def rng_states():
    generator = torch.Generator().manual_seed(0)
    z, d, a = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    z[0, 1:] = -torch.inf
    z[1, 2] = -torch.inf
    d[1, 2] = torch.nan  # the change of a masked logit is -inf - -inf; it must not count
    return claims.WorldStates(z, d, a)


# --- the check can fail -------------------------------------------------------------------------------------------

FIRST, SECOND = theorems.entropy_change_first_order, theorems.entropy_change_second_order
THEOREM_1, THEOREM_2, FISHER = theorems.theorem_1, theorems.theorem_2, theorems.fisher_matrix
FAULTS = {
    "sign of Lemma 1": (
        "entropy_change_first_order",
        lambda z, d: -FIRST(z, d),
        {"Lemma 1", "Theorem 1", "Theorem 2"},
    ),
    "Lemma 1 wrong by a hundredth": (
        "entropy_change_first_order",
        lambda z, d: 1.01 * FIRST(z, d),
        {"Lemma 1", "Theorem 1", "Theorem 2"},
    ),
    "mean over the states": (
        "entropy_change_first_order",
        lambda z, d: FIRST(z, d).mean().expand(len(z)),
        {"Lemma 1", "Theorem 1", "Theorem 2"},
    ),
    "float32 inside": (
        "entropy_change_first_order",
        lambda z, d: FIRST(z.float(), d.float()).double(),
        {"Lemma 1", "Theorem 1", "Theorem 2"},
    ),
    "the factor 1/2 of the second order left out": (
        "entropy_change_second_order",
        lambda z, d: FIRST(z, d) + 2 * (SECOND(z, d) - FIRST(z, d)),
        {"Lemma 1", "Theorem 1", "Theorem 2"},
    ),
    "the advantage of Proposition 1 not centred": (
        "policy_gradient_step",
        lambda z, a, eta: eta * torch.softmax(z, -1) * a,
        {"Proposition 1", "Theorem 1"},
    ),
    "Theorem 1 for the natural gradient": (
        "theorem_2",
        lambda z, a, eta: THEOREM_1(z, a, eta),
        {"Theorem 2"},
    ),
    "Theorem 2 for the plain gradient": (
        "theorem_1",
        lambda z, a, eta: THEOREM_2(z, a, eta),
        {"Theorem 1"},
    ),
    "pseudo-inverse of a large policy without 1/pi": (
        "fisher_pseudo_inverse_product",
        lambda z, v: v - v.mean(-1, keepdim=True),
        {"Theorem 2"},
    ),
    # (a wrong rank-one part of F would not do: diag(pi) - x pi pi^T gives the same policy for every x, theory.md 5)
    "Fisher matrix too small by 2": (
        "fisher_matrix",
        lambda z: FISHER(z) / 2,
        {"Theorem 2"},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refuted(monkeypatch, fault):
    name, wrong, guilty = FAULTS[fault]
    monkeypatch.setattr(theorems, name, wrong)
    results = claims.check(FEW)
    assert not claims.holds(results)
    assert {r.statement for r in results if r.verdict == "refuted"} == guilty


def test_a_natural_step_that_assumes_nothing_but_is_wrong_is_refuted(monkeypatch):
    # the plain gradient in place of F^+ gradient
    monkeypatch.setattr(theorem_2, "natural_gradient", lambda z, g: g)
    assert verdicts(claims.check(FEW)) == dict(zip(NAMES, ["holds", "holds", "holds", "refuted"], strict=True))


def test_descent_in_place_of_ascent_is_refuted(monkeypatch):
    # the sign slip of section 3.2 of the paper
    right = step.sgd_step
    monkeypatch.setattr("entropy_theory.claims.proposition_1.sgd_step", lambda z, r, eta: 2 * z - right(z, r, eta))
    found = verdicts(claims.check(FEW))
    assert found["Proposition 1"] == found["Theorem 1"] == "refuted"


def test_an_error_that_is_not_a_number_is_a_violation(monkeypatch):
    monkeypatch.setattr(theorems, "entropy_change_first_order", lambda z, d: FIRST(z, d) * torch.nan)
    assert verdicts(claims.check(20))["Lemma 1"] == "refuted"


def test_the_smallest_violated_instance_can_be_rebuilt(monkeypatch):
    monkeypatch.setattr(theorems, "entropy_change_first_order", lambda z, d: -FIRST(z, d))
    example = claims.check(FEW, seed=5)[0].counterexample
    # two actions are enough for a wrong sign, and numbers of two digits; the stored numbers violate the bound again
    assert len(example["logits"]) == 2
    assert all(x == float(f"{x:.2g}") for key in ("logits", "change", "advantage") for x in example[key])
    row = {k: torch.tensor([example[k]], dtype=torch.float64) for k in ("logits", "change", "advantage")}
    evidence = claims.STATEMENTS["lemma_1"].check(claims.States(**row, step_size=example["step_size"]))
    assert float(evidence.first.error) == example["first"]["error"] > example["first"]["bound"]


def test_the_snippet_of_a_violated_instance_runs_as_it_is(monkeypatch):
    monkeypatch.setattr(theorems, "theorem_2", lambda z, a, eta: THEOREM_1(z, a, eta))
    example = claims.check(FEW, seed=5)[-1].counterexample
    # in a fresh process nothing is patched: the same instance, and the statement holds there
    run = subprocess.run([sys.executable, "-c", example["snippet"]], capture_output=True, text=True, check=True)
    words = run.stdout.split()
    assert words[:3] == ["first", "order:", "error"] and float(words[3]) <= float(words[5])
    assert float(words[5]) == pytest.approx(example["first"]["bound"], rel=1e-6)


# --- what is refused ----------------------------------------------------------------------------------------------

GOOD = torch.zeros(2, 3, dtype=torch.float64)


def spoiled(value):
    """GOOD with one entry replaced."""
    z = GOOD.clone()
    z[1, 2] = value
    return z


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (claims.WorldStates(spoiled(math.nan)), r"llm: logits .* nan at state 1, action 2"),
        (claims.WorldStates(spoiled(math.inf)), r"llm: logits .* inf at state 1, action 2"),
        (claims.WorldStates(torch.zeros(2, 1)), r"llm: .* at least 2 actions, got 1"),
        (claims.WorldStates(torch.zeros(0, 3)), r"llm: .* not be empty"),
        (claims.WorldStates(torch.zeros(3)), r"llm: .* shape"),
        (claims.WorldStates(torch.full((1, 3), -torch.inf)), r"llm: state 0 has no action"),
        (claims.WorldStates(GOOD, change=torch.zeros(2, 4)), r"llm: change has shape \[2, 4\]"),
        (claims.WorldStates(GOOD, change=spoiled(math.nan)), r"llm: change must be finite"),
        (claims.WorldStates(GOOD, advantage=spoiled(-math.inf)), r"llm: advantage must be finite"),
    ],
)
def test_states_that_are_no_policies_are_refused_in_one_sentence(states, message):
    with pytest.raises(ValueError, match=message) as raised:
        claims.check(10, world_states={"llm": states})
    assert "\n" not in str(raised.value)


def test_no_instances_are_refused():
    with pytest.raises(ValueError, match="at least 0, got -5"):
        claims.check(-5)
    with pytest.raises(ValueError, match="nothing to judge"):
        claims.check(0)


def test_checking_in_chunks_changes_nothing(monkeypatch):
    whole = claims.check(40, seed=2)
    monkeypatch.setattr(bounded, "_CHUNK", 10)
    for a, b in zip(claims.check(40, seed=2), whole, strict=True):
        assert (a.instances, a.verdict) == (b.instances, b.verdict)
        # BLAS may sum rows in another order when fewer are at hand
        assert a.worst_ratio == pytest.approx(b.worst_ratio, rel=1e-3)


# --- the instances ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 5, 19, 20, 777, 20_000])
def test_as_many_instances_as_asked(number):
    counts = instances.sizes(number)
    assert sum(counts.values()) == number and min(counts.values()) >= 1
    assert number < len(instances.ACTIONS) or list(counts) == list(instances.ACTIONS)


def test_every_number_of_actions_occurs_and_rows_match():
    batches = instances.generate(500, 0)
    assert {s.logits.shape[1] for s in batches} == set(instances.ACTIONS)
    assert min(instances.ACTIONS) == 2 and max(instances.ACTIONS) == 10_000
    assert sum(len(s.logits) for s in batches) == 500
    for s in batches:
        assert s.logits.shape == s.change.shape == s.advantage.shape
        assert s.logits.dtype == s.change.dtype == s.advantage.dtype == torch.float64


def test_the_special_cases_really_occur():
    batches = instances.generate(4000, 0)
    finite = [torch.where(torch.isfinite(s.logits), s.logits, 0.0) for s in batches]
    assert max(float(z.abs().max()) for z in finite) <= instances.LARGEST_LOGIT
    assert max(float(z.abs().max()) for z in finite) > 0.99 * instances.LARGEST_LOGIT
    sizes = torch.cat([s.change.abs().amax(-1) for s in batches])
    moved = sizes[sizes > 0]
    assert moved.min() < 2e-6 and moved.max() > 5 and moved.min() >= 1e-6 * 0.999 and moved.max() <= 10 * 1.001
    support = torch.cat([torch.isfinite(s.logits).sum(-1) for s in batches])
    assert (support == 1).any()  # exactly one-hot
    widths = torch.cat([remainder.spread(s.logits, torch.isfinite(s.logits)) for s in batches])
    assert ((widths == 0) & (support > 1)).any()  # uniform
    assert (widths == 2 * instances.LARGEST_LOGIT).any()  # nearly one-hot at +-50
    wide = [s for s in batches if s.logits.shape[1] >= 30]
    levels = torch.tensor([len(row.unique()) for s in wide for row in s.logits])
    assert (levels == 2).any() and (levels == 7).any()  # two levels, ties
    changes = torch.tensor([len(row.unique()) for s in wide for row in s.change])
    assert (changes == 2).any()  # two-valued or sparse
    rewards = [row for s in wide for row in s.advantage]
    assert any(set(row.tolist()) == {0.0, 1.0} for row in rewards)
    assert any(float(row.abs().max() / row.abs().min()) > 1e4 for row in rewards if row.abs().min() > 0)


@pytest.mark.parametrize("kind", instances.LOGITS)
def test_every_kind_of_policy_has_an_action_to_take(kind):
    z = instances.LOGITS[kind](50, 7, torch.Generator().manual_seed(0))
    assert z.shape == (50, 7) and torch.isfinite(z).any(-1).all() and not torch.isnan(z).any()
    assert not (z == torch.inf).any()


# --- order of convergence -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_the_slope_of_a_pure_power_is_its_exponent(power):
    scale = torch.tensor([0.3, 2.0], dtype=torch.float64)
    points = [
        claims.Comparison(scale * 2.0 ** (-power * k), scale * 0 + 1, scale * 1e-30) for k in range(order.HALVINGS)
    ]
    assert torch.allclose(order._slopes(points), torch.full((2,), float(power), dtype=torch.float64), rtol=1e-12)


def test_points_near_the_rounding_bound_do_not_count():
    # error 2^-2k, rounding 1e-3: above 100 times rounding are k = 0, 1 only, so there is no slope
    one = torch.ones(1, dtype=torch.float64)
    points = [claims.Comparison(one * 4.0**-k, one, one * 1e-3) for k in range(order.HALVINGS)]
    assert len(order._slopes(points)) == 0
