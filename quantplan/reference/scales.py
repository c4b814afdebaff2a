"""Scale and zero-point arithmetic: from the ranges of segments to what is stored, and from there to multipliers.

Every array here has one entry per segment. A segment with NaN or an infinity gets a NaN scale, so that the damage shows
downstream and stays where it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.elements import ElementKind
from quantplan.reference.rounding import CANONICAL_NAN, bits_of, fp8_values, round_fp8, round_to

if TYPE_CHECKING:
    from numpy.typing import NDArray

MX_BLOCK, NVFP4_BLOCK = 32, 16
"""Neighbours along K that share a scale in MX formats, and in NVFP4."""

_E8M0_BIAS = 127
_NVFP4_LIMIT = ElementKind.FP4_E2M1.largest * ElementKind.FP8_E4M3.largest  # 2688: the largest code times scale


def symmetric_scale(amax: NDArray[Any], limit: float) -> NDArray[Any]:
    """Return the scale that maps each segment's largest magnitude to ``limit``, in amax's element.

    One division, floored at the smallest normal number; 1 for a segment of zeros.

    Parameters
    ----------
    amax : ndarray of float32 or float64
        Largest magnitudes; NaN or infinite where the segment holds such.
    limit : float
        The largest quantized magnitude.
    """
    with np.errstate(all="ignore"):
        return _finish(amax / amax.dtype.type(limit), amax == 0)


def power_of_two_scale(amax: NDArray[Any], limit: float) -> NDArray[Any]:
    """Return the smallest power of two ≥ amax / limit of each segment, within [2⁻¹²⁷, 2¹²⁷], as E8M0.

    Rounded up, and by comparing significands rather than dividing: no element clips, and no logarithm is near a tie.
    """
    with np.errstate(all="ignore"):
        significand, exponent = np.frexp(amax)
        limit_significand, limit_exponent = np.frexp(limit)
        exponent = exponent - limit_exponent + (significand > limit_significand)
    codes = (np.clip(exponent, -_E8M0_BIAS, _E8M0_BIAS) + _E8M0_BIAS).astype(np.uint8)
    codes[amax == 0] = 0
    codes[~np.isfinite(amax)] = CANONICAL_NAN[ElementKind.E8M0]
    scale: NDArray[Any] = codes.view(ElementKind.E8M0.dtype)
    return scale


def asymmetric_scale(
    low: NDArray[Any], high: NDArray[Any], q_min: int, q_max: int
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Return scale and zero point that map each segment's range [low, high], which includes 0, to [q_min, q_max].

    The scale is in the ranges' element, and every operation rounds to it: ONNX DynamicQuantizeLinear's arithmetic.
    """
    number = low.dtype.type
    steps = number(q_max) - number(q_min)
    with np.errstate(all="ignore"):
        span = high - low
        scale = np.where(np.isinf(span), (high / 2 - low / 2) / (steps / 2), span / steps)
        zeros = span == 0
        scale = _finish(scale, zeros)
        zero_point = np.rint(number(q_min) - low / scale)
    zero_point[zeros | np.isnan(scale)] = 0
    return scale, np.clip(zero_point, q_min, q_max).astype(np.int32)


def nvfp4_global_scale(amax: NDArray[Any]) -> NDArray[Any]:
    """Return the first of NVFP4's two levels: a float32 for the whole tensor, NaN where a magnitude is not finite."""
    largest = np.max(amax, initial=0, keepdims=True).reshape(1)
    with np.errstate(all="ignore"):
        return _finish(round_to(largest / amax.dtype.type(_NVFP4_LIMIT), ElementKind.F32), largest == 0)


def nvfp4_block_scale(amax: NDArray[Any], global_scale: NDArray[Any]) -> NDArray[Any]:
    """Return the second level, a FP8_E4M3 scale per block: NaN where the global scale is."""
    with np.errstate(all="ignore"):
        divisor = np.float32(ElementKind.FP4_E2M1.largest) * global_scale
        return round_fp8(amax / divisor, ElementKind.FP8_E4M3)


def widen_scale(
    scale: NDArray[Any],
    element: ElementKind,
    dtype: type[np.floating[Any]],
    global_scale: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Return what quantized values are multiplied by, in the arithmetic's element.

    Parameters
    ----------
    scale : ndarray
        Scales of the given element; those of one byte may be uint8 too.
    element : ElementKind
        F32, F64, E8M0, or FP8_E4M3 for the block scales of NVFP4.
    dtype : type
        float32 or float64.
    global_scale : ndarray of float32, shape (1,), optional
        The second level of NVFP4; the product of both is rounded to float32 once.
    """
    if element is ElementKind.E8M0:
        codes = bits_of(scale)
        nan = codes == CANONICAL_NAN[element]
        return np.where(nan, np.nan, np.ldexp(dtype(1), np.where(nan, 0, codes.astype(np.int32) - _E8M0_BIAS)))
    if element is ElementKind.FP8_E4M3:
        factor = np.float32(1) if global_scale is None else global_scale[0]
        with np.errstate(all="ignore"):
            return (fp8_values(scale, element) * factor).astype(dtype)
    return scale.astype(dtype, copy=False)


def _finish(scale: NDArray[Any], zeros: NDArray[np.bool]) -> NDArray[Any]:
    """Apply what every floating-point scale obeys: a floor, 1 for segments of zeros, NaN for what is not finite."""
    scale = np.maximum(scale, np.finfo(scale.dtype).smallest_normal)
    scale[zeros] = 1
    scale[~np.isfinite(scale)] = np.nan
    return round_to(scale, ElementKind.of(scale.dtype))
