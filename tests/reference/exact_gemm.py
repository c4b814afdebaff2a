"""The floating-point GEMMs by their contract: sums in integers, and one call of `exact` for every rounding.

A number is a Fraction, or a float where it is infinite or NaN.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from quantplan.elements import ElementKind
from quantplan.types import EpilogueKind, Fp8Scaling
from quantplan.verify.functions import activation as real_activation
from tests.reference import exact

F32 = ElementKind.F32
_SHIFT = 140  # every value of f16, bf16 and FP8 is an integer times 2⁻¹⁴⁰


def values(array):
    """Return the rows of a matrix as lists of Python floats."""
    with np.errstate(all="ignore"):  # signalling NaN
        return array.astype(np.float64).tolist()


def dot(a, w):
    """Return Σ a·w, rounded nowhere."""
    if all(map(math.isfinite, (*a, *w))):
        total = sum(int(math.ldexp(x, _SHIFT)) * int(math.ldexp(y, _SHIFT)) for x, y in zip(a, w, strict=True))
        return Fraction(total, 1 << 2 * _SHIFT)
    return sum(x * y for x, y in zip(a, w, strict=True))  # infinite or NaN, in any order


def to_f32(value):
    return exact.rounded(value, F32) if isinstance(value, Fraction) else value


def add(a, b):
    """Return rne32(a + b)."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return a + b
    return exact.rounded(Fraction(a) + Fraction(b), F32)


def cut(value, bits):
    """Drop all but the first ``bits`` bits."""
    if not isinstance(value, Fraction) or value == 0:
        return value
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    quantum = Fraction(2) ** (exponent - bits + 1)
    return (1 if value > 0 else -1) * (size // quantum) * quantum


def fast_dot(a, w):
    """Return Σ a·w whose running sum is cut to 14 bits after every 32 products."""
    total = Fraction(0)
    for start in range(0, len(a), 32):
        total = cut(total + dot(a[start : start + 32], w[start : start + 32]), 14)
    return total


def scaled_sum(sums, scales):
    """Return ``Σ_b rne(rne(sum_b) · scale_b)`` added in f32, one block after the other."""
    total = None
    for block, scale in zip(sums, scales, strict=True):
        term = exact.multiply(to_f32(block), scale, F32)
        total = term if total is None else add(total, term)
    return 0.0 if total is None else total


def finish(total, bias, epilogue, output_element, output_scale=None):
    """Return the stored number, or the code of an FP8 output."""
    y = total if bias is None else add(total, bias)
    if epilogue is EpilogueKind.RELU and not math.isnan(y):
        y = y if y > 0 else 0.0
    elif not epilogue.exact and math.isfinite(y):
        y = exact.rounded(real_activation(Fraction(y), epilogue), F32, negative_zero=math.copysign(1, y) < 0)
    if output_element.is_fp8:
        return exact.code_of(exact.divide(y, output_scale, F32), output_element)
    return exact.convert(y, output_element)


def fp8_scale(act_scale, weight_scale, scaling, place):
    """Return rne32(act_scale · weight_scale) at a place: row, column and block."""
    i, j, b = place
    if scaling is Fp8Scaling.TENSOR:
        pair = [float(np.float32(np.asarray(s).reshape(()))) for s in (act_scale, weight_scale)]
    elif scaling is Fp8Scaling.TOKEN_CHANNEL:
        pair = [float(act_scale[i]), float(weight_scale[j])]
    elif scaling is Fp8Scaling.BLOCK:
        pair = [float(act_scale[i, b]), float(weight_scale[j // 128, b])]
    else:
        codes = int(act_scale.view(np.uint8)[i, b]), int(weight_scale.view(np.uint8)[j, b])
        pair = [math.nan if code == 255 else math.ldexp(1, code - 127) for code in codes]
    return exact.multiply(*pair, F32)


def fp8_gemm(act_q, weight_q, act_scale, weight_scale, scaling, *, sum_of=dot, bias=None, **ending):
    """Return the matrix that Fp8Gemm must store."""
    a, w, K = values(act_q), values(weight_q), act_q.shape[1]
    depth = {Fp8Scaling.BLOCK: 128, Fp8Scaling.MX: 32}.get(scaling, max(K, 1))
    starts = range(0, K, depth)
    result = []
    for i, row in enumerate(a):
        result.append([])
        for j, column in enumerate(w):
            sums = [sum_of(row[k : k + depth], column[k : k + depth]) for k in starts]
            scales = [fp8_scale(act_scale, weight_scale, scaling, (i, j, b)) for b in range(len(starts))]
            result[i].append(finish(scaled_sum(sums, scales), None if bias is None else float(bias[j]), **ending))
    return result


def same(stored, expected):
    """Whether stored numbers, or codes of FP8, are the expected ones: every NaN, and the sign of every zero."""
    if stored.dtype.itemsize == 1:
        return stored.view(np.uint8).tolist() == expected
    wide = stored.astype(np.float64)
    wanted = np.array(expected, np.float64).reshape(wide.shape)
    nan = np.isnan(wanted)
    return bool(
        np.array_equal(np.isnan(wide), nan)
        and np.array_equal(wide[~nan], wanted[~nan])
        and np.array_equal(np.signbit(wide[~nan]), np.signbit(wanted[~nan]))
    )


def canonical(stored):
    """Whether every NaN has the one bit pattern: all ones but the sign, whatever the format."""
    with np.errstate(all="ignore"):
        nan = np.isnan(stored.astype(np.float64))
    width = stored.dtype.itemsize
    one = {2: 0x7FFF, 4: 0x7FFF_FFFF}[width]
    return bool((stored.view(f"u{width}")[nan] == one).all())
