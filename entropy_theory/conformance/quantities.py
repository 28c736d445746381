"""What each quantity is given, and how a trainer's answer is compared with the exact one.

A judge maps (batch, answer, precision) to rows. An answer is an array, or (loss, gradient) for a loss.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from entropy_theory.conformance import rounding, selection
from entropy_theory.conformance.golden import GoldenBatch
from entropy_theory.conformance.report import DIFFERS, EQUAL, Row
from entropy_theory.conformance.rounding import Array, Precision, Tokens

_GOLDEN = 2.0**-53
"""Relative rounding of the stored outputs."""
_OF_BOUND = 1 + 2.0**-20
"""The bounds are themselves computed in float64."""


class Quantity(NamedTuple):
    """One function a trainer may supply.

    inputs: arrays of the batch it is given, by keyword
    hyper:  whether it is also given the batch's hyper-parameters of this name
    grad:   the input its loss is differentiated by; None for a plain array
    judge:  compares its answer
    """

    inputs: tuple[str, ...]
    hyper: bool
    grad: str | None
    judge: Callable[[GoldenBatch, Array | tuple[Array, Array], Precision], list[Row]]


def worst(quantity: str, batch: GoldenBatch, measured: Array, exact: Array, allowed: Array, note: str = "") -> Row:
    """The largest difference beyond its bound as a row, or the one nearest to its bound; NaN exceeds every bound."""
    measured, exact, allowed = (np.atleast_1d(np.asarray(x, dtype=np.float64)) for x in (measured, exact, allowed))
    if measured.shape != exact.shape:
        return Row(quantity, batch.name, np.inf, 0.0, DIFFERS, f"shape {measured.shape}, wanted {exact.shape}")
    allowed = (allowed + _GOLDEN * np.abs(exact)) * _OF_BOUND
    with np.errstate(all="ignore"):
        difference = np.abs(measured - exact)
        difference = np.where(np.isnan(difference), np.inf, difference)
        beyond = difference > allowed
        ratio = np.where(difference == 0, -1 / (1 + allowed), difference / allowed)  # of equal entries the loosest
    at = int(np.where(beyond, difference, -1.0).argmax() if beyond.any() else ratio.argmax())
    shown = difference.flat[at] if np.isfinite(measured.flat[at]) else abs(measured.flat[at])
    verdict = DIFFERS if beyond.any() else EQUAL
    return Row(quantity, batch.name, float(shown), float(allowed.flat[at]), verdict, note)


def tokens_of(batch: GoldenBatch) -> Tokens:
    """The valid tokens."""
    return Tokens(*(batch[name][batch["mask"]] for name in ("logp", "old_logp", "advantage")))


def _on_tokens(name: str, error: Callable[[GoldenBatch, Precision], Array]) -> Callable:
    """Judge of a per-token array: valid tokens only, exact values under `name`."""

    def judge(batch: GoldenBatch, answer: Array, precision: Precision) -> list[Row]:
        mask, exact = batch["mask"], batch["logp" if name == "log_prob" else name]
        if np.shape(answer) != mask.shape:
            return [worst(name, batch, answer, exact, 0.0)]
        return [worst(name, batch, answer[mask], exact[mask], error(batch, precision))]

    return judge


def _covariance(batch: GoldenBatch, answer: Array, precision: Precision) -> list[Row]:
    t = tokens_of(batch)
    return [
        worst(
            "covariance", batch, answer, batch["covariance"], rounding.covariance_error(t.logp, t.advantage, precision)
        )
    ]


def _grpo(batch: GoldenBatch, answer: Array, precision: Precision) -> list[Row]:
    allowed = rounding.grpo_error(batch["reward"], batch["group"], batch.hyper["grpo"]["eps"], precision)
    return [worst("grpo", batch, answer, batch["grpo"], allowed)]


def _gradient_row(quantity: str, batch: GoldenBatch, gradient: Array, exact: Array, allowed: Array, note="") -> Row:
    """Per-token gradient: `exact` and `allowed` of the valid tokens; exactly 0 under the mask."""
    mask = batch["mask"]
    if np.shape(gradient) != mask.shape:
        return worst(quantity, batch, gradient, np.zeros(mask.shape), 0.0)
    full_exact, full_allowed = np.zeros(mask.shape), np.zeros(mask.shape)
    full_exact[mask], full_allowed[mask] = exact, allowed
    return worst(quantity, batch, gradient, full_exact, full_allowed, note)


class _Clipped(NamedTuple):
    """The clipped surrogate of the valid tokens with bounds: values, gradients, and tokens on the clip's edge."""

    value: Array
    of_value: Array
    gradient: Array
    of_gradient: Array
    edge: Array


