"""What the bandit lends a control, and the gradient of every surrogate and aggregation, against plain loops."""

import dataclasses
import math
import typing

import bandit_oracle as oracle
import numpy as np
import pytest
import torch
from contract import CONTRACT, NAMES, PRESETS
from hypothesis import given
from hypothesis import strategies as st
from strategies import bandit_configs, generators

from entropy_theory.advantage import ADVANTAGES
from entropy_theory.aggregation import AGGREGATIONS
from entropy_theory.control import Need
from entropy_theory.control import control as make_control
from entropy_theory.controls import idle_parts
from entropy_theory.records import Penalty
from entropy_theory.surrogate import SURROGATES
from sims import bandit, bandit_config
from sims.bandit_config import BanditConfig
from sims.bandit_problem import logits_of, make_problem
from sims.bandit_rollout import ROLLOUTS, make_batch, pull, tables_of, with_references
from sims.bandit_tally import as_rollout, counted
from sims.bandit_update import policy_of, step_parameters

U = torch.finfo(torch.float64).eps / 2
LENT = {Need.REF_LOGP, Need.PROXY_LOGP, Need.COLLISION}


def above_a_tenth(logits):
    """Arms of at least a tenth of the likeliest one's probability."""
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) - math.log(10), -torch.inf)


def best_two(logits):
    """The two likeliest arms."""
    return logits.masked_fill(logits < logits.topk(2, -1).values[..., 1:], -torch.inf)


def best_two_of(row):
    return sorted(range(len(row)), key=lambda b: -row[b])[:2]


# --- what is lent ---------------------------------------------------------------------------------------------------


@given(bandit_configs(samples=20), st.sampled_from(["sampled", "exact"]), generators())
def test_reference_filter_and_collision_are_those_of_the_tokens(config, gradient, rng):
    """For single pulls, for kinds of pulls and for enumerations, after the policy has moved from the initial one."""
    config = dataclasses.replace(config, gradient=gradient)
    control = make_control(activate=lambda z: 1.5 * z, proxy=above_a_tenth, needs=LENT)
    problem = make_problem(config)
    temperature = torch.full(problem.key.shape, 1.25, dtype=torch.float64)
    moved = problem.parameters + torch.from_numpy(rng.normal(0, 1, problem.parameters.shape))
    policy = policy_of(control, problem, moved, temperature)
    first = logits_of(problem, problem.parameters)[0, 0].tolist()
    reference = [oracle.log_softmax([1.5 * z for z in row]) for row in first]
    rows = [[1.5 * z / 1.25 for z in row] for row in logits_of(problem, moved)[0, 0].tolist()]
    # logits below 64 in size, in a softmax of `arms`: (arms + 72) roundings of 64 of theirs and of ours
    bound = 2 * 64 * (config.arms + 72) * U
    for rollout in bandit.draw(config, control, problem, policy, 3, True):
        batch = make_batch(tables_of(policy), rollout, control.needs)
        lent = (batch.ref_logp, batch.proxy_logp, batch.collision)
        for s, a, valid, *found in zip(
            *(x[0, 0].flatten().tolist() for x in (rollout.state, rollout.arm, rollout.mask, *lent)), strict=True
        ):
            if not valid:
                continue
            kept = [b for b, z in enumerate(rows[s]) if z >= max(rows[s]) - math.log(10)]
            proxy = oracle.log_softmax([rows[s][b] for b in kept])[kept.index(a)] if a in kept else -math.inf
            pi = oracle.softmax(rows[s])
            collision = math.fsum(p * p * (math.log(p) + oracle.state_entropy(pi)) for p in pi if p > 0)
            for one, other in zip(found, (reference[s][a], proxy, collision), strict=True):
                assert one == other or abs(one - other) <= bound


def test_nothing_is_lent_that_is_not_needed():
    config = BanditConfig(seeds=1, problems=1)
    problem = make_problem(config)
    for need in [*LENT, None]:
        control = make_control(needs={need} - {None})
        rollout, pulls = bandit.draw(config, control, problem, problem.parameters, 0, True)
        for part in (rollout, pulls):
            batch = make_batch(tables_of(problem.parameters), part, control.needs)
            found = {name for name in ("ref_logp", "proxy_logp", "collision") if getattr(batch, name) is not None}
            assert found == ({need.value} if need else set())


