"""One gradient step of the bandit world, by autograd through the one token loss."""

from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory.control import Control, State
from entropy_theory.loss import minibatch_loss, token_loss
from entropy_theory.records import Batch, Objective
from entropy_theory.reduce import token_count
from sims.bandit_config import BanditConfig
from sims.bandit_exact import natural_gradient
from sims.bandit_problem import Problem, logits_of
from sims.bandit_rollout import Rollout, batch_of, token_tables


class Update(NamedTuple):
    """One gradient step: parameters before and after, the batch it used, the objective before and after the edit."""

    before: Tensor
    after: Tensor
    batch: Batch
    plain: Objective
    objective: Objective


def policy_of(control: Control, problem: Problem, parameters: Tensor, temperature: Tensor) -> Tensor:
    """Logits of the policy that samples, activation and temperature included, [seeds, problems, states, arms]."""
    return control.activate(logits_of(problem, parameters)) / temperature[..., None, None]


def step_parameters(
    config: BanditConfig,
    control: Control,
    problem: Problem,
    parameters: Tensor,
    temperature: Tensor,
    rollout: Rollout,
    control_state: State,
) -> Update:
    """One (natural) gradient ascent step of a rollout."""
    leaf = parameters.clone().requires_grad_()
    policy = policy_of(control, problem, leaf, temperature)
    logp, entropies = token_tables(policy, rollout)
    # edit
    batch = batch_of(logp.detach(), entropies.detach(), rollout)
    plain = Objective.from_batch(batch, config.clip_low, config.clip_high)
    objective = control.edit(plain, batch, control_state)
    # update
    loss = token_loss(logp, entropies, batch, objective)
    if rollout.share is not None:
        loss = loss * rollout.share
    (gradient,) = torch.autograd.grad(minibatch_loss(loss, token_count(objective.mask)), leaf)
    if config.natural:
        gradient = natural_gradient(problem, policy.detach().softmax(-1), gradient)
    return Update(parameters, parameters - config.step_size * gradient, batch, plain, objective)
