"""What controls ask of the CartPole world: other policies at the same steps, collision, and every control in a run."""

import dataclasses
import math

import pytest
import torch
from cartpole_runs import DOUBLE, SMALL, make_envs, same, stopped_and_resumed, train, trained
from contract import CONTRACT

from entropy_theory.control import Need, control
from entropy_theory.records import Sampling
from sims import cartpole, rollouts
from sims.algorithms import ALGORITHMS
from sims.cartpole_config import EPISODES, CartPoleConfig
from sims.engine import make_head

U = torch.finfo(torch.float64).eps / 2
NEW = {Need.REF_LOGP, Need.PROXY_LOGP, Need.COLLISION, Need.ENTROPY_SUPPORT}


def of(algorithm: str, base: CartPoleConfig = SMALL, **settings) -> CartPoleConfig:
    """A run of three rollouts."""
    size = {"groups": 2, "group_size": 3, "episode_rollouts": 3, "probe_states": 8} if algorithm in EPISODES else {}
    return dataclasses.replace(base, **({"algorithm": algorithm, "total_timesteps": 3 * 128} | size | settings))


def without_the_least(logits):
    """The policy without its least likely action."""
    return logits.masked_fill(logits < logits.amin(-1, keepdim=True) + 1e-12, -torch.inf)


# --- other policies at the same steps -------------------------------------------------------------------------------


def log_softmax(z: list[float]) -> list[float]:
    top = max(z)
    total = top + math.log(math.fsum(math.exp(x - top) for x in z))
    return [x - total for x in z]


def logits_by_hand(networks, seed: int, observation: list[float]) -> list[float]:
    """The actor's logits at one observation, in plain Python."""
    x = observation
    layers = ((networks.weight_1[0], networks.bias_1[0]), (networks.weight_2[0], networks.bias_2[0]))
    for weight, bias in layers:
        columns = list(zip(*weight[seed].tolist(), strict=True))
        x = [
            math.tanh(math.fsum(map(float.__mul__, x, w)) + b)
            for w, b in zip(columns, bias[seed, 0].tolist(), strict=True)
        ]
    columns = zip(*networks.actor_weight[seed].tolist(), strict=True)
    bias = networks.actor_bias[seed, 0].tolist()
    return [math.fsum(map(float.__mul__, x, w)) + b for w, b in zip(columns, bias, strict=True)]


@pytest.mark.parametrize("engine", ["torch", "numba"])
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_reference_and_filtered_policy_by_hand(engine, algorithm, monkeypatch):
    """After the networks have moved: the reference from the fresh ones, the filtered policy from those that sampled.

    Both with the control's activation 2 z + 1 and temperature 4, on Acrobot, whose third action the filter may drop.
    """
    pytest.importorskip(engine)
    heated = control(
        sample=lambda sampling, state: Sampling(sampling.temperature * 4.0),
        activate=lambda logits: 2.0 * logits + 1.0,
        proxy=without_the_least,
        needs={Need.ACTIVATION, Need.SAMPLING, Need.REF_LOGP, Need.PROXY_LOGP},
    )
    monkeypatch.setattr(cartpole, "build", lambda names, settings: heated)
    config = of(algorithm, DOUBLE, env="Acrobot-v1", engine=engine, init="default", seeds=2)
    learner = cartpole.make_learner(config)
    fresh = [weight.clone() for weight in learner.networks]
    learner.networks.actor_weight.mul_(-20)
    assert same(learner.reference, fresh) and not same(learner.reference, learner.networks)
    head = make_head(heated, torch.full((2,), 4.0, dtype=torch.float64))
    transitions = cartpole.play(learner, make_envs(config), head, 0).transitions
    dropped = 0
    for seed in range(2):
        rows = zip(*(field[seed].flatten(0, 1).tolist() for field in transitions[:3]), strict=True)
        found = [x[seed].flatten().tolist() for x in (transitions.ref_logp, transitions.proxy_logp)]
        for i, (observation, action, _) in list(enumerate(rows))[:60]:
            reference = [(2 * z + 1) / 4 for z in logits_by_hand(learner.reference, seed, observation)]
            policy = [(2 * z + 1) / 4 for z in logits_by_hand(learner.networks, seed, observation)]
            kept = [z if z > min(policy) else -math.inf for z in policy]
            # sums of at most 8 products of size at most 20 through three layers
            allowed = 3 * 20 * 8 * 8 * U
            assert abs(found[0][i] - log_softmax(reference)[action]) <= allowed
            if math.isinf(kept[action]):
                dropped += 1
                assert found[1][i] == -math.inf
            else:
                assert abs(found[1][i] - log_softmax(kept)[action]) <= allowed
    assert dropped > 0


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_minibatches_keep_the_steps_of_every_policy_together(algorithm):
    config = of(algorithm, DOUBLE, control="kl_to_reference", set={})
    learner = cartpole.make_learner(config)
    head = make_head(learner.control, torch.ones(3, dtype=torch.float64))
    transitions = cartpole.play(learner, make_envs(config), head, 0).transitions
    assert transitions.proxy_logp is None
    # a number that says where it came from
    marked = transitions._replace(ref_logp=transitions.old_logp * 3 + transitions.advantage)
    count = 0
    for minibatch, _ in rollouts.minibatches(config, marked, ALGORITHMS[algorithm].epochs(config, 0)):
        assert torch.equal(minibatch.ref_logp, minibatch.old_logp * 3 + minibatch.advantage)
        assert minibatch.proxy_logp is None
        count += 1
    assert count == config.updates_per_rollout


