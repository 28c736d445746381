"""Sampling responses, and the statistics of their tokens under a policy.

Sampling pads prompts on the left, so that all rows write their next token at one index. `forward` moves each
row to the left edge instead: then every padding token stands to the right of every valid one, causal attention
alone hides it, and no padding mask is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from entropy_theory.softmax import collision, token_statistics
from llm.models import LanguageModel

Activation = Callable[[Tensor], Tensor]


def identity(logits: Tensor) -> Tensor:
    """The activation of controls that have none."""
    return logits


@dataclass(frozen=True)
class Responses:
    """Prompts and the responses sampled to them.

    prompt:        [rows, prompt tokens] int64, padded on the left
    prompt_length: [rows] int64
    tokens:        [rows, tokens] int64, the end token included, padded on the right
    mask:          bool [rows, tokens], the tokens that were sampled
    sampled_logp:  [rows, tokens], log-probability under the sampling distribution, nats
    finished:      bool [rows], whether the response came to its end before the length limit
    """

    prompt: Tensor
    prompt_length: Tensor
    tokens: Tensor
    mask: Tensor
    sampled_logp: Tensor
    finished: Tensor

    def __getitem__(self, rows) -> Responses:
        return Responses(*(getattr(self, f.name)[rows] for f in fields(self)))

    def __len__(self) -> int:
        return len(self.tokens)


class TokenStatistics(NamedTuple):
    """Statistics of the policy at the sampling temperature, at response tokens.

    logp, entropy: [rows, tokens], nats, 0 where masked
    logits:        [valid tokens, vocabulary], of the softmax, in the order of `mask.nonzero()`
    """

    logp: Tensor
    entropy: Tensor
    logits: Tensor


def token_collision(logits: Tensor, mask: Tensor) -> Tensor:
    """Cov_pi(log pi, pi) at every token, [rows, tokens], nats; 0 where masked; without grad.

    Args: logits: [valid tokens, vocabulary] as in `TokenStatistics`; mask: [rows, tokens].
    """
    return at_tokens(collision(logits.detach()), mask)


def chosen_logp(logits: Tensor, responses: Responses) -> Tensor:
    """Log-probability of the response tokens under other logits than the policy's, [rows, tokens], nats; 0 where
    masked, -inf where the logits leave the token out.

    Args: logits: [valid tokens, vocabulary] as in `TokenStatistics`.
    """
    chosen = responses.tokens[responses.mask].unsqueeze(-1)
    return at_tokens(torch.log_softmax(logits, -1).gather(-1, chosen).squeeze(-1), responses.mask)


def at_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """[valid tokens] in the order of `mask.nonzero()` as [rows, tokens], 0 where masked; differentiable."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_scatter(mask, values)


def policy_logits(
    raw: Tensor, temperature: float, activate: Activation = identity, logit_scale: Tensor | None = None
) -> Tensor:
    """Logits of the policy: activate(raw) * logit_scale / temperature, in float32 at least.

    Args:
      raw: [tokens, vocabulary] from the model; logit_scale: [tokens] or None for 1.
    """
    raw = raw.float() if raw.dtype in (torch.bfloat16, torch.float16) else raw
    logits = activate(raw) / temperature
    return logits if logit_scale is None else logits * logit_scale.unsqueeze(-1).to(logits.dtype)


