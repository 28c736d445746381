"""Lp-Reg."""

import math
from dataclasses import replace
from typing import Literal

import torch

from entropy_theory.control import Control, Need, control
from entropy_theory.controls.checks import check_choice, check_coef, check_fraction
from entropy_theory.records import Penalty
from entropy_theory.reduce import lowest, token_fraction
from entropy_theory.scope import Scope, scoped

PRESETS = {
    "paper-14b": {"fraction": 0.01, "kappa": 0.02, "ratio_cap": 10.0},
    "paper-32b": {"fraction": 0.005, "kappa": 0.02, "ratio_cap": 10.0},
    # the released loss ranks punished tokens only, so it penalises more of them, and fewer where pi > pi_proxy
    "lp-reg-dev": {
        "fraction": 0.01,
        "kappa": 0.02,
        "ratio_cap": 10.0,
        "among": "negative",
        "condition": "below_proxy",
        "scope": "microbatch",
    },
}


def lp_reg(
    fraction: float = 0.01,
    kappa: float = 0.02,
    tau: float | None = None,
    coef: float = 1.0,
    ratio_cap: float | None = 10.0,
    among: Literal["all", "negative"] = "all",
    condition: Literal["kept", "below_proxy"] = "kept",
    scope: Scope = "minibatch",
) -> Control:
    r"""Hold up rare, punished tokens that are no noise: those that a filter on probability would keep.

        pi_proxy = pi on the actions with pi >= kappa max pi, or pi > tau, normalised; the likeliest always stays
        loss_i += coef k3(log pi_i - log pi_proxy_i) where A_i < 0, pi_proxy_i > 0 and pi_i is among the lowest
        max(1, floor(fraction * tokens)); ratios are clipped to [0, ratio_cap]

    Huang et al. 2025 (Lp-Reg, arXiv 2510.03222), eqs. 5-6. pi_proxy is that of the policy that sampled the rollout.
    As in the authors' code the penalty is one sample of k3, whose expected gradient is that of KL(pi_proxy || pi), the
    divergence of the paper, and ratios of punished tokens are not capped (a minimum with the clipped term), while eq. 6
    caps them. With pi_proxy = pi / m, m the kept mass, its pull is 1 - 1/m: weak until pi has fallen below pi_proxy.
    Not reproduced of the code: a selection of a single token is skipped, and a k3 above 10 loses its gradient.

    Args:
      fraction: share of tokens that count as rare, in (0, 1].
      kappa: min-p, share of the largest probability, in (0, 1].
      tau: fixed threshold on probability in place of kappa, in [0, 1); None takes kappa.
      coef: reward units per nat, >= 0.
      ratio_cap: > 1; None leaves the clip of the run.
      among: tokens that are ranked: all valid ones (paper) or the punished ones (code).
      condition: "kept" by the filter (paper), or also of lower probability than under the proxy (code).
      scope: tokens that are ranked together: the whole minibatch, or each micro-batch as in the published code.
    Raises: ValueError if one of these does not hold.
    """
    check_fraction("lp_reg.fraction", fraction)
    check_fraction("lp_reg.kappa", kappa)
    check_coef("lp_reg.coef", coef)
    if tau is not None and not 0 <= tau < 1:
        raise ValueError(f"lp_reg.tau must lie in [0, 1), got {tau}")
    if ratio_cap is not None and not ratio_cap > 1:
        raise ValueError(f"lp_reg.ratio_cap must be above 1, got {ratio_cap}")
    check_choice("lp_reg.among", among, RANKED)
    check_choice("lp_reg.condition", condition, SPARED)
    ranked, spared = RANKED[among], SPARED[condition]
    keeps = min_p(kappa) if tau is None else above(tau)

    def edit(objective, batch, state):
        mask = objective.mask
        negative = mask & (objective.advantage < 0)
        pool = ranked(mask, negative)
        rare = lowest(batch.logp, pool, token_fraction(pool, fraction))
        chosen = rare & negative & batch.proxy_logp.isfinite() & ~spared(batch)
        penalty = Penalty(chosen.to(batch.logp.dtype) * coef, batch.proxy_logp, "k3")
        return replace(_capped(objective, ratio_cap), penalties=(*objective.penalties, penalty))

    def proxy(logits):
        return logits.masked_fill(~keeps(torch.log_softmax(logits, -1)), -torch.inf)

    return control(scoped("lp_reg", scope, edit), proxy=proxy, needs={Need.SAMPLES, Need.PROXY_LOGP})


RANKED = {"all": lambda mask, negative: mask, "negative": lambda mask, negative: negative}

SPARED = {
    "kept": lambda batch: torch.zeros_like(batch.mask),
    "below_proxy": lambda batch: batch.logp >= batch.proxy_logp,
}


def min_p(kappa: float):
    """log pi -> actions of at least `kappa` times the largest probability, [..., actions]."""
    return lambda logp: logp >= logp.amax(-1, keepdim=True) + math.log(kappa)


def above(tau: float):
    """log pi -> actions of probability above `tau`, and the likeliest, [..., actions]."""
    return lambda logp: (logp.exp() > tau) | (logp == logp.amax(-1, keepdim=True))


def _capped(objective, ratio_cap: float | None):
    if ratio_cap is None:
        return objective
    low, high = objective.clip_low, objective.clip_high
    return replace(objective, clip_low=torch.ones_like(low), clip_high=torch.full_like(high, ratio_cap - 1))
