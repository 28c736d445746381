"""ERA: the activation's floor, order, cap and slope against mpmath and loops; the form for language models by loops."""

import math
from dataclasses import replace

import mpmath
import oracles
import pytest
import strategies
import torch
from contract import edited, fixed_batch, identical
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.controls.era import PRESETS, era
from entropy_theory.controls.era_activation import era_activation
from entropy_theory.loss import token_loss
from entropy_theory.records import Batch, Objective
from entropy_theory.softmax import entropy, token_statistics
from entropy_theory.surrogate import reinforce

F64 = torch.float64
TAUS = (math.e, 4.0, 10.0)
SPREAD = 2 * strategies.LARGEST_LOGIT


def highest(actions, tau):
    """The largest target, 1 + log(n log tau / tau)."""
    return 1 + math.log(actions * math.log(tau) / tau)


@st.composite
def settings(draw, actions, taus=TAUS):
    """(target, tau) that `actions` actions can have."""
    tau = draw(st.sampled_from([tau for tau in taus if highest(actions, tau) > 0.02]))
    return draw(st.sampled_from([0.01, 0.3, 0.9, 1.0])) * highest(actions, tau), tau


def constants(actions, target, tau):
    """(a, m): the heights of actions of probability 0 and 1."""
    m = math.log(tau) / tau
    return (math.exp(target - 1) - m) / max(actions - 1, 1), m


def slack(actions, least, eps):
    """Bound on the relative error of the heights -z exp(z) that our z stand for, and of their sum.

    With r = eps/2. Heights: a and m - a are rounded, one product, one sum: 4r. Probabilities sum to 1 within (n + 1)r.
    Inverse, L = -log h <= -log a, y <= 1.6 L + 1: u = -1 - log h errs by 3rL (log one ulp, one subtraction), log y + u
    by 4rL, product and quotient by 3r relative, which is 3r(y - 1) <= 5rL in y - log y; the rounded result by 2rL;
    Newton's remainder is below one rounding: 15rL in all, and r where u was kept from 0. So (8L + n/2 + 4) eps.
    """
    return (8 * -math.log(least) + actions / 2 + 4) * eps


# --- the activation -------------------------------------------------------------------------------------------------


def test_activation_by_hand():
    """h = y exp(-y) at y = 2, 3, 3.5 is .27067, .14936, .10569: C = .52572, target = 1 + log C = .35702.

    At tau = 4, m = log 4 / 4 = .34657, a = (C - m) / 2 = .08957 and p = (h - a) / (m - a) = .7047, .2326, .0627.
    """
    heights = [y * math.exp(-y) for y in (2, 3, 3.5)]
    total, m = math.fsum(heights), math.log(4) / 4
    assert total == pytest.approx(0.52572, abs=5e-6)
    a = (total - m) / 2
    p = [(h - a) / (m - a) for h in heights]
    assert p == pytest.approx([0.7047, 0.2326, 0.0627], abs=5e-5)
    found = era_activation(target=1 + math.log(total), tau=4.0).activate(torch.tensor(p, dtype=F64).log())
    # dz = y / (y - 1) dlog h <= 2 * slack(3, .0896, eps) < 100 eps
    assert found.tolist() == pytest.approx([-2, -3, -3.5], abs=100 * 2.2e-16)


def test_at_the_highest_target_every_action_comes_out_alike():
    """C = n m makes a = m: every height is m = log tau / tau, whose z is -log tau."""
    found = era_activation(target=highest(3, 4.0), tau=4.0).activate(torch.tensor([5.0, 0.0, -3.0], dtype=F64))
    assert found.tolist() == pytest.approx([-math.log(4)] * 3, abs=1e-14)  # 45 eps: slack(3, .35, eps) y / (y - 1)


# entropies of a one-hot policy: from mpmath's W_{-1} in 40 digits, and as others found with the authors' approximation
ONE_HOT = {
    "exact": {2: (0.14342, 0.45107, 0.68778), 10: (0.14930, 0.51307, 0.96986), 1000: (0.15389, 0.55132, 1.11506)},
    "published": {2: (0.145, 0.448, 0.688), 10: (0.168, 0.535, 0.983), 1000: (0.253, 0.788, 1.464)},
}


