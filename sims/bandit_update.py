"""One gradient step of the bandit world, by autograd through the one token loss."""

from typing import NamedTuple

import torch
from torch import Tensor

from entropy_theory.aggregation import AGGREGATIONS
from entropy_theory.control import Control, Need, State
from entropy_theory.covariances import TOKENS
from entropy_theory.loss import minibatch_loss, token_loss
from entropy_theory.records import Batch, Objective
from entropy_theory.softmax import entropy, token_statistics
from entropy_theory.surrogate import SURROGATES
from sims.bandit_config import BanditConfig
from sims.bandit_exact import natural_gradient
from sims.bandit_form import Problem, logits_of
from sims.bandit_rollout import Rollout, Tables, at_states, at_tokens, make_batch, rows_of, tables_of


class Edited(NamedTuple):
    """A batch, the objective before the control's edit and after it."""

    batch: Batch
    plain: Objective
    objective: Objective


def edited(config: BanditConfig, control: Control, batch: Batch, control_state: State) -> Edited:
    """What the control makes of a batch."""
    plain = Objective.from_batch(batch, config.clip_low, config.clip_high)
    return Edited(batch, plain, control.edit(plain, batch, control_state))


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
) -> tuple[Tensor, Batch]:
    """One (natural) gradient ascent step on a rollout: parameters after it, and the batch it used."""
    leaf = parameters.clone().requires_grad_()
    policy = policy_of(control, problem, leaf, temperature)
    tables = tables_of(policy.detach())
    batch = make_batch(tables, rollout, control.needs)
    objective = edited(config, control, batch, control_state).objective
    if has_closed_form(config, control, rollout, objective):
        slope = closed_form_gradient(tables, rollout, batch, objective)
    else:
        slope = autograd_gradient(config, control, policy.detach(), rollout, batch, objective)
    (gradient,) = torch.autograd.grad(policy, leaf, slope)
    if config.natural:
        gradient = natural_gradient(problem, tables.probability, gradient)
    return parameters - config.step_size * gradient, batch


def has_closed_form(config: BanditConfig, control: Control, rollout: Rollout, objective: Objective) -> bool:
    """Whether `closed_form_gradient` is the gradient; the aggregations are all one for episodes of one token."""
    forward_is_edited = control.needs & {Need.LOGIT_SCALE, Need.ENTROPY_SUPPORT}
    plain = config.surrogate == "ppo" and not objective.penalties and not forward_is_edited
    return plain and rollout.share is not None and config.horizon == 1


def autograd_gradient(
    config: BanditConfig, control: Control, policy: Tensor, rollout: Rollout, batch: Batch, objective: Objective
) -> Tensor:
    """Derivative of the minibatch's loss by the policy's logits, through `loss.token_loss`."""
    leaf = policy.clone().requires_grad_()
    logp, entropies = forward(control, leaf, rollout, objective)
    loss = token_loss(logp, entropies, batch, objective, SURROGATES[config.surrogate])
    if rollout.share is None:
        count, share = AGGREGATIONS[config.aggregation](objective.mask, config.horizon)
    else:  # one token an episode, or a token mean
        count, share = _total(rollout.share * objective.mask), rollout.share
    (gradient,) = torch.autograd.grad(minibatch_loss(loss, count, share), leaf)
    return gradient


def forward(control: Control, policy: Tensor, rollout: Rollout, objective: Objective) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and the entropy that the bonus raises, E, with the gradient of policy logits.

    A control with `LOGIT_SCALE` has the logits of each token multiplied by its objective's `logit_scale`, entropy
    included; one with `ENTROPY_SUPPORT` chooses the policy whose entropy it is.
    """
    supported = Need.ENTROPY_SUPPORT in control.needs
    if Need.LOGIT_SCALE in control.needs:
        # a factor that is not finite, where masked, would make the gradient NaN
        scale = torch.where(objective.mask, objective.logit_scale, 1.0)
        logits = rows_of(policy, rollout.state) * scale.unsqueeze(-1)
        logp, entropies = token_statistics(logits, rollout.arm)
        return logp, entropy(control.entropy_support(logits)) if supported else entropies
    tables = tables_of(policy)
    entropies = entropy(control.entropy_support(policy)) if supported else tables.entropy
    return at_tokens(tables.logp, rollout.state, rollout.arm), at_states(entropies, rollout.state)


def closed_form_gradient(tables: Tables, rollout: Rollout, batch: Batch, objective: Objective) -> Tensor:
    r"""The same written out, for one-token rows with shares and an objective without penalties; several times faster.

    g_t = -share weight A r [not clipped],   h_t = -share entropy_coef,   both over the number of tokens
    d loss / d z(s, a) = sum_{t in (s, a)} g_t - pi_a sum_{t in s} g_t - pi_a (log pi_a + H) sum_{t in s} h_t
    """
    ratio = torch.exp(batch.logp - batch.old_logp)
    gain = ratio * objective.advantage
    kept = gain <= torch.clamp(ratio, 1 - objective.clip_low, 1 + objective.clip_high) * objective.advantage

    def valid(values: Tensor) -> Tensor:
        # a mask that was not edited holds every token, and choosing by bool is slow
        return values if objective.mask is batch.mask else torch.where(objective.mask, values, 0.0)

    share = valid(rollout.share)
    share = share / -_total(share)[..., None, None]
    by_arm = _collected(valid(share * objective.weight * gain * kept), rollout, tables)
    by_state = by_arm.sum(-1, keepdim=True)
    if objective.entropy_coef.any():
        bonus = _collected(valid(share * objective.entropy_coef), rollout, tables).sum(-1, keepdim=True)
        by_state = by_state + bonus * (tables.logp + tables.entropy.unsqueeze(-1))
    return by_arm - tables.probability * by_state


def _total(share: Tensor) -> Tensor:
    """Sum of the shares of valid tokens, above 0 so that an empty mask divides to 0, [seeds, problems]."""
    return share.sum(TOKENS).clamp(min=torch.finfo(share.dtype).tiny)


def _collected(values: Tensor, rollout: Rollout, tables: Tables) -> Tensor:
    """Sums [seeds, problems, states, arms] of values [seeds, problems, rows, 1] of one-token rows."""
    states, arms = tables.logp.shape[-2:]
    cell = rollout.arm if states == 1 else rollout.state * arms + rollout.arm
    return (
        torch.zeros_like(tables.logp)
        .flatten(2)
        .scatter_add_(-1, cell.squeeze(-1), values.squeeze(-1))
        .view_as(tables.logp)
    )
