"""Controls that follow the measured entropy: worked by hand, against published loops, and in a closed loop."""

import itertools
import math
from dataclasses import replace

import oracles
import pytest
import strategies
import torch
from closed_loop import FLAT, REWARD, after, batch_of, objective_after, replicas, tensor, train
from contract import build, edited, fixed_batch, gradients, start
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.control import Need, check_fits
from entropy_theory.controls import CONTROLS, presets
from entropy_theory.controls.aer import aer
from entropy_theory.controls.entropic import entropic
from entropy_theory.controls.none import none
from entropy_theory.controls.temperature import temperature
from entropy_theory.records import Measurement, Objective, Sampling
from entropy_theory.softmax import entropy


def test_reward_alone_takes_the_entropy_away():
    """What the closed loops below are compared with: 0.017 nats after 1,000 steps."""
    assert train(none(), FLAT, REWARD, 1000)[1][-1] < 0.02


# --- adaptive_entropy -------------------------------------------------------------------------------------------------


def test_adaptive_entropy_by_hand():
    """Target 0.2, step 0.1. Entropies 0.1, 0.1, 0.3, 0.15: coefficients 0.1, 0.2, 0.1, 0.2; closed after 0.3."""
    control = build("adaptive_entropy", {"delta": 0.1})
    batch = batch_of([[-1.0, -2.0, -3.0]], [[1.0, 0.0, -1.0]])
    entropies = [0.1, 0.1, 0.3, 0.15]
    bonuses = [float(objective_after(control, entropies[:n], batch).entropy_coef[0, 0]) for n in range(5)]
    assert bonuses == pytest.approx([0.0, 0.1, 0.2, 0.0, 0.2], abs=1e-15)
    assert objective_after(control, entropies, batch).entropy_coef.unique().numel() == 1


def skywork(entropies, target, delta, largest):
    """The authors' code: strict comparisons, and what is applied was set by the rollout before."""
    coefficient, last, applied = 0.0, math.inf, []
    for measured in entropies:
        applied.append(coefficient if last < target else 0.0)
        coefficient = coefficient + delta if measured < target else coefficient - delta
        coefficient, last = min(max(coefficient, 0.0), largest), measured
    return applied


def trl(entropies, target, delta, largest):
    """TRL: at the target the coefficient rises, and the bonus is on."""
    coefficient, last, applied = 0.0, math.inf, []
    for measured in entropies:
        applied.append(coefficient if last <= target else 0.0)
        coefficient = coefficient + delta if measured <= target else coefficient - delta
        coefficient, last = min(max(coefficient, 0.0), largest), measured
    return applied


def paper(entropies, target, delta, largest):
    """Eq. 3.2 with a clip at 0: at the target the coefficient stays, and the bonus is on."""
    coefficient, last, applied = 0.0, math.inf, []
    for measured in entropies:
        applied.append(coefficient if last <= target else 0.0)
        coefficient += delta * ((measured < target) - (measured > target))
        coefficient, last = min(max(coefficient, 0.0), largest), measured
    return applied


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.25, 3.0]), min_size=1, max_size=80),
    st.sampled_from([("paper", paper, 0.005, 1.0), ("skywork", skywork, 1e-4, 0.005), ("trl", trl, 0.005, 1.0)]),
)
def test_adaptive_entropy_presets_equal_their_publications(entropies, case):
    name, publication, delta, largest = case
    control = CONTROLS["adaptive_entropy"](**presets("adaptive_entropy")[name])
    batch = batch_of([[-1.0]], [[1.0]])
    state, found = after(control, []), []
    for measured in entropies:
        found.append(float(control.edit(Objective.from_batch(batch), batch, state).entropy_coef[0, 0]))
        state = control.advance(state, Measurement(tensor(measured)))
    assert found == publication(entropies, 0.2, delta, largest)


def test_adaptive_entropy_keeps_a_policy_from_collapsing():
    """Reward alone drives entropy to 0; the bonus keeps it near the target.

    It swings: above the target the gate closes at once, but entropy moves on by what a few steps do.
    """
    _, held = train(build("adaptive_entropy", {"target": 0.5, "delta": 0.02}), FLAT, REWARD, 1000)
    # measured over 3,000 steps: a mean of 0.507 and a range of 0.483 to 0.533
    assert sum(held[-500:]) / 500 == pytest.approx(0.5, abs=0.02)
    assert max(abs(h - 0.5) for h in held[-500:]) < 0.05


# --- aer --------------------------------------------------------------------------------------------------------------


