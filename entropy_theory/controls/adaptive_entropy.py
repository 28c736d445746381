"""Adaptive entropy bonus of Skywork-OR1."""

from entropy_theory.control import Control
from entropy_theory.controller import AtTarget, gated, step_to_target
from entropy_theory.controls.checks import check_target
from entropy_theory.controls.entropy_bonus import bonus_by

PRESETS = {
    "paper": {"target": 0.2, "delta": 0.005, "at_target": "hold"},  # eq. 3.2; it names no largest coefficient
    # the released scripts; both the step and the gate are strict in the code
    "skywork": {"target": 0.2, "delta": 1e-4, "high": 0.005, "at_target": "lower"},
    "trl": {"target": 0.2, "delta": 0.005, "high": 1.0, "at_target": "raise"},
}


def adaptive_entropy(
    target: float = 0.2,
    delta: float = 0.005,
    high: float = 1.0,
    start: float = 0.0,
    at_target: AtTarget = "hold",
) -> Control:
    r"""Entropy bonus whose coefficient rises while entropy is below the target, and which acts only then.

        c <- clip(c + delta sign(target - H), 0, high),    loss_t = surrogate_t - c 1[H <= target] H(pi(.|s_t))

    He et al. 2025 (Skywork-OR1, arXiv 2505.22312), eq. 3.2. H is the entropy of the minibatch before, so coefficient
    and gate are one step late, as in the code. Here H is the exact token mean, as in TRL; the authors' code takes the
    sampled -mean log pi of the rollout and steps once per rollout. The lower end of the clip matters: without it c
    falls below 0 while entropy is high and *lowers* entropy later.

    Args:
      target: nats, > 0.
      delta: reward units per nat, > 0, the change per optimizer step.
      high: largest coefficient, reward units per nat, >= start.
      start: first coefficient, >= 0; it acts once an entropy has been measured.
      at_target: what step and gate do at H = target: the paper holds the coefficient and opens the gate, the authors'
        code lowers and closes, TRL raises and opens.
    Raises: ValueError if target or delta is not positive, start is outside [0, high], at_target is unknown, or, when a
      run is built, the actions cannot have so much entropy.
    """
    check_actions = check_target("adaptive_entropy.target", target)
    rule = gated(step_to_target(target, delta, 0.0, high, start, at_target), target, at_target)
    return bonus_by(rule)._replace(check_actions=check_actions)