@pytest.mark.parametrize("family", ["random", "tree"])
def test_reference_and_filter_stay_while_the_policy_moves(family):
    """The filter for the updates of a rollout, the reference for the run; the collision is the moving policy's."""
    sizes = {"seeds": 1, "problems": 1, "arms": 3, "samples": 12, "updates_per_rollout": 3}
    # an advantage that is never 0, so that no update stands still
    config = BanditConfig(family=family, advantage="reward", baseline=0.5, **sizes)
    seen = []

    def edit(objective, batch, state):
        seen.append(batch)
        return objective

    control, problem = make_control(edit, proxy=above_a_tenth, needs=LENT), make_problem(config)
    learner = bandit.Learner(problem.parameters, ())
    references = []
    for number in range(3):
        seen.clear()
        start = learner.parameters
        learner, _ = bandit.train_rollout(config, control, problem, learner, number, bandit.Watch(False, False))
        one, two, three = seen
        assert torch.equal(one.proxy_logp, three.proxy_logp) and torch.equal(one.ref_logp, three.ref_logp)
        assert not torch.equal(one.collision, two.collision) and not torch.equal(two.logp, three.logp)
        references.append((one.ref_logp - one.old_logp).abs().max().item())
        assert not torch.equal(start, learner.parameters)
    assert references[0] == 0 and 0 < references[1] < references[2]


@pytest.mark.parametrize(
    ("settings", "absent"),
    [
        ({}, {Need.SEVERAL_STATES}),
        ({"family": "tree"}, set()),
        ({"family": "contextual", "updates_per_rollout": 1}, {Need.STALE}),
        ({"family": "contextual", "gradient": "exact"}, {Need.SAMPLES, Need.WHOLE_GROUPS}),
        ({"family": "contextual", "natural": True}, {Need.ACTIVATION, Need.SAMPLING, Need.LOGIT_SCALE}),
    ],
)
def test_everything_is_provided_that_has_a_meaning(settings, absent):
    assert bandit.provides(BanditConfig(**settings)) == set(Need) - absent


# --- gradients ------------------------------------------------------------------------------------------------------


def drawn_edit(rng, penalised=True):
    """An edit that draws every field of the objective, NaN where masked, with a k2 penalty; what it made is kept."""
    made = []

    def edit(objective, batch, state):
        shape = batch.mask.shape
        mask = batch.mask & torch.from_numpy(rng.random(shape) < 0.8)

        def between(low, high):
            return torch.from_numpy(rng.uniform(low, high, shape)).masked_fill(~mask, torch.nan)

        made.append(
            dataclasses.replace(
                objective,
                mask=mask,
                weight=between(0.1, 2),
                clip_low=between(0.05, 0.5),
                clip_high=between(0.05, 0.5),
                entropy_coef=between(0, 0.5),
                logit_scale=between(0.7, 1.4),
                penalties=(Penalty(between(0, 0.3), batch.ref_logp, "k2"),) if penalised else (),
            )
        )
        return made[-1]

    return edit, made


def expected_tokens(config, logits, rollout, batch, objective, scaled=True):
    """The tokens of the loss in plain numbers, and a size that bounds the sum of their parts; and the largest ratio."""
    penalty = (*objective.penalties, Penalty(torch.zeros_like(batch.logp), batch.logp, "k2"))[0]
    if not scaled:  # what the control says of it is not asked for
        objective = dataclasses.replace(objective, logit_scale=torch.ones_like(batch.logp))

    def rows(tensor):
        return tensor[0, 0].tolist()

    tokens, size, largest = [], 0.0, 1.0
    mask = rows(objective.mask)
    lengths = [sum(row) for row in mask]
    counted = None if rollout.share is None else rows(rollout.share)
    total = counted and math.fsum(
        c for cs, ms in zip(counted, mask, strict=True) for c, m in zip(cs, ms, strict=True) if m
    )
    names = ("advantage", "weight", "clip_low", "clip_high", "entropy_coef", "logit_scale")
    of = {name: rows(getattr(objective, name)) for name in names} | {
        "state": rows(rollout.state),
        "arm": rows(rollout.arm),
        "old": rows(batch.old_logp),
        "coef": rows(penalty.coef),
        "target": rows(penalty.target),
    }
    for i, row in enumerate(mask):
        places = [t for t, valid in enumerate(row) if valid]
        at = [{name: values[i][t] for name, values in of.items()} for t in places]
        logp = [oracle.log_softmax([x["logit_scale"] * z for z in logits[x["state"]]])[x["arm"]] for x in at]
        gone = [new - x["old"] for new, x in zip(logp, at, strict=True)]
        together = math.exp(math.fsum(gone) / len(gone)) if gone else 1.0
        for t, x, new, log_ratio in zip(places, at, logp, gone, strict=True):
            if counted:
                share = counted[i][t] / total if total else 0.0
            else:
                horizon = config.depth if config.family == "tree" else 1
                share = oracle.TOKEN_SHARES[config.aggregation](lengths, i, horizon)
            slope = oracle.SLOPES[config.surrogate](
                math.exp(log_ratio), together, x["advantage"], x["clip_low"], x["clip_high"]
            )
            pull = share * (x["coef"] * (new - x["target"]) - x["weight"] * slope)
            tokens.append(oracle.Token(x["state"], x["arm"], x["logit_scale"], pull, share * x["entropy_coef"]))
            size += x["logit_scale"] * (abs(pull) + share * (x["coef"] + x["entropy_coef"] + abs(x["weight"] * slope)))
            largest = max(largest, math.exp(log_ratio))
    return tokens, size, largest


