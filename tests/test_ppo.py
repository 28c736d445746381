"""Details of PPO that implementations differ in: value clipping, the time limit, what advantages are scaled over."""

import dataclasses
import math

import pytest
import torch
from cartpole_runs import SMALL, make_envs, plain_head
from hypothesis import given
from hypothesis import strategies as st
from strategies import generators

from sims import cartpole, ppo, rollouts

DOUBLE = dataclasses.replace(SMALL, dtype="float64")


@given(generators(), st.sampled_from([math.inf, 1.0, 0.2]))
def test_clipped_value_loss_is_the_larger_of_two_errors(rng, clip):
    """Value and gradient against plain Python, masked garbage included; with clip = inf the squared error alone."""
    value, target, old = rng.normal(size=(3, 2, 5))
    mask = rng.random((2, 5)) < 0.7
    mask[:, 0] = True
    loss, slope = 0.0, torch.zeros(2, 5, dtype=torch.float64)
    for seed in range(2):
        for i in range(5):
            if not mask[seed, i]:
                continue
            v, t, o = (float(x[seed, i]) for x in (value, target, old))
            held = min(max(v, o - clip), o + clip)
            count = mask[seed].sum()
            loss += max((v - t) ** 2, (held - t) ** 2) / 2 / count
            # the held value does not move with v, so where its error is the larger one there is no gradient
            slope[seed, i] = 0.0 if held != v and (held - t) ** 2 > (v - t) ** 2 else (v - t) / count
    garbage = torch.from_numpy(mask)
    v, t, o = (
        torch.where(garbage, torch.from_numpy(x), bad).unsqueeze(-1)
        for x, bad in ((value, 3.0), (target, math.inf), (old, math.nan))
    )
    v.requires_grad_()
    found = ppo.value_loss(v, t, garbage.unsqueeze(-1), o, clip)
    (gradient,) = torch.autograd.grad(found, v)
    # numbers below 5 in size: squares below 100, ten of them, some eight roundings each
    assert abs(found.item() - loss) <= 8 * 10 * 100 * 2**-53
    assert ((gradient.squeeze(-1) - slope).abs() <= 8 * 10 * 2**-53).all()


@pytest.fixture(scope="module")
def played():
    """Transitions of one rollout under each setting, the same episodes in all; some end by the time limit."""

    def play(**settings):
        config = dataclasses.replace(DOUBLE, seeds=2, envs=4, steps=64, total_timesteps=4 * 64, **settings)
        learner, envs = cartpole.make_learner(config), make_envs(config)
        envs.steps[:] = 480  # twenty steps before the limit
        return config, cartpole.play(learner, envs, plain_head(config), 0)

    return play


def test_the_time_limit_is_an_end_or_is_not(played):
    """A step that the limit cut expects gamma V(next) more in one case than in the other, and nothing else differs."""
    config, open_ended = played()
    _, ended = played(bootstrap_truncated=False)
    rollout, target = open_ended.rollout, open_ended.transitions.value_target
    cut = rollout.truncated.flatten(1)
    assert cut.any() and torch.equal(cut, ended.rollout.truncated.flatten(1))
    learner = cartpole.make_learner(config)
    after = rollout.observation[:, :, 1:].flatten(1, 2)
    value = learner.engine.evaluate(learner.networks, after).value
    more = (target - ended.transitions.value_target).squeeze(-1)
    # a target is a sum of some 64 values of size 1 to 20
    assert ((more - config.gamma * value)[cut].abs() <= 64 * 20 * 2**-52).all()
    # an episode that did not end by the limit has the same targets
    alone = ~rollout.truncated.any(-1)
    same = more.view(2, 4, 64)[alone]
    assert (same == 0).all()


def test_advantages_are_scaled_within_the_rollout_or_the_minibatch(played):
    _, over_all = played()
    config, raw = played(normalise="minibatch")
    scaled = ppo.normalise(raw.transitions.advantage, raw.transitions.mask)
    assert torch.equal(scaled, over_all.transitions.advantage)
    for minibatch, index in rollouts.minibatches(config, raw.transitions, rollouts.shuffled_rows(config, 0)):
        expected = ppo.normalise(raw.transitions.take(index).advantage, minibatch.mask)
        assert torch.equal(minibatch.advantage, expected)
        assert not torch.equal(minibatch.advantage, over_all.transitions.take(index).advantage)


def test_what_is_written_into_a_rollout_reaches_its_later_epochs_only(played):
    config, raw = played()
    found = rollouts.minibatches(config, raw.transitions, rollouts.shuffled_rows(config, 0))
    first, index = next(found)
    mark = torch.full_like(first.old_logp, -123.0)
    raw.transitions.old_logp.scatter_(1, index.unsqueeze(-1), mark)
    later = [minibatch.old_logp == -123 for minibatch, _ in found]
    marked = torch.stack([x.sum() for x in later]).view(-1)
    assert not marked[: config.minibatches - 1].any()  # taken already
    assert marked.sum() == (config.epochs - 1) * mark.numel()
