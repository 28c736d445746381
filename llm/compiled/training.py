"""Compiled blocks in the place of transformers' own, for the packed forward pass of training."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from entropy_theory.compiled import announce
from entropy_theory.compiled.tile import lanes
from llm.compiled.blocks import Block, Kept, Shape, Share, Texts, backward, forward
from llm.compiled.crew import runs, side_by_side, threads
from llm.compiled.products import panels

DTYPE = torch.float32
"""Of the models that compiled code takes over: what transformers calls float64 has norms in float32."""


class Parameters(NamedTuple):
    """A block's parameters, or their gradients; None for those it does not have."""

    norm: Tensor
    mlp_norm: Tensor
    query_norm: Tensor | None
    key_norm: Tensor | None
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    query_bias: Tensor | None
    key_bias: Tensor | None
    value_bias: Tensor | None
    out_bias: Tensor | None


def equip(decoder: nn.Module) -> bool:
    """Let the blocks of a decoder compute packed texts by compiled code, in place, where all of them are known."""
    if not all(map(knows, decoder.layers)):
        return False
    announce((forward, backward), "the blocks of the model")
    decoder.compiled = True
    for layer in decoder.layers:
        layer.__class__ = _compiled(type(layer))
    return True


def knows(layer: nn.Module) -> bool:
    """Whether a block is of `DTYPE` on a CPU, its widths are whole vectors and its activation is silu."""
    attention, mlp = layer.self_attn, layer.mlp
    weight = attention.q_proj.weight
    widths = (
        attention.head_dim,
        *(width for module in (attention.q_proj, attention.o_proj, mlp.gate_proj) for width in module.weight.shape),
    )
    whole = all(width % lanes(weight.element_size()) == 0 for width in widths)
    plain = weight.dtype == DTYPE and weight.device.type == "cpu"
    silu = isinstance(mlp.act_fn, nn.SiLU) or type(mlp.act_fn).__name__ == "SiLUActivation"
    return plain and whole and silu and attention.sliding_window is None


@lru_cache
def _compiled(kind: type) -> type:
    """`CompiledLayer` mixed into a class, under the name by which accelerate finds blocks."""
    return type(kind.__name__, (CompiledLayer, kind), {"__module__": kind.__module__})


class CompiledLayer:
    """A block of transformers' which computes packed texts itself; mixed into the block's own class."""

    def forward(self, hidden_states: Tensor, *args, layout=None, position_embeddings=None, **kwargs) -> Tensor:
        """As the block's own; compiled where a `llm.packing.Layout` is given."""
        if layout is None:
            return super().forward(hidden_states, *args, position_embeddings=position_embeddings, **kwargs)
        if not _follows(self, hidden_states):
            kwargs["layout"] = layout
            return super().forward(hidden_states, *args, position_embeddings=position_embeddings, **kwargs)
        angles = [angle.squeeze(0) for angle in position_embeddings]
        shape = shape_of(self.self_attn)
        # squeezed, not indexed, whose backward pass would fill zeros on threads of torch
        return _Layer.apply(hidden_states.squeeze(0), angles, layout, shape, *_parameters(self)).unsqueeze(0)


def _products(layer: nn.Module) -> tuple[nn.Module, ...]:
    attention, mlp = layer.self_attn, layer.mlp
    inputs = attention.q_proj, attention.k_proj, attention.v_proj
    return (*inputs, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)


def _follows(layer: nn.Module, x: Tensor) -> bool:
    """Whether this pass is one in `DTYPE`, of linear layers as they are, that torch has only to follow."""
    return (
        x.dtype == DTYPE
        and len(x) == 1
        and not (layer.training and layer.self_attn.attention_dropout)
        and all(isinstance(module, nn.Linear) and type(module.weight) is nn.Parameter for module in _products(layer))
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and not torch.compiler.is_compiling()
    )


def _parameters(layer: nn.Module) -> Parameters:
    attention, products = layer.self_attn, _products(layer)
    norms = (getattr(attention, name).weight if hasattr(attention, name) else None for name in ("q_norm", "k_norm"))
    return Parameters(
        layer.input_layernorm.weight,
        layer.post_attention_layernorm.weight,
        *norms,
        *(module.weight for module in products),
        *(module.bias for module in products[:4]),
    )


