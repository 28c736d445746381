"""The pulls of a rollout counted: where every pull is one token, only its context, arm and reward matter.

A control that treats each token by itself does the same to all pulls of one kind, so a gradient step needs the kinds
and their counts: 2 arms a context in place of `samples` pulls. Controls that rank tokens see the pulls themselves.
"""

from functools import cache, lru_cache
from types import ModuleType

import torch
from torch import Tensor

from entropy_theory.control import Control, Need
from sims.bandit_config import BanditConfig
from sims.bandit_form import Problem
from sims.bandit_rollout import Rollout, Tables, advantage_of, at_tokens, first_states, pull

WITHIN_CONTEXT = ("grpo", "rloo", "dr_grpo", "reinforce", "reward")
"""Advantages of a pull that depend on the pulls of its own context alone."""
WORTH_COMPILING = 2**26
"""Pulls of a run from which on compiling the counting, seconds once in a process, pays."""


def applies(config: BanditConfig, control: Control) -> bool:
    """Whether training may count pulls: they are one token long, more than their kinds, and never compared, neither
    by the control nor by the advantage beyond a context."""
    comparing = control.needs & {Need.SAMPLES, Need.WHOLE_GROUPS}
    within_context = config.contexts == 1 or config.advantage in WITHIN_CONTEXT
    few_kinds = 2 * config.arms < config.samples
    return config.gradient == "sampled" and config.family != "tree" and few_kinds and within_context and not comparing


def count_pulls(config: BanditConfig, problem: Problem, tables: Tables, step: int) -> Tensor:
    """How often each arm of each drawn context earned 0 and 1, [seeds, problems, contexts, arms, 2] float64.

    The pulls are those of `bandit_rollout.pull`; with Numba, in a run long enough, they are counted as they are drawn.
    """
    pulls = config.samples * config.rollouts * config.seeds * config.problems
    compiled = _compiled() if pulls >= WORTH_COMPILING else None
    if compiled is None:
        return counted(config, pull(config, problem, tables, step))
    context = first_states(config, problem, step)
    return compiled.count_pulls(config, problem, tables.probability.cumsum(-1), context, step)


@cache
def _compiled() -> ModuleType | None:
    """The compiled counting, or None without Numba."""
    try:
        from sims import bandit_tally_numba
    except ImportError:
        return None
    return bandit_tally_numba


def counted(config: BanditConfig, rollout: Rollout) -> Tensor:
    """The counts of `count_pulls` from the pulls themselves."""
    kind = (rollout.group * config.arms + rollout.arm.squeeze(-1)) * 2 + rollout.reward.long()
    contexts = rollout.group.shape[-1] // config.samples
    counts = torch.zeros(*kind.shape[:-1], contexts * config.arms * 2, dtype=torch.float64)
    return counts.scatter_add_(-1, kind, torch.ones_like(rollout.reward)).unflatten(-1, (contexts, config.arms, 2))


def as_rollout(config: BanditConfig, problem: Problem, tables: Tables, counts: Tensor, step: int) -> Rollout:
    """Pulls of every kind once, each with its share of the pulls; means over tokens are those over the pulls."""
    contexts, arms = counts.shape[-3:-1]
    lead, kinds = counts.shape[:2], 2 * contexts * arms
    number = torch.arange(kinds)  # kinds by context, arm and reward; these are views, the same in every replica
    group, arm, reward = (x.expand(*lead, kinds) for x in (number // (2 * arms), number // 2 % arms, number % 2))
    state = first_states(config, problem, step).repeat_interleave(2 * arms, -1).unsqueeze(-1)
    won = counts[..., 1].sum(-1).long()
    advantage = _advantages(config.advantage, config.baseline, config.samples)[won].unsqueeze(-2)
    return Rollout(
        state=state,
        arm=arm.unsqueeze(-1),
        mask=torch.ones(1, dtype=torch.bool).expand(*lead, kinds, 1),
        old_logp=at_tokens(tables.logp, state, arm.unsqueeze(-1)),
        advantage=advantage.expand(counts.shape).flatten(2).unsqueeze(-1),
        reward=reward.double(),
        group=group,
        share=(counts * (2 * arms / config.samples)).flatten(2).unsqueeze(-1),
    )


@lru_cache(maxsize=64)
def _advantages(name: str, baseline: float, samples: int) -> Tensor:
    """Advantage of a pull with reward 0 and 1 in a group with w rewards of 1, [samples + 1, 2]; w = 0 to samples."""
    reward = (torch.arange(samples) < torch.arange(samples + 1).unsqueeze(-1)).double()
    group, mask = torch.zeros_like(reward, dtype=torch.int64), torch.ones_like(reward, dtype=torch.bool)
    advantage = advantage_of(name, baseline, reward, group, mask.unsqueeze(-1)).squeeze(-1)
    return advantage[:, [-1, 0]]  # at w = 0 and w = samples one kind does not occur, and counts 0 times