def check_step(config, parts, rng):
    """One step from a moved policy is the plain sum over the rollout's tokens; parts: what the control makes use of."""
    edit, made = drawn_edit(rng, "penalties" in parts)
    supported, scaled = Need.ENTROPY_SUPPORT in parts, Need.LOGIT_SCALE in parts
    needs = {Need.REF_LOGP} | (parts & set(Need))
    control = make_control(edit, needs=needs, **({"entropy_support": best_two} if supported else {}))
    problem = make_problem(config)
    tables = tables_of(problem.parameters)
    rollout = ROLLOUTS[config.gradient](config, problem, tables, 0)
    if "kinds" in parts:
        rollout = as_rollout(config, problem, tables, counted(config, rollout), 0)
    rollout = with_references(control, problem, problem.parameters, rollout)
    moved = problem.parameters + torch.from_numpy(rng.normal(0, 0.4, problem.parameters.shape))
    ones = torch.ones(1, 1, dtype=torch.float64)
    after, batch = step_parameters(config, control, problem, moved, ones, rollout, ())
    logits = moved[0, 0].tolist()
    tokens, size, largest = expected_tokens(config, logits, rollout, batch, made[0], scaled)
    gradient = oracle.loss_gradient(logits, tokens, best_two_of if supported else lambda row: range(len(row)))
    # a sum of n parts, each ten factors; a log-probability of logits below 64 errs by (arms + 72) u, and a surrogate
    # magnifies that by its ratio at most; of both sides; and the step is taken from logits below 16
    bound = 2 * U * (len(tokens) + 10 * (1 + largest) * (config.arms + 72)) * size * config.step_size + 64 * U
    np.testing.assert_allclose((moved - after)[0, 0], config.step_size * np.array(gradient), rtol=0, atol=bound)


USES = st.sets(st.sampled_from(["penalties", Need.LOGIT_SCALE, Need.ENTROPY_SUPPORT]))
TABLES = {"features": 0, "prior_scale": 1.0}


@pytest.mark.parametrize("aggregation", bandit_config.AGGREGATIONS)
@given(
    bandit_configs(families=("tree",), samples=9, **TABLES),
    st.sampled_from(bandit_config.SURROGATES),
    USES,
    generators(),
)
def test_a_step_on_sampled_sequences(aggregation, config, surrogate, uses, rng):
    check_step(dataclasses.replace(config, surrogate=surrogate, aggregation=aggregation), uses, rng)


@pytest.mark.parametrize("surrogate", bandit_config.SURROGATES)
@given(
    bandit_configs(families=("random", "contextual"), samples=9, **TABLES),
    st.sampled_from(bandit_config.AGGREGATIONS),
    st.sampled_from([set(), {"kinds"}]),
    USES,
    generators(),
)
def test_a_step_on_pulls_and_on_kinds_of_them(surrogate, config, aggregation, kinds, uses, rng):
    check_step(dataclasses.replace(config, surrogate=surrogate, aggregation=aggregation), uses | kinds, rng)


@given(bandit_configs(gradient="exact", **TABLES), st.sampled_from(bandit_config.SURROGATES), USES, generators())
def test_a_step_on_every_sequence_with_its_share(config, surrogate, uses, rng):
    check_step(dataclasses.replace(config, surrogate=surrogate), uses, rng)


def test_the_step_of_one_scaled_token_by_hand():
    """Three equal arms, one token of arm 0 with advantage 1, logits doubled, step 1: dz = 2 (1 - 1/3, -1/3, -1/3)."""
    config = BanditConfig(seeds=1, problems=1, arms=3, samples=1, prior_scale=0.0, step_size=1.0)
    problem = make_problem(config)
    rollout = pull(config, problem, tables_of(problem.parameters), 0)
    rollout = rollout._replace(arm=torch.zeros_like(rollout.arm), advantage=torch.ones_like(rollout.advantage))
    doubled = make_control(
        lambda objective, batch, state: dataclasses.replace(objective, logit_scale=2 * objective.logit_scale),
        needs={Need.LOGIT_SCALE},
    )
    ones = torch.ones(1, 1, dtype=torch.float64)
    after, _ = step_parameters(config, doubled, problem, problem.parameters, ones, rollout, ())
    # thirds are rounded, then four sums and products of numbers below 2
    np.testing.assert_allclose(after[0, 0, 0], [4 / 3, -2 / 3, -2 / 3], rtol=0, atol=20 * U)