@pytest.mark.parametrize(("inverse", "digits"), [("exact", 5), ("published", 3)])
@pytest.mark.parametrize("actions", [2, 10, 1000])
def test_entropy_of_a_one_hot_policy_at_tau_4(inverse, digits, actions):
    """Far above the target of .05, .3 and .6 nats, and with the approximation further where actions are many."""
    one_hot = torch.full((actions,), -torch.inf, dtype=F64)
    one_hot[0] = 0.0
    for target, expected in zip((0.05, 0.3, 0.6), ONE_HOT[inverse][actions], strict=True):
        found = oracles.entropy(era_activation(target, inverse=inverse).activate(one_hot).tolist())
        assert found == pytest.approx(expected, abs=0.51 * 10**-digits)  # half of the last digit given


@given(st.data())
def test_entropy_never_falls_below_the_floor(data):
    """H >= target - 1 - log m, which is the target itself at tau = e and .06 more at tau = 4.

    Every y_i = -z'_i >= log tau, so C / Z = sum y exp(-y) / sum exp(-y) >= log tau > 1, and H = C / Z + log Z, which
    falls in Z up to Z = C, is at least its value log tau + log(C / log tau) at Z = C / log tau.
    """
    dtype = data.draw(st.sampled_from([F64, torch.float32]))
    logits = data.draw(strategies.logits(dtype=dtype))
    n = len(logits)
    target, tau = data.draw(settings(n))
    found = era_activation(target, tau).activate(logits)
    assert found.dtype == dtype and bool(found.isfinite().all())
    a, m = constants(n, target, tau)
    # with s the slack: log C errs by 1.01 s, and y >= log tau by s y / (y - 1), which moves H by (log tau - 1) times
    # that, s log tau at most; the oracle's own rounding is below 1e-14 n
    bound = (1.01 + math.log(tau)) * slack(n, a, torch.finfo(dtype).eps) + n * 1e-14
    assert oracles.entropy(found.double().tolist()) >= target - 1 - math.log(m) - bound


@given(st.data())
def test_every_logit_is_the_inverse_of_its_height(data):
    """-z exp(z) = a + (m - a) p, z <= -1, in 30 digits."""
    dtype = data.draw(st.sampled_from([F64, torch.float32]))
    logits = data.draw(strategies.logits(dtype=dtype, max_actions=30))
    n = len(logits)
    target, tau = data.draw(settings(n))
    a, m = constants(n, target, tau)
    # a logit's distance from the largest, up to 2 * 50, is rounded before exp
    bound = slack(n, a, torch.finfo(dtype).eps) + SPREAD * torch.finfo(dtype).eps
    found = era_activation(target, tau).activate(logits).double().tolist()
    for z, p in zip(found, oracles.probabilities(logits.double().tolist()), strict=True):
        with mpmath.workdps(30):
            assert abs(-z * mpmath.exp(z) / (a + (mpmath.mpf(m) - a) * p) - 1) <= bound
        assert z <= -1


@given(strategies.logits(max_actions=30), st.sampled_from([0.05, 0.6]))
def test_away_from_the_branch_point_logits_are_lambert_s_function(logits, target):
    a, m = constants(len(logits), target, 4.0)
    found = era_activation(target).activate(logits).tolist()
    for z, p in zip(found, oracles.probabilities(logits.tolist()), strict=True):
        expected = float(mpmath.re(mpmath.lambertw(-(a + (m - a) * p), -1)))
        # dz = y / (y - 1) dlog h <= 3.6 dlog h, since y >= log 4
        assert z == pytest.approx(expected, abs=3.6 * (slack(len(logits), a, 2.2e-16) + SPREAD * 2.2e-16))


@given(st.data())
def test_the_order_of_the_actions_stays(data):
    dtype = data.draw(st.sampled_from([F64, torch.float32]))
    logits = data.draw(strategies.logits(dtype=dtype))
    target, tau = data.draw(settings(len(logits)))
    y = -era_activation(target, tau).activate(logits).double()[logits.argsort()]
    depth = y - y.log()  # -log of the height: falls as probability rises
    least = constants(len(logits), target, tau)[0]
    # neighbours may swap by the rounding of both heights
    assert bool((depth.diff() <= 2 * slack(len(logits), least, torch.finfo(dtype).eps)).all())


def test_order_is_strict_where_probabilities_differ():
    found = era_activation().activate(torch.tensor([[0.0, 1.0, 2.0], [3.0, -3.0, 0.0]], dtype=F64))
    assert found.argsort(-1).tolist() == [[0, 1, 2], [1, 2, 0]]
    assert bool((found.sort(-1).values.diff() > 0.05).all())


