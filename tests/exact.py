"""A softmax policy in 60 digits: what the theorems and their bounds are tested against.

Nothing here imports the package or torch. Floats convert to mpmath exactly, so a stored logit is an exact input.
"""

import math

import mpmath

DIGITS = 60
mpmath.mp.dps = DIGITS  # of the whole test process; nothing else uses mpmath
LAST_DIGITS = mpmath.mpf(10) ** (10 - DIGITS)
"""Rounding of the oracle itself: numbers up to 1e4, with room for a million operations."""


def number(x) -> mpmath.mpf:
    """An exact copy of a float."""
    return mpmath.mpf(float(x))


class Policy:
    """softmax(logits); masked actions (-inf) are left out, so every list runs over the support.

    support: positions of the actions kept; pi, logp: lists; h: entropy; c: log pi + H.
    """

    def __init__(self, logits):
        self.size = len(logits)
        self.support = [a for a, z in enumerate(logits) if z > -math.inf]
        self.z = [mpmath.mpf(logits[a]) for a in self.support]
        top = max(self.z)
        log_total = top + mpmath.log(mpmath.fsum(mpmath.exp(z - top) for z in self.z))
        self.logp = [z - log_total for z in self.z]
        self.pi = [mpmath.exp(lp) for lp in self.logp]
        self.h = -self.mean(self.logp)
        self.c = [lp + self.h for lp in self.logp]

    def on_support(self, values) -> list[mpmath.mpf]:
        """The entries of a full-length vector that belong to the policy."""
        return [mpmath.mpf(values[a]) for a in self.support]

    def mean(self, x):
        """E[x] of a list over the support."""
        return mpmath.fsum(p * v for p, v in zip(self.pi, x, strict=True))

    def centred(self, x):
        """x - E[x]."""
        m = self.mean(x)
        return [v - m for v in x]

    def moved(self, change, t=1) -> "Policy":
        """The policy at logits + t change; `change` is full length."""
        z = [-math.inf] * self.size
        for a, v, d in zip(self.support, self.z, self.on_support(change), strict=True):
            z[a] = v + t * d
        return Policy(z)

    def derivatives(self, change) -> tuple:
        """First, second and third derivative of H(z + t change) at t = 0, from central moments."""
        d = self.centred(self.on_support(change))
        c = self.c
        moment = [self.mean([v**k for v in d]) for k in range(4)]
        mixed = [self.mean([w * v**k for w, v in zip(c, d, strict=True)]) for k in range(4)]
        return -mixed[1], -(moment[2] + mixed[2]), -2 * moment[3] - mixed[3] + 3 * mixed[1] * moment[2]

    def first_order(self, change):
        """-Cov(log pi, change)."""
        return self.derivatives(change)[0]

    def second_order(self, change):
        """First order plus half the second derivative."""
        first, second, _ = self.derivatives(change)
        return first + second / 2

    def entropy_change(self, change):
        """H(z + change) - H(z)."""
        return self.moved(change).h - self.h

    def spread(self, change):
        """max - min of the change over the support."""
        d = self.on_support(change)
        return max(d) - min(d)

    def gradient_step(self, reward, step_size):
        """step_size pi (r - E r), over the support."""
        a = self.centred(self.on_support(reward))
        return [mpmath.mpf(step_size) * p * v for p, v in zip(self.pi, a, strict=True)]
