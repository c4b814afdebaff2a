"""QuantizedLinear in NumPy: W8A8 matrix product with an activation scale per token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.errors import InvalidProblem
from quantplan.reference.linear import linear
from quantplan.types import EpilogueKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantplan.elements import ElementKind


def quantized_linear(
    act_q: NDArray[Any],
    act_scale: NDArray[Any],
    weight_q: NDArray[np.int8],
    weight_scale: NDArray[Any],
    output: NDArray[Any],
    *,
    act_zero_point: NDArray[np.int32] | None = None,
    bias: NDArray[Any] | None = None,
    epilogue: EpilogueKind = EpilogueKind.IDENTITY,
    output_element: ElementKind,
    output_scale: float | NDArray[Any] | None = None,
) -> None:
    """Write ``act(act_scale[m] · weight_scale[n] · Σ_k (act_q[m, k] − act_zero_point[m]) · weight_q[n, k] + bias[n])``.

    Parameters
    ----------
    act_q : ndarray of int8 or uint8, shape (M, K)
    act_scale : ndarray of float32 (float64 for f64 output), shape (M,)
    weight_q : ndarray of int8, shape (N, K)
    weight_scale : ndarray of the element of ``act_scale``, shape (N,) or (1,)
    output : ndarray of ``output_element``, shape (M, N)
        Written.
    act_zero_point : ndarray of int32, shape (M,), optional
        Within the range of ``act_q``'s element; a kernel trusts that.
    bias : ndarray of the element of ``act_scale``, shape (N,), optional
    epilogue : EpilogueKind
    output_element : ElementKind
        F64, F32, F16, BF16 or S8.
    output_scale : float or ndarray of shape (1,), optional
        Scale of an s8 output.

    Raises
    ------
    InvalidProblem
        A zero point that no code of the activations' element is: the sum might not fit in an int32.
    """
    if act_zero_point is not None and len(act_zero_point):
        lowest, highest = np.iinfo(act_q.dtype).min, np.iinfo(act_q.dtype).max
        if not lowest <= act_zero_point.min() <= act_zero_point.max() <= highest:
            got = f"{act_zero_point.min()} … {act_zero_point.max()}"
            expected = f"integers in [{lowest}, {highest}]"
            raise InvalidProblem(op="QuantizedLinear", field="act_zero_point", expected=expected, got=got)
    linear(
        act_q,
        act_scale,
        weight_q,
        weight_scale,
        output,
        act_zero_point=act_zero_point,
        bias=bias,
        epilogue=epilogue,
        output_element=output_element,
        output_scale=output_scale,
    )
