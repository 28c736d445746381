"""What a training step logs. All values are of the minibatch before its update unless they say otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from entropy_theory.covariance import centred_product, covariance
from entropy_theory.records import Batch, Objective
from entropy_theory.reduce import token_count, token_mean
from entropy_theory.softmax import collision
from entropy_theory.theorems import sampled_theorem_1, sampled_theorem_2
from llm.rollout import Responses, TokenStatistics

QUANTILES = (0.02, 0.5, 0.98, 0.998)


def rollout_metrics(
    responses: Responses, old_logp: Tensor, reward: Tensor, difficulty: Tensor, difficulties: Sequence[int]
) -> dict[str, float]:
    """Reward and shape of the whole rollout (the same in each of its updates).

    `reward` is the mean reward, `pass_rate_difficulty_d` its mean over prompts of difficulty d, `response_length`
    in tokens with the end token, `sampling_mismatch` the largest |sampled logp - old_logp| in nats: sampling and
    training run different kernels, and this is what it costs.
    """
    by_difficulty = {
        f"pass_rate_difficulty_{d}": reward[difficulty == d].mean().item() for d in difficulties
    }
    return {
        "reward": reward.mean().item(),
        **by_difficulty,
        "response_length": responses.mask.sum(-1).to(reward.dtype).mean().item(),
        "finished_share": responses.finished.to(reward.dtype).mean().item(),
        "sampling_mismatch": (responses.sampled_logp - old_logp)[responses.mask].abs().max().item(),
    }


def batch_metrics(batch: Batch, plain: Objective, edited: Objective) -> dict[str, float]:
    """Entropy, clipping, the tokens the control touched, and the score of Clip-Cov and KL-Cov.

    entropy: exact token mean of the policy being updated; sampled_entropy: -mean old_logp, of the policy that
    sampled. clip_fraction_low/high: share of tokens whose gradient the clip range cuts. selected: tokens whose mask,
    weight or penalty the control changed. cov_token: Eq. 10 of Cui et al. 2025, centred over the minibatch.
    """
    mask = batch.mask
    ratio = torch.exp(batch.logp - batch.old_logp)
    low = (ratio < 1 - edited.clip_low) & (edited.advantage < 0)
    high = (ratio > 1 + edited.clip_high) & (edited.advantage > 0)
    touched = selected(plain, edited) & mask
    score = centred_product(batch.logp, batch.advantage, mask)[mask]
    quantiles = torch.quantile(score.double(), torch.tensor(QUANTILES, dtype=torch.double, device=score.device))

    def share(tokens: Tensor) -> float:
        return token_mean(tokens.to(batch.logp.dtype), mask).item()

    count = int(touched.sum())
    negative = int((touched & (batch.advantage < 0)).sum())
    return {
        "entropy": token_mean(batch.entropy, mask).item(),
        "sampled_entropy": -token_mean(batch.old_logp, mask).item(),
        "tokens": int(token_count(mask)),
        "clip_fraction_low": share(low),
        "clip_fraction_high": share(high),
        "selected_count": count,
        "selected_share": share(touched),
        "selected_negative_share": negative / count if count else None,
        "cov_token_mean": score.mean().item(),
        "cov_token_max": score.max().item(),
        **{f"cov_token_q{q:g}": v for q, v in zip(QUANTILES, quantiles.tolist(), strict=True)},
    }


def selected(plain: Objective, edited: Objective) -> Tensor:
    """bool [rows, tokens]: tokens whose mask, weight or penalty differs between two objectives."""
    touched = (plain.mask != edited.mask) | (plain.weight != edited.weight)
    for penalty in edited.penalties:
        touched = touched | (penalty.coef != 0)
    return touched


def group_metrics(batch: Batch, difficulty: Tensor, group_size: int) -> dict[str, float]:
    """Response-level covariance of mean token logp and advantage within a prompt, averaged over prompts.

    Cui et al. 2025, Fig. 8 (`cov_group`), also by difficulty; and `zero_advantage_share`, the share of prompts
    whose responses all earn the same.
    """
    length = batch.mask.sum(-1).clamp(min=1)
    mean_logp = torch.where(batch.mask, batch.logp, 0.0).sum(-1) / length
    logp, advantage = (x.unflatten(0, (-1, group_size)) for x in (mean_logp, batch.advantage[:, 0]))
    within = covariance(logp, advantage, torch.ones_like(logp), dim=-1)
    level = difficulty.unflatten(0, (-1, group_size))[:, 0]
    return {
        "cov_group": within.mean().item(),
        **{f"cov_group_difficulty_{d}": within[level == d].mean().item() for d in level.unique().tolist()},
        "zero_advantage_share": (advantage == 0).all(-1).to(logp.dtype).mean().item(),
    }


def theorem_metrics(batch: Batch, passes: Sequence[TokenStatistics]) -> dict[str, float]:
    """Token means of the entropy effects that Theorems 1 and 2 give each sampled token, in nats per unit step size.

    Per unit, because Adam has no step size in the theorems' sense: the sign and the course over training can be
    compared with the measured change, the size cannot.
    """
    mask = batch.mask
    c = torch.cat([collision(p.logits.detach()) for p in passes])
    logp, h, advantage = (x[mask] for x in (batch.logp, batch.entropy, batch.advantage))
    return {
        "predicted_theorem_1_per_step_size": sampled_theorem_1(logp, h, c, advantage).mean().item(),
        "predicted_theorem_2_per_step_size": sampled_theorem_2(logp, h, advantage).mean().item(),
    }
