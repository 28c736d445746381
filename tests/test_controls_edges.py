"""What controls do exactly at an edge (of a threshold, of rounding, among ties), and what a chain hands on."""

import math
from dataclasses import replace

import pytest
import torch
from closed_loop import after, batch_of, objective_after, tensor
from contract import NAMES, build, edited, fixed_batch, identical, start

from entropy_theory.control import chain
from entropy_theory.controls import CONTROLS, idle_parts, presets
from entropy_theory.controls import build as build_from_settings
from entropy_theory.controls.cov_state import drop
from entropy_theory.controls.egsw import group_softmax
from entropy_theory.controls.era import top_mean
from entropy_theory.controls.era_activation import exact_inverse, published_inverse
from entropy_theory.controls.lp_reg import above
from entropy_theory.controls.quantile_advantage import quantile_advantage
from entropy_theory.controls.steer import omega
from entropy_theory.records import Measurement, Objective, Sampling, map_tensors

EPS = torch.finfo(torch.float64).eps

# --- feedback -----------------------------------------------------------------------------------------------------


def bonuses(control, entropies):
    """The coefficient of the bonus before each of the entropies and after the last."""
    batch = batch_of([[-1.0]], [[1.0]])
    steps = range(len(entropies) + 1)
    return [float(objective_after(control, entropies[:n], batch).entropy_coef[0, 0]) for n in steps]


def test_aer_follows_the_entropy_with_groups_too():
    """All outcomes 0, so the share of the difficulty is 1. Target .4 * 1: at .2 nats alpha grows by .5 * .2."""
    control = CONTROLS["aer"](gain=0.5, high=1.0)
    assert bonuses(control, [1.0, 0.2, 0.2]) == pytest.approx([0.0, 0.0, 0.1, 0.2], abs=1e-16)  # one rounding each


@pytest.mark.parametrize(("easy", "first"), [(0.5, 0.1), (None, 0.1)])
def test_aer_by_the_sign_moves_by_one_size(easy, first):
    """Target .4: .39 nats and .01 nats raise by the gain, .41 lowers."""
    control = CONTROLS["aer"](easy=easy, gain=0.1, high=1.0, response="sign")
    found = bonuses(control, [1.0, 0.39, 0.01, 0.41])
    assert found == pytest.approx([0.0, 0.0, first, 0.2, 0.1], abs=1e-16)


def test_temperature_by_the_sign_moves_by_one_size():
    control = CONTROLS["temperature"](target=0.5, gain=0.1, response="sign")
    for entropies, log_factor in (([0.49], 0.1), ([0.0, 0.0], 0.2), ([3.0], -0.1)):
        found = control.sample(Sampling(tensor(1.0)), after(control, entropies)).temperature
        assert float(found) == pytest.approx(math.exp(log_factor), rel=4 * EPS)


@pytest.mark.parametrize(("at_target", "bonus"), [("hold", 0.2), ("raise", 0.3), ("lower", 0.0)])
def test_adaptive_entropy_at_its_target(at_target, bonus):
    """Twice below, then at the target: the paper holds .2, TRL raises to .3, the authors' code closes the gate."""
    control = build("adaptive_entropy", {"delta": 0.1, "at_target": at_target})
    assert bonuses(control, [0.1, 0.1, 0.2])[-1] == pytest.approx(bonus, abs=1e-16)


def test_a_factor_never_leaves_the_bounds_that_were_asked_for():
    """exp(log .03) is one rounding below .03, exp(log 3) above 3."""
    assert math.exp(math.log(0.03)) < 0.03 and math.exp(math.log(3)) > 3
    control = CONTROLS["temperature"](target=1.0, gain=1e3, low=0.03, high=3.0)
    for entropy, factor in ((0.0, 3.0), (5.0, 0.03)):
        assert float(control.sample(Sampling(tensor(1.0)), after(control, [entropy])).temperature) == factor


