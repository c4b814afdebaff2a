"""dynamic_range_quantize: find each segment's range, choose its scale and zero point, then quantize with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem
from quantplan.reference.quantize import integer_limits, quantize
from quantplan.reference.rounding import bits_of
from quantplan.reference.scales import (
    asymmetric_scale,
    nvfp4_block_scale,
    nvfp4_global_scale,
    power_of_two_scale,
    symmetric_scale,
)
from quantplan.reference.segments import blocks, segment_ranges
from quantplan.types import QuantizeMode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantplan.types import Scope


def dynamic_range_quantize(
    x: NDArray[Any],
    q: NDArray[Any],
    scale: NDArray[Any],
    zero_point: NDArray[np.int32] | None,
    *,
    output_element: ElementKind,
    scope: Scope,
    mode: QuantizeMode = QuantizeMode.SYMMETRIC,
    q_min: int | None = None,
    q_max: int | None = None,
    saturate: bool = True,
    scale_element: ElementKind = ElementKind.F32,
    global_scale: NDArray[np.float32] | None = None,
) -> None:
    """Write scales, zero points and codes of x.

    Parameters
    ----------
    x : ndarray of float64, float32, float16 or bfloat16, shape (m, k)
    q : ndarray of the output element's storage, shape (m, k), or (m, ceil(k / 2)) for 4-bit elements
        Written. Rows of x and q may be any distance apart.
    scale : ndarray of ``scale_element``, shape ``scope.scale_shape(m, k)``
        Written.
    zero_point : ndarray of int32, of the same shape, or None
        Written if the mode is asymmetric; None if it is symmetric.
    output_element : ElementKind
        S8, U8, S4, U4, FP8_E4M3, FP8_E5M2 or FP4_E2M1.
    scope : Scope
    mode : QuantizeMode
    q_min, q_max : int, optional
        Range of an integer output; the element's own by default.
    saturate : bool
        As for quantize.
    scale_element : ElementKind
        F32 (F64 for an x of float64), E8M0, or FP8_E4M3 together with a global scale (NVFP4).
    global_scale : ndarray of float32, shape (1,), optional
        Written, for NVFP4.
    """
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    if (mode is QuantizeMode.ASYMMETRIC) != (zero_point is not None):
        raise InvalidProblem(
            op="DynamicRangeQuantize",
            field="zero_point",
            expected=f"{'an array' if zero_point is None else 'None'} for mode {mode.value}",
            got="None" if zero_point is None else "an array",
        )
    if zero_point is not None:
        limits = integer_limits(output_element, q_min, q_max)
        _store_asymmetric(*segment_ranges(x, scope, dtype), scale, zero_point, limits)
    else:
        limit = integer_limits(output_element, q_min, q_max)[1] if output_element.is_integer else output_element.largest
        _store_symmetric(_magnitudes(x, scope, dtype), scale, global_scale, limit, scale_element)
    quantize(
        x,
        q,
        scale,
        zero_point,
        output_element=output_element,
        scope=scope,
        q_min=q_min,
        q_max=q_max,
        saturate=saturate,
        scale_element=scale_element,
        global_scale=global_scale,
    )


def _magnitudes(x: NDArray[Any], scope: Scope, dtype: type[np.floating[Any]]) -> NDArray[Any]:
    """Return the largest magnitude of each segment."""
    low, high = segment_ranges(x, scope, dtype)
    np.maximum(np.negative(low, out=low), high, out=high)
    np.abs(high, out=high)  # the larger of −0 and 0 may be −0, which NVFP4 would store as a scale
    return high


def _store_asymmetric(
    low: NDArray[Any],
    high: NDArray[Any],
    scale: NDArray[Any],
    zero_point: NDArray[np.int32],
    limits: tuple[int, int],
) -> None:
    """Choose and write scales and zero points; in blocks, for there may be as many of them as elements."""
    low, high, scale, zero_point = map(np.atleast_2d, (low, high, scale, zero_point))
    m, k = low.shape
    for part in blocks(m, k, low.dtype):
        scale[part], zero_point[part] = asymmetric_scale(low[part], high[part], *limits)


def _store_symmetric(
    amax: NDArray[Any],
    scale: NDArray[Any],
    global_scale: NDArray[np.float32] | None,
    limit: float,
    scale_element: ElementKind,
) -> None:
    """Choose and write scales, and the global scale; in blocks as well."""
    if global_scale is not None:
        global_scale[...] = nvfp4_global_scale(amax)
    amax, stored = np.atleast_2d(amax), np.atleast_2d(bits_of(scale))
    m, k = amax.shape
    for part in blocks(m, k, amax.dtype):
        if scale_element is ElementKind.E8M0:
            chosen = power_of_two_scale(amax[part], limit)
        elif global_scale is not None:
            chosen = nvfp4_block_scale(amax[part], global_scale)
        else:
            chosen = symmetric_scale(amax[part], limit)
        stored[part] = bits_of(chosen)
