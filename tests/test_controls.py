"""Each control on examples worked by hand, against re-implementations of its published procedure, and its errors."""

import math
from dataclasses import replace

import oracles
import pytest
import strategies
import torch
from contract import (
    build,
    edited,
    fixed_batch,
    gradients,
    identical,
    same_effect,
    start,
    tie_free,
    without_clip,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from entropy_theory.control import Need, chain, check_fits, control
from entropy_theory.controls import CONTROLS, parameters, resolve
from entropy_theory.controls import build as build_from_settings
from entropy_theory.controls.checks import check_target
from entropy_theory.loss import token_loss
from entropy_theory.records import Batch, Measurement, Objective, Sampling

DOUBLE = torch.float64


def batch_of(logp, advantage, old_logp=None, mask=None):
    """A batch of one replica from nested lists."""
    logp, advantage = (torch.tensor(v, dtype=DOUBLE) for v in (logp, advantage))
    rows = logp.shape[0]
    return Batch(
        logp=logp,
        old_logp=logp if old_logp is None else torch.tensor(old_logp, dtype=DOUBLE),
        advantage=advantage,
        mask=torch.ones_like(logp, dtype=torch.bool) if mask is None else torch.tensor(mask),
        entropy=torch.ones_like(logp),
        outcome=torch.zeros(rows, dtype=DOUBLE),
        group=torch.zeros(rows, dtype=torch.int64),
    )


def by_replica(*tensors):
    """Nested [rows][steps] lists of each replica."""
    return zip(*(t.reshape(-1, *t.shape[-2:]).tolist() for t in tensors), strict=True)


# Means over valid tokens: log-prob -2, advantage 0. Scores: (1)(1), (-2)(1), (1)(0) and (-2)(-3), (2)(1).
LOGP = [[-1.0, -4.0, -1.0], [-4.0, 0.0, -9.0]]
ADVANTAGE = [[1.0, 1.0, 0.0], [-3.0, 1.0, 50.0]]
MASK = [[True, True, True], [True, True, False]]
SCORES = [[1.0, -2.0, 0.0], [6.0, 2.0]]


# --- clip_cov -----------------------------------------------------------------------------------------------------


def test_clip_cov_by_hand():
    """Of the scores 1, -2, 0, 6, 2 only 2 lies strictly inside (1, 5): that token is dropped, the rest kept."""
    batch = batch_of(LOGP, ADVANTAGE, mask=MASK)
    result = edited(CONTROLS["clip_cov"](fraction=1.0), batch)
    assert result.weight[batch.mask].tolist() == [1, 1, 1, 1, 0]
    assert torch.equal(result.mask, batch.mask)  # dropped tokens still count in the denominator


def test_clip_cov_bounds_are_strict_and_take_infinity():
    batch = batch_of(LOGP, ADVANTAGE, mask=MASK)
    inside = edited(CONTROLS["clip_cov"](fraction=1.0, low=-2.0, high=6.0), batch).weight[batch.mask]
    assert inside.tolist() == [0, 1, 0, 1, 0]
    everything = edited(CONTROLS["clip_cov"](fraction=1.0, low=-math.inf, high=math.inf), batch)
    assert everything.weight[batch.mask].tolist() == [0] * 5


@pytest.mark.parametrize(("fraction", "dropped"), [(1e-9, 1), (0.2, 1), (0.39, 1), (0.4, 2), (0.99, 4), (1.0, 5)])
def test_clip_cov_drops_the_fraction_it_was_given(fraction, dropped):
    """max(1, floor(fraction * 5 valid tokens))."""
    batch = batch_of(LOGP, ADVANTAGE, mask=MASK)
    result = edited(CONTROLS["clip_cov"](fraction=fraction, low=-9.0, high=9.0), batch)
    assert int((result.weight[batch.mask] == 0).sum()) == dropped


def test_clip_cov_does_not_spend_draws_on_tokens_ppo_has_clipped():
    """At ratio e the praised token is clipped; at ratio e the blamed one is not."""
    batch = batch_of([[-1.0, -1.0]], [[1.0, -1.0]], old_logp=[[-2.0, -2.0]])
    result = edited(CONTROLS["clip_cov"](fraction=1.0, low=-9.0, high=9.0), batch)
    assert result.weight.tolist() == [[1.0, 0.0]]


@given(strategies.batches(), st.floats(0.01, 1.0), st.integers(0, 5), st.integers(0, 3))
def test_clip_cov_equals_a_re_implementation_of_the_published_procedure(batch, fraction, seed, steps):
    """Eligible set and count as in the authors' code; which of them: the lowest numbers of our seeded draw."""
    low, high = -0.5, 1.5
    factory = CONTROLS["clip_cov"](fraction=fraction, low=low, high=high, seed=seed)
    weight = edited(factory, batch, steps).weight
    stacks = by_replica(weight, batch.logp, batch.old_logp, batch.advantage, batch.mask)
    for replica, (ours, logp, old, advantage, mask) in enumerate(stacks):
        valid = [i for i, m in enumerate(oracles.flat(mask)) if m]
        scores = oracles.published_scores(logp, advantage, mask)
        # a score within rounding (1e-12) of a bound may fall on either side
        if any(abs(scores[i] - bound) < 1e-12 for i in valid for bound in (low, high)):
            continue
        eligible = oracles.published_clip_cov_eligible(logp, old, advantage, mask, low, high, 0.2, 0.2)
        candidates = [(oracles.uniform(seed + replica, steps, n), i) for n, i in enumerate(valid) if eligible[i]]
        expected = {i for _, i in sorted(candidates)[: oracles.published_count(fraction, len(valid))]}
        assert {i for i in valid if oracles.flat(ours)[i] == 0} == expected


def test_clip_cov_loss_is_the_published_one():
    """corr * max(-A r, -A clip(r)) per token, corr 0 where dropped, divided by all valid tokens."""
    batch = fixed_batch(fresh=False)
    objective = edited(build("clip_cov"), batch)
    loss, *_ = gradients(batch, objective)
    for mine, dropped, logp, old, a, valid in zip(
        *(t.flatten().tolist() for t in (loss, objective.weight == 0, batch.logp, batch.old_logp)),
        batch.advantage.flatten().tolist(),
        batch.mask.flatten().tolist(),
        strict=True,
    ):
        ratio = math.exp(logp - old)
        expected = max(-a * ratio, -a * min(max(ratio, 0.8), 1.2))
        assert mine == pytest.approx(0.0 if dropped or not valid else expected, rel=1e-14)  # a few roundings


def drops(seed, steps, batch, fraction=0.3):
    """How often each token was dropped over `steps` steps."""
    clip_cov = CONTROLS["clip_cov"](fraction=fraction, low=-1e9, high=1e9, seed=seed)
    state = start(clip_cov, batch)
    total = torch.zeros_like(batch.logp)
    for _ in range(steps):
        total += clip_cov.edit(Objective.from_batch(batch), batch, state).weight == 0
        state = clip_cov.advance(state, Measurement(torch.zeros((), dtype=DOUBLE)))
    return total


def test_clip_cov_drops_every_eligible_token_equally_often():
    """Chi-square over 2,000 steps; the counts of one step are negatively correlated, which only shrinks it."""
    batch = replace(fixed_batch(fresh=True), mask=torch.ones(10, 4, dtype=torch.bool))
    counts = drops(0, 2000, batch).flatten().numpy()
    assert counts.sum() == 2000 * 12
    assert stats.chisquare(counts).pvalue > 1e-3


def test_clip_cov_draw_depends_on_seed_step_and_replica_only():
    batch = fixed_batch(fresh=True)
    one = {seed: drops(seed, 1, batch) for seed in (0, 1, 2)}
    assert torch.equal(one[0], drops(0, 1, batch))
    assert not torch.equal(one[0], one[1]) and not torch.equal(one[1], one[2])
    assert not torch.equal(drops(0, 2, batch) - one[0], one[0])  # the second step draws afresh
    stacked = Batch(*(torch.stack([t, t]) for t in vars(batch).values()))
    first, second = edited(CONTROLS["clip_cov"](fraction=0.3, low=-1e9, high=1e9), stacked).weight
    assert torch.equal(first == 0, one[0].bool()) and not torch.equal(first, second)


# --- kl_cov -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "selected"),
    [(1e-9, [6.0]), (0.2, [6.0]), (0.4, [6.0, 2.0]), (0.6, [6.0, 2.0, 1.0]), (1.0, [6.0, 2.0, 1.0, 0.0, -2.0])],
)
def test_kl_cov_by_hand(fraction, selected):
    """The highest of the scores 1, -2, 0, 6, 2; never the masked token."""
    batch = batch_of(LOGP, ADVANTAGE, mask=MASK)
    (penalty,) = edited(CONTROLS["kl_cov"](fraction=fraction, coef=0.1), batch).penalties
    scores = oracles.flat(SCORES)
    assert penalty.coef[batch.mask].tolist() == [0.1 if s in selected else 0.0 for s in scores]
    assert penalty.coef[1, 2] == 0 and penalty.divergence == "abs"
    assert torch.equal(penalty.target, batch.old_logp)