@given(st.data())
def test_no_probability_exceeds_that_of_a_one_hot_policy(data):
    logits = data.draw(strategies.logits(max_actions=30))
    n = len(logits)
    target, tau = data.draw(settings(n, taus=(4.0, 10.0)))
    a, m = constants(n, target, tau)
    top, rest = (math.exp(mpmath.re(mpmath.lambertw(-h, -1))) for h in (m, a))
    found = max(oracles.probabilities(era_activation(target, tau).activate(logits).tolist()))
    # each exp(z) errs by 3.6 times its height's error (see above), the quotient of two by twice that
    rounding = 8 * (slack(n, a, 2.2e-16) + SPREAD * 2.2e-16)
    assert found <= top / (top + (n - 1) * rest) * (1 + rounding)


@pytest.mark.parametrize(("inverse", "cap"), [("exact", 0.83302), ("published", 0.8351)])
def test_the_cap_of_two_actions(inverse, cap):
    """W_{-1} in 40 digits; and the authors' approximation, which others found to be .835."""
    found = era_activation(target=0.3, inverse=inverse).activate(torch.tensor([0.0, -torch.inf], dtype=F64))
    assert float(torch.softmax(found, -1)[0]) == pytest.approx(cap, abs=5e-5 if inverse == "published" else 5e-6)


def test_minus_infinity_is_probability_zero():
    control = era_activation()
    masked, low = ([1.0, 0.0, hole] for hole in (-math.inf, -1e4))
    assert control.activate(torch.tensor(masked)).tolist() == control.activate(torch.tensor(low)).tolist()


# --- its slope ------------------------------------------------------------------------------------------------------


def slopes(logits, target, tau, inverse):
    """dz'_i / dz_j = (dz'/dh)_i (m - a) p_i (delta_ij - p_j), by loops.

    Exact: dz'/dh = y / (h (y - 1)); published: (1 / sqrt(2u) + 3/4) / h.
    """
    a, m = constants(len(logits), target, tau)
    p = oracles.probabilities(logits)
    rows = []
    for i, q in enumerate(p):
        h = a + (m - a) * q
        y = -float(mpmath.re(mpmath.lambertw(-h, -1)))
        steep = y / (y - 1) if inverse == "exact" else 1 / math.sqrt(2 * (-1 - math.log(h))) + 0.75
        rows.append([steep / h * (m - a) * q * ((i == j) - r) for j, r in enumerate(p)])
    return rows


@pytest.mark.parametrize("inverse", ["exact", "published"])
@given(logits=strategies.logits(max_actions=30, finite=True), target=st.sampled_from([0.05, 0.6]))
def test_slope_is_that_of_the_implicit_function(inverse, logits, target):
    activate = era_activation(target, inverse=inverse).activate
    found = torch.autograd.functional.jacobian(activate, logits)
    expected = torch.tensor(slopes(logits.tolist(), target, 4.0, inverse), dtype=F64)
    # the steepness y / (y - 1) <= 3.6 doubles the error of y at most (its own slope is 1 / (y - 1)^2 <= 6.7): 1e-12 is
    # 4,500 eps, more than 20 times the error of a height; entries are at most 3.6 (m / a) p <= 3.6 * 0.35 / a
    least = constants(len(logits), target, 4.0)[0]
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12 / least)


