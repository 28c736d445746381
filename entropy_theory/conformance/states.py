"""Check a caller's own logits: Lemma 1, Proposition 1 and Theorems 1-2 on them, and entropies against float64."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from entropy_theory import remainder, theorems
from entropy_theory.claims import STATEMENTS, WorldStates
from entropy_theory.claims.bounded import judge_states
from entropy_theory.claims.places import place_states
from entropy_theory.conformance import rounding
from entropy_theory.conformance.compare import DTYPES, precision_of
from entropy_theory.softmax import entropy as exact_entropy

SHOWN = 64
"""A state of more actions than this is named, not printed."""


def check_logits(
    logits: Any, change: Any = None, advantage: Any = None, entropy: Any = None, seed: int = 0, name: str = "logits"
) -> None:
    """Check every statement on these states, and the caller's own entropies if given.

    Args:
      logits: [..., actions], torch, NumPy or nested lists; -inf masks an action.
      change: the same shape, logits after a step minus before, nats; drawn from the seed if None.
      advantage: the same shape, reward units; drawn from the seed if None.
      entropy: [...], nats, as the caller's code computed it; its dtype decides how far it may be off.
      name: of the states, in messages.
    Raises: AssertionError with the smallest failing instance as code; ValueError for logits that are no policies.
    """
    states = WorldStates(*(None if x is None else _states(x) for x in (logits, change, advantage)))
    for id in STATEMENTS:
        check_statement(id, states, seed, name)
    if entropy is not None:
        check_entropy(states.logits, entropy, name)


def check_statement(id: str, states: WorldStates, seed: int = 0, name: str = "logits") -> None:
    """Check one of `claims.STATEMENTS`. Raises as `check_logits`."""
    result = judge_states(STATEMENTS[id], name, place_states(0, seed, {name: states})[name])
    if result.violations:
        raise AssertionError(
            f"{result.statement} fails on {result.violations:,} of {result.instances:,} states of {name}: "
            f"the error is {result.worst_ratio:.3g} times its proved bound.\nSmallest failing instance:\n\n"
            f"{result.counterexample['snippet']}"
        )


def check_entropy(logits: Tensor, entropy: Any, name: str = "logits") -> None:
    """Compare entropies in their own dtype with those of the float64 logits. Raises as `check_logits`.

    The bound is that of docs/conformance.md for logits rounded once to the dtype of `entropy`.
    """
    entropy = entropy if isinstance(entropy, Tensor) else torch.as_tensor(np.asarray(entropy))
    dtype = str(entropy.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"{name}: entropy must be {', '.join(DTYPES)}, got {dtype}")
    found = entropy.detach().cpu().double().reshape(-1)
    if len(found) != len(logits):
        raise ValueError(f"{name}: {len(found)} entropies for {len(logits)} states")
    stored = logits.to(entropy.dtype).double()
    by_cast, of_cast = cast_effect(logits, stored)
    by_rounding = torch.from_numpy(rounding.entropy_error(stored.numpy(), precision_of(dtype)))
    _compare(logits, found, by_cast.abs() + of_cast + by_rounding, f"the {dtype} entropy of {name}")


def check_precision(logits: Tensor, dtype: torch.dtype, name: str = "logits") -> None:
    """Round the logits to `dtype`, take their entropy in float32, and compare with float64.

    The shift must be what Lemma 1 says of the rounding as a change of the logits, up to its proved remainder and
    the rounding of the sums. Raises as `check_logits`.
    """
    stored = logits.to(dtype).float()
    by_cast, of_cast = cast_effect(logits, stored.double())
    allowed = by_cast.abs() + of_cast + remainder.entropy_rounding(stored).double()
    label = f"the float32 entropy of {name} in {str(dtype).removeprefix('torch.')}"
    _compare(logits, exact_entropy(stored).double(), allowed, label)


def cast_effect(logits: Tensor, stored: Tensor) -> tuple[Tensor, Tensor]:
    """Lemma 1's prediction of H(stored) - H(logits), and a bound on everything it leaves out, [states], nats."""
    support = torch.isfinite(logits)
    change = torch.where(support, stored - logits, 0.0)
    predicted = theorems.entropy_change_first_order(logits, change)
    left_out = remainder.remainder_bound(remainder.spread(change, support), logits.shape[-1])
    of_float64 = remainder.first_order_rounding(logits, change) + remainder.entropy_rounding(logits)
    return predicted, left_out + of_float64


def _compare(logits: Tensor, found: Tensor, allowed: Tensor, label: str) -> None:
    exact = exact_entropy(logits)
    off = (found - exact).abs()
    bad = ~(off <= allowed)  # NaN is bad
    if bad.any():
        state = int(torch.where(bad, (off / allowed).nan_to_num(torch.inf), -1.0).argmax())
        shown = logits[state].tolist() if logits.shape[1] <= SHOWN else f"those of state {state}"
        raise AssertionError(
            f"{label} is {found[state].item()} nats at state {state}, exactly {exact[state].item()}: off by "
            f"{off[state].item():.3g}, while rounding explains {allowed[state].item():.3g}; logits: {shown}"
        )


def _states(values: Any) -> Tensor:
    """[states, actions], float64, on the CPU; a vector is one state, leading axes are joined."""
    tensor = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    tensor = tensor.detach().double().cpu()
    if tensor.ndim < 2:
        return tensor.reshape(1, -1)
    return tensor.flatten(0, -2)
