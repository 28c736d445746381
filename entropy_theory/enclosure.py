"""Tensors that carry a proved bound on their own rounding error, so that an identity can be checked without tolerance.

Running error analysis (Wilkinson; Higham, Accuracy and Stability of Numerical Algorithms, section 3.3): every
operation adds its own rounding to what its operands already carry. docs/theory.md, section 8.1, has the rules.
"""

from __future__ import annotations

import torch
from torch import Tensor

from entropy_theory.remainder import log_prob_rounding, probability_rounding
from entropy_theory.softmax import finite_log_probs

_U = 2.0**-53
"""Half the spacing of float64 above 1: |rounded - exact| <= _U |rounded| for one operation that does not underflow."""
_TINY = torch.finfo(torch.float64).tiny
_FUNCTION = 8
"""exp and log are taken to be accurate to this many _U, as in `remainder`."""
_UP = 1 + 2.0**-30
"""Bounds are themselves rounded: at most 2^20 additions of numbers >= 0, each off by _U, stay below this factor."""


class Enclosed:
    """Numbers known to lie within `error` of `value`, float64 tensors of one shape.

    Operators take another Enclosed, a tensor or a number; the latter two count as exact.
    Raises: ValueError if a tensor is not float64.
    """

    __slots__ = ("error", "value")

    def __init__(self, value: Tensor, error: Tensor | None = None):
        if value.dtype != torch.float64:
            raise ValueError(f"rounding is tracked in float64 only, got {value.dtype}; convert with .double() first")
        self.value = value
        self.error = torch.zeros_like(value) if error is None else error.expand_as(value)

    def __add__(self, other: Operand) -> Enclosed:
        other = enclosed(other)
        value = self.value + other.value
        return _rounded(value, self.error + other.error)

    def __sub__(self, other: Operand) -> Enclosed:
        return self + -enclosed(other)

    def __neg__(self) -> Enclosed:
        return Enclosed(-self.value, self.error)

    def __mul__(self, other: Operand) -> Enclosed:
        other = enclosed(other)
        carried = self.value.abs() * other.error + (other.value.abs() + other.error) * self.error
        return _rounded(self.value * other.value, carried + _TINY)

    def __truediv__(self, other: Operand) -> Enclosed:
        """Infinite error where the divisor may be 0."""
        other = enclosed(other)
        value = self.value / other.value
        room = other.value.abs() - other.error
        carried = (self.error + value.abs() * _UP * other.error) / (room / _UP) + _TINY
        return _rounded(value, torch.where(room > 0, carried, torch.inf))

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: Operand) -> Enclosed:
        return enclosed(other) + -self

    def __getitem__(self, index) -> Enclosed:
        return Enclosed(self.value[index], self.error[index])

    def square(self) -> Enclosed:
        """x^2."""
        return self * self

    def exp(self) -> Enclosed:
        """e^x."""
        value = self.value.exp()
        return _rounded(value, value * (1 + 2 * _FUNCTION * _U) * torch.expm1(self.error) + _TINY, _FUNCTION)

    def log(self) -> Enclosed:
        """ln x; infinite error where x may be 0 or negative."""
        share = (self.error / self.value * _UP).clamp(0, 1)
        carried = torch.where(self.value > 0, -torch.log1p(-share), torch.inf)
        return _rounded(self.value.log(), carried, _FUNCTION)

    def sum(self, dim: int | tuple[int, ...] = -1, keepdim: bool = False) -> Enclosed:
        """Sum over axes, in any order of the additions."""
        value = self.value.sum(dim, keepdim=keepdim)
        terms = self.value.numel() // max(1, value.numel())
        rounding = terms * _U * self.value.abs().sum(dim, keepdim=keepdim)
        return Enclosed(value, (self.error.sum(dim, keepdim=keepdim) + rounding) * _UP)

    def unsqueeze(self, dim: int) -> Enclosed:
        """A new axis of length 1."""
        return Enclosed(self.value.unsqueeze(dim), self.error.unsqueeze(dim))


Operand = Enclosed | Tensor | float


def enclosed(x: Operand) -> Enclosed:
    """A number or a tensor as an exact Enclosed; an Enclosed as it is."""
    if isinstance(x, Enclosed):
        return x
    return Enclosed(x if isinstance(x, Tensor) else torch.tensor(float(x), dtype=torch.float64))


def _rounded(value: Tensor, carried: Tensor, count: int = 1) -> Enclosed:
    """A freshly rounded result: what its operands carried plus `count` roundings of its own."""
    return Enclosed(value, (carried + count * _U * value.abs()) * _UP)


def matmul(a: Operand, b: Operand) -> Enclosed:
    """Matrix product over the last two axes, in any order of the additions."""
    a, b = enclosed(a), enclosed(b)
    size, terms = a.value.abs(), a.value.shape[-1]
    carried = size @ b.error + a.error @ (b.value.abs() + b.error)
    rounding = (terms + 1) * _U * (size @ b.value.abs()) + 2 * terms * _TINY
    return Enclosed(a.value @ b.value, (carried + rounding) * _UP)


def policy(logits: Tensor, error: Tensor | None = None) -> tuple[Enclosed, Enclosed]:
    """`softmax.finite_log_probs` with its rounding: (log pi, pi), each [..., actions]; masked actions are 0 and 0.

    error: [...], how far the finite logits may be from the exact ones; it moves log pi by at most twice as much.
    """
    logp, probability = finite_log_probs(logits)
    support = torch.isfinite(logits)
    moved = torch.zeros(logits.shape[:-1], dtype=logits.dtype) if error is None else 2 * error
    of_logp = torch.where(support, (log_prob_rounding(logits) + moved).unsqueeze(-1), 0.0)
    relative = torch.expm1(probability_rounding(logits) + moved).unsqueeze(-1)
    of_probability = torch.where(support, relative * probability * _UP + _TINY, 0.0)
    return Enclosed(logp, of_logp), Enclosed(probability, of_probability)


def mean(x: Operand, weights: Enclosed, dim: int | tuple[int, ...] = -1, keepdim: bool = False) -> Enclosed:
    """sum w x for weights that sum to 1 exactly, such as a policy."""
    return (weights * enclosed(x)).sum(dim, keepdim=keepdim)


def covariance(x: Operand, y: Operand, weights: Enclosed, dim: int | tuple[int, ...] = -1) -> Enclosed:
    """sum w (x - E x)(y - E y) for weights that sum to 1 exactly."""
    x, y = enclosed(x), enclosed(y)
    deviation_x, deviation_y = x - mean(x, weights, dim, True), y - mean(y, weights, dim, True)
    return (weights * deviation_x * deviation_y).sum(dim)


def centred_log_prob(logp: Enclosed, probability: Enclosed) -> Enclosed:
    """c = log pi + H, [..., actions]."""
    return logp - mean(logp, probability, keepdim=True)
