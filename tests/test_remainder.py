"""Every proved bound against what it bounds, in 60 digits (docs/theory.md, sections 2 to 4)."""

import math

import mpmath
import numpy as np
import pytest
import strategies
import torch
from exact import LAST_DIGITS, Policy, number
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory import remainder, remainder_tables, theorems
from entropy_theory.claims import instances
from entropy_theory.softmax import entropy, finite_log_probs


def loose(actions):
    """Proved bounds on the third and fourth derivative of the entropy along a unit spread, by the triangle inequality.

    With E|c| <= 2 ln K the parts of the third, -2 E[d^3] - E[c d^3] + 3 E[c d] E[d^2] for d centred, are at most
    2/(6 sqrt 3), 2 ln K and 3 (ln K)/4. The fourth is -k(l,d,d,d,d) - 3 k(d,d,d,d), with k(d,d,d,d) = m4 - 3 m2^2
    between -2 m2^2 and m4 <= R^2 m2, so at most R^4/4 in size, and k(l,d,d,d,d) = E[c d^4] - 4 E[c d] E[d^3] -
    6 E[c d^2] E[d^2], whose parts are at most 2 ln K, 4 (ln K) / (6 sqrt 3) and 6 (2 ln K) / 4 times R^4.
    """
    log, root = mpmath.log(actions), mpmath.sqrt(3)
    return 1 / (3 * root) + mpmath.mpf(11) / 4 * log, mpmath.mpf(3) / 4 + (5 + 2 / (3 * root)) * log


# --- remainders ---------------------------------------------------------------------------------------------------


def two_valued(actions):
    """max_q q(1-q)[1 + (1-2q) ln((K-1)q/(1-q))]: attained by a change of one action, so no constant is smaller."""
    q = np.linspace(0, 1, 100_001)[1:-1]
    return float((q * (1 - q) * (1 + (1 - 2 * q) * np.log((actions - 1) * q / (1 - q)))).max())


@pytest.mark.parametrize(
    "actions", [2, 3, 4, 5, 6, 7, 10, 11, 15, 17, 22, 40, 100, 777, 31_000, 151_936, 10**7, 10**12]
)
def test_the_first_constant_is_hardly_above_a_value_that_is_attained(actions):
    attained, constant = two_valued(actions), remainder.remainder_constant(actions)
    rounding = 16 * remainder.unit_roundoff(torch.float64)
    assert attained <= constant * (1 + rounding)
    assert constant <= attained * (1.022 if actions < 7 else 1.001 if actions <= 10**6 else 1.004)


@given(st.integers(2, 2**40))
def test_the_constants_grow_with_the_actions_and_bend_down(actions):
    # a policy on K actions is one on K + 1 with an action masked, so a constant that fell would be wrong somewhere
    for constant, slope in (
        (remainder.remainder_constant, remainder_tables.FIRST_ORDER_SLOPE),
        (remainder.second_order_remainder_constant, remainder_tables.SECOND_ORDER_SLOPE),
    ):
        here, there = constant(actions), constant(2 * actions)
        assert here < there
        if actions > max(remainder_tables.FIRST_ORDER):
            # each value is enlarged by 2^-40 for its own rounding
            assert there <= (here + slope * math.log((2 * actions - 1) / (actions - 1))) * (1 + 2**-38)
    assert remainder.covariance_constant(actions) < remainder.covariance_constant(2 * actions)


@pytest.mark.parametrize("actions", [2, 3, 5, 10, 1000, 151_936])
def test_the_covariance_constant_is_the_maximum_it_is_stated_to_be(actions):
    q = np.linspace(0, 1, 1_000_001)[1:-1]
    sampled = float((q * (1 - q) * np.log((actions - 1) * q / (1 - q))).max())
    # a point within 5e-7 of the top lies below it by that squared times half the second derivative, which is at most
    # 2 ln K + 16 in size where q(1-q) > 1/8; the constant itself is enlarged by 2^-40
    missed = 5e-7**2 * (math.log(actions) + 8)
    assert sampled <= remainder.covariance_constant(actions) <= (sampled + missed) * (1 + 2**-39)


@pytest.mark.parametrize("actions", [1, 0, -3, 2.5, 3.0, None, "3"])
def test_constants_refuse_what_is_not_a_number_of_actions(actions):
    for constant in (
        remainder.remainder_constant,
        remainder.second_order_remainder_constant,
        remainder.covariance_constant,
    ):
        with pytest.raises(ValueError, match="actions must be a whole number of at least 2"):
            constant(actions)


