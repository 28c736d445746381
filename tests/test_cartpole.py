"""The CartPole world: gymnasium's stepper, masked resets, GAE, batched networks, on-policy facts, resume."""

import dataclasses
import math

import gymnasium
import numpy as np
import pytest
import torch

from entropy_theory.control import control
from entropy_theory.controls import build
from entropy_theory.loss import token_loss
from entropy_theory.records import Objective, Sampling
from entropy_theory.runs import Run, read_metrics
from sims import cartpole, cartpole_env, networks, ppo
from sims.cartpole_config import CartPoleConfig

U = torch.finfo(torch.float64).eps / 2
SMALL = CartPoleConfig(
    seeds=3, total_timesteps=5 * 128, envs=4, steps=32, epochs=2, minibatches=2, hidden=8, probe_states=16
)
DOUBLE = dataclasses.replace(SMALL, dtype="float64")


def train(config: CartPoleConfig, folder, progress=None) -> list[dict]:
    with Run(folder, cartpole.config_record(config)) as run:
        cartpole.train(config, run, progress)
    return read_metrics(folder)


def trained(folder) -> list[torch.Tensor]:
    """Weights at the end of a run."""
    return torch.load(folder / "state.pt", weights_only=True)["state"]["networks"]


def played(config: CartPoleConfig, policy=None, age: int = 0) -> cartpole_env.Rollout:
    """A rollout of a policy (a coin if not given) in environments whose episodes are `age` steps old."""
    env = cartpole_env.make_env(config.seeds * config.envs, config.seed)
    env.steps[:] = age
    draws = torch.rand(config.seeds, config.envs, config.steps, generator=torch.Generator().manual_seed(1))
    return cartpole_env.collect(env, policy or (lambda x: np.full(x.shape[:-1], 0.5)), draws, torch.float64)


def balance(observation: np.ndarray) -> np.ndarray:
    """A hand-written policy that keeps the pole up for longer than the rollouts here."""
    return (observation[..., 2] + observation[..., 3] + 0.1 * observation[..., 1] > 0).astype(float)


LONG = dataclasses.replace(SMALL, steps=80)
ROLLOUTS = {"terminated": played(LONG), "truncated": played(LONG, balance, age=440)}
"""Rollouts in which several episodes fall, and in which every environment's first one is cut off at 500 steps."""


def flat(rollout: cartpole_env.Rollout):
    """(seed, field -> list over steps) of each environment."""
    for seed, env in np.ndindex(*rollout.action.shape[:2]):
        yield seed, {name: field[seed, env].tolist() for name, field in rollout._asdict().items()}


def episodes(record) -> list[list[int]]:
    """Steps of each episode of one environment: a plain reading of NEXT_STEP autoreset."""
    found, current, resetting = [], [], False
    for t in range(len(record["action"])):
        if resetting:
            resetting = False
            continue
        current.append(t)
        if record["terminated"][t] or record["truncated"][t]:
            found.append(current)
            current, resetting = [], True
    return found + ([current] if current else [])


# --- the environment ------------------------------------------------------------------------------------------------


def test_the_stepper_is_gymnasiums():
    env = cartpole_env.make_env(4, 0)
    assert type(env) is gymnasium.envs.classic_control.cartpole.CartPoleVectorEnv
    assert env.spec.id == "CartPole-v1"


@pytest.mark.parametrize("kind", ROLLOUTS)
def test_every_valid_step_is_one_step_of_the_single_environment(kind):
    rollout = ROLLOUTS[kind]
    single = gymnasium.make("CartPole-v1").unwrapped
    single.reset(seed=0)
    for _, record in flat(rollout):
        for t in (t for episode in episodes(record) for t in episode):
            single.state, single.steps_beyond_terminated = tuple(record["observation"][t]), None
            following, reward, terminated, _, _ = single.step(record["action"][t])
            assert (reward, terminated) == (record["reward"][t], record["terminated"][t])
            # observations are rounded to float32, a step doubles that at most (|d state' / d state| < 2)
            np.testing.assert_allclose(following, record["observation"][t + 1], rtol=0, atol=2**-21)


def test_the_rollouts_above_hold_both_endings():
    assert ROLLOUTS["terminated"].terminated.sum() > 12 and not ROLLOUTS["terminated"].truncated.any()
    assert ROLLOUTS["truncated"].truncated.sum() == 12


