"""The chaos measurement: its dynamics against gymnasium and closed forms, its bookkeeping against plain loops."""

import csv
import dataclasses
import json
import math

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from entropy_theory.lyapunov import jacobian
from entropy_theory.runs import Run, read_metrics
from entropy_theory.softmax import entropy
from entropy_theory.statistics import bootstrap_interval
from entropy_theory.tables import rank_correlation, replace_rows, write_csv
from sims import bandit, cartpole, chaos, chaos_bandit, chaos_cartpole
from sims.actor import actor_logits, actor_weights
from sims.bandit_config import BanditConfig
from sims.cartpole_config import CartPoleConfig
from sims.cartpole_map import FORCE, fallen, first_states, move, plant_exponent
from sims.chaos_config import ChaosConfig
from sims.networks import actor
from sims.trained import cartpole_rollout, states_after

F64 = torch.float64
U = torch.finfo(F64).eps / 2


# --- CartPole's equations -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def env():
    env = gymnasium.make("CartPole-v1").unwrapped
    env.reset(seed=0)
    return env


@given(st.lists(st.floats(-4, 4), min_size=4, max_size=4), st.integers(0, 1))
def test_one_step_is_gymnasiums(env, state, action):
    """Some 25 operations on numbers of at most |force| + moment spin^2 <= 11 and accelerations up to 40."""
    state[2] /= 10
    env.state, env.steps_beyond_terminated = np.array(state), None
    _, _, terminated, _, _ = env.step(action)
    found = move(torch.tensor(state, dtype=F64), torch.tensor(FORCE if action else -FORCE, dtype=F64))
    assert np.abs(found.numpy() - env.state).max() <= 25 * U * 40
    near = min(abs(abs(env.state[0]) - 2.4), abs(abs(env.state[2]) - math.radians(12)))
    assert bool(fallen(found)) == terminated or near <= 1e-12


def test_a_whole_episode_is_gymnasiums(env):
    """An error grows by less than 1 + 0.02 * 40 a step; the episode is short enough for that to stay below 1e-6."""
    env.reset(seed=3)
    state, terminated, steps = torch.from_numpy(np.array(env.state)), False, 0
    while not terminated:
        action = steps // 3 % 2
        _, _, terminated, _, _ = env.step(action)
        state = move(state, torch.tensor(FORCE if action else -FORCE, dtype=F64))
        steps += 1
        assert np.abs(state.numpy() - env.state).max() <= 25 * U * 40 * 1.8**steps
        assert bool(fallen(state)) == terminated
    assert 10 < steps < 40


def test_the_upright_poles_exponent_is_the_largest_eigenvalue():
    _, derivative = jacobian(lambda s: move(s, torch.zeros(s.shape[:-1], dtype=F64)), torch.zeros(4, dtype=F64))
    largest = np.abs(np.linalg.eigvals(derivative.numpy())).max()
    assert plant_exponent() == pytest.approx(math.log(largest), rel=1e-12)  # eigenvalues of condition below 100
    assert plant_exponent() == pytest.approx(0.07644, abs=5e-6)


def test_first_states_are_uniform_and_their_own():
    keys = torch.arange(4000)
    states = first_states(keys, 0)
    assert states.abs().max() <= 0.05
    assert states.mean(0).abs().max() <= 5 * 0.1 / math.sqrt(12 * 4000)
    assert states.std() == pytest.approx(0.1 / math.sqrt(12), rel=5 / math.sqrt(16000))
    assert not torch.equal(states, first_states(keys, 1))
    assert torch.equal(first_states(keys[5:6], 0), states[5:6])


# --- the bandit's learning map --------------------------------------------------------------------------------------

SETTINGS = st.fixed_dictionaries(
    {
        "step_size": st.floats(0.01, 5),
        "bonus": st.floats(0, 1),
        "temperature": st.floats(0.3, 3),
        "natural": st.booleans(),
    }
)


