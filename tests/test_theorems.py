"""The theorems against 60-digit arithmetic, autograd and SGD, enumeration and quadrature."""

import itertools
import math
from fractions import Fraction

import mpmath
import strategies
import torch
from exact import DIGITS, Policy, number
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory import balls, remainder, theorems
from entropy_theory.covariances import covariance
from entropy_theory.softmax import collision, entropy, finite_log_probs

# --- invariances --------------------------------------------------------------------------------------------------


@given(strategies.dyadic_pairs(), st.integers(-400, 400), st.integers(-400, 400))
def test_shifting_all_logits_or_adding_a_constant_to_the_change_does_nothing(pair, shift, constant):
    z, d = pair
    moved, lifted = z + shift / 8, d + constant / 8
    for predict, rounding in (
        (theorems.entropy_change_first_order, remainder.first_order_rounding),
        (theorems.entropy_change_second_order, remainder.second_order_rounding),
    ):
        allowed = rounding(z, d) + rounding(moved, lifted)
        assert (predict(moved, lifted) - predict(z, d)).abs() <= allowed


@given(strategies.small_pairs())
def test_first_order_is_odd_and_the_quadratic_term_even(pair):
    z, d = pair
    assert torch.equal(theorems.entropy_change_first_order(z, -d), -theorems.entropy_change_first_order(z, d))
    both = theorems.entropy_change_second_order(z, d), theorems.entropy_change_second_order(z, -d)
    quadratic = Policy(z.tolist()).derivatives(d.tolist())[1]
    assert abs(number(both[0]) + number(both[1]) - quadratic) <= 2 * number(remainder.second_order_rounding(z, d))


@given(st.integers(2, strategies.SMALL), st.floats(-50, 50), strategies.generators())
def test_a_uniform_policy_has_no_first_order_change(actions, level, rng):
    z = torch.full((actions,), level, dtype=torch.float64)
    d = torch.from_numpy(rng.normal(size=actions))
    assert theorems.entropy_change_first_order(z, d).abs() <= remainder.first_order_rounding(z, d)
    second = theorems.entropy_change_second_order(z, d)
    variance = math.fsum((x - math.fsum(d.tolist()) / actions) ** 2 for x in d.tolist()) / actions
    fsum_error = 8 * remainder.unit_roundoff(z.dtype) * (variance + float(d.abs().max()) ** 2)
    assert abs(float(second) + variance / 2) <= float(remainder.second_order_rounding(z, d)) + fsum_error
    for theorem, change in (
        (theorems.theorem_1, theorems.policy_gradient_step(z, d, 0.5)),
        (theorems.theorem_2, theorems.natural_gradient_step(d, 0.5)),
    ):
        assert theorem(z, d, 0.5).abs() <= remainder.first_order_rounding(z, change)


@given(strategies.small_pairs())
def test_what_stands_at_a_masked_action_does_not_count(pair):
    z, d = pair
    z = torch.cat([z, torch.tensor([-torch.inf], dtype=z.dtype)])
    for garbage in strategies.GARBAGE:
        spoiled, clean = (torch.cat([d, torch.tensor([x], dtype=d.dtype)]) for x in (garbage, 0.0))
        for predict in (theorems.entropy_change_first_order, theorems.entropy_change_second_order):
            assert torch.equal(predict(z, spoiled), predict(z, clean))


@given(strategies.logits_and_changes(leading=(3, 2), max_actions=strategies.SMALL))
def test_leading_axes_are_independent_states(pair):
    z, d = pair
    for function in (
        theorems.entropy_change_first_order,
        theorems.entropy_change_second_order,
        lambda x, y: theorems.theorem_1(x, y, 0.3),
        lambda x, y: theorems.theorem_2(x, y, 0.3),
    ):
        stacked = function(z, d)
        assert stacked.shape == (3, 2)
        for i, j in itertools.product(range(3), range(2)):
            step = torch.stack([d[i, j], 0.3 * d[i, j]])
            allowed = 2 * remainder.second_order_rounding(z[i, j].expand_as(step), step).sum()
            assert (stacked[i, j] - function(z[i, j], d[i, j])).abs() <= allowed


# --- Hessian, integral form ---------------------------------------------------------------------------------------


