"""The bandit world: gradients against their closed forms, independence of seeds, resume, on-policy facts."""

import dataclasses

import numpy as np
import pytest
import torch

from entropy_theory.controls import build
from entropy_theory.runs import Run, read_metrics
from sims import bandit
from sims.bandit_config import BanditConfig
from sims.bandit_problem import make_problem
from sims.bandit_rollout import ROLLOUTS, Rollout, pull, tables_of
from sims.bandit_update import step_parameters

SMALL = BanditConfig(seeds=3, problems=2, arms=4, samples=16, updates_per_rollout=3, rollouts=6)
U = torch.finfo(torch.float64).eps / 2


def run(config: BanditConfig, folder) -> list[dict]:
    with Run(folder, dataclasses.asdict(config)) as opened:
        bandit.train(config, opened)
    return read_metrics(folder)


def first_step(config: BanditConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Rollout]:
    """Logits before and after the first update of a run and mean rewards, [seeds, problems, arms]; and the rollout."""
    problem = make_problem(config)
    rollout = ROLLOUTS[config.gradient](config, problem, tables_of(problem.parameters), 0)
    after = step(config, problem, rollout, problem.parameters)
    return problem.parameters.squeeze(2), after.squeeze(2), problem.reward.squeeze(2), rollout


def step(config, problem, rollout, parameters, control=None):
    """Parameters after one update, with the plain objective unless a control is given."""
    control = control or build("none", {})
    ones = torch.ones(problem.key.shape, dtype=torch.float64)
    return step_parameters(config, control, problem, parameters, ones, rollout, control.init(ones))[0]