@given(SETTINGS, st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_the_learning_map_ascends_reward_and_entropy(settings, seed, arms):
    """Against the gradient of E r + bonus H by autograd, and F^+ of it by the pseudo-inverse of the Fisher matrix."""
    rng = np.random.default_rng(seed)
    reward, logits = (torch.from_numpy(rng.normal(size=arms)) for _ in range(2))
    step = chaos_bandit.learning_map(chaos_bandit.Learning(reward, **settings))
    leaf = logits.clone().requires_grad_()
    policy = leaf / settings["temperature"]
    value = (policy.softmax(-1) * reward).sum() + settings["bonus"] * entropy(policy)
    (gradient,) = torch.autograd.grad(value, leaf)
    if settings["natural"]:
        pi = policy.detach().softmax(-1)
        fisher = (torch.diag(pi) - torch.outer(pi, pi)) / settings["temperature"] ** 2
        # its non-zero eigenvalues are at least the smallest pi / temperature^2 (docs/theory.md, section 4.7)
        cut = float(pi.min()) / settings["temperature"] ** 2 / 2
        gradient = torch.linalg.pinv(fisher, atol=cut, rtol=0.0, hermitian=True) @ gradient
    expected = logits + settings["step_size"] * gradient
    expected = expected - expected.mean()
    smallest = float((logits / settings["temperature"]).softmax(-1).min())
    tolerance = 1e4 * U * (1 + settings["step_size"]) * (1 / smallest if settings["natural"] else 1)
    assert (step(logits) - expected).abs().max() <= tolerance


@given(SETTINGS, st.integers(0, 100))
def test_with_the_natural_gradient_every_exponent_is_log_one_minus_eta_beta(settings, seed):
    """Whatever the rewards, the temperature and the entropy: the map is linear in the logits."""
    if abs(settings["step_size"] * settings["bonus"] - 1) < 0.1:
        settings["bonus"] = 0.0
    reward, logits = chaos_bandit.problems(ChaosConfig(seeds=2, arms=5, seed=seed))
    learning = chaos_bandit.Learning(3 * reward, **(settings | {"natural": True}))
    growth = chaos_bandit.learn(learning, logits, 20).growth
    factor = abs(1 - settings["step_size"] * settings["bonus"])
    # the derivative is (1 - eta beta) times the identity, formed from terms up to 1 + eta (1 + beta) + logits
    size = 1 + settings["step_size"] * (1 + settings["bonus"]) * 10
    assert (growth - math.log(factor)).abs().max() <= 1e3 * U * size**2 / factor


def test_it_comes_to_rest_at_the_policy_of_rewards_over_bonus():
    config = ChaosConfig(seeds=3, updates=400)
    rows = chaos_bandit.sweep(config, "reward_scale", True)
    reward, _ = chaos_bandit.problems(config)
    for row in rows:
        rest = reward[row["seed"]] * row["value"] / chaos_bandit.BONUS
        # (1 - eta beta)^200 of what the logits were off at first, at most 20, and entropy moves by less than 10 times
        assert row["entropy"] == pytest.approx(float(entropy(rest)), abs=200 * 0.9**200 + 1e-12)
        assert row["exponent"] == pytest.approx(math.log(0.9), abs=1e-12)
    entropies = [row["entropy"] for row in rows]
    assert max(entropies) > 2.2 and min(entropies) < 0.2


def test_without_bonus_entropy_collapses_at_exponent_zero():
    rows = chaos_bandit.training(ChaosConfig(seeds=2, updates=1000), natural=True)
    first, last = ([row["entropy"] for row in rows if row["value"] == value] for value in (20, 1000))
    assert all(b < 0.5 * a for a, b in zip(first, last, strict=True))
    assert max(abs(row["exponent"]) for row in rows) <= 1e-12
    # the logits move along a straight line: one dimension, early and late
    assert max(abs(row["participation_logits"] - 1) for row in rows) <= 1e-9


def test_large_steps_are_chaotic():
    """A positive exponent, more than five standard errors from 0, at mean entropies far from both ends."""
    rows = chaos_bandit.sweep(ChaosConfig(seeds=2, updates=300), "step_size", False, (10.0, 80.0))
    small, large = ([row for row in rows if row["value"] == value] for value in (10.0, 80.0))
    assert all(row["exponent"] < 0 for row in small) and all(row["dimension"] == 0 for row in small)
    assert all(row["exponent"] > 5 * row["exponent_error"] for row in large)
    assert all(row["dimension"] > 1 for row in large)


def test_rows_belong_to_their_value_and_seed():
    config = ChaosConfig(seeds=3, updates=40, seed=7)
    rows = chaos_bandit.sweep(config, "bonus", False, (0.1, 1.0))
    assert [(row["value"], row["seed"]) for row in rows] == [(v, s) for v in (0.1, 1.0) for s in (7, 8, 9)]
    alone = chaos_bandit.sweep(dataclasses.replace(config, seeds=2, seed=8), "bonus", False, (1.0,))
    for row, other in zip(rows[4:], alone, strict=True):  # a batch of another size may round differently
        assert all(other[k] == pytest.approx(v, rel=1e-6, abs=1e-9) for k, v in row.items() if not isinstance(v, str))


# --- runs part of the way -------------------------------------------------------------------------------------------


def test_states_are_those_of_the_run_and_can_be_gone_on_from():
    config = BanditConfig(seeds=2, problems=2, rollouts=6)
    straight = states_after(bandit.train, config, [2, 5])
    onwards = states_after(bandit.train, config, [5], start=straight[2])
    assert torch.equal(straight[5]["parameters"], onwards[5]["parameters"])
    assert not torch.equal(straight[2]["parameters"], straight[5]["parameters"])
    cart = CartPoleConfig(seeds=1, total_timesteps=4 * 512)
    networks = [states_after(cartpole.train, cart, [3], start)[3]["networks"] for start in (None, None)]
    networks.append(states_after(cartpole.train, cart, [3], states_after(cartpole.train, cart, [1])[1])[3]["networks"])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*networks, strict=True))


