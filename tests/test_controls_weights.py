"""Controls that weigh tokens or rows: weighted REINFORCE, STEER, quantile advantage."""

import itertools
import math
from dataclasses import replace

import numpy as np
import oracles
import pytest
import strategies
import torch
from contract import bits, edited, fixed_batch
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.control import Need
from entropy_theory.controls import CONTROLS
from entropy_theory.records import Batch, Objective, map_tensors

DOUBLE = torch.float64
EPS = torch.finfo(DOUBLE).eps


def one_state(probability, action, advantage, old_probability=None):
    """Pulls of one state: each row one token, with the state's exact entropy and collision."""
    logits = [math.log(p) for p in probability]
    old = old_probability or probability

    def column(values):
        return torch.tensor(values, dtype=DOUBLE).unsqueeze(-1)

    count = len(action)
    return Batch(
        logp=column([math.log(probability[a]) for a in action]),
        old_logp=column([math.log(old[a]) for a in action]),
        advantage=column(advantage),
        mask=torch.ones(count, 1, dtype=torch.bool),
        entropy=column([oracles.entropy(logits)] * count),
        outcome=torch.zeros(count, dtype=DOUBLE),
        group=torch.zeros(count, dtype=torch.int64),
        collision=column([oracles.collision(logits)] * count),
    )


def replicas(*tensors):
    """Nested [rows][steps] lists of each replica."""
    return zip(*(t.reshape(-1, *t.shape[-2:]).tolist() for t in tensors), strict=True)


# --- weighted REINFORCE -------------------------------------------------------------------------------------------


def test_weighted_reinforce_by_hand():
    """Advantages 1, -2, 0: weights .1, 1, 1; with the ends of the scale 0, 1, 1 and 1, 0, 1."""
    batch = one_state([0.6, 0.3, 0.1], [0, 1, 2], [1.0, -2.0, 0.0])
    for parameters, expected in (
        ({}, [0.1, 1.0, 1.0]),
        ({"positive_weight": 0.0}, [0.0, 1.0, 1.0]),
        ({"positive_weight": 1.0, "negative_weight": 0.0}, [1.0, 0.0, 1.0]),
    ):
        assert edited(CONTROLS["weighted_reinforce"](**parameters), batch).weight.flatten().tolist() == expected


@given(strategies.batches(), st.data())
def test_weighted_reinforce_scales_each_sign_of_the_edited_advantage(batch, data):
    """What is there already is multiplied: weights, and signs that another control has turned."""
    objective = data.draw(strategies.objectives(batch))
    objective = replace(objective, advantage=-objective.advantage)
    factors = {1: data.draw(st.sampled_from([0.0, 0.1, 3.0])), -1: data.draw(st.sampled_from([0.5, 1.0])), 0: 1.0}
    control = CONTROLS["weighted_reinforce"](positive_weight=factors[1], negative_weight=factors[-1])
    result = edited(control, batch, objective=objective)
    for row in replicas(result.weight, objective.weight, objective.advantage, batch.mask):
        for ours, before, advantage, valid in zip(*(oracles.flat(part) for part in row), strict=True):
            sign = (advantage > 0) - (advantage < 0)
            assert not valid or ours == before * factors[sign]


# --- STEER --------------------------------------------------------------------------------------------------------


def test_steer_by_hand():
    r"""Policy (.5, .25, .25), A = (1, -1, 2) for actions 0, 1, 2, ratios 1: H = 1.5 ln 2.

    c = (-1 + 1.5) ln 2 = .5 ln 2 for action 0, (-2 + 1.5) ln 2 = -.5 ln 2 for the others.
    Omega = A (1 - pi) c = .25 ln 2, .375 ln 2, -.75 ln 2: the sizes stand as 1/3 : 1/2 : 1.
    With lowest weight .7 the weights are .7^(1/3), .7^(1/2), .7.
    """
    batch = one_state([0.5, 0.25, 0.25], [0, 1, 2], [1.0, -1.0, 2.0])
    weight = edited(CONTROLS["steer"](), batch).weight.flatten().tolist()
    # a dozen roundings, of exp, log and products near 1
    assert weight == pytest.approx([0.7 ** (1 / 3), 0.7**0.5, 0.7], rel=12 * EPS)


