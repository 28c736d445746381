"""The CartPole world: what the loop asks of controls, what it logs, resuming, learning."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from cartpole_runs import (
    DOUBLE,
    SMALL,
    batch_of,
    loss_and_gradients,
    make_envs,
    plain_head,
    same,
    stale,
    train,
    trained,
)

from entropy_theory.control import Need, control
from entropy_theory.loss import token_loss
from entropy_theory.records import Objective, Sampling
from sims import cartpole, networks, ppo
from sims.cartpole_config import CartPoleConfig
from sims.cartpole_measure import measure_rollout
from sims.engine import make_head

U = torch.finfo(torch.float64).eps / 2


def test_kl_cov_and_clip_higher_act_on_a_stale_batch_only():
    learner, transitions = stale(DOUBLE)
    for fresh in (True, False):
        _, plain = loss_and_gradients(learner, transitions, fresh)
        _, no_clip = loss_and_gradients(learner, transitions, fresh, "clip_higher", clip_high=math.inf)
        _, higher = loss_and_gradients(learner, transitions, fresh, "clip_higher")
        _, kl = loss_and_gradients(learner, transitions, fresh, "kl_cov", fraction=0.1)
        _, bonus = loss_and_gradients(learner, transitions, fresh, "entropy_bonus")
        assert same(kl, plain) == fresh and same(kl, no_clip) == fresh
        assert same(higher, plain) == fresh
        assert not same(bonus, plain)


def test_the_first_update_of_a_run_is_the_same_under_kl_cov_and_clip_higher(tmp_path, monkeypatch):
    """Bit for bit, in float32, also where the recorded log-probabilities were rounded otherwise."""
    play = cartpole.play

    def rounded_otherwise(*arguments):
        played = play(*arguments)
        old_logp = played.transitions.old_logp * (1 + 2**-23)
        return played._replace(transitions=played.transitions._replace(old_logp=old_logp))

    monkeypatch.setattr(cartpole, "play", rounded_otherwise)
    config = dataclasses.replace(SMALL, lr=0.05, anneal_lr=False, total_timesteps=2 * 128)
    settings = {"none": {}, "clip_higher": {}, "kl_cov": {"kl_cov.fraction": 0.1}, "entropy_bonus": {}}
    lines = {
        name: train(dataclasses.replace(config, control=name, set=values), tmp_path / name)
        for name, values in settings.items()
    }
    weights = {name: trained(tmp_path / name) for name in settings}
    for name in ("clip_higher", "kl_cov"):
        for key in ("measured_entropy_change", "predicted_first_order", "theorem_1_per_step_size"):
            assert lines[name][0][key] == lines["none"][0][key]
        assert not same(weights[name], weights["none"])
    assert lines["entropy_bonus"][0]["measured_entropy_change"] != lines["none"][0]["measured_entropy_change"]


def test_what_a_control_touched_is_reported(tmp_path):
    config = dataclasses.replace(SMALL, control="kl_cov", set={"kl_cov.fraction": 0.1})
    for line in train(config, tmp_path / "run"):
        for count, share in zip(line["selected_tokens"], line["selected_share"], strict=True):
            # floor(0.1 n) of n valid transitions, n <= 64
            assert count == math.floor(0.1 * round(count / share)) and round(count / share) <= 64


def test_a_control_sets_temperature_and_activation():
    """Temperature and activation enter sampling, log-probabilities, entropy and the probe alike."""
    learner, _ = stale(DOUBLE)
    heated = control(
        sample=lambda sampling, state: Sampling(sampling.temperature * 4.0),
        activate=lambda logits: 2.0 * logits + 1.0,
        needs={Need.ACTIVATION, Need.SAMPLING},
    )
    learner = learner._replace(control=heated)
    ones = torch.ones(3, dtype=torch.float64)
    head = make_head(heated, heated.sample(Sampling(ones), ()).temperature)
    _, transitions, entropies, _ = cartpole.play(learner, make_envs(DOUBLE), head, 0)
    logits = (2.0 * networks.actor(learner.networks, transitions.states) + 1.0) / 4.0
    logp = logits.log_softmax(-1).detach().unsqueeze(2)  # a row is one step
    expected = logp.gather(-1, transitions.action.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(transitions.old_logp, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(entropies, -(logp.exp() * logp).sum(-1), rtol=1e-12, atol=1e-14)
    # towards temperature 0 the policy takes its best action wherever it may act
    cold = cartpole.play(learner, make_envs(DOUBLE), make_head(heated, ones * 1e-9), 0).rollout
    best = networks.actor(learner.networks, cold.observation[:, :, :-1].flatten(1, 2)).argmax(-1)
    assert torch.equal(best.view(cold.action.shape), cold.action)


def test_logit_scale_scales_the_logits_of_the_update():
    learner, transitions = stale(DOUBLE)
    logits, value = networks.actor_critic(learner.networks, transitions.states)
    batch = batch_of(learner, transitions)
    plain = Objective.from_batch(batch)
    scaled = dataclasses.replace(plain, logit_scale=2 * plain.logit_scale)
    found = ppo.ppo_loss(logits, value, transitions, batch, scaled, ppo.ValueTerm(0.0))
    logp = (2 * logits).log_softmax(-1).gather(-1, transitions.action)
    losses = token_loss(logp, torch.zeros_like(logp), batch, plain)
    expected = sum(row[valid].mean() for row, valid in zip(losses, transitions.mask, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_control_advances_once_per_update_with_the_measured_entropy(tmp_path, monkeypatch):
    counting = control(
        init=lambda like: (like, like),
        advance=lambda state, measurement: (state[0] + 1, state[1] + measurement.entropy),
    )
    monkeypatch.setattr(cartpole, "build", lambda names, settings: counting)
    lines = train(SMALL, tmp_path / "run")
    count, total = torch.load(tmp_path / "run/state.pt", weights_only=True)["state"]["control"]
    assert count.tolist() == [20.0] * SMALL.seeds  # 5 rollouts of 2 epochs of 2 minibatches
    # the mean over a run of the sampling policies' entropy, which moves by less than .01 within a rollout of 4 steps
    mean = np.mean([line["entropy"] for line in lines], axis=0)
    np.testing.assert_allclose((total / count).numpy(), mean, rtol=0, atol=0.01)


def test_a_need_that_an_algorithm_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(cartpole, "build", lambda names, settings: control(needs={Need.WHOLE_GROUPS}))
    message = "made_up needs whole_groups, which the CartPole world with algorithm npg does not provide"
    with pytest.raises(ValueError, match=message):
        cartpole.build_control(CartPoleConfig(control="made_up", algorithm="npg"))
    assert cartpole.build_control(CartPoleConfig(control="made_up", algorithm="grpo", probe_states=8))


def test_rollout_metrics_are_means_over_valid_states():
    learner, _ = stale(DOUBLE)
    envs, head = make_envs(DOUBLE), plain_head(DOUBLE)
    for number in range(2):  # in the second rollout some environments begin with a reset step
        played = cartpole.play(learner, envs, head, number)
    transitions, entropies = played.transitions, played.entropies
    assert (~transitions.mask).any()
    line = measure_rollout(transitions, entropies, [[10, 20], [], [30]])
    assert line["episode_return"] == [15, None, 30] and line["episode_return_count"] == [2, 0, 1]
    for seed in range(3):
        z = networks.actor(learner.networks, transitions.states)[seed].tolist()
        exact, sampled = [], []
        actions, mask = (x[seed].flatten().tolist() for x in (transitions.action, transitions.mask))
        for logits, action, valid in zip(z, actions, mask, strict=True):
            if valid:
                logs = [x - math.log(math.fsum(map(math.exp, logits))) for x in logits]
                exact.append(-math.fsum(math.exp(x) * x for x in logs))
                sampled.append(-logs[action])
        assert line["entropy"][seed].item() == pytest.approx(math.fsum(exact) / len(exact), rel=1e-12)
        assert line["sampled_entropy"][seed].item() == pytest.approx(math.fsum(sampled) / len(sampled), rel=1e-12)


def test_a_run_logs_what_it_should(tmp_path):
    lines = train(SMALL, tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    for number, line in enumerate(lines, 1):  # no episode is shorter than 8 steps, and each end costs a reset
        assert all(128 * number * 7 / 8 <= steps < 128 * number for steps in line["env_steps"])
    for line in lines:
        assert ("state_shift" in line) == ("policy_entropy_change" in line) == (line["step"] < 5)
        for key in set(line) - {"step", "env_steps"}:
            assert len(line[key]) == SMALL.seeds and all(x is not None for x in line[key]), key
        for measured, first, bound in zip(
            line["measured_entropy_change"], line["predicted_first_order"], line["remainder_bound"], strict=True
        ):
            # both are float64 functions of stored logits; 1e-13 is far above their rounding
            assert abs(measured - first) <= bound + 1e-13


@pytest.mark.parametrize("name", ["none", "clip_cov"])
def test_a_stopped_run_resumes_bit_for_bit(tmp_path, name):
    config = dataclasses.replace(SMALL, control=name, set={"clip_cov.low": 0.0} if name == "clip_cov" else {})
    train(config, tmp_path / "whole")

    def stop(done, total, line):
        assert total == 5
        if done in (1, 3):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "stopped", stop)
    train(config, tmp_path / "stopped", stop)
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "stopped/metrics.jsonl").read_bytes()
    assert same(trained(tmp_path / "whole"), trained(tmp_path / "stopped"))


def test_it_learns(tmp_path):
    """A coin keeps the pole up for 22 steps; after 15,000 steps of training every seed triples that."""
    lines = train(CartPoleConfig(seeds=2, total_timesteps=30 * 512, engine="torch"), tmp_path / "run")
    assert max(lines[0]["episode_return"]) < 33 and min(lines[-1]["episode_return"]) > 66
    assert max(lines[-1]["entropy"]) < min(lines[0]["entropy"])


def test_probe_states_are_float64_states_of_a_moving_policy():
    logits, change, advantage = cartpole.probe_states(0)
    assert logits.shape == change.shape == advantage.shape and 500 < len(logits) <= 640 and logits.shape[1] == 2
    assert all(x.dtype is torch.float64 and torch.isfinite(x).all() for x in (logits, change, advantage))
    mean = (logits.softmax(-1) * advantage).sum(-1)
    assert (mean.abs() <= 8 * U * (1 + advantage.abs().amax(-1))).all()
    assert (change.abs().amax(-1) > 0).all()
    assert all(torch.equal(x, y) for x, y in zip((logits, change, advantage), cartpole.probe_states(0), strict=True))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"lr": 0.0}, r"lr must lie in \(0, 1\], got 0.0"),
        ({"lr": math.nan}, r"lr must lie in \(0, 1\], got nan"),
        ({"gamma": 1.5}, r"gamma must lie in \[0, 1\], got 1.5"),
        ({"clip_low": 0.0}, "clip_low must be positive, got 0.0"),
        ({"value_coef": -1.0}, "value_coef must be at least 0, got -1.0"),
        ({"total_timesteps": 100}, "at least one rollout, envs \\* steps = 512, got 100"),
        ({"minibatches": 7}, "minibatches must divide envs \\* steps = 512, got 7"),
        ({"probe_states": 1000}, r"probe_states must lie in \[1, 256\] \(half of envs \* steps\), got 1000"),
        (
            {"algorithm": "grpo", "probe_states": 65},
            r"probe_states must lie in \[1, 64\] \(4 \* groups \* group_size\), got 65",
        ),
        ({"algorithm": "grpo", "groups": 6}, "minibatches must divide groups = 6, got 4"),
        ({"algorithm": "reinforce", "group_size": 1}, "group_size must be at least 2, got 1"),
        ({"algorithm": "grpo", "episode_rollouts": 0}, "episode_rollouts must be at least 1, got 0"),
        ({"algorithm": "a2c"}, "algorithm must be one of ppo, npg, grpo, reinforce, got 'a2c'"),
        ({"env": "Pong-v5"}, "env must be one of CartPole-v1, Acrobot-v1, MountainCar-v0, got 'Pong-v5'"),
        ({"value_clip": 0.0}, "value_clip must be positive, got 0.0"),
        ({"normalise": "batch"}, "normalise must be one of rollout, minibatch, got 'batch'"),
        ({"algorithm": "grpo", "normalise": "minibatch"}, "normalise must be rollout with algorithm grpo"),
        ({"init": "zero"}, "init must be one of orthogonal, default, got 'zero'"),
        ({"target_kl": 0.0}, "target_kl must be positive, got 0.0"),
        ({"damping": -1.0}, "damping must be at least 0, got -1.0"),
        ({"measure_every": -1}, "measure_every must be at least 0, got -1"),
        ({"dtype": "float16"}, "dtype must be one of float32, float64, got 'float16'"),
    ],
)
def test_config_errors_name_field_and_value(settings, message):
    with pytest.raises(ValueError, match=message):
        CartPoleConfig(**settings)


def test_networks_that_diverge_stop_the_run(tmp_path):
    with pytest.raises(ValueError, match="no longer finite after rollout 0; lower lr"):
        train(dataclasses.replace(SMALL, value_coef=1e38), tmp_path / "run")


def test_the_config_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, sims.cartpole_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
