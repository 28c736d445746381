"""The environments: gymnasium's dynamics, automatic resets from draws, masked records, GAE."""

import dataclasses
import math

import gymnasium
import numpy as np
import pytest
import torch
from cartpole_runs import SMALL, linear_policy, make_envs, plain_head
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.draw import uniform
from sims import cartpole_env, ppo
from sims.cartpole_config import CartPoleConfig
from sims.environments import ENVIRONMENTS

U = torch.finfo(torch.float64).eps / 2
BALANCE = torch.tensor([0.0, 0.1, 1.0, 1.0])
"""A hand-written policy that keeps the pole up for longer than the rollouts here."""


def played(config: CartPoleConfig, gain: torch.Tensor, age: int = 0) -> cartpole_env.Rollout:
    """A rollout of a linear policy in environments whose episodes are `age` steps old."""
    envs = make_envs(config)
    envs.steps[:], envs.total[:] = age, age
    draws = torch.rand(config.seeds, config.envs, config.steps, generator=torch.Generator().manual_seed(1))
    return cartpole_env.collect(envs, linear_policy(config, gain), plain_head(config), draws, torch.float64)


LONG = dataclasses.replace(SMALL, steps=80)
KIND = ENVIRONMENTS["CartPole-v1"]
ROLLOUTS = {"terminated": played(LONG, 0 * BALANCE), "truncated": played(LONG, BALANCE, age=440)}
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
    outcome = cartpole_env.outcomes(rollout, KIND)
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


def step_of_gymnasium(env, name: str, state: np.ndarray, action: int):
    """(state, observation, reward, terminated) of the single environment put into `state`."""
    env.state = tuple(state) if name == "CartPole-v1" else state.copy()
    env.steps_beyond_terminated = None
    observation, reward, terminated, _, _ = env.step(action)
    return np.array(env.state, float), observation, reward, terminated


ANYWHERE = {"CartPole-v1": (2.4, 4, 0.2, 4), "Acrobot-v1": (3.14, 3.14, 12, 28), "MountainCar-v0": (1.2, 0.07)}
"""States lie between minus these and these."""
TERMS = {"CartPole-v1": 30, "Acrobot-v1": 1000, "MountainCar-v0": 1}
"""No term of a step's sums is larger (accelerations; those of Acrobot grow with the spins squared)."""