@torch.no_grad()
def sample(
    lm: LanguageModel,
    prompts: Sequence[str],
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator,
    activate: Activation = identity,
) -> Responses:
    """`group_size` responses to each prompt, rows of one prompt next to each other.

    Each prompt is read once and its cache shared out to its group. Rows that have ended leave the batch as soon
    as half of it has ended, so that long responses do not pay for short ones.

    Args:
      max_new_tokens: limit on a response, end token included; also the width of what is returned.
      temperature: > 0, divides the logits.
      generator: on the model's device; the only source of randomness.
    """
    device = lm.model.device
    encoded = [lm.tokenizer.encode(text, add_special_tokens=False) for text in prompts]
    if not all(encoded):
        raise ValueError(f"prompt {prompts[[bool(e) for e in encoded].index(False)]!r} has no tokens")
    width = max(map(len, encoded))
    prompt = torch.tensor([[lm.pad] * (width - len(e)) + e for e in encoded], device=device)
    length = torch.tensor([len(e) for e in encoded], device=device)
    attention = torch.arange(width, device=device) >= (width - length).unsqueeze(-1)

    cache = DynamicCache(config=lm.model.config)
    raw = _read(lm, prompt, attention, cache).repeat_interleave(group_size, 0)
    cache.batch_repeat_interleave(group_size)
    attention = attention.repeat_interleave(group_size, 0)

    rows = len(raw)
    tokens = torch.full((rows, max_new_tokens), lm.pad, device=device)
    mask = torch.zeros((rows, max_new_tokens), dtype=torch.bool, device=device)
    logp = torch.zeros((rows, max_new_tokens), dtype=torch.promote_types(raw.dtype, torch.float32), device=device)
    finished = torch.zeros(rows, dtype=torch.bool, device=device)
    ends = torch.tensor(lm.ends, device=device)
    alive = torch.arange(rows, device=device)
    for t in range(max_new_tokens):
        logprobs = torch.log_softmax(policy_logits(raw, temperature, activate), -1)
        if logprobs.isnan().any():
            raise FloatingPointError(f"NaN in the logits of response token {t}")
        token = torch.multinomial(logprobs.exp(), 1, generator=generator)
        running = ~finished[alive]
        now = alive[running]
        tokens[now, t] = token[running, 0]
        mask[now, t] = True
        logp[now, t] = logprobs.gather(-1, token)[running, 0].to(logp.dtype)
        finished[now] = torch.isin(token[running, 0], ends)
        running = ~finished[alive]
        count = int(running.sum())
        if count == 0 or t + 1 == max_new_tokens:
            break
        attention = torch.cat([attention, torch.ones_like(attention[:, :1])], -1)
        if 2 * count <= len(alive):
            keep = running.nonzero().squeeze(-1)
            cache.batch_select_indices(keep)
            alive, attention, token = alive[keep], attention[keep], token[keep]
        raw = _read(lm, token, attention, cache)
    return Responses(
        prompt.repeat_interleave(group_size, 0), length.repeat_interleave(group_size), tokens, mask, logp, finished
    )


def _read(lm: LanguageModel, tokens: Tensor, attention: Tensor, cache: DynamicCache) -> Tensor:
    """Raw logits after the last of `tokens` [rows, n]; `attention` covers the cache and them."""
    position = (attention.long().cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    return lm.model(
        input_ids=tokens,
        attention_mask=attention.long(),
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]


def forward(
    lm: LanguageModel,
    responses: Responses,
    temperature: float,
    activate: Activation = identity,
    logit_scale: Tensor | None = None,
) -> TokenStatistics:
    """Log-probability and exact entropy of every response token, with gradient where grad is enabled.

    The vocabulary is unrolled at valid response tokens only.

    Args:
      temperature: that of the rollout, so that logp equals what sampling used.
      logit_scale: [rows, tokens] or None for 1.
    """
    rows, steps = responses.mask.nonzero(as_tuple=True)
    sequence = _left_aligned(responses)
    hidden = lm.model.get_decoder()(input_ids=sequence, use_cache=False).last_hidden_state
    hidden = hidden[rows, responses.prompt_length[rows] - 1 + steps]
    scale = None if logit_scale is None else logit_scale[rows, steps]
    logits = policy_logits(lm.model.get_output_embeddings()(hidden), temperature, activate, scale)
    logp, entropy = token_statistics(logits, responses.tokens[rows, steps])
    empty = torch.zeros(responses.mask.shape, dtype=logits.dtype, device=logits.device)
    return TokenStatistics(empty.index_put((rows, steps), logp), empty.index_put((rows, steps), entropy), logits)


def _left_aligned(responses: Responses) -> Tensor:
    """Prompt and response of each row from index 0 on, [rows, longest]; to the right anything may stand."""
    both = torch.cat([responses.prompt, responses.tokens], -1)
    start = responses.prompt.shape[1] - responses.prompt_length
    end = responses.prompt_length + responses.mask.sum(-1)
    index = torch.arange(int(end.max()), device=both.device) + start.unsqueeze(-1)
    return both.gather(-1, index.clamp(max=both.shape[1] - 1))
