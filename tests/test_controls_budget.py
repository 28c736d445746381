"""The two controls that act on the exact first-order effect of each token: cov_state and budget.

The oracle is the formula by loops and `math.fsum`; and in a tabular policy a real gradient step through the loss, which
knows no effects at all.
"""

import json
import math
from dataclasses import replace

import numpy as np
import oracles
import pytest
import strategies
import torch
from contract import bits, edited, fixed_batch, start
from hypothesis import assume, given
from hypothesis import strategies as st
from test_effect import predicted, tokens

from entropy_theory.control import Need, chain, check_fits
from entropy_theory.controls import CONTROLS
from entropy_theory.controls.effect import effects
from entropy_theory.loss import minibatch_loss, token_loss
from entropy_theory.records import Batch, Objective, map_tensors
from entropy_theory.reduce import token_count
from entropy_theory.remainder import remainder_bound, second_order_remainder_bound, spread
from entropy_theory.runs import Run
from entropy_theory.softmax import collision, entropy, token_statistics
from sims import bandit
from sims.bandit_config import BanditConfig

DOUBLE = torch.float64
EPS = torch.finfo(DOUBLE).eps
RULES = ("drop", "reweight")


def counts(batch):
    return token_count(batch.mask).flatten().tolist()


# --- cov_state ----------------------------------------------------------------------------------------------------


def three_tokens():
    r"""Policy (.5, .25, .25), A = (2, 2, -1) for actions 0, 1, 2, ratios 1: H = 1.5 ln 2, C = .0625 ln 2.

    pi c - C = .1875 ln 2 for action 0 and -.1875 ln 2 for the others (`test_controls_weights`), so
    e = (-.375, .375, -.1875) ln 2: the sum is -.1875 ln 2.
    """
    logits = torch.tensor([0.5, 0.25, 0.25], dtype=DOUBLE).log()
    return state_batch(logits, torch.tensor([0, 1, 2]), torch.tensor([2.0, 2.0, -1.0], dtype=DOUBLE))


def state_batch(logits, action, advantage, old_logits=None):
    """Pulls of one state, each a row of one token."""

    def column(values):
        return values.expand(len(action)).unsqueeze(-1).clone()

    logp, h = token_statistics(logits.expand(len(action), -1), action)
    old = logp if old_logits is None else token_statistics(old_logits.expand(len(action), -1), action)[0]
    return Batch(
        logp=column(logp),
        old_logp=column(old),
        advantage=column(advantage),
        mask=torch.ones(len(action), 1, dtype=torch.bool),
        entropy=column(h),
        outcome=torch.zeros(len(action), dtype=DOUBLE),
        group=torch.zeros(len(action), dtype=torch.int64),
        collision=column(collision(logits)),
    )


def test_cov_state_by_hand():
    r"""In units of .1875 ln 2 the effects are -2, 2, -1, their sum -1; half of it may stay, so .5 must go.

    drop: .5 of the first token's 2, weight .75. reweight: a level of 1.5 takes it off the same token, weight .75.
    Keeping nothing, 1 must go: drop leaves weight .5 of the first; a level of 1 leaves .5 as well.
    """
    for rule in RULES:
        for keep, expected in ((0.5, [0.75, 1.0, 1.0]), (0.0, [0.5, 1.0, 1.0]), (1.0, [1.0] * 3)):
            weight = edited(CONTROLS["cov_state"](keep=keep, rule=rule), three_tokens()).weight
            assert weight.flatten().tolist() == pytest.approx(expected, abs=16 * EPS)  # roundings of effects near 1


@given(strategies.batches(), st.floats(0, 1), st.sampled_from(RULES), st.data())
def test_cov_state_leaves_the_share_of_the_predicted_loss(batch, keep, rule, data):
    """Whatever another control has done before it; and nothing changes where entropy is not predicted to fall."""
    objective = data.draw(strategies.objectives(batch))
    result = edited(CONTROLS["cov_state"](keep=keep, rule=rule), batch, objective=objective)
    before, after = predicted(batch, objective), predicted(batch, result)
    for (whole, _, bound), (left, _, _) in zip(before, after, strict=True):
        assert left == pytest.approx(keep * whole if whole < 0 else whole, abs=bound)
    changed = result.weight != objective.weight
    assert not (changed & ~(effects(batch, objective) < 0)).any()
    assert (result.weight <= objective.weight).all()


