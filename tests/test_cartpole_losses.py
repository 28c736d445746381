"""Surrogates, aggregations, advantages and the policy of the entropy bonus, as a run's settings choose them."""

import dataclasses
import math
import typing

import pytest
import torch
from cartpole_runs import DOUBLE, SMALL, batch_of, make_envs, plain_head, same, stale, train, trained

from entropy_theory.advantage import ADVANTAGES
from entropy_theory.aggregation import AGGREGATIONS
from entropy_theory.control import Need, control
from entropy_theory.records import Objective
from entropy_theory.surrogate import SURROGATES
from sims import cartpole, cartpole_config, networks, ppo
from sims.cartpole_config import CartPoleConfig
from sims.engine import TORCH, Outputs
from sims.learner import policy_term

U = torch.finfo(torch.float64).eps / 2
EPISODIC = dataclasses.replace(DOUBLE, algorithm="grpo", groups=2, group_size=3, episode_rollouts=3, probe_states=8)
NONE = control()


def test_the_config_knows_the_names():
    for names, table, field in (
        (cartpole_config.SURROGATES, SURROGATES, "surrogate"),
        (cartpole_config.AGGREGATIONS, AGGREGATIONS, "aggregation"),
        (cartpole_config.ADVANTAGES, ADVANTAGES, "advantage"),
    ):
        assert names == tuple(table) == typing.get_args(typing.get_type_hints(CartPoleConfig)[field])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"surrogate": "trpo"}, "surrogate must be one of ppo, .*, got 'trpo'"),
        ({"aggregation": "mean"}, "aggregation must be one of token-mean, .*, got 'mean'"),
        ({"algorithm": "grpo", "probe_states": 8, "advantage": "gae"}, "advantage must be one of grpo, .*, got 'gae'"),
        ({"advantage": "rloo"}, "advantage 'rloo' compares the episodes of algorithm grpo; ppo has"),
        ({"algorithm": "reinforce", "advantage": "rloo"}, "algorithm grpo; reinforce has"),
    ],
)
def test_config_errors_name_field_and_value(settings, message):
    with pytest.raises(ValueError, match=message):
        CartPoleConfig(**settings)


# --- the loss -------------------------------------------------------------------------------------------------------


def gains(name: str, logp: float, old: float, advantage: float, mean: float) -> float:
    """The surrogate of one step with clip distances .2, in plain Python; mean: of its row's log ratios."""
    ratio = math.exp(mean if name == "gspo" else logp - old)
    clipped = min(max(ratio, 0.8), 1.2)
    lower = min(ratio * advantage, clipped * advantage)
    tau = 1.0 if advantage > 0 else 1.05
    return {
        "ppo": lower,
        "gspo": lower,
        "dual_clip": max(lower, 3 * advantage) if advantage < 0 else lower,
        "cispo": min(ratio, 1.2) * advantage * logp,
        "sapo": advantage * 4 / tau / (1 + math.exp(-tau * (ratio - 1))),
        "reinforce": advantage * logp,
    }[name]


def collected(name: str, rows: list[list[float]], horizon: int) -> float:
    """Losses of the steps of each row as one number, in plain Python."""
    rows = [row for row in rows if row]
    sums = [math.fsum(row) for row in rows]
    return {
        "token-mean": math.fsum(sums) / sum(map(len, rows)),
        "seq-mean-token-mean": math.fsum(s / len(row) for s, row in zip(sums, rows, strict=True)) / len(rows),
        "seq-mean-token-sum": math.fsum(sums) / len(rows),
        "constant": math.fsum(sums) / len(rows) / horizon,
    }[name]


CASES = [(name, "token-mean") for name in SURROGATES] + [("gspo", name) for name in AGGREGATIONS]


@pytest.mark.parametrize(("surrogate", "aggregation"), CASES)
def test_the_loss_by_hand(surrogate, aggregation):
    """Episodes of 8 to 100 steps, after a policy that has moved; masked steps hold garbage."""
    learner, transitions = stale(EPISODIC, surrogate=surrogate, aggregation=aggregation)
    # advantages of both signs for long and short episodes, and none for what follows an end
    advantage = torch.where(transitions.mask, transitions.advantage + 0.1, torch.nan)
    transitions = transitions._replace(advantage=advantage)
    batch = batch_of(learner, transitions)
    logits, value = networks.actor_critic(learner.networks, transitions.states)
    actor, objective = policy_term(learner.config, NONE), Objective.from_batch(batch)
    found = ppo.ppo_loss(logits, value, transitions, batch, objective, ppo.ValueTerm(0.0), actor)
    expected, size = 0.0, 0.0
    for seed in range(3):
        rows = []
        fields = (batch.logp[seed], batch.old_logp[seed], batch.advantage[seed], batch.mask[seed])
        for logp, old, advantages, mask in zip(*(x.tolist() for x in fields), strict=True):
            steps = [x for x in zip(logp, old, advantages, mask, strict=True) if x[3]]
            mean = math.fsum(x[0] - x[1] for x in steps) / len(steps)
            rows.append([-gains(surrogate, *x[:3], mean) for x in steps])
        expected += collected(aggregation, rows, 500)
        size += collected(aggregation, [[abs(x) for x in row] for row in rows], 500)
    # sums of at most 6 * 500 terms, each with a log-probability of size up to some 10 and its exponential
    assert abs(found.item() - expected) <= 3000 * 20 * U * (size + 1)