@given(strategies.batches(), st.floats(0.01, 1.0))
def test_kl_cov_selects_as_a_re_implementation_of_the_published_procedure(batch, fraction):
    if not tie_free(batch):
        return
    (penalty,) = edited(CONTROLS["kl_cov"](fraction=fraction, coef=0.7), batch).penalties
    for coef, logp, advantage, mask in by_replica(penalty.coef, batch.logp, batch.advantage, batch.mask):
        chosen = {i for i, c in enumerate(oracles.flat(coef)) if c != 0}
        if any(oracles.flat(mask)):
            assert chosen == oracles.published_kl_cov_selection(logp, advantage, mask, fraction)
        else:
            assert not chosen


def test_kl_cov_loss_is_the_published_one():
    """-A r without a clip, plus coef |log pi - log pi_old| on the selected tokens."""
    batch = fixed_batch(fresh=False)
    objective = edited(build("kl_cov"), batch)
    loss, *_ = gradients(batch, objective)
    selected = objective.penalties[0].coef != 0
    assert int(selected.sum()) == math.floor(0.3 * int(batch.mask.sum()))
    log_ratio = batch.logp - batch.old_logp
    expected = -batch.advantage * log_ratio.exp() + 0.7 * log_ratio.abs() * selected
    torch.testing.assert_close(loss[batch.mask], expected[batch.mask], rtol=1e-14, atol=1e-15)


