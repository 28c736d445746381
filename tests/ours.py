"""This package's own functions under the names that the conformance suite calls."""

import torch

from entropy_theory.advantage import grpo
from entropy_theory.control import Control
from entropy_theory.controls import CONTROLS
from entropy_theory.covariances import centred_product, covariance
from entropy_theory.loss import minibatch_loss, token_loss
from entropy_theory.records import Batch, Objective
from entropy_theory.softmax import entropy, token_statistics


def loss_of(control: Control, clip_low: float = 0.2, clip_high: float = 0.2):
    """Loss of a minibatch under one control, as the worlds compute it: edit the objective, then the token losses."""

    def loss(logp, entropy, old_logp, advantage, mask, tokens):
        nothing = torch.zeros_like(advantage[..., 0])
        batch = Batch(
            logp.detach(), old_logp, advantage, mask, entropy.detach(), nothing, torch.zeros_like(nothing).long()
        )
        objective = Objective.from_batch(batch, clip_low, clip_high)
        objective = control.edit(objective, batch, control.init(torch.zeros((), dtype=logp.dtype)))
        return minibatch_loss(token_loss(logp, entropy, batch, objective), torch.tensor(tokens))

    return loss


def _from_logp(name: str, clips: bool = True):
    """A loss that does not look at entropy; the clip's distances belong to the objective, the rest to the control."""

    def function(logp, old_logp, advantage, mask, tokens, **hyper):
        clip = {key: hyper.pop(key) for key in ("clip_low", "clip_high") if clips}
        loss = loss_of(CONTROLS[name](**hyper), **clip)
        return loss(logp, torch.zeros_like(logp), old_logp, advantage, mask, tokens)

    return function


def _clip_higher(clip_low, clip_high, **arguments):
    loss = loss_of(CONTROLS["clip_higher"](clip_high=clip_high), clip_low)
    return loss(entropy=torch.zeros_like(arguments["logp"]), **arguments)


def _entropy_bonus(logits, action, clip_low, clip_high, coef, **arguments):
    logp, h = token_statistics(logits, action)
    return loss_of(CONTROLS["entropy_bonus"](coef=coef), clip_low, clip_high)(logp, h, **arguments)


OURS = {
    "entropy": entropy,
    "log_prob": lambda logits, action: token_statistics(logits, action)[0],
    "score": lambda logp, advantage, mask: centred_product(logp, advantage, mask),
    "covariance": lambda logp, advantage, mask: covariance(logp, advantage, mask),
    "grpo": grpo,
    "ppo": _from_logp("none"),
    "clip_higher": _clip_higher,
    "clip_cov": _from_logp("clip_cov"),
    "kl_cov": _from_logp("kl_cov", clips=False),
    "entropy_bonus": _entropy_bonus,
}