def test_rows_of_one_step_are_aggregated_alike(tmp_path):
    """With ppo every aggregation is the mean over valid steps, bit for bit; there are masked ones among them."""
    for name in AGGREGATIONS:
        train(dataclasses.replace(SMALL, aggregation=name), tmp_path / name)
    assert all(same(trained(tmp_path / name), trained(tmp_path / "token-mean")) for name in AGGREGATIONS)


def test_the_bonus_raises_the_entropy_of_the_policy_the_control_chose():
    """Value and derivative by the logits, in plain Python: 0 for the action left out."""

    def kept(logits):
        return logits.masked_fill(logits == logits.amin(-1, keepdim=True), -torch.inf)

    supporting = control(entropy_support=kept, needs={Need.ENTROPY_GRAD, Need.ENTROPY_SUPPORT})
    learner, transitions = stale(DOUBLE, env="Acrobot-v1", init="default")
    actor = policy_term(learner.config, supporting)
    assert policy_term(learner.config, NONE).plain and not actor.plain
    transitions = transitions._replace(advantage=torch.zeros_like(transitions.advantage))
    batch, outputs = batch_of(learner, transitions), TORCH.forward(learner.networks, transitions.states)
    logits = (outputs.logits / 200).flatten(0, 1)  # `stale` has multiplied them: let every action count
    objective = dataclasses.replace(Objective.from_batch(batch), entropy_coef=torch.full_like(batch.logp, 0.3))
    outputs = Outputs(logits.view(outputs.logits.shape), outputs.value, None)
    critic, head = ppo.ValueTerm(0.0), plain_head(DOUBLE)
    found, _ = TORCH.head_gradient(head, outputs, transitions, batch, objective, critic, actor)
    count = transitions.mask.sum((1, 2)).tolist()
    rows = zip(logits.tolist(), found.flatten(0, 1).tolist(), transitions.mask.flatten().tolist(), strict=True)
    for i, (z, gradient, valid) in enumerate(rows):
        total = math.fsum(math.exp(x) for x in z if x > min(z))
        p = [math.exp(x) / total if x > min(z) else 0.0 for x in z]
        h = -math.fsum(x * math.log(x) for x in p if x)
        for x, slope in zip(p, gradient, strict=True):
            # d(-c H)/dz = c p (log p + H)
            expected = 0.3 * x * (math.log(x) + h) / count[i // 128] if valid and x else 0.0
            assert abs(slope - expected) <= 50 * U


# --- advantages of episodes -----------------------------------------------------------------------------------------


def by_hand(name: str, outcomes: list[float], lengths: list[int]) -> list[float]:
    """Advantage of each of six episodes in two groups of three, in plain Python."""
    groups = [outcomes[:3], outcomes[3:]]
    if name == "reinforce":
        return outcomes
    if name == "rloo":
        return [x - (math.fsum(group) - x) / 2 for group in groups for x in group]
    if name == "dr_grpo":
        return [x - math.fsum(group) / 3 for group in groups for x in group]
    if name == "grpo":
        centred = [[x - math.fsum(group) / 3 for x in group] for group in groups]
        return [x / (math.sqrt(math.fsum(y * y for y in group) / 2) + 1e-6) for group in centred for x in group]
    if name == "reinforce_baseline":
        return [x - math.fsum(outcomes) / 6 for x in outcomes]
    values = by_hand("dr_grpo", outcomes, lengths) if name.endswith("baseline") else outcomes
    count = sum(lengths)  # every step of an episode counts
    mean = math.fsum(x * n for x, n in zip(values, lengths, strict=True)) / count
    square = math.fsum((x - mean) ** 2 * n for x, n in zip(values, lengths, strict=True)) / (count - 1)
    return [(x - mean) / math.sqrt(square + 1e-8) for x in values]


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_of_episodes_by_hand(name):
    config = dataclasses.replace(EPISODIC, advantage=name)
    learner = cartpole.make_learner(config)
    transitions = cartpole.play(learner, make_envs(config), plain_head(config), 0).transitions
    lengths = transitions.mask.sum(-1).tolist()
    for seed in range(3):
        expected = by_hand(name, [n / 500 for n in lengths[seed]], lengths[seed])
        for row, value in enumerate(expected):
            found, mask = transitions.advantage[seed, row], transitions.mask[seed, row]
            # outcomes are multiples of 1/500: a deviation that is not 0 is at least 1/1500, which rounding of some
            # 3000 terms divides by at most
            assert (found[mask] - value).abs().max() <= 1500 * 3000 * U
            assert (found[~mask] == 0).all()
