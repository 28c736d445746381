"""What follows from the softmax alone, beyond the paper's four statements: one file each."""

from entropy_theory.claims.theory.sign_rule import SIGN_RULE

THEORY = (SIGN_RULE,)
