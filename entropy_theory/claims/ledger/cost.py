"""What a control's code reads and how much it computes, counted rather than timed."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from entropy_theory.claims.claim import Context, Counterexample, Finding, Judge, Verdict
from entropy_theory.control import Control
from entropy_theory.controls import CONTROLS
from entropy_theory.draw import uniform
from entropy_theory.loss import token_loss
from entropy_theory.records import Batch, Objective

ROWS, STEPS = 64, 64


def fields_read(control: Control, batch: Batch) -> frozenset[str]:
    """Fields of the batch that the control's edit looks at."""
    names: set[str] = set()

    class Watched:
        """The batch, noting what is asked of it."""

        def __getattr__(self, name: str) -> Any:
            names.add(name)
            return getattr(batch, name)

    control.edit(Objective.from_batch(batch), Watched(), control.init(torch.zeros(())))
    return frozenset(names)


class Elements(TorchFunctionMode):
    """Counts the numbers that torch functions return while it is active."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Run the function and count."""
        result = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") != "__get__":  # an attribute is not computed
            for part in result if isinstance(result, tuple | list) else (result,):
                self.count += part.numel() if isinstance(part, Tensor) else 0
        return result


def backward_nodes(result: Tensor) -> int:
    """Operations of the backward pass of `result`."""
    seen, waiting = set(), [result.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return len(seen)


def drawn_batch(seed: int) -> Batch:
    """Tokens of an off-policy update with advantages +1 and -1; any numbers would do for counting."""
    zero = torch.zeros((), dtype=torch.int64)
    draws = uniform(zero + seed, zero, 3 * ROWS * STEPS).view(3, ROWS, STEPS)
    old = (draws[0].clamp(min=2.0**-53)).log()
    return Batch(
        logp=old + 0.1 * (draws[1] - 0.5),
        old_logp=old,
        advantage=(draws[2] < 0.5).double() * 2 - 1,
        mask=torch.ones_like(old, dtype=torch.bool),
        entropy=-old,
        outcome=draws[2, :, 0],
        group=torch.arange(ROWS),
    )


def update_loss(control: Control, batch: Batch) -> tuple[Tensor, Tensor]:
    """A control's part of an update up to the backward pass: its edit and every token's loss; (logp, loss)."""
    objective = control.edit(Objective.from_batch(batch), batch, control.init(torch.zeros(())))
    logp = batch.logp.clone().requires_grad_()
    return logp, token_loss(logp, batch.entropy, batch, objective)


def elements(control: Control, batch: Batch) -> float:
    """Numbers computed per token by edit, loss and gradient; an operation of the backward pass counts one a token."""
    with Elements() as counted:
        _, loss = update_loss(control, batch)
    return counted.count / batch.mask.sum().item() + backward_nodes(loss)


def no_dearer(name: str, other: str) -> Judge:
    """A judge for "`name` costs more than `other`": refuted if it reads, needs and computes no more.

    Work is counted, not timed: a time would depend on the machine and its load.
    """

    def judge(context: Context) -> Finding:
        batch, (a, b) = drawn_batch(context.seed), (CONTROLS[name](), CONTROLS[other]())
        more_read = sorted(fields_read(a, batch) - fields_read(b, batch))
        more_needed = sorted(need.value for need in a.needs - b.needs)
        work = [elements(c, batch) for c in (a, b)]
        numbers = {
            f"elements_{name}": work[0],
            f"elements_{other}": work[1],
        }
        read = ", ".join(sorted(fields_read(a, batch)))
        text = (
            f"{name} reads {read} of a batch, {other} the same, neither asks for another pass through the model; edit, "
            f"loss and gradient compute {work[0]:.0f} numbers per token for {name} and {work[1]:.0f} for {other}"
        )
        if more_read or more_needed or work[0] > work[1]:
            more = ", ".join([*more_read, *more_needed]) or f"{work[0]:.0f} against {work[1]:.0f} numbers per token"
            return Finding(Verdict.HOLDS, f"{name} takes more: {more}.", numbers)
        snippet = (
            "from entropy_theory.claims.ledger.cost import drawn_batch, elements, fields_read\n"
            "from entropy_theory import CONTROLS\n"
            f"for name in ({name!r}, {other!r}):\n"
            "    control, batch = CONTROLS[name](), drawn_batch(0)\n"
            "    print(name, control.needs, sorted(fields_read(control, batch)), elements(control, batch))\n"
        )
        return Finding(Verdict.REFUTED, f"{text}.", numbers, Counterexample(text, snippet))

    return judge