def test_a_coefficient_that_follows_the_kl_sees_it_in_a_chain():
    """KL .3 against a target of .1 is cut at +.2: times 1 + .2 / 2."""
    both = chain(build("none"), CONTROLS["kl_to_reference"]("k2", 1.0, target_kl=0.1, horizon=2.0))
    _, coefficient = both.advance(both.init(tensor(0.0)), Measurement(tensor(1.0), tensor(0.3)))
    assert float(coefficient) == pytest.approx(1.1, rel=EPS)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_in_double_precision_leaves_the_objective_in_its_own(name):
    single = map_tensors(fixed_batch(fresh=False), lambda t: t.float() if t.is_floating_point() else t)
    control = build(name)
    state = control.advance(control.init(tensor(0.0)), Measurement(tensor(0.1), tensor(0.3)))
    result = control.edit(Objective.from_batch(single), single, state)
    found = [t for t in vars(result).values() if isinstance(t, torch.Tensor)] + [p.coef for p in result.penalties]
    assert {t.dtype for t in found} == {torch.bool, torch.float32}
    assert control.sample(Sampling(torch.ones(())), state).temperature.dtype == torch.float32


# --- thresholds ---------------------------------------------------------------------------------------------------


def test_entropic_takes_tokens_above_its_threshold():
    """At .95 itself a token is not likely; e = -.1 and alpha = -.1 - .001."""
    edge = math.log(0.95)
    batch = batch_of([[math.nextafter(edge, -1), edge, math.nextafter(edge, 0)]], [[1.0] * 3])
    weight = objective_after(CONTROLS["entropic"](target=0.2), [0.1], batch).weight
    assert weight[0].tolist() == pytest.approx([1.0, 1.0, 1 - 0.101], rel=4 * EPS)


def test_lp_reg_has_no_part_in_tokens_without_advantage():
    batch = batch_of([[-5.0, -5.0, -5.0]], [[-1e-300, 0.0, 1e-300]], proxy_logp=[[-4.0] * 3])
    for among in ("all", "negative"):
        (penalty,) = edited(CONTROLS["lp_reg"](fraction=1.0, among=among), batch).penalties
        assert penalty.coef.tolist() == [[1.0, 0.0, 0.0]]


def test_lp_reg_takes_actions_above_a_fixed_threshold():
    """A probability of tau itself is filtered out, as in the paper; the likeliest stays at any tau."""
    logp = tensor([0.5, 0.25, 0.25]).log()
    quarter = float(logp[1].exp())
    assert above(quarter)(logp).tolist() == [True, False, False]
    assert above(math.nextafter(quarter, 0))(logp).tolist() == [True, True, True]
    assert above(0.9)(logp).tolist() == [True, False, False]


def test_era_leaves_a_row_at_either_end_of_its_band():
    """Rows of one token: their entropy is its own."""
    low, high = 0.45, 3.0
    entropies = [math.nextafter(low, 0), low, high, math.nextafter(high, 4)]
    batch = batch_of([[-1.0]] * 4, [[1.0]] * 4, entropy=[[h] for h in entropies])
    assert edited(CONTROLS["era"](), batch).logit_scale.flatten().tolist() == [2.0, 1.0, 1.0, 0.5]


def test_the_mean_of_a_row_without_tokens_is_nothing():
    values, mask = tensor([[1.0, 3.0], [math.nan, -math.inf]]), torch.tensor([[True, True], [False, False]])
    assert top_mean(values, mask, 1.0).tolist() == [[2.0], [0.0]]