@given(strategies.small_pairs())
def test_both_predictions_err_by_no_more_than_their_remainder_bound(pair):
    z, d = (x.tolist() for x in pair)
    policy, actions = Policy(z), len(z)
    first = number(remainder.remainder_constant(actions))
    second = number(remainder.second_order_remainder_constant(actions))
    true, width = policy.entropy_change(d), policy.spread(d)
    assert abs(true - policy.first_order(d)) <= first / 2 * width**2 + LAST_DIGITS
    assert abs(true - policy.second_order(d)) <= second / 6 * width**3 + LAST_DIGITS
    _, curvature, third = policy.derivatives(d)
    assert abs(curvature) <= first * width**2 + LAST_DIGITS
    assert abs(third) <= second * width**3 + LAST_DIGITS


@given(strategies.small_pairs(largest=1.0))
def test_halving_the_change_divides_the_errors_by_four_and_eight(pair):
    z, d = (x.tolist() for x in pair)
    policy, half = Policy(z), [x / 2 for x in d]
    third, fourth = loose(len(z))
    width = policy.spread(d)
    first = [policy.entropy_change(x) - policy.first_order(x) for x in (d, half)]
    second = [policy.entropy_change(x) - policy.second_order(x) for x in (d, half)]
    # e(d) = q + r(d) with q quadratic and |r(d)| <= D R^3 / 6, so |e(d) - 4 e(d/2)| <= (1 + 4/8) D R^3 / 6
    assert abs(first[0] - 4 * first[1]) <= third * width**3 / 4 + LAST_DIGITS
    # the same with a cubic leading term and |r(d)| <= Q R^4 / 24: (1 + 8/16) Q R^4 / 24
    assert abs(second[0] - 8 * second[1]) <= fourth * width**4 / 16 + LAST_DIGITS


@pytest.mark.parametrize(
    ("z", "direction"),
    [
        ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
        ([0.0, -2.0, -2.0, -2.0], [0.0, 1.0, 1.0, 1.0]),
        ([2.0, 0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.5]),
    ],
)
def test_error_ratios_of_the_package_are_four_and_eight(z, direction):
    z = torch.tensor(z, dtype=torch.float64)
    d = torch.tensor(direction, dtype=torch.float64) / 2**9
    policy = Policy(z.tolist())
    third, fourth = (float(x) for x in loose(len(z)))
    width = float(policy.spread(d.tolist()))
    for predict, rounding, power, constant in (
        (theorems.entropy_change_first_order, remainder.first_order_rounding, 2, third / 6),
        (theorems.entropy_change_second_order, remainder.second_order_rounding, 3, fourth / 24),
    ):
        error = [float(policy.entropy_change(x.tolist()) - number(predict(z, x))) for x in (d, d / 2)]
        # the inequalities of the test above, divided by the second error, with the rounding of both predictions
        next_order = constant * (1 + 2.0**-1) * width ** (power + 1)
        slack = (next_order + float(rounding(z, d)) + 2**power * float(rounding(z, d / 2))) / abs(error[1])
        assert slack < 1  # so the proof itself puts the ratio between 3 and 5, and between 7 and 9
        assert abs(error[0] / error[1] - 2**power) <= slack


def test_second_and_third_derivative_along_a_line():
    rng = np.random.default_rng(0)
    for actions in (2, 3, 7):
        z, d = rng.normal(size=actions).tolist(), rng.normal(size=actions).tolist()
        policy = Policy(z)
        # numerical differentiation at 60 digits: mpmath's step leaves more than 15 correct ones
        for order, formula in enumerate(policy.derivatives(d), start=1):
            numerical = mpmath.diff(lambda t: policy.moved(d, t).h, 0, order)  # noqa: B023
            assert abs(numerical - formula) < mpmath.mpf(10) ** -15


