"""The theory's statements as objects that can be checked, and the check."""

from entropy_theory.claims.statement import Comparison, Evidence, Statement, States
from entropy_theory.claims.verdict import (
    INSTANCES,
    STATEMENTS,
    Result,
    WorldStates,
    check,
    holds,
    table,
    table_cells,
    to_json,
)

__all__ = [
    "INSTANCES",
    "STATEMENTS",
    "Comparison",
    "Evidence",
    "Result",
    "Statement",
    "States",
    "WorldStates",
    "check",
    "holds",
    "table",
    "table_cells",
    "to_json",
]
