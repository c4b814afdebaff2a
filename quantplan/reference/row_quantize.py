"""The end of the fused ops: a row of f32 values is rounded, or quantized with a scale that is given or its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quantplan.reference.dynamic_range_quantize import dynamic_range_quantize
from quantplan.reference.quantize import quantize
from quantplan.reference.rounding import round_to
from quantplan.types import Scope

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from quantplan.elements import ElementKind

CODE_MAX = 127
"""s8 codes are symmetric: −127 … 127."""

_ELEMENTS_AT_ONCE = 1 << 20


def row_blocks(m: int, k: int) -> Iterator[slice]:
    """Yield slices of rows, so many at a time that temporaries stay small."""
    rows = max(1, _ELEMENTS_AT_ONCE // max(1, k))
    for first in range(0, m, rows):
        yield slice(first, min(m, first + rows))


def scales_of_rows(scale: NDArray[Any] | None, scope: Scope | None, rows: slice) -> NDArray[Any] | None:
    """Return the scales that some rows have: their own, or the one of all rows, or None."""
    return scale if scale is None or scope is None or not scope.within_rows else scale[rows]


def store_rows(
    y: NDArray[np.float32],
    output: NDArray[Any],
    scale: NDArray[Any] | None,
    *,
    output_element: ElementKind,
    scope: Scope | None,
    scale_element: ElementKind,
) -> None:
    """Write rows, and their scales where they are found from them.

    Parameters
    ----------
    y : ndarray of float32, shape (m, k)
    output : ndarray of the output element's storage, shape (m, k)
        Written.
    scale : ndarray of ``scale_element``, optional
        Read for the scope of the tensor, and else written: the scales of these rows.
    output_element : ElementKind
        S8, FP8_E4M3; or F32, F16, BF16, which have no scale.
    scope : Scope, optional
        What shares a scale: the tensor, whose scale is given, or a token or a group, whose scale is dynamic.
    scale_element : ElementKind
        F32, or E8M0 of groups.
    """
    if scope is None or scale is None:
        output[...] = round_to(y, output_element)
        return
    limits = (-CODE_MAX, CODE_MAX) if output_element.is_integer else (None, None)
    run = quantize if scope == Scope.tensor() else dynamic_range_quantize
    run(
        y,
        output,
        scale,
        None,
        output_element=output_element,
        scope=scope,
        q_min=limits[0],
        q_max=limits[1],
        scale_element=scale_element,
    )