@pytest.mark.parametrize("steps", [[0], [7], [2, 7]])
def test_states_beyond_the_run_are_refused(steps):
    with pytest.raises(ValueError, match=r"steps must lie in \[1, 6\]"):
        states_after(bandit.train, BanditConfig(seeds=1, problems=1, rollouts=6), steps)


def test_the_plain_actor_is_the_actor():
    learner, transitions = cartpole_rollout(CartPoleConfig(seeds=2, dtype="float64"), 0)
    expected = actor(learner.networks, transitions.states)
    found = actor_logits(actor_weights(learner.networks), transitions.states)
    assert (found - expected).abs().max() <= 1e4 * U  # tanh of two libraries to 8 u each, sums of 64 terms
    one = actor_logits({n: w[1] for n, w in actor_weights(learner.networks).items()}, transitions.states[1])
    assert (one - expected[1]).abs().max() <= 1e4 * U


# --- closed-loop CartPole -------------------------------------------------------------------------------------------


def indifferent(seeds: int) -> chaos_cartpole.Policies:
    """pi = 1/2 everywhere: the mean action is no force at all."""
    shapes = {"weight_1": (4, 3), "bias_1": (1, 3), "weight_2": (3, 3), "bias_2": (1, 3), "weight_3": (3, 2)}
    weights = {name: torch.zeros(seeds, *shape, dtype=F64) for name, shape in (shapes | {"bias_3": (1, 2)}).items()}
    return chaos_cartpole.Policies(weights, torch.ones(seeds, dtype=F64))


def leaning(gain: float, temperatures: list[float]) -> chaos_cartpole.Policies:
    """log-odds of pushing right proportional to tanh of tanh of a lean, one hidden unit, at each temperature."""
    lean = torch.tensor([0.1, 0.5, 5.0, 1.5], dtype=F64)[:, None]
    weights = {
        "weight_1": lean,
        "bias_1": torch.zeros(1, 1, dtype=F64),
        "weight_2": torch.ones(1, 1, dtype=F64),
        "bias_2": torch.zeros(1, 1, dtype=F64),
        "weight_3": torch.tensor([[0.0, gain]], dtype=F64),
        "bias_3": torch.zeros(1, 2, dtype=F64),
    }
    temperature = torch.tensor(temperatures, dtype=F64)
    return chaos_cartpole.Policies({n: w.expand(len(temperature), *w.shape) for n, w in weights.items()}, temperature)


