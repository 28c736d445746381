"""Responses while they are being written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llm.models import LanguageModel
from llm.responses import Responses


class Draft:
    """Responses to `prompts`, `group_size` each, written token by token; `alive` are the rows still in the batch.

    prompt: [prompts, longest] int64, padded on the left
    length: [prompts] int64
    alive:  [rows in the batch] int64; rows that have ended may still be among them
    done:   whether every response has ended or is full
    """

    def __init__(
        self,
        lm: LanguageModel,
        prompts: Sequence[Sequence[int]],
        group_size: int,
        max_new_tokens: int,
        shrinks: bool = True,
    ):
        """`shrinks`: whether rows that have ended leave the batch once half of it has."""
        device, pad = lm.model.device, lm.pad
        width, rows = max(map(len, prompts)), len(prompts) * group_size
        self.group_size, self.shrinks = group_size, shrinks
        self.prompt = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
        self.length = torch.tensor([len(p) for p in prompts], device=device)
        self.tokens = torch.full((rows, max_new_tokens), pad, device=device)
        self.mask = torch.zeros((rows, max_new_tokens), dtype=torch.bool, device=device)
        self.logp: Tensor | None = None
        self.alive = torch.arange(rows, device=device)
        self._running = torch.ones(rows, dtype=torch.bool, device=device)  # of the rows in the batch
        self._pad = lm.pad
        self.done = False
        self._ends = torch.tensor(lm.ends, device=device)

    def write(self, t: int, token: Tensor, logp: Tensor) -> Tensor | None:
        """Token t of every row in the batch; those that have ended keep what they have.

        Args: token, logp: [rows in the batch].
        Returns: which rows of the batch stay in it, [rows left] int64, or None if all do.
        Raises: FloatingPointError if a log-probability is NaN.
        """
        if self.logp is None:
            self.logp = torch.zeros(self.tokens.shape, dtype=logp.dtype, device=logp.device)
        running = self._running
        place = slice(None) if len(self.alive) == len(self.tokens) else self.alive
        self.tokens[place, t] = torch.where(running, token, self._pad)
        self.mask[place, t] = running
        self.logp[place, t] = torch.where(running, logp, 0.0)
        self._running = running & (token.unsqueeze(-1) != self._ends).all(-1)
        count, broken = torch.stack([self._running.sum(), logp.isnan().sum()]).tolist()
        if broken:
            raise FloatingPointError(f"NaN in the logits of response token {t}")
        self.done = count == 0 or t + 1 == self.tokens.shape[1]
        if self.done or not self.shrinks or 2 * count > len(self.alive):
            return None
        keep = self._running.nonzero().squeeze(-1)
        self.alive, self._running = self.alive[keep], self._running[keep]
        return keep

    def fill(self, tokens: Tensor, logp: Tensor, count: Tensor) -> None:
        """All responses at once; tokens, logp: [rows, max_new_tokens], of which the first `count` [rows] are there.

        Raises: FloatingPointError if a log-probability is NaN.
        """
        self.mask = torch.arange(tokens.shape[1], device=count.device) < count.unsqueeze(-1)
        self.tokens, self.logp = tokens.where(self.mask, self._pad), logp.where(self.mask, 0.0)
        if (broken := self.logp.isnan().any(0)).any():
            raise FloatingPointError(f"NaN in the logits of response token {int(broken.int().argmax())}")

    def responses(self) -> Responses:
        """What has been written."""
        prompt, length = (x.repeat_interleave(self.group_size, 0) for x in (self.prompt, self.length))
        finished = (torch.isin(self.tokens, self._ends) & self.mask).any(-1)
        return Responses(prompt, length, self.tokens, self.mask, self.logp, finished)
