"""Proves every entry of `remainder_tables` by interval branch and bound in ball arithmetic (docs/remainder.md).

python -m entropy_theory.certify_constants                 prove all entries, about two minutes
python -m entropy_theory.certify_constants --actions 3 10  only these
python -m entropy_theory.certify_constants --propose       print the entries anew, rounded up

Needs python-flint. An enclosure of a function over a box is computed by `arb`, whose balls contain every rounding
error; a box whose enclosure lies below the entry is settled, any other is cut in two. When none is left, the entry
is an upper bound: no sampling is involved.
"""

from entropy_theory import remainder_tables
from entropy_theory.balls import precision
from entropy_theory.certify_constants import few_actions, many_actions, third_derivative
from entropy_theory.certify_constants.boxes import PRECISION, Supremum


def first_order(actions: int) -> Supremum:
    """Enclosure of the supremum that bounds the second derivative of the entropy over spread squared."""
    if actions == 2:
        return Supremum(0.25, 0.25, 0)  # by hand: docs/remainder.md, step 10
    with precision(PRECISION):
        if actions < remainder_tables.CONVEX_FROM:
            return few_actions.supremum(actions)
        return many_actions.supremum(actions)


def second_order(actions: int) -> Supremum:
    """Enclosure of the supremum that bounds the third derivative of the entropy over spread cubed."""
    with precision(PRECISION):
        return third_derivative.supremum(actions)


def deviations() -> dict[float, Supremum]:
    """Enclosures of the largest B - tilt S by tilt; at tilt 0 the slope of the first-order constant in ln(K - 1)."""
    with precision(PRECISION):
        return many_actions.deviations()