@given(strategies.logits_and_changes(max_actions=8, kinds=("normal", "uniform", "ties")))
def test_quadratic_term_is_the_hessian_of_the_entropy(pair):
    z, d = pair
    policy = Policy(z.tolist())
    pi, c, dev = policy.pi, policy.c, policy.on_support(d.tolist())
    terms = []
    for i, j in itertools.product(range(len(pi)), repeat=2):
        entry = pi[i] * pi[j] * (1 + c[i] + c[j]) - (pi[i] * (1 + c[i]) if i == j else 0)
        terms.append(dev[i] * entry * dev[j])
    quadratic = mpmath.fsum(terms)
    assert abs(quadratic - policy.derivatives(d.tolist())[1]) <= mpmath.mpf(10) ** (15 - DIGITS)
    difference = theorems.entropy_change_second_order(z, d) - theorems.entropy_change_first_order(z, d)
    allowed = remainder.second_order_rounding(z, d) + remainder.first_order_rounding(z, d)
    subtraction = remainder.unit_roundoff(z.dtype) * difference.abs()
    assert abs(number(difference) - quadratic / 2) <= number(allowed + subtraction)


MODERATE = ("normal", "ties", "uniform", "masked")


@given(strategies.small_pairs(dtypes=(torch.float64,), largest=2.0, kinds=MODERATE))
def test_integral_form_gives_the_whole_change(pair):
    # -int_0^1 Cov_t(log pi_0, d) + t Var_t(d) dt, enclosed: Arb bounds the error of its own quadrature
    z, d = (x.tolist() for x in pair)
    with balls.precision(128) as flint:
        policy = balls.Policy(z)
        change = policy.exact(d)

        def integrand(t, _):
            weights = [p * (t * x).exp() for p, x in zip(policy.probabilities, change, strict=True)]
            total = sum(weights)
            mean = sum(w * x for w, x in zip(weights, change, strict=True)) / total
            terms = zip(weights, policy.log_probs, change, strict=True)
            return sum(w * (lp + t * x) * (x - mean) for w, lp, x in terms) / total

        integral = flint.acb.integral(integrand, 0, 1).real
        difference = policy.entropy_change(change) + integral
        assert difference.contains(0) and balls.above(difference.rad()) < 1e-25


@given(strategies.small_pairs(dtypes=(torch.float64,), largest=2.0, kinds=MODERATE), st.floats(0, 1))
def test_the_integrand_is_the_first_order_change_along_the_way(pair, t):
    z, d = pair
    policy, change = Policy(z.tolist()), d.tolist()
    # Cov_t(log pi_0, d) + t Var_t(d), with the oracle's policy at t and with the package's covariance
    at_t, dev = policy.moved(change, mpmath.mpf(t)), policy.on_support(change)
    along = [lp + mpmath.mpf(t) * v for lp, v in zip(policy.logp, dev, strict=True)]
    expected = -at_t.mean([a * b for a, b in zip(along, at_t.centred(dev), strict=True)])
    stored = z + t * d
    # storing z + t d moves each logit by 2 u (|z| + |d|), and the covariance by (1 + 2 ln K) R times twice that
    moved = 2 * remainder.unit_roundoff(z.dtype) * (stored.masked_fill(torch.isinf(z), 0.0).abs() + d.abs()).max()
    allowed = number(remainder.first_order_rounding(stored, d) + 2 * moved * (1 + 2 * math.log(len(z))) * spread(z, d))
    assert abs(number(theorems.entropy_change_first_order(stored, d)) - expected) <= allowed


def spread(z, d):
    """Of the change, over the support, and a little more than that."""
    return (1 + 2 * remainder.unit_roundoff(z.dtype)) * remainder.spread(d, torch.isfinite(z))


# --- Proposition 1 and Theorem 1 ----------------------------------------------------------------------------------


def sgd(z, reward, step_size):
    """One ascent step of torch's SGD on sum pi r."""
    parameter = torch.nn.Parameter(z.clone())
    optimizer = torch.optim.SGD([parameter], lr=step_size)
    loss = -(torch.softmax(parameter, -1) * reward).sum()
    loss.backward()
    optimizer.step()
    return parameter.detach()


@given(strategies.logits_and_changes(finite=True, max_actions=strategies.SMALL), st.sampled_from([0.01, 0.5, 3.0]))
def test_policy_gradient_step_is_what_autograd_and_sgd_do(pair, step_size):
    z, reward = pair
    after = sgd(z, reward, step_size)
    computed = theorems.policy_gradient_step(z, reward, step_size)
    u = remainder.unit_roundoff(z.dtype)
    # theory.md 4.5: formula and autograd err alike, the new logit and the difference are rounded
    allowed = 2 * remainder.policy_gradient_step_rounding(z, reward, step_size) + 2 * u * (
        after.abs() + (after - z).abs()
    )
    assert ((after - z - computed).abs() <= allowed).all()
    # Theorem 1 is Lemma 1 of that very step
    predicted = theorems.theorem_1(z, reward, step_size)
    of_real_step = theorems.entropy_change_first_order(z, after - z)
    slack = (
        remainder.first_order_effect(allowed.max(), len(z))
        + remainder.first_order_rounding(z, computed)
        + remainder.first_order_rounding(z, after - z)
    )
    assert (predicted - of_real_step).abs() <= slack


