"""Segments, the pieces of a [m, k] operand that share one scale: reduced to their ranges, spread over their elements.

Everything goes through row blocks of about a megabyte, so that temporaries stay in cache and small beside the operands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.types import ScopeKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from quantplan.types import Scope

_BLOCK_ELEMENTS = 1 << 18


def row_blocks(m: int, k: int) -> Iterator[slice]:
    """Cut m rows of k elements into blocks of about a megabyte of f32, at least one row each; none if k is 0."""
    if k == 0:
        return
    rows = max(1, _BLOCK_ELEMENTS // k)
    for start in range(0, m, rows):
        yield slice(start, min(start + rows, m))


def spread(values: NDArray[Any], scope: Scope, rows: slice, k: int) -> NDArray[Any]:
    """Return one value per segment as an array that broadcasts against a block of rows of k elements."""
    size = scope.group_size or 1
    view: NDArray[Any]
    match scope.kind, scope.axis:
        case ScopeKind.TENSOR, _:
            view = values.reshape(1, 1)
        case (ScopeKind.TOKEN, _) | (ScopeKind.CHANNEL, 0):
            view = values[rows, np.newaxis]
        case ScopeKind.CHANNEL, _:
            view = values[np.newaxis, :]
        case _, 0:
            view = values[np.arange(rows.start, rows.stop) // size]
        case _:
            view = np.repeat(values[rows], min(size, k), axis=1)[:, :k]
    return view


def segment_ranges(x: NDArray[Any], scope: Scope, dtype: type[np.floating[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the smallest and largest value of each segment, each widened to include 0.

    A NaN anywhere in a segment makes both of them NaN. An empty segment has the range [0, 0].

    Parameters
    ----------
    x : ndarray, shape (m, k)
    scope : Scope
    dtype : type
        Element of the results: float32, or float64 for an x of float64.
    """
    m, k = x.shape
    shape = scope.scale_shape(m, k)
    low, high = np.zeros(shape, dtype), np.zeros(shape, dtype)
    for rows in row_blocks(m, k):
        part = _segments_of(scope, rows)
        with np.errstate(all="ignore"):
            block = x[rows].astype(dtype, copy=False)
            # Not fmin and fmax, which swallow NaN.
            np.minimum(low[part], _reduce(np.minimum, block, scope, rows), out=low[part])
            np.maximum(high[part], _reduce(np.maximum, block, scope, rows), out=high[part])
    return low, high


def _segments_of(scope: Scope, rows: slice) -> slice:
    """Return which entries of the leading axis of the scales the rows belong to."""
    if scope.within_rows:
        return rows
    if scope.kind is ScopeKind.GROUP:
        size = scope.group_size or 1
        return slice(rows.start // size, (rows.stop - 1) // size + 1)
    return slice(None)


def _reduce(ufunc: np.ufunc, block: NDArray[Any], scope: Scope, rows: slice) -> NDArray[Any]:
    """Reduce the part of each segment that lies within a block of rows."""
    size = scope.group_size or 1
    part: NDArray[Any]
    match scope.kind, scope.axis:
        case ScopeKind.TENSOR, _:
            part = ufunc.reduce(block, axis=None, keepdims=True).reshape(1)
        case (ScopeKind.TOKEN, _) | (ScopeKind.CHANNEL, 0):
            part = ufunc.reduce(block, axis=1)
        case ScopeKind.CHANNEL, _:
            part = ufunc.reduce(block, axis=0)
        case _, 0:
            # The block may begin and end inside a group.
            first = np.arange(rows.start - rows.start % size, rows.stop, size)
            part = ufunc.reduceat(block, np.maximum(first - rows.start, 0), axis=0)
        case _:
            part = ufunc.reduceat(block, np.arange(0, block.shape[1], size), axis=1)
    return part
