"""Arithmetic of pairs, as it is emulated: fused multiply-adds of f16 and bf16 round the exact result once."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from tests.gpu.test_ptx import ELEMENTWISE, INSTRUCTIONS, fused_operands

FORMATS = {"fused_f16x2": (np.float16, 10, -14), "fused_bf16x2": (ml_dtypes.bfloat16, 7, -126)}
COUNT = 3000


def rounded(exact, mantissa, least):
    """Round a fraction to nearest, ties to even, with so many bits behind the leading one, or behind the least."""
    if exact == 0:
        return exact
    exponent = abs(exact.numerator).bit_length() - exact.denominator.bit_length()
    exponent -= abs(exact) < Fraction(2) ** exponent
    step = Fraction(2) ** (max(exponent, least) - mantissa)
    return round(exact / step) * step


@pytest.mark.parametrize("name", FORMATS)
def test_one_rounding_of_the_exact_result(bench, name):
    dtype, mantissa, least = FORMATS[name]
    both, b = (np.ascontiguousarray(words[-COUNT:]) for words in fused_operands(name))
    out = np.zeros_like(b)
    arrays = {"a": both, "b": b, "out": out}
    bench.run(ELEMENTWISE, arrays, outputs=("out",), scalars=(COUNT, INSTRUCTIONS.index(name)), checked=False)
    inexact = 0
    for shift in (0, 16):
        with np.errstate(invalid="ignore"):
            numbers = np.stack(
                [
                    (words >> np.uint64(shift + offset)).astype(np.uint16).view(dtype).astype(np.float64)
                    for words, offset in ((both, 0), (b, 0), (both, 32), (out, 0))
                ]
            )
        for x, y, z, result in numbers.T[np.isfinite(numbers).all(axis=0)].tolist():
            exact = Fraction(x) * Fraction(y) + Fraction(z)
            assert Fraction(result) == rounded(exact, mantissa, least), (x, y, z)
            inexact += exact != Fraction(result)
    assert inexact > COUNT // 2


def test_nan_and_infinity(bench):
    inf, one, nan = (np.uint64(code * 0x10001) for code in (0x7C00, 0x3C00, 0x7E00))
    a = np.array([inf, inf, nan, one], np.uint64)
    b = np.array([one, one, one, inf], np.uint64)
    c = np.array([one, inf | np.uint64(0x80008000), one, one], np.uint64)
    out = np.zeros_like(a)
    arrays = {"a": a | c << np.uint64(32), "b": b, "out": out}
    index = INSTRUCTIONS.index("fused_f16x2")
    bench.run(ELEMENTWISE, arrays, outputs=("out",), scalars=(4, index), checked=False)
    assert [hex(code) for code in out] == ["0x7c007c00", "0x7fff7fff", "0x7fff7fff", "0x7c007c00"]


def test_bits_are_masked_and_set(bench):
    both, b = (np.ascontiguousarray(words[:COUNT]) for words in fused_operands("fused_bits"))
    out = np.zeros_like(b)
    arrays = {"a": both, "b": b, "out": out}
    bench.run(ELEMENTWISE, arrays, outputs=("out",), scalars=(COUNT, INSTRUCTIONS.index("fused_bits")), checked=False)
    np.testing.assert_array_equal(out, (both & b & np.uint64(0xFFFFFFFF)) | both >> np.uint64(32))