def test_the_uncentred_form_of_proposition_1_is_not_what_sgd_does():
    z = torch.tensor([0.3, -0.4, 1.0], dtype=torch.float64)
    probability = torch.softmax(z, -1)
    constant = torch.ones(3, dtype=torch.float64)
    # a constant reward: the gradient is 0, the published form is not, and it changes the policy
    moved = sgd(z, constant, 1.0) - z
    allowed = (
        2 * remainder.policy_gradient_step_rounding(z, constant, 1.0) + 2 * remainder.unit_roundoff(z.dtype) * z.abs()
    )
    assert (moved.abs() <= allowed).all()
    uncentred = probability * constant
    assert remainder.spread(uncentred, probability) > 0.1 > 1e6 * allowed.max()
    # with E A = 0 both are the same
    advantage = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    advantage = advantage - (probability * advantage).sum()
    centred = sgd(z, advantage, 1.0) - z
    both = 4 * remainder.policy_gradient_step_rounding(z, advantage, 1.0) + 4 * remainder.unit_roundoff(z.dtype) * (
        z.abs() + 2
    )
    assert ((centred - probability * advantage).abs() <= both).all()


@given(strategies.small_pairs(), st.sampled_from([0.01, 2.0]))
def test_theorems_equal_their_compact_forms(pair, step_size):
    z, reward = pair
    policy = Policy(z.tolist())
    a = policy.centred(policy.on_support(reward.tolist()))
    eta = mpmath.mpf(float(torch.tensor(step_size, dtype=z.dtype)))
    terms = list(zip(policy.pi, policy.c, a, strict=True))
    one = -eta * mpmath.fsum(p * p * c * x for p, c, x in terms)
    two = -eta * mpmath.fsum(p * c * x for p, c, x in terms)
    u, actions = remainder.unit_roundoff(z.dtype), len(z)
    step = theorems.policy_gradient_step(z, reward, step_size)
    error = remainder.policy_gradient_step_rounding(z, reward, step_size) + 2 * u * step.abs()  # 2 u: eta in dtype
    allowed = remainder.first_order_rounding(z, step) + remainder.first_order_effect(error.max(), actions)
    assert abs(number(theorems.theorem_1(z, reward, step_size)) - one) <= number(allowed)
    step = theorems.natural_gradient_step(reward, step_size)
    allowed = remainder.first_order_rounding(z, step) + remainder.first_order_effect(4 * u * step.abs().max(), actions)
    assert abs(number(theorems.theorem_2(z, reward, step_size)) - two) <= number(allowed)


