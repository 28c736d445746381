"""What the benchmarks compare us with: the parts that run without PureJaxRL's environment."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from sims.ppo import gae

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "peers")]

import cartpole_ppo  # noqa: E402
import cleanrl_ppo  # noqa: E402
from steps_to_return import steps_to_return  # noqa: E402


@pytest.fixture(scope="module")
def cleanrl_returns() -> np.ndarray:
    """Returns of the episodes of three rollouts where they ended, NaN elsewhere, [updates, steps, envs]."""
    return cleanrl_ppo.train(0, 3)


@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 40), end_share=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_cleanrl_advantages_are_ours(seed, steps, end_share):
    """Both perform the same operations in the same order, so they agree exactly."""
    rng = np.random.default_rng(seed)
    reward, value = (torch.from_numpy(rng.standard_normal((n, 4))) for n in (steps, steps + 1))
    ended = torch.from_numpy(rng.random((steps, 4)) < end_share)
    before = torch.cat([torch.zeros(1, 4), ended]).double()
    theirs = cleanrl_ppo.advantages(reward, value[:-1], before, value[-1])
    never = torch.zeros_like(ended)
    ours = gae(reward.mT, value.mT, ended.mT, never.mT, cleanrl_ppo.GAMMA, cleanrl_ppo.LAMBDA)
    assert torch.equal(theirs.mT, ours)


def test_cleanrl_episodes_are_counted_where_they_end(cleanrl_returns):
    """The reward is 1 a step and a reset takes none, so a return is the distance from the end of the episode before."""
    by_env = cleanrl_returns.transpose(2, 0, 1).reshape(cleanrl_ppo.ENVS, -1)
    for returns in by_env:
        ends = np.flatnonzero(np.isfinite(returns))
        assert len(ends) > 5
        assert returns[ends].tolist() == np.diff(ends, prepend=-1).tolist()


def test_cleanrl_loss_is_the_value_clipped_one():
    """Against the formulas in plain loops over one minibatch, in float64."""
    torch.manual_seed(0)
    agent, count = cleanrl_ppo.Agent().double(), 8
    observation, action = torch.randn(count, 4).double(), torch.arange(count) % 2
    logps, now = agent.actor(observation).log_softmax(-1).detach(), agent.value(observation).detach()
    old_logp, old_value = logps[:, 0] - torch.linspace(-0.5, 0.5, count), now - torch.linspace(-0.6, 0.6, count)
    batch = cleanrl_ppo.Rollout(observation, action, old_logp, None, None, old_value)
    advantage, target = torch.randn(count).double(), torch.randn(count).double()
    found = cleanrl_ppo.loss(agent, batch, advantage, target).item()
    mean, std = float(advantage.mean()), float(advantage.std())
    total = 0.0
    for i in range(count):
        ratio, a = float((logps[i, action[i]] - old_logp[i]).exp()), (float(advantage[i]) - mean) / (std + 1e-8)
        total -= min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
        old, new, goal = float(old_value[i]), float(now[i]), float(target[i])
        near = old + min(max(new - old, -0.2), 0.2)
        total += 0.5 * 0.5 * max((new - goal) ** 2, (near - goal) ** 2)
        total -= 0.01 * sum(-float(logp.exp() * logp) for logp in logps[i])
    # Terms are below 10 and take fewer than 1000 operations each (two matrix products of 64), mean of `count`.
    assert abs(found - total / count) < 10 * 1000 * 2.0**-53


@given(
    lengths=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=30), min_size=2, max_size=2),
    target=st.floats(1, 12),
    window=st.integers(1, 6),
    rollout=st.integers(1, 9),
)
def test_steps_to_return_is_a_walk_through_the_episodes(lengths, target, window, rollout):
    """Two environments whose episodes have these lengths, against a walk over their steps."""
    steps = -(-max(map(sum, lengths)) // rollout) * rollout
    done, returns = np.zeros((1, steps, 2), bool), np.full((1, steps, 2), np.nan)
    for env, own in enumerate(lengths):
        ends = np.cumsum(own) - 1
        done[0, ends, env], returns[0, ends, env] = True, own
    seen, expected = [], None
    for step in range(steps):
        seen += [returns[0, step, env] for env in (0, 1) if done[0, step, env]]
        judged = (step + 1) % rollout == 0 and len(seen) >= window and expected is None
        if judged and np.mean(seen[-window:]) >= target:
            expected = 2 * (step + 1)
    shape = (1, -1, rollout, 2)
    assert steps_to_return(done.reshape(shape), returns.reshape(shape), target, window) == [expected]


def test_flops_of_a_step_are_those_that_torch_counts():
    """One forward pass of both networks for acting, then in each epoch one with its backward pass."""
    agent, states = cleanrl_ppo.Agent(), torch.randn(3, 4)
    with FlopCounterMode(display=False) as acting, torch.no_grad():
        agent.actor(states), agent.value(states)
    with FlopCounterMode(display=False) as learning:
        (agent.actor(states).sum() + agent.value(states).sum()).backward()
    counted = acting.get_total_flops() + cartpole_ppo.EPOCHS * learning.get_total_flops()
    assert counted == len(states) * cartpole_ppo.flops_per_step()
