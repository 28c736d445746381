"""What a CartPole run measures about entropy, against plain modules of one seed and against its own lines."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from cartpole_runs import DOUBLE, batch_of, make_envs, plain_head, stale, train
from hypothesis import given
from hypothesis import strategies as st

from sims import cartpole
from sims.actor import actor_weights
from sims.cartpole_measure import before_update, measure_update, through_kernel
from sims.engine import Head
from sims.networks import actor

U = torch.finfo(torch.float64).eps / 2
SIZE = 8 * (4 + 1 + 8 + 1 + 2) + 2
"""Weights of the actor."""


def module(weights, seed: int) -> torch.nn.Sequential:
    """The actor of one seed as a torch module."""
    layers = []
    for i in (1, 2, 3):
        weight, bias = weights[f"weight_{i}"][seed], weights[f"bias_{i}"][seed]
        layer = torch.nn.Linear(*weight.shape, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(weight.mT)
            layer.bias.copy_(bias[0])
        layers += [layer, torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1])


def gradient_of(value: torch.Tensor, net: torch.nn.Module) -> torch.Tensor:
    """Gradient by all parameters as one vector."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(net.parameters()), retain_graph=True)])


def mean_entropy(logits: torch.Tensor) -> torch.Tensor:
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1).mean()


def test_predictions_through_the_kernel_are_each_seeds_own_gradients():
    learner, transitions = stale(DOUBLE)
    mask = torch.rand(transitions.mask.shape, generator=torch.manual_seed(0)) < 0.8
    transitions = transitions._replace(mask=mask, advantage=torch.where(mask, transitions.advantage, torch.nan))
    temperature = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    head = Head(lambda logits: logits + 0.1 * logits**2, temperature, False)
    probe = transitions.states[:, :16]
    batch = batch_of(learner, transitions)
    before = before_update(
        learner, head, probe, batch, head.policy(actor(learner.networks, transitions.states)).detach()
    )
    with torch.no_grad():
        for i, weight in enumerate(learner.networks):
            weight += 0.01 * torch.randn(weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(i))
    after = actor_weights(learner.networks)
    found = through_kernel(before, after, head, probe, transitions)
    for seed in range(DOUBLE.seeds):
        net, moved = module(before.weights, seed), module(after, seed)
        valid = mask[seed, :, 0]

        def acting(states, seed=seed, net=net):
            logits = net(states)
            return (logits + 0.1 * logits**2) / temperature[seed]

        states, action = transitions.states[seed, valid], transitions.action[seed, valid, 0]
        logp = acting(states).log_softmax(-1)[torch.arange(len(states)), action]
        objective = gradient_of((transitions.advantage[seed, valid, 0] * logp).mean(), net)
        visited = gradient_of(mean_entropy(acting(states)), net)
        probed = gradient_of(mean_entropy(acting(probe[seed])), net)
        change = torch.cat(
            [(b - a).detach().flatten() for a, b in zip(net.parameters(), moved.parameters(), strict=True)]
        )
        # each gradient: sums over 128 states of products through sums of at most 9 terms, so below 2^10 roundings
        for name, one, two in (
            ("theorem_1_through_kernel_per_step_size", visited, objective),
            ("predicted_through_kernel", probed, change),
        ):
            bound = (2**10 + SIZE) * U * float(one.abs() @ two.abs() + SIZE * one.norm() * two.norm())
            assert abs(float(found[name][seed]) - float(one @ two)) <= bound


