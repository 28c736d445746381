"""The decoder of the sampler `cached` with compiled blocks: all responses of a rollout in one call."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from entropy_theory.compiled.tile import padded
from llm.compiled.blocks import Block, Texts
from llm.compiled.crew import runs, side_by_side, threads
from llm.compiled.decoding import Ending, read_one, write
from llm.compiled.products import panels
from llm.compiled.training import array, forward_block, shape_of
from llm.forward import Activation, identity
from llm.models import LanguageModel
from llm.samplers.decoder import Decoder, Layer, read_weights
from llm.samplers.draft import Draft

ENOUGH = 4 * 10**7
"""Operations for which another thread is worth waking."""


class CompiledWeights(NamedTuple):
    """Those of a `Weights` that torch's part reads, under the same names, and the blocks' as compiled code wants
    them: one more axis in front, the blocks."""

    embedding: Tensor
    norm: Tensor
    head: Tensor
    head_bias: Tensor | None
    blocks: Block
    head_panels: np.ndarray


class CompiledCache(NamedTuple):
    """keys [blocks, rows, key heads, w, columns], whole vectors of them, and values [blocks, rows, key heads, columns,
    w]."""

    keys: Tensor
    values: Tensor

    def rows(self, index: Tensor) -> CompiledCache:
        """The cache of the rows `index`."""
        return CompiledCache(self.keys[:, index], self.values[:, index])


class CompiledDecoder(Decoder):
    """`Decoder` whose blocks are compiled."""

    def __init__(self, lm: LanguageModel):
        """Raises: ValueError as `Decoder` does."""
        super().__init__(lm)
        decoder = lm.model.get_decoder()
        self.shape = shape_of(decoder.layers[0].self_attn)

    def weights(self) -> CompiledWeights:
        """See `Decoder`."""
        plain = read_weights(self.lm)
        blocks = Block(*map(np.stack, zip(*(_block(layer, self.heads) for layer in plain.layers), strict=True)))
        head = panels([array(plain.head)], True)
        return CompiledWeights(plain.embedding, plain.norm, plain.head, plain.head_bias, blocks, head)

    def empty_cache(self, weights: CompiledWeights, rows: int, width: int) -> CompiledCache:
        """See `Decoder`. Columns that a row does not see are 0, not anything: they count with weight 0."""
        like, shape = weights.norm, (len(weights.blocks.norm), rows, self.key_heads)
        keys = like.new_zeros(*shape, self.head_width, padded(width, like.element_size()))
        return CompiledCache(keys, like.new_zeros(*shape, width, self.head_width))

    def read_prompts(
        self, weights: CompiledWeights, prompt: Tensor, length: Tensor, group_size: int, angles: tuple[Tensor, Tensor]
    ) -> tuple[CompiledCache, Tensor]:
        """See `Decoder`."""
        width = prompt.shape[1]
        position = torch.arange(width) - (width - length).unsqueeze(-1)
        there = position >= 0
        starts = np.concatenate([[0], np.cumsum(array(length))])
        x = array(embedding(prompt[there], weights.embedding))
        at = tuple(array(angle.squeeze(1)[position[there]]) for angle in angles)
        cache = self.empty_cache(weights, len(prompt) * group_size, len(angles[0]))
        for number in range(len(weights.blocks.norm)):
            block = Block(*(part[number] for part in weights.blocks))
            kept, turned, x = forward_block(block, self.shape, Texts(starts, starts[:0]), at, x)
            self._fill(cache, number, kept.qkv, turned, starts, group_size, width)
        return cache, torch.from_numpy(x[starts[1:] - 1].repeat(group_size, 0))

    def _fill(self, cache: CompiledCache, number: int, qkv, turned, starts, group_size: int, width: int) -> None:
        """Put keys and values of prompts into the cache of block `number`, at the right edge of `width` columns."""
        keys, values = cache.keys[number].numpy(), cache.values[number].numpy()
        new_keys = turned.reshape(len(turned), -1, self.head_width)[:, self.heads :]
        new_values = qkv.reshape(len(qkv), -1, self.head_width)[:, self.heads + self.key_heads :]
        for i, (first, end) in enumerate(pairwise(starts)):
            rows, columns = slice(i * group_size, (i + 1) * group_size), slice(width - (end - first), width)
            keys[rows, :, :, columns] = new_keys[first:end].transpose(1, 2, 0)
            values[rows, :, columns] = new_values[first:end].transpose(1, 0, 2)

    def read(
        self,
        weights: CompiledWeights,
        tokens: Tensor,
        angles: tuple[Tensor, Tensor],
        cache: CompiledCache,
        start: int = 0,
        first: Tensor | None = None,
    ) -> Tensor:
        """See `Decoder`; one token of each row."""
        x = array(embedding(tokens.flatten(), weights.embedding))
        at = tuple(array(angle.squeeze(1)) for angle in angles)
        first = np.zeros(len(x), np.int64) if first is None else array(first)
        read_one(weights.blocks, self.shape, np.arange(len(x)), at, *map(array, cache), first, start, x)
        return torch.from_numpy(x)

    def write(
        self,
        weights: CompiledWeights,
        draft: Draft,
        angles: tuple[Tensor, Tensor],
        cache: CompiledCache,
        hidden: Tensor,
        temperature: float,
        uniforms: Tensor,
        activate: Activation,
    ) -> None:
        """See `Decoder`: in one call, unless a control changes the logits, which torch computes."""
        if activate is not identity:
            return super().write(weights, draft, angles, cache, hidden, temperature, uniforms, activate)
        x, norm, (rows, steps) = array(hidden), array(weights.norm), draft.tokens.shape
        length, width = array(draft.length.repeat_interleave(draft.group_size)), draft.prompt.shape[1]
        ending = Ending(
            norm,
            self.shape.eps,
            weights.head_panels,
            norm[:0] if weights.head_bias is None else array(weights.head_bias),
            len(weights.head),
            x.dtype.type(temperature),
            np.array(self.lm.ends, np.int64),
        )
        read = array(weights.embedding), tuple(array(angle.squeeze(1)) for angle in angles), *map(array, cache)
        numbers = array(uniforms)
        out = np.empty((rows, steps), np.int64), np.empty((rows, steps), x.dtype), np.empty(rows, np.int64)

        def run(part: tuple[int, int]) -> None:
            write(weights.blocks, self.shape, ending, *read, width - length, length, width, part, x, numbers, out)

        operations = 2 * rows * steps * (sum(part.size for part in weights.blocks) + weights.head_panels.size)
        side_by_side(run, runs([1] * rows, min(threads(), operations // ENOUGH)))
        draft.fill(*map(torch.from_numpy, out))


def _block(layer: Layer, heads: int) -> Block:
    """A layer's weights, matrices in panels."""
    nothing = array(layer.norm)[:0]
    norms = (nothing, nothing) if layer.head_norm is None else map(array, layer.head_norm[[0, heads]])
    return Block(
        array(layer.norm),
        panels([array(layer.qkv)], True),
        nothing if layer.qkv_bias is None else array(layer.qkv_bias),
        *norms,
        panels([array(layer.out)], True),
        nothing if layer.out_bias is None else array(layer.out_bias),
        array(layer.mlp_norm),
        panels([array(layer.gate_up)], True),
        panels([array(layer.down)], True),
    )
