"""An independent oracle: the numeric contract one element at a time, in exact rational arithmetic.

Numbers are Python floats, which hold every value of every element; what lies between two roundings is a Fraction.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

from quantplan.elements import ElementKind
from quantplan.types import Scope, ScopeKind


class Format(NamedTuple):
    """A binary floating-point format: precision in bits, least normal exponent, largest finite value."""

    precision: int
    emin: int
    largest: Fraction

    @classmethod
    def ieee(cls, precision: int, emax: int) -> Format:
        return cls(precision, 1 - emax, (2 - Fraction(2) ** (1 - precision)) * Fraction(2) ** emax)


FORMATS = {
    ElementKind.F64: Format.ieee(53, 1023),
    ElementKind.F32: Format.ieee(24, 127),
    ElementKind.F16: Format.ieee(11, 15),
    ElementKind.BF16: Format.ieee(8, 127),
    ElementKind.FP8_E5M2: Format.ieee(3, 15),
    ElementKind.FP8_E4M3: Format(4, -6, Fraction(448)),
    ElementKind.FP4_E2M1: Format(2, 0, Fraction(6)),
}


def nearest(value: Fraction, precision: int, emin: int) -> Fraction:
    """Round to nearest, ties to even, as if the exponent had no upper limit."""
    if value == 0:
        return value
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    quantum = Fraction(2) ** (max(exponent, emin) - precision + 1)
    return round(value / quantum) * quantum  # round() of a Fraction: ties to even


def rounded(value: Fraction, element: ElementKind, *, negative_zero: bool = False) -> float:
    """Round a real number to f64, f32, f16 or bf16; overflow gives an infinity."""
    shape = FORMATS[element]
    result = nearest(value, shape.precision, shape.emin)
    if abs(result) > shape.largest:
        return math.inf if result > 0 else -math.inf
    return -0.0 if result == 0 and (value < 0 or negative_zero) else float(result)


def convert(value: float, element: ElementKind) -> float:
    """Round a float that may be infinite or NaN."""
    if not math.isfinite(value):
        return value
    return rounded(Fraction(value), element, negative_zero=math.copysign(1, value) < 0)


def divide(a: float, b: float, element: ElementKind) -> float:
    negative = math.copysign(1, a) * math.copysign(1, b) < 0
    if math.isnan(a) or math.isnan(b) or (math.isinf(a) and math.isinf(b)) or (a == 0 and b == 0):
        return math.nan
    if math.isinf(a) or b == 0:
        return -math.inf if negative else math.inf
    if math.isinf(b):
        return -0.0 if negative else 0.0
    return rounded(Fraction(a) / Fraction(b), element, negative_zero=negative)


def multiply(a: float, b: float, element: ElementKind) -> float:
    negative = math.copysign(1, a) * math.copysign(1, b) < 0
    if math.isnan(a) or math.isnan(b) or (math.isinf(a) and b == 0) or (math.isinf(b) and a == 0):
        return math.nan
    if math.isinf(a) or math.isinf(b):
        return -math.inf if negative else math.inf
    return rounded(Fraction(a) * Fraction(b), element, negative_zero=negative)


def value_of(code: int, element: ElementKind) -> float:
    """Decode an FP8 or FP4 code from the definition of the format."""
    mantissa_bits, exponent_bits, bias = {
        ElementKind.FP8_E4M3: (3, 4, 7),
        ElementKind.FP8_E5M2: (2, 5, 15),
        ElementKind.FP4_E2M1: (1, 2, 1),
    }[element]
    sign = -1.0 if code >> (mantissa_bits + exponent_bits) else 1.0
    exponent = code >> mantissa_bits & ((1 << exponent_bits) - 1)
    mantissa = code & ((1 << mantissa_bits) - 1)
    if element is ElementKind.FP8_E4M3 and code & 0x7F == 0x7F:
        return math.nan
    if element is ElementKind.FP8_E5M2 and exponent == 31:
        return math.nan if mantissa else sign * math.inf
    if exponent == 0:
        return sign * math.ldexp(mantissa, 1 - bias - mantissa_bits)
    return sign * math.ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits)


CODES = {
    element: {value_of(code, element): code for code in range(8 if element.packed else 128)}
    for element in (ElementKind.FP8_E4M3, ElementKind.FP8_E5M2, ElementKind.FP4_E2M1)
}


def code_of(value: float, element: ElementKind, *, saturate: bool = True) -> int:
    """Encode a float as FP8 or FP4."""
    shape = FORMATS[element]
    four_bits = element is ElementKind.FP4_E2M1
    if math.isnan(value):
        return 0 if four_bits else 0x7F
    sign = (8 if four_bits else 0x80) if math.copysign(1, value) < 0 else 0
    size = math.inf if math.isinf(value) else nearest(abs(Fraction(value)), shape.precision, shape.emin)
    if size > shape.largest:
        if not saturate and element is ElementKind.FP8_E4M3:
            return 0x7F
        size = math.inf if not saturate and element is ElementKind.FP8_E5M2 else shape.largest
    return sign | CODES[element][float(size)]


def quantized(
    x: float,
    scale: float,
    zero_point: int,
    element: ElementKind,
    limits: tuple[int, int],
    *,
    wide: bool,
    saturate: bool,
) -> int:
    """Return the code of one element: an integer's value, or a bit pattern."""
    quotient = divide(x, scale, ElementKind.F64 if wide else ElementKind.F32)
    if not element.is_integer:
        return code_of(quotient, element, saturate=saturate)
    low, high = limits
    if math.isnan(quotient):
        return min(max(zero_point, low), high)
    if math.isinf(quotient):
        return high if quotient > 0 else low
    return min(max(round(quotient) + zero_point, low), high)  # Python integers neither wrap nor round


def symmetric_scale(amax: float, limit: float, element: ElementKind) -> float:
    if not math.isfinite(amax):
        return math.nan
    if amax == 0:
        return 1.0
    return max(divide(amax, limit, element), float(Fraction(2) ** FORMATS[element].emin))


def power_of_two_scale(amax: float, limit: float) -> float:
    if not math.isfinite(amax):
        return math.nan
    power = Fraction(2) ** -127
    while power < 2**127 and power < Fraction(amax) / Fraction(limit):
        power *= 2
    return float(power)


def asymmetric_scale(low: float, high: float, limits: tuple[int, int], element: ElementKind) -> tuple[float, int]:
    if not (math.isfinite(low) and math.isfinite(high)):
        return math.nan, 0
    if low == high == 0:
        return 1.0, 0
    steps = Fraction(limits[1] - limits[0])
    span = rounded(Fraction(high) - Fraction(low), element)
    if math.isinf(span):
        half = rounded(Fraction(convert(high / 2, element)) - Fraction(convert(low / 2, element)), element)
        scale = rounded(Fraction(half) / (steps / 2), element)
    else:
        scale = rounded(Fraction(span) / steps, element)
    if math.isinf(scale):
        return math.nan, 0
    scale = max(scale, float(Fraction(2) ** FORMATS[element].emin))
    offset = rounded(limits[0] - Fraction(divide(low, scale, element)), element)
    return scale, min(max(round(offset), limits[0]), limits[1])


def segment_of(i: int, j: int, scope: Scope) -> tuple[int, ...]:
    """Return the index of the scale of element (i, j)."""
    size = scope.group_size or 1
    if scope.kind is ScopeKind.TENSOR:
        return (0,)
    if scope.kind is ScopeKind.TOKEN:
        return (i,)
    if scope.kind is ScopeKind.CHANNEL:
        return (i,) if scope.axis == 0 else (j,)
    return (i, j // size) if scope.axis == 1 else (i // size, j)