@pytest.mark.parametrize("inverse", ["exact", "published"])
def test_slope_by_finite_differences(inverse):
    logits = torch.tensor([[0.3, -1.0, 2.0], [4.0, 0.0, 0.1]], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(era_activation(0.6, inverse=inverse).activate, (logits,))


@pytest.mark.parametrize("inverse", ["exact", "published"])
@given(data=st.data())
def test_slope_is_finite_everywhere(inverse, data):
    """One-hot, tied, far apart or -inf, and at tau = e, where a sure action sits on the branch point."""
    logits = data.draw(strategies.logits(dtype=data.draw(st.sampled_from([F64, torch.float32])))).requires_grad_()
    target, tau = data.draw(settings(len(logits)))
    found = entropy(era_activation(target, tau, inverse).activate(logits))
    (slope,) = torch.autograd.grad(found, logits)
    assert bool(found.isfinite()) and bool(slope.isfinite().all())


@given(strategies.logits(max_actions=30), st.sampled_from([0.05, 0.6]))
def test_published_inverse_is_the_authors_formula(logits, target):
    a, m = constants(len(logits), target, 4.0)
    found = era_activation(target, inverse="published").activate(logits).tolist()
    for z, p in zip(found, oracles.probabilities(logits.tolist()), strict=True):
        u = -1 - math.log(a + (m - a) * p)
        # du = dlog h, times (1 / sqrt(2u) + .75) <= 2.6 as u >= .0597 at tau = 4
        bound = 2.6 * (slack(len(logits), a, 2.2e-16) + SPREAD * 2.2e-16)
        assert z == pytest.approx(-1 - math.sqrt(2 * u) - 0.75 * u, abs=bound)


def test_training_hard_on_one_action_stops_at_the_floor():
    """Gradient ascent on the log-probability of one of four actions, without any bonus."""
    control = era_activation(target=0.3)
    logits = torch.zeros(4, dtype=F64, requires_grad=True)
    seen = []
    for _ in range(200):
        z = control.activate(logits)
        seen.append(float(entropy(z.detach())))
        (slope,) = torch.autograd.grad(torch.log_softmax(z, -1)[0], logits)
        logits = (logits + 100 * slope).detach().requires_grad_()
    assert seen[0] == pytest.approx(math.log(4)) and min(seen) >= 0.3
    assert float(torch.softmax(logits.detach(), -1)[0]) > 0.999  # the network itself has collapsed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_worked_out_in_single(dtype):
    logits = torch.tensor([3.0, 0.5, -torch.inf], dtype=dtype)
    found = era_activation().activate(logits)
    assert found.dtype == dtype and torch.equal(found, era_activation().activate(logits.float()).to(dtype))


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("actions", [2, 3, 10, 1000])
def test_targets_a_number_of_actions_can_have(actions, tau):
    bound = highest(actions, tau)
    if bound > 0:
        era_activation(target=bound, tau=tau).check_actions(actions)
        assert bound <= math.log(actions) + 1e-12  # log(tau) / tau <= 1 / e
    with pytest.raises(ValueError, match="allow at most"):
        era_activation(target=max(bound, 0.0) + 1e-6, tau=tau).check_actions(actions)


def test_two_actions_at_tau_4_have_at_most_0633():
    assert highest(2, 4.0) == pytest.approx(0.633, abs=5e-4)
    era_activation(target=0.633).check_actions(2)
    with pytest.raises(ValueError, match=r"era_activation.target is 0.634 nats, but 2 actions allow at most 0.6335"):
        era_activation(target=0.634).check_actions(2)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"target": 0.0}, "era_activation.target must be positive"),
        ({"target": math.nan}, "era_activation.target must be positive"),
        ({"tau": 2.7}, "era_activation.tau must be finite and at least e"),
        ({"inverse": "newton"}, "era_activation.inverse must be one of exact, published, got 'newton'"),
    ],
)
def test_activation_refuses(parameters, message):
    with pytest.raises(ValueError, match=message):
        era_activation(**parameters)


# --- the form for language models -----------------------------------------------------------------------------------

# Row entropies; the top max(1, floor(.2 * 3)) = 1 of three tokens: .4 (below .45), 3.2 (above 3), 1 (between).
ENTROPY = [[0.1, 0.4, 0.2], [0.1, 3.2, 0.5], [1.0, 0.2, 0.3]]
ADVANTAGE = [[1.0, -1.0, 0.9], [1.0, -1.0, 0.0], [1.0, -1.0, 2.0]]


def rows_batch(values=ENTROPY, advantage=ADVANTAGE):
    entropies, advantage = (torch.tensor(v, dtype=F64) for v in (values, advantage))
    logp = torch.full_like(entropies, -1.0)
    rows = torch.zeros(len(entropies), dtype=F64)
    return Batch(logp, logp, advantage, torch.ones_like(logp, dtype=torch.bool), entropies, rows, rows.long())


def test_era_by_hand():
    """Praised tokens of the first row are sharpened, of the second flattened; of the others nothing changes."""
    found = edited(era(), rows_batch())
    assert found.logit_scale.tolist() == [[2, 1, 2], [0.5, 1, 1], [1, 1, 1]]
    assert found.advantage.tolist() == [[0.5, -1, 0.45], [2, -1, 0], [1, -1, 2]]


def test_era_as_released_sharpens_from_advantage_1_and_scales_no_advantage():
    batch = rows_batch()
    found = edited(era(**PRESETS["era-code"]), batch)
    assert found.logit_scale.tolist() == [[2, 1, 1], [0.5, 1, 1], [1, 1, 1]]
    assert torch.equal(found.advantage, batch.advantage)
    assert found.clip_low.unique().tolist() == found.clip_high.unique().tolist() == [1.0]