def closed_form(reward: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """pi and r - E r in NumPy."""
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    probability = weights / weights.sum(-1, keepdims=True)
    return probability, reward - (probability * reward).sum(-1, keepdims=True)


@pytest.mark.parametrize("natural", [False, True])
def test_exact_gradient_is_proposition_1_and_natural_gradient_is_the_advantage(natural):
    config = dataclasses.replace(SMALL, gradient="exact", natural=natural)
    before, after, reward, _ = first_step(config)
    probability, advantage = closed_form(reward.numpy(), before.numpy())
    change = config.step_size * (advantage - advantage.mean(-1, keepdims=True) if natural else probability * advantage)
    # a few dozen roundings of numbers below 4, divided by the smallest probability in the natural case
    bound = 200 * U * (1 / probability.min() if natural else 1)
    np.testing.assert_allclose((after - before).numpy(), change, rtol=0, atol=bound)


def test_sampled_gradient_is_the_mean_of_single_sample_steps():
    """dz = (eta / N) sum_i A_i (e_{a_i} - pi) at ratio 1, in a plain loop."""
    before, after, _, rollout = first_step(SMALL)
    probability, _ = closed_form(np.zeros(before.shape), before.numpy())
    for index in np.ndindex(*before.shape[:-1]):
        change = np.zeros(SMALL.arms)
        pulls = rollout.arm[index].flatten().tolist(), rollout.advantage[index].flatten().tolist()
        for arm, advantage in zip(*pulls, strict=True):
            change += advantage * (np.eye(SMALL.arms)[arm] - probability[index])
        change *= SMALL.step_size / SMALL.samples
        np.testing.assert_allclose((after - before)[index].numpy(), change, rtol=0, atol=200 * U)


def test_pulls_follow_the_policy():
    config = BanditConfig(seeds=1, problems=2, arms=3, samples=200_000)
    problem = make_problem(config)
    rollout = pull(config, problem, tables_of(problem.parameters), 0)
    mean_reward = problem.reward.squeeze(2)
    probability, _ = closed_form(mean_reward.numpy(), problem.parameters.squeeze(2).numpy())
    for p in range(2):
        count = np.bincount(rollout.arm[0, p, :, 0].numpy(), minlength=3) / config.samples
        # five standard errors of a proportion
        assert (abs(count - probability[0, p]) < 5 * np.sqrt(probability[0, p] / config.samples)).all()
        for arm in range(3):
            mean = rollout.reward[0, p][rollout.arm[0, p, :, 0] == arm].mean().item()
            assert abs(mean - mean_reward[0, p, arm].item()) < 5 * 0.5 / np.sqrt(count[arm] * config.samples)


def test_tabular_step_is_what_theorem_1_sums_up_to(tmp_path):
    """In a table, Lemma 1 of the sampled step is exactly step size x the mean single-sample effect."""
    for line in run(SMALL, tmp_path / "run"):
        predicted = np.array(line["theorem_1_per_step_size"]) * SMALL.step_size
        np.testing.assert_allclose(line["predicted_first_order"], predicted, rtol=0, atol=1000 * U)
        assert line["minibatch_entropy_change"] == line["measured_entropy_change"]  # one state is all there is


@pytest.mark.parametrize(("natural", "name"), [(False, "theorem_1"), (True, "theorem_2")])
def test_exact_step_obeys_its_theorem(tmp_path, natural, name):
    for line in run(dataclasses.replace(SMALL, gradient="exact", natural=natural), tmp_path / "run"):
        np.testing.assert_allclose(line["predicted_first_order"], line[name], rtol=0, atol=1e5 * U)
        error = abs(np.array(line["measured_entropy_change"]) - line[name])
        assert (error <= np.array(line["remainder_bound"]) + 1000 * U).all()


def test_a_seed_does_not_depend_on_the_seeds_beside_it(tmp_path):
    together = run(SMALL, tmp_path / "together")
    alone = run(dataclasses.replace(SMALL, seeds=1, seed=2), tmp_path / "alone")
    for a, b in zip(together, alone, strict=True):
        assert [a[name][2] for name in a if name != "step"] == [b[name][0] for name in b if name != "step"]


@pytest.mark.parametrize("control", ["none", "clip_cov", "clip_higher+kl_cov"])
def test_resume_after_a_kill_is_bit_equal(tmp_path, control):
    config = dataclasses.replace(
        SMALL, control=control, set={f"{c}.fraction": 0.2 for c in control.split("+") if "cov" in c}
    )
    run(config, tmp_path / "whole")

    class Kill(Exception):
        pass

    for stop in (1, 4):
        with Run(tmp_path / "killed", dataclasses.asdict(config)) as opened:

            def progress(done, total, line, stop=stop):
                if done == stop:
                    raise Kill

            with pytest.raises(Kill):
                bandit.train(config, opened, progress)
    run(config, tmp_path / "killed")
    assert (tmp_path / "killed/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


@pytest.mark.parametrize(("control", "settings"), [("kl_cov", {"kl_cov.fraction": 0.3}), ("clip_higher", {})])
def test_nothing_on_the_first_update_something_on_a_stale_one(control, settings):
    config = dataclasses.replace(SMALL, step_size=3.0)
    problem = make_problem(config)
    rollout = pull(config, problem, tables_of(problem.parameters), 0)
    part = build(control, settings)
    fresh = step(config, problem, rollout, problem.parameters)
    assert torch.equal(step(config, problem, rollout, problem.parameters, part), fresh)
    assert not torch.equal(step(config, problem, rollout, fresh, part), step(config, problem, rollout, fresh))


def test_entropy_collapses_without_control_and_less_with_kl_cov(tmp_path):
    config = BanditConfig(seeds=5, problems=4, rollouts=120)
    none = run(config, tmp_path / "none")
    kept = run(dataclasses.replace(config, control="kl_cov", set={"kl_cov.fraction": 0.1}), tmp_path / "kl_cov")
    start, end = np.mean(none[0]["entropy"]), np.mean(none[-1]["entropy"])
    assert end < 0.15 * start
    assert np.mean(kept[-1]["entropy"]) > 1.5 * end
    assert np.mean(none[-1]["reward"]) > np.mean(none[0]["reward"]) + 0.2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"arms": 1}, "arms must be at least 2, got 1"),
        ({"updates_per_rollout": 0}, "updates_per_rollout must be at least 1, got 0"),
        ({"step_size": float("nan")}, "step_size must be positive, got nan"),
        ({"gradient": "guess"}, "gradient must be one of sampled, exact, got 'guess'"),
        ({"prior_scale": -1.0}, "prior_scale must be at least 0"),
    ],
)
def test_bad_settings_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        BanditConfig(**values)


def test_sampled_controls_are_refused_where_there_are_no_samples():
    with pytest.raises(ValueError, match="control kl_cov needs samples, which the exact-gradient bandit"):
        bandit.build_control(dataclasses.replace(SMALL, control="kl_cov", gradient="exact"))


def test_diverging_logits_end_the_run_in_one_sentence(tmp_path):
    config = dataclasses.replace(SMALL, step_size=1.7e308, natural=True, prior_scale=3.0)
    with pytest.raises(ValueError, match="no longer finite after rollout"):
        run(config, tmp_path / "run")