@given(strategies.batches())
def test_dropping_touches_the_fewest_tokens(batch):
    """One fewer, even those of most negative effect, would take off too little; and at most one is left a fraction."""
    plain = Objective.from_batch(batch)
    weight = edited(CONTROLS["cov_state"](rule="drop"), batch, objective=plain).weight
    touched = ((weight != plain.weight) & batch.mask).sum((-2, -1)).flatten().tolist()
    partly = ((weight > 0) & (weight < 1) & batch.mask).sum((-2, -1)).flatten().tolist()
    for number, part, found, (whole, _, bound) in zip(
        touched, partly, tokens(batch, plain), predicted(batch, plain), strict=True
    ):
        costs = sorted((-e for e, _ in found if e < 0), reverse=True)
        assert part <= 1
        assert number == 0 or math.fsum(costs[: number - 1]) <= 0.5 * max(-whole, 0.0) + bound


# --- budget -------------------------------------------------------------------------------------------------------


def test_budget_by_hand():
    r"""In units of .1875 ln 2 / 3: positive part 2, negative part -3, predicted -1.

    Half of it: s = (-.5 - 2) / -3 = 5/6. None of it: s = 2/3. A requested rise by 1: s = 1/3; by 3: s = 0.
    """
    unit = 0.1875 * math.log(2) / 3
    cases = [
        ({"share": 0.5}, 5 / 6),
        ({"share": 0.0}, 2 / 3),
        ({"request": "change", "change": 0.1 * unit, "step_size": 0.1}, 1 / 3),
        ({"request": "change", "change": 3 * unit}, 0.0),
        ({"request": "change", "change": -4 * unit}, 1.0),
        ({"request": "change", "change": -4 * unit, "limit": 5.0}, 2.0),
    ]
    h = 1.5 * math.log(2)
    # 10 steps of size .5 from H to H + 10 * .5 * unit
    towards = {"request": "target_entropy", "target_entropy": h + 5 * unit, "horizon": 10, "step_size": 0.5}
    for parameters, s in [*cases, (towards, 1 / 3)]:
        weight = edited(CONTROLS["budget"](**parameters), three_tokens()).weight.flatten().tolist()
        assert weight == pytest.approx([s, 1.0, s], abs=1e3 * EPS)  # H / unit = 24, and some 40 roundings


REQUESTS = {
    "share": lambda d: {"share": d(st.floats(0, 1))},
    "change": lambda d: {"change": d(st.floats(-0.1, 0.1)), "step_size": d(st.floats(0.1, 2))},
    "target_entropy": lambda d: {
        "target_entropy": d(st.floats(0.1, 3)),
        "horizon": d(st.floats(1, 1000)),
        "step_size": d(st.floats(0.1, 2)),
    },
}


def requested(parameters, whole, mean_entropy):
    """The rate, by its definition."""
    rates = {
        "share": lambda: parameters["share"] * whole if whole < 0 else whole,
        "change": lambda: parameters["change"] / parameters["step_size"],
        "target_entropy": lambda: (
            (parameters["target_entropy"] - mean_entropy) / parameters["horizon"] / parameters["step_size"]
        ),
    }
    return rates[parameters["request"]]()