def ascent(actions, power, seed=0):
    """Largest |second| (power 2) or |third| (power 3) derivative at spread <= 1 that gradient ascent finds."""
    generator = torch.Generator().manual_seed(seed)
    starts = 32
    z = torch.randn(starts, actions, generator=generator, dtype=torch.float64)
    z[: starts // 2, 0] += math.log(actions) * torch.rand(starts // 2, generator=generator, dtype=torch.float64) * 2
    x = 3 * torch.randn(starts, actions, generator=generator, dtype=torch.float64)
    best = 0.0
    for sign in (1, -1):
        variables = [z.clone().requires_grad_(True), x.clone().requires_grad_(True)]
        optimizer = torch.optim.Adam(variables, lr=0.1, maximize=True)
        for _ in range(300):
            logp, d = torch.log_softmax(variables[0], -1), torch.sigmoid(variables[1])
            p = logp.exp()
            c = logp - (p * logp).sum(-1, keepdim=True)
            d = d - (p * d).sum(-1, keepdim=True)
            if power == 2:
                value = ((1 + c) * p * d**2).sum(-1)
            else:
                value = (p * (2 + c) * d**3).sum(-1) - 3 * (p * c * d).sum(-1) * (p * d**2).sum(-1)
            optimizer.zero_grad()
            (sign * value).sum().backward()
            optimizer.step()
        best = max(best, float((sign * value).detach().max()))
    return best


# a change of two values reaches the maximum or comes near it, so a search that does not would not be a search
@pytest.mark.parametrize("actions", [2, 5, 10])
def test_adversarial_search_stays_below_the_first_constant_and_comes_near_the_known_maximum(actions):
    found = ascent(actions, 2)
    assert 0.99 * two_valued(actions) <= found <= remainder.remainder_constant(actions)


@pytest.mark.parametrize("actions", [2, 5, 10])
def test_adversarial_search_stays_below_the_second_constant(actions):
    found = ascent(actions, 3)
    # the term 2 E[d^3] alone reaches 2/(6 sqrt 3) = 0.19; a search that does not find more is no search
    assert 2 / (6 * math.sqrt(3)) < found <= remainder.second_order_remainder_constant(actions)


@given(strategies.small_pairs())
def test_each_step_of_the_proofs(pair):
    z, d = (x.tolist() for x in pair)
    policy = Policy(z)
    width = policy.spread(d)
    dev = policy.centred(policy.on_support(d))
    slack = LAST_DIGITS * (1 + width) ** 3  # equalities are reached: two actions, one-hot
    assert all(abs(x) <= width + slack for x in dev)
    most = number(remainder.covariance_constant(len(z)))
    assert policy.mean([abs(x) for x in policy.c]) <= 2 * most + slack
    assert policy.mean([x**2 for x in dev]) <= width**2 / 4 + slack
    assert abs(policy.mean([x**3 for x in dev])) <= width**3 / (6 * mpmath.sqrt(3)) + slack
    mixed = policy.mean([c * x for c, x in zip(policy.c, dev, strict=True)])
    assert abs(mixed) <= width * most + slack


@given(strategies.small_pairs(), st.floats(0, 2))
def test_effect_of_another_change(pair, size):
    z, d = pair
    policy = Policy(z.tolist())
    # the worst sign pattern for the first order: along the sign of c
    other = [0.0] * len(z)
    for a, c in zip(policy.support, policy.c, strict=True):
        other[a] = size if c > 0 else -size
    moved = [mpmath.mpf(x) + mpmath.mpf(e) for x, e in zip(d.tolist(), other, strict=True)]
    error = torch.tensor(size, dtype=torch.float64)
    actions = len(z)
    # the bounds are products of three factors: 8 u
    grown = 1 + 8 * remainder.unit_roundoff(torch.float64)
    assert abs(policy.first_order(other)) <= grown * float(remainder.first_order_effect(error, actions))
    width = torch.tensor(float(policy.spread(d.tolist())), dtype=torch.float64)
    allowed = grown * float(remainder.second_order_effect(error, width, actions))
    assert abs(policy.second_order(moved) - policy.second_order(d.tolist())) <= allowed


# --- rounding -----------------------------------------------------------------------------------------------------


@given(strategies.small_pairs())
def test_log_probabilities_and_probabilities_round_within_their_bounds(pair):
    z, _ = pair
    policy = Policy(z.tolist())
    logp, probability = finite_log_probs(z)
    ratio = torch.softmax(z, -1)
    tiny = torch.finfo(z.dtype).tiny
    allowed, factor = number(remainder.log_prob_rounding(z)), mpmath.expm1(number(remainder.probability_rounding(z)))
    for a, lp, p in zip(policy.support, policy.logp, policy.pi, strict=True):
        assert abs(number(logp[a]) - lp) <= allowed
        assert abs(number(probability[a]) - p) <= p * factor + tiny
        assert abs(number(ratio[a]) - p) <= p * factor + tiny


@given(strategies.small_pairs())
def test_entropy_and_both_predictions_round_within_their_bounds(pair):
    z, d = pair
    policy = Policy(z.tolist())
    change = d.tolist()
    assert abs(number(entropy(z)) - policy.h) <= number(remainder.entropy_rounding(z))
    first, second = theorems.entropy_change_first_order(z, d), theorems.entropy_change_second_order(z, d)
    assert abs(number(first) - policy.first_order(change)) <= number(remainder.first_order_rounding(z, d))
    assert abs(number(second) - policy.second_order(change)) <= number(remainder.second_order_rounding(z, d))


@given(strategies.small_pairs(), st.sampled_from([1e-3, 1.0, 30.0]))
def test_policy_gradient_step_rounds_within_its_bound(pair, step_size):
    z, reward = pair
    computed = theorems.policy_gradient_step(z, reward, step_size)
    bound = remainder.policy_gradient_step_rounding(z, reward, step_size)
    policy = Policy(z.tolist())
    # the step size enters the tensor's own precision
    exact_size = float(torch.tensor(step_size, dtype=z.dtype))
    for a, exact in zip(policy.support, policy.gradient_step(reward.tolist(), exact_size), strict=True):
        allowed = number(bound[a]) + abs(exact) * remainder.unit_roundoff(z.dtype)
        assert abs(number(computed[a]) - exact) <= allowed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("kind", "actions"), [("normal", 10_000), ("normal", 1000), ("wide", 1000), ("uniform", 1000), ("zipf", 1000)]
)
def test_rounding_bounds_at_many_actions(dtype, kind, actions):
    generator = torch.Generator().manual_seed(actions)
    z = instances.LOGITS[kind](1, actions, generator)[0].to(dtype)
    d = (torch.randn(actions, generator=generator, dtype=torch.float64) + 10).to(dtype)
    policy, change = Policy(z.tolist()), d.tolist()
    assert abs(number(entropy(z)) - policy.h) <= number(remainder.entropy_rounding(z))
    second = theorems.entropy_change_second_order(z, d)
    assert abs(number(second) - policy.second_order(change)) <= number(remainder.second_order_rounding(z, d))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exp_and_log_are_as_accurate_as_the_rounding_model_takes_them(dtype):
    u = remainder.unit_roundoff(dtype)
    generator = torch.Generator().manual_seed(0)
    x = (-100 * torch.rand(2000, generator=generator, dtype=torch.float64)).to(dtype)
    x = x[x > math.log(torch.finfo(dtype).tiny)]
    s = (1 + 1e5 * torch.rand(2000, generator=generator, dtype=torch.float64) ** 8).to(dtype)
    for value, result in zip(x.tolist(), x.exp().tolist(), strict=True):
        assert abs(mpmath.log(mpmath.mpf(result)) - mpmath.mpf(value)) <= remainder._EXP * u
    for value, result in zip(s.tolist(), s.log().tolist(), strict=True):
        exact = mpmath.log(mpmath.mpf(value))
        assert abs(mpmath.mpf(result) - exact) <= 2 * u * exact