def test_aer_by_hand():
    """Accuracies 0, 1/4, 1/2 and 1 of the groups 0..3 with easy = 1/2: shares 1, 1/2, 0, 0 of alpha = 0.3.

    Group 1 has the outcomes 0.5 and 0; its third row holds no token, so that its outcome 1 does not count.
    """
    batch = batch_of(
        [[-1.0]] * 7,
        [[1.0]] * 7,
        mask=[[True], [True], [True], [False], [True], [True], [True]],
        outcome=[0.0, 0.5, 0.0, 1.0, 0.0, 1.0, 1.0],
        group=[0, 1, 1, 1, 2, 2, 3],
    )
    result = edited(aer(start=0.3, high=0.3), batch)
    # 1e-16 absolute: one rounding each of 0.3, 0.15
    assert result.entropy_coef[batch.mask].tolist() == pytest.approx([0.3, 0.15, 0.15, 0.0, 0.0, 0.0], abs=1e-16)


@given(strategies.batches(), st.sampled_from([0.1, 0.5, 1.0]))
def test_aer_equals_the_loop(batch, easy):
    result = edited(aer(easy=easy, start=0.3, high=0.3), batch)
    rows = batch.outcome.shape[-1]
    arrays = (batch.mask, result.entropy_coef)
    outcomes, groups = batch.outcome.reshape(-1, rows).tolist(), batch.group.reshape(-1, rows).tolist()
    for (mask, found), outcome, group in zip(replicas(*arrays), outcomes, groups, strict=True):
        for row in range(rows):
            peers = [outcome[i] for i in range(rows) if group[i] == group[row] and any(mask[i])]
            for valid, bonus in zip(mask[row], found[row], strict=True):
                if valid:
                    accuracy = math.fsum(peers) / len(peers)
                    # 1e-15: a few roundings of numbers up to 10 (1 / easy), times 0.3, cancelling to at most 1
                    assert bonus == pytest.approx(0.3 * max(0.0, 1 - accuracy / easy), abs=3e-15)


@given(strategies.batches(leading=()), strategies.entropy_traces())
def test_aer_never_asks_for_less_entropy(batch, entropies):
    state = after(aer(gain=1.0, start=0.01), [row[0] for row in entropies])
    result = aer(gain=1.0, start=0.01).edit(Objective.from_batch(batch), batch, state)
    assert (result.entropy_coef >= 0).all() and (result.entropy_coef <= 0.02).all()


def test_aer_without_difficulty_treats_all_prompts_alike_and_needs_no_groups():
    control = aer(easy=None, start=0.02)
    assert control.needs == {Need.ENTROPY_GRAD}
    assert edited(control, fixed_batch(fresh=True)).entropy_coef.unique().tolist() == [0.02]


def test_aer_holds_a_share_of_the_initial_entropy():
    _, held = train(aer(share=0.4, easy=None, gain=0.05, high=1.0), FLAT, REWARD, 1000)
    # measured over 3,000 steps: 0.4 to ten digits
    assert held[-1] == pytest.approx(0.4 * held[0], rel=1e-3)


# --- entropic ---------------------------------------------------------------------------------------------------------


def test_entropic_by_hand():
    """H = 0.05 after a target of 0.25: e = -0.2, alpha = -0.2 - 0.01 * 0.2 = -0.202.

    Tokens of probability 0.97, 0.97 and 0.5: praise of the first weighs 1 - 0.202, blame of the second 1 + 0.202.
    """
    logp = [[math.log(0.97), math.log(0.97), math.log(0.5)]]
    batch = batch_of(logp, [[2.0, -1.0, -3.0]])
    weight = objective_after(entropic(target=0.25), [0.05], batch).weight
    assert weight[0].tolist() == pytest.approx([0.798, 1.202, 1.0], rel=1e-15)
    # of three tokens two are likely: alpha counts 3/2 times
    weight = objective_after(entropic(target=0.25, denominator="high"), [0.05], batch).weight
    assert weight[0].tolist() == pytest.approx([1 - 0.303, 1.303, 1.0], rel=1e-15)


@given(strategies.batches(leading=(), fresh=True), strategies.entropy_traces(), st.sampled_from(["all", "high"]))
def test_entropic_has_the_gradient_of_the_authors_loss(batch, entropies, denominator):
    """Their loss: the surrogate's mean over all tokens + alpha times the mean of -r |A| over the likely ones."""
    control = entropic(0.3, threshold=0.4, denominator=denominator)
    state = after(control, [row[0] for row in entropies])
    alpha = float(state[0])
    slopes = gradients(batch, control.edit(Objective.from_batch(batch), batch, state))[1]
    logp, advantage, mask, found = map(oracles.flat, next(replicas(batch.logp, batch.advantage, batch.mask, slopes)))
    likely = [m and p > math.log(0.4) for p, m in zip(logp, mask, strict=True)]
    share = sum(mask) if denominator == "all" else sum(likely)
    for a, valid, high, slope in zip(advantage, mask, likely, found, strict=True):
        if valid:
            adjustment = -alpha * abs(a) * sum(mask) / share if high else 0.0
            # 1e-13: a few roundings of numbers up to 36 tokens times |A| < 5
            assert slope == pytest.approx(-a + adjustment, abs=1e-13)


