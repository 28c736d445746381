"""What study notes about the paper claim, note by note; each claim carries its number in the notes' common count."""

from entropy_theory.claims.ledger.note_000 import NOTE_000

LEDGER = (
    *NOTE_000,
)  # fmt: skip