def test_kl_cov_pulls_with_constant_force_and_lifts_the_clip():
    """On a stale batch it does two things: no PPO clip anywhere, and coef * sign(log ratio) on selected tokens."""
    batch = fixed_batch(fresh=False)
    plain = Objective.from_batch(batch)
    objective = edited(build("kl_cov"), batch)
    unclipped = without_clip(plain, batch)
    assert not same_effect(batch, unclipped, plain)
    pull = gradients(batch, objective)[1] - gradients(batch, unclipped)[1]
    selected = objective.penalties[0].coef != 0
    expected = torch.where(selected, 0.7 * torch.sign(batch.logp - batch.old_logp), 0.0)
    torch.testing.assert_close(pull, expected, rtol=1e-14, atol=1e-14)


def test_kl_cov_selects_one_token_of_a_minibatch_not_one_of_each_micro_batch():
    """8 rows of 50 tokens at 0.002: one token in all. Row by row, max(1, ...) would take eight."""
    rng = torch.Generator().manual_seed(0)
    logp = -torch.rand(8, 50, generator=rng, dtype=DOUBLE)
    batch = batch_of(logp.tolist(), torch.randn(8, 50, generator=rng, dtype=DOUBLE).tolist())
    (penalty,) = edited(CONTROLS["kl_cov"](fraction=0.002), batch).penalties
    assert int((penalty.coef != 0).sum()) == 1
    alone = [
        edited(
            CONTROLS["kl_cov"](fraction=0.002), batch_of(logp[i : i + 1].tolist(), batch.advantage[i : i + 1].tolist())
        )
        for i in range(8)
    ]
    assert sum(int((o.penalties[0].coef != 0).sum()) for o in alone) == 8