def test_an_action_whose_probability_underflows_still_counts_in_the_spread():
    z = torch.tensor([0.0, -800.0, -torch.inf], dtype=torch.float64)
    d = torch.tensor([0.0, 900.0, 5.0], dtype=torch.float64)
    _, probability = finite_log_probs(z)
    assert probability[1] == 0
    assert remainder.spread(d, torch.isfinite(z)) == 900
    assert remainder.spread(d, probability) == 0
    # the change makes that action certain and entropy passes through its maximum: only the wide spread bounds that
    policy = Policy(z.tolist())
    at_even_odds = policy.moved(d.tolist(), mpmath.mpf(8) / 9).h
    assert at_even_odds > 0.69
    assert float(remainder.remainder_bound(torch.tensor(800.0, dtype=torch.float64), 3)) > at_even_odds


@given(strategies.small_pairs())
def test_spread_is_the_width_over_the_support(pair):
    z, d = pair
    policy, u = Policy(z.tolist()), remainder.unit_roundoff(z.dtype)
    for garbage in (1e30, -1e30):
        spoiled = torch.where(torch.isfinite(z), d, garbage)
        for support in (torch.isfinite(z), torch.isfinite(z).to(z.dtype)):
            exact = policy.spread(d.tolist())
            assert abs(number(remainder.spread(spoiled, support)) - exact) <= u * exact  # one subtraction