@pytest.mark.parametrize("kind", ROLLOUTS)
def test_dummy_steps_are_masked_and_enter_no_statistic(kind):
    rollout = ROLLOUTS[kind]
    returns = cartpole_env.finished_returns(rollout)
    outcome = cartpole_env.outcomes(rollout)
    expected_returns = [[] for _ in returns]
    for index, (seed, record) in enumerate(flat(rollout)):
        valid = {t for episode in episodes(record) for t in episode}
        assert record["mask"] == [t in valid for t in range(LONG.steps)]
        for number, episode in enumerate(episodes(record)):
            age = 440 if number == 0 and kind == "truncated" else 0
            if record["terminated"][episode[-1]] or record["truncated"][episode[-1]]:
                expected_returns[seed].append((episode[-1], age + len(episode)))
            known = outcome[seed, index % LONG.envs][episode]
            assert known.tolist() == [(age + len(episode)) / 500] * len(episode)
    # in order of time; of episodes that end at the same step, in the order of environments
    assert returns == [[length for _, length in sorted(ended, key=lambda end: end[0])] for ended in expected_returns]


def test_actions_follow_the_draws():
    """Action 1 exactly where the draw lies below its probability; pi(1|s) = 1 and 0 are certain."""
    for value in (0.0, 1.0):
        rollout = played(SMALL, lambda x, v=value: np.full(x.shape[:-1], v))
        assert (rollout.action == int(value)).all()


def test_state_of_the_environments_goes_through_disk(tmp_path):
    env, other = cartpole_env.make_env(6, 3), cartpole_env.make_env(6, 4)
    actions = np.random.default_rng(0).integers(0, 2, (120, 6))
    for action in actions[:60]:
        env.step(action)
        if env.prev_done.any():  # the hardest moment: the next step is a reset
            break
    assert env.prev_done.any()
    torch.save(cartpole_env.env_state(env), tmp_path / "env.pt")
    cartpole_env.restore_env(other, torch.load(tmp_path / "env.pt", weights_only=True))
    for action in actions[60:]:
        for one, two in zip(env.step(action)[:4], other.step(action)[:4], strict=True):
            np.testing.assert_array_equal(one, two)


# --- advantages -----------------------------------------------------------------------------------------------------


def gae_by_episode(record, value, gamma, gae_lambda) -> dict[int, float]:
    """A_t = sum_k (gamma lambda)^k delta_{t+k} over the rest of t's episode, in Python numbers."""
    advantage = {}
    for episode in episodes(record):
        delta = {}
        for t in episode:
            bootstrap = 0.0 if record["terminated"][t] else value[t + 1]
            delta[t] = record["reward"][t] + gamma * bootstrap - value[t]
        for t in episode:
            terms = [(gamma * gae_lambda) ** (later - t) * delta[later] for later in episode if later >= t]
            advantage[t] = math.fsum(terms)
    return advantage


@pytest.mark.parametrize("kind", ROLLOUTS)
@pytest.mark.parametrize("gamma, gae_lambda", [(0.99, 0.9), (1.0, 1.0), (0.9, 0.0)])
def test_gae_is_the_sum_over_the_rest_of_the_episode(kind, gamma, gae_lambda):
    rollout = ROLLOUTS[kind]
    value = 10 * torch.randn(*rollout.observation.shape[:-1], dtype=torch.float64, generator=torch.manual_seed(0))
    found = ppo.gae(rollout.reward, value, rollout.terminated, rollout.truncated, gamma, gae_lambda)
    # `steps` terms of at most 1 + 2 max|V|, each with a few roundings
    bound = 8 * LONG.steps**2 * (1 + 2 * value.abs().max().item()) * U
    for (_, record), advantage, values in zip(
        flat(rollout), found.flatten(0, 1).tolist(), value.flatten(0, 1).tolist(), strict=True
    ):
        for t, expected in gae_by_episode(record, values, gamma, gae_lambda).items():
            assert abs(advantage[t] - expected) <= bound


def test_normalised_advantage_has_mean_0_and_deviation_1_over_valid_tokens():
    generator = torch.manual_seed(0)
    advantage = 3 + 5 * torch.randn(2, 4, 16, dtype=torch.float64, generator=generator)
    mask = torch.rand(2, 4, 16, generator=generator) < 0.7
    poisoned = torch.where(mask, advantage, torch.inf)
    found = ppo.normalise(poisoned, mask)
    for row, valid, before in zip(found, mask, advantage, strict=True):
        numbers, raw = row[valid].numpy(), before[valid].numpy()
        np.testing.assert_allclose(numbers, (raw - raw.mean()) / raw.std(), rtol=0, atol=1e-8)
        assert (row[~valid] == 0).all()