# --- every control --------------------------------------------------------------------------------------------------


TRAINED = BanditConfig(seeds=2, problems=2, arms=4, states=3, depth=3, samples=16, step_size=2.0)


ACTING_HERE = {
    "adaptive_entropy": {"target": 1.2},  # four arms begin with more than its default of .2 nats
    "lp_reg": {"kappa": 0.5},  # its default filters none of four arms out, and then the penalty is flat at ratio 1
}


def settings_of(name):
    """Settings of a control that make it act here: of the contract, or of a preset "name:preset"."""
    control, _, preset = name.partition(":")
    own = ACTING_HERE.get(control, {})
    values = {"preset": preset} if preset else CONTRACT[control].acting
    return control, {f"{control}.{k}": v for k, v in (values | own).items()}


def trained(config, control):
    """Parameters after three rollouts, watched."""
    problem = make_problem(config)
    learner = bandit.Learner(problem.parameters, control.init(torch.zeros(problem.key.shape, dtype=torch.float64)))
    for number in range(3):
        learner, metrics = bandit.train_rollout(config, control, problem, learner, number, bandit.Watch(True, True))
        assert all(torch.isfinite(value).all() for value in metrics.values())
    assert torch.isfinite(learner.parameters).all() and not torch.equal(learner.parameters, problem.parameters)
    return learner.parameters


@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize("family", ["random", "contextual", "tree"])
@pytest.mark.parametrize("name", NAMES)
def test_every_control_trains_and_changes_the_run_unless_it_says_otherwise(name, family, updates):
    """Beside a control without effect that has the same needs, and so the same pulls, kinds and sums."""
    name, settings = settings_of(name)
    config = dataclasses.replace(TRAINED, family=family, control=name, set=settings, updates_per_rollout=updates)
    control = bandit.build_control(config)
    idle = idle_parts(name, settings, bandit.provides(config)) or name == "none"
    unchanged = trained(config, make_control(needs=control.needs))
    assert torch.equal(trained(config, control), unchanged) == bool(idle)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains(name):
    name, settings = settings_of(name)
    config = dataclasses.replace(TRAINED, family="contextual", control=name, set=settings)
    trained(config, bandit.build_control(config))


# --- settings -------------------------------------------------------------------------------------------------------


def test_names_are_those_of_the_tables():
    hints = typing.get_type_hints(BanditConfig)
    tables = {"surrogate": SURROGATES, "aggregation": AGGREGATIONS, "advantage": [*ADVANTAGES, "reward"]}
    for name, table in tables.items():
        choices = {"surrogate": "SURROGATES", "aggregation": "AGGREGATIONS", "advantage": "ADVANTAGES"}[name]
        assert typing.get_args(hints[name]) == tuple(table) == getattr(bandit_config, choices)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"surrogate": "trpo"}, "surrogate must be one of ppo, dual_clip, cispo, gspo, sapo, reinforce, got 'trpo'"),
        ({"aggregation": "sum"}, "aggregation must be one of token-mean, .*, constant, got 'sum'"),
        (
            {"aggregation": "constant", "family": "tree", "gradient": "exact"},
            "aggregation constant averages over sampled sequences, which the exact gradient of a tree does not have",
        ),
        ({"updates_per_rollout": 0}, "updates_per_rollout must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        BanditConfig(**values)


@pytest.mark.parametrize("settings", [{}, {"gradient": "exact"}, {"family": "tree", "depth": 1, "gradient": "exact"}])
def test_aggregations_are_all_one_where_an_episode_is_one_token(settings):
    config = BanditConfig(seeds=2, problems=2, arms=3, samples=8, **settings)
    problem, control, found = make_problem(config), make_control(), []
    for aggregation in bandit_config.AGGREGATIONS:
        other, learner = dataclasses.replace(config, aggregation=aggregation), bandit.Learner(problem.parameters, ())
        found.append(bandit.train_rollout(other, control, problem, learner, 0, bandit.Watch(False, False))[0])
    assert not torch.equal(found[0].parameters, problem.parameters)
    assert all(torch.equal(found[0].parameters, one.parameters) for one in found[1:])
