"""Entropy bonus."""

from dataclasses import replace

from entropy_theory.control import Control, Need, control
from entropy_theory.controller import Controller, constant
from entropy_theory.controls.checks import check_coef


def entropy_bonus(coef: float | Controller = 0.01) -> Control:
    r"""Add `coef` times the exact entropy of every token's state to the objective.

        loss_t = surrogate_t - coef H(pi(.|s_t))

    Williams & Peng 1991; studied for language models in Cui et al. 2025 (arXiv 2505.22617), Fig. 9.

    Args:
      coef: reward units per nat, >= 0, or a `Controller` that sets it from measured entropy.
    Raises: ValueError if coef is negative (it would drive entropy to 0) or not finite.
    """
    if not isinstance(coef, Controller):
        check_coef("entropy_bonus.coef", coef)
        coef = constant(coef)

    def edit(objective, batch, state):
        bonus = coef.value(state).to(objective.entropy_coef.dtype)[..., None, None]
        return replace(objective, entropy_coef=objective.entropy_coef + bonus)

    return control(edit, init=coef.init, advance=coef.advance, needs={Need.ENTROPY_GRAD})
