"""The branch and bound that proves the remainder tables: on known maxima, on the tables, and on a wrong entry."""

import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory import certify_constants, remainder_tables
from entropy_theory.balls import above, below, precision

QUICK = (2, 3, 5, 10, 1000)
ENTRIES = sorted(remainder_tables.FIRST_ORDER) if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else QUICK


@pytest.mark.parametrize("actions", ENTRIES)
def test_table_entries_are_proved_and_not_needlessly_large(actions):
    for _, table, prove in certify_constants.TABLES:
        found = prove(actions)
        assert found.lower <= found.upper <= table[actions] <= found.lower * 1.001


def test_every_entry_has_a_partner_and_small_numbers_of_actions_their_own():
    assert set(remainder_tables.FIRST_ORDER) == set(remainder_tables.SECOND_ORDER)
    assert set(range(2, remainder_tables.CONVEX_FROM + 1)) <= set(remainder_tables.FIRST_ORDER)


def test_known_maxima_are_enclosed():
    def parabola(box):  # x (1 - x) + y (1 - y), largest 1/2
        x, y = (certify_constants.ball(side) for side in box)
        return x * (1 - x) + y * (1 - y)

    found = certify_constants.supremum([(parabola, 2)], gap=1e-4)
    assert found.lower <= 0.5 <= found.upper
    with precision(64):
        x_log_x = certify_constants.p_log_p(certify_constants.ball((0.0, 1.0)))
        assert below(x_log_x) <= -math.exp(-1) and above(x_log_x) >= 0


def groups_value(case, a, e):
    """Step 6 of docs/remainder.md in floats."""
    masses = (a, e, 1 - a - e)
    squares = ((1 - a) ** 2, a**2, 0.0)
    total = sum(p * y for p, y in zip(masses, squares, strict=True))
    kappa = [case.sign * p * (total - y) for p, y in zip(masses, squares, strict=True)]
    value = case.sign * total - sum(k * math.log(p) for k, p in zip(kappa, masses, strict=True))
    if case.counts is not None:
        return value + sum(k * math.log(n) for k, n in zip(kappa, case.counts, strict=True))
    present = [k for k in kappa if k > 0]
    return value + sum(k * math.log((case.actions - 1) * k / sum(present)) for k in present)


@given(
    st.tuples(st.floats(0.01, 0.95), st.floats(0.01, 0.95)).filter(lambda x: sum(x) < 0.99),
    st.floats(0, 0.05),
    st.sampled_from([1, -1]),
    st.sampled_from([(1, 2, 3), (1, 1, 1), None]),
)
def test_an_enclosure_contains_the_values_on_its_box(point, width, sign, counts):
    case = certify_constants.Groups(sign, counts, 6 if counts == (1, 2, 3) else 3 if counts else 12)
    box = tuple((x, x + width) for x in point)
    with precision(64):
        ball = case(box)
        inside = (point, tuple(x + width for x in point), (point[0] + width, point[1]))
        for a, e in inside:
            if a + e < 0.999:
                # the float formula has about thirty operations on numbers below 10
                assert below(ball) - 1e-13 <= groups_value(case, a, e) <= above(ball) + 1e-13


@pytest.mark.parametrize("actions", [3, 7, 30])
def test_the_bound_is_above_what_policies_and_changes_reach(actions):
    # the quantity itself, at random policies and changes, against the supremum that should bound it
    rng = np.random.default_rng(actions)
    first, second = (prove(actions).upper for _, _, prove in certify_constants.TABLES)
    for _ in range(300):
        p = rng.dirichlet(np.full(actions, rng.choice([0.1, 0.3, 1.0])))
        d = rng.choice([rng.random(actions), (rng.random(actions) < 0.3).astype(float)])
        d = (d - d.min()) / max(d.max() - d.min(), 1e-300)
        logp = np.log(np.maximum(p, 1e-300))
        c, y = logp - (p * logp).sum(), d - (p * d).sum()
        assert abs((p * (1 + c) * y**2).sum()) <= first + 1e-12
        third = -2 * (p * y**3).sum() - (p * c * y**3).sum() + 3 * (p * c * y).sum() * (p * y**2).sum()
        assert abs(third) <= second + 1e-12


def test_an_entry_that_is_too_small_is_not_proved(monkeypatch, capsys):
    assert certify_constants.main(["--actions", "3"]) == 0
    monkeypatch.setitem(remainder_tables.FIRST_ORDER, 3, 0.2652)
    assert certify_constants.main(["--actions", "3"]) == 1
    assert "0.26520  NOT PROVED" in capsys.readouterr().out


def test_an_unknown_entry_is_refused(capsys):
    with pytest.raises(SystemExit) as refused:
        certify_constants.main(["--actions", "21"])
    assert refused.value.code == 2 and "no entry for [21] actions" in capsys.readouterr().err


def test_what_does_not_settle_says_so(monkeypatch):
    monkeypatch.setattr(certify_constants, "MOST_BOXES", 100)
    with pytest.raises(RuntimeError, match="100 boxes do not settle the maximum"):
        certify_constants.first_order(5)
