"""norm_quantize: a residual stream is updated, normalized and quantized, each operation rounded to f32 by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.elements import ElementKind
from quantplan.reference.rounding import round_to
from quantplan.reference.row_quantize import row_blocks, scales_of_rows, store_rows
from quantplan.reference.row_sums import row_sums
from quantplan.types import NormKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantplan.types import Scope


def norm_quantize(
    x: NDArray[Any],
    output: NDArray[Any],
    scale: NDArray[Any] | None,
    *,
    norm: NormKind,
    epsilon: float,
    output_element: ElementKind,
    scope: Scope | None,
    scale_element: ElementKind = ElementKind.F32,
    residual: NDArray[Any] | None = None,
    residual_gate: NDArray[Any] | None = None,
    residual_output: NDArray[Any] | None = None,
    weight: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
    modulation_scale: NDArray[Any] | None = None,
    modulation_shift: NDArray[Any] | None = None,
    rows_per_condition: int | None = None,
    multiplier: NDArray[np.float32] | None = None,
) -> None:
    """Write the new residual stream, the normalized rows, and their scales where they are dynamic.

    Parameters
    ----------
    x : ndarray of float32, float16 or bfloat16, shape (m, k)
    output : ndarray of the output element's storage, shape (m, k)
        Written.
    scale : ndarray of ``scale_element``, optional
        As for `store_rows`.
    norm : NormKind
    epsilon : float
        Added to the mean square, as an f32.
    output_element, scope, scale_element
        As for `store_rows`.
    residual : ndarray like x, optional
        What x is added to.
    residual_gate : ndarray of x's element, shape (conditions, k), optional
        What x is multiplied by before.
    residual_output : ndarray like x, optional
        Written if there is a residual: their sum. It may be the residual itself.
    weight, bias : ndarray of x's element, shape (k,), optional
    modulation_scale, modulation_shift : ndarray of x's element, shape (conditions, k), optional
        Rows are multiplied by 1 + scale, and shifted.
    rows_per_condition : int, optional
        How many rows share a row of the gate and of the modulation; all of them by default.
    multiplier : ndarray of float32, shape (k,), optional
    """
    m, k = x.shape
    for rows in row_blocks(m, k):
        condition = np.arange(rows.start, rows.stop) // (rows_per_condition or max(1, m))
        h = _f32(x[rows])
        with np.errstate(all="ignore"):
            if residual is not None and residual_output is not None:
                if residual_gate is not None:
                    h = _f32(residual_gate)[condition] * h
                stream = round_to(_f32(residual[rows]) + h, ElementKind.of(x.dtype))
                residual_output[rows] = stream
                h = _f32(stream)
            y = _normalized(h, norm, epsilon)
            if weight is not None:
                y *= _f32(weight)
            if bias is not None:
                y += _f32(bias)
            if modulation_scale is not None and modulation_shift is not None:
                y *= (np.float32(1) + _f32(modulation_scale))[condition]
                y += _f32(modulation_shift)[condition]
            if multiplier is not None:
                y *= multiplier
        store_rows(
            y,
            output[rows],
            scales_of_rows(scale, scope, rows),
            output_element=output_element,
            scope=scope,
            scale_element=scale_element,
        )


def _normalized(h: NDArray[np.float32], norm: NormKind, epsilon: float) -> NDArray[np.float32]:
    """Return the rows' distances to their mean (for RMS, to zero) over the root of their mean square."""
    k = np.float32(h.shape[1])
    if norm is NormKind.LAYER:
        h = h - (row_sums(h) / k)[:, None]
    mean_square = row_sums(h * h) / k
    reciprocal = np.float32(1) / np.sqrt(mean_square + np.float32(epsilon))
    normalized: NDArray[np.float32] = h * reciprocal[:, None]
    return normalized


def _f32(values: NDArray[Any]) -> NDArray[np.float32]:
    return values.astype(np.float32)
