"""Exact quantities and gradients of every kind of bandit, against a plain walk through all sequences."""

import dataclasses
import itertools
import math

import bandit_oracle as oracle
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import bandit_configs

from entropy_theory.control import control as make_control
from entropy_theory.controls import build
from entropy_theory.remainder import second_order_remainder_bound
from entropy_theory.softmax import entropy
from sims import bandit_exact
from sims.bandit_config import ADVANTAGES, BanditConfig
from sims.bandit_measure import Step, measure_first, measure_return, measure_rollout, through_kernel
from sims.bandit_problem import logits_of, make_problem
from sims.bandit_rollout import ROLLOUTS, Rollout, advantage_of, at_tokens, make_batch, pull, tables_of
from sims.bandit_tally import as_rollout, counted
from sims.bandit_update import autograd_gradient, closed_form_gradient, edited, policy_of, step_parameters

U = torch.finfo(torch.float64).eps / 2
NONE = build("none", {})


def rounding(config: BanditConfig, size: float = 1.0) -> float:
    """Bound on the rounding of a quantity below `size`.

    It sums one term for each token of each sequence (at most depth * cells * depth), a product of at most depth + 3
    factors, each a softmax of `arms` logits below 64 in size: (arms + 64 + 8) u relative, of theirs and of ours.
    """
    terms = config.depth**2 * config.cells
    return 2 * U * terms * (config.depth + 3) * (config.arms + 72) * max(size, 1.0)


def replica(problem):
    """(policy, reward, child, start, walks) of the only replica, as plain lists."""
    policy = [oracle.softmax(row) for row in logits_of(problem, problem.parameters)[0, 0].tolist()]
    plain = policy, problem.reward[0, 0].tolist(), problem.child.tolist(), problem.start.tolist()
    return *plain, oracle.walks(*plain)


def step(config, problem, rollout, control=NONE, parameters=None):
    """Parameters after one update."""
    ones = torch.ones(problem.key.shape, dtype=torch.float64)
    start = problem.parameters if parameters is None else parameters
    return step_parameters(config, control, problem, start, ones, rollout, control.init(ones))[0]


# --- exact quantities -----------------------------------------------------------------------------------------------


@given(bandit_configs())
def test_return_entropy_occupancy_and_values(config):
    problem = make_problem(config)
    policy, _, _, start, walks = replica(problem)
    probability = logits_of(problem, problem.parameters).softmax(-1)
    bound = rounding(config)
    share = oracle.occupancy(walks, config.state_count)
    np.testing.assert_allclose(bandit_exact.occupancy(problem, probability)[0, 0], share, rtol=0, atol=bound)
    entropies = [oracle.state_entropy(row) for row in policy]
    # nats: entropy <= log arms < 2, a sequence's <= depth log arms
    rollout = ROLLOUTS["exact"](
        config, make_problem(dataclasses.replace(config, gradient="exact")), tables_of(probability.log()), 0
    )
    found = measure_rollout(problem, probability.log(), rollout)
    mean = math.fsum(d * h for d, h in zip(share, entropies, strict=True))
    assert abs(found["entropy"].item() - mean) <= 2 * bound
    # of an exact rollout the estimate is exact too: E[-sum_t log pi] / E[length]
    assert abs(found["sampled_entropy"].item() - mean) <= rounding(config, 64.0)  # log pi is above -64
    if problem.depth > 1:
        whole = -math.fsum(w.probability * math.log(w.probability) for w in walks)
        assert abs(found["sequence_entropy"].item() - whole) <= 8 * bound
        assert abs(found["sequence_length"].item() - oracle.expected_length(walks)) <= 3 * bound
    got = measure_return(problem, probability)
    assert abs(got["reward"].item() - oracle.value(walks)) <= bound
    assert abs(got["regret"].item() - (oracle.best_value(walks, start) - oracle.value(walks))) <= bound
    values = bandit_exact.action_values(problem, bandit_exact.expected(problem, probability))[0, 0]
    for state, arm in itertools.product(range(config.state_count), range(config.arms)):
        if share[state] * policy[state][arm] > 1e-6:  # the oracle divides by it
            assert abs(values[state, arm].item() - oracle.action_value(walks, state, arm)) <= bound / 1e-6


@given(bandit_configs(gradient="exact"))
def test_sequences_are_all_there_are(config):
    problem = make_problem(config)
    *_, walks = replica(problem)
    found = problem.sequences
    paths = [
        tuple((s, a) for s, a, m in zip(*row, strict=True) if m)
        for row in zip(found.state.tolist(), found.arm.tolist(), found.mask.tolist(), strict=True)
    ]
    assert sorted(paths) == sorted(w.path for w in walks)
    probability = logits_of(problem, problem.parameters).softmax(-1)
    by_path = dict(
        zip(paths, bandit_exact.sequence_probability(problem, found, probability)[0, 0].tolist(), strict=True)
    )
    for walk in walks:
        assert abs(by_path[walk.path] - walk.probability) <= rounding(config) * walk.probability