@pytest.mark.parametrize("form", ["k1", "k2", "k3"])
def test_an_estimate_of_the_kl_at_the_limit_still_counts(form):
    """x = 2, 2, 2: k1 = k2 = 2, k3 = exp(-2) + 1, at its limit and below it."""
    at = 2.0 if form != "k3" else float(torch.exp(tensor(-2.0)) + 2.0 - 1)
    batch = batch_of([[-1.0]], [[0.0]], ref_logp=[[-3.0]])
    for limit, counts in ((at, True), (math.nextafter(at, 0), False)):
        found = edited(CONTROLS["kl_to_reference"](form, 1.0, limit), batch)
        pull = found.advantage[0, 0] if form == "k1" else found.penalties[0].coef[0, 0]
        assert bool(pull != 0) == counts


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 4), (torch.float32, 4)])
def test_at_the_branch_point_the_inverse_stands_half_a_rounding_off(dtype, rel):
    """h = 1/e rounds to u = 0 and is kept at eps/2: z = -1 - sqrt(eps) - 3/8 eps by the published form.

    The exact one solves y - log y = 1 + eps/2, y = 1 + sqrt(eps) + O(eps): both leave -1 by sqrt(eps), to one part in
    a thousand, which 2 eps or eps/3 in place of eps/2 would miss by a factor of 2 or of .8.
    """
    eps = torch.finfo(dtype).eps
    height = torch.tensor(math.exp(-1), dtype=dtype)
    assert float(-1 - torch.log(height)) == 0
    assert float(-1 - published_inverse(height)) == pytest.approx(math.sqrt(eps), abs=rel * eps)
    # Newton's quotient there is of two numbers near sqrt(eps), each wrong by eps
    assert float(-1 - exact_inverse(height)) == pytest.approx(math.sqrt(eps), rel=0.15)


@pytest.mark.parametrize("lowest", [0.03, 0.08, 0.16, 0.35, 0.7, 1.0])
def test_steer_never_goes_below_its_lowest_weight(lowest):
    """exp(log .03) is one rounding below .03; the largest token gets .03 itself."""
    weight = edited(CONTROLS["steer"](lowest_weight=lowest), fixed_batch(fresh=False)).weight
    mask = fixed_batch(fresh=False).mask
    assert float(weight[mask].min()) == lowest and float(weight[mask].max()) <= 1


def test_omega_has_the_sign_of_the_formula():
    """r A (1 - pi)(log pi + H) at pi = 1/2, H = 1, A = 2, ratio 3: 3 * (1 - log 2); and -A turns it round."""
    half = -math.log(2)
    batch = batch_of([[half, half, half]], [[2.0, -2.0, 7.0]], old_logp=[[half - math.log(3)] * 3])
    batch = replace(batch, mask=torch.tensor([[True, True, False]]))
    size = 3 * 2 * 0.5 * (1 + half)
    # exp of a rounded logarithm, a difference of 1 and .69, products
    assert omega(batch, Objective.from_batch(batch)).tolist() == [pytest.approx([size, -size, 0.0], rel=16 * EPS)]


# --- ties ---------------------------------------------------------------------------------------------------------


def test_equal_costs_are_dropped_in_order():
    """Forty costs of 1 and a surplus of 10.5: ten go, half of the eleventh. A sort that is not stable mixes them."""
    factor = drop(torch.ones(2, 20, dtype=torch.float64), tensor(10.5))
    assert factor.flatten().tolist() == [0.0] * 10 + [0.5] + [1.0] * 29


def test_equal_costs_are_dropped_in_order_among_others():
    """Costs 1, 2, 1, 2, ...: all of 2 (40) go first, then one of the ones and a quarter."""
    cost = tensor([[1.0, 2.0] * 20])
    factor = drop(cost, tensor(41.25)).flatten().tolist()
    assert factor[1::2] == [0.0] * 20 and factor[::2] == [0.0, 0.75] + [1.0] * 18


# --- what masked and padding entries get --------------------------------------------------------------------------


@pytest.mark.parametrize("valid", [[True, True, False, False], [True, True, True, False], [False] * 4])
def test_rows_without_a_token_get_no_advantage_and_no_weight(valid):
    """Whatever their outcome and group."""
    batch = batch_of([[-1.0]] * 4, [[3.0]] * 4, outcome=[0.0, 1.0, 1.0, 1.0], group=[0, 0, 0, 3])
    batch = replace(batch, mask=torch.tensor(valid).unsqueeze(-1))
    advantage = edited(quantile_advantage(), batch).advantage
    weight = group_softmax(torch.zeros(4, 1, dtype=torch.float64), batch.mask, batch.group)
    assert not advantage[~batch.mask].any() and not weight[~batch.mask].any()
    assert weight[batch.mask].eq(1).all()


