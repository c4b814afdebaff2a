"""Rounding: one IEEE rounding from f32 or f64 into any element, canonical NaN at every store.

f64 never passes through a round-to-nearest f32: two nearest roundings are not one. It passes through a round-to-*odd*
f32 instead, which is harmless. Round-to-odd keeps exact values and otherwise takes the neighbour whose last bit is set,
so an inexact result never lands on a value of a coarser grid, nor on the midpoint between two of them, and it stays on
the same side of both as the original. Rounding it to nearest, ties to even, then gives what rounding the original
gives. The coarser format must have two bits of precision less, and its range and subnormal grid must lie inside the
finer one's: true of bf16, FP8 and FP4 against f32, and of FP8 (4 or 3 bits) and FP4 (2 bits) against bf16 (8 bits).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from quantplan.elements import ElementKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BITS_DTYPE = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

CANONICAL_NAN = {
    ElementKind.F64: 0x7FFF_FFFF_FFFF_FFFF,
    ElementKind.F32: 0x7FFF_FFFF,
    ElementKind.F16: 0x7FFF,
    ElementKind.BF16: 0x7FFF,
    ElementKind.FP8_E4M3: 0x7F,
    ElementKind.FP8_E5M2: 0x7F,
    ElementKind.E8M0: 0xFF,
}
"""The one bit pattern that each element's NaN is stored as."""

FP4_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)
"""Value of each FP4 (e2m1) code."""


def bits_of(x: NDArray[Any]) -> NDArray[Any]:
    """Return the bit patterns of an array as unsigned integers, sharing its memory."""
    return x.view(_BITS_DTYPE[x.dtype.itemsize])


def round_to(x: NDArray[Any], element: ElementKind) -> NDArray[Any]:
    """Round to nearest, ties to even, once, into f64, f32, f16 or bf16.

    Parameters
    ----------
    x : ndarray of float32 or float64
    element : ElementKind
        F64, F32, F16 or BF16.

    Returns
    -------
    ndarray
        A new array of ``element.dtype``. Overflow gives infinity; every NaN is the canonical one.
    """
    source = x
    if element is ElementKind.BF16 and x.dtype == np.float64:
        source = _round_to_odd_f32(x)  # ml_dtypes would go through a nearest f32; NumPy's f64 → f16 is direct
    with np.errstate(all="ignore"):  # overflow, and signalling NaN
        rounded = source.astype(element.dtype)
        nan = np.isnan(x)
    if nan.any():
        bits_of(rounded)[nan] = CANONICAL_NAN[element]
    return rounded


def round_fp8(x: NDArray[Any], element: ElementKind, *, saturate: bool = True) -> NDArray[Any]:
    """Round to nearest, ties to even, once, into an FP8 element.

    Parameters
    ----------
    x : ndarray of float32 or float64
    element : ElementKind
        FP8_E4M3 or FP8_E5M2.
    saturate : bool
        Beyond the largest finite value: that value if true; else e4m3 gives NaN (above 464) and e5m2 infinity (from
        61440, where the tie goes to even).

    Returns
    -------
    ndarray of ``element.dtype``
    """
    return np.take(_fp8_codes(element, saturate), _round_to_odd_16(x)).view(element.dtype)


def round_fp4(x: NDArray[Any]) -> NDArray[np.uint8]:
    """Round to nearest, ties to even, once, into FP4 (e2m1) codes 0 … 15, one to a byte.

    Beyond ±6 it saturates; NaN, which FP4 cannot hold, becomes code 0; zeros keep their sign.
    """
    return np.take(_fp4_codes(), _round_to_odd_16(x))


def fp8_values(codes: NDArray[Any], element: ElementKind) -> NDArray[Any]:
    """Widen FP8 codes, of the element's dtype or of uint8, to float32, exactly."""
    values: NDArray[Any] = np.take(_fp8_table(element), bits_of(codes))
    return values


def round_to_odd(nearest: NDArray[Any], *, inexact: NDArray[np.bool], beyond: NDArray[np.bool]) -> NDArray[Any]:
    """Turn a round-to-nearest result into the round-to-odd one, in place.

    Parameters
    ----------
    nearest : ndarray of float32 or float64
        The nearest value, with the exact result's sign where it is zero.
    inexact : ndarray of bool
        Whether it differs from the exact result.
    beyond : ndarray of bool
        Whether its magnitude exceeds the exact result's.
    """
    bits = bits_of(nearest)
    bits -= beyond  # truncated now: a rounded infinity has become the largest finite value
    bits |= inexact
    return nearest


def _round_to_odd_f32(x: NDArray[np.float64]) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        nearest = x.astype(np.float32)
        return round_to_odd(nearest, inexact=nearest != x, beyond=np.abs(nearest) > np.abs(x))


def _round_to_odd_16(x: NDArray[Any]) -> NDArray[np.uint16]:
    """Round to odd into bf16 patterns: the upper half of an f32, its last bit set where the lower half is not zero."""
    single = _round_to_odd_f32(x) if x.dtype == np.float64 else x
    bits = bits_of(single)
    upper = (bits >> np.uint32(16)).astype(np.uint16)
    upper |= (bits & np.uint32(0xFFFF)) != 0
    return upper


def _bf16_patterns() -> NDArray[Any]:
    values: NDArray[Any] = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    return values


@cache
def _fp8_codes(element: ElementKind, saturate: bool) -> NDArray[np.uint8]:  # noqa: FBT001 - cached by position
    """FP8 code of every bf16 pattern."""
    values = _bf16_patterns()
    if saturate:
        values = np.clip(values, -element.largest, element.largest)
    with np.errstate(all="ignore"):
        codes = values.astype(element.dtype)
    table: NDArray[np.uint8] = bits_of(codes)
    table[np.isnan(codes.astype(np.float32))] = CANONICAL_NAN[element]
    table.flags.writeable = False
    return table


@cache
def _fp4_codes() -> NDArray[np.uint8]:
    """FP4 code of every bf16 pattern."""
    values = np.clip(_bf16_patterns(), -6, 6)
    values[np.isnan(values)] = 0
    table: NDArray[np.uint8] = bits_of(values.astype(ml_dtypes.float4_e2m1fn))
    table.flags.writeable = False
    return table


@cache
def _fp8_table(element: ElementKind) -> NDArray[Any]:
    """Value of every FP8 code."""
    with np.errstate(all="ignore"):
        table: NDArray[Any] = np.arange(256, dtype=np.uint8).view(element.dtype).astype(np.float32)
    table.flags.writeable = False
    return table
