"""Entropy-aware initialisation: initial logits are drawn again until the policy's entropy is high enough."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from entropy_theory.softmax import entropy
from sims.bandit_exact import occupancy
from sims.bandit_form import Problem


def entropy_aware(
    problem: Problem,
    logits_of: Callable[[Problem, Tensor], Tensor],
    redraw: Callable[[int], Tensor],
    share: float,
    tries: int,
) -> Tensor:
    r"""The first draw whose mean entropy reaches a share of ln K, or after `tries` draws that of the highest.

        sum_s d(s) H(s) >= share ln K,    d(s) the share of tokens chosen in state s

    Entropy-aware model initialisation, Sensors 2022, 22(15):5845 (arXiv 2108.10533), with the exact mean in place of
    that over the steps of a few rollouts. The paper's threshold and number of tries are unverified, so both are
    parameters. Each problem goes its own way; once one has enough, later draws do not change it.

    Args:
      problem: its parameters are draw 0; logits_of: logits [E, states, arms] of a problem's policy by its parameters.
      redraw: number of a draw -> parameters, as the problem's.
      share: in [0, 1); tries: draws in all, at least 1.
    Returns: parameters, as the problem's.
    """
    best = problem.parameters
    highest = mean_entropy(problem, logits_of(problem, best))
    for number in range(1, tries):
        low = highest < share * math.log(problem.reward.shape[-1])
        if not low.any():
            break
        other = redraw(number)
        found = mean_entropy(problem, logits_of(problem, other))
        better = low & (found > highest)
        highest = torch.where(better, found, highest)
        best = torch.where(better.view(*better.shape, *[1] * (best.dim() - 2)), other, best)
    return best


def mean_entropy(problem: Problem, logits: Tensor) -> Tensor:
    """Entropy of a policy, mean over the tokens of its episodes, [seeds, problems], nats."""
    return (occupancy(problem, logits.softmax(-1)) * entropy(logits)).sum(-1)
