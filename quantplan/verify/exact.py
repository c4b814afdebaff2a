"""Floating-point formats and IEEE arithmetic on integers: the oracle that no device's own rounding can mislead.

A value of any format here is carried in a Python float, which holds every one of them exactly, with its NaN, its
infinities and its negative zero. Only the carrier is a float: sums, products, quotients and roundings are done on
the integers of `float.as_integer_ratio`, so nothing depends on NumPy, ml_dtypes or the machine's rounding mode.
"""

from __future__ import annotations

import math
from functools import cache, cached_property

import attrs

from quantplan.elements import ElementKind

_ROOT_BITS = 80  # of a root behind the point, at least: more than any format has


@attrs.frozen(slots=False)
class Format:
    """A binary floating-point format with subnormals.

    Parameters
    ----------
    exponent_bits, mantissa_bits : int
        Widths of the stored fields; a sign bit comes on top.
    ieee : bool
        Whether the highest exponent is kept for infinities and NaNs. Where it is not, those codes are numbers.
    nan : bool
        Whether the format has a NaN: in IEEE formats, and as the all-ones code of e4m3.
    """

    exponent_bits: int
    mantissa_bits: int
    ieee: bool = True
    nan: bool = True

    @cached_property
    def bits(self) -> int:
        """Width of a code."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @cached_property
    def precision(self) -> int:
        """Bits of a normal significand, the hidden one included."""
        return self.mantissa_bits + 1

    @cached_property
    def bias(self) -> int:
        """What is added to an exponent before it is stored."""
        return (1 << (self.exponent_bits - 1)) - 1

    @cached_property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number."""
        return 1 - self.bias

    @cached_property
    def max_exponent(self) -> int:
        """Exponent of the largest finite number."""
        return self.bias if self.ieee else self.bias + 1

    @cached_property
    def _top(self) -> int:
        """Significand of the largest finite number; without infinities, NaN takes the last code of that binade."""
        return (1 << self.precision) - (1 if self.ieee or not self.nan else 2)

    @cached_property
    def largest(self) -> float:
        """Largest finite number."""
        return math.ldexp(self._top, self.max_exponent - self.mantissa_bits)

    @cached_property
    def smallest_normal(self) -> float:
        """Smallest positive normal number."""
        return math.ldexp(1, self.min_exponent)

    @cached_property
    def smallest_subnormal(self) -> float:
        """Smallest positive number."""
        return math.ldexp(1, self.min_exponent - self.mantissa_bits)

    def round(self, num: int, den: int, *, saturate: bool = False) -> float:
        """Round a ratio of integers to the nearest number of the format, ties to even.

        Parameters
        ----------
        num, den : int
            The ratio; ``den`` is positive. A zero ratio gives +0.
        saturate : bool, optional
            What is too large becomes the largest finite number, instead of infinity or, without one, NaN.

        Returns
        -------
        float
            The rounded value, exactly.
        """
        if num == 0:
            return 0.0
        sign, num = (-1, -num) if num < 0 else (1, num)
        exponent = num.bit_length() - den.bit_length()
        if (num << max(0, -exponent)) < (den << max(0, exponent)):
            exponent -= 1  # now 2**exponent <= num / den < 2**(exponent + 1)
        quantum = max(exponent, self.min_exponent) - self.mantissa_bits
        significand = _nearest(num << max(0, -quantum), den << max(0, quantum))
        if significand >> self.precision:  # rounding carried into the next binade: the lowest bit is 0
            significand, quantum = significand >> 1, quantum + 1
        top = self.max_exponent - self.mantissa_bits
        if quantum > top or (quantum == top and significand > self._top):
            return sign * self._too_large(saturate=saturate)
        return math.ldexp(sign * significand, quantum)

    def _too_large(self, *, saturate: bool) -> float:
        if saturate or not self.nan:
            return self.largest
        return math.inf if self.ieee else math.nan

    def convert(self, value: float, *, saturate: bool = False) -> float:
        """Round a value of any format into this one; NaN, infinities and the sign of zero come through.

        A format without infinities takes them for numbers that are too large; one without NaN turns NaN into 0.
        """
        if math.isnan(value):
            return math.nan if self.nan else 0.0
        if math.isinf(value):
            return math.copysign(self._too_large(saturate=saturate), value)
        return math.copysign(self.round(*value.as_integer_ratio(), saturate=saturate), value)

    def encode(self, value: float) -> int:
        """Return the code of a value that the format holds exactly; every NaN has the one canonical code."""
        if math.isnan(value):
            return (1 << (self.bits - 1)) - 1
        sign = int(math.copysign(1, value) < 0) << (self.bits - 1)
        if math.isinf(value):
            return sign | ((1 << self.exponent_bits) - 1) << self.mantissa_bits
        if value == 0:
            return sign
        exponent = max(math.frexp(value)[1] - 1, self.min_exponent)
        scaled = abs(math.ldexp(value, self.mantissa_bits - exponent))
        significand = int(scaled)
        if significand != scaled or significand >> self.precision or abs(value) > self.largest:
            raise ValueError(f"{value!r} is not a number of {self}")
        stored = exponent + self.bias if significand >> self.mantissa_bits else 0  # 0: subnormal, no hidden bit
        return sign | stored << self.mantissa_bits | significand & ((1 << self.mantissa_bits) - 1)

    def decode(self, code: int) -> float:
        """Return the value of a code."""
        stored = (code >> self.mantissa_bits) & ((1 << self.exponent_bits) - 1)
        mantissa = code & ((1 << self.mantissa_bits) - 1)
        sign = -1.0 if code >> (self.bits - 1) else 1.0
        if stored == (1 << self.exponent_bits) - 1:
            if self.ieee:
                return math.nan if mantissa else sign * math.inf
            if self.nan and mantissa == (1 << self.mantissa_bits) - 1:
                return math.nan
        significand = mantissa | int(stored > 0) << self.mantissa_bits
        return sign * math.ldexp(significand, max(stored, 1) - self.bias - self.mantissa_bits)