@pytest.mark.parametrize("name", ENVIRONMENTS)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_step_is_gymnasiums(name, seed):
    """Eight steps in a row from first states, and from states anywhere between the limits.

    NumPy computes sine and cosine of arrays by other code than of single numbers: both sides agree to 1 ulp there, so
    a state that went through them may differ in its last bits. Everything else is the same arithmetic.
    """
    kind, generator = ENVIRONMENTS[name], np.random.default_rng(seed)
    env = gymnasium.make(name).unwrapped
    env.reset(seed=0)
    count = 16
    first = kind.first_states(generator.random((count // 2, kind.draws)))
    state = np.concatenate([first, generator.uniform(-1, 1, first.shape) * ANYWHERE[name]])
    move = kind.make_move(count)
    for _ in range(8):
        action = generator.integers(0, kind.actions, count)
        after, reward, terminated = move(state, action)
        seen = kind.observe(after)
        for i in range(count):
            theirs = step_of_gymnasium(env, name, state[i], int(action[i]))
            # fewer than 400 roundings (Acrobot: four slopes of about 50 operations), observations rounded to float32
            np.testing.assert_allclose(after[i], theirs[0], rtol=0, atol=400 * U * TERMS[name])
            np.testing.assert_allclose(seen[i], theirs[1], rtol=2**-23, atol=400 * U * TERMS[name])
            assert (reward[i], terminated[i]) == theirs[2:]
        state = after


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_facts_are_gymnasiums(name):
    kind, env = ENVIRONMENTS[name], gymnasium.make(name)
    assert kind.inputs == env.observation_space.shape[0] and kind.actions == env.action_space.n
    assert kind.max_steps == env.spec.max_episode_steps
    first = np.stack([env.reset(seed=seed)[0] for seed in range(200)])
    draws = uniform(torch.arange(200), torch.zeros(200, dtype=torch.int64), kind.draws).numpy()
    ours = kind.observe(kind.first_states(draws))
    # two samples of 200 from one distribution on an interval reach within 1/20 of its ends, but for 4e-5 of the cases
    width = first.max(0) - first.min(0)
    np.testing.assert_array_less(np.abs(ours.min(0) - first.min(0)), 0.05 * width + 1e-9)
    np.testing.assert_array_less(np.abs(ours.max(0) - first.max(0)), 0.05 * width + 1e-9)


def test_automatic_resets_are_gymnasiums():
    """Beside gymnasium's vectorised CartPole, whose random first states are put in place of ours."""
    count = 6
    theirs = gymnasium.make_vec("CartPole-v1", num_envs=count, vectorization_mode="vector_entry_point")
    theirs.reset(seed=0)
    envs = cartpole_env.make_envs("CartPole-v1", torch.arange(count).view(1, -1))
    theirs.state = envs.state.T.copy()
    actions = np.random.default_rng(0).integers(0, 2, (150, count))
    resets = 0
    for action in actions:
        reset = theirs.prev_done.copy()
        observation, reward, terminated, truncated, _ = theirs.step(action)
        found = cartpole_env.step(envs, action)
        envs.state[reset] = theirs.state.T[reset]
        resets += reset.sum()
        np.testing.assert_array_equal(KIND.observe(envs.state), observation)
        for one, two in zip(found, (reward, terminated, truncated), strict=True):
            np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(envs.steps, theirs.steps)
    assert resets > 12


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_first_states_are_a_function_of_seed_copy_and_episode(name):
    """Seed 1 of three begins every episode where seed 1 alone does, and no two episodes begin alike."""
    three = dataclasses.replace(SMALL, env=name)
    alone = dataclasses.replace(three, seeds=1, seed=1)
    many, one = make_envs(three), make_envs(alone)
    starts = [many.state.copy()]
    for episode in range(3):
        rows = slice(SMALL.envs, 2 * SMALL.envs)
        np.testing.assert_array_equal(many.state[rows], one.state)
        assert (many.episode == episode).all()
        for envs in (many, one):
            envs.done[:] = True
            cartpole_env.step(envs, np.zeros(len(envs.state), np.int64))
            assert (envs.steps == 0).all() and (envs.total == 0).all() and not envs.done.any()
        starts.append(many.state.copy())
    assert len(np.unique(np.concatenate(starts), axis=0)) == 4 * len(many.state)


@given(seed=st.integers(0, 2**32 - 1), actions=st.integers(2, 5))
def test_actions_follow_the_draws(seed, actions):
    """An action is chosen with its probability, at ties, one-hot policies and infinite logits too."""
    generator = np.random.default_rng(seed)
    logits = generator.choice([0.0, 1.0, -np.inf, 30.0], (5, actions))
    logits[:, 0] = generator.normal(size=5)
    grid = (np.arange(4096) + 0.5) / 4096
    chosen = cartpole_env.choose(np.repeat(logits[:, None], 4096, 1), np.repeat(grid[None], 5, 0))
    for row, found in zip(logits, chosen, strict=True):
        probability = np.exp(row - np.logaddexp.reduce(row))
        counts = np.bincount(found, minlength=actions)
        # an interval of length p holds between p n - 1 and p n + 1 points of a grid of n
        assert (np.abs(counts - 4096 * probability) <= 1).all()
        assert (counts[np.isneginf(row)] == 0).all()
    extremes = np.full((2, actions), -np.inf)
    extremes[:, seed % actions] = 0
    assert (cartpole_env.choose(extremes, np.array([0.0, 1 - 2.0**-53])) == seed % actions).all()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_state_of_the_environments_goes_through_disk(tmp_path, name):
    keys = torch.arange(6).view(2, 3)
    envs, other = cartpole_env.make_envs(name, keys), cartpole_env.make_envs(name, keys)
    envs.steps[0] = envs.kind.max_steps - 10  # so that an episode ends after ten steps
    actions = np.random.default_rng(0).integers(0, envs.kind.actions, (80, 6))
    for action in actions[:10]:
        cartpole_env.step(envs, action)
    assert envs.done.any()  # the hardest moment: the next step is a reset
    torch.save(cartpole_env.env_state(envs), tmp_path / "env.pt")
    cartpole_env.restore_env(other, torch.load(tmp_path / "env.pt", weights_only=True))
    for action in actions[10:]:
        for one, two in zip(cartpole_env.step(envs, action), cartpole_env.step(other, action), strict=True):
            np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(envs.state, other.state)


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
    epochs = list(ppo.minibatch_indices(key, 3, 12, epochs=2, minibatches=3))
    assert len(epochs) == 2 and not torch.equal(*epochs)
    for indices in epochs:
        assert indices.shape == (3, 2, 4)
        assert torch.equal(torch.cat(tuple(indices), -1).sort(-1).values, torch.arange(12).expand(2, 12))
    field = torch.arange(24).view(2, 12)
    transitions = ppo.Transitions(*(x.unsqueeze(-1) for x in [field] * 7), field, field)
    taken = transitions.take(indices)
    for minibatch in range(3):
        for seed in range(2):
            expected = [12 * seed + i for i in indices[minibatch, seed].tolist()]
            assert taken.outcome[minibatch, seed].tolist() == expected
            assert taken.observation[minibatch, seed, :, 0].tolist() == expected
