"""Entropy-aware initialisation: which of the networks drawn is kept, and how their entropy is measured."""

import dataclasses
import math

import pytest
import torch
from cartpole_runs import DOUBLE, SMALL, linear_policy, same, train
from hypothesis import given
from hypothesis import strategies as st
from strategies import generators

from entropy_theory.controls import build
from entropy_theory.draw import uniform
from sims import cartpole, learner
from sims.cartpole_config import CartPoleConfig
from sims.cartpole_env import collect, make_envs
from sims.engine import load_engine, make_head
from sims.initial import first_above
from sims.networks import Networks, actor

NONE = build("none", {})
DECIDED = {"init": "default", "init_gain": 20.0}
"""A start whose entropy differs from seed to seed: between 0 and 99 % of ln 2, half below .5 of it."""


@given(generators(), st.integers(1, 4), st.integers(1, 6), st.sampled_from([0.0, 0.3, 0.6, 0.9, 2.0]))
def test_the_first_that_reaches_it_or_the_best_is_kept(rng, seeds, tries, least):
    """Against a walk through each seed's list; entropies of few values, so that some are equal."""
    table = rng.integers(0, 5, size=(tries, seeds)) / 4

    def draw(number):
        marked = torch.full((seeds, 1, 1), float(number))
        return Networks(*(torch.full((2, seeds, 1, 1), float(number)) for _ in range(4)), *[marked] * 4)

    def entropy_of(networks):
        return torch.from_numpy(table[int(networks.actor_weight[0, 0, 0])])

    found = first_above(draw, entropy_of, least, tries)
    for seed in range(seeds):
        entropies = table[:, seed].tolist()
        reaching = [i for i, h in enumerate(entropies) if h >= least]
        kept = reaching[0] if reaching else entropies.index(max(entropies))
        assert all(float(weight[..., seed, 0, 0].max()) == kept for weight in found.networks)
        assert all(float(weight[..., seed, 0, 0].min()) == kept for weight in found.networks)
        assert found.entropy[seed] == entropies[kept]
        assert found.draws[seed] == (kept + 1 if reaching else tries)


@pytest.mark.parametrize("env", ["CartPole-v1", "Acrobot-v1"])
def test_trial_entropy_by_hand(env):
    """The mean over valid steps of one environment, observation by observation; CartPole's has resets among them."""
    config = dataclasses.replace(DOUBLE, env=env, **DECIDED)
    networks = learner.draw_networks(config, 0)
    found = learner.trial_entropy(config, NONE, load_engine("torch"), networks)
    seeds = torch.arange(3).unsqueeze(-1)
    keys, resets = seeds + (7 << 32), seeds + (8 << 32)  # streams of their own
    draws = uniform(keys, torch.zeros_like(keys), 128)
    head = make_head(NONE, torch.ones(3, dtype=torch.float64))
    rollout = collect(make_envs(env, resets), networks, head, draws, torch.float64)
    logits = actor(networks, rollout.observation[:, 0, :-1])
    assert rollout.mask.all() == (env == "Acrobot-v1")
    for seed in range(3):
        values = []
        for z, valid in zip(logits[seed].tolist(), rollout.mask[seed, 0].tolist(), strict=True):
            total = math.fsum(map(math.exp, z))
            logp = [x - math.log(total) for x in z]
            if valid:
                values.append(-math.fsum(math.exp(x) * x for x in logp))
        # logits of size at most 50, entropies at most log 3: 128 terms of some ten roundings each, 50 u of each logit
        assert abs(float(found[seed]) - math.fsum(values) / len(values)) <= (128 * 10 + 200) * 2**-53


def test_the_entropy_is_that_of_the_policy_that_will_act():
    """A control's activation counts: era_activation holds every state at its target or above, even of a sure policy."""
    config = dataclasses.replace(DOUBLE, init_entropy=0.8)
    sure = linear_policy(config, torch.ones(4))
    held = build("era_activation", {"era_activation.target": 0.6})
    engine = load_engine("torch")
    assert (learner.trial_entropy(config, NONE, engine, sure) < 1e-6).all()
    # the target is met to rounding of the double
    assert (learner.trial_entropy(config, held, engine, sure) >= 0.6 - 1e-12).all()