@given(logits=st.lists(st.floats(-6, 6), min_size=2, max_size=2), seed=st.integers(0, 2**31))
def test_over_one_state_of_a_table_the_kernel_changes_nothing(logits, seed):
    """A head without weights reads its bias alone: then the logits are parameters, and there is one state."""
    learner, transitions = stale(DOUBLE)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        learner.networks.actor_weight.zero_()
        learner.networks.actor_bias.copy_(torch.tensor(logits, dtype=torch.float64))
        learner.networks.bias_1.zero_()
        learner.networks.bias_2.zero_()
    transitions = transitions._replace(
        observation=torch.zeros_like(transitions.observation),
        advantage=torch.randn(transitions.mask.shape, dtype=torch.float64, generator=generator),
    )
    head, probe = plain_head(DOUBLE), transitions.states[:, :4]
    batch = batch_of(learner, transitions)
    policy = actor(learner.networks, transitions.states).detach()
    before = before_update(learner, head, probe, batch, policy)
    with torch.no_grad():
        learner.networks.actor_bias.add_(torch.randn(3, 1, 2, dtype=torch.float64, generator=generator), alpha=1e-3)
    line = measure_update(learner, head, probe, transitions, before)
    # means over 128 tokens of effects of at most |A| (|log pi| + H) with |log pi| <= 13
    bound = 2**10 * U * 14 * float(transitions.advantage.abs().max())
    rate, table = line["theorem_1_through_kernel_per_step_size"], line["theorem_1_per_step_size"]
    assert (rate - table).abs().max() <= bound
    # and Lemma 1 is linear in the logits, which here are the parameters
    assert (line["predicted_through_kernel"] - line["predicted_first_order"]).abs().max() <= 2**10 * U


def test_policy_term_and_state_shift_add_up_to_the_change_of_the_logged_entropy(tmp_path):
    config = dataclasses.replace(DOUBLE, control="entropy_bonus", lr=0.01)
    lines = train(config, tmp_path / "run")
    shifts = []
    for line, following in pairwise(lines):
        for seed in range(config.seeds):
            change = following["entropy"][seed] - line["entropy"][seed]
            parts = line["policy_entropy_change"][seed] + line["state_shift"][seed]
            assert abs(change - parts) <= 128 * 4 * U  # means over 128 entropies of at most log 2
            shifts.append(line["state_shift"][seed])
    assert all(shifts) and "state_shift" not in lines[-1]


def test_the_policy_term_is_taken_on_the_states_of_the_rollout_before(tmp_path):
    """By hand for the first rollout: play it, take over the weights that the run had after it, look again."""
    lines = train(dataclasses.replace(DOUBLE, total_timesteps=2 * 128), tmp_path / "two")
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(DOUBLE, total_timesteps=2 * 128), tmp_path / "stopped", _stop_after_one)
    stored = torch.load(tmp_path / "stopped/state.pt", weights_only=True)["state"]["networks"]
    learner = cartpole.make_learner(DOUBLE)
    played = cartpole.play(learner, make_envs(DOUBLE), plain_head(DOUBLE), 0)
    weights = actor_weights(learner.networks._replace(**dict(zip(learner.networks._fields, stored, strict=True))))
    for seed in range(3):
        valid = played.transitions.mask[seed, :, 0]
        states = played.transitions.states[seed, valid]
        with torch.no_grad():
            old, new = (mean_entropy(module(w, seed)(states)) for w in (actor_weights(learner.networks), weights))
        assert abs(float(new - old) - lines[0]["policy_entropy_change"][seed]) <= 2**10 * U


def _stop_after_one(done, total, line):
    if done == 1:
        raise KeyboardInterrupt


def test_rollouts_that_are_not_measured_leave_the_measurements_out_and_train_alike(tmp_path):
    always = train(DOUBLE, tmp_path / "always")
    rarely = train(dataclasses.replace(DOUBLE, measure_every=3), tmp_path / "rarely")
    never = train(dataclasses.replace(DOUBLE, measure_every=0), tmp_path / "never")
    assert all(set(line) == set(rarely[1]) for line in never)
    for number, (full, line) in enumerate(zip(always, rarely, strict=True)):
        assert set(line) == (set(full) if number % 3 == 0 else set(line) & set(full))
        assert ("predicted_first_order" in line) == ("selected_share" in line) == (number % 3 == 0)
        assert all(line[name] == full[name] for name in line)