@pytest.mark.parametrize(("measured", "praise", "blame"), [(5.0, 2.0, 0.0), (0.0, 0.0, 2.0)])
def test_entropic_saturates_at_twice_and_nothing(measured, praise, blame):
    """Above the target praise of likely tokens counts double and blame not at all; far below it the other way round."""
    batch = batch_of([[-0.01, -0.01, -3.0]], [[1.0, -1.0, 1.0]])
    control = entropic(target=1.0)
    assert objective_after(control, [measured] * 3, batch).weight[0].tolist() == [praise, blame, 1.0]


def test_entropic_as_in_the_code_counts_tokens_of_each_micro_batch():
    """Micro-batch 0: one of two tokens is likely, alpha counts twice; micro-batch 1: both, it counts once."""
    batch = batch_of([[-0.01, -3.0], [-0.01, -0.01]], [[1.0, 1.0], [1.0, 1.0]])
    batch = replace(batch, micro_batch=torch.tensor([0, 1]))
    control = CONTROLS["entropic"](target=0.3, **presets("entropic")["code"])
    weight = objective_after(control, [0.2], batch).weight
    # alpha = -0.1 - 0.001
    assert oracles.flat(weight.tolist()) == pytest.approx([1 - 0.202, 1.0, 1 - 0.101, 1 - 0.101], rel=1e-14)


def test_entropic_needs_samples_only_where_it_counts_tokens():
    assert entropic().needs == frozenset()
    assert entropic(denominator="high").needs == {Need.SAMPLES}


def test_entropic_holds_a_target_where_the_likely_action_fails_often_enough():
    """p = 0.6, q = 0.5: 2 p (1 - p) = 0.48 of blame to strengthen against the lead p - q = 0.1."""
    reward = tensor([0.6, 0.5, 0.2, 0.2])
    _, alone = train(none(), FLAT, reward, 1000)
    _, held = train(entropic(target=0.4, threshold=0.5), FLAT, reward, 1200)
    assert alone[-1] < 0.06
    # measured over 1,500 steps: within 0.02 of the target during the last 500
    assert max(abs(h - 0.4) for h in held[-100:]) < 0.02


def test_entropic_cannot_hold_a_target_where_the_likely_action_is_never_blamed():
    """p = 1: at alpha = -1 the best arm has no praise left, and blame of the others still favours it."""
    _, held = train(entropic(target=0.4, threshold=0.5), FLAT, REWARD, 1000)
    assert held[-1] < 0.02


def test_entropic_hastens_the_fall_towards_its_target_from_above():
    """alpha > 0 while entropy is above the target: praise of likely tokens counts more."""
    reward = tensor([0.6, 0.5, 0.2, 0.2])
    alone, held = (train(c, FLAT, reward, 100)[1][-1] for c in (none(), entropic(target=0.4, threshold=0.3)))
    # measured: 0.456 and 0.255
    assert held < 0.7 * alone


# --- temperature ------------------------------------------------------------------------------------------------------


def test_temperature_by_hand():
    """Target 0.5, gain 1: entropies 0.3 and 0.4 multiply by exp(0.2) and exp(0.1)."""
    control = temperature(target=0.5, gain=1.0)
    factor = control.sample(Sampling(tensor(1.0)), after(control, [0.3, 0.4])).temperature
    assert float(factor) == pytest.approx(math.exp(0.3), rel=1e-15)
    assert float(control.sample(Sampling(tensor(0.6)), after(control, [])).temperature) == 0.6


@given(strategies.entropy_traces(longest=40), st.sampled_from(["proportional", "sign"]), st.sampled_from([0.01, 3.0]))
def test_temperature_keeps_its_bounds(entropies, response, gain):
    # exp(log 3) is 3.0000000000000004
    control = temperature(0.3, gain, low=0.7, high=3.0, response=response)
    factor = control.sample(Sampling(tensor(1.0)), after(control, [row[0] for row in entropies])).temperature
    assert 0.7 <= float(factor) <= 3.0


@given(strategies.logits(max_actions=20, finite=True), st.floats(0.05, 1.0), st.integers(1, 3))
def test_temperature_approaches_its_target_from_one_side_for_any_fixed_policy(logits, target, updates):
    """A rollout's updates move log T by gain updates e, and entropy by at most the largest Var(log pi) times that.

    For 20 actions the variance is at most ln(19)^2 / 4 + 1 = 3.17 (Reeb & Wolf 2015, arXiv 1304.0036), and 0.1 * 3 *
    3.17 < 1. So the error shrinks, or stays where the variance is 0 or T at its bound, and never changes sign.
    """
    control = temperature(target, 0.1, low=0.05, high=20.0)
    state, errors = after(control, []), []
    for _ in range(60):
        factor = control.sample(Sampling(tensor(1.0)), state).temperature
        measured = entropy(logits / factor)
        errors.append(target - float(measured))
        for _ in range(updates):  # the sampled policy stays as it is until the next rollout
            state = control.advance(state, Measurement(measured))
    for one, two in itertools.pairwise(errors):
        # 1e-13: rounding of an entropy of numbers with logits within 50 / 0.05
        assert abs(two) <= abs(one) + 1e-13 and two * one >= -1e-13