@given(strategies.batches(), st.sampled_from(sorted(REQUESTS)), st.data())
def test_budget_meets_its_request_or_stands_at_an_end(batch, request, data):
    """Predicted change, mean over tokens, of the edited objective = the request, where 0 <= s <= limit."""
    objective = data.draw(strategies.objectives(batch))
    limit = data.draw(st.sampled_from([1.0, 3.0]))
    parameters = {"request": request, "limit": limit, **REQUESTS[request](data.draw)}
    result = edited(CONTROLS["budget"](**parameters), batch, objective=objective)
    before, after = predicted(batch, objective), predicted(batch, result)
    shape = (-1, *batch.mask.shape[-2:])
    entropies = batch.entropy.reshape(shape).tolist(), batch.mask.reshape(shape).tolist()
    for n, (whole, falling, bound), (left, _, _), h, mask in zip(counts(batch), before, after, *entropies, strict=True):
        mean_entropy = oracles.mean(oracles.flat(h), [float(m) for m in oracles.flat(mask)])
        rate = requested(parameters, whole / n, mean_entropy)
        ends = sorted([whole - falling, whole + (limit - 1) * falling])
        expected = min(max(n * rate, ends[0]), ends[1])
        # the request itself errs by n roundings of the mean entropy, over horizon * step_size >= .1, in the sum n times
        slack = limit * bound + n * (n + 8) * EPS * (abs(rate) + 10 * mean_entropy * (request == "target_entropy"))
        assert left == pytest.approx(expected, abs=slack)
    falls = effects(batch, objective) < 0
    assert torch.equal(result.weight[~falls], objective.weight[~falls])


@given(strategies.batches(leading=(2,)))
def test_one_factor_for_all_tokens_that_lower_entropy(batch):
    result = edited(CONTROLS["budget"](share=0.3), batch)
    falls = effects(batch, Objective.from_batch(batch)) < 0
    for weight, fall in zip(result.weight, falls, strict=True):
        assert len(set(weight[fall].tolist())) <= 1


def test_a_target_no_policy_can_have_is_refused_only_where_it_is_used():
    aiming = CONTROLS["budget"](request="target_entropy", target_entropy=1.0)
    with pytest.raises(ValueError, match=r"budget.target_entropy is 1 nats, but 2 actions allow at most 0\.6931"):
        check_fits("budget", aiming, "the bandit", frozenset(Need), 2)
    check_fits("budget", CONTROLS["budget"](target_entropy=1.0), "the bandit", frozenset(Need), 2)


# --- a real step --------------------------------------------------------------------------------------------------


@st.composite
def pulls(draw):
    """(logits, batch) of one state: sampled actions, stale ratios or fresh ones, some clipped."""
    rng = draw(strategies.generators())
    actions, count = draw(st.integers(2, 6)), draw(st.integers(4, 40))
    logits = torch.from_numpy(rng.normal(0, 1.5, actions))
    old = logits + draw(st.sampled_from([0.0, 0.3])) * torch.from_numpy(rng.normal(size=actions))
    action = torch.from_numpy(rng.choice(actions, count, p=old.softmax(-1).numpy()))
    return logits, action, state_batch(logits, action, torch.from_numpy(rng.normal(size=count)), old)


def stepped(logits, action, batch, objective, step_size):
    """Logits after one gradient step through the loss, which knows nothing of effects."""
    leaf = logits.clone().requires_grad_()
    logp, h = token_statistics(leaf.expand(len(action), -1), action)
    loss = token_loss(logp.unsqueeze(-1), h.unsqueeze(-1), batch, objective)
    (gradient,) = torch.autograd.grad(minibatch_loss(loss, token_count(objective.mask)), leaf)
    return logits - step_size * gradient


CHOSEN = (("cov_state", {"keep": 0.4, "rule": "drop"}), ("cov_state", {"keep": 0.4}), ("budget", {"share": 0.4}))


@pytest.mark.parametrize(("name", "parameters"), CHOSEN)
@given(drawn=pulls(), size=st.floats(-4, 0))
def test_a_step_of_a_table_changes_entropy_as_asked(name, parameters, drawn, size):
    """.4 of the predicted loss, up to the proved bound on what Lemma 1 leaves out, and rounding."""
    logits, action, batch = drawn
    plain, step_size = Objective.from_batch(batch), 10**size
    ((whole, _, bound),) = predicted(batch, plain)
    assume(whole < 0)
    after = stepped(logits, action, batch, edited(CONTROLS[name](**parameters), batch), step_size)
    change = float(entropy(after) - entropy(logits))
    full = torch.ones_like(logits)
    allowed = float(remainder_bound(spread(after - logits, full), len(logits)))
    # entropies below ln 6 < 2 err by (actions + 8) roundings each
    rounding = step_size * bound / len(action) + 4 * (len(logits) + 8) * EPS
    assert abs(change - step_size * 0.4 * whole / len(action)) <= allowed + rounding