def test_a_budget_for_a_target_takes_the_entropy_of_the_valid_tokens():
    """Worked by hand in `test_controls_budget`: s = 1/3 on two tokens of three. Two masked tokens change nothing."""
    h, unit = 1.5 * math.log(2), 0.1875 * math.log(2) / 3
    probability, action = [0.5, 0.25, 0.25], [0, 1, 2, 0, 0]
    logp = [[math.log(probability[a])] for a in action]
    batch = batch_of(logp, [[2.0], [2.0], [-1.0], [5.0], [-5.0]], entropy=[[h]] * 5)
    batch = replace(
        batch,
        collision=torch.full((5, 1), 0.0625 * math.log(2), dtype=torch.float64),
        mask=torch.tensor([[True]] * 3 + [[False]] * 2),
    )
    control = CONTROLS["budget"](request="target_entropy", target_entropy=h + 5 * unit, horizon=10, step_size=0.5)
    weight = edited(control, batch).weight[:3].flatten().tolist()
    assert weight == pytest.approx([1 / 3, 1.0, 1 / 3], abs=1e3 * EPS)  # H / unit = 24, and some 40 roundings


# --- clips, chains, settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "low", "high"),
    [
        ({}, 0.2, 0.2),
        ({"clip_low": 0.4}, 0.4, 0.2),
        ({"clip_high": 0.6}, 0.2, 0.6),
        (presets("clip_cov")["paper-7b"], 1.0, 1.0),
        (presets("clip_cov")["verl"], 0.2, 0.2),
    ],
)
def test_clip_cov_sets_the_clip_it_was_given(given, low, high):
    result = edited(CONTROLS["clip_cov"](**given), fixed_batch(fresh=False))
    assert (result.clip_low.unique().tolist(), result.clip_high.unique().tolist()) == ([low], [high])


def test_clip_cov_draws_tokens_that_its_own_clip_leaves_free():
    """At a ratio of 1.5 a praised token is beyond the run's clip of .2, and inside a clip of 1."""
    batch = batch_of([[-1.0]], [[1.0]], old_logp=[[-1.0 - math.log(1.5)]])
    everything = {"fraction": 1.0, "low": -9.0, "high": 9.0}
    assert edited(CONTROLS["clip_cov"](**everything), batch).weight.tolist() == [[1.0]]
    assert edited(CONTROLS["clip_cov"](**everything, clip_high=1.0), batch).weight.tolist() == [[0.0]]


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 1])
def test_clip_cov_draws_with_the_largest_seeds(seed):
    control = CONTROLS["clip_cov"](fraction=0.3, low=-1e9, high=1e9, seed=seed)
    batch = fixed_batch(fresh=True)
    weight = edited(control, batch).weight[batch.mask]
    assert int((weight == 0).sum()) == math.floor(0.3 * int(batch.mask.sum()))
    assert identical(start(control, batch)[:1], (torch.tensor(seed),))


def test_what_a_control_lacks_to_act_is_named():
    stale, states = "several updates per rollout", "several states"
    lacking = idle_parts("kl_cov+none+high_entropy_tokens", {}, frozenset())
    assert lacking == {"kl_cov": [stale], "high_entropy_tokens": [states]}


@pytest.mark.parametrize("name", NAMES)
def test_a_control_by_itself_is_no_chain(name):
    """Built from settings it keeps its state as it is, and says without what it is idle."""
    one, other = build_from_settings(name, {}), CONTROLS[name]()
    assert (one.needs, one.idle_without) == (other.needs, other.idle_without)
    like = tensor([0.0, 0.0])
    assert identical((one.init(like),), (other.init(like),))


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("kl_cov.coef.x", "control kl_cov has no parameter 'coef.x'"),
        ("kl_cov.x.preset", "control kl_cov has no parameter 'x.preset'"),
    ],
)
def test_a_key_ends_its_control_at_the_first_dot(key, says):
    with pytest.raises(ValueError, match=says):
        build_from_settings("kl_cov", {key: 1.0})


def test_choices_are_listed():
    with pytest.raises(ValueError, match=r"its presets are: paper-7b, paper-32b, verl$"):
        build_from_settings("clip_cov", {"clip_cov.preset": "nobody"})
    with pytest.raises(ValueError, match=r"^egsw.level must be one of step, trajectory, got 'token'"):
        build_from_settings("egsw", {"egsw.level": "token"})