@given(bandit_configs(families=("tree",), features=0))
def test_rewards_are_paid_at_the_end_only(config):
    problem = make_problem(config)
    inner = problem.child >= 0
    assert (problem.reward[..., inner] == 0).all() and (problem.reward[..., ~inner] > 0).all()
    assert (problem.child[inner] > torch.arange(config.state_count)[:, None].expand_as(problem.child)[inner]).all()


# --- gradients ------------------------------------------------------------------------------------------------------


def by_parameters(problem, gradient) -> np.ndarray:
    """A gradient by the logits [state][arm] as one by the parameters."""
    gradient = np.array(gradient)
    if problem.features is None:
        return gradient
    return np.einsum("sa,saf->f", gradient, problem.features[0, 0].numpy())


def exact_advantages(name, walks, start):
    """Advantage of a walk: its reward less a baseline, and less the token mean of that where it is whitened."""
    firsts, mean = oracle.start_values(walks, start), oracle.value(walks)
    baseline = {"reward": lambda w: 0.3, "reinforce_baseline": lambda w: mean}
    baseline |= dict.fromkeys(["reinforce", "reinforce++"], lambda w: 0.0)
    of = baseline.get(name, lambda w: firsts[w.path[0][0]])
    tokens = math.fsum(w.probability * len(w.path) * (w.reward - of(w)) for w in walks)
    shift = tokens / oracle.expected_length(walks) if name.startswith("reinforce++") else 0.0
    return lambda w: w.reward - of(w) - shift


@pytest.mark.parametrize("name", ADVANTAGES)
@given(bandit_configs(gradient="exact"))
def test_exact_gradient_is_the_sum_over_sequences(name, config):
    config = dataclasses.replace(config, advantage=name, baseline=0.3)
    problem = make_problem(config)
    policy, _, _, start, walks = replica(problem)
    rollout = ROLLOUTS["exact"](config, problem, tables_of(logits_of(problem, problem.parameters)), 0)
    change = (step(config, problem, rollout) - problem.parameters)[0, 0].numpy()
    advantage = exact_advantages(name, walks, start)
    of_path = {walk.path: advantage(walk) for walk in walks}  # a baseline shows in no gradient, so these by themselves
    rows = (x[0, 0].tolist() for x in (rollout.state, rollout.arm, rollout.mask, rollout.advantage))
    for states, arms, masks, found in zip(*rows, strict=True):
        path = tuple(zip(states[: sum(masks)], arms[: sum(masks)], strict=True))
        # a reward less a value and less a token mean of such
        assert all(abs(x - of_path[path]) <= 3 * rounding(config) for x in found[: sum(masks)])
    expected = by_parameters(problem, oracle.token_mean_gradient(walks, policy, advantage))
    # the features multiply it by up to a few; differences with parameters of up to 12 round by 12 u
    size = 1 if problem.features is None else float(problem.features.abs().sum(-2).max())
    np.testing.assert_allclose(change, config.step_size * expected, rtol=0, atol=rounding(config, size) + 24 * U)


def outcomes(config, problem):
    """Every rollout of `config.samples` sequences there can be, with its probability: all arms and all rewards."""
    *_, walks = replica(problem)
    single = [(w, r, w.probability * (w.reward if r else 1 - w.reward)) for w in walks for r in (0.0, 1.0)]
    old = logits_of(problem, problem.parameters).log_softmax(-1)
    for chosen in itertools.product(single, repeat=config.samples):
        state, arm = torch.zeros(2, 1, 1, config.samples, problem.depth, dtype=torch.int64)
        mask = torch.zeros_like(state, dtype=torch.bool)
        for row, (walk, _, _) in enumerate(chosen):
            for t, (s, a) in enumerate(walk.path):
                state[0, 0, row, t], arm[0, 0, row, t], mask[0, 0, row, t] = s, a, True
        reward = torch.tensor([[[r for _, r, _ in chosen]]], dtype=torch.float64)
        group = torch.zeros_like(reward, dtype=torch.int64)
        advantage = advantage_of(config.advantage, config.baseline, reward, group, mask)
        rollout = Rollout(state, arm, mask, at_tokens(old, state, arm), advantage, reward, group, None)
        yield math.prod(p for *_, p in chosen), rollout