def test_minibatches_cover_every_transition_once_per_epoch_and_keep_seeds_apart():
    key = torch.tensor([5, 6])
    indices = list(ppo.minibatch_indices(key, 3, 12, epochs=2, minibatches=3))
    assert len(indices) == 6 and not torch.equal(indices[0], indices[3])
    for epoch in (indices[:3], indices[3:]):
        assert torch.equal(torch.cat(epoch, -1).sort(-1).values, torch.arange(12).expand(2, 12))
    field = torch.arange(24).view(2, 12)
    transitions = ppo.Transitions(torch.stack([field] * 4, -1), *[field] * 6)
    taken = transitions.take(indices[0])
    for seed in range(2):
        expected = [12 * seed + i for i in indices[0][seed].tolist()]
        assert taken.advantage[seed].tolist() == expected and taken.observation[seed, :, 2].tolist() == expected


# --- networks -------------------------------------------------------------------------------------------------------


def alone(learner: cartpole.Learner, seed: int) -> dict[str, torch.nn.Sequential]:
    """Actor and critic of one seed, as torch modules."""
    found = {}
    for net, name in enumerate(("actor", "critic")):
        stacked = [w[net, seed] for w in learner.networks[:4]]
        stacked += [getattr(learner.networks, f"{name}_{part}")[seed] for part in ("weight", "bias")]
        layers = []
        for weight, bias in zip(stacked[::2], stacked[1::2], strict=True):
            layer = torch.nn.Linear(*weight.shape, dtype=weight.dtype)
            with torch.no_grad():
                layer.weight.copy_(weight.mT)
                layer.bias.copy_(bias[0])
            layers += [layer, torch.nn.Tanh()]
        found[name] = torch.nn.Sequential(*layers[:-1])
    return found


def stale(config: CartPoleConfig, **settings) -> tuple[cartpole.Learner, ppo.Transitions]:
    """A learner whose policy has moved since it sampled the transitions."""
    learner = cartpole.make_learner(dataclasses.replace(config, **settings))
    env = cartpole_env.make_env(config.seeds * config.envs, 0)
    temperature = torch.ones(config.seeds)
    transitions, _ = cartpole.make_transitions(
        learner, cartpole.sample_rollout(learner, env, temperature, 0), temperature
    )
    with torch.no_grad():
        # far enough that ratios leave [0.8, 1.28] on both sides
        learner.networks.actor_weight.mul_(200)
    return learner, transitions


def loss_and_gradients(learner, transitions, fresh: bool = False, name: str = "none", **settings):
    """PPO loss and its gradient under a control, with ratio 1 everywhere if `fresh`."""
    logits, value = networks.actor_critic(learner.networks, transitions.observation)
    if fresh:
        now, _ = cartpole.token_statistics(logits.detach(), transitions.action)
        transitions = transitions._replace(old_logp=now)
    batch = cartpole.make_batch(transitions, logits.detach())
    part = build(name, {f"{name}.{key}": v for key, v in settings.items()})
    state = part.init(torch.zeros(len(logits), dtype=logits.dtype))
    objective = part.edit(Objective.from_batch(batch), batch, state)
    loss = cartpole.ppo_loss(learner.config, logits, value, transitions, batch, objective)
    return loss, torch.autograd.grad(loss, learner.networks)


def test_batched_networks_are_each_seeds_own():
    """Values and PPO gradients of seed i from torch modules of that seed alone."""
    learner, transitions = stale(DOUBLE)
    logits, value = networks.actor_critic(learner.networks, transitions.observation)
    _, gradients = loss_and_gradients(learner, transitions)
    found = networks.Networks(*gradients)
    for seed in range(DOUBLE.seeds):
        modules = alone(learner, seed)
        x, mask = transitions.observation[seed], transitions.mask[seed]
        z, v = modules["actor"](x), modules["critic"](x).squeeze(-1)
        torch.testing.assert_close(logits[seed], z, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(value[seed], v, rtol=1e-12, atol=1e-14)
        logp = z.log_softmax(-1)[torch.arange(len(x)), transitions.action[seed]]
        ratio = (logp - transitions.old_logp[seed]).exp()
        a = transitions.advantage[seed]
        surrogate = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
        squared = (v - transitions.value_target[seed]) ** 2
        loss = (-surrogate + DOUBLE.value_coef * squared / 2)[mask].mean()
        for net, name in enumerate(("actor", "critic")):
            expected = torch.autograd.grad(loss, modules[name].parameters(), retain_graph=True)
            mine = [g[net, seed] for g in found[:4]]
            mine += [getattr(found, f"{name}_{part}")[seed] for part in ("weight", "bias")]
            for got, want in zip(mine, expected, strict=True):
                want = want.mT if want.dim() == 2 else want.unsqueeze(0)
                # 128 transitions: sums of 128 terms with about 128 roundings each
                torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12 * want.abs().max().item())