def shape_of(attention: nn.Module) -> Shape:
    """The `Shape` of a block."""
    config, width, number = attention.config, attention.head_dim, array(attention.q_proj.weight).dtype.type
    heads = config.num_attention_heads, config.num_key_value_heads
    return Shape(*heads, width, number(config.rms_norm_eps), number(attention.scaling), number(1))


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, angles, layout, shape, *weights):
        texts = Texts(array(layout.starts), array(layout.group))
        block, angles = make_block(Parameters(*weights), turned=True), tuple(map(array, angles))
        kept, _, y = forward_block(block, shape, texts, angles, array(x))
        ctx.save_for_backward(x, *weights)
        ctx.rest = shape, texts, angles, kept[1:]
        return torch.from_numpy(y)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y):
        x, *weights = ctx.saved_tensors
        shape, texts, angles, kept = ctx.rest
        kept, weights, d_y = Kept(array(x), *kept), Parameters(*weights), array(d_y)
        block = make_block(weights, turned=False)
        d_x, d_qkv, d_seen = map(np.empty_like, (kept.x, kept.qkv, kept.seen))
        turned, d_turned = np.empty((2, len(d_x), (shape.heads + shape.key_heads) * shape.width), d_x.dtype)
        shares = shared_out(texts, threads())
        parts = [no_gradients(weights) for _ in shares]

        def run(i: int) -> None:
            backward(block, shape, texts, shares[i], angles, kept, d_y, turned, d_turned, d_seen, d_qkv, d_x, parts[i])

        side_by_side(run, range(len(shares)))
        gradients = Block(*(sum(part[1:], start=part[0]) for part in zip(*parts, strict=True)))
        return torch.from_numpy(d_x), None, None, None, *split(gradients, weights)


def array(tensor: Tensor) -> np.ndarray:
    """Its memory, or a copy in C order."""
    return tensor.detach().contiguous().numpy()


def _joined(like: Tensor, *parts: Tensor | None) -> np.ndarray:
    """The parts one behind the other; empty where there is none."""
    there = [array(part) for part in parts if part is not None]
    return np.concatenate(there) if there else array(like)[:0]


def make_block(weights: Parameters, turned: bool) -> Block:
    """The compiled form of a block's weights: `turned` for the forward pass."""
    norm, biases = weights.norm, weights[-4:]
    inputs, gates = (weights.query, weights.key, weights.value), (weights.gate, weights.up)
    return Block(
        norm=array(norm),
        qkv=panels([*map(array, inputs)], turned),
        qkv_bias=_joined(norm, *biases[:3]),
        query_norm=_joined(norm, weights.query_norm),
        key_norm=_joined(norm, weights.key_norm),
        out=panels([array(weights.out)], turned),
        out_bias=_joined(norm, biases[3]),
        mlp_norm=array(weights.mlp_norm),
        gate_up=panels([*map(array, gates)], turned),
        down=panels([array(weights.down)], turned),
    )


def no_gradients(weights: Parameters) -> Block:
    """Zeros of the shapes that gradients have."""

    def zeros(*parts: Tensor | None) -> np.ndarray:
        there = [part for part in parts if part is not None]
        rows = sum(map(len, there))
        return np.zeros((rows, *(there[0].shape[1:] if there else ())), array(weights.norm).dtype)

    return Block(
        norm=zeros(weights.norm),
        qkv=zeros(weights.query, weights.key, weights.value),
        qkv_bias=zeros(*weights[-4:-1]),
        query_norm=zeros(weights.query_norm),
        key_norm=zeros(weights.key_norm),
        out=zeros(weights.out),
        out_bias=zeros(weights.out_bias),
        mlp_norm=zeros(weights.mlp_norm),
        gate_up=zeros(weights.gate, weights.up),
        down=zeros(weights.down),
    )


def split(gradients: Block, weights: Parameters) -> Parameters:
    """Gradients of the single parameters."""
    found = Block(*map(torch.from_numpy, gradients))
    rows = [len(weights.query), len(weights.key), len(weights.value)]
    query, key, value = found.qkv.split(rows)
    gate, up = found.gate_up.chunk(2)
    biases = (None,) * 3 if weights.query_bias is None else found.qkv_bias.split(rows)
    every = Parameters(
        *(found.norm, found.mlp_norm, found.query_norm, found.key_norm),
        *(query, key, value, found.out, gate, up, found.down),
        *biases,
        found.out_bias,
    )
    return Parameters(*(None if own is None else part for own, part in zip(weights, every, strict=True)))


def forward_block(
    block: Block, shape: Shape, texts: Texts, angles: tuple[np.ndarray, np.ndarray], x: np.ndarray
) -> tuple[Kept, np.ndarray, np.ndarray]:
    """What the backward pass needs, the turned queries and keys, and y; see `blocks.forward`."""
    tokens, d = x.shape
    heads, every = shape.heads * shape.width, (shape.heads + shape.key_heads) * shape.width
    widths = every + shape.key_heads * shape.width, heads, d, block.gate_up.size // d
    kept = Kept(x, *(np.empty((tokens, width), x.dtype) for width in widths))
    turned, y = np.empty((tokens, every), x.dtype), np.empty_like(x)
    shares = shared_out(texts, threads())
    side_by_side(lambda share: forward(block, shape, texts, share, angles, kept, turned, y), shares)
    return kept, turned, y


def shared_out(texts: Texts, count: int) -> list[Share]:
    """Groups shared out over `count` threads by their number of tokens."""
    lengths, prompts = np.diff(texts.starts), len(texts.starts) - 1 - len(texts.group)
    own = lengths[:prompts] + np.bincount(texts.group, lengths[prompts:], prompts)
    return [Share(first, end, *map(int, np.searchsorted(texts.group, (first, end)))) for first, end in runs(own, count)]