@pytest.mark.parametrize("family", ["random", "deceptive", "tree"])
@pytest.mark.parametrize("advantage", ["rloo", "reward"])
def test_sampled_gradient_is_unbiased(family, advantage):
    """Summed over every rollout of two sequences; the token mean is unbiased once its own count is taken out of it."""
    arms = 3 if family == "deceptive" else 2
    config = BanditConfig(family=family, arms=arms, depth=2, samples=2, advantage=advantage, seeds=1, problems=1)
    problem = make_problem(config)
    policy, _, _, start, walks = replica(problem)
    total, mean = 0.0, torch.zeros_like(problem.parameters)
    for probability, rollout in outcomes(config, problem):
        change = step(config, problem, rollout) - problem.parameters
        mean += probability * change * rollout.mask.sum()
        total += probability
    values = oracle.start_values(walks, start)
    expected = np.array(oracle.token_mean_gradient(walks, policy, lambda w: w.reward - values[0]))
    expected *= config.step_size * config.samples * oracle.expected_length(walks)
    # at most 144 outcomes, each a few dozen roundings of numbers below 4
    assert abs(total - 1) <= 144 * 50 * U
    np.testing.assert_allclose(mean[0, 0].numpy(), expected, rtol=0, atol=144 * 50 * 4 * U)


@given(bandit_configs(families=("random", "contextual", "tree"), natural=True, gradient="exact", prior_scale=1.0))
def test_natural_gradient_is_the_pseudo_inverse_of_the_fisher_matrix(config):
    problem = make_problem(config)
    policy, _, _, start, walks = replica(problem)
    rollout = ROLLOUTS["exact"](config, problem, tables_of(logits_of(problem, problem.parameters)), 0)
    change = (step(config, problem, rollout) - problem.parameters)[0, 0].numpy().ravel()
    values, share = oracle.start_values(walks, start), oracle.occupancy(walks, config.state_count)
    gradient = by_parameters(
        problem, oracle.token_mean_gradient(walks, policy, lambda w: w.reward - values[w.path[0][0]])
    )
    cells, arms = config.cells, config.arms
    by_logits = np.zeros((cells, cells))
    for state, row in enumerate(policy):
        for a, b in itertools.product(range(arms), repeat=2):
            by_logits[state * arms + a, state * arms + b] = share[state] * ((a == b) * row[a] - row[a] * row[b])
    features = np.eye(cells) if problem.features is None else problem.features[0, 0].flatten(0, 1).numpy()
    fisher = features.T @ by_logits @ features
    singular = np.linalg.svd(fisher, compute_uv=False)
    cut = 1e-10 * singular[0]
    expected = config.step_size * np.linalg.pinv(fisher, rcond=1e-10) @ gradient.ravel()
    kept = singular[singular > cut]
    # errors of matrix and gradient are magnified by the condition number, at most twice over
    condition = kept[0] / kept[-1]
    bound = rounding(config) * len(fisher) * condition * max(1, np.abs(expected).max()) * max(1, 1 / kept[-1])
    np.testing.assert_allclose(change, expected, rtol=0, atol=bound)


@given(bandit_configs(families=("random", "contextual"), gradient="sampled", samples=20), st.data())
def test_the_gradient_written_out_is_that_of_the_token_loss(config, data):
    """For kinds with shares, whatever a pointwise control does to an objective."""
    problem = make_problem(config)
    policy = logits_of(problem, problem.parameters)
    before = tables_of(policy)
    rollout = as_rollout(config, problem, before, counted(config, pull(config, problem, before, 0)), 0)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = rollout.mask.shape

    def edit(objective, batch, state):
        values = {n: rng.uniform(0, 1, shape) for n in ("weight", "clip_low", "clip_high")}
        values["entropy_coef"] = rng.choice([0.0, 0.3], shape) if data.draw(st.booleans()) else np.zeros(shape)
        mask = torch.from_numpy(rng.random(shape) < 0.8)
        return dataclasses.replace(objective, mask=mask, **{n: torch.from_numpy(v) for n, v in values.items()})

    moved = policy + torch.from_numpy(rng.normal(0, 0.3, policy.shape))
    tables = tables_of(moved)
    batch = make_batch(tables, rollout)
    objective = edited(config, make_control(edit), batch, ()).objective
    slow, fast = (
        autograd_gradient(config, NONE, moved, rollout, batch, objective),
        closed_form_gradient(tables, rollout, batch, objective),
    )
    # sums of 2 cells products of 7 factors; advantages are below sqrt(samples), ratios below exp(4)
    assert (slow - fast).abs().max() <= rounding(config, 20**0.5 * math.exp(4))


# --- predictions ----------------------------------------------------------------------------------------------------


