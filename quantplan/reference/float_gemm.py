"""The body that the floating-point GEMMs share: sums of blocks of K, each scaled, added in float32 in K order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.reference.epilogue import activation
from quantplan.reference.rounding import round_fp8, round_to

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from quantplan.elements import ElementKind
    from quantplan.types import EpilogueKind

_TILE = 192


def tiles(length: int) -> Iterator[slice]:
    """Cut rows or columns of a product into tiles whose float64 temporaries stay small beside the operands."""
    for start in range(0, length, _TILE):
        yield slice(start, min(start + _TILE, length))


def add_scaled(
    total: NDArray[np.float32] | None, block: NDArray[np.float64], scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return ``rne(total + rne(rne(block) · scale))``, or its second term when there is no total yet."""
    with np.errstate(all="ignore"):
        term: NDArray[np.float32] = block.astype(np.float32)
        term *= scale
        if total is not None:
            term += total
    return term


def finish(
    total: NDArray[np.float32] | None,
    output: NDArray[Any],
    *,
    bias: NDArray[Any] | None,
    epilogue: EpilogueKind,
    output_element: ElementKind,
    output_scale: Any = None,  # noqa: ANN401 - float or array
) -> None:
    """Add the bias, apply the activation and write the output, rounded once; FP8 saturates after one division."""
    y = np.zeros(output.shape, np.float32) if total is None else total
    with np.errstate(all="ignore"):
        if bias is not None:
            y += bias.astype(np.float32)
        y = activation(y, epilogue)
        if output_element.is_fp8:
            scaled = y / np.asarray(output_scale, np.float32).reshape(1, 1)
            output[...] = round_fp8(scaled, output_element)
            return
    output[...] = round_to(y, output_element)