def test_steer_with_the_exact_effect_by_hand():
    r"""The policy of `test_steer_by_hand`: C = (.25 * .5 - 2 * .0625 * .5) ln 2 = .0625 ln 2.

    pi c - C = (.25 - .0625) ln 2 = .1875 ln 2 for action 0, (-.125 - .0625) ln 2 = -.1875 ln 2 for the others. With
    A = (1, -1, 2) the sizes stand as 1/2 : 1/2 : 1.
    """
    batch = one_state([0.5, 0.25, 0.25], [0, 1, 2], [1.0, -1.0, 2.0])
    control = CONTROLS["steer"](effect="exact", lowest_weight=0.64)
    assert edited(control, batch).weight.flatten().tolist() == pytest.approx([0.8, 0.8, 0.64], rel=12 * EPS)
    assert control.needs == {Need.SAMPLES, Need.COLLISION} and CONTROLS["steer"]().needs == {Need.SAMPLES}


def published_steer(logp, old_logp, entropy, advantage, mask, lowest, floor):
    """Weights of one replica, flat; None where masked."""
    rows = list(zip(*map(oracles.flat, (logp, old_logp, entropy, advantage, mask)), strict=True))
    sizes = [abs(a / math.exp(o) * math.exp(n) * -math.expm1(n) * (n + h)) if m else None for n, o, h, a, m in rows]
    largest = max([s for s in sizes if s is not None], default=0.0)
    k = -math.log(lowest) / max(largest, floor)
    return [None if s is None else min(max(math.exp(-k * s), lowest), 1.0) for s in sizes]


@given(strategies.batches(), st.floats(0.05, 1.0), st.sampled_from([1e-3, 0.02, 5.0]))
def test_steer_equals_a_re_implementation_of_the_published_weights(batch, lowest, floor):
    result = edited(CONTROLS["steer"](lowest_weight=lowest, floor=floor), batch).weight
    stacks = replicas(result, batch.logp, batch.old_logp, batch.entropy, batch.advantage, batch.mask)
    for ours, *published in stacks:
        expected = published_steer(*published, lowest, floor)
        for mine, theirs in zip(oracles.flat(ours), expected, strict=True):
            # no sum cancels but logp + H, of exact inputs, and expm1 keeps 1 - pi: each size and the maximum err by
            # some 10 roundings, so the exponent, at most -ln .05 = 3, by 3 * 20 eps, and a weight is at most 1
            assert theirs is None or mine == pytest.approx(theirs, abs=60 * EPS)


def test_one_outlier_switches_steer_off_for_the_others():
    """An advantage of 1,000 at one token: every other weight is above .7^(1/500)."""
    batch = one_state([0.5, 0.25, 0.25], [0, 1, 2, 2], [1.0, -1.0, 2.0, 1000.0])
    weight = edited(CONTROLS["steer"](), batch).weight.flatten()
    assert float(weight[3]) == 0.7 and float(weight[:3].min()) > 0.7 ** (1 / 400)


@given(strategies.batches())
def test_steer_of_the_code_takes_the_maximum_of_each_micro_batch(batch):
    """Presets: .7 over the minibatch, .8 by micro-batch; the largest token of each gets the lowest weight."""
    result = edited(CONTROLS["steer"](lowest_weight=0.8, scope="microbatch", floor=1e-300), batch).weight
    ids = batch.micro_batch.unsqueeze(-1).expand(batch.mask.shape)
    for weight, mask, entropy, logp, number in replicas(result, batch.mask, batch.entropy, batch.logp, ids):
        seen = {}
        for w, m, h, n, i in zip(*map(oracles.flat, (weight, mask, entropy, logp, number)), strict=True):
            if m and n + h != 0:
                seen.setdefault(i, []).append(w)
        assert all(min(weights) == 0.8 for weights in seen.values())


# --- quantile advantage -------------------------------------------------------------------------------------------


def rows_batch(outcome, group, mask=None):
    """One-token rows with outcomes and groups."""
    batch = one_state([0.5, 0.5], [0] * len(outcome), [0.0] * len(outcome))
    valid = torch.ones(len(outcome), 1, dtype=torch.bool) if mask is None else torch.tensor(mask).unsqueeze(-1)
    return replace(batch, outcome=torch.tensor(outcome, dtype=DOUBLE), group=torch.tensor(group), mask=valid)


