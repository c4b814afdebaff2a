"""SmoothQuantLinear in NumPy: W8A8 matrix product with one static activation scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.reference.linear import linear
from quantplan.types import EpilogueKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantplan.elements import ElementKind


def smoothquant_linear(
    act_q: NDArray[Any],
    weight_q: NDArray[np.int8],
    weight_scale: NDArray[Any],
    output: NDArray[Any],
    *,
    act_scale: float | NDArray[Any],
    act_zero_point: int = 0,
    bias: NDArray[Any] | None = None,
    epilogue: EpilogueKind = EpilogueKind.IDENTITY,
    output_element: ElementKind,
    output_scale: float | NDArray[Any] | None = None,
) -> None:
    """Write ``act(act_scale · weight_scale[n] · Σ_k (act_q[m, k] − act_zero_point) · weight_q[n, k] + bias[n])``.

    Parameters
    ----------
    act_q : ndarray of int8 or uint8, shape (M, K)
    weight_q : ndarray of int8, shape (N, K)
    weight_scale : ndarray of float32 (float64 for f64 output), shape (N,) or (1,)
    output : ndarray of ``output_element``, shape (M, N)
        Written.
    act_scale : float or ndarray of shape (1,)
        A float is rounded to f32 first, unless the output is f64. Negative and zero scales are allowed.
    act_zero_point : int
    bias : ndarray of the element of ``weight_scale``, shape (N,), optional
    epilogue : EpilogueKind
    output_element : ElementKind
        F64, F32, F16, BF16 or S8.
    output_scale : float or ndarray of shape (1,), optional
        Scale of an s8 output.
    """
    linear(
        act_q,
        act_scale,
        weight_q,
        weight_scale,
        output,
        act_zero_point=np.array([act_zero_point], np.int32) if act_zero_point else None,
        bias=bias,
        epilogue=epilogue,
        output_element=output_element,
        output_scale=output_scale,
    )