def _clipped(batch: GoldenBatch, name: str, precision: Precision, of_logp: Array | None = None) -> _Clipped:
    """Exact clipped surrogate of one loss and its bounds; gradients already divided by the number of tokens."""
    t, n, h = tokens_of(batch), batch.tokens, batch.hyper[name]
    of_x = rounding.log_ratio_error(t, precision, of_logp)
    edge = rounding.near_edge(t, of_x, precision, h["clip_low"], h["clip_high"])
    full = np.exp(t.log_ratio) * t.advantage
    inside = np.clip(np.exp(t.log_ratio), 1 - h["clip_low"], 1 + h["clip_high"]) * t.advantage
    active = full <= inside
    of_full = rounding.surrogate_gradient_error(t, of_x, precision)
    return _Clipped(
        value=-np.minimum(full, inside),
        of_value=rounding.surrogate_error(t, of_x, precision, 1 + h["clip_high"]),
        gradient=np.where(active, -full, 0.0) / n,
        of_gradient=(np.where(active, of_full, 0.0) + np.where(edge, np.abs(full) + of_full, 0.0)) / n,
        edge=edge,
    )


def _ppo(name: str) -> Callable:
    def judge(batch: GoldenBatch, answer: tuple[Array, Array], precision: Precision) -> list[Row]:
        loss, gradient = answer
        c = _clipped(batch, name, precision)
        allowed = rounding.mean_error(c.value, c.of_value, batch.tokens, precision)
        return [
            worst(f"{name} loss", batch, loss, batch[f"{name}_loss"], allowed),
            _gradient_row(f"{name} gradient", batch, gradient, batch[f"{name}_gradient"][batch["mask"]], c.of_gradient),
        ]

    return judge


def _clip_cov(batch: GoldenBatch, answer: tuple[Array, Array], precision: Precision) -> list[Row]:
    """Selection by the gradient; loss and gradient against the exact ones of that selection."""
    loss, gradient = answer
    mask, c = batch["mask"], _clipped(batch, "clip_cov", precision)
    if np.shape(gradient) != mask.shape:
        return [worst("clip_cov gradient", batch, gradient, np.zeros(mask.shape), 0.0)]
    hyper = dict(batch.hyper["clip_cov"])
    found = selection.clip_cov(tokens_of(batch), gradient[mask], c.gradient, hyper, c.edge, precision)
    value = np.where(found.selected, 0.0, batch["token_surrogate"][mask])
    allowed = rounding.mean_error(value, np.where(found.selected, 0.0, c.of_value), batch.tokens, precision)
    allowed += float(np.abs(c.value[found.unseen]).sum()) / batch.tokens
    exact = np.where(found.selected, 0.0, c.gradient)
    return [
        _selection_row("clip_cov", batch, found),
        worst("clip_cov loss", batch, loss, value.sum() / batch.tokens, allowed),
        _gradient_row("clip_cov gradient", batch, gradient, exact, c.of_gradient),
    ]


def _kl_cov(batch: GoldenBatch, answer: tuple[Array, Array], precision: Precision) -> list[Row]:
    """As `_clip_cov`, with the unclipped surrogate and the penalty coef |logp - old_logp|."""
    loss, gradient = answer
    t, n, mask, hyper = tokens_of(batch), batch.tokens, batch["mask"], dict(batch.hyper["kl_cov"])
    if np.shape(gradient) != mask.shape:
        return [worst("kl_cov gradient", batch, gradient, np.zeros(mask.shape), 0.0)]
    of_x, coef = rounding.log_ratio_error(t, precision), hyper["coef"]
    base = batch["token_ratio"][mask] / n
    of_base = rounding.surrogate_gradient_error(t, of_x, precision) / n
    found = selection.kl_cov(t, gradient[mask], base, of_base, hyper, precision)
    penalty = np.where(found.selected, coef * batch["token_distance"][mask], 0.0)
    of_penalty = np.where(found.selected, coef * (of_x + 3 * precision.u * np.abs(t.log_ratio)), 0.0)
    hidden = float(coef * np.abs(t.log_ratio[found.unseen]).sum()) / n
    values = batch["token_ratio"][mask] + penalty
    errors = rounding.surrogate_error(t, of_x, precision, 0.0) + of_penalty
    exact = base + np.where(found.selected, coef * np.sign(t.log_ratio), 0.0) / n
    of_gradient = of_base + np.where(found.selected, float(precision.growth(4)), 0.0) * coef / n
    of_gradient = of_gradient + np.where(found.unseen & (t.log_ratio != 0), 2 * coef / n, 0.0)
    allowed = rounding.mean_error(np.abs(batch["token_ratio"][mask]) + penalty, errors, n, precision) + hidden
    return [
        _selection_row("kl_cov", batch, found),
        worst("kl_cov loss", batch, loss, values.sum() / n, allowed),
        _gradient_row("kl_cov gradient", batch, gradient, exact, of_gradient),
    ]


