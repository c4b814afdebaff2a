"""activation_quantize: an activation, gated or not, and quantized, each operation rounded to f32 by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.elements import ElementKind
from quantplan.reference.epilogue import activation
from quantplan.reference.row_quantize import row_blocks, scales_of_rows, store_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantplan.types import EpilogueKind, Scope


def activation_quantize(
    gate: NDArray[Any],
    up: NDArray[Any] | None,
    output: NDArray[Any],
    scale: NDArray[Any] | None,
    *,
    epilogue: EpilogueKind,
    output_element: ElementKind,
    scope: Scope | None,
    scale_element: ElementKind = ElementKind.F32,
    multiplier: NDArray[np.float32] | None = None,
) -> None:
    """Write act(gate)·up·multiplier, and its scales where they are dynamic.

    Parameters
    ----------
    gate : ndarray of float32, float16 or bfloat16, shape (m, k)
        What the activation is applied to.
    up : ndarray like gate, optional
        What its result is multiplied by.
    output : ndarray of the output element's storage, shape (m, k)
        Written.
    scale, output_element, scope, scale_element
        As for `store_rows`.
    epilogue : EpilogueKind
        The activation.
    multiplier : ndarray of float32, shape (k,), optional
    """
    m, k = gate.shape
    for rows in row_blocks(m, k):
        y = activation(gate[rows].astype(np.float32), epilogue)
        with np.errstate(all="ignore"):
            if up is not None:
                y = y * up[rows].astype(np.float32)
            if multiplier is not None:
                y = y * multiplier
        store_rows(
            y,
            output[rows],
            scales_of_rows(scale, scope, rows),
            output_element=output_element,
            scope=scope,
            scale_element=scale_element,
        )
