"""Every claim, in the order in which they are printed."""

from entropy_theory.claims.ledger import LEDGER
from entropy_theory.claims.proved import PROVED
from entropy_theory.claims.theory import THEORY

CLAIMS = {claim.id: claim for claim in (*PROVED, *THEORY, *LEDGER)}
if len(CLAIMS) < len(PROVED) + len(THEORY) + len(LEDGER):
    raise ValueError("two claims share an id")
