"""Responses read without padding, and each prompt once for all of its responses: one forward pass of training.

Responses of a group differ behind their prompt only, and what is read of a prompt does not depend on what follows. So
the tokens of all prompts and then of all responses stand one behind the other in a single row, each with its position
in its own text. Everything but attention acts on tokens one by one; attention is told how they belong together.
Gradients of a prompt's keys and values add up over its responses. The last token of a response predicts nothing and is
left out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from llm.responses import Responses

KNOWN = ("qwen2", "qwen3")
"""Models whose blocks hand further arguments on to their attention, and use positions in rotations only."""


class Layout(NamedTuple):
    """How packed tokens belong together.

    Attention sees them padded: first `prompts` times `width` tokens of prompts, then `rows` times `steps` of responses.

    place: [tokens] int64, where each token stands among the padded ones
    starts: [prompts + rows + 1] int64, where each prompt and then each response begins among the packed ones
    group: [rows] int64, the prompt of each response
    seen:  bool [rows, 1, steps, width + steps], which tokens of its prompt and of its own a token attends to
    """

    prompts: int
    width: int
    rows: int
    steps: int
    place: Tensor
    starts: Tensor
    group: Tensor
    seen: Tensor

    def unpack(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[1, heads, tokens, w] as [prompts, heads, width, w] and [rows, heads, steps, w], 0 where padded."""
        sizes = self.prompts * self.width, self.rows * self.steps
        x = x[0].transpose(0, 1)
        few, many = x.new_zeros(sum(sizes), *x.shape[1:]).index_add(0, self.place, x).split(sizes)
        few, many = few.unflatten(0, (self.prompts, self.width)), many.unflatten(0, (self.rows, self.steps))
        return few.transpose(1, 2), many.transpose(1, 2)

    def pack(self, few: Tensor, many: Tensor) -> Tensor:
        """The reverse of `unpack`, as [1, tokens, heads, w]."""
        padded = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in (few, many)])
        return padded.index_select(0, self.place).unsqueeze(0)


class Packed(NamedTuple):
    """Prompts and responses in a single row.

    tokens, positions: [1, tokens] int64
    predicting:        [valid tokens] int64, where the hidden state stands that predicts a valid response token
    """

    tokens: Tensor
    positions: Tensor
    predicting: Tensor
    layout: Layout


def can_pack(decoder: nn.Module, device: torch.device) -> bool:
    """Whether `read` knows the model: causal attention by torch's function, on a CPU.

    On a GPU the mask would take the fastest kernels away from attention.
    """
    config = decoder.config
    whole = "sliding_attention" not in (getattr(config, "layer_types", None) or ())
    return device.type == "cpu" and config.model_type in KNOWN and config._attn_implementation == "sdpa" and whole


def pack(responses: Responses) -> Packed:
    """Tokens to read. Rows share a prompt where they stand next to each other, as those of a group do."""
    mask, length = responses.mask, responses.prompt_length
    device, end = mask.device, responses.prompt.shape[1]
    column = torch.arange(int(length.max()), device=device)
    there = column < length.unsqueeze(-1)
    prompt = responses.prompt.gather(-1, (column + (end - length).unsqueeze(-1)).clamp(max=end - 1)).where(there, 0)
    new = torch.ones_like(length, dtype=torch.bool)
    new[1:] = (prompt[1:] != prompt[:-1]).any(-1) | (length[1:] != length[:-1])
    prompt, group = prompt[new], new.cumsum(0) - 1
    (prompts, width), rows, steps = prompt.shape, len(mask), max(int(mask.sum(-1).max()) - 1, 1)

    step = torch.arange(steps, device=device)
    read = step < (mask.sum(-1) - 1).unsqueeze(-1)
    own = (step <= step.unsqueeze(-1)).expand(rows, -1, -1)
    seen = torch.cat([there.unsqueeze(1).expand(-1, steps, -1), own], -1).unsqueeze(1)
    place = torch.cat([there[new].flatten(), read.flatten()]).nonzero().squeeze(-1)
    tokens = torch.cat([prompt.flatten(), responses.tokens[:, :steps].flatten()])
    positions = torch.cat([column.repeat(prompts), (length.unsqueeze(-1) + step).flatten()])

    row, t = mask.nonzero(as_tuple=True)
    before = torch.where(t == 0, group[row] * width + length[row] - 1, prompts * width + row * steps + t - 1)
    lengths = torch.cat([length[new], read.sum(-1)])
    starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    layout = Layout(prompts, width, rows, steps, place, starts, group, seen)
    tokens, positions = (x[place].unsqueeze(0) for x in (tokens, positions))
    return Packed(tokens, positions, torch.searchsorted(place, before), layout)


def read(decoder: nn.Module, packed: Packed) -> Tensor:
    """Last hidden states that predict the valid response tokens, [valid tokens, d]."""
    _teach_transformers()
    hidden = decoder(
        input_ids=packed.tokens,
        position_ids=packed.positions,
        attention_mask={"full_attention": None},  # keeps transformers from making one
        use_cache=False,
        layout=packed.layout,
    ).last_hidden_state
    return hidden[0].index_select(0, packed.predicting)


def attend(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, scale: float | None, dropout: float = 0.0
) -> Tensor:
    """Attention of prompts to themselves, and of responses to their prompt and themselves.

    Args: query, key, value: [1, heads or key heads, tokens, w].
    Returns: [1, tokens, heads, w].
    """
    options = {"scale": scale, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1]}
    (few_queries, queries), *pairs = map(layout.unpack, (query, key, value))
    few = scaled_dot_product_attention(few_queries, *(few for few, _ in pairs), is_causal=True, **options)
    both = (torch.cat([few.index_select(0, layout.group), many], 2) for few, many in pairs)
    many = scaled_dot_product_attention(queries, *both, attn_mask=layout.seen, **options)
    return layout.pack(few, many)


def _teach_transformers() -> None:
    """Let its attention do as `attend` where a `layout` is handed down to it, and as ever elsewhere."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ordinary = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if getattr(ordinary, "knows_layouts", False):
        return

    def attention(module, query, key, value, attention_mask, *args, layout: Layout | None = None, **kwargs):
        if layout is None:
            return ordinary(module, query, key, value, attention_mask, *args, **kwargs)
        return attend(layout, query, key, value, kwargs["scaling"], kwargs.get("dropout", 0.0)), None

    attention.knows_layouts = True
    ALL_ATTENTION_FUNCTIONS["sdpa"] = attention