def test_the_top_scores_of_a_confident_policy_are_rare_tokens_with_negative_advantage():
    """logp <= 0 bounds the score of a likely token by mean(-logp) * max A; a rare, blamed token has no bound."""
    likely, rare = -0.05, -6.0
    batch = batch_of([[likely] * 19 + [rare], [likely] * 19 + [rare]], [[1.0] * 20, [-1.0] * 20])
    (penalty,) = edited(CONTROLS["kl_cov"](fraction=0.02), batch).penalties
    assert (penalty.coef != 0).nonzero().tolist() in ([[1, 19]],)
    assert float(batch.advantage[1, 19]) == -1.0


# --- clip_higher, entropy_bonus -----------------------------------------------------------------------------------


def test_clip_higher_frees_praised_tokens_between_the_two_bounds_only():
    """Ratios 1.1, 1.25, 1.5 with A = 1 and A = -1; clip .2 -> .28 changes the second praised token alone."""
    logp = [[math.log(1.1) - 1, math.log(1.25) - 1, math.log(1.5) - 1]] * 2
    batch = batch_of(logp, [[1.0] * 3, [-1.0] * 3], old_logp=[[-1.0] * 3] * 2)
    before = gradients(batch, Objective.from_batch(batch))[1]
    after = gradients(batch, edited(CONTROLS["clip_higher"](), batch))[1]
    assert (before != after).tolist() == [[False, True, False], [False] * 3]
    assert float(after[0, 1]) == pytest.approx(-1.25)


def test_entropy_bonus_adds_to_what_is_there():
    batch = fixed_batch(fresh=True)
    bonus = CONTROLS["entropy_bonus"](0.1)
    once, twice = edited(bonus, batch), edited(bonus, batch, objective=edited(bonus, batch))
    assert once.entropy_coef.unique().tolist() == [0.1] and twice.entropy_coef.unique().tolist() == [0.2]
    assert torch.equal(gradients(batch, once)[2], -0.1 * batch.mask.to(DOUBLE))


# --- chains and what a world must provide -------------------------------------------------------------------------


def counting(factor, offset):
    """A test control that scales and shifts temperature and logits, with a state of its own."""

    def init(like):
        return torch.zeros_like(like)

    return control(
        init=init,
        advance=lambda state, measurement: state + factor,
        sample=lambda sampling, state: Sampling(sampling.temperature * factor + offset + state),
        activate=lambda logits: logits * factor + offset,
        proxy=lambda logits: logits * factor - offset,
        entropy_support=lambda logits: logits * factor + 2 * offset,
        needs={Need.SAMPLING, Need.ACTIVATION},
    )


def test_a_chain_samples_and_activates_from_left_to_right():
    like = torch.zeros(2, dtype=DOUBLE)
    both = chain(counting(2.0, 0.0), counting(1.0, 3.0))
    state = both.init(like)
    assert both.sample(Sampling(like + 1), state).temperature.tolist() == [1 * 2 + 3, 1 * 2 + 3]
    assert both.activate(torch.tensor([1.0, 5.0])).tolist() == [5.0, 13.0]
    assert both.proxy(torch.tensor([1.0, 5.0])).tolist() == [-1.0, 7.0]
    assert both.entropy_support(torch.tensor([1.0, 5.0])).tolist() == [8.0, 16.0]
    state = both.advance(state, Measurement(like))
    assert [s.tolist() for s in state] == [[2.0, 2.0], [1.0, 1.0]]
    assert both.sample(Sampling(like + 1), state).temperature.tolist() == [(2 + 2) + 3 + 1] * 2
    swapped = chain(counting(1.0, 3.0), counting(2.0, 0.0))
    assert swapped.sample(Sampling(like + 1), swapped.init(like)).temperature.tolist() == [(1 + 3) * 2] * 2


