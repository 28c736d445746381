"""Every claim, in the order in which they are printed."""

from entropy_theory.claims.ledger import LEDGER
from entropy_theory.claims.proved import PROVED
from entropy_theory.claims.swept import SWEPT
from entropy_theory.claims.theory import THEORY

_ALL = (*PROVED, SWEPT, *THEORY, *LEDGER)
CLAIMS = {claim.id: claim for claim in _ALL}
if len(CLAIMS) < len(_ALL):
    raise ValueError("two claims share an id")
