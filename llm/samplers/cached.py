"""Sampling with a minimal decoder and a key-value cache of fixed size: the fastest way for small models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llm.forward import Activation, identity
from llm.models import LanguageModel
from llm.responses import Responses
from llm.samplers.decoder import Decoder, Weights
from llm.samplers.draft import Draft


def make_decoder(lm: LanguageModel) -> Decoder:
    """The compiled decoder of a model whose blocks are compiled, torch's of any other. Errors as `Decoder`."""
    decoder = lm.model.get_decoder()
    if getattr(decoder, "compiled", False) and getattr(decoder, "product_dtype", None) is None:
        from llm.compiled.sampling import CompiledDecoder

        return CompiledDecoder(lm)
    return Decoder(lm)


class CachedSampler:
    """The sampler `cached`.

    Each prompt is read once and its cache shared out to its group. Rows that have ended leave the batch as soon
    as half of it has ended, so that long responses do not pay for short ones. Products that read the same input are
    fused, so that most weights exist twice; they are read again when those of the model have changed.
    """

    def __init__(self, lm: LanguageModel):
        """Raises: ValueError for a model with sliding windows or rotary embeddings that the decoder does not know."""
        self.lm = lm
        self.decoder = make_decoder(lm)
        self._weights: Weights | None = None
        self._versions: list[int] = []

    def sync(self) -> None:
        """Read the weights of the model again."""
        self._weights, self._versions = self.decoder.weights(), self._now()

    def _now(self) -> list[int]:
        """How often each parameter has been written to."""
        return [parameter._version for parameter in self.lm.model.parameters()]

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        group_size: int,
        max_new_tokens: int,
        temperature: float,
        uniforms: Tensor,
        activate: Activation = identity,
    ) -> Responses:
        """See `Sampler`."""
        if self._weights is None or self._versions != self._now():
            self.sync()
        weights, decoder = self._weights, self.decoder
        draft = Draft(self.lm, prompts, group_size, max_new_tokens)
        width = draft.prompt.shape[1]
        cos, sin = decoder.angles(weights, width + max_new_tokens)
        cache, hidden = decoder.read_prompts(weights, draft.prompt, draft.length, group_size, (cos, sin))

        decoder.write(weights, draft, (cos, sin), cache, hidden, temperature, uniforms, activate)
        return draft.responses()


def sample(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    uniforms: Tensor,
    activate: Activation = identity,
) -> Responses:
    """Responses as `Sampler.sample` describes them, with the weights as they are now."""
    return CachedSampler(lm).sample(prompts, group_size, max_new_tokens, temperature, uniforms, activate)