def test_a_seed_begins_as_it_does_alone():
    config = dataclasses.replace(DOUBLE, seeds=8, init_entropy=0.9, init_tries=5, **DECIDED)
    many = cartpole.make_learner(config).networks
    one = cartpole.make_learner(dataclasses.replace(config, seeds=2, seed=5)).networks
    assert all(torch.equal(several[..., 5:7, :, :], two) for several, two in zip(many, one, strict=True))


def test_no_two_tries_of_any_two_seeds_share_weights():
    config = dataclasses.replace(DOUBLE, seeds=5, init="default")
    drawn = torch.cat([learner.draw_networks(config, number).weight_2.flatten() for number in range(6)])
    assert len(drawn.unique()) == len(drawn)


@pytest.mark.parametrize("tries", [1, 5])
def test_seeds_that_begin_decided_are_drawn_again(tries):
    config = dataclasses.replace(DOUBLE, seeds=32, init_entropy=0.9, init_tries=tries, **DECIDED)
    engine, least = load_engine("torch"), 0.9 * math.log(2)
    first = learner.trial_entropy(config, NONE, engine, learner.draw_networks(config, 0))
    kept = learner.beginning(config, NONE, engine)
    again = learner.trial_entropy(config, NONE, engine, kept.networks)
    # another batch of the same matrices: rounding of logits of size 50
    assert (again - kept.entropy).abs().max() <= 1e-12
    assert (kept.entropy >= first).all() and (kept.draws == 1)[first >= least].all()
    assert (kept.entropy >= least)[kept.draws < tries].all()
    assert ((kept.draws > 1) == (first < least)).all() or tries == 1
    if tries == 1:
        assert same(kept.networks, learner.draw_networks(config, 0))
    else:
        assert (kept.entropy > first).float().mean() > 0.5


def test_the_usual_start_is_at_the_largest_entropy_and_stays(tmp_path):
    """The orthogonal head of gain .01: nothing is drawn again, not even for 99.9 % of ln 2."""
    config = dataclasses.replace(SMALL, seeds=8)
    aware = dataclasses.replace(config, init_entropy=0.999)
    assert same(cartpole.make_learner(aware).networks, cartpole.make_learner(config).networks)
    gained = dataclasses.replace(config, init_gain=3.0)
    usual, larger = (cartpole.make_learner(c).networks for c in (config, gained))
    assert torch.equal(larger.actor_weight, 3 * usual.actor_weight) and torch.equal(larger.weight_2, usual.weight_2)


def test_the_first_rollout_begins_at_a_higher_entropy(tmp_path):
    """In the seeds that were drawn again, and is bit for bit what it was in the others."""
    base = dataclasses.replace(SMALL, seeds=8, total_timesteps=128, **DECIDED)
    aware = dataclasses.replace(base, init_entropy=0.6)
    low, high = (torch.tensor(train(c, tmp_path / str(c.init_entropy))[0]["entropy"]) for c in (base, aware))
    again = learner.beginning(aware, NONE, load_engine("torch")).draws > 1
    assert again.any() and not again.all()
    assert (high > low)[again].all() and torch.equal(high[~again], low[~again])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"init_entropy": 1.5}, r"init_entropy must lie in \[0, 1\], got 1.5"),
        ({"init_entropy": -0.1}, r"init_entropy must lie in \[0, 1\], got -0.1"),
        ({"init_tries": 0}, "init_tries must be at least 1, got 0"),
        ({"init_gain": 0.0}, "init_gain must be positive, got 0.0"),
    ],
)
def test_config_errors_name_field_and_value(settings, message):
    with pytest.raises(ValueError, match=message):
        CartPoleConfig(**settings)
