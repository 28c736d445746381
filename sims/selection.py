"""Sampled tokens of the bandit and of CartPole, part of the way through training: what a covariance score ranks."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from entropy_theory.decomposition import Parts, part_rows, point_rows, top_rows, within_between
from entropy_theory.records import Batch
from entropy_theory.softmax import collision, token_statistics
from entropy_theory.tables import replace_rows
from sims import bandit, cartpole
from sims.algorithms import ALGORITHMS
from sims.bandit_config import BanditConfig
from sims.bandit_problem import make_problem
from sims.bandit_rollout import make_batch, pull, tables_of
from sims.cartpole_config import CartPoleConfig
from sims.networks import actor
from sims.rollouts import minibatches
from sims.trained import cartpole_rollout, states_after

BANDIT_ROLLOUTS, CARTPOLE_ROLLOUTS = 20, 20
"""Rollouts of training before the minibatch: entropy has begun to fall and is far from gone."""


def bandit_minibatch(seed: int = 0, rollouts: int = BANDIT_ROLLOUTS, seeds: int = 4) -> tuple[Batch, Tensor]:
    """The pulls of 32 bandits of the default run as one minibatch, so that it has several states.

    Args:
      seed: the first; rollouts: of training before (0 for none); seeds: replicas.
    Returns: (batch [seeds, 32 * pulls, 1], Cov_pi(log pi, pi) at each pull). A row's group is its bandit.
    """
    config = BanditConfig(seeds=seeds, problems=32, seed=seed)
    problem = make_problem(config)
    logits = problem.parameters
    if rollouts:
        logits = states_after(bandit.train, config, [rollouts])[rollouts]["parameters"]
    tables = tables_of(logits)
    pulls = make_batch(tables, pull(config, problem, tables, rollouts))  # [seeds, problems, pulls, 1]
    group = torch.arange(config.problems)[:, None].expand(-1, config.samples)
    tokens = {name: getattr(pulls, name).flatten(1, 2) for name in ("logp", "old_logp", "advantage", "mask", "entropy")}
    batch = Batch(**tokens, outcome=pulls.outcome.flatten(1, 2), group=group.expand_as(pulls.group).flatten(1, 2))
    return batch, collision(logits).unsqueeze(-1).expand_as(pulls.logp).flatten(1, 2)


def cartpole_minibatch(seed: int = 0, rollouts: int = CARTPOLE_ROLLOUTS, seeds: int = 2) -> tuple[Batch, Tensor]:
    """The first minibatch of PPO's next rollout, 128 transitions a seed.

    Args:
      as `bandit_minibatch`.
    Returns: (batch [seeds, 128, 1], Cov_pi(log pi, pi) at each transition).
    """
    config = CartPoleConfig(seeds=seeds, seed=seed)
    learner, transitions = cartpole_rollout(config, rollouts)
    minibatch, _ = next(minibatches(config, transitions, ALGORITHMS[config.algorithm].epochs(config, rollouts)))
    with torch.no_grad():
        policy = actor(learner.networks, minibatch.states)
        logp, entropies = (x.unsqueeze(-1) for x in token_statistics(policy, minibatch.action.squeeze(-1)))
    return cartpole.make_batch(minibatch, logp, entropies), collision(policy).unsqueeze(-1)


def bandit_decomposition(seed: int = 0, rollouts: int = BANDIT_ROLLOUTS, seeds: int = 4) -> dict[str, Parts]:
    """Eq. 10 within and between bandits, for two advantages of the same pulls.

    Returns: by advantage: `grpo` (centred over a bandit's own pulls and divided by their deviation) and `reward`
      (without baseline, or with one for the whole minibatch: a covariance does not see the difference).
    """
    batch, _ = bandit_minibatch(seed, rollouts, seeds)
    reward = batch.outcome.unsqueeze(-1)
    advantages = {"grpo": batch.advantage, "reward": reward}
    state = batch.group.unsqueeze(-1)
    return {name: within_between(batch.logp, a, batch.mask, state) for name, a in advantages.items()}


def write_tables(out: Path, seeds: int = 10, tick: Callable[[], None] = lambda: None) -> None:
    """Write the rows of both worlds of top_tokens.csv, token_points.csv and (the bandit) decomposition.csv.

    `tick` is called after each seed.
    """
    bandit_tokens, cartpole_tokens = bandit_minibatch(seeds=seeds), cartpole_minibatch(seeds=seeds)
    tops, points = [], []
    for world, tokens in (("bandit", bandit_tokens), ("cartpole", cartpole_tokens)):
        tops += top_rows(*tokens, {"world": world})
        points += point_rows(*tokens, {"world": world})
    replace_rows(out / "top_tokens.csv", tops)
    replace_rows(out / "token_points.csv", points)
    replace_rows(out / "decomposition.csv", part_rows(bandit_decomposition(seeds=seeds), {"world": "bandit"}))
    for _ in range(seeds):
        tick()