@pytest.mark.parametrize(("name", "parameters"), CHOSEN)
def test_halving_the_step_divides_the_error_by_four(name, parameters):
    """Slope 2: error(eta) - 4 error(eta / 2) is of third order, within the proved bounds of both, the error is not.

    Likely actions are praised, so that entropy is predicted to fall.
    """
    rng = np.random.default_rng(3)
    logits = torch.from_numpy(rng.normal(0, 1.5, 5))
    action = torch.from_numpy(rng.choice(5, 60, p=logits.softmax(-1).numpy()))
    batch = state_batch(logits, action, logits[action] + 0.3 * torch.from_numpy(rng.normal(size=60)))
    ((whole, _, _),) = predicted(batch, Objective.from_batch(batch))
    assert whole < 0
    objective = edited(CONTROLS[name](**parameters), batch)
    full = torch.ones_like(logits)
    for step_size in (1.0, 0.5, 0.25, 0.125):
        errors, bounds = [], []
        for eta in (step_size, step_size / 2):
            change = stepped(logits, action, batch, objective, eta) - logits
            errors.append(float(entropy(logits + change) - entropy(logits)) - eta * 0.4 * whole / 60)
            bounds.append(float(second_order_remainder_bound(spread(change, full), 5)))
        assert abs(errors[0] - 4 * errors[1]) <= bounds[0] + 4 * bounds[1] + 1e3 * EPS
    assert abs(errors[1]) > bounds[1]


def test_states_that_share_no_parameters_add_up():
    """Two states in one minibatch: step_size * mean effect is the sum of the two changes, to first order."""
    rng = np.random.default_rng(5)
    tables = [torch.from_numpy(rng.normal(size=4)) for _ in range(2)]
    parts = []
    for table in tables:
        action = torch.from_numpy(rng.integers(0, 4, 10))
        parts.append((table, action, state_batch(table, action, torch.from_numpy(rng.normal(size=10)))))
    fields = zip(*(vars(part).values() for _, _, part in parts), strict=True)
    both = Batch(*(None if one is None else torch.cat([one, two]) for one, two in fields))
    request = CONTROLS["budget"](request="change", change=1e-7, step_size=1e-4, limit=50.0)
    objective = edited(request, both)
    total, allowed = 0.0, 0.0
    for (table, action, part), rows in zip(parts, (slice(0, 10), slice(10, 20)), strict=True):
        # of 20 tokens, not of 10
        one = replace(Objective.from_batch(part), weight=objective.weight[rows] / 2)
        after = stepped(table, action, part, one, 1e-4)
        total += float(entropy(after) - entropy(table))
        allowed += float(remainder_bound(spread(after - table, torch.ones_like(table)), 4))
    # entropies below ln 4 < 2 err by 12 roundings each
    assert total == pytest.approx(1e-7, abs=allowed + 4 * 12 * EPS)


def final_entropy(tmp_path, control, settings):
    """Mean entropy of each seed after 80 rollouts of 4 updates."""
    config = BanditConfig(control=control, set=settings, seeds=2, problems=4, rollouts=80, record_every=80)
    with Run(tmp_path / control, {"control": control}) as run:
        bandit.train(config, run)
    return json.loads((tmp_path / control / "metrics.jsonl").read_text().splitlines()[-1])["entropy"]


def test_a_bandit_stands_at_the_entropy_it_was_given(tmp_path):
    """Its steps are those of the prediction (a table, plain gradient, step_size .5), so no gain has to be tuned.

    Entropy comes down from some 1.9 nats. At an error of .1 nats the request is .005 nats a step towards the target,
    and 320 steps are 16 horizons, so what remains is what Lemma 1 leaves out of a step.
    """
    asked = {"request": "target_entropy", "target_entropy": 1.0, "horizon": 20.0, "step_size": 0.5}
    held = final_entropy(tmp_path, "budget", {f"budget.{name}": value for name, value in asked.items()})
    free = final_entropy(tmp_path, "none", {})
    assert max(abs(h - 1.0) for h in held) < 0.1
    assert max(free) < 0.5


# --- the contract, for the settings that the table of controls does not name ----------------------------------------

