"""tanh and exp as loop bodies that the compiler turns into vector instructions; libm is called number by number."""

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

FLAGS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
"""`contract` lets a product and a sum become one operation with one rounding; nothing may be rearranged."""

EXACT = FLAGS | {"fastmath": False}
"""Every operation rounded as written. Said explicitly: a function without the word takes its first caller's."""


def tanh(x):
    """tanh x with an error of at most 3 units in the last place, float32 or float64; NaN stays NaN.

        tanh |x| = e / (e + 2),  e = exp(2|x|) - 1 = 2^k (exp(r) - 1) + (2^k - 1),  2|x| = k ln 2 + r, |r| <= ln 2 / 2

    exp(r) - 1 is a Taylor polynomial. Near 0 k is 0, and nothing cancels.
    """
    raise NotImplementedError("only compiled code may call this")


def exp(x):
    """exp x with an error of at most 3 units of roundoff, float32 or float64; NaN stays NaN.

        exp x = 2^k (exp(r) - 1) + 2^k,  x = k ln 2 + r, |r| <= ln 2 / 2

    What would be below the smallest normal number is 0; above `largest` (88.3 in float32, 709.7 in float64), inf.
    """
    raise NotImplementedError("only compiled code may call this")


class _Format:
    """What the formula needs to know of a floating-point format."""

    def __init__(self, number, fraction: int, terms: int, one: float):
        self.number, self.fraction = number, fraction
        self.one = one  # tanh rounds to 1 beyond
        # exp takes powers of two from the smallest normal one to the largest; k is rounded from x / ln 2
        self.smallest = float(np.log(np.finfo(number).smallest_normal)) * (1 - 2.0**-fraction)
        self.largest = (np.finfo(number).maxexp - 0.6) * math.log(2)
        self.taylor = [number(1 / math.factorial(i)) for i in range(terms)]
        spare = 10  # bits that k may take: the product of k and ln2_high is exact
        self.ln2_high = math.floor(math.log(2) * 2.0 ** (fraction - spare)) / 2.0 ** (fraction - spare)
        self.ln2_low = math.log(2) - self.ln2_high + 2.3190468138462996e-17  # ln 2 beyond its 53 bits


_FORMATS = {
    types.float32: _Format(np.float32, 23, 9, 10.0),
    types.float64: _Format(np.float64, 52, 15, 20.0),
}
_LLVM = {types.float32: (ir.IntType(32), ir.FloatType()), types.float64: (ir.IntType(64), ir.DoubleType())}


@intrinsic
def _power_of_two(context, shifted):
    """2^k from 1.5 * 2^fraction + k, in whose lowest bits k stands."""
    fraction = _FORMATS[shifted].fraction
    integer, number = _LLVM[shifted]

    def generate(context, builder, signature, args):
        exponent = builder.shl(builder.bitcast(args[0], integer), integer(fraction))
        one = builder.bitcast(ir.Constant(number, 1.0), integer)
        return builder.bitcast(builder.add(exponent, one), number)

    return shifted(shifted), generate


def _polynomial(coefficients):
    """Horner's rule, unrolled: compiled r -> c0 + r (c1 + r (...))."""
    first = coefficients[0]
    if len(coefficients) == 1:
        return njit(inline="always", **FLAGS)(lambda r: first)
    rest = _polynomial(coefficients[1:])
    return njit(inline="always", **FLAGS)(lambda r: first + r * rest(r))


def _above_one(kind: _Format):
    """Compiled x -> (exp(r) - 1, 2^k): exp x = 2^k exp(r)."""
    to = kind.number
    high, low, log2_e = to(kind.ln2_high), to(kind.ln2_low), to(1 / math.log(2))
    rounding = to(1.5 * 2.0**kind.fraction)
    series = _polynomial(kind.taylor[2:])

    @njit(inline="always", **FLAGS)
    def value(x):
        shifted = x * log2_e + rounding
        k = shifted - rounding
        r = (x - k * high) - k * low
        return r + r * r * series(r), _power_of_two(shifted)

    return value


def _tanh_of(kind: _Format):
    largest, one, two = kind.number(kind.one), kind.number(1), kind.number(2)
    above_one = _above_one(kind)

    @njit(inline="always", **FLAGS)
    def value(x):
        size = abs(x)
        m, power = above_one(two * (largest if size > largest else size))  # a NaN is not larger
        e = m * power + (power - one)
        return math.copysign(e / (e + two), x)

    return value


def _exp_of(kind: _Format):
    to = kind.number
    smallest, largest, zero, infinite = to(kind.smallest), to(kind.largest), to(0), to(np.inf)
    above_one = _above_one(kind)

    @njit(inline="always", **FLAGS)
    def value(x):
        bounded = largest if x > largest else smallest if x < smallest else x  # a NaN is neither
        m, power = above_one(bounded)
        found = m * power + power
        return infinite if x > largest else zero if x < smallest else found

    return value


_TANH = {dtype: _tanh_of(kind) for dtype, kind in _FORMATS.items()}
_EXP = {dtype: _exp_of(kind) for dtype, kind in _FORMATS.items()}


@overload(tanh, inline="always", jit_options=FLAGS)
def _tanh(x):
    function = _TANH[x]
    return lambda x: function(x)


@overload(exp, inline="always", jit_options=FLAGS)
def _exp(x):
    function = _EXP[x]
    return lambda x: function(x)
