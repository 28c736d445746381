"""Entropy-aware initialisation of the bandits: which draw is taken, and what else stays as it was."""

import dataclasses
import itertools
import math

import bandit_oracle as oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import bandit_configs

from entropy_theory.runs import Run, read_metrics
from sims import bandit
from sims.bandit_config import GIVEN_PRIOR, BanditConfig
from sims.bandit_problem import logits_of, make_problem

U = torch.finfo(torch.float64).eps / 2
FREE = ("random", "contextual", "tree")
NEVER = 0.999999
"""A share that no drawn policy reaches: the best of all draws is taken."""


def start(config, share, tries):
    """Initial parameters of the only replica, and their mean entropy by a walk through all sequences, nats."""
    problem = make_problem(dataclasses.replace(config, init_entropy=share, init_tries=tries))
    policy = [oracle.softmax(row) for row in logits_of(problem, problem.parameters)[0, 0].tolist()]
    walks = oracle.walks(policy, problem.reward[0, 0].tolist(), problem.child.tolist(), problem.start.tolist())
    occupied = oracle.occupancy(walks, config.state_count)
    return problem.parameters, math.fsum(d * oracle.state_entropy(row) for d, row in zip(occupied, policy, strict=True))


@given(bandit_configs(families=FREE, prior_scale=3.0), st.floats(0.05, 0.95), st.integers(1, 6))
def test_the_first_draw_that_reaches_the_share_or_the_best(config, share, tries):
    """The draws show as the bests of 1, 2, ... tries, each of which is new exactly where it is higher."""
    bests = [start(config, NEVER, n) for n in range(1, tries + 1)]
    plain, _ = start(config, 0.0, tries)
    assert torch.equal(bests[0][0], plain)
    entropies = [h for _, h in bests]
    assert all(one <= two for one, two in itertools.pairwise(entropies))
    wanted = share * math.log(config.arms)
    reached = [n for n, h in enumerate(entropies) if h >= wanted]
    found, entropy = start(config, share, tries)
    # nothing is said of an entropy that rounding moves across the threshold
    if all(abs(h - wanted) > 1e-12 for h in entropies):
        assert torch.equal(found, bests[reached[0] if reached else -1][0])
        assert (entropy >= wanted) == bool(reached)


def test_later_draws_are_drawn_like_the_first():
    """A second draw is independent of the first and of the prior's standard deviation."""
    config = BanditConfig(seeds=1, problems=200, arms=50, prior_scale=2.0, init_entropy=NEVER, init_tries=2)
    first = make_problem(dataclasses.replace(config, init_tries=1)).parameters
    second = make_problem(config).parameters
    changed = (first != second).any(-1).flatten()
    # the higher of two alike draws is the second in half of the cases, within five standard errors of 200
    assert abs(changed.double().mean() - 0.5) < 5 * 0.5 / math.sqrt(200)
    # chosen for high entropy, so narrower than the prior, but drawn from it: a tenth at most, of 5,000 numbers
    assert 0.9 * 2 < second.flatten(0, -2)[changed].std() < 1.05 * 2
    correlation = torch.corrcoef(
        torch.stack([first.flatten(0, -2)[changed], second.flatten(0, -2)[changed]]).flatten(1)
    )
    # independent: five standard errors of some 5,000 pairs
    assert correlation[0, 1].abs() < 5 / math.sqrt(4000)


@pytest.mark.parametrize("family", FREE)
@pytest.mark.parametrize("features", [0, 3])
def test_each_problem_goes_its_own_way_and_keeps_its_rewards(family, features):
    config = BanditConfig(family=family, seeds=2, problems=6, arms=4, states=2, depth=2, prior_scale=3.0)
    config = dataclasses.replace(config, features=features, own_problems=True)
    aware = dataclasses.replace(config, init_entropy=0.6, init_tries=4)
    plain, chosen = make_problem(config), make_problem(aware)
    assert torch.equal(plain.reward, chosen.reward) and torch.equal(plain.key, chosen.key)
    if features:  # drawn with numbers of their own: not with those of the first features
        numbers = chosen.features[:, :, 0, 0] * config.features**0.5 * config.prior_scale
        assert (numbers - chosen.parameters).abs().amax(-1).min() > 0.1
    kept = (plain.parameters == chosen.parameters).flatten(2).all(-1)
    assert kept.any() and not kept.all()
    for i in range(config.seeds):
        alone = make_problem(dataclasses.replace(aware, seeds=1, seed=i, problems=3))
        assert torch.equal(alone.parameters[0], chosen.parameters[i, :3])


def test_a_uniform_policy_is_never_drawn_again():
    """Entropy ln K is the highest there is: every share below 1 is reached by the first draw."""
    config = BanditConfig(seeds=1, problems=2, prior_scale=0.0, init_entropy=0.99, init_tries=5)
    assert (make_problem(config).parameters == 0).all()


def test_a_run_starts_there(tmp_path):
    """The entropy a run logs first, and the reference of its controls, are the chosen policy's."""
    config = BanditConfig(
        seeds=2, problems=1, arms=5, samples=8, rollouts=2, prior_scale=4.0, init_entropy=0.7, init_tries=200
    )
    with Run(tmp_path / "run", dataclasses.asdict(config)) as run:
        bandit.train(config, run)
    first = read_metrics(tmp_path / "run")[0]["entropy"]
    plain = make_problem(dataclasses.replace(config, init_entropy=0.0)).parameters
    assert oracle.state_entropy(oracle.softmax(plain[0, 0, 0].tolist())) < 0.7 * math.log(5) <= min(first)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"init_entropy": 1.0}, r"init_entropy must be a share of ln\(arms\) in \[0, 1\), got 1.0"),
        ({"init_entropy": float("nan")}, "init_entropy must be a share of .* got nan"),
        ({"init_tries": 0}, "init_tries must be at least 1, got 0"),
        *(({"family": f, "init_entropy": 0.5}, f"family {f} prescribes .* set init_entropy to 0") for f in GIVEN_PRIOR),
    ],
)
def test_bad_settings_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        BanditConfig(**values)
