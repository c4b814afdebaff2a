"""quantize: real values into codes, with given scales. The one place where a quotient is rounded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.elements import ElementKind
from quantplan.reference.packing import pack_nibbles
from quantplan.reference.rounding import bits_of, round_fp4, round_fp8
from quantplan.reference.scales import widen_scale
from quantplan.reference.segments import blocks, segments_of, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantplan.types import Scope

_EXACT_IN_F32 = (1 << 24) - (1 << 8)


def quantize(
    x: NDArray[Any],
    q: NDArray[Any],
    scale: NDArray[Any],
    zero_point: NDArray[np.int32] | None,
    *,
    output_element: ElementKind,
    scope: Scope,
    q_min: int | None = None,
    q_max: int | None = None,
    saturate: bool = True,
    scale_element: ElementKind = ElementKind.F32,
    global_scale: NDArray[np.float32] | None = None,
) -> None:
    """Write round(x / scale) into q, one true division and one rounding each, in f32 (f64 for an x of float64).

    Integers are ``clamp(rne(x / scale) + zero_point, q_min, q_max)``, and ``clamp(zero_point)`` for a quotient of NaN.

    Parameters
    ----------
    x : ndarray of float64, float32, float16 or bfloat16, shape (m, k)
    q : ndarray of the output element's storage, shape (m, k), or (m, ceil(k / 2)) for 4-bit elements
        Written. Rows of x and q may be any distance apart.
    scale : ndarray of ``scale_element``, shape ``scope.scale_shape(m, k)``
    zero_point : ndarray of int32, of the same shape, or None
        None stands for zeros.
    output_element : ElementKind
        S8, U8, S4, U4, FP8_E4M3, FP8_E5M2 or FP4_E2M1.
    scope : Scope
    q_min, q_max : int, optional
        Range of an integer output; the element's own by default.
    saturate : bool
        For FP8: whether values beyond the largest finite one become that one, or NaN (e4m3) and infinity (e5m2).
    scale_element : ElementKind
        F32, F64, E8M0, or FP8_E4M3 together with a global scale (NVFP4).
    global_scale : ndarray of float32, shape (1,), optional
    """
    m, k = x.shape
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    code = np.uint8 if output_element in (ElementKind.U8, ElementKind.U4) else np.int8
    target, stored = bits_of(q), output_element.storage_columns
    for rows, columns in blocks(m, k, dtype):
        part = segments_of(scope, rows, columns)
        divisor = _divisors(scale[part], scale_element, dtype, global_scale)
        with np.errstate(all="ignore"):
            quotient = x[rows, columns].astype(dtype, copy=False) / spread(divisor, scope, rows, k, columns)
        codes: NDArray[Any]
        if output_element.is_integer:
            offset = None if zero_point is None else spread(_offsets(zero_point[part], dtype), scope, rows, k, columns)
            codes = _to_integers(quotient, offset, *integer_limits(output_element, q_min, q_max)).astype(code)
        elif output_element.is_fp8:
            codes = round_fp8(quotient, output_element, saturate=saturate)
        else:
            codes = round_fp4(quotient)
        where = slice(stored(columns.start), stored(columns.stop))
        target[rows, where] = pack_nibbles(codes) if output_element.packed else bits_of(codes)


def integer_limits(element: ElementKind, q_min: int | None, q_max: int | None) -> tuple[int, int]:
    """Return the range of an integer output: the given limits, else the element's."""
    lowest, highest = element.integer_range
    return lowest if q_min is None else q_min, highest if q_max is None else q_max


def exact_in_f32(zero_point: NDArray[np.int32]) -> bool:
    """Whether ``q − zero_point`` is an exact f32 for every q of an 8-bit element."""
    return not np.any((zero_point > _EXACT_IN_F32) | (zero_point < -_EXACT_IN_F32))


def _divisors(
    scale: NDArray[Any],
    element: ElementKind,
    dtype: type[np.floating[Any]],
    global_scale: NDArray[np.float32] | None,
) -> NDArray[Any]:
    divisor = widen_scale(scale, element, dtype, global_scale)
    if element is ElementKind.FP8_E4M3:
        divisor[bits_of(scale) & 0x7F == 0] = np.nan  # a block scale of zero makes every code 0, as NaN does
    return divisor


def _offsets(zero_point: NDArray[np.int32], dtype: type[np.floating[Any]]) -> NDArray[Any]:
    """Return zero points in an element in which a sum with a code is exact, or beyond every limit."""
    return zero_point.astype(dtype if exact_in_f32(zero_point) else np.float64)


def _to_integers(quotient: NDArray[Any], offset: NDArray[Any] | None, low: int, high: int) -> NDArray[Any]:
    """Round, add and clamp with no operation that could round again or wrap; the quotients are overwritten."""
    np.rint(quotient, out=quotient)
    np.copyto(quotient, 0, where=np.isnan(quotient))  # clamps and conversions treat NaN differently everywhere
    if offset is not None:
        quotient = quotient.astype(offset.dtype, copy=False)
        # A sum of integers up to 2²⁴ (f64: 2⁵³) is exact; a larger one may round, but stays beyond every limit.
        quotient += offset
    return np.clip(quotient, low, high, out=quotient)