def test_a_chain_hands_its_measurement_to_every_part():
    parts = build("adaptive_entropy"), build("entropic")
    both, like = chain(*parts), torch.zeros(2, dtype=DOUBLE)
    measured = Measurement(torch.tensor([0.1, 0.7], dtype=DOUBLE))
    after = both.advance(both.init(like), measured)
    assert identical(after, tuple(part.advance(part.init(like), measured) for part in parts))
    assert not identical(after, both.init(like))


def test_a_chain_refuses_the_state_of_another_chain():
    """In place of leaving out the last parts, or their states, without a word."""
    batch, like = fixed_batch(fresh=False), torch.zeros((), dtype=DOUBLE)
    one, two = build("entropy_bonus"), chain(build("entropy_bonus"), build("temperature"))
    for state in ((one.init(like),), (*two.init(like), ())):
        for act in (
            lambda state=state: two.edit(Objective.from_batch(batch), batch, state),
            lambda state=state: two.advance(state, Measurement(like)),
            lambda state=state: two.sample(Sampling(like), state),
        ):
            with pytest.raises(ValueError, match="zip"):
                act()


def test_a_chain_needs_what_its_parts_need():
    assert chain(counting(1.0, 0.0), build("kl_cov")).needs == {Need.SAMPLING, Need.ACTIVATION, Need.SAMPLES}
    assert chain().needs == frozenset()


def test_order_in_a_chain_matters_and_reads_left_to_right():
    batch = fixed_batch(fresh=False)
    assert edited(build("clip_higher+kl_cov"), batch).clip_high.isinf().all()
    assert edited(build("kl_cov+clip_higher"), batch).clip_high.unique().tolist() == [0.45]


@pytest.mark.parametrize("name", CONTROLS)
def test_none_is_the_identity_of_chaining(name):
    batch = fixed_batch(fresh=False)
    alone = edited(build(name), batch)
    for pair in (chain(build("none"), build(name)), chain(build(name), build("none"))):
        assert identical(edited(pair, batch), alone) and pair.needs == build(name).needs


def test_chains_nest():
    batch = fixed_batch(fresh=False)
    a, b, c = (build(n) for n in ("entropy_bonus", "clip_cov", "clip_higher"))
    flat, left, right = (edited(x, batch) for x in (chain(a, b, c), chain(chain(a, b), c), chain(a, chain(b, c))))
    assert identical(flat, left) and identical(flat, right)


def test_a_missing_need_names_the_control_the_world_and_the_need():
    with pytest.raises(ValueError, match=r"kl_cov needs samples, which the exact bandit does not provide"):
        check_fits("kl_cov", build("kl_cov"), "the exact bandit", frozenset({Need.ENTROPY_GRAD}), 10)
    with pytest.raises(ValueError, match=r"control budget needs collision, samples, which the bandit does not"):
        check_fits("budget", build("budget"), "the bandit", frozenset(), 2)
    check_fits("kl_cov", build("kl_cov"), "the bandit", frozenset(Need), 10)


@given(st.integers(2, 1000), st.floats(0.01, 10))
def test_a_target_that_no_policy_can_have_is_refused(actions, target):
    aiming = control(check_actions=check_target("aiming.target", target))
    if target <= math.log(actions):
        check_fits("aiming", aiming, "the bandit", frozenset(), actions)
    else:
        with pytest.raises(ValueError, match=rf"aiming.target is .* nats, but {actions} actions allow at most"):
            check_fits("aiming", chain(control(), aiming), "the bandit", frozenset(), actions)


