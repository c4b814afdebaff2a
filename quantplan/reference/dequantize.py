"""dequantize: codes back into real values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.elements import ElementKind
from quantplan.reference.packing import unpack_nibbles
from quantplan.reference.quantize import exact_in_f32
from quantplan.reference.rounding import FP4_VALUES, fp8_values, round_to, round_to_odd
from quantplan.reference.scales import widen_scale
from quantplan.reference.segments import blocks, segments_of, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantplan.types import Scope


def dequantize(
    q: NDArray[Any],
    output: NDArray[Any],
    scale: NDArray[Any],
    zero_point: NDArray[np.int32] | None,
    *,
    input_element: ElementKind,
    output_element: ElementKind,
    scope: Scope,
    scale_element: ElementKind = ElementKind.F32,
    global_scale: NDArray[np.float32] | None = None,
) -> None:
    """Write (q − zero_point) · scale into output: rounded once in the scale's element, then once into the output's.

    E8M0 scales are multiplied in f32 (f64 for an output of F64); NVFP4's are ``rne32(block scale · global scale)``.

    Parameters
    ----------
    q : ndarray of the input element's storage, shape (m, k), or (m, ceil(k / 2)) for 4-bit elements
    output : ndarray of float64, float32, float16 or bfloat16, shape (m, k)
        Written. Rows of q and output may be any distance apart.
    scale : ndarray of ``scale_element``, shape ``scope.scale_shape(m, k)``
    zero_point : ndarray of int32, of the same shape, or None
        None stands for zeros. Integers only.
    input_element : ElementKind
        S8, U8, S4, U4, FP8_E4M3, FP8_E5M2 or FP4_E2M1.
    output_element : ElementKind
        F64, F32, F16 or BF16.
    scope : Scope
    scale_element : ElementKind
        F32, F64, E8M0, or FP8_E4M3 together with a global scale (NVFP4).
    global_scale : ndarray of float32, shape (1,), optional
    """
    m, k = output.shape
    in_f64 = scale_element is ElementKind.F64 or (
        scale_element is ElementKind.E8M0 and output_element is ElementKind.F64
    )
    dtype = np.float64 if in_f64 else np.float32
    in_integers = zero_point is not None and not in_f64 and not exact_in_f32(zero_point)
    stored = input_element.storage_columns
    for rows, columns in blocks(m, k, np.int64 if in_integers else dtype):
        part = segments_of(scope, rows, columns)
        where = slice(stored(columns.start), stored(columns.stop))
        values = _widen(q[rows, where], input_element, columns.stop - columns.start)
        factor = spread(widen_scale(scale[part], scale_element, dtype, global_scale), scope, rows, k, columns)
        if zero_point is not None:
            offset = zero_point[part].astype(np.int64 if in_integers else dtype)
            values = values - spread(offset, scope, rows, k, columns)
        with np.errstate(all="ignore"):
            product = _product_in_f32(values, factor) if in_integers else values.astype(dtype, copy=False) * factor
        output[rows, columns] = round_to(product, output_element)


def _widen(stored: NDArray[Any], element: ElementKind, k: int) -> NDArray[Any]:
    """Return the numbers that codes stand for, as integers or float32."""
    if element.is_fp8:
        return fp8_values(stored, element)
    if not element.packed:
        return stored
    codes = unpack_nibbles(stored, k, signed=element is ElementKind.S4)
    return np.take(FP4_VALUES, codes) if element is ElementKind.FP4_E2M1 else codes


def _product_in_f32(integer: NDArray[np.int64], scale: NDArray[Any]) -> NDArray[Any]:
    """Round the real product of integers below 2³³, which are overwritten, and f32 scales to f32, once.

    The product can need 57 bits, more than f64 has. Its f64 rounding is therefore made a rounding to odd, which may be
    followed by one to nearest; what it lost is found from two partial products that are exact.
    """
    nearest = np.multiply(integer, scale, dtype=np.float64)
    fine = integer & 0xFFFF
    integer -= fine
    upper, lower = np.multiply(integer, scale, dtype=np.float64), np.multiply(fine, scale, dtype=np.float64)
    upper -= nearest  # exact, and so is the next sum: nearest is the rounded one, and upper is zero or the larger part
    error = np.add(lower, upper, out=lower)
    inexact = (error < 0) | (error > 0)  # false for the NaN that an infinite scale leaves
    beyond = inexact & (np.signbit(error) != np.signbit(nearest))
    return round_to_odd(nearest, inexact=inexact, beyond=beyond).astype(np.float32)