def test_temperature_reaches_its_target():
    """At the target the policy is (0.82, 0.09, 0.09) with Var(log pi) = 0.72: the error shrinks to 0.928 a rollout."""
    control, logits = temperature(0.6, 0.1), tensor([2.0, 0.0, 0.0])
    state = after(control, [])
    for _ in range(300):
        factor = control.sample(Sampling(tensor(1.0)), state).temperature
        state = control.advance(state, Measurement(entropy(logits / factor)))
    # 0.93^299 = 4e-10 of an error of 0.07
    assert float(entropy(logits / factor)) == pytest.approx(0.6, abs=3e-11)


@given(st.integers(2, 30), st.floats(0.1, 2.0))
def test_temperature_refuses_a_target_above_the_entropy_of_chance(actions, target):
    if target <= math.log(actions):
        check_fits("temperature", temperature(target), "the bandit", frozenset({Need.SAMPLING}), actions)
    else:
        with pytest.raises(ValueError, match=r"temperature\.target"):
            check_fits("temperature", temperature(target), "the bandit", frozenset({Need.SAMPLING}), actions)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "named"),
    [
        ("kl_to_reference", {"form": "k4"}, "form must be one of k1, k2, k3, got 'k4'"),
        ("kl_to_reference", {"coef": -1.0}, "coef must be at least 0"),
        ("kl_to_reference", {"limit": 0.0}, "limit must be positive, got 0.0"),
        ("kl_to_reference", {"target_kl": 0.1, "coef": 0.0}, "start and target must be positive"),
        ("kl_to_reference", {"target_kl": -0.1}, "start and target must be positive"),
        ("adaptive_entropy", {"target": 0.0}, "adaptive_entropy.target must be positive"),
        ("adaptive_entropy", {"delta": 0.0}, "delta must be positive"),
        ("adaptive_entropy", {"start": 2.0}, "got 0.0, 2.0 and 1.0"),
        ("adaptive_entropy", {"at_target": "stay"}, "at_target must be one of raise, hold, lower"),
        ("aer", {"easy": 0.0}, r"aer.easy must lie in \(0, 1\] or be None, got 0.0"),
        ("aer", {"share": 1.5}, "share must lie in"),
        ("aer", {"start": 0.5}, "got 0.0, 0.5 and 0.02"),
        ("entropic", {"threshold": 1.0}, "threshold must lie in"),
        ("entropic", {"proportional": -1.0}, "entropic.proportional must be at least 0"),
        ("entropic", {"denominator": "some"}, "denominator must be one of all, high, got 'some'"),
        ("entropic", {"scope": "rollout"}, "entropic.scope must be one of"),
        ("temperature", {"low": 0.0}, "0 < low <= start <= high, got 0.0"),
        ("temperature", {"start": 3.0}, "got 0.5, 3.0 and 2.0"),
        ("temperature", {"gain": 0.0}, "target and gain must be positive"),
        ("aent", {"share": 1.0}, r"aent.share must lie in \[0, 1\), got 1.0"),
        ("aent", {"share": 30.0}, "not a percentage"),
        ("aent", {"entropy_low": 0.1}, "belong together, got 0.1 and None; set both"),
        ("aent", {"entropy_low": 0.1, "entropy_high": 0.2, "coef": 1.0}, "start must lie between low and high"),
    ],
)
def test_bad_parameters_are_named(name, parameters, named):
    with pytest.raises(ValueError, match=named):
        CONTROLS[name](**parameters)


def test_states_hold_one_number_for_each_replica():
    batch = fixed_batch(fresh=False)
    stacked = replace(
        batch, **{n: torch.stack([getattr(batch, n)] * 2) for n in vars(batch) if getattr(batch, n) is not None}
    )
    control = build("entropic")
    state = control.advance(start(control, stacked), Measurement(tensor([0.1, 0.6])))
    weight = control.edit(Objective.from_batch(stacked), stacked, state).weight
    likely = batch.mask & (batch.logp > math.log(0.3)) & (batch.advantage > 0)
    # targets of 0.3: alpha = -0.2 * 1.01 and 0.3 * 1.01
    assert weight[0][likely].unique().tolist() == pytest.approx([0.798], rel=1e-15)
    assert weight[1][likely].unique().tolist() == pytest.approx([1.303], rel=1e-15)
