"""A Qwen2 or Qwen3 decoder for sampling: the fewest operations per token, weights copied from the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention

from llm.forward import Activation
from llm.models import LanguageModel
from llm.onednn import linear
from llm.products import LOW, head_product
from llm.samplers.choice import choose
from llm.samplers.draft import Draft
from llm.token_stats import policy_logits

FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angle at a position does not depend on the length of the text."""


class Layer(NamedTuple):
    """Weights of one block. Queries, keys and values are one product, gate and up another."""

    norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    head_norm: Tensor | None
    """[query heads + key heads, head width]; Qwen3's."""
    out: Tensor
    out_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


class Weights(NamedTuple):
    """Weights of a model as the decoder reads them."""

    embedding: Tensor
    layers: tuple[Layer, ...]
    norm: Tensor
    head: Tensor
    head_bias: Tensor | None


class Cache(NamedTuple):
    """Keys and values of what has been read, one tensor [rows, key heads, width, head width] per layer each.

    The width is allocated once; how much of it is filled, the reader knows.
    """

    keys: list[Tensor]
    values: list[Tensor]

    def rows(self, index: Tensor) -> Cache:
        """The cache of the rows `index`."""
        return Cache([k[index] for k in self.keys], [v[index] for v in self.values])


def require_supported(lm: LanguageModel) -> None:
    """Raises ValueError, in one sentence, for a model whose attention the decoder does not know."""
    config = lm.model.config
    reason = None
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        reason = "has sliding windows"
    elif (config.rope_parameters or {}).get("rope_type", "default") not in FIXED_ROTATIONS:
        reason = f"has rotary embeddings of type {config.rope_parameters['rope_type']!r}"
    elif config.model_type not in ("qwen2", "qwen3"):
        reason = f"is of type {config.model_type!r}"
    if reason:
        raise ValueError(f"this model {reason}, which the sampler 'cached' does not know; use --sampler transformers")


def whole_weight(module: nn.Module) -> Tensor:
    """Weight [outputs, inputs] of a linear layer: of all its shards, and with its low-rank adapters added."""
    base = getattr(module, "base_layer", module)
    weight = gathered(base.weight)
    if base is module or getattr(module, "merged", False) or getattr(module, "disable_adapters", False):
        return weight
    return sum((module.get_delta_weight(name).to(weight.dtype) for name in module.active_adapters), weight)


def gathered(parameter: Tensor) -> Tensor:
    """A parameter without its graph; where it is cut up between processes, all of it."""
    parameter = parameter.detach()
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def _bias(*modules: nn.Module) -> Tensor | None:
    biases = [getattr(module, "base_layer", module).bias for module in modules]
    return None if biases[0] is None else torch.cat([gathered(bias) for bias in biases])


def read_weights(lm: LanguageModel) -> Weights:
    """The weights of the model as they are now. Embedding, norms and single products are shared with it, others are
    copies."""
    decoder, head = lm.model.get_decoder(), lm.model.get_output_embeddings()
    dtype = getattr(decoder, "product_dtype", None)
    return Weights(
        gathered(lm.model.get_input_embeddings().weight),
        tuple(_read_layer(layer, dtype) for layer in decoder.layers),
        gathered(decoder.norm.weight),
        whole_weight(head),
        _bias(head),
    )


