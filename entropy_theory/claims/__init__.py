"""The claims about entropy as objects that can be judged, and the check that judges them."""

from entropy_theory.claims.bounded import Result
from entropy_theory.claims.catalogue import CLAIMS
from entropy_theory.claims.claim import (
    ALL_WORLDS,
    PROFILES,
    Claim,
    Context,
    Counterexample,
    Finding,
    Profile,
    SampledTokens,
    Verdict,
    World,
)
from entropy_theory.claims.places import RANDOM, WorldStates
from entropy_theory.claims.proved import INSTANCES, STATEMENTS, check, holds
from entropy_theory.claims.report import markdown, summary, table, table_cells, to_json
from entropy_theory.claims.statement import Comparison, Evidence, Statement, States
from entropy_theory.claims.verdict import Judged, agrees, judge, select

__all__ = [
    "ALL_WORLDS",
    "CLAIMS",
    "INSTANCES",
    "PROFILES",
    "RANDOM",
    "STATEMENTS",
    "Claim",
    "Comparison",
    "Context",
    "Counterexample",
    "Evidence",
    "Finding",
    "Judged",
    "Profile",
    "Result",
    "SampledTokens",
    "Statement",
    "States",
    "Verdict",
    "World",
    "WorldStates",
    "agrees",
    "check",
    "holds",
    "judge",
    "markdown",
    "select",
    "summary",
    "table",
    "table_cells",
    "to_json",
]
