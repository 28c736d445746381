"""The families of bandits, all of one form: a finite tree of states, some of whose arms end the episode.

K-armed bandits have one state, contextual ones many in which every arm ends; a tree of tokens has one start and one
state for each sequence that can still go on. A reward is paid at the end only.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory.draw import uniform
from sims.bandit_config import BanditConfig
from sims.bandit_form import Problem, Sequences, logits_of
from sims.bandit_init import entropy_aware


class Drawn(NamedTuple):
    """What a family chooses for each problem drawn, [problems, cells]: rewards; initial logits, None if any will do."""

    reward: Tensor
    logits: Tensor | None


# numbers of the draws that make a problem; pulls count from 0, and logits drawn again from _AGAIN downwards
_REWARDS, _LOGITS, _FEATURES, _AGAIN = -1, -2, -3, -4


def _keys(config: BanditConfig) -> Tensor:
    """A key for each seed and problem, [seeds, problems]; problem numbers sit above any seed, so none is shared."""
    return config.seed + torch.arange(config.seeds)[:, None] + (torch.arange(config.problems) << 32)


def _uniform(config: BanditConfig, which: int, count: int) -> Tensor:
    """`count` numbers in [0, 1) for each problem that is drawn: those of all seeds, or one lot for every seed."""
    problem = _keys(config).flatten() if config.own_problems else torch.arange(config.problems)
    return uniform(problem, torch.full_like(problem, which), count)


def _normal(config: BanditConfig, which: int, count: int) -> Tensor:
    return torch.special.ndtri(_uniform(config, which, count).clamp(min=2.0**-53))


def _start(config: BanditConfig, which: int) -> Tensor:
    """Initial logits, or weights of features, that no family prescribes: normal, [problems, cells or features]."""
    return config.prior_scale * _normal(config, which, config.features or config.cells)


def random_arms(config: BanditConfig) -> Drawn:
    """Rewards uniform in [0, 1], any logits; also contexts and trees, which differ in what an arm leads to."""
    return Drawn(_uniform(config, _REWARDS, config.cells), None)


def _prescribed(config: BanditConfig, best: float, likely: float, others: tuple[float, float], share: float) -> Drawn:
    """Arm 0 the best and rare, arm 1 the likely one with `share` of what is left; the others uniform in `others`."""
    low, high = others
    rest = low + (high - low) * _uniform(config, _REWARDS, config.arms - 2)
    reward = torch.cat([torch.tensor([best, likely], dtype=rest.dtype).expand(len(rest), 2), rest], -1)
    left = 1 - config.rare_probability
    spread = (config.prior_scale * _normal(config, _LOGITS, config.arms - 2)).log_softmax(-1)
    known = torch.tensor([config.rare_probability, left * share], dtype=rest.dtype).log()
    other = spread + torch.log(torch.tensor(left * (1 - share), dtype=rest.dtype))
    return Drawn(reward, torch.cat([known.expand(len(rest), 2), other], -1))


def rare_good_arm(config: BanditConfig) -> Drawn:
    r"""A confident policy that is wrong: nearly all probability on a poor arm, the good arm rare.

    Reward 0.9 for the good arm, 0.2 for the likely one (0.9 of what the good arm leaves), 0.1 to 0.3 for the others.
    Lemma 1's covariance of log pi and its change is negative here: what rises is the good arm, whose log pi is low,
    and what falls the likely arm, whose log pi is high. So entropy first rises, until the good arm leads.
    """
    return _prescribed(config, best=0.9, likely=0.2, others=(0.1, 0.3), share=0.9)


def deceptive(config: BanditConfig) -> Drawn:
    """A decent arm that is likely and a better one that is rare: a policy that collapses early never finds it.

    Reward 0.9 for the best arm, 0.6 for the likely one (0.6 of what the best leaves), 0 to 0.3 for the others.
    """
    return _prescribed(config, best=0.9, likely=0.6, others=(0.0, 0.3), share=0.6)


FAMILIES: dict[str, Callable[[BanditConfig], Drawn]] = {
    "random": random_arms,
    "rare_good_arm": rare_good_arm,
    "deceptive": deceptive,
    "contextual": random_arms,
    "tree": random_arms,
}


def token_tree(arms: int, depth: int) -> Tensor:
    """Child [states, arms] of a tree of tokens: arm 0 ends the sequence, and so does every arm at the last level.

    States are numbered level by level; there are (arms - 1)^t of them at level t < depth.
    """
    inner = sum((arms - 1) ** level for level in range(depth - 1))
    child = torch.full((inner + (arms - 1) ** (depth - 1), arms), -1)
    child[:inner, 1:] = torch.arange(1, 1 + inner * (arms - 1)).view(inner, arms - 1)
    return child


def all_sequences(child: Tensor, start: Tensor, depth: int) -> Sequences:
    """The sequences from every first state, in the order of their first state."""
    following_of, found = child.tolist(), []
    open_ends = [((state,), ()) for state in start.nonzero().flatten().tolist()]
    while open_ends:
        longer = []
        for states, arms in open_ends:
            for arm, following in enumerate(following_of[states[-1]]):
                if following < 0:
                    found.append((states, (*arms, arm)))
                else:
                    longer.append(((*states, following), (*arms, arm)))
        open_ends = longer
    found.sort()

    def table(which: int) -> Tensor:
        return torch.tensor([[*row[which], *[0] * (depth - len(row[which]))] for row in found])

    lengths = torch.tensor([len(states) for states, _ in found])
    return Sequences(table(0), table(1), torch.arange(depth) < lengths.unsqueeze(-1))


def make_problem(config: BanditConfig) -> Problem:
    """The bandits of a run, the same in every seed unless each has its own; a draw key per seed and problem."""
    states, arms, depth = config.state_count, config.arms, config.horizon
    child = token_tree(arms, depth) if config.family == "tree" else torch.full((states, arms), -1)
    start = torch.zeros(states, dtype=torch.float64)
    start[: states if config.family == "contextual" else 1] = 1.0
    drawn = FAMILIES[config.family](config)
    lead = (config.seeds, config.problems)
    own = lead if config.own_problems else (1, config.problems)
    reward = drawn.reward.view(*own, states, arms).masked_fill(child >= 0, 0.0)
    shape = (config.features,) if config.features else (states, arms)

    def start_at(values: Tensor) -> Tensor:
        return values.view(*own, *shape).expand(*lead, *shape).clone()

    features = None
    if config.features:
        # variance 1 in all, so that the initial logits have the standard deviation prior_scale here too
        features = _normal(config, _FEATURES, config.cells * config.features) / config.features**0.5
        features = features.view(*own, states, arms, -1).expand(*lead, states, arms, config.features)
    problem = Problem(
        reward=reward.expand(*lead, states, arms),
        parameters=start_at(_start(config, _LOGITS) if drawn.logits is None else drawn.logits),
        features=features,
        key=_keys(config),
        child=child,
        start=start / start.sum(),
        depth=depth,
        sequences=all_sequences(child, start, depth) if config.gradient == "exact" else None,
    )
    if not config.init_entropy:
        return problem
    parameters = entropy_aware(
        problem,
        logits_of,
        lambda number: start_at(_start(config, _AGAIN + 1 - number)),
        config.init_entropy,
        config.init_tries,
    )
    return problem._replace(parameters=parameters)