class PowerOfTwoFormat:
    """E8M0: the powers of two from 2⁻¹²⁷ to 2¹²⁷, and NaN; no sign and no zero."""

    bits = 8
    largest = math.ldexp(1, 127)
    _bias = 127
    _nan = 0xFF

    def __repr__(self) -> str:
        """Show the format, and no address: tests are named after it."""
        return "PowerOfTwoFormat()"

    def ceiling(self, num: int, den: int) -> float:
        """Return the smallest number of the format that is no less than a ratio ≥ 0; too large gives the largest."""
        if num == 0:
            return math.ldexp(1, -self._bias)
        exponent = num.bit_length() - den.bit_length() - 1  # 2**exponent < num / den
        while exponent < self._bias and (num << max(0, -exponent)) > (den << max(0, exponent)):
            exponent += 1
        return math.ldexp(1, min(max(exponent, -self._bias), self._bias))

    def encode(self, value: float) -> int:
        """Return the code of a value that the format holds exactly."""
        if math.isnan(value):
            return self._nan
        mantissa, exponent = math.frexp(value)
        code = exponent - 1 + self._bias
        if mantissa != 0.5 or not 0 <= code < self._nan:  # noqa: PLR2004 - what frexp gives for a power of two
            raise ValueError(f"{value!r} is not a number of E8M0")
        return code

    def decode(self, code: int) -> float:
        """Return the value of a code."""
        return math.nan if code == self._nan else math.ldexp(1, code - self._bias)


@attrs.frozen
class IntegerFormat:
    """Integers in two's complement, or without a sign."""

    bits: int
    signed: bool

    def encode(self, value: float) -> int:
        """Return the code of an integer of the format."""
        code = int(value) & ((1 << self.bits) - 1)
        if self.decode(code) != value:
            raise ValueError(f"{value!r} is not a number of {self}")
        return code

    def decode(self, code: int) -> int:
        """Return the value of a code."""
        return code - (1 << self.bits) if self.signed and code >> (self.bits - 1) else code