def test_masked_transitions_do_not_touch_loss_or_gradient():
    learner, transitions = stale(DOUBLE)
    mask = torch.rand(transitions.mask.shape, generator=torch.manual_seed(0)) < 0.8
    transitions = transitions._replace(mask=mask)
    poisoned = transitions._replace(
        **{
            name: torch.where(mask, getattr(transitions, name), value)
            for name, value in (("old_logp", math.nan), ("advantage", 1e6), ("value_target", math.inf), ("action", 0))
        },
        observation=torch.where(mask.unsqueeze(-1), transitions.observation, 7.0),
    )
    for name in ("none", "clip_cov", "kl_cov", "entropy_bonus"):
        clean, expected = loss_and_gradients(learner, transitions, name=name)
        dirty, found = loss_and_gradients(learner, poisoned, name=name)
        assert clean == dirty
        assert all(torch.equal(x, y) for x, y in zip(expected, found, strict=True)), name


def test_numpy_actor_is_the_torch_actor():
    learner, transitions = stale(DOUBLE)
    found = networks.actor_numpy(learner.networks)(transitions.observation.numpy())
    expected = networks.actor(learner.networks, transitions.observation)
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-12, atol=1e-14)


def test_weights_of_a_seed_do_not_depend_on_the_others():
    many = cartpole.make_learner(DOUBLE).networks
    one = cartpole.make_learner(dataclasses.replace(DOUBLE, seeds=1, seed=2)).networks
    for several, single in zip(many, one, strict=True):
        assert torch.equal(several[..., 2:3, :, :], single)
    weight = many.weight_2[0, 0]
    # orthogonal with gain sqrt 2
    torch.testing.assert_close(weight @ weight.mT, 2 * torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-14)


def test_gradients_are_clipped_for_each_seed_over_both_networks():
    _, gradients = loss_and_gradients(*stale(DOUBLE))
    gradients = [g * torch.tensor([1e3, 1e-9, 1.0], dtype=g.dtype)[:, None, None] for g in gradients]
    before = [g.clone() for g in gradients]
    norms = ppo.clip_gradients(gradients, 0.5)
    for seed in range(3):
        pieces = [g.select(-3, seed).flatten().tolist() for g in before]
        norm = math.sqrt(math.fsum(x * x for piece in pieces for x in piece))
        assert norms[seed].item() == pytest.approx(norm, rel=1e-13)
        for piece, g in zip(pieces, gradients, strict=True):
            scale = min(1.0, 0.5 / norm)
            np.testing.assert_allclose(g.select(-3, seed).flatten().tolist(), np.array(piece) * scale, rtol=1e-13)
    assert norms[0] > 0.5 > norms[1]


def test_adam_is_torchs():
    generator = torch.manual_seed(0)
    weights = [torch.randn(2, 3, 4, dtype=torch.float64, generator=generator) for _ in range(2)]
    theirs = [w.clone().requires_grad_() for w in weights]
    optimizer = torch.optim.Adam(theirs, lr=0.1, eps=1e-5)
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for step in range(1, 6):
        gradients = [torch.randn(w.shape, dtype=w.dtype, generator=generator) for w in weights]
        for w, g in zip(theirs, gradients, strict=True):
            w.grad = g.clone()
        optimizer.step()
        ppo.adam_step(weights, gradients, first, second, step, lr=0.1)
    for mine, other in zip(weights, theirs, strict=True):
        torch.testing.assert_close(mine, other.detach(), rtol=1e-12, atol=1e-14)


# --- controls -------------------------------------------------------------------------------------------------------


