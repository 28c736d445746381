"""States of any causal language model on disk: what the theory check takes as real policies.

Nothing that is read is executed: safetensors only, no pickle, no code from a model directory, no network.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from llm.models import no_progress_bars

ROWS, STEPS = 4, 8
"""Sequences, and tokens of each: 32 states, 39 MB of float64 logits at a vocabulary of 151,936."""

_HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


def model_states(directory: str | Path, seed: int = 0) -> tuple[Tensor, None, None]:
    """Logits at tokens that the model itself samples, in float64.

    Each of the 4 sequences starts from one token drawn from the whole vocabulary; the model then samples 7 tokens
    at temperature 1. The model runs in float32 on the CPU; float64 holds its logits exactly.

    Args:
      directory: with config.json and *.safetensors of a causal language model; a tokenizer is checked if present.
      seed: of the first tokens and of the sampling.
    Returns: (logits [32, vocabulary], None, None): a model alone has neither a change of its logits nor advantages.
    Raises: ValueError that names what is wrong with the directory or the logits.
    """
    path = Path(directory)
    vocabulary = _check_files(path)
    model = _load(path, vocabulary)
    with torch.no_grad():
        logits = _logits(model, sampled_tokens(model, vocabulary, seed, path), path)
    return logits.reshape(ROWS * STEPS, -1), None, None


@torch.no_grad()
def sampled_tokens(model: PreTrainedModel, vocabulary: int, seed: int, path: Path) -> Tensor:
    """The tokens whose states are taken, [4, 8] int64: one drawn from the vocabulary, 7 sampled from the model."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocabulary, (ROWS, 1), generator=generator)
    for _ in range(STEPS - 1):
        last = _logits(model, tokens, path)[:, -1]
        drawn = torch.multinomial(torch.softmax(last, -1), 1, generator=generator)
        tokens = torch.cat([tokens, drawn], -1)
    return tokens


def _logits(model: PreTrainedModel, tokens: Tensor, path: Path) -> Tensor:
    """[rows, steps, vocabulary], float64; one sentence if they are no policies."""
    logits = model(input_ids=tokens, use_cache=False).logits.double()
    bad = torch.isnan(logits) | (logits == torch.inf)
    if bad.any():
        row, step, action = bad.nonzero()[0].tolist()
        state = row * STEPS + step
        raise ValueError(
            f"the model in {str(path)!r} gives the logit {logits[row, step, action].item()} at state {state}, "
            f"action {action}; logits must be finite or -inf"
        )
    if not torch.isfinite(logits).any(-1).all():
        raise ValueError(f"the model in {str(path)!r} gives a state without any finite logit")
    return logits


def _check_files(path: Path) -> int:
    """The vocabulary that config, head and tokenizer agree on."""
    if not path.is_dir():
        raise ValueError(
            f"there is no model directory {str(path)!r}; give one that holds config.json and *.safetensors"
        )
    vocabulary = _configured(path)
    for name, width in _widths(path):
        if width != vocabulary:
            raise ValueError(
                f"the model in {str(path)!r} has vocab_size {vocabulary} in config.json, but {name} has {width} rows"
            )
    if (path / "tokenizer.json").is_file():
        try:
            tokens = max(Tokenizer.from_file(str(path / "tokenizer.json")).get_vocab().values(), default=-1) + 1
        except Exception as error:  # the library raises plain Exception
            raise ValueError(
                f"{path / 'tokenizer.json'} cannot be read ({' '.join(str(error).split())[:200]}); copy it again"
            ) from None
        if tokens > vocabulary:
            raise ValueError(
                f"the tokenizer in {str(path)!r} has {tokens} tokens, but the model's head is {vocabulary} wide; "
                "use the model's own tokenizer"
            )
    return vocabulary


def _configured(path: Path) -> int:
    """vocab_size of config.json, or of its text part."""
    config = path / "config.json"
    if not config.is_file():
        raise ValueError(f"model directory {str(path)!r} has no config.json; point to a complete one")
    try:
        values = json.loads(config.read_text())
        sizes = [part["vocab_size"] for part in (values, values.get("text_config") or {}) if "vocab_size" in part]
    except (json.JSONDecodeError, AttributeError, TypeError, UnicodeDecodeError):
        raise ValueError(f"{config} is not a JSON object; download the model again") from None
    if not sizes or not isinstance(sizes[0], int) or sizes[0] < 2:
        raise ValueError(f"{config} names no vocab_size of at least 2; it is not a language model's configuration")
    return sizes[0]


def _widths(path: Path) -> list[tuple[str, int]]:
    """Name and number of rows of the head, or of the embedding where the two are one tensor."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"model directory {str(path)!r} holds no *.safetensors weights; add them "
            "(weights in pickle files are not read)"
        )
    heads, embeddings = [], []
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118 - not a mapping
                    if name.endswith(_HEADS + _EMBEDDINGS):
                        found = heads if name.endswith(_HEADS) else embeddings
                        found.append((name, weights.get_slice(name).get_shape()[0]))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} cannot be read ({error}); download the model again") from None
    return heads or embeddings


def _load(path: Path, vocabulary: int) -> PreTrainedModel:
    """The model in float32 on the CPU, without dropout."""
    try:
        with no_progress_bars():
            model, loading = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{str(path)!r} could not be loaded as a causal language model ({reason})") from None
    if loading["missing_keys"]:  # transformers would go on with random numbers in their place
        raise ValueError(f"the model in {str(path)!r} lacks the weight {sorted(loading['missing_keys'])[0]}")
    head = model.get_output_embeddings()
    if head is not None and head.weight.shape[0] != vocabulary:
        raise ValueError(
            f"the model in {str(path)!r} has vocab_size {vocabulary}, but its head is {head.weight.shape[0]} wide"
        )
    return model.eval()