def test_episodes_by_a_plain_loop():
    """States and mean episode length of the loop without force, one trajectory at a time."""
    policies, steps = indifferent(2), 700
    keys = chaos_cartpole.keys_of(policies, 3, first_seed=5)
    assert keys.unique().numel() == 6
    visited = chaos_cartpole.mean_action_loop(policies, 3, steps, 5)
    total = chaos_cartpole.SETTLE + steps
    for seed in range(2):
        lengths = []
        for number in range(3):
            key = keys[seed, number]
            state, began, path = first_states(key, 0), 0, []
            for t in range(total):
                path.append(state)
                state = move(state, torch.tensor(0.0, dtype=F64))
                if abs(state[0]) > 2.4 or abs(state[2]) > math.radians(12) or t + 1 - began >= 500:
                    if began <= total - 500:
                        lengths.append(t + 1 - began)
                    state, began = first_states(key, t + 1), t + 1
            found = visited.state[:, seed, number]
            assert (found - torch.stack(path)[chaos_cartpole.SETTLE :]).abs().max() <= 1e-9  # 50 steps of 8 % each
        assert float(visited.length[seed]) == pytest.approx(np.mean(lengths), rel=1e-6)
    # free fall: all that parts neighbours is the plant, nearly upright most of the time
    value, error = chaos_cartpole.exponents(visited.growth[..., 0])
    assert ((value - plant_exponent()).abs() <= 0.002 + 5 * error).all()


def test_the_spectrum_of_the_smooth_loop_is_that_of_its_jacobians():
    """Sum of the exponents = mean log |det J| along the path, computed from the recorded states."""
    policies = leaning(8.0, [0.5, 3.0])
    visited = chaos_cartpole.mean_action_loop(policies, 2, 500, 0)

    def step(state):
        return move(state, FORCE * (2 * policies.right(state) - 1))

    for t in (0, 123, 499):
        _, derivative = jacobian(step, visited.state[t])
        expected = torch.linalg.det(derivative).abs().log()
        assert (visited.growth[t].sum(-1) - expected).abs().max() <= 1e-10


def test_common_noise_by_a_plain_loop():
    """One trajectory and its neighbour, number by number; at a small separation both act alike and only the plant
    parts them."""
    from entropy_theory.draw import uniform

    policies = leaning(2.0, [1.0])
    visited = chaos_cartpole.common_noise_loop(policies, 1, 500, 3)
    key = chaos_cartpole.keys_of(policies, 1, 3)[0, 0]

    def right(state):
        lean = 0.1 * state[0] + 0.5 * state[1] + 5 * state[2] + 1.5 * state[3]
        return 1 / (1 + math.exp(-2 * math.tanh(math.tanh(lean))))

    for number, length in enumerate(chaos_cartpole.SEPARATIONS):
        state = first_states(key, 0)
        apart = length * chaos_cartpole.generic_frame(4, 1)[:, 0]
        for t in range(200):
            draw = float(uniform(key, torch.tensor(-1 - t), 1)[0])
            sides = [torch.tensor(FORCE if draw < right(s) else -FORCE, dtype=F64) for s in (state, state + apart)]
            following, other = move(state, sides[0]), move(state + apart, sides[1])
            growth = math.log(float((other - following).norm()) / length)
            if t >= chaos_cartpole.SETTLE:
                recorded = t - chaos_cartpole.SETTLE
                assert (visited.state[recorded, 0, 0] - state).abs().max() <= 1e-6
                # differences of 1e-6 between numbers of size 1 are known to 1e-16 / 1e-6 a step
                assert float(visited.growth[recorded, 0, 0, number]) == pytest.approx(growth, abs=1e-6)
            apart = (other - following) / math.exp(growth)
            state = first_states(key, t + 1) if bool(fallen(following)) else following


