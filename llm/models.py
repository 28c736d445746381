"""Loading a Qwen2, Qwen2.5 or Qwen3 model from a local directory, from the hub, or the embedded one.

Nothing that is read is executed: safetensors only, no pickle, no code from a model repository.
"""

from __future__ import annotations

import importlib.util
import json
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging

from llm.onednn import equip

SHIPPED = {"tiny": "tiny-qwen2", "tiny-deceptive": "tiny-deceptive"}
"""Directories in llm/assets by the name of the model."""
ARCHITECTURES = ("qwen2", "qwen3")
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


NO_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What a RuntimeError says where memory is short, on a CPU and in CUDA's libraries."""


class LanguageModel(NamedTuple):
    """A model with its tokenizer and the ids of padding and of the tokens that end a response."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    pad: int
    ends: tuple[int, ...]


@contextmanager
def no_progress_bars():
    """Keep transformers from drawing its own progress bars."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def tiny_directory(name: str = "tiny") -> Path:
    """Where a tiny model that ships with the package lies."""
    return Path(str(resources.files("llm") / "assets" / SHIPPED[name]))


def resolve_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one. Raises ValueError if unusable."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); use cpu or auto"
        ) from None
    return torch.device(name)


@contextmanager
def memory_errors(sentence: str):
    """Running out of memory, on a CPU or a GPU, as a ValueError that says `sentence`."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise ValueError(f"out of memory: {sentence}") from None
    except RuntimeError as error:
        if any(text in str(error) for text in NO_MEMORY):
            raise ValueError(f"out of memory: {sentence}") from None
        raise


def training_memory(rows: int):
    """`memory_errors` of a run with `rows` responses per forward and backward pass; what was saved is intact."""
    lower = f"lower --micro-batch-rows, which is {rows}" if rows > 1 else "lower --max-new-tokens or --token-chunk"
    return memory_errors(f"{lower}, or use --gradient-checkpointing; the last saved step is intact")


def load_model(
    source: str | Path, dtype: str = "float32", device: str | torch.device = "cpu", engine: str = "auto"
) -> LanguageModel:
    """Model and tokenizer of `source`, in training precision `dtype`, without dropout.

    Args:
      source: "tiny", "tiny-deceptive", a directory with config.json, *.safetensors and a tokenizer, or a hub id. A
        directory of LoRA adapters is its base with the adapters added to the weights.
      dtype: float32, float64 or bfloat16.
      device: where the weights go.
      engine: what computes the blocks: see `set_engine`.
    Raises: ValueError that names what is wrong with `source` or the others and what to do about it.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    path = tiny_directory(str(source)) if str(source) in SHIPPED else Path(source)
    if (path / "adapter_config.json").is_file():
        from llm.lora import load_adapted

        return load_adapted(path, dtype, device, engine)
    if path.exists():
        _check_directory(path)
    elif path.is_absolute() or str(source).startswith((".", "~")) or str(source).count("/") != 1:
        raise ValueError(f"there is no model at {str(source)!r}; give 'tiny', a model directory or a hub id")
    local = path.exists()
    place = str(path.resolve()) if local else str(source)
    try:
        with no_progress_bars():
            model, loading = AutoModelForCausalLM.from_pretrained(
                place,
                dtype=DTYPES[dtype],
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=local,
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(
                place, padding_side="left", trust_remote_code=False, local_files_only=local
            )
    except Exception as error:  # transformers meets a bad file with errors of many kinds
        where = "directory" if local else "hub id"
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"model {where} {str(source)!r} could not be loaded ({reason}); "
            "give 'tiny', a complete local directory, or a hub id that can be reached"
        ) from None
    _check_architecture(str(source), model.config.model_type)
    if loading["missing_keys"]:  # transformers would go on with random numbers in their place
        missing = sorted(loading["missing_keys"])[0]
        raise ValueError(f"model {str(source)!r} lacks the weight {missing}; download it again")
    with memory_errors(
        f"the weights of {str(source)!r} do not fit on {device}; use --dtype bfloat16, or a smaller model"
    ):
        model = model.to(device).eval()
    if model.device.type == "cpu":
        equip(model)
    set_engine(model, engine)
    return _language_model(model, tokenizer)


ENGINES = ("auto", "torch", "numba")
"""What computes the blocks of a model."""


def set_engine(model: PreTrainedModel, engine: str) -> None:
    """Let the blocks be computed by transformers ("torch"), by compiled code ("numba"), or by compiled code where it
    is installed and knows the model ("auto").

    Raises: ValueError if compiled code is asked for and does not know the model, or is not installed.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    installed = importlib.util.find_spec("numba") is not None
    if engine == "numba" and not installed:
        raise ValueError(
            "engine 'numba' needs the package numba: pip install 'entropy-theory[fast]', or choose engine 'torch'"
        )
    if engine == "torch" or not installed:
        return
    done = False
    if model.device.type == "cpu" and model.dtype == torch.float32:  # else Numba need not be loaded
        from llm.compiled.training import equip as compile_blocks

        done = compile_blocks(model.get_decoder())
    if engine == "numba" and not done:
        raise ValueError(
            "engine 'numba' knows float32 models on a CPU whose widths are multiples of 16, without sliding windows; "
            "choose engine 'torch' or 'auto'"
        )


def _check_directory(path: Path) -> None:
    config = _json(path / "config.json", f"model directory {str(path)!r} has no config.json")
    _check_architecture(str(path), config.get("model_type"))
    if config.get("quantization_config"):
        raise ValueError(
            f"model directory {str(path)!r} holds quantized weights, which are not trained; take the others"
        )
    if not any((path / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ValueError(f"model directory {str(path)!r} has no tokenizer.json; copy the tokenizer's files there")
    _check_weights(path)


def _check_weights(path: Path) -> None:
    index = path / "model.safetensors.index.json"
    if index.is_file() and not (path / "model.safetensors").is_file():
        named = _json(index, "").get("weight_map", {}).values()
        for shard in sorted(set(named)):
            if not (path / shard).is_file():
                raise ValueError(
                    f"model directory {str(path)!r} lacks {shard}, which its index names; download it again"
                )
    elif not any(path.glob("*.safetensors")):
        raise ValueError(
            f"model directory {str(path)!r} holds no *.safetensors weights; add them "
            "(weights in pickle files are not read)"
        )


def _json(path: Path, missing: str) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{missing}; point --model at a complete one")
    try:
        value = json.loads(path.read_text())
    except ValueError:  # text that is no JSON, or bytes that are no text
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a JSON object; download the model again")
    return value


def _check_architecture(source: str, kind: str | None) -> None:
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"model {source!r} has architecture {kind!r}; only {' and '.join(ARCHITECTURES)} are supported"
        )


def _language_model(model: PreTrainedModel, tokenizer: Tokenizer) -> LanguageModel:
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only {model.config.vocab_size}; use the model's own"
        )
    configured = model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    ends = tuple(dict.fromkeys(end for end in (*ends, tokenizer.eos_token_id) if end is not None))
    if not ends:
        raise ValueError("the model names no end-of-text token; add eos_token_id to generation_config.json")
    # padding is masked everywhere, so any token will do where none is named
    pads = (tokenizer.pad_token_id, model.generation_config.pad_token_id, ends[0])
    pad = next(pad for pad in pads if pad is not None)
    return LanguageModel(model, tokenizer, pad, ends)
