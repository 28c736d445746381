"""Statements certified in ball arithmetic, the arithmetic against 60-digit numbers, and the refusals."""

import importlib
import math

import mpmath
import pytest
import strategies
import torch
from exact import LAST_DIGITS
from exact import Policy as Oracle
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory import balls, certify, remainder

FORMS = {
    "Lemma 1": {"first order", "second order"},
    "Proposition 1": {"exact"},
    "Theorem 1": {"first order", "second order"},
    "Theorem 2": {"exact", "first order", "second order"},
}


def close(ball, exact, size=1):
    """The ball contains the oracle's number, up to the oracle's last digits, and is itself narrow."""
    mantissa, exponent = (int(x) for x in ball.mid().man_exp())
    distance = abs(mpmath.ldexp(mantissa, exponent) - exact)
    radius = mpmath.mpf(balls.above(ball.rad()))
    return distance <= radius + LAST_DIGITS * size and radius <= mpmath.mpf(10) ** -40 * size


@given(strategies.small_pairs())
def test_balls_contain_the_oracles_numbers(pair):
    z, d = (x.tolist() for x in pair)
    oracle, size = Oracle(z), 1 + max(abs(x) for x in d) ** 2
    with balls.precision(192):
        policy = balls.Policy(z)
        assert policy.support == oracle.support
        change = policy.exact(d)
        assert close(policy.entropy, oracle.h)
        for ball, exact in zip(policy.log_probs, oracle.logp, strict=True):
            assert close(ball, exact, 100)
        assert close(policy.first_order(change), oracle.first_order(d), size)
        assert close(policy.second_order(change), oracle.second_order(d), size)
        assert close(policy.entropy_change(change), oracle.entropy_change(d))
        assert close(policy.spread(change), oracle.spread(d), size)
        for ball, exact in zip(policy.gradient_step(change, 0.5), oracle.gradient_step(d, 0.5), strict=True):
            assert close(ball, exact, size)


@given(strategies.small_pairs(dtypes=(torch.float64,)), strategies.generators(), st.sampled_from([1e-6, 0.5, 30.0]))
def test_every_statement_is_certified_on_every_kind_of_instance(pair, rng, step_size):
    z, d = pair
    records = certify.certify(z.tolist(), d.tolist(), rng.normal(size=len(z)), step_size)
    assert {name: {r.form for r in records if r.statement == name} for name in FORMS} == FORMS
    assert {r.verdict for r in records} == {certify.HOLDS}, records
    for record in records:
        assert record.error[0] <= record.error[1] and record.bound[0] <= record.bound[1]
        if record.form != "exact" and record.bound[0] > 0:
            assert record.error[1] <= record.bound[1]


def test_hostile_instances_are_decided_too():
    inf = math.inf
    for z, d, reward in (
        ([0.0, -inf, -inf], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),  # one action left: nothing can change
        ([0.0, 0.0, 1.0], [5.0, 5.0, 5.0], [1.0, 1.0, 1.0]),  # a constant
        ([0.0, -800.0, 3.0], [1e-300, 0.0, 0.0], [1e-200, 0.0, 0.0]),  # the bound itself is below the floats
        ([40.0, -inf, 0.0], [0.1, math.nan, 9.0], [0.0, inf, 1.0]),  # what stands at a masked action does not count
    ):
        assert {r.verdict for r in certify.certify(z, d, reward)} == {certify.HOLDS}


def worst_instance(actions):
    """A policy and a small change whose second derivative comes near the first-order constant."""
    best = max(
        (q * (1 - q) * (1 + (1 - 2 * q) * math.log((actions - 1) * q / (1 - q))), q)
        for q in (i / 1000 for i in range(1, 1000))
    )
    share = best[1]
    return [math.log(share), *[math.log((1 - share) / (actions - 1))] * (actions - 1)], [1e-3, *[0.0] * (actions - 1)]


def test_a_constant_that_is_too_small_is_certified_to_fail(monkeypatch):
    z, d = worst_instance(10)
    holds = certify.certify(z, d, d, statements=("Lemma 1",))
    assert {r.verdict for r in holds} == {certify.HOLDS}
    # the change is not infinitesimal: 1e-3 costs at most the third derivative's share, D_K R^3 / 6
    first = holds[0]
    missing = remainder.second_order_remainder_constant(10) * 1e-9 / 6
    assert first.error[0] >= first.bound[1] * (0.3352 / remainder.remainder_constant(10)) - missing
    monkeypatch.setattr(remainder, "remainder_constant", lambda actions: 0.33)
    monkeypatch.setattr(remainder, "second_order_remainder_constant", lambda actions: 1e-6)
    broken = certify.certify(z, d, d, statements=("Lemma 1",))
    assert {r.verdict for r in broken} == {certify.VIOLATED}


def test_the_uncentred_proposition_is_certified_to_fail(monkeypatch):
    instance = ([0.3, -0.4, 1.0], [0.0] * 3, [1.0, 1.0, 2.0])
    assert [r.verdict for r in certify.certify(*instance, statements=("Proposition 1",))] == [certify.HOLDS]
    monkeypatch.setattr(
        balls.Policy,
        "gradient_step",
        lambda self, reward, size: [size * p * r for p, r in zip(self.probabilities, reward, strict=True)],
    )
    (record,) = certify.certify(*instance, statements=("Proposition 1",))
    assert record.verdict == certify.VIOLATED and record.error[0] > 0


def test_what_no_precision_decides_is_left_undecided():
    # the second probability is e^-5000, so the step and both sides are smaller than 2^-8192
    verdicts = {r.form: r.verdict for r in certify.certify([0.0, -9e3], [0.0, 0.0], [0.0, 1.0], 1.0, ("Theorem 1",))}
    assert set(verdicts.values()) == {certify.UNDECIDED}


def test_states_are_certified_one_by_one():
    generator = torch.Generator().manual_seed(0)
    z, d, r = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    for name in certify.STATEMENTS:
        records = list(certify.certify_states(name, z, d, r, 0.1))
        assert len(records) == 3
        alone = [certify.certify(z[i].tolist(), d[i].tolist(), r[i].tolist(), 0.1, (name,)) for i in range(3)]
        assert records == alone


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([0.0], [0.0], [0.0]), "2 to 64 actions, got 1"),
        (([0.0] * 65, [0.0] * 65, [0.0] * 65), "2 to 64 actions, got 65"),
        (([0.0, math.nan], [0.0] * 2, [0.0] * 2), "logits must be finite or -inf, got nan"),
        (([0.0, math.inf], [0.0] * 2, [0.0] * 2), "logits must be finite or -inf, got inf"),
        (([-math.inf] * 2, [0.0] * 2, [0.0] * 2), "every logit is -inf"),
        (([0.0] * 2, [0.0] * 3, [0.0] * 2), "the vector has 3 entries and the logits 2"),
        (([0.0] * 2, [0.0, math.nan], [0.0] * 2), "must be finite, got nan"),
        (([0.0] * 2, [0.0] * 2, [0.0] * 2, 1.0, ("Lemma 2",)), "no statement 'Lemma 2' to certify"),
        (([0.0] * 2, [0.0] * 2, [0.0] * 2, math.inf), "step_size must be finite, got inf"),
    ],
)
def test_bad_instances_are_refused_in_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        certify.certify(*arguments)


def test_without_flint_the_line_that_installs_it_is_named(monkeypatch):
    def absent(name, *rest):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'entropy-theory\[certified\]'"):
        certify.certify([0.0, 1.0], [0.0, 1.0], [0.0, 1.0])
