"""Whole episodes, their advantages, the natural gradient, initialisation, and runs of every algorithm."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from cartpole_runs import DOUBLE, SMALL, make_envs, plain_head, same, stopped_and_resumed, train, trained
from hypothesis import given
from hypothesis import strategies as st

from sims import cartpole, initial, rollouts
from sims.actor import actor_logits, actor_weights, flat
from sims.algorithms import ALGORITHMS
from sims.cartpole_config import EPISODES, MAX_STEPS, CartPoleConfig
from sims.engine import Head
from sims.environments import ENVIRONMENTS
from sims.natural import conjugate_gradient, fisher_product, natural_step

U = torch.finfo(torch.float64).eps / 2
EPISODIC = dataclasses.replace(DOUBLE, algorithm="grpo", groups=2, group_size=3, episode_rollouts=2, probe_states=8)


def of(algorithm: str, **settings) -> CartPoleConfig:
    """A short run of an algorithm."""
    size = {"groups": 2, "group_size": 3, "episode_rollouts": 2, "probe_states": 8} if algorithm in EPISODES else {}
    base = {"algorithm": algorithm, "total_timesteps": 2 * 128}
    return dataclasses.replace(SMALL, **(base | size | settings))


# --- whole episodes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played():
    """Two rollouts of episodes, the second begun while episodes of the first were under way."""
    learner, envs, head = cartpole.make_learner(EPISODIC), make_envs(EPISODIC), plain_head(EPISODIC)
    return [cartpole.play(learner, envs, head, number) for number in range(2)]


def test_every_copy_plays_one_episode_from_the_first_state_of_its_group(played):
    firsts = []
    for rollout, transitions, _, _ in played:
        assert transitions.mask.shape == (3, 6, 500)
        for seed, row in np.ndindex(3, 6):
            length = int(transitions.mask[seed, row].sum())
            assert transitions.mask[seed, row, :length].all()
            assert rollout.ended[seed, row].nonzero().flatten().tolist() == [length - 1]
            assert float(transitions.outcome[seed, row]) == length / 500
            assert float(rollout.reward[seed, row].sum()) == length
            first, group = transitions.observation[seed, row, 0], int(transitions.group[seed, row])
            assert group == row // 3 and torch.equal(first, transitions.observation[seed, 3 * group, 0])
            firsts.append(tuple(first.tolist()))
    assert len(set(firsts)) == 2 * 3 * 2  # rollouts, seeds, groups


def test_group_relative_advantages_by_hand(played):
    for _, transitions, _, _ in played:
        for seed, group in np.ndindex(3, 2):
            rows = range(3 * group, 3 * group + 3)
            outcome = [float(transitions.outcome[seed, row]) for row in rows]
            mean = math.fsum(outcome) / 3
            deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in outcome) / 2)
            for row, x in zip(rows, outcome, strict=True):
                found, mask = transitions.advantage[seed, row], transitions.mask[seed, row]
                # outcomes are multiples of 1/500, so the deviation is at least 1/500 or 0: 500 u times a few roundings
                expected = (x - mean) / (deviation + 1e-6)
                assert (found[mask] - expected).abs().max() <= 500 * 32 * U
                assert (found[~mask] == 0).all()


def test_reinforce_compares_rewards_to_go_with_the_other_episodes(played):
    gamma = 0.9
    reward = played[0].rollout.reward
    found = rollouts.leave_one_out(rollouts.reward_to_go(reward, gamma))
    for seed in range(3):
        rewards = [[r for r in row if r] for row in reward[seed].tolist()]
        to_go = [[math.fsum(r * gamma**k for k, r in enumerate(row[t:])) for t in range(len(row))] for row in rewards]
        for row, own in enumerate(to_go):
            for t, value in enumerate(own):
                others = [x[t] if t < len(x) else 0.0 for i, x in enumerate(to_go) if i != row]
                expected = value - math.fsum(others) / 5
                # sums of at most 500 terms of at most 1, then six values of at most 10
                assert abs(float(found[seed, row, t]) - expected) <= 600 * 10 * U


def test_minibatches_hold_whole_groups():
    config = dataclasses.replace(EPISODIC, groups=4, minibatches=2)
    epochs = list(rollouts.shuffled_groups(config, 5))
    assert sum(map(len, epochs)) == config.updates_per_rollout == 4
    for batches in epochs:
        rows = torch.cat(tuple(batches), -1)
        assert torch.equal(rows.sort(-1).values, torch.arange(12).expand(3, 12))
        for rows in batches:
            assert all(len(set((row // 3).tolist())) == 2 for row in rows)
    assert not torch.equal(*epochs)
    named = rollouts.positions_of_groups(rows // 3)
    assert ((named >= 0) & (named < 6)).all()
    for before, after in zip(rows // 3, named, strict=True):
        assert torch.equal(before[:, None] == before, after[:, None] == after)


# --- the natural gradient -------------------------------------------------------------------------------------------


def small_actor(seed: int, seeds: int = 2, inputs: int = 3, hidden: int = 3, actions: int = 3, states: int = 5):
    """(weights, states, mask, head) of random small networks, float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(seeds, *shape, dtype=torch.float64, generator=generator)

    sizes = {"1": (inputs, hidden), "2": (hidden, hidden), "3": (hidden, actions)}
    weights = {f"weight_{i}": normal(*size) for i, size in sizes.items()}
    weights |= {f"bias_{i}": normal(1, size[1]) for i, size in sizes.items()}
    mask = torch.rand(seeds, states, generator=generator) < 0.7
    mask[:, 0] = True
    temperature = torch.tensor([0.5, 2.0], dtype=torch.float64)[:seeds]
    return weights, normal(states, inputs), mask, Head(lambda logits: 3 * torch.tanh(logits / 3), temperature, False)


