"""Exact quantities of a bandit by going through all its states, or all its sequences.

A policy is its probabilities, [E, states, arms] over any replica axes E. Sequences are at most `problem.depth` long, so
every sum below takes that many passes over the table.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sims.bandit_form import Problem, Sequences


def visits(problem: Problem, probability: Tensor) -> Tensor:
    r"""Expected number of tokens chosen in each state of one episode, [E, states].

        v(s) = start(s) + sum_{(s', a) leading to s} v(s') pi(a|s')

    Its sum over states is the expected length of an episode.
    """
    flow = problem.start.expand(probability.shape[:-1])
    total, child = flow, problem.child.flatten()
    inner = (child >= 0).nonzero().squeeze(-1)
    for _ in range(problem.depth - 1):
        moved = (flow.unsqueeze(-1) * probability).flatten(-2).index_select(-1, inner)
        flow = torch.zeros_like(flow).index_add(-1, child[inner], moved)
        total = total + flow
    return total


def occupancy(problem: Problem, probability: Tensor) -> Tensor:
    """d(s), the share of all tokens that are chosen in state s, [E, states]: `visits` over their sum."""
    found = visits(problem, probability)
    return found / found.sum(-1, keepdim=True)


def expected(problem: Problem, probability: Tensor) -> Callable[[Tensor], Tensor]:
    """Backup of a state's value from its arms' values: their mean under the policy."""
    return lambda q: (probability * q).sum(-1)


def best(q: Tensor) -> Tensor:
    """Backup of a state's value from its arms' values: the largest."""
    return q.amax(-1)


def action_values(problem: Problem, backup: Callable[[Tensor], Tensor]) -> Tensor:
    """Q(s, a), the expected reward from arm a in state s on, [E, states, arms], with states backed up by `backup`.

    With `expected` it is the policy's, with `best` that of the best policy there is.
    """
    q, following = problem.reward, problem.child.clamp(min=0)
    for _ in range(problem.depth - 1):
        q = torch.where(problem.child >= 0, backup(q)[..., following], problem.reward)
    return q


def start_value(problem: Problem, value: Tensor) -> Tensor:
    """Mean of a state's value over the first states, [E]."""
    return (problem.start * value).sum(-1)


def sequence_probability(problem: Problem, sequences: Sequences, probability: Tensor) -> Tensor:
    """Probability start(s_0) prod_t pi(a_t|s_t) of each sequence, [E, sequences]."""
    tokens = probability[..., sequences.state, sequences.arm].masked_fill(~sequences.mask, 1.0)
    return problem.start[sequences.state[:, 0]] * tokens.prod(-1)


def natural_gradient(problem: Problem, probability: Tensor, gradient: Tensor) -> Tensor:
    r"""F^+ gradient, with the exact Fisher matrix F = sum_s d(s) G_s^T (diag pi - pi pi^T) G_s of one token.

    G_s are the logits' derivatives by the parameters (Kakade 2001). Its sum over states is d(s)-weighted, as the
    token mean of the loss is.

    Args:
      probability: [E, states, arms] of softmax(logits); gradient: as the parameters, of a loss of that policy.
    Returns: as the parameters.
    """
    share = occupancy(problem, probability)
    if problem.features is None:
        return _table_product(probability, share, gradient)
    matrix = torch.linalg.pinv(feature_fisher(problem.features, probability, share), hermitian=True)
    return (matrix * gradient.unsqueeze(-2)).sum(-1)


def _table_product(probability: Tensor, share: Tensor, gradient: Tensor) -> Tensor:
    r"""F^+ gradient of a table, state by state, for a gradient that sums to 0 over the arms of each state.

    For one state it is `theorems.fisher_pseudo_inverse_product` without its centring of the argument: that is the
    identity here, as every gradient of a softmax policy sums to 0, but its rounding error would be divided by the
    smallest probability. Arms of probability 0 stay put, and so do states that are never visited.
    """
    scaled = torch.where(probability > 0, gradient / probability, 0.0)
    scaled = scaled - scaled.mean(-1, keepdim=True)
    share = share.unsqueeze(-1)
    return torch.where(share > 0, scaled / share, 0.0)


def feature_fisher(features: Tensor, probability: Tensor, share: Tensor) -> Tensor:
    """Fisher matrix of weights of shared features, [E, features, features]: d-weighted covariance under the policy.

    Its pseudo-inverse takes singular values below features * eps of the largest as 0: that is what a symmetric
    matrix of this size is rounded by.
    """
    mean = (probability.unsqueeze(-1) * features).sum(-2, keepdim=True)
    scores = ((share.unsqueeze(-1) * probability).sqrt().unsqueeze(-1) * (features - mean)).flatten(-3, -2)
    return scores.mT @ scores
