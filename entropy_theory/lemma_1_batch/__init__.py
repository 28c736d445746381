"""Lemma 1 checked on many instances at once: both entropies, both predictions and their proved bounds.

The same statements as `theorems` and `remainder`, in a form that is fast: two exponentials an element, every sum in
the same pass, work space that stays in the cache. The bounds are those of exactly this arithmetic (docs/theory.md,
section 4.8).
"""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from entropy_theory.lemma_1_batch import numpy_engine
from entropy_theory.lemma_1_batch.formulas import LARGEST_SPREAD, Coefficients, coefficients

ENGINES = ("numba", "numpy")
_CHUNK = 1 << 17
"""Numbers converted at once where the input is not float64 in C order."""


class Checked(NamedTuple):
    """What Lemma 1 says about n instances and what happened, float64 [...], nats.

    entropy_before, entropy_after: H(z) and H(z + d)
    first_order, second_order:     predicted change, as `theorems.entropy_change_first_order` and `..._second_order`
    spread:                        largest minus smallest change over the finite logits
    first_bound, second_bound:     proved bounds on the errors: remainder plus all rounding
    """

    entropy_before: Tensor
    entropy_after: Tensor
    first_order: Tensor
    second_order: Tensor
    spread: Tensor
    first_bound: Tensor
    second_bound: Tensor

    def first_ratio(self) -> Tensor:
        """|measured - first-order prediction| / bound; above 1 Lemma 1 would be violated."""
        return (self.entropy_after - self.entropy_before - self.first_order).abs() / self.first_bound

    def second_ratio(self) -> Tensor:
        """The same for the second-order prediction."""
        return (self.entropy_after - self.entropy_before - self.second_order).abs() / self.second_bound


def engine_module(engine: str | None = None) -> ModuleType:
    """The code that computes the sums: "numba", "numpy", or None for the faster one that is installed.

    Raises: ValueError for another name, or where Numba is asked for and missing.
    """
    if engine not in (*ENGINES, None):
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if engine == "numpy":
        return numpy_engine
    try:
        from entropy_theory.lemma_1_batch import numba_engine
    except ImportError:
        if engine is None:
            return numpy_engine
        raise ValueError("engine 'numba' needs the package numba; install it, or use engine 'numpy'") from None
    return numba_engine


def check_lemma_1(
    logits: Tensor, change: Tensor, threads: int = 1, engine: str | None = None, out: Tensor | None = None
) -> Checked:
    r"""Entropy before and after, both predictions of Lemma 1 and the bounds on their errors.

        |H(z + d) - H(z) - prediction| <= remainder bound(spread d) + rounding

    Each instance's result is a function of that instance alone, whatever stands beside it and however many
    threads run. Beside the inputs and the results it needs under 3 MB (per thread).

    Args:
      logits: [..., actions], at least 2 actions; -inf masks an action. float64 in C order is read in place, anything
        else is converted in small pieces, exactly.
      change: same shape, logits after minus before; masked entries are ignored whatever they hold. z + d is the
        exact sum: if d is the rounded difference of stored logits, the entropy of those after the step may differ
        by another 2 N_K u max|d| (`remainder.first_order_effect`).
      threads: instances are split evenly over so many threads.
      engine: "numba", "numpy" or None for the faster one that is installed.
      out: [7, ...] float64 in C order to hold the results; made here if None.
    Raises: ValueError for shapes that do not fit, for input that is no policy or no change, and for a change that
      spans more than 1e12 nats.
    """
    _check_shapes(logits, change, threads)
    module = engine_module(engine)
    actions = logits.shape[-1]
    shape = logits.shape[:-1]
    # NumPy asks for large pages where the system grants them: touching the results is then several times cheaper
    out = torch.from_numpy(np.empty((7, *shape))) if out is None else _fitting(out, shape)
    k = coefficients(actions, module.additions(actions))
    z, d = logits.detach().reshape(-1, actions), change.detach().reshape(-1, actions)
    results = out.view(7, -1)
    bounds = [len(z) * i // threads for i in range(threads + 1)]
    parts = [slice(a, b) for a, b in itertools.pairwise(bounds) if b > a]
    if len(parts) == 1:
        _fill(module, z, d, results, parts[0], k)
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(lambda part: _fill(module, z, d, results, part, k), parts))
    # an instance that is no policy, or a change that is not finite, leaves a NaN in everything that follows from it
    if not (math.isfinite(float(results[3].sum())) and float(results[4].max()) <= LARGEST_SPREAD):
        bad = ~(torch.isfinite(results[3]) & (results[4] <= LARGEST_SPREAD))
        instance = int(bad.nonzero()[0])
        raise ValueError(f"instance {instance}: {_what_is_wrong(z[instance].double(), d[instance].double())}")
    return Checked(*out.unbind(0))


def _fill(module: ModuleType, z: Tensor, d: Tensor, results: Tensor, part: slice, k: Coefficients) -> None:
    """Run the engine on some instances in place, or on float64 copies of small pieces."""
    ready = all(x.dtype == torch.float64 and x.is_contiguous() and x.device.type == "cpu" for x in (z, d))
    rows = part.stop - part.start if ready else max(1, _CHUNK // z.shape[1])
    for start in range(part.start, part.stop, rows):
        stop = min(start + rows, part.stop)
        piece = [x[start:stop].to("cpu", torch.float64).contiguous().numpy() for x in (z, d)]
        module.fill(*piece, results.numpy(), start, k)


def _check_shapes(logits: Tensor, change: Tensor, threads: int) -> None:
    if logits.ndim < 1 or logits.numel() == 0 or logits.shape[-1] < 2:
        shape = [*logits.shape]
        raise ValueError(f"logits must have shape [..., actions] with at least 2 actions and not be empty, got {shape}")
    if change.shape != logits.shape:
        raise ValueError(f"change must have the shape of logits, {[*logits.shape]}, got {[*change.shape]}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")


def _fitting(out: Tensor, shape: torch.Size) -> Tensor:
    if out.shape != (7, *shape) or out.dtype != torch.float64 or not out.is_contiguous():
        raise ValueError(f"out must be float64 in C order with shape {[7, *shape]}, got {out.dtype} {[*out.shape]}")
    return out


def _what_is_wrong(z: Tensor, d: Tensor) -> str:
    """Why one instance is no policy or no change."""
    infinite = torch.isnan(z) | (z == torch.inf)
    kept = d[z > -torch.inf]
    if infinite.any():
        return f"logits must be finite or -inf, got {float(z[infinite][0])}"
    if len(kept) == 0:
        return "no action has a finite logit"
    if not torch.isfinite(kept).all():
        return f"change must be finite where the logits are, got {float(kept[~torch.isfinite(kept)][0])}"
    return f"change must span at most {LARGEST_SPREAD:g} nats, got {float(kept.max() - kept.min()):g}"