F64 = Format(11, 52)
F32 = Format(8, 23)
F16 = Format(5, 10)
BF16 = Format(8, 7)
E4M3 = Format(4, 3, ieee=False)
E5M2 = Format(5, 2)
E2M1 = Format(2, 1, ieee=False, nan=False)
E8M0 = PowerOfTwoFormat()

FLOATS = {
    ElementKind.F64: F64,
    ElementKind.F32: F32,
    ElementKind.F16: F16,
    ElementKind.BF16: BF16,
    ElementKind.FP8_E4M3: E4M3,
    ElementKind.FP8_E5M2: E5M2,
    ElementKind.FP4_E2M1: E2M1,
}
"""Formats that arithmetic results are rounded into."""

FORMATS: dict[ElementKind, Format | PowerOfTwoFormat | IntegerFormat] = {
    **FLOATS,
    ElementKind.E8M0: E8M0,
    ElementKind.S32: IntegerFormat(32, signed=True),
    ElementKind.S8: IntegerFormat(8, signed=True),
    ElementKind.U8: IntegerFormat(8, signed=False),
    ElementKind.S4: IntegerFormat(4, signed=True),
    ElementKind.U4: IntegerFormat(4, signed=False),
}
"""Every element format, as codes and values."""


@cache
def decoded(element: ElementKind) -> tuple[float, ...]:
    """Return the values of all codes of a format of at most 16 bits, in the order of the codes."""
    form = FORMATS[element]
    return tuple(form.decode(code) for code in range(1 << form.bits))


def _nearest(num: int, den: int) -> int:
    """Round a ratio ≥ 0 to the nearest integer, ties to even."""
    whole, rest = divmod(num, den)
    twice = 2 * rest
    return whole + int(twice > den or (twice == den and whole & 1))


def nearest_integer(value: float) -> int:
    """Round a finite value to the nearest integer, ties to even."""
    num, den = value.as_integer_ratio()
    return -_nearest(-num, den) if num < 0 else _nearest(num, den)


def add(a: float, b: float, form: Format) -> float:
    """Return a + b, rounded once into a format."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return a + b  # infinities and NaN follow IEEE 754 in Python too
    (a_num, a_den), (b_num, b_den) = a.as_integer_ratio(), b.as_integer_ratio()
    num = a_num * b_den + b_num * a_den
    if num == 0 and a == 0:
        return a + b  # +0, unless both are -0
    return form.round(num, a_den * b_den)


def subtract(a: float, b: float, form: Format) -> float:
    """Return a − b, rounded once into a format."""
    return add(a, -b, form)


def multiply(a: float, b: float, form: Format) -> float:
    """Return a · b, rounded once into a format."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return a * b
    (a_num, a_den), (b_num, b_den) = a.as_integer_ratio(), b.as_integer_ratio()
    return math.copysign(form.round(a_num * b_num, a_den * b_den), math.copysign(1, a) * math.copysign(1, b))


def divide(a: float, b: float, form: Format) -> float:
    """Return a / b, rounded once into a format: a true division, by zero too."""
    sign = math.copysign(1, a) * math.copysign(1, b)
    if math.isnan(a) or math.isnan(b) or (math.isinf(a) and math.isinf(b)) or (a == 0 and b == 0):
        return math.nan
    if math.isinf(a) or b == 0:
        return sign * math.inf
    if math.isinf(b):
        return sign * 0.0
    (a_num, a_den), (b_num, b_den) = abs(a).as_integer_ratio(), abs(b).as_integer_ratio()
    return sign * form.round(a_num * b_den, a_den * b_num)


def square_root(a: float, form: Format) -> float:
    """Return √a, rounded once into a format."""
    if not (math.isfinite(a) and a > 0):
        return a if a in (0, math.inf) else math.nan
    num, den = a.as_integer_ratio()
    scaled = num * den << 2 * _ROOT_BITS  # √a = √(num·den) / den
    root = math.isqrt(scaled)
    inexact = int(root * root != scaled)  # a bit beyond all that counts keeps it off every tie
    return form.round(2 * root + inexact, den << (_ROOT_BITS + 1))
