"""The body that the W8A8 linears share: exact integer tiles, each finished by the epilogue while it is in cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.elements import ElementKind
from quantplan.reference.epilogue import activation, scale_and_bias, store
from quantplan.reference.igemm import gemm_tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantplan.types import EpilogueKind


def linear(
    act_q: NDArray[Any],
    act_scale: float | NDArray[Any],
    weight_q: NDArray[np.int8],
    weight_scale: NDArray[Any],
    output: NDArray[Any],
    *,
    act_zero_point: NDArray[np.int32] | None,
    bias: NDArray[Any] | None,
    epilogue: EpilogueKind,
    output_element: ElementKind,
    output_scale: float | NDArray[Any] | None,
) -> None:
    """Compute ``output = act(rne(rne(acc) · rne(act_scale · weight_scale)) + bias)``, then round into the output.

    ``acc = Σ_k (act_q − act_zero_point) · weight_q`` is an exact int32. Everything up to the output's rounding is done
    in f32, or in f64 for f64 output, with every operation rounded by itself. An empty K leaves ``acc = 0`` and so the
    bias or zeros.

    Parameters
    ----------
    act_q : ndarray of int8 or uint8, shape (M, K)
    act_scale : float or ndarray of shape (1,) or (M,)
        A float is rounded to the element of the scales, f32 or f64, first.
    weight_q : ndarray of int8, shape (N, K)
    weight_scale : ndarray of shape (N,) or (1,)
    output : ndarray of shape (M, N)
        Written. Every operand may have any row stride.
    act_zero_point : ndarray of int32, shape (M,) or (1,), optional
    bias : ndarray of shape (N,), optional
    epilogue : EpilogueKind
    output_element : ElementKind
        F64, F32, F16, BF16 or S8.
    output_scale : float or ndarray of shape (1,), optional
        For s8 output, ``clamp(rne(y / output_scale))`` in [−127, 127], from the unrounded y.
    """
    wide = np.float64 if output_element is ElementKind.F64 else np.float32
    with np.errstate(all="ignore"):
        act_scale = np.asarray(act_scale, wide).reshape(-1, 1)
        if output_scale is not None:
            output_scale = np.asarray(output_scale, np.float32).reshape(1, 1)
    for rows, columns, acc in gemm_tiles(act_q, weight_q, act_zero_point):
        with np.errstate(all="ignore"):
            scale = _part(act_scale, rows) * _part(weight_scale, columns)
        y = scale_and_bias(acc, scale, None if bias is None else bias[columns], wide)
        store(activation(y, epilogue), output[rows, columns], output_element, output_scale)


def _part(scales: NDArray[Any], part: slice) -> NDArray[Any]:
    """Return the scales of some rows or columns; one scale for all stays as it is."""
    return scales if len(scales) == 1 else scales[part]
