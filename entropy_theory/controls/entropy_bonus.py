"""Entropy bonus."""

from dataclasses import replace
from typing import Literal

from entropy_theory.control import Control, Need, control
from entropy_theory.controller import Controller, schedule
from entropy_theory.controls.checks import check_coef


def entropy_bonus(
    coef: float = 0.01,
    schedule_kind: Literal["constant", "linear", "cosine"] = "constant",
    end: float = 0.0,
    steps: int = 1000,
) -> Control:
    r"""Add `coef` times the exact entropy of every token's state to the objective.

        loss_t = surrogate_t - coef H(pi(.|s_t))

    Williams & Peng 1991; studied for language models in Cui et al. 2025 (arXiv 2505.22617), Fig. 9.

    Args:
      coef: reward units per nat, >= 0.
      schedule_kind: how the coefficient moves from coef to end: "constant" (not at all), "linear" or "cosine".
      end: last coefficient of a schedule, reward units per nat, >= 0.
      steps: optimizer steps that the schedule takes.
    Raises: ValueError if coef or end is negative (it would drive entropy to 0) or not finite, the schedule is unknown,
      or steps is below 1.
    """
    check_coef("entropy_bonus.coef", coef)
    check_coef("entropy_bonus.end", end)
    return bonus_by(schedule(schedule_kind, coef, end, steps))


def bonus_by(coef: Controller) -> Control:
    """The entropy bonus with the coefficient that a controller sets."""

    def edit(objective, batch, state):
        bonus = coef.value(state).to(objective.entropy_coef.dtype)[..., None, None]
        return replace(objective, entropy_coef=objective.entropy_coef + bonus)

    return control(edit, init=coef.init, advance=coef.advance, needs={Need.ENTROPY_GRAD})
