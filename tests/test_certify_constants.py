"""The proofs of the remainder tables: on known maxima, on the tables, on wrong entries, and step by step."""

import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory import certify_constants, remainder_tables
from entropy_theory.balls import above, below, flint, precision
from entropy_theory.certify_constants import __main__ as command
from entropy_theory.certify_constants import boxes, few_actions, many_actions

QUICK = (2, 3, 5, 10, 1000)
ENTRIES = sorted(remainder_tables.FIRST_ORDER) if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else QUICK
FLOATS = 1e-12
"""Rounding of the float formulas below: under a thousand operations on numbers below 100, 2^-53 each."""


@pytest.mark.parametrize("actions", ENTRIES)
def test_table_entries_are_proved_and_not_needlessly_large(actions):
    for _, table, prove in command.TABLES:
        found = prove(actions)
        assert found.lower <= found.upper <= table[actions] <= found.lower * 1.001


def test_the_slope_beyond_the_table_is_proved():
    for tilt, found in certify_constants.deviations().items():
        assert found.lower <= found.upper == many_actions.DEVIATION[tilt] <= found.lower * 1.005
    assert many_actions.DEVIATION[0.0] == remainder_tables.FIRST_ORDER_SLOPE


def test_small_numbers_of_actions_have_their_own_entries():
    assert set(remainder_tables.FIRST_ORDER) == set(remainder_tables.SECOND_ORDER)
    assert set(range(2, remainder_tables.CONVEX_FROM + 1)) <= set(remainder_tables.FIRST_ORDER)


# --- enclosures ---------------------------------------------------------------------------------------------------


def test_known_maxima_are_enclosed():
    def parabola(box):  # x (1 - x) + y (1 - y), largest 1/2
        x, y = (boxes.ball(side) for side in box)
        return x * (1 - x) + y * (1 - y)

    found = boxes.maximise([(parabola, 2)], gap=1e-4)
    assert found.lower <= 0.5 <= found.upper
    with precision(64):
        x_log_x = boxes.p_log_p(boxes.ball((0.0, 1.0)))
        assert below(x_log_x) <= -math.exp(-1) and above(x_log_x) >= 0


@given(st.integers(2, 10**6), st.floats(1e-6, 0.5), st.floats(1e-3, 1))
def test_the_gain_is_the_largest_value_it_is_stated_to_be(actions, deviation, width):
    b = np.minimum(deviation, width) * np.linspace(0, 1, 2001)[1:-1]
    sampled = (b * np.log((actions - 1) * (width - b) / b)).max()
    with precision(64):
        gain = boxes.Gain(actions)(*(flint().arb(x) for x in (deviation, width)))
        # the slope in B is above -infinity only towards B = 0 and B = width; there the function is small
        assert below(gain) >= sampled - FLOATS
        assert above(gain) <= max(sampled, 0) * 1.01 + 1e-3 * width * math.log(actions)


def groups_value(case, a, e):
    """Step 8 in floats."""
    masses = (a, e, 1 - a - e)
    squares = ((1 - a) ** 2, a**2, 0.0)
    total = sum(p * y for p, y in zip(masses, squares, strict=True))
    terms = zip(masses, squares, case.counts, strict=True)
    return case.sign * (total + sum(p * (total - y) * math.log(n / p) for p, y, n in terms))


@given(
    st.tuples(st.floats(0.01, 0.95), st.floats(0.01, 0.95)).filter(lambda x: sum(x) < 0.99),
    st.sampled_from([0.05, 1e-3, 1e-5]),
    st.sampled_from([1, -1]),
    st.sampled_from([(1, 2, 3), (1, 1, 1), (4, 1, 1)]),
)
def test_an_enclosure_contains_the_values_on_its_box(point, width, sign, counts):
    case = few_actions.Groups(sign, counts)
    box = tuple((x, x + width) for x in point)
    with precision(64):
        values = case(box)
        for a, e in (point, tuple(x + width for x in point), (point[0] + width, point[1])):
            if a + e < 0.999:
                assert below(values) - FLOATS <= groups_value(case, a, e) <= above(values) + FLOATS


@given(
    st.tuples(st.floats(0.05, 0.9), st.floats(0.05, 0.9)).filter(lambda x: sum(x) < 0.95),
    st.sampled_from([(1, 2, 3), (1, 1, 1), (4, 1, 1)]),
)
def test_the_slope_is_that_of_the_function(point, counts):
    # the mean value theorem: a difference quotient is a value of the slope in between
    case, step = few_actions.Groups(1, counts), 2.0**-20
    with precision(200) as arithmetic:
        for moved, direction in zip(((step, 0.0), (0.0, step)), case.directions(), strict=True):
            ends = [tuple((x + t * dx,) * 2 for x, dx in zip(point, moved, strict=True)) for t in (0, 1)]
            low, high = (case.by_terms(case.masses(end)) for end in ends)
            masses = case.masses(tuple((a, b) for (a, _), (b, _) in zip(*ends, strict=True)))
            slope = few_actions.slope(masses, case.log_counts(masses), direction)
            assert slope.overlaps((high - low) / arithmetic.arb(step)) and balls_width(slope) < 1e-3


def balls_width(x):
    """Diameter of a ball."""
    return above(x) - below(x)


# --- what is bounded, at real policies ----------------------------------------------------------------------------


def draw(actions, rng):
    """(pi, c, y): a policy, its centred log-probabilities, and a centred change of spread 1."""
    p = rng.dirichlet(np.full(actions, rng.choice([0.1, 0.3, 1.0]))) + 1e-9
    p /= p.sum()
    d = rng.random(actions) if rng.random() < 0.5 else (rng.random(actions) < 0.3).astype(float)
    d = (d - d.min()) / max(d.max() - d.min(), 1e-300)
    logp = np.log(p)
    return p, logp - (p * logp).sum(), d - (p * d).sum()


