"""What study notes about the paper claim, note by note; each claim carries its number in the notes' common count."""

from entropy_theory.claims.ledger.note_000 import NOTE_000
from entropy_theory.claims.ledger.note_001 import NOTE_001
from entropy_theory.claims.ledger.note_002 import NOTE_002
from entropy_theory.claims.ledger.note_003 import NOTE_003
from entropy_theory.claims.ledger.note_004 import NOTE_004

LEDGER = (
    *NOTE_000,
    *NOTE_001,
    *NOTE_002,
    *NOTE_003,
    *NOTE_004,
)