def test_a_cold_policy_acts_differently_on_neighbours_more_often():
    """Half a hundredth apart, a steeper policy parts neighbours faster; a millionth apart, all alike, by the plant."""
    found = chaos_cartpole.measure(leaning(4.0, [0.1, 1.0]), 4, 500, 0)
    apart, close = (found[f"common noise, {s:g} apart"] for s in chaos_cartpole.SEPARATIONS)
    assert apart["entropy"][0] < apart["entropy"][1]
    assert apart["exponent"][0] - apart["exponent"][1] > 5 * (apart["exponent_error"][0] + apart["exponent_error"][1])
    assert ((close["exponent"] - plant_exponent()).abs() <= 0.002 + 5 * close["exponent_error"]).all()
    smooth = found["mean action"]
    assert set(smooth) > {"entropy", "exponent", "exponent_error", "dimension", "participation_state", "return"}
    assert (smooth["participation_state"] <= 4).all() and (smooth["participation_logits"] <= 2).all()
    assert smooth["return"].tolist() == [500, 500]


# --- the measurement ------------------------------------------------------------------------------------------------

SMALL = ChaosConfig(
    seeds=2, arms=3, updates=40, checkpoints=2, temperatures=2, trajectories=1, steps=500, total_timesteps=2 * 512
)