@pytest.mark.parametrize(("fraction", "mean"), [(0.2, 0.4), (0.66, 0.4), (0.67, 0.3), (1.0, 0.7 / 3)])
def test_era_takes_the_fraction_of_each_row(fraction, mean):
    """Of .1, .4, .2: one token up to 2/3, then .4 and .2, then all."""
    batch = rows_batch()
    sharp = edited(era(entropy_low=mean + 1e-9, fraction=fraction), batch).logit_scale[0]
    plain = edited(era(entropy_low=mean - 1e-9, fraction=fraction), batch).logit_scale[0]
    assert sharp.tolist() == [2, 1, 2] and plain.tolist() == [1, 1, 1]


@given(strategies.batches(), st.sampled_from([0.2, 0.5, 1.0]), st.sampled_from(list(PRESETS)), st.data())
def test_era_by_loops(batch, fraction, preset, data):
    low, high, factor = 1.0, 2.0, 3.0
    parameters = PRESETS[preset] | {"entropy_low": low, "entropy_high": high, "factor": factor, "fraction": fraction}
    objective = data.draw(strategies.objectives(batch))
    found = edited(era(**parameters), batch, objective=objective)
    code = preset == "era-code"
    size = batch.mask.shape[-1]
    flat = [t.reshape(-1, size).tolist() for t in (batch.entropy, batch.advantage, batch.mask)]
    results = [t.reshape(-1, size).tolist() for t in (found.logit_scale, found.advantage)]
    for entropies, advantages, mask, scales, edits in zip(*flat, *results, strict=True):
        valid = sorted((h for h, m in zip(entropies, mask, strict=True) if m), reverse=True)
        top = valid[: max(1, int(fraction * len(valid)))]
        mean = math.fsum(top) / len(top) if top else 0.0
        if min(abs(mean - low), abs(mean - high)) < 1e-12:  # either side within rounding of six numbers below 3
            continue
        by = factor if mean < low else 1 / factor if mean > high else 1.0
        for a, m, scale, edit in zip(advantages, mask, scales, edits, strict=True):
            if m:
                expected = by if (a >= 1 if code else a > 0) else 1.0
                assert scale == pytest.approx(expected, rel=1e-15)
                assert edit == pytest.approx(a if code else a / expected, rel=1e-15)  # one division each


def test_in_the_gradient_the_factor_cancels():
    """d(A' log pi'_a) / dz = (A / k) k (e_a - pi') = A (e_a - softmax(k z)) for the praised token of a sure row."""
    batch = rows_batch([[0.1]], [[3.0]])
    objective = edited(era(factor=2.0), batch)
    z = torch.tensor([[[0.2, -0.4, 1.0]]], dtype=F64, requires_grad=True)
    logp, h = token_statistics(z * objective.logit_scale.unsqueeze(-1), torch.tensor([[1]]))
    (slope,) = torch.autograd.grad(token_loss(logp, h, batch, objective, reinforce).sum(), z)
    sharp = oracles.probabilities([0.4, -0.8, 2.0])
    expected = [-3 * ((i == 1) - p) for i, p in enumerate(sharp)]
    assert slope.flatten().tolist() == pytest.approx(expected, rel=1e-14)  # some ten roundings


def test_the_clip_of_the_run_stays_unless_told():
    batch = fixed_batch(fresh=False)
    plain = Objective.from_batch(batch, clip_low=0.1, clip_high=0.3)
    found = edited(era(), batch, objective=plain)
    assert identical(replace(found, advantage=plain.advantage, logit_scale=plain.logit_scale), plain)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"entropy_low": 3.0, "entropy_high": 1.0}, "0 <= entropy_low <= entropy_high, got 3.0 and 1.0"),
        ({"entropy_low": -0.1}, "0 <= entropy_low <= entropy_high"),
        ({"factor": 0.0}, "era.factor must be positive and finite, got 0.0"),
        ({"factor": math.inf}, "era.factor must be positive and finite"),
        ({"fraction": 20.0}, "not a percentage"),
        ({"clip": 0.0}, "era.clip must be positive"),
        ({"scales": "advantage"}, "era.scales must be one of logits_and_advantage, logits, got 'advantage'"),
        ({"praised": "all"}, "era.praised must be one of positive, integer, got 'all'"),
    ],
)
def test_era_refuses(parameters, message):
    with pytest.raises(ValueError, match=message):
        era(**parameters)