# --- names and values a user may get wrong ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("clip_cov", {"fraction": 0.0}, r"clip_cov.fraction must lie in \(0, 1\], got 0"),
        ("clip_cov", {"fraction": 20}, r"got 20.*not a percentage \(0.002 = 0.2 %\)"),
        ("kl_cov", {"fraction": 2.0}, r"got 2.0.*not a percentage"),
        ("kl_cov", {"fraction": math.nan}, "got nan"),
        ("kl_cov", {"coef": -1.0}, "kl_cov.coef.*-1.0"),
        ("kl_cov", {"coef": math.inf}, "kl_cov.coef.*inf"),
        ("clip_cov", {"low": 5.0, "high": 1.0}, "clip_cov.low.*5.0 and 1.0"),
        ("clip_cov", {"low": math.nan}, "clip_cov.low.*nan"),
        ("clip_cov", {"seed": 2**70}, "clip_cov.seed"),
        ("entropy_bonus", {"coef": -0.1}, "entropy_bonus.coef.*-0.1"),
        ("entropy_bonus", {"coef": math.inf}, "entropy_bonus.coef.*inf"),
        ("entropy_bonus", {"coef": math.nan}, "entropy_bonus.coef.*nan"),
        ("clip_higher", {"clip_high": 0.0}, "clip_higher.clip_high.*0"),
        ("clip_higher", {"clip_high": math.nan}, "clip_higher.clip_high.*nan"),
    ],
)
def test_bad_parameters_are_refused_by_name_and_value(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        CONTROLS[name](**arguments)


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        ("klcov", {}, "unknown control 'klcov'; choose from none, entropy_bonus"),
        ("kl_cov+kl_cov", {}, "twice"),
        ("kl_cov", {"clip_cov.fraction": 0.1}, "clip_cov.*kl_cov"),
        ("kl_cov", {"kl_cov.frac": 0.1}, "no parameter 'frac'.*fraction, coef"),
        ("none", {"none.x": 1}, "its parameters are: none"),
        ("kl_cov", {"kl_cov.fraction": "0.1"}, "kl_cov.fraction must be a number"),
        ("kl_cov", {"kl_cov.fraction": True}, "kl_cov.fraction must be a number"),
        ("clip_cov", {"clip_cov.seed": 0.5}, "clip_cov.seed must be a whole number, got 0.5"),
        ("clip_cov", {"clip_cov.seed": math.inf}, "clip_cov.seed must be a whole number, got inf"),
        ("clip_cov", {"clip_cov.seed": math.nan}, "clip_cov.seed must be a number, got nan"),
        ("", {}, "unknown control ''"),
    ],
)
def test_bad_settings_are_refused_by_name_and_value(names, settings, message):
    with pytest.raises(ValueError, match=message):
        build_from_settings(names, settings)


def test_settings_are_resolved_to_full_parameters():
    found = resolve("clip_higher+clip_cov", {"clip_cov.fraction": 1, "clip_cov.seed": 3.0})
    assert found == {
        "clip_higher": {"clip_high": 0.28},
        "clip_cov": {**parameters("clip_cov"), "fraction": 1.0, "seed": 3},
    }
    assert isinstance(found["clip_cov"]["fraction"], float) and isinstance(found["clip_cov"]["seed"], int)


def test_defaults_are_the_published_ones():
    """Clip-Cov: r = 2e-4, (1, 5); KL-Cov: k = 2e-3, beta = 1 (Qwen2.5-7B); DAPO: .28. Fractions, not percent."""
    assert resolve("clip_cov", {})["clip_cov"] | {"fraction": 2e-4, "low": 1.0, "high": 5.0} == parameters("clip_cov")
    assert parameters("kl_cov") == {"fraction": 2e-3, "coef": 1.0, "scope": "minibatch"}
    assert parameters("clip_higher") == {"clip_high": 0.28}


def test_settings_build_what_the_factories_build():
    batch = fixed_batch(fresh=False)
    built = build_from_settings("clip_higher+kl_cov", {"kl_cov.fraction": 0.3, "clip_higher.clip_high": 0.45})
    expected = chain(CONTROLS["clip_higher"](0.45), CONTROLS["kl_cov"](fraction=0.3))
    assert identical(edited(built, batch), edited(expected, batch))


def test_zero_valid_tokens_cost_nothing():
    batch = replace(fixed_batch(fresh=False), mask=torch.zeros(10, 4, dtype=torch.bool))
    for name in CONTROLS:
        loss = token_loss(batch.logp, batch.entropy, batch, edited(build(name), batch))
        assert torch.equal(loss, torch.zeros_like(loss))