def test_points_and_checkpoints():
    config = ChaosConfig()
    rollouts = chaos.checkpoint_rollouts(config)
    assert rollouts[0] == 0 and rollouts[-1] == 300 and len(rollouts) == 6 and rollouts == sorted(set(rollouts))
    points = chaos.points(config)
    assert [p.where for p in points if p.kind == "temperature"] == [rollouts[3], 300]
    assert len(set(points)) == len(points)
    with pytest.raises(ValueError, match="gives 2 rollouts, too few for 6 checkpoints"):
        chaos.points(ChaosConfig(total_timesteps=1024))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 1}, "seeds must be at least 2"),
        ({"steps": 499}, "steps must be at least 500"),
        ({"updates": 39}, "updates must be at least 40"),
        ({"lowest_temperature": 0.0}, "lowest_temperature must be positive"),
        ({"highest_temperature": 0.1}, "must be above lowest_temperature"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ChaosConfig(**settings)


class Killed(Exception):
    """Stands in for a kill between two points."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chaos")
    with Run(folder / "straight", chaos.config_record(SMALL)) as run:
        chaos.measure(SMALL, run)
    return folder


def test_a_killed_measurement_goes_on_to_the_same_bytes(measured):
    def kill_after(points):
        def progress(done, total, line):
            if done == points:
                raise Killed

        return progress

    todo = len(chaos.points(SMALL))
    for points in (1, todo - 1):  # in the bandit, and between CartPole's training and a measurement of what it left
        with pytest.raises(Killed), Run(measured / "killed", chaos.config_record(SMALL)) as run:
            chaos.measure(SMALL, run, kill_after(points))
    with Run(measured / "killed", chaos.config_record(SMALL)) as run:
        chaos.measure(SMALL, run)
    straight, killed = ((measured / name / "metrics.jsonl").read_bytes() for name in ("straight", "killed"))
    assert straight == killed
    assert [line["step"] for line in read_metrics(measured / "straight")] == list(range(1, todo + 1))


def test_tables(measured, tmp_path):
    paths = chaos.write_tables(measured / "straight", tmp_path)
    tables = {}
    for path in paths:
        with open(path) as file:
            tables[path.stem] = list(csv.DictReader(file))
    rows = tables["chaos"]
    lines = [json.loads(line) for line in (measured / "straight" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == sum(len(line["rows"]) for line in lines)
    sweep = [row for row in rows if (row["map"], row["knob"]) == ("policy gradient", "reward_scale")]
    by_seed = [
        stats.spearmanr(*([float(row[c]) for row in sweep if row["seed"] == seed] for c in ("entropy", "exponent")))[0]
        for seed in ("0", "1")
    ]
    (found,) = [
        row
        for row in tables["chaos_correlation"]
        if (row["map"], row["knob"], row["with"]) == ("policy gradient", "reward_scale", "exponent")
    ]
    assert float(found["spearman"]) == pytest.approx(np.mean(by_seed), rel=1e-5, abs=1e-6)
    assert float(found["low"]) <= float(found["spearman"]) <= float(found["high"]) and found["points"] == "6"
    flat = [row for row in tables["chaos_correlation"] if (row["map"], row["knob"]) == ("natural gradient", "updates")]
    assert {row["with"]: row["seeds"] for row in flat}["exponent"] == "0"  # constant: nothing to correlate
    assert all(row["knob"] != "reward_scale" for row in tables["chaos_best"])


def test_best_rows_by_hand():
    def line(seed, value, h, earned):
        return {"world": "w", "map": "m", "knob": "k", "seed": seed, "value": value, "entropy": h, "return": earned}

    rows = [
        line(0, 1, 0.1, 5.0),
        line(0, 2, 0.5, 7.0),
        line(0, 3, 0.6, 7.0),
        line(1, 1, 0.2, 9.0),
        line(1, 2, 0.9, 1.0),
    ]
    (found,) = chaos.best_rows(rows)
    assert found["best_from"] == pytest.approx((0.5 + 0.2) / 2) and found["best_to"] == pytest.approx((0.6 + 0.2) / 2)
    assert found["gain"] == pytest.approx((2 + 0) / 2) and found["seeds"] == 2
    assert found["lowest_entropy"] == pytest.approx(0.15) and found["highest_entropy"] == pytest.approx(0.75)


def test_a_quick_measurement_covers_both_worlds():
    found = chaos.quick(0)
    assert {row["world"] for row in found.rows} == {"bandit", "cartpole"}
    assert all(math.isfinite(row["entropy"]) and math.isfinite(row["exponent"]) for row in found.rows)
    assert {row["with"] for row in found.correlations} >= {"exponent", "dimension", "participation_state", "return"}
    assert {row["world"] for row in found.best} == {"bandit", "cartpole"}


# --- tables ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3)), min_size=2, max_size=8))
def test_rank_correlation_is_scipys_with_ties(pairs):
    x, y = ([float(v) for v in column] for column in zip(*pairs, strict=True))
    noise = np.random.default_rng(0).uniform(-1e-9, 1e-9, (2, len(x)))  # what rounds to the same, ties
    found = rank_correlation(x + noise[0], y + noise[1])
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_rank_correlation_of_what_is_not_a_number():
    assert math.isnan(rank_correlation([1.0, 2.0, 3.0], [1.0, math.nan, 2.0]))
    assert rank_correlation([1.0, 2.0, 3.0], [1.0, 10.0, 11.0]) == 1


def test_bootstrap_intervals():
    values = np.random.default_rng(1).normal(size=30)
    found = bootstrap_interval([*values, math.nan])
    assert found == bootstrap_interval(values)
    assert found.estimate == pytest.approx(values.mean())
    half = 1.96 * values.std() / math.sqrt(30)  # the normal interval of the plug-in variance
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)  # 9999 resamples: quantiles to a few per cent
    assert found.low < found.estimate < found.high
    assert bootstrap_interval([2.0, 2.0, 2.0]) == (2, 2, 2)
    assert bootstrap_interval([3.0])[0] == 3 and math.isnan(bootstrap_interval([3.0]).low)
    assert math.isnan(bootstrap_interval([]).estimate)


def test_rows_of_one_world_replace_only_its_own(tmp_path):
    path = tmp_path / "new" / "t.csv"
    replace_rows(path, [{"world": "a", "x": 1.0}, {"world": "b", "x": float("nan")}])
    replace_rows(path, [{"world": "a", "x": 1 / 3, "y": None}])
    assert path.read_text().split() == ["world,x,y", "b,,", "a,0.333333,"]
    write_csv(path, [{"world": "c"}])
    assert path.read_text().split() == ["world", "c"]


# --- figures --------------------------------------------------------------------------------------------------------


def test_figures_of_the_committed_data(tmp_path):
    from paper_figs import fig07_chaos
    from paper_figs.catalogue import STUDIES
    from paper_figs.style import DATA

    for figure, file in STUDIES.items():
        assert (DATA / file).exists()
        png = figure.draw(DATA, tmp_path)
        assert png.stat().st_size > 20_000 and len(figure.CAPTION) > 40
    assert abs(fig07_chaos.PLANT - plant_exponent()) <= 5e-6  # as many digits as it is written with