@pytest.mark.parametrize("actions", [3, 7, 30])
def test_the_bounds_are_above_what_policies_and_changes_reach(actions):
    rng = np.random.default_rng(actions)
    first, second = (prove(actions).upper for _, _, prove in command.TABLES)
    for _ in range(300):
        p, c, y = draw(actions, rng)
        assert abs((p * (1 + c) * y**2).sum()) <= first + FLOATS
        third = -2 * (p * y**3).sum() - (p * c * y**3).sum() + 3 * (p * c * y).sum() * (p * y**2).sum()
        assert abs(third) <= second + FLOATS


@given(st.integers(2, 40), st.integers(0, 2**32 - 1), st.floats(-1, 4), st.floats(-3, 3), st.floats(-5, 15))
def test_any_hint_bounds_the_curvature(actions, seed, rho, lam, mu):
    # steps 11 to 13: whatever the three numbers, the expectation of the dual function is at least the quantity
    p, c, y = draw(actions, np.random.default_rng(seed))
    s = (p * y**2).sum()
    x = s - y**2
    outer = x < 0
    alpha, beta = math.log(actions - 1) + rho - 1, math.exp(-rho)
    inner = np.maximum(x, 0) * np.log(np.maximum(x, 1e-300))
    value = s + np.where(outer, -alpha * x + beta, inner)
    assert (p * (1 + c) * y**2).sum() <= (p * value).sum() + FLOATS
    assert (p * value).sum() <= (value - lam * y - mu * (y**2 - s)).max() + FLOATS * (1 + abs(lam) + abs(mu))
    # steps 15 and 16
    deviation = (p * np.maximum(-x, 0)).sum()
    for tilt, most in many_actions.DEVIATION.items():
        assert deviation - tilt * s <= most + FLOATS
    assert deviation <= s + FLOATS


def dual_maximum(actions, cell, hint, tilt):
    """Step 13 in floats: the largest value on a grid of the cell's means, variances and changes."""
    best = -math.inf
    for m in np.linspace(*cell.mean, 5):
        for u in np.linspace(*cell.reach, 5):
            s, y = u * u * m * (1 - m), np.linspace(-m, 1 - m, 401)
            y = np.append(y, [x for x in (math.sqrt(s), -math.sqrt(s)) if -m <= x <= 1 - m])
            x, outer = np.maximum(s - y * y, 1e-300), y * y > s
            if actions is None:
                value = np.where(outer, y * y - s, 0.0) - tilt * s
            else:
                over = (math.log(actions - 1) + hint.rho - 1) * (y * y - s) + math.exp(-hint.rho)
                value = s + np.where(outer, over, x * np.log(x))
            best = max(best, float((value - hint.lam * y - hint.mu * (y * y - s)).max()))
    return best


@given(
    st.tuples(st.floats(0.02, 0.45), st.floats(0.05, 0.95), st.floats(1e-4, 0.05)),
    st.tuples(st.floats(-0.3, 0.3), st.floats(-1, 1), st.floats(-2, 2)),
    st.sampled_from([(20, 0.0), (1000, 0.0), (None, 0.0), (None, 0.5)]),
)
def test_a_cell_is_settled_above_its_maximum_and_never_below(place, shift, quantity):
    (m, u, width), dual = place, many_actions.Dual(*quantity)
    cell = many_actions.Cell((m, m + width), (u, u + width))
    with precision(64):
        found = many_actions.find_hint(dual, cell) or many_actions.Hint(2.0, 0.0, 0.0)
        for scale in (0, 1):  # the hint found, and a poor one: both are checked, neither is trusted
            hint = many_actions.Hint(*(x + scale * y for x, y in zip(found, shift, strict=True)))
            largest = dual_maximum(dual.actions, cell, hint, dual.tilt)
            assert not many_actions.settles(dual, cell, hint, flint().arb(largest - FLOATS))
            assert many_actions.settles(dual, cell, hint, flint().arb(largest + 1 + abs(largest)))


# --- wrong entries ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("actions", "too_small"), [(3, 0.2652), (10, 0.33523), (1000, 0.7336)])
def test_an_entry_that_is_too_small_is_not_proved(monkeypatch, capsys, actions, too_small):
    assert command.main(["--actions", str(actions)]) == 0
    monkeypatch.setitem(remainder_tables.FIRST_ORDER, actions, too_small)
    assert command.main(["--actions", str(actions)]) == 1
    assert f"{too_small:.5f}  NOT PROVED" in capsys.readouterr().out


def test_a_false_bound_is_never_settled(monkeypatch):
    monkeypatch.setattr(many_actions, "MOST_CELLS", 600)
    with precision(64), pytest.raises(RuntimeError, match="600 cells do not prove"):
        many_actions.prove(many_actions.Dual(1000), 0.999 * below(many_actions.two_valued(1000)))
    monkeypatch.setattr(boxes, "MOST_BOXES", 100)
    with pytest.raises(RuntimeError, match="100 boxes do not settle the maximum"):
        certify_constants.first_order(5)


def test_without_flint_the_command_says_what_to_install(monkeypatch, capsys):
    def absent():
        raise ModuleNotFoundError("pip install python-flint")

    monkeypatch.setattr(command, "flint", absent)
    with pytest.raises(SystemExit) as refused:
        command.main([])
    assert refused.value.code == 2 and "pip install python-flint" in capsys.readouterr().err


def test_an_unknown_entry_is_refused(capsys):
    with pytest.raises(SystemExit) as refused:
        command.main(["--actions", "21"])
    assert refused.value.code == 2 and "no entry for [21] actions" in capsys.readouterr().err