def same(x, y) -> bool:
    return all(torch.equal(a, b) for a, b in zip(x, y, strict=True))


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
    make_transitions = cartpole.make_transitions

    def rounded_otherwise(*arguments):
        transitions, entropies = make_transitions(*arguments)
        return transitions._replace(old_logp=transitions.old_logp * (1 + 2**-23)), entropies

    monkeypatch.setattr(cartpole, "make_transitions", rounded_otherwise)
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
        sample=lambda sampling, state: Sampling(sampling.temperature * 4.0), activate=lambda logits: logits + 1.0
    )
    learner = learner._replace(control=heated)
    ones = torch.ones(3, dtype=torch.float64)
    temperature = heated.sample(Sampling(ones), ()).temperature
    env = cartpole_env.make_env(12, 0)
    rollout = cartpole.sample_rollout(learner, env, temperature, 0)
    transitions, entropies = cartpole.make_transitions(learner, rollout, temperature)
    logp = ((networks.actor(learner.networks, transitions.observation) + 1.0) / 4.0).log_softmax(-1).detach()
    expected = logp.gather(-1, transitions.action.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(transitions.old_logp, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(entropies, -(logp.exp() * logp).sum(-1), rtol=1e-12, atol=1e-14)
    # towards temperature 0 the policy takes its best action wherever it may act
    cold = cartpole.sample_rollout(learner, cartpole_env.make_env(12, 0), ones * 1e-9, 0)
    best = networks.actor(learner.networks, cold.observation[:, :, :-1].flatten(1, 2)).argmax(-1)
    assert torch.equal(best.view(cold.action.shape), cold.action)


def test_logit_scale_scales_the_logits_of_the_update():
    learner, transitions = stale(DOUBLE)
    logits, value = networks.actor_critic(learner.networks, transitions.observation)
    batch = cartpole.make_batch(transitions, logits.detach())
    plain = Objective.from_batch(batch)
    scaled = dataclasses.replace(plain, logit_scale=2 * plain.logit_scale)
    found = cartpole.ppo_loss(dataclasses.replace(DOUBLE, value_coef=0), logits, value, transitions, batch, scaled)
    logp = (2 * logits).log_softmax(-1).gather(-1, transitions.action.unsqueeze(-1))
    losses = token_loss(logp, torch.zeros_like(logp), batch, plain)
    expected = sum(row[valid].mean() for row, valid in zip(losses.squeeze(-1), transitions.mask, strict=True))
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


def test_a_need_this_world_lacks_is_refused():
    from entropy_theory.control import Need, check_needs

    with pytest.raises(ValueError, match="made_up needs whole_groups, which the CartPole world does not provide"):
        check_needs("made_up", control(needs={Need.WHOLE_GROUPS}), "the CartPole world", cartpole.PROVIDES)


# --- metrics and runs -----------------------------------------------------------------------------------------------


def test_rollout_metrics_are_means_over_valid_states():
    learner, _ = stale(DOUBLE)
    env = cartpole_env.make_env(12, 0)
    ones = torch.ones(3, dtype=torch.float64)
    for number in range(2):  # in the second rollout some environments begin with a reset step
        rollout = cartpole.sample_rollout(learner, env, ones, number)
    transitions, entropies = cartpole.make_transitions(learner, rollout, ones)
    assert (~transitions.mask).any()
    line = cartpole.measure_rollout(DOUBLE, transitions, entropies, [[10, 20], [], [30]])
    assert line["episode_return"] == [15, None, 30] and line["episode_return_count"] == [2, 0, 1]
    for seed in range(3):
        z = networks.actor(learner.networks, transitions.observation)[seed].tolist()
        exact, sampled = [], []
        for logits, action, valid in zip(z, transitions.action[seed].tolist(), transitions.mask[seed], strict=True):
            if valid:
                logs = [x - math.log(math.fsum(map(math.exp, logits))) for x in logits]
                exact.append(-math.fsum(math.exp(x) * x for x in logs))
                sampled.append(-logs[action])
        assert line["entropy"][seed].item() == pytest.approx(math.fsum(exact) / len(exact), rel=1e-12)
        assert line["sampled_entropy"][seed].item() == pytest.approx(math.fsum(sampled) / len(sampled), rel=1e-12)


def test_a_run_logs_what_it_should(tmp_path):
    lines = train(SMALL, tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["env_steps"] for line in lines] == [128, 256, 384, 512, 640]
    for line in lines:
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
    lines = train(CartPoleConfig(seeds=2, total_timesteps=30 * 512), tmp_path / "run")
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
        ({"epochs": 1, "minibatches": 1}, "epochs \\* minibatches must be at least 2, got 1 \\* 1"),
        ({"probe_states": 1000}, r"probe_states must lie in \[1, 256\]"),
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
