"""Runs of every family of bandits: draws, counted pulls, measurements, recording, resuming, and what each is for."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from contract import CHAINS, CONTRACT, NAMES

from entropy_theory.control import control as make_control
from entropy_theory.controls import build
from entropy_theory.draw import uniform
from entropy_theory.runs import Run, read_metrics
from sims import bandit, bandit_tally
from sims.bandit_config import ADVANTAGES, FAMILIES, BanditConfig
from sims.bandit_problem import logits_of, make_problem
from sims.bandit_rollout import pull, tables_of

U = torch.finfo(torch.float64).eps / 2
SMALL = BanditConfig(seeds=3, problems=2, arms=4, states=3, depth=3, samples=16, updates_per_rollout=2, rollouts=7)
KINDS = [{"family": family} for family in FAMILIES] + [
    {"family": "contextual", "groups": 2},
    {"family": "contextual", "features": 5},
    {"family": "tree", "features": 5},
    {"family": "tree", "gradient": "exact"},
    {"family": "contextual", "gradient": "exact"},
    {"family": "contextual", "features": 5, "natural": True},
]


def small(**settings) -> BanditConfig:
    return dataclasses.replace(SMALL, **settings)


def name_of(settings) -> str:
    return "-".join(str(value) for value in settings.values())


def run(config: BanditConfig, folder, progress=None) -> list[dict]:
    with Run(folder, dataclasses.asdict(config)) as opened:
        bandit.train(config, opened, progress)
    return read_metrics(folder)


def acting(control) -> dict:
    """The parameters of a control, or of a chain, with which it edits a small batch."""
    return {f"{n}.{k}": v for n in control.split("+") for k, v in CONTRACT[n].acting.items()}


# --- draws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{"family": "random"}, {"family": "tree"}, {"family": "contextual"}, {"family": "contextual", "groups": 5}],
)
def test_sequences_follow_the_draws_one_by_one(settings):
    """Each token by inverting the cumulative probabilities in a loop, from the same uniform numbers."""
    config = small(samples=8, **settings)
    problem = make_problem(config)
    policy = logits_of(problem, problem.parameters)
    rollout = pull(config, problem, tables_of(policy), 5)
    cumulative, arms = policy.log_softmax(-1).exp().cumsum(-1), config.arms
    contexts = rollout.group.shape[-1] // config.samples
    rows, drawn = contexts * config.samples, config.drawn_contexts
    numbers = uniform(problem.key, torch.full_like(problem.key, 5), drawn + rows * (problem.depth + 1))
    for index in np.ndindex(config.seeds, config.problems):
        number = numbers[index].tolist()
        for row in range(rows):
            group = row // config.samples
            assert rollout.group[index][row] == group
            state = int(number[group] * config.state_count) if drawn else group
            which, later = number[drawn + row], number[drawn + 2 * rows :]
            for t in range(problem.depth):
                edges = cumulative[index][state].tolist()
                arm = min(sum(edge <= which * edges[-1] for edge in edges), arms - 1)
                found = (rollout.state[index][row, t], rollout.arm[index][row, t], rollout.mask[index][row, t])
                assert found == (state, arm, True)
                following = problem.child[state, arm].item()
                if following < 0:
                    break
                state, which = following, later[t * rows + row]
            assert not rollout.mask[index][row, t + 1 :].any()
            luck = number[drawn + rows + row]
            assert rollout.reward[index][row] == (luck < problem.reward[index][state, arm].item())


@pytest.mark.parametrize("settings", [{}, {"family": "contextual"}, {"family": "contextual", "groups": 5}])
@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_kinds_hold_what_the_pulls_hold(settings, advantage):
    """Counts, advantages and shares of the kinds are those of the pulls, one by one, wherever kinds are used."""
    config = small(samples=12, advantage=advantage, baseline=0.25, **settings)
    beyond = advantage in ("reinforce_baseline", "reinforce++", "reinforce++_baseline")
    assert bandit_tally.applies(config, build("none", {})) == (not settings or not beyond)
    if settings and beyond:
        return
    problem = make_problem(config)
    tables = tables_of(logits_of(problem, problem.parameters))
    pulls = pull(config, problem, tables, 2)
    kinds = bandit_tally.as_rollout(config, problem, tables, bandit_tally.counted(config, pulls), 2)
    for index in np.ndindex(config.seeds, config.problems):
        keys = [tuple(x) for x in zip(*(getattr(pulls, n)[index].flatten().tolist() for n in FIELDS), strict=True)]
        for kind, *values in zip(
            zip(*(getattr(kinds, n)[index].flatten().tolist() for n in FIELDS), strict=True),
            *(getattr(kinds, n)[index].flatten().tolist() for n in ("share", "advantage", "old_logp")),
            strict=True,
        ):
            rows = [row for row, key in enumerate(keys) if key == kind]
            share, advantage_found, old_logp = values
            # a product of two numbers: one rounding
            assert share == pytest.approx(len(rows) * kinds.arm.shape[-2] / len(keys), rel=2 * U)
            for row in rows:
                # a dozen sums in another order, divided by a deviation above 0.2
                assert abs(pulls.advantage[index][row, 0].item() - advantage_found) <= 12 * 20 * U
                assert pulls.old_logp[index][row, 0].item() == old_logp


FIELDS = ("group", "state", "arm", "reward")


@pytest.mark.parametrize(
    "settings",
    [{"arms": 3}, {"arms": 30, "samples": 100}, {"family": "contextual"}, {"family": "contextual", "groups": 6}],
)
def test_numba_counts_the_same_pulls(settings):
    pytest.importorskip("numba")
    from sims.bandit_rollout import first_states
    from sims.bandit_tally_numba import count_pulls

    config = small(seed=2**31, **settings)
    problem = make_problem(config)
    for step, scale in ((0, 1.0), (3, 1.0), (2**33, 400.0)):  # the last: one arm has nearly all probability
        tables = tables_of(scale * logits_of(problem, problem.parameters))
        expected = bandit_tally.counted(config, pull(config, problem, tables, step))
        context = first_states(config, problem, step)
        assert torch.equal(count_pulls(config, problem, tables.probability.cumsum(-1), context, step), expected)
        assert (expected.sum((-2, -1)) == config.samples).all()


def test_the_compiled_run_is_the_plain_one(tmp_path, monkeypatch):
    pytest.importorskip("numba")
    config = small(rollouts=9, record_every=4)
    plain = run(config, tmp_path / "plain")
    monkeypatch.setattr(bandit_tally, "WORTH_COMPILING", 0)
    assert run(config, tmp_path / "compiled") == plain


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", KINDS, ids=name_of)
def test_a_seed_does_not_depend_on_seeds_or_blocks_beside_it(settings, tmp_path, monkeypatch):
    config = small(**settings)
    together = run(config, tmp_path / "together")
    alone = run(dataclasses.replace(config, seeds=1, seed=2), tmp_path / "alone")
    monkeypatch.setattr(bandit, "BLOCK", 1)
    blocks = run(config, tmp_path / "blocks")
    assert blocks == together
    for a, b in zip(together, alone, strict=True):
        assert [a[name][2] for name in a if name != "step"] == [b[name][0] for name in b if name != "step"]


@pytest.mark.parametrize("settings", KINDS, ids=name_of)
def test_change_of_entropy_is_the_policys_and_the_states(settings, tmp_path):
    lines = run(small(step_size=2.0 if not settings.get("natural") else 0.2, **settings), tmp_path / "run")
    shifted = False
    for before, after in itertools.pairwise(lines):
        parts = np.array(before["policy_entropy_change"]) + before["state_shift"]
        change = np.array(after["entropy"]) - before["entropy"]
        # sums of at most 13 products below log 4, twice
        np.testing.assert_allclose(parts, change, rtol=0, atol=100 * U)
        shifted |= bool(np.any(np.array(before["state_shift"]) != 0))
    assert shifted == (settings["family"] == "tree")


def test_change_of_entropy_follows_temperature_and_activation():
    """A control that cools the policy from rollout to rollout: the sum of both terms is still the logged change."""
    config = small(family="tree")
    cooling = make_control(
        init=lambda like: like + 1,
        advance=lambda state, measurement: state * 0.9,
        sample=lambda sampling, state: dataclasses.replace(sampling, temperature=sampling.temperature * state),
        activate=lambda logits: 1.5 * logits,
    )
    problem = make_problem(config)
    learner = bandit.Learner(problem.parameters, cooling.init(torch.zeros(config.seeds, config.problems).double()))
    lines = []
    for number in range(4):
        learner, metrics = bandit.train_rollout(config, cooling, problem, learner, number, bandit.Watch(True, True))
        lines.append(metrics)
    for before, after in itertools.pairwise(lines):
        parts = before["policy_entropy_change"] + before["state_shift"]
        assert (parts - (after["entropy"] - before["entropy"])).abs().max() <= 100 * U
        assert (before["policy_entropy_change"] < 0).all()


KINDS_OF_CHAINS = [{"family": "random"}, {"family": "contextual", "gradient": "exact"}, {"family": "tree"}]
CASES = [(name, kind) for name in NAMES for kind in KINDS] + [
    (name, kind) for name in CHAINS for kind in KINDS_OF_CHAINS
]


@pytest.mark.parametrize(("control", "settings"), CASES, ids=lambda x: x if isinstance(x, str) else name_of(x))
def test_every_family_runs_under_every_control(settings, control, tmp_path):
    config = small(control=control, set=acting(control), rollouts=3, seeds=2, problems=1, **settings)
    parameters = config.set
    if build(control, parameters).needs - bandit.provides(config):
        with pytest.raises(ValueError, match="needs"):
            bandit.build_control(config)
        return
    for line in run(config, tmp_path / "run"):
        assert all(np.isfinite(value).all() for value in line.values())


@pytest.mark.parametrize("settings", [{}, {"family": "tree"}], ids=["kinds", "pulls"])
def test_recording_and_measuring_change_nothing(settings, tmp_path):
    every = run(small(**settings), tmp_path / "every")
    some = run(small(record_every=3, measure_every=6, **settings), tmp_path / "some")
    none = run(small(record_every=3, measure_every=0, **settings), tmp_path / "none")
    assert [line["step"] for line in some] == [line["step"] for line in none] == [1, 4, 7]
    measured = ["measured_entropy_change" in line for line in some]
    assert measured == [True, False, True] and not any("state_shift" in line for line in none)
    for line in (*some, *none):
        whole = every[line["step"] - 1]
        assert line == {name: whole[name] for name in line}
    assert some[0].keys() == every[0].keys()


@pytest.mark.parametrize("settings", [{"family": "tree"}, {"family": "contextual", "groups": 2}, {"gradient": "exact"}])
def test_a_kill_loses_at_most_the_rollouts_since_the_last_record(settings, tmp_path):
    config = small(record_every=3, rollouts=8, **settings)
    run(config, tmp_path / "whole")

    class Kill(Exception):
        pass

    def progress(done, total, line):
        if done == 4:
            raise Kill

    with pytest.raises(Kill):
        run(config, tmp_path / "killed", progress)
    assert [line["step"] for line in read_metrics(tmp_path / "killed")] == [1, 4]
    seen = []
    run(config, tmp_path / "killed", lambda done, total, line: seen.append(done))
    assert seen == [7, 8]
    assert (tmp_path / "killed/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


# --- what the families are for --------------------------------------------------------------------------------------


def test_entropy_first_rises_where_the_good_arm_is_rare(tmp_path):
    """Under the exact policy gradient, in every problem; then the good arm takes over and entropy goes."""
    config = BanditConfig(family="rare_good_arm", gradient="exact", seeds=1, problems=8, rollouts=150, measure_every=10)
    lines = run(dataclasses.replace(config), tmp_path / "run")
    curve = np.array([line["entropy"][0] for line in lines])
    assert lines[0]["theorem_1"][0] > 0 and lines[0]["measured_entropy_change"][0] > 0
    top = curve.argmax()
    assert 5 < top < 60 and (np.diff(curve[:top]) > 0).all()
    assert curve.max() > 1.5 * curve[0] and curve[-1] < 0.5 * curve[0]
    assert lines[0]["best_arm_probability"][0] < 0.04 and lines[-1]["best_arm_probability"][0] > 0.95


def test_early_collapse_loses_the_best_arm_of_the_deceptive_bandit(tmp_path):
    config = BanditConfig(family="deceptive", seeds=6, measure_every=0, record_every=50)
    bonus = dataclasses.replace(config, control="entropy_bonus", set={"entropy_bonus.coef": 0.2})
    none, kept = (run(c, tmp_path / c.control)[-1] for c in (config, bonus))
    assert np.mean(none["entropy"]) < 0.2 and np.mean(none["best_arm_probability"]) < 0.4
    assert 0.15 < np.mean(none["regret"]) <= 0.3 + 1e-9  # at most what the decent arm misses
    assert np.mean(kept["best_arm_probability"]) > 0.9 and np.mean(kept["regret"]) < 0.05


def test_prior_puts_the_rare_arm_where_it_is_asked():
    for family in ("rare_good_arm", "deceptive"):
        config = BanditConfig(family=family, rare_probability=0.01, prior_scale=2.0, seeds=2)
        problem = make_problem(config)
        probability = problem.parameters.softmax(-1)
        # a softmax of ten logits below 20: 40 roundings of its logarithm
        np.testing.assert_allclose(probability[..., 0].numpy(), 0.01, rtol=40 * U)
        assert (problem.reward.argmax(-1) == 0).all() and (probability.argmax(-1) == 1).all()


def test_signs_of_the_advantage_follow_the_baseline():
    for baseline, sign in ((0.0, 1), (1.0, -1)):
        config = small(advantage="reward", baseline=baseline)
        problem = make_problem(config)
        assert (sign * pull(config, problem, tables_of(problem.parameters), 0).advantage >= 0).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"family": "hard"}, "family must be one of random, rare_good_arm, deceptive, contextual, tree, got 'hard'"),
        ({"family": "deceptive", "arms": 2}, "family deceptive needs arms of at least 3, got 2"),
        ({"family": "rare_good_arm", "features": 3}, "prescribes each arm's probability; set features to 0, got 3"),
        ({"family": "tree", "depth": 9}, "more than 100000; lower arms, states or depth"),
        ({"rare_probability": 0.0}, "rare_probability must lie between 0 and 1, got 0.0"),
        ({"rare_probability": float("nan")}, "rare_probability must lie between 0 and 1, got nan"),
        ({"baseline": float("inf")}, "baseline must be finite, got inf"),
        ({"record_every": 0}, "record_every must be at least 1, got 0"),
        ({"measure_every": -1}, "measure_every must be at least 0, got -1"),
        ({"advantage": "gae"}, r"advantage must be one of grpo, rloo, .*, reward, got 'gae'"),
    ],
)
def test_bad_settings_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        BanditConfig(**values)