def explicit_fisher(weights, states, mask, head, seed: int) -> torch.Tensor:
    """The Fisher matrix of one seed from its definition, E[score score^T], summed over states and actions in a loop."""
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    logp = head.policy(actor_logits(leaves, states)).log_softmax(-1)[seed]
    total, count = 0.0, int(mask[seed].sum())
    for s in mask[seed].nonzero().flatten().tolist():
        for logp_of_action in logp[s]:
            gradients = torch.autograd.grad(logp_of_action, list(leaves.values()), retain_graph=True)
            score = flat(gradients)[seed]
            total = total + logp_of_action.detach().exp() * torch.outer(score, score) / count
    return total


@given(seed=st.integers(0, 2**31))
def test_fisher_product_is_the_explicit_matrix(seed):
    weights, states, mask, head = small_actor(seed)
    product = fisher_product(weights, torch.where(mask.unsqueeze(-1), states, 5.0), mask, head)
    size = flat(weights.values()).shape[-1]
    vector = torch.randn(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    found = product(vector)
    for i in range(2):
        fisher = explicit_fisher(weights, states, mask, head, i)
        # sums of `size` products over 15 scores, each of which went through four layers of sums of 3: under 2^7 u each
        bound = 2**7 * size * U * float(fisher.diagonal().sum() * vector[i].norm())
        assert (found[i] - fisher @ vector[i]).abs().max() <= bound


@given(seed=st.integers(0, 2**31))
def test_natural_step_solves_the_damped_system_at_the_divergence_asked_for(seed):
    weights, states, mask, head = small_actor(seed)
    product, damping, divergence = fisher_product(weights, states, mask, head), 0.1, 1e-3
    size = flat(weights.values()).shape[-1]
    gradient = torch.randn(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    gradient[1] = 0
    step = natural_step(product, gradient, divergence, damping)
    assert (step[1] == 0).all()
    # rank of F is at most 2 per valid state = 10, and damping is one further eigenvalue: 11 steps solve it exactly,
    # so that ITERATIONS = 10 leave little; the solution in full:
    solved = conjugate_gradient(lambda v: product(v) + damping * v, gradient, iterations=4 * size)
    matrix = explicit_fisher(weights, states, mask, head, 0) + damping * torch.eye(size, dtype=torch.float64)
    expected = torch.linalg.solve(matrix, gradient[0])
    condition = float(torch.linalg.cond(matrix))
    assert (solved[0] - expected).norm() <= 2**10 * size * condition * U * expected.norm()
    # the step: against the gradient, and of the length that the model of the KL asks for
    assert float(step[0] @ gradient[0]) < 0
    assert float(step[0] @ matrix @ step[0]) / 2 == pytest.approx(divergence, rel=2**10 * size * condition * U)


def test_the_kl_of_a_natural_step_is_the_one_asked_for():
    """To second order: halving the divergence's root halves the relative error of the KL (third order in the step)."""
    weights, states, mask, head = small_actor(0, seeds=1)
    mask[:] = True
    product = fisher_product(weights, states, mask, head)
    # a gradient that the policy can act on: beyond the range of F, damping would be all there is of the model
    gradient = product(
        torch.randn(1, flat(weights.values()).shape[-1], generator=torch.Generator().manual_seed(1)).double()
    )
    errors = []
    for root in (1e-2, 5e-3, 2.5e-3):
        step = natural_step(product, gradient, root**2, 1e-9)
        pieces = cartpole_split(step, weights)
        moved = {name: value + piece for (name, value), piece in zip(weights.items(), pieces, strict=True)}
        old, new = (head.policy(actor_logits(w, states)).log_softmax(-1) for w in (weights, moved))
        kl = float((old.exp() * (old - new)).sum(-1).mean())
        errors.append(abs(kl / root**2 - 1))
    assert errors[2] < 0.75 * errors[1] < 0.75**2 * errors[0] < 0.1


def cartpole_split(vector, weights):
    """A vector as tensors of the weights' shapes, by plain counting."""
    start, pieces = 0, []
    for value in weights.values():
        count = value[0].numel()
        pieces.append(vector[:, start : start + count].reshape(value.shape))
        start += count
    return pieces


def test_npg_moves_the_actor_by_the_natural_step_and_the_critic_by_adam(tmp_path):
    config = of("npg", dtype="float64")
    start = cartpole.make_learner(config).networks
    train(config, tmp_path / "npg")
    state = torch.load(tmp_path / "npg/state.pt", weights_only=True)["state"]
    moments = dict(zip(start._fields, state["first"], strict=True))
    assert all((moments[name][0] == 0).all() for name in start._fields[:4]) and (moments["actor_weight"] == 0).all()
    assert (moments["critic_weight"] != 0).any() and (moments["weight_2"][1] != 0).any()
    assert not same([w[0] for w in state["networks"][:4]], [w[0] for w in start[:4]])


# --- initialisation -------------------------------------------------------------------------------------------------


def test_default_initialisation_is_torchs():
    """Uniform between the bounds of torch.nn.Linear; each layer's draws are its own."""
    key = torch.tensor([[1, 2], [3, 4]])
    networks = initial.default_networks(key, 4, 64, 2, torch.float64)
    for name, value in networks._asdict().items():
        inputs = 4 if name.endswith("_1") else 64
        torch.manual_seed(0)
        theirs = torch.nn.Linear(inputs, value.shape[-1])
        bound = max(float(p.detach().abs().max()) for p in theirs.parameters()) if value.shape[-1] > 2 else inputs**-0.5
        # the largest of n uniform numbers lies within 20 / n of the bound but for e^-20 of the cases
        for part in value.flatten(0, -3):
            assert float(part.abs().max()) <= inputs**-0.5
            assert float(part.abs().max()) >= (1 - 20 / part.numel()) * bound
            assert abs(float(part.mean())) <= 6 * inputs**-0.5 / math.sqrt(3 * part.numel())
    assert len(torch.cat([w.flatten() for w in networks]).unique()) == sum(w.numel() for w in networks)


@pytest.mark.parametrize("name", initial.INITIALISATIONS)
def test_initial_weights_of_a_seed_do_not_depend_on_the_others(name):
    many = cartpole.make_learner(dataclasses.replace(DOUBLE, init=name)).networks
    one = cartpole.make_learner(dataclasses.replace(DOUBLE, init=name, seeds=1, seed=2)).networks
    assert all(torch.equal(several[..., 2:3, :, :], single) for several, single in zip(many, one, strict=True))


# --- runs -----------------------------------------------------------------------------------------------------------


def test_the_config_knows_the_environments():
    assert {name: kind.max_steps for name, kind in ENVIRONMENTS.items()} == MAX_STEPS
    assert set(EPISODES) < set(ALGORITHMS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_a_seed_is_the_same_run_alone_and_among_others(tmp_path, algorithm, env):
    many, one = of(algorithm, env=env), of(algorithm, env=env, seeds=2, seed=1)
    lines, alone = train(many, tmp_path / "many"), train(one, tmp_path / "one")
    for line, single in zip(lines, alone, strict=True):
        assert line.keys() == single.keys()
        for name, value in single.items():
            assert name == "step" or line[name][1:] == value, name
    for several, single in zip(trained(tmp_path / "many"), trained(tmp_path / "one"), strict=True):
        assert torch.equal(several[..., 1:3, :, :], single)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, algorithm):
    config = of(algorithm, control="entropy_bonus")
    assert stopped_and_resumed(config, tmp_path, after=1)


def test_algorithms_differ(tmp_path):
    """No two make the same of the same start; REINFORCE and GRPO play the same first episodes."""
    ends = {name: trained_by(tmp_path, name) for name in ALGORITHMS}
    names = list(ends)
    for i, one in enumerate(names):
        assert all(not torch.equal(ends[one][0], ends[other][0]) for other in names[i + 1 :])


def trained_by(folder, algorithm):
    train(of(algorithm), folder / algorithm)
    return trained(folder / algorithm)


def test_actor_weights_share_the_networks_memory():
    learner = cartpole.make_learner(DOUBLE)
    actor_weights(learner.networks)["weight_3"].zero_()
    assert (learner.networks.actor_weight == 0).all()