def test_quantile_advantage_by_hand():
    """Outcomes 0, 0, 1: p = 1/3 <= 1 - .4, so b = 0; std = sqrt(1/3): A = 0, 0, sqrt 3. At .7 > 2/3, b = 1."""
    batch = rows_batch([0.0, 0.0, 1.0], [0, 0, 0])
    rare = edited(CONTROLS["quantile_advantage"](eps=1e-12), batch).advantage.flatten().tolist()
    assert rare == pytest.approx([0.0, 0.0, math.sqrt(3)], rel=1e-11)  # eps / std
    often = edited(CONTROLS["quantile_advantage"](quantile=0.7, eps=1e-12), batch).advantage.flatten().tolist()
    assert often == pytest.approx([-math.sqrt(3), -math.sqrt(3), 0.0], rel=1e-11)


@given(st.integers(1, 40), st.data())
def test_quantile_advantage_of_binary_outcomes_is_the_published_rule(size, data):
    """b = 0 where p <= 1 - K and 1 elsewhere: on hard prompts only successes count, on easy ones only failures.

    K is drawn as hundredths, so that p <= 1 - K is decided in whole numbers.
    """
    ones = data.draw(st.integers(0, size))
    hundredths = data.draw(st.integers(1, 99))
    batch = rows_batch([1.0] * ones + [0.0] * (size - ones), [0] * size)
    advantage = edited(CONTROLS["quantile_advantage"](quantile=hundredths / 100), batch).advantage.flatten().tolist()
    baseline = 0.0 if 100 * ones <= (100 - hundredths) * size else 1.0
    for value, outcome in zip(advantage, batch.outcome.tolist(), strict=True):
        assert np.sign(value) == np.sign(outcome - baseline)


def test_a_share_of_failures_equal_to_the_quantile_is_enough():
    """p = 1 - K to the digit: b = 0. In doubles .07 * 100 > 7 and .29 * 100 < 29, yet 7 / 100 is .07, as written."""
    for size in (5, 10, 20, 25, 100):
        for zeros in range(1, size):
            batch = rows_batch([0.0] * zeros + [1.0] * (size - zeros), [0] * size)
            at = edited(CONTROLS["quantile_advantage"](quantile=float(f"{zeros / size:.2f}")), batch).advantage
            assert float(at.min()) == 0 and float(at.max()) > 0, (zeros, size)


def quantile_advantages(outcome, group, valid, quantile, eps):
    """By loops: the smallest outcome that at least `quantile` of the group's valid rows do not exceed."""
    found = []
    for r, g in zip(outcome, group, strict=True):
        peers = sorted(q for q, h, v in zip(outcome, group, valid, strict=True) if h == g and v)
        b = next(q for k, q in enumerate(peers, 1) if k / len(peers) >= quantile) if peers else 0.0
        centre = math.fsum(peers) / max(len(peers), 1)
        spread = math.fsum((q - centre) ** 2 for q in peers)
        std = math.sqrt(spread / (len(peers) - 1)) if len(peers) > 1 else 0.0
        found.append((r - b) / ((std if peers and peers[0] != peers[-1] else 0.0) + eps))
    return found


@given(strategies.batches(min_rows=3), st.floats(0.01, 0.99), strategies.generators())
def test_quantile_advantage_equals_the_loop(batch, quantile, rng):
    """Any outcomes, any groups, and rows without a valid token, which belong to no group."""
    outcome = torch.from_numpy(rng.uniform(0, 1, tuple(batch.outcome.shape)))
    outcome = torch.where(torch.from_numpy(rng.random(tuple(outcome.shape)) < 0.5), outcome, batch.outcome)
    batch = replace(batch, outcome=outcome)
    result = edited(CONTROLS["quantile_advantage"](quantile=quantile, eps=1e-3), batch).advantage
    by_row = [t.reshape(-1, t.shape[-1]).tolist() for t in (outcome, batch.group, batch.mask.any(-1))]
    for replica, parts in enumerate(zip(*by_row, strict=True)):
        expected = quantile_advantages(*parts, quantile, 1e-3)
        ours = result.reshape(-1, *batch.mask.shape[-2:])[replica].tolist()
        for values, theirs, valid in zip(ours, expected, parts[2], strict=True):
            # |A| <= 1 / eps = 1e3; the std of at most 6 outcomes errs by less than 1e2 roundings of 1, each of which a
            # quotient by std + eps >= 1e-3 makes 1e3 * 1e3 times larger at most
            assert not valid or values == pytest.approx([theirs] * len(values), abs=1e2 * 1e6 * EPS)