@pytest.mark.parametrize("engine", ["torch", "numba"])
@pytest.mark.parametrize("asked", [True, False])
def test_a_batch_holds_what_was_asked_for_and_nothing_else(tmp_path, monkeypatch, engine, asked):
    """On the first update reference, filtered policy (all actions) and policy are one; later the reference stays."""
    pytest.importorskip(engine)
    seen = []
    spy = control(
        edit=lambda objective, batch, state: seen.append(batch) or objective,
        needs={Need.REF_LOGP, Need.PROXY_LOGP, Need.COLLISION} if asked else (),
    )
    monkeypatch.setattr(cartpole, "build", lambda names, settings: spy)
    config = of("ppo", DOUBLE, engine=engine, threads=1, lr=0.05)
    train(config, tmp_path / "run")
    assert len(seen) == 3 * config.updates_per_rollout
    if not asked:
        assert all(x is None for batch in seen for x in (batch.ref_logp, batch.proxy_logp, batch.collision))
        return
    # log-probabilities near log 2, from sums of 8 products of size at most 2 through three layers
    allowed = 3 * 8 * 8 * U
    first, last = seen[0], seen[-1]
    assert (first.ref_logp - first.logp).abs().max() <= allowed
    for number, batch in enumerate(seen):
        assert (batch.proxy_logp - batch.old_logp).abs().max() <= allowed
        if number % config.updates_per_rollout:
            assert (batch.proxy_logp - batch.logp).abs().max() > 1e-6
    assert (last.ref_logp - last.old_logp).abs().max() > 1e-3
    fields = (x.flatten().tolist() for x in (last.logp, last.entropy, last.collision))
    for logp, entropy, found in zip(*fields, strict=True):
        p = [math.exp(logp), -math.expm1(logp)]
        expected = math.fsum(x * x * (math.log(x) + entropy) for x in p if x > 0)
        # p is exp of a logarithm of size at most some 10: 10 u, and 1 - p as much over it
        assert abs(found - expected) <= 200 * U * (1 + abs(logp))


@pytest.mark.parametrize("engine", ["torch", "numba"])
def test_a_resumed_run_has_the_same_reference(tmp_path, engine):
    pytest.importorskip(engine)
    settings = {"kl_to_reference.coef": 1.0}
    config = of("ppo", engine=engine, control="kl_to_reference", set=settings, init_gain=20.0, init_entropy=0.9)
    assert stopped_and_resumed(config, tmp_path, after=2)


def test_every_algorithm_provides_them():
    assert all(algorithm.provides >= NEW for algorithm in ALGORITHMS.values())


# --- every control --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "engine"),
    [
        ("ppo", "torch"),
        ("ppo", "numba"),
        ("grpo", "torch"),
        ("grpo", "numba"),
        ("npg", "torch"),
        ("reinforce", "torch"),
    ],
)
@pytest.mark.parametrize("name", CONTRACT)
def test_every_control_trains_where_its_needs_are_met(tmp_path, algorithm, engine, name):
    pytest.importorskip(engine)
    settings = {f"{name}.{key}": value for key, value in CONTRACT[name].acting.items()}
    config = of(algorithm, control=name, set=settings, engine=engine)
    try:
        built = cartpole.build_control(config)
    except ValueError as error:
        assert "whole_groups" in str(error) and algorithm not in EPISODES
        assert not (tmp_path / "run").exists()
        return
    assert Need.WHOLE_GROUPS not in built.needs or algorithm in EPISODES
    lines = train(config, tmp_path / "run")
    assert len(lines) == 3 and config.updates_per_rollout >= 3
    for line in lines:
        assert all(math.isfinite(x) for key in set(line) - {"step"} for x in line[key])
    assert not same(trained(tmp_path / "run"), cartpole.make_learner(config).networks)
