"""Seeds with bandits of their own, and the errors of the theorems that such seeds are averaged over."""

import dataclasses

import pytest
import torch

from entropy_theory.runs import Run, read_metrics
from sims import bandit
from sims.bandit_config import FAMILIES, BanditConfig
from sims.bandit_problem import make_problem

SMALL = BanditConfig(seeds=3, problems=2, arms=4, states=2, depth=2, samples=8, rollouts=3, seed=100)


@pytest.mark.parametrize(
    ("family", "features"), [*((family, 0) for family in FAMILIES), ("contextual", 3), ("tree", 3)]
)
def test_own_problems_depend_on_the_seed_alone(family, features):
    config = dataclasses.replace(SMALL, family=family, features=features, own_problems=True)
    together = make_problem(config)
    for i in range(config.seeds):
        alone = make_problem(dataclasses.replace(config, seeds=1, seed=config.seed + i))
        for name in ("reward", "parameters", "features"):
            one, many = getattr(alone, name), getattr(together, name)
            assert (one is None and many is None) or torch.equal(one[0], many[i])
    drawn = torch.cat([together.reward.flatten(2), together.parameters.flatten(2)], -1).flatten(0, 1)
    assert len(drawn.unique(dim=0)) == config.seeds * config.problems


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_problems_are_the_same_in_every_seed(family):
    problem = make_problem(dataclasses.replace(SMALL, family=family))
    for table in (problem.reward, problem.parameters):
        assert all(torch.equal(table[0], other) for other in table)


def trained(folder, **changes):
    config = dataclasses.replace(SMALL, problems=1, own_problems=True, **changes)
    with Run(folder, dataclasses.asdict(config)) as run:
        bandit.train(config, run)
    return config, read_metrics(folder)


def test_errors_are_the_distances_of_what_is_logged(tmp_path):
    config, lines = trained(tmp_path)
    for line in lines:
        for i in range(config.seeds):
            measured, own = line["measured_entropy_change"][i], line["minibatch_entropy_change"][i]
            assert line["theorem_1_error"][i] == abs(measured - line["theorem_1"][i])
            assert line["theorem_2_error"][i] == abs(measured - line["theorem_2"][i])
            sampled = config.step_size * line["theorem_1_per_step_size"][i]
            assert line["minibatch_theorem_1_error"][i] == abs(own - sampled)


def test_errors_of_problems_do_not_cancel():
    config = dataclasses.replace(SMALL, seeds=1, problems=16, own_problems=True, rollouts=1, step_size=5.0)
    problem, control = make_problem(config), bandit.build_control(config)
    learner = bandit.Learner(problem.parameters, ())
    _, found = bandit.train_rollout(config, control, problem, learner, 0, bandit.Watch(True, True))
    signed = found["measured_entropy_change"] - found["theorem_1"]
    assert signed.min() < 0 < signed.max()
    assert torch.equal(found["theorem_1_error"], signed.abs())


def test_errors_of_states_do_not_cancel(tmp_path):
    """The mean of absolute values is at least the absolute value of the mean, and more where the signs differ."""
    config, (line, *_) = trained(tmp_path, family="contextual", states=16, samples=64, step_size=20.0)
    for i in range(config.seeds):
        for theorem in ("theorem_1", "theorem_2"):
            mean = abs(line["measured_entropy_change"][i] - line[theorem][i])
            # 16 terms of a few nats at most, weighted by 1/16 and added in another order: 2 (16 + 3) u of their size
            assert line[f"{theorem}_error"][i] >= mean - 38 * 2.0**-53 * line[f"{theorem}_error"][i]
    assert any(
        line[f"{theorem}_error"][i] > 1.05 * abs(line["measured_entropy_change"][i] - line[theorem][i])
        for i in range(config.seeds)
        for theorem in ("theorem_1", "theorem_2")
    )