def _selection_row(name: str, batch: GoldenBatch, found: selection.Selection) -> Row:
    verdict = DIFFERS if found.faults else EQUAL
    return Row(f"{name} selection", batch.name, float(found.faults), 0.0, verdict, found.note)


def _entropy_bonus(batch: GoldenBatch, answer: tuple[Array, Array], precision: Precision) -> list[Row]:
    """Loss from the logits, and its gradient with respect to them."""
    loss, gradient = answer
    mask, n, coef = batch["mask"], batch.tokens, batch.hyper["entropy_bonus"]["coef"]
    logits, action = batch["logits"][mask], batch["action"][mask]
    c = _clipped(batch, "entropy_bonus", precision, rounding.log_prob_error(logits, action, precision))
    of_entropy = rounding.entropy_error(logits, precision)
    size = coef * batch["entropy"][mask]
    errors = c.of_value + coef * of_entropy + 3 * precision.u * size
    allowed = rounding.mean_error(np.abs(c.value) + size, errors, n, precision)
    exact = batch["entropy_bonus_logit_gradient"]
    full = np.zeros(exact.shape)
    full[mask] = _logit_gradient_error(logits, action, c, coef / n, precision)
    return [
        worst("entropy_bonus loss", batch, loss, batch["entropy_bonus_loss"], allowed),
        worst("entropy_bonus gradient", batch, gradient, exact, full),
    ]


def _logit_gradient_error(logits: Array, action: Array, c: _Clipped, coef: float, precision: Precision) -> Array:
    """Bound for w (e_action - p) + coef p (log p + H), with w the clipped surrogate's gradient, [tokens, actions]."""
    s = rounding.softmax(logits, precision)
    chosen = (np.arange(logits.shape[-1]) == action[:, None]).astype(np.float64)
    weight = np.abs(c.gradient)[:, None]
    size = weight * (chosen + s.p) + coef * s.p * (np.abs(s.lp) + s.h)
    error = c.of_gradient[:, None] * (chosen + s.p) * (1 + precision.growth(8, s.of_p))
    error = error + weight * (chosen * precision.growth(8) + s.p * precision.growth(8, s.of_p))
    error = error + coef * (1 + precision.growth(8)) * rounding.entropy_gradient_error(logits, precision)
    return np.where(np.isfinite(logits), error + precision.growth(8) * size, 0.0)


_LOSS_INPUTS = ("logp", "old_logp", "advantage", "mask")

QUANTITIES: dict[str, Quantity] = {
    "entropy": Quantity(
        ("logits",),
        False,
        None,
        _on_tokens("entropy", lambda b, p: rounding.entropy_error(b["logits"][b["mask"]], p)),
    ),
    "log_prob": Quantity(
        ("logits", "action"),
        False,
        None,
        _on_tokens("log_prob", lambda b, p: rounding.log_prob_error(b["logits"][b["mask"]], b["action"][b["mask"]], p)),
    ),
    "score": Quantity(
        ("logp", "advantage", "mask"),
        False,
        None,
        _on_tokens("score", lambda b, p: rounding.score_error(*tokens_of(b)[::2], p)),
    ),
    "covariance": Quantity(("logp", "advantage", "mask"), False, None, _covariance),
    "grpo": Quantity(("reward", "group"), True, None, _grpo),
    "ppo": Quantity(_LOSS_INPUTS, True, "logp", _ppo("ppo")),
    "clip_higher": Quantity(_LOSS_INPUTS, True, "logp", _ppo("clip_higher")),
    "clip_cov": Quantity(_LOSS_INPUTS, True, "logp", _clip_cov),
    "kl_cov": Quantity(_LOSS_INPUTS, True, "logp", _kl_cov),
    "entropy_bonus": Quantity(("logits", "action", *_LOSS_INPUTS[1:]), True, "logits", _entropy_bonus),
}
"""Every function `compare` knows, in the order of the report. Losses are also given `tokens`, their divisor."""