@given(strategies.batches(min_rows=2))
def test_equal_outcomes_give_exactly_no_advantage(batch):
    """A prompt that is always or never solved teaches nothing, as with GRPO."""
    batch = replace(batch, outcome=torch.full_like(batch.outcome, 0.1))
    advantage = edited(CONTROLS["quantile_advantage"](), batch).advantage[batch.mask]
    assert torch.equal(advantage, torch.zeros_like(advantage))


@given(strategies.batches(min_rows=2, leading=(), garbage=False))
def test_padding_rows_join_no_group(batch):
    """The advantage of the valid rows, to the bit, with and without rows that hold no token."""
    rows = batch.mask.shape[0]

    def wider(t):
        extra = torch.zeros((3, *t.shape[1:]), dtype=t.dtype)
        return torch.cat([t, extra])

    wide = edited(CONTROLS["quantile_advantage"](), map_tensors(batch, wider)).advantage[:rows][batch.mask]
    alone = edited(CONTROLS["quantile_advantage"](), batch).advantage[batch.mask]
    assert torch.equal(bits(wide), bits(alone))


def test_a_constant_baseline_does_not_change_the_exact_entropy_change():
    r"""Their Proposition 4.2 says the change of entropy grows with b; the exact gradient does not see b.

    pi = (.6, .3, .1), rewards (0, 1, 0), b = 0, .3, 1. Exact step: dz_a = pi_a ((r_a - b) - E(r - b)), and
    -Cov(log pi, dz) = .0569 for all three; with the uncentred pi_a (r_a - b): .0275, .0569, .1253, as they say.
    (At b = .3 = E r the two agree.)
    """
    p, reward = [0.6, 0.3, 0.1], [0.0, 1.0, 0.0]
    logits = [math.log(x) for x in p]
    exact, published = [], []
    for b in (0.0, 0.3, 1.0):
        a = [r - b for r in reward]
        mean = sum(x * y for x, y in zip(p, a, strict=True))
        exact.append(oracles.entropy_change_first_order(logits, [x * (y - mean) for x, y in zip(p, a, strict=True)]))
        published.append(oracles.entropy_change_first_order(logits, [x * y for x, y in zip(p, a, strict=True)]))
    assert exact == pytest.approx([0.0569] * 3, abs=5e-5)  # the printed digits
    assert max(exact) - min(exact) < 8 * EPS  # roundings of numbers below 1
    assert [round(x, 4) for x in sorted(published)] == [0.0275, 0.0569, 0.1253]


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("weighted_reinforce", {"positive_weight": -0.1}, "weighted_reinforce.positive_weight.*-0.1"),
        ("weighted_reinforce", {"negative_weight": math.nan}, "weighted_reinforce.negative_weight.*nan"),
        ("weighted_reinforce", {"positive_weight": 0.0, "negative_weight": 0.0}, "weight above 0, got 0 for both"),
        ("steer", {"lowest_weight": 0.0}, r"steer.lowest_weight must lie in \(0, 1\], got 0"),
        ("steer", {"lowest_weight": math.nan}, "steer.lowest_weight.*nan"),
        ("steer", {"floor": 0.0}, "steer.floor must be positive and finite, got 0"),
        ("steer", {"effect": "true"}, "steer.effect must be one of published, exact, got 'true'"),
        ("steer", {"scope": "group"}, "steer.scope must be one of minibatch, microbatch, got 'group'"),
        ("quantile_advantage", {"quantile": 1.0}, "quantile_advantage.quantile must lie between 0 and 1, got 1"),
        ("quantile_advantage", {"quantile": 40}, "quantile_advantage.quantile.*40"),
        ("quantile_advantage", {"eps": 0.0}, "quantile_advantage.eps must be positive and finite, got 0"),
    ],
)
def test_bad_parameters_are_refused_by_name_and_value(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        CONTROLS[name](**arguments)


def test_the_weights_chain():
    """Weights multiply, in any order, up to the rounding of two products."""
    batch = fixed_batch(fresh=False)
    names = ("weighted_reinforce", "steer")
    results = []
    for one, two in itertools.permutations(names):
        first = edited(CONTROLS[one](), batch)
        results.append(edited(CONTROLS[two](), batch, objective=first).weight[batch.mask])
    alone = [
        edited(CONTROLS[name](), batch, objective=Objective.from_batch(batch)).weight[batch.mask] for name in names
    ]
    torch.testing.assert_close(results[0], alone[0] * alone[1], rtol=2 * EPS, atol=0)
    torch.testing.assert_close(results[1], results[0], rtol=2 * EPS, atol=0)
