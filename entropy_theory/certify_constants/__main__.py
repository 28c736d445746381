"""The command: python -m entropy_theory.certify_constants."""

import argparse
import math
import sys

import entropy_theory.certify_constants as constants
from entropy_theory import remainder_tables
from entropy_theory.balls import flint

DECIMALS = 5
TABLES = (
    ("first order", remainder_tables.FIRST_ORDER, constants.first_order),
    ("second order", remainder_tables.SECOND_ORDER, constants.second_order),
)


def rounded_up(value: float) -> float:
    """`value` to `DECIMALS` decimals, not below it."""
    return math.ceil(value * 10**DECIMALS) / 10**DECIMALS


def report(name: str, where: str, entry: float | None, found: constants.Supremum) -> bool:
    """Print one line; whether the entry (None: one is proposed) is at least the proved bound."""
    proposed = rounded_up(found.upper) if entry is None else entry
    proved = found.upper <= proposed
    verdict = "proved" if proved else "NOT PROVED"
    enclosure = f"supremum in [{found.lower:.7f}, {found.upper:.7f}], {found.boxes:,} boxes"
    print(f"{name:12}  {where:14}  {proposed:.{DECIMALS}f}  {verdict}: {enclosure}", flush=True)
    return proved


def main(arguments: list[str] | None = None) -> int:
    """Prove the entries asked for; 1 if one of them is too small."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m entropy_theory.certify_constants", description=constants.__doc__, formatter_class=about
    )
    parser.add_argument("--actions", type=int, nargs="+", metavar="K", help="entries to prove (default: all)")
    parser.add_argument("--propose", action="store_true", help="print new entries instead of judging the old")
    options = parser.parse_args(arguments)
    try:
        flint()
    except ModuleNotFoundError as absent:
        parser.error(str(absent))
    known = remainder_tables.FIRST_ORDER
    unknown = set(options.actions or ()) - set(known)
    if unknown and not options.propose:
        parser.error(f"no entry for {sorted(unknown)} actions; the tables have {sorted(known)}")
    proved = []
    for name, table, prove in TABLES:
        for actions in options.actions or table:
            entry = None if options.propose else table[actions]
            proved.append(report(name, f"K = {actions:,}", entry, prove(actions)))
    if not options.actions:
        for tilt, found in constants.deviations().items():
            proved.append(report("deviation", f"B - {tilt:g} S", found.upper, found))
    return 0 if all(proved) else 1


if __name__ == "__main__":
    sys.exit(main())