def _read_layer(layer: nn.Module, dtype: torch.dtype | None) -> Layer:
    """`dtype`: of the weights of products, None for their own."""
    attention, mlp = layer.self_attn, layer.mlp
    inputs = (attention.q_proj, attention.k_proj, attention.v_proj)
    qkv = [whole_weight(module) for module in inputs]
    heads = [weight.shape[0] // attention.head_dim for weight in qkv]
    head_norm = None
    if hasattr(attention, "q_norm"):
        norms = gathered(attention.q_norm.weight), gathered(attention.k_norm.weight)
        head_norm = torch.cat([w.expand(n, -1) for w, n in zip(norms, heads, strict=False)])
    return Layer(
        norm=gathered(layer.input_layernorm.weight),
        qkv=torch.cat(qkv).to(dtype or qkv[0].dtype),
        qkv_bias=_bias(*inputs),
        head_norm=head_norm,
        out=whole_weight(attention.o_proj).to(dtype or qkv[0].dtype),
        out_bias=_bias(attention.o_proj),
        mlp_norm=gathered(layer.post_attention_layernorm.weight),
        gate_up=torch.cat([whole_weight(mlp.gate_proj), whole_weight(mlp.up_proj)]).to(dtype or qkv[0].dtype),
        down=whole_weight(mlp.down_proj).to(dtype or qkv[0].dtype),
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight x / sqrt(mean x^2 + eps) over the last axis; in float32 whatever the type of x, as transformers does."""
    wide = x.float()
    scaled = wide * wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return scaled.to(x.dtype).mul_(weight)


class Decoder:
    """What stays the same of a model while its weights move: sizes, activation, rotary embedding."""

    def __init__(self, lm: LanguageModel):
        """Raises: ValueError as `require_supported` does."""
        require_supported(lm)
        self.lm = lm
        decoder, config = lm.model.get_decoder(), lm.model.config
        attention = decoder.layers[0].self_attn
        self.eps: float = config.rms_norm_eps
        self.head_width: int = attention.head_dim
        self.heads: int = config.num_attention_heads
        self.key_heads: int = config.num_key_value_heads
        self.scale: float = attention.scaling
        self.act: Callable[[Tensor], Tensor] = decoder.layers[0].mlp.act_fn
        self.rotary: nn.Module = decoder.rotary_emb
        self.product_dtype: torch.dtype | None = getattr(decoder, "product_dtype", None)

    def empty_cache(self, weights: Weights, rows: int, width: int) -> Cache:
        """Room for `width` tokens of `rows` rows."""
        like = weights.norm
        shape = (len(weights.layers), rows, self.key_heads, width, self.head_width)
        return Cache(list(like.new_empty(shape)), list(like.new_empty(shape)))

    def weights(self) -> Weights:
        """The model's weights as they are now."""
        return read_weights(self.lm)

    def angles(self, weights: Weights, width: int) -> tuple[Tensor, Tensor]:
        """cos and sin of the rotary embedding at positions 0 .. width - 1, [width, 1, head width] each.

        The first half of sin has its sign turned: a coordinate is x1 cos - x2 sin, x2 cos + x1 sin.
        """
        positions = torch.arange(width, device=weights.norm.device)
        cos, sin = self.rotary(weights.norm, positions.unsqueeze(0))
        first, second = sin[0].unsqueeze(-2).chunk(2, -1)
        return cos[0].unsqueeze(-2), torch.cat((-first, second), -1)

    def read_prompts(
        self, weights: Weights, prompt: Tensor, length: Tensor, group_size: int, angles: tuple[Tensor, Tensor]
    ) -> tuple[Cache, Tensor]:
        """Cache of every row with its prompt read, and the last hidden states after it, [rows, d].

        Args:
          prompt: [prompts, longest], padded on the left, as they stand in the cache; length: [prompts].
          angles: as the method `angles` has them, of as many positions as the cache has columns.
        """
        count, width = prompt.shape
        # read from the left edge on: then every token sees itself at least, and no hidden state is NaN
        shift = (width - length).unsqueeze(-1)
        column = torch.arange(width, device=length.device)
        tokens = prompt.gather(-1, (column + shift).clamp(max=width - 1))
        few = self.empty_cache(weights, count, width)
        at = tuple(a[:width].repeat(count, 1, 1) for a in angles)
        hidden = self.read(weights, tokens, at, few).unflatten(0, tokens.shape)
        row = torch.arange(count, device=length.device)
        back = (column - shift).clamp(min=0)
        whole = self.empty_cache(weights, count * group_size, len(angles[0]))
        for one, many in zip((*few.keys, *few.values), (*whole.keys, *whole.values), strict=True):
            right = one.transpose(1, 2)[row.unsqueeze(-1), back].transpose(1, 2)
            many[:, :, :width] = right.repeat_interleave(group_size, 0)
        return whole, hidden[row, length - 1].repeat_interleave(group_size, 0)

    def write(
        self,
        weights: Weights,
        draft: Draft,
        angles: tuple[Tensor, Tensor],
        cache: Cache,
        hidden: Tensor,
        temperature: float,
        uniforms: Tensor,
        activate: Activation,
    ) -> None:
        """Write a draft's responses, after prompts as `read_prompts` has read them.

        Args: temperature, uniforms, activate: see `Sampler.sample`.
        """
        cos, sin = angles
        width = draft.prompt.shape[1]
        length = draft.length.repeat_interleave(draft.group_size)
        first = width - length if bool((draft.length < width).any()) else None
        for t in range(draft.tokens.shape[1]):
            token, logp = self.choose(weights, hidden, temperature, activate, uniforms[draft.alive, t])
            keep = draft.write(t, token, logp)
            if draft.done:
                break
            if keep is not None:
                cache, length, token = cache.rows(keep), length[keep], token[keep]
                first = None if first is None else first[keep]
            at = cos[length + t], sin[length + t]
            hidden = self.read(weights, token.unsqueeze(-1), at, cache, width + t, first)

    def read(
        self,
        weights: Weights,
        tokens: Tensor,
        angles: tuple[Tensor, Tensor],
        cache: Cache,
        start: int = 0,
        first: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states of tokens [rows, n], which go into the cache from column `start` on.

        With n = 1 a token sees the columns up to its own; with n > 1 those of `tokens` up to it, and nothing is in the
        cache before them.

        Args:
          angles: cos and sin at the tokens' positions, [rows n, 1, head width].
          first: with n = 1 the first column that each row sees, [rows] int64; None for 0.
        Returns: [rows n, width].
        """
        mask = None
        if first is not None:
            unseen = torch.arange(start + 1, device=first.device) < first.unsqueeze(-1)
            mask = torch.zeros(unseen.shape, dtype=weights.norm.dtype, device=first.device)
            mask = mask.masked_fill_(unseen, -torch.inf).repeat_interleave(self.key_heads, 0).unsqueeze(1)
        if self.product_dtype is None:
            return self._read(weights, tokens, angles, cache, start, mask)
        with torch.autocast(tokens.device.type, self.product_dtype):
            return self._read(weights, tokens, angles, cache, start, mask)

    def _read(self, weights: Weights, tokens: Tensor, angles, cache: Cache, start: int, mask: Tensor | None) -> Tensor:
        x = embedding(tokens.flatten(), weights.embedding)
        for layer, keys, values in zip(weights.layers, cache.keys, cache.values, strict=True):
            h = linear(rms_norm(x, layer.norm, self.eps), layer.qkv, layer.qkv_bias).view(len(x), -1, self.head_width)
            qk, value = h[:, : self.heads + self.key_heads], h[:, self.heads + self.key_heads :]
            if layer.head_norm is not None:
                qk = rms_norm(qk, layer.head_norm, self.eps)
            qk = rotate(qk, *angles)
            query, key = qk[:, : self.heads], qk[:, self.heads :]
            if tokens.shape[1] > 1:
                seen = self._read_many(tokens.shape, query, key, value, keys, values)
            else:
                keys[:, :, start], values[:, :, start] = key, value
                seen = self._read_one(query, keys[:, :, : start + 1], values[:, :, : start + 1], mask)
            x = x + linear(seen.reshape(len(x), -1), layer.out, layer.out_bias)
            gate, up = linear(rms_norm(x, layer.mlp_norm, self.eps), layer.gate_up).chunk(2, -1)
            x = x + linear(self.act(gate).mul_(up), layer.down)
        return x

    def logits(self, weights: Weights, hidden: Tensor) -> Tensor:
        """Raw logits of last hidden states."""
        hidden = rms_norm(hidden, weights.norm, self.eps)
        if weights.head.dtype in LOW:  # as training reads them: added up and kept in float32
            return head_product(hidden, weights.head, weights.head_bias)
        return linear(hidden, weights.head, weights.head_bias)

    def choose(
        self, weights: Weights, hidden: Tensor, temperature: float, activate: Activation, uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens and their log-probabilities from last hidden states [rows, width]; see `samplers.choice.choose`."""
        return choose(policy_logits(self.logits(weights, hidden), temperature, activate), uniforms)

    def _read_many(
        self, shape: torch.Size, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """What tokens see of each other, and their keys and values put at the start of the cache."""
        query, key, value = (a.unflatten(0, shape).transpose(1, 2) for a in (query, key, value))
        keys[:, :, : shape[1]], values[:, :, : shape[1]] = key, value
        grouped = self.heads != self.key_heads
        seen = scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scale, enable_gqa=grouped)
        return seen.transpose(1, 2)

    def _read_one(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """What one token of each row sees of the columns [rows, key heads, columns, head width].

        Queries that share a key stand where several tokens would, so that no key is repeated.
        """
        rows = len(query)
        wide = query.dtype in (torch.float32, torch.float64) and self.product_dtype is None
        if query.device.type != "cpu" or not wide:
            query = query.reshape(rows, self.key_heads, -1, self.head_width)
            mask = None if mask is None else mask.unflatten(0, (rows, self.key_heads))
            return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=self.scale)
        # on a CPU, for a few queries per key head, two batched products take half the time of the fused kernel
        query = query.reshape(rows * self.key_heads, -1, self.head_width) * self.scale
        keys, values = keys.flatten(0, 1).transpose(1, 2), values.flatten(0, 1)
        score = torch.bmm(query, keys) if mask is None else torch.baddbmm(mask, query, keys)
        return torch.bmm(torch.softmax(score, -1), values)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: the halves of the last axis are the two coordinates that are turned; see `Decoder.angles`."""
    half = x.shape[-1] // 2
    return torch.addcmul(x * cos, x.roll(half, -1), sin)