VARIANTS = [
    ("cov_state", {"rule": "drop"}),
    ("steer", {"effect": "exact"}),
    ("budget", {"request": "change", "change": 0.05, "limit": 3.0}),
    ("budget", {"request": "target_entropy", "target_entropy": 1.5, "horizon": 2.0}),
]


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
@given(batch=strategies.batches(dtype=None), rng=strategies.generators())
def test_variants_keep_dtype_and_do_not_see_what_is_masked(name, parameters, batch, rng):
    """Nor fields that the control does not name as its needs."""
    control = CONTROLS[name](**parameters)

    def spoil(t):
        if t.shape != batch.mask.shape or not t.is_floating_point():
            return t
        return torch.where(batch.mask, t, torch.from_numpy(rng.choice(strategies.GARBAGE, tuple(t.shape))).to(t.dtype))

    nothing = {"ref_logp": None, "proxy_logp": None, "micro_batch": None}
    spoiled = replace(map_tensors(batch, spoil), **nothing)
    one, two = (edited(control, b) for b in (batch, spoiled))
    assert one.weight.dtype == batch.logp.dtype
    assert torch.equal(one.weight[batch.mask], two.weight[batch.mask]) and torch.isfinite(one.weight[batch.mask]).all()


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
@given(batch=strategies.batches(leading=(3,)), rng=strategies.generators())
def test_variants_keep_replicas_apart_and_the_order_of_rows_does_not_matter(name, parameters, batch, rng):
    control = CONTROLS[name](**parameters)
    weight = edited(control, batch).weight
    order = torch.from_numpy(rng.permutation(batch.mask.shape[-2]))
    for replica in range(3):
        one = map_tensors(batch, lambda t, r=replica: t[r])
        alone = edited(control, one).weight
        moved = edited(control, map_tensors(one, lambda t: t[order])).weight
        assert torch.equal(bits(weight[replica]), bits(alone))
        assert torch.equal(bits(moved[one.mask[order]]), bits(alone[order][one.mask[order]]))


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_variants_branch_on_no_value(name, parameters):
    """On "meta" tensors any branch on a value raises."""
    batch = map_tensors(fixed_batch(fresh=False), lambda t: t.to("meta"))
    assert edited(CONTROLS[name](**parameters), batch).weight.device.type == "meta"


# --- chains and refusals ------------------------------------------------------------------------------------------


def test_the_last_of_a_chain_has_the_last_word():
    """Clip-Cov first, a budget after it: the request is met on what Clip-Cov has left, not on what was there."""
    batch = fixed_batch(fresh=True)
    before = CONTROLS["weighted_reinforce"](positive_weight=0.3)
    both = chain(before, CONTROLS["budget"](share=0.5))
    halved, reweighted = edited(both, batch), edited(before, batch)
    ((whole, _, bound),), ((left, _, _),) = predicted(batch, reweighted), predicted(batch, halved)
    assert whole < 0 and left == pytest.approx(whole / 2, abs=bound)
    assert start(both, batch) == ((), ())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cov_state", {"keep": 1.5}, r"cov_state.keep must lie in \[0, 1\], got 1.5"),
        ("cov_state", {"keep": math.nan}, "cov_state.keep.*nan"),
        ("cov_state", {"rule": "clip"}, "cov_state.rule must be one of drop, reweight, got 'clip'"),
        ("budget", {"request": "all"}, "budget.request must be one of share, change, target_entropy, got 'all'"),
        ("budget", {"share": -0.1}, r"budget.share must lie in \[0, 1\], got -0.1"),
        ("budget", {"change": math.inf}, "budget.change must be finite, got inf"),
        ("budget", {"target_entropy": 0.0}, "budget.target_entropy must be positive and finite, got 0"),
        ("budget", {"horizon": 0.0}, "budget.horizon must be positive and finite, got 0"),
        ("budget", {"step_size": -1.0}, "budget.step_size must be positive and finite, got -1"),
        ("budget", {"limit": math.inf}, "budget.limit must be at least 0 and finite, got inf"),
        ("budget", {"limit": -1.0}, "budget.limit must be at least 0 and finite, got -1"),
    ],
)
def test_bad_parameters_are_refused_by_name_and_value(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        CONTROLS[name](**arguments)