def from_probabilities(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_the_two_theorems_can_disagree_in_sign():
    z = from_probabilities(0.6, 0.3, 0.1)
    reward = torch.tensor([0.4, 0.0, 1.0], dtype=torch.float64)
    assert round(float(theorems.theorem_1(z, reward, 1.0)), 5) == -0.00846
    assert round(float(theorems.theorem_2(z, reward, 1.0)), 5) == 0.04756
    # and the entropy itself does what each predicts
    small = 1e-3
    assert entropy(sgd(z, reward, small)) < entropy(z) < entropy(z + small * reward)


def test_a_rare_good_action_raises_entropy():
    z = from_probabilities(0.9, 0.1)
    reward = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert round(float(theorems.theorem_1(z, reward, 1.0)), 4) == 0.0356
    assert entropy(sgd(z, reward, 1.0)) > entropy(z)


@given(st.floats(-20, 20))
def test_two_actions_lose_entropy_at_the_rate_of_their_gap(gap):
    z = torch.tensor([gap, 0.0], dtype=torch.float64)
    d = torch.tensor([1.0, 0.0], dtype=torch.float64)
    p = 1 / (1 + mpmath.exp(-mpmath.mpf(gap)))
    expected = -mpmath.mpf(gap) * p * (1 - p)
    assert abs(number(theorems.entropy_change_first_order(z, d)) - expected) <= number(
        remainder.first_order_rounding(z, d)
    )


@given(strategies.small_pairs())
def test_sign_rule(pair):
    # raising one logit lowers entropy exactly if that action is likelier than e^-H
    z, _ = pair
    policy = Policy(z.tolist())
    for a, c in zip(policy.support, policy.c, strict=True):
        d = torch.zeros_like(z)
        d[a] = 1.0
        change = theorems.entropy_change_first_order(z, d)
        if change.abs() > remainder.first_order_rounding(z, d):
            assert (change < 0) == (c > 0)


# --- samples ------------------------------------------------------------------------------------------------------


def sampled_rounding(z, advantage):
    """Rounding of the mean over actions of A (pi c - C), and with the weight 1 of A c, times max |A|.

    pi, c and C = sum pi^2 c err by exponents of at most 3 w + (2 K + 8) u relative, times E|c| <= 2 ln K each, and c
    by the errors of log pi and H besides; c enters twice.
    """
    u, actions = remainder.unit_roundoff(z.dtype), len(z)
    relative = torch.expm1(3 * remainder.probability_rounding(z) + (2 * actions + 8) * u)
    absolute = remainder.log_prob_rounding(z) + remainder.entropy_rounding(z)
    return 2 * advantage.abs().max() * (relative * (2 * math.log(actions)) + (1 + relative) * 2 * absolute)


@given(strategies.logits_and_changes(finite=True, max_actions=strategies.SMALL))
def test_single_sample_effects_have_the_theorems_as_their_mean(pair):
    z, reward = pair
    logp, probability = finite_log_probs(z)
    h = entropy(z)
    advantage = reward - (probability * reward).sum()
    one = theorems.sampled_theorem_1(logp, h, collision(z), advantage)
    two = theorems.sampled_theorem_2(logp, h, advantage)
    allowed = sampled_rounding(z, advantage) + sampled_rounding(z, reward)
    step = theorems.policy_gradient_step(z, reward, 1.0)
    slack = (
        allowed
        + remainder.first_order_rounding(z, step)
        + remainder.first_order_effect(remainder.policy_gradient_step_rounding(z, reward, 1.0).max(), len(z))
    )
    assert ((probability * one).sum() - theorems.theorem_1(z, reward, 1.0)).abs() <= slack
    slack = allowed + remainder.first_order_rounding(z, reward)
    assert ((probability * two).sum() - theorems.theorem_2(z, reward, 1.0)).abs() <= slack


@given(strategies.logits(finite=True, max_actions=strategies.SMALL), st.floats(-3, 3), st.data())
def test_one_sampled_token_moves_entropy_as_stated(z, weight, data):
    action = data.draw(st.integers(0, len(z) - 1))
    logp, probability = finite_log_probs(z)
    one_hot = torch.nn.functional.one_hot(torch.tensor(action), len(z)).to(z.dtype)
    change = weight * (one_hot - probability)
    effect = theorems.sampled_theorem_1(logp[action], entropy(z), collision(z), torch.tensor(weight, dtype=z.dtype))
    lemma = theorems.entropy_change_first_order(z, change)
    u = remainder.unit_roundoff(z.dtype)
    of_change = abs(weight) * (torch.expm1(remainder.probability_rounding(z)) + 4 * u)
    allowed = (
        # here the one action's c counts in full, not averaged: |pi c| <= 1/e + ln K
        sampled_rounding(z, torch.tensor(weight, dtype=z.dtype)) * (1 + 1 / (2 * math.log(len(z))))
        + remainder.first_order_rounding(z, change)
        + remainder.first_order_effect(of_change, len(z))
    )
    assert (effect - lemma).abs() <= allowed


def test_sampled_covariance_is_unbiased_up_to_n_minus_1_over_n():
    # everything is a fraction with a power of two below, so float64 computes it exactly and == is the right test
    probability = [Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)]
    x, y = [3, -1, 6], [1, 4, -2]

    def mean(values):
        return sum(p * v for p, v in zip(probability, values, strict=True))

    exact = mean([a * b for a, b in zip(x, y, strict=True)]) - mean(x) * mean(y)
    for n in (1, 2, 4):
        expectation = Fraction(0)
        for sample in itertools.product(range(3), repeat=n):
            drawn = (torch.tensor([float(v[i]) for i in sample], dtype=torch.float64) for v in (x, y))
            estimate = covariance(*drawn, torch.ones(n, dtype=torch.float64), dim=-1)
            expectation += math.prod(probability[i] for i in sample) * Fraction(float(estimate))
        assert expectation == Fraction(n - 1, n) * exact
