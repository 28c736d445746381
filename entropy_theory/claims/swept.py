"""Lemma 1 on very many random instances, as a claim: from 100,000 in the quick profile to 100,000,000."""

import shutil

from entropy_theory.claims.claim import Claim, Context, Counterexample, Finding, Verdict
from entropy_theory.claims.sweep import Instance, Sweep, sweep

ACTIONS = 10
LONG = 10_000_000
"""From so many instances on, the faster engine is worth its compilation, and the state is kept on disk."""

SNIPPET = """\
import torch
from entropy_theory.lemma_1_batch import check_lemma_1
inf = float("inf")
logits = torch.tensor([{logits}], dtype=torch.float64)
change = torch.tensor([{change}], dtype=torch.float64)
checked = check_lemma_1(logits, change)
print("first order: error / bound", checked.first_ratio().item())
print("second order: error / bound", checked.second_ratio().item())
"""


def _judge(context: Context) -> Finding:
    instances = context.profile.sweep
    folder = context.folder / f"sweep-{instances}" if context.folder and instances >= LONG else None

    def show(done: int, total: int):
        context.progress(done / total)

    found = sweep(instances, ACTIONS, context.seed, folder, show, engine=None if instances >= LONG else "numpy")
    if folder is not None:  # only an interrupted sweep is worth keeping
        shutil.rmtree(folder)
    return _finding(found)


def _finding(result: Sweep) -> Finding:
    worst = {form: instance.ratio for form, instance in result.found.worst.items()}
    numbers = {"instances": result.instances, "violations": result.found.violations}
    numbers |= {f"worst_ratio_{form}": ratio for form, ratio in worst.items()}
    text = (
        f"{result.instances:,} random instances of {result.actions} actions, {result.found.violations:,} of them above "
        f"a bound; at most {worst['first']:.4f} of the first-order and {worst['second']:.4f} of the second-order bound."
    )
    if result.holds:
        return Finding(Verdict.HOLDS, text, numbers)
    smallest = result.found.smallest
    shown = Counterexample(f"instance {smallest.number}: error / bound = {smallest.ratio:.4g}", _snippet(smallest))
    return Finding(Verdict.REFUTED, f"{text} Smallest one: {shown.text}.", numbers, shown)


def _snippet(instance: Instance) -> str:
    return SNIPPET.format(logits=list(instance.logits), change=list(instance.change))


SWEPT = Claim(
    id="lemma_1_sweep",
    statement="Lemma 1 and its second-order form keep within their bounds on random instances by the million.",
    source="Cui et al. 2025 (arXiv 2505.22617), Lemma 1",
    recorded=Verdict.HOLDS,
    judge=_judge,
    assumptions=("softmax policy", "d is the measured change of the logits at that state"),
)
