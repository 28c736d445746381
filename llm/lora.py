"""LoRA: low-rank matrices that are trained in place of the weights (Hu et al. 2021, arXiv 2106.09685), by peft."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from llm.models import LanguageModel, load_model, no_progress_bars


def add_lora(lm: LanguageModel, rank: int, alpha: float, seed: int = 0) -> LanguageModel:
    """The model with W + (alpha / rank) B A in place of each weight matrix W of its blocks; only A and B are trained.

    B starts at 0, so the policy is that of the model bit for bit. A is drawn from `seed`, on every device alike. Both
    are float32 where the weights are bfloat16, which would swallow small steps.

    Args: lm: changed in place; rank: rows of A, at least 1.
    Raises: ValueError if peft is not installed.
    """
    peft = _peft()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lm.model.add_adapter(peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear"))
    for parameter in lm.model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()
    lm.model.eval()
    return lm


def load_adapted(path: Path, dtype: str, device: str | torch.device, engine: str = "auto") -> LanguageModel:
    """The base that a directory of adapters names, with the adapters added to its weights.

    Raises: ValueError if peft is not installed, or the directory or its base cannot be read.
    """
    peft = _peft()
    base = _base(path)
    lm = load_model(base, dtype, device, engine)
    try:
        with no_progress_bars(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks for what transformers gave another name
            model = peft.PeftModel.from_pretrained(lm.model, str(path), torch_device=str(device)).merge_and_unload()
    except Exception as error:  # peft meets a bad file with errors of many kinds
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the adapters in {str(path)!r} could not be loaded ({reason}); copy them again") from None
    return lm._replace(model=model.eval())


def _base(path: Path) -> str:
    try:
        base = json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise ValueError(f"{path / 'adapter_config.json'} names no base model; add base_model_name_or_path")
    if not (path / "adapter_model.safetensors").is_file():
        raise ValueError(f"adapter directory {str(path)!r} holds no adapter_model.safetensors; copy it there")
    return base


def _peft():
    try:
        import peft
    except ImportError:
        raise ValueError("LoRA needs peft; install it with pip install 'entropy-theory[llm]'") from None
    return peft
