"""The bounded statements on small drawn instances in ball arithmetic, where no rounding is left to trust."""

from collections import Counter
from collections.abc import Iterator

from entropy_theory import certify
from entropy_theory.claims.claim import Context
from entropy_theory.claims.statement import Statement, States


def certified(statement: Statement, context: Context) -> str:
    """One sentence on as many drawn instances as the profile tries in a search.

    Raises: ModuleNotFoundError with the line to type if python-flint is missing; ValueError if an enclosure of the
      error lies above that of the bound, with the instance.
    """
    verdicts: Counter[str] = Counter()
    for states in _small(context):
        rows = (states.logits, states.change, states.advantage)
        for row, forms in enumerate(certify.certify_states(statement.name, *rows, states.step_size)):
            found = {form.verdict for form in forms}
            if certify.VIOLATED in found:
                raise ValueError(f"{statement.name} is violated beyond doubt at {states.rows(slice(row, row + 1))}")
            verdicts[certify.UNDECIDED if certify.UNDECIDED in found else certify.HOLDS] += 1
    done = verdicts[certify.HOLDS]
    most = certify.MOST_ACTIONS
    return f"Certified in ball arithmetic on {done:,} of {verdicts.total():,} drawn instances of up to {most} actions."


def _small(context: Context) -> Iterator[States]:
    """Drawn instances of few actions, about equally many of each number of them."""
    batches = [b for b in context.places.get("random", []) if b.logits.shape[1] <= certify.MOST_ACTIONS]
    share = -(-context.profile.examples // max(1, len(batches)))
    for states in batches:
        yield states.rows(slice(share))