def looked_at(config, problem, step_size):
    """(metrics of the first update, step, rollout) of a plain gradient step of this size."""
    config = dataclasses.replace(config, step_size=step_size)
    ones = torch.ones(problem.key.shape, dtype=torch.float64)
    rollout = ROLLOUTS[config.gradient](config, problem, tables_of(logits_of(problem, problem.parameters)), 0)
    moved = Step(problem.parameters, step(config, problem, rollout), lambda p: policy_of(NONE, problem, p, ones))
    return measure_first(config, problem, moved, rollout), moved, rollout


@given(bandit_configs(advantage="rloo", samples=12))
def test_prediction_through_the_kernel_is_the_derivative_of_entropy(config):
    """Logits are linear in the parameters, so the error is a quadratic form and the third order's remainder: halving
    the step quarters it up to (1/8 + 1/4) of the remainder's bound, and up to rounding of entropies below 2."""
    problem = make_problem(config)
    errors = []
    for step_size in (0.1, 0.05):
        found, moved, _ = looked_at(config, problem, step_size)
        if problem.features is None:
            difference = found["predicted_through_kernel"] - found["predicted_first_order"]
            assert difference.abs().max() <= rounding(config)
        errors.append((found["measured_entropy_change"] - found["predicted_through_kernel"]).item())
        if step_size == 0.1:
            change = moved.policy_of(moved.after) - moved.policy_of(moved.before)
            spread = (change.amax(-1) - change.amin(-1)).max()
    remainder = second_order_remainder_bound(spread, config.arms).item()
    assert abs(errors[1] - errors[0] / 4) <= 3 / 8 * remainder + rounding(config, 2.0)


@given(bandit_configs(advantage="rloo", samples=12))
def test_theorem_1_through_the_kernel_in_numbers(config):
    """Inner product of two gradients formed by hand: entropy at the tokens' states, and A log pi of the tokens."""
    problem = make_problem(config)
    found, _, rollout = looked_at(config, problem, 0.1)
    policy, *_ = replica(problem)
    visited, objective = np.zeros((2, config.state_count, config.arms))
    tokens = int(rollout.mask.sum())
    rows = zip(rollout.state[0, 0], rollout.arm[0, 0], rollout.mask[0, 0], rollout.advantage[0, 0], strict=True)
    for states, arms, masks, advantages in rows:
        for s, a, valid, advantage in zip(states.tolist(), arms.tolist(), masks, advantages.tolist(), strict=True):
            if valid:
                pi, h = np.array(policy[s]), oracle.state_entropy(policy[s])
                visited[s] -= pi * (np.log(pi) + h) / tokens
                objective[s] += advantage * (np.eye(config.arms)[a] - pi) / tokens
    expected = (by_parameters(problem, visited) * by_parameters(problem, objective)).sum()
    size = 1 if problem.features is None else float(problem.features.abs().sum((-3, -2)).max()) ** 2
    bound = rounding(config, size) * tokens
    assert abs(found["theorem_1_through_kernel_per_step_size"].item() - expected) <= bound
    if problem.features is None and config.state_count == 1:
        plain = found["theorem_1_per_step_size"].item()
        assert abs(found["theorem_1_through_kernel_per_step_size"].item() - plain) <= bound


@given(bandit_configs(families=("contextual",), features=0, gradient="exact", advantage="grpo"))
def test_exact_step_obeys_theorem_1_at_every_state(config):
    """With d(s) in each state's step, in a table of several states."""
    problem = make_problem(config)
    found, _, _ = looked_at(config, problem, 0.01)
    assert abs((found["predicted_first_order"] - found["theorem_1"]).item()) <= rounding(config)


def test_through_kernel_sees_activation_and_temperature():
    """With logits doubled before a temperature of 4, every rate falls to a quarter."""
    config = BanditConfig(seeds=1, problems=1, samples=16)
    problem = make_problem(config)
    ones = torch.ones(1, 1, dtype=torch.float64)
    doubled = make_control(activate=lambda logits: 2 * logits)
    found = []
    for control, temperature, scale in ((NONE, 1.0, 1.0), (doubled, 4.0, 2.0)):
        parameters = problem.parameters * scale  # the same policy
        policy = policy_of(control, problem, parameters, ones * temperature)
        rollout = pull(config, problem, tables_of(policy), 0)
        after = step_parameters(config, control, problem, parameters, ones * temperature, rollout, ())[0]
        moved = Step(parameters, after, lambda p, c=control, t=temperature: policy_of(c, problem, p, ones * t))
        share = bandit_exact.occupancy(problem, policy.softmax(-1))
        found.append(through_kernel(moved, rollout, share))
    for name in found[0]:
        assert abs(found[1][name] - found[0][name] / 4).item() <= rounding(config) * config.samples
    assert abs(found[0]["predicted_through_kernel"].item()) > 1e-4
    assert entropy(policy).item() > 1
