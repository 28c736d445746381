"""Which tokens a trainer's Clip-Cov or KL-Cov selected, read off its gradient, and whether that was admissible.

Scores that lie closer together, or closer to a bound, than rounding can tell apart may fall either way.
"""

from typing import NamedTuple

import numpy as np

from entropy_theory.conformance import rounding
from entropy_theory.conformance.rounding import Array, Precision, Tokens


class Selection(NamedTuple):
    """What was selected among the valid tokens, [tokens], and what is wrong with it.

    selected: seen to be selected; where the gradient cannot tell, the golden selection
    unseen:   the gradient cannot tell
    faults:   selected tokens that must not be, tokens that must be and are not, and any count too many or too few
    note:     the counts in words
    """

    selected: Array
    unseen: Array
    faults: int
    note: str


def wanted_count(fraction: float, tokens: int) -> int:
    """max(1, floor(fraction tokens))."""
    return max(1, int(fraction * tokens))


def clip_cov(
    tokens: Tokens, gradient: Array, exact_gradient: Array, hyper: dict[str, float], edge: Array, precision: Precision
) -> Selection:
    """Selected are the tokens with a gradient under PPO and none here.

    Args:
      gradient, exact_gradient: of the trainer's Clip-Cov and of the clipped loss, [tokens].
      edge: bool, tokens that may count as clipped or not.
    """
    score, error = _scores(tokens, precision)
    active = exact_gradient != 0
    selected = active & (gradient == 0) & ~edge
    possible = (active | edge) & (score + error > hyper["low"]) & (score - error < hyper["high"])
    sure = active & ~edge & (score - error > hyper["low"]) & (score + error < hyper["high"])
    wanted, seen = wanted_count(hyper["fraction"], len(score)), int(selected.sum())
    least, most = min(wanted, int(sure.sum())), min(wanted, int(possible.sum()))
    wrong = int((selected & ~possible).sum())
    faults = wrong + max(0, least - int(edge.sum()) - seen) + max(0, seen - most)
    note = f"{seen} dropped, {_range(least, most)} wanted" + (f", {wrong} not eligible" if wrong else "")
    return Selection(selected, edge & possible, faults, note)


def kl_cov(
    tokens: Tokens, gradient: Array, base: Array, of_base: Array, hyper: dict[str, float], precision: Precision
) -> Selection:
    """Selected are the tokens whose gradient differs from that of -r A by coef sign(logp - old_logp) / tokens.

    Args:
      gradient, base, of_base: the trainer's gradient, the exact one of -r A, and the bound of its error, [tokens].
    """
    score, error = _scores(tokens, precision)
    n, wanted = len(score), wanted_count(hyper["fraction"], len(score))
    half = hyper["coef"] / (2 * n)
    of_x = rounding.log_ratio_error(tokens, precision)
    unseen = (np.abs(tokens.log_ratio) <= of_x) | (of_base >= half)
    with np.errstate(invalid="ignore"):
        selected = ~unseen & (np.sign(tokens.log_ratio) * (gradient - base) > half)
    above, below = (score + error)[None, :], (score - error)[:, None]
    sure_in = (above >= below).sum(-1) - 1 < wanted  # it is not above itself
    sure_out = ((score - error)[None, :] > (score + error)[:, None]).sum(-1) >= wanted
    seen, missing = int(selected.sum()), int((sure_in & ~unseen & ~selected).sum())
    extra, hidden = int((selected & sure_out).sum()), int((unseen & ~sure_out).sum())
    faults = missing + extra + max(0, seen - wanted - extra) + max(0, wanted - seen - hidden - missing)
    note = f"{seen} penalised, {wanted} wanted"
    if hidden:
        note += f", {hidden} of the candidates have no gradient that shows it"
    if missing or extra:
        note += f", {missing} missing and {extra} too low"
    golden = np.zeros(n, dtype=bool)
    golden[np.argsort(-score, kind="stable")[:wanted]] = True
    return Selection(selected | (unseen & golden), unseen, faults, note)


def _scores(tokens: Tokens, precision: Precision) -> tuple[Array, Array]:
    x, y = tokens.logp, tokens.advantage
    return (x - x.mean()) * (y - y.mean()), rounding.score_error(x, y, precision)


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"
