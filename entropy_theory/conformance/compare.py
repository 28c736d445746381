"""Run a trainer's own functions on the golden batches and judge every answer against a proved bound."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from entropy_theory.conformance.golden import GoldenBatch, batches
from entropy_theory.conformance.quantities import QUANTITIES
from entropy_theory.conformance.report import RAISED, Report, Row
from entropy_theory.conformance.rounding import Array, Precision

DTYPES = ("float64", "float32", "bfloat16")


def compare(
    functions: Mapping[str, Callable[..., Any]],
    dtype: Any = "float64",
    names: tuple[str, ...] = (),
    tensors: Literal["torch", "numpy"] = "torch",
    micro_batches: bool = False,
) -> Report:
    """Call each function on each golden batch, all arguments by keyword, and compare.

        entropy(logits)                      log_prob(logits, action)
        score(logp, advantage, mask)         covariance(logp, advantage, mask)
        grpo(reward, group, eps)
        ppo, clip_higher(logp, old_logp, advantage, mask, tokens, clip_low, clip_high)
        clip_cov(the same, fraction, low, high)
        kl_cov(logp, old_logp, advantage, mask, tokens, fraction, coef)
        entropy_bonus(logits, action, old_logp, advantage, mask, tokens, clip_low, clip_high, coef)

    The first five return an array. The others return a scalar loss, a sum over valid tokens divided by `tokens`,
    which is differentiated here by logp (by logits for entropy_bonus); or a pair (loss, gradient).

    Args:
      functions: by the names above; any subset.
      dtype: float64, float32 or bfloat16, of everything that is a float; a torch dtype may be given.
      names: of the batches; all if empty.
      tensors: "torch", or "numpy" for functions that return (loss, gradient) themselves (no bfloat16).
      micro_batches: call each loss on one micro-batch at a time, as a trainer that accumulates gradients does, and
        add up; only on batches that have several. `tokens` stays that of the whole minibatch.
    Raises: ValueError for unknown functions, batches, dtypes or kinds of tensors.
    """
    dtype = str(dtype).removeprefix("torch.")
    _check(functions, dtype, tensors)
    chosen, precision = batches(*names), precision_of(dtype)
    if micro_batches:
        chosen = [batch for batch in chosen if len(batch.micro_batches) > 1]
    rows: list[Row] = []
    for name in (known for known in QUANTITIES if known in functions):
        for batch in chosen:
            if micro_batches and QUANTITIES[name].grad is None:
                continue
            rows += _judged(name, functions[name], batch, precision, tensors, micro_batches)
    return Report(dtype, tuple(rows))


def precision_of(dtype: str) -> Precision:
    """What the bounds need to know of a dtype."""
    import torch

    kind = getattr(torch, dtype)
    eps = torch.finfo(kind).eps

    def cast(x: Array) -> Array:
        return torch.tensor(x, dtype=torch.float64).to(kind).double().numpy()

    return Precision(dtype, eps / 2 * (1 + eps), torch.finfo(kind).tiny, cast)


def _check(functions: Mapping[str, Any], dtype: str, tensors: str) -> None:
    for name in functions:
        if name not in QUANTITIES:
            raise ValueError(f"there is no quantity {name!r}; compare knows {', '.join(QUANTITIES)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if tensors not in ("torch", "numpy"):
        raise ValueError(f"tensors must be 'torch' or 'numpy', got {tensors!r}")
    if tensors == "numpy" and dtype == "bfloat16":
        raise ValueError("NumPy has no bfloat16; use tensors='torch' or another dtype")


def _judged(name: str, function: Callable, batch: GoldenBatch, precision: Precision, tensors: str, split: bool):
    """Rows of one function on one batch; an exception becomes a row of its own."""
    parts = batch.micro_batches if split else ((0, batch["mask"].shape[0]),)
    try:
        answers = [_answer(name, function, batch, slice(*part), precision.name, tensors) for part in parts]
    except Exception as error:  # whatever a trainer's function raises belongs in the report
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return [Row(name, batch.name, float("nan"), 0.0, RAISED, reason)]
    if QUANTITIES[name].grad is None:
        return QUANTITIES[name].judge(batch, answers[0], precision)
    losses, gradients = zip(*answers, strict=True)
    return QUANTITIES[name].judge(batch, (sum(losses), np.concatenate(gradients)), precision)


def _answer(name: str, function: Callable, batch: GoldenBatch, rows: slice, dtype: str, tensors: str):
    """The function's answer as float64 arrays; (loss, gradient) for a loss."""
    quantity = QUANTITIES[name]
    arguments = {key: _argument(batch[key][rows], dtype, tensors) for key in quantity.inputs}
    arguments |= batch.hyper[name] if quantity.hyper else {}
    if quantity.grad is None:
        return _array(function(**arguments))
    arguments["tokens"] = batch.tokens
    if tensors == "torch":
        arguments[quantity.grad].requires_grad_(True)
    result = function(**arguments)
    if isinstance(result, tuple):
        loss, gradient = result
        return _array(loss), _array(gradient)
    if tensors == "numpy":
        raise TypeError(f"{name} must return (loss, gradient) when tensors='numpy'")
    return _array(result), _array(_gradient(result, arguments[quantity.grad]))


def _gradient(loss, variable):
    import torch

    (gradient,) = torch.autograd.grad(loss, variable, allow_unused=True)
    return torch.zeros_like(variable) if gradient is None else gradient


def _argument(array: Array, dtype: str, tensors: str):
    if tensors == "numpy":
        return array.astype(dtype) if array.dtype == np.float64 else array.copy()
    import torch

    tensor = torch.tensor(array)
    return tensor.to(getattr(torch, dtype)) if tensor.dtype == torch.float64 else tensor


def _array(value) -> Array:
    """A float64 NumPy copy of a tensor, an array or a number."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    return np.asarray(value, dtype=np.float64)
