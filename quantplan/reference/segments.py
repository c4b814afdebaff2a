"""Segments, the pieces of a [m, k] operand that share one scale: reduced to their ranges, spread over their elements.

Everything goes through blocks of about a megabyte, so that temporaries stay in cache and small beside the operands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.types import ScopeKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from quantplan.types import Scope

_BLOCK_BYTES = 1 << 20


def blocks(m: int, k: int, dtype: np.dtype[Any] | type[np.number[Any]]) -> Iterator[tuple[slice, slice]]:
    """Cut an [m, k] operand into rows and columns of at most a megabyte of a dtype: whole rows, if one fits.

    Columns are cut at even places only, because 4-bit codes are stored in pairs. An empty operand has no blocks.
    """
    if k == 0:
        return
    elements = _BLOCK_BYTES // np.dtype(dtype).itemsize
    height, width = max(1, elements // k), min(k, elements)
    for top in range(0, m, height):
        rows = slice(top, min(top + height, m))
        for left in range(0, k, width):
            yield rows, slice(left, min(left + width, k))


def segments_of(scope: Scope, rows: slice, columns: slice) -> tuple[slice, ...]:
    """Return which entries of the scales a block needs, as an index. Other blocks may need them too."""
    size = scope.group_size or 1
    match scope.kind, scope.axis:
        case ScopeKind.TENSOR, _:
            return (slice(None),)
        case (ScopeKind.TOKEN, _) | (ScopeKind.CHANNEL, 0):
            return (rows,)
        case ScopeKind.CHANNEL, _:
            return (columns,)
        case _, 0:
            return _groups(rows, size), columns
    return rows, _groups(columns, size)


def spread(values: NDArray[Any], scope: Scope, rows: slice, k: int, columns: slice = slice(None)) -> NDArray[Any]:
    """Return one value per segment of a block as an array that broadcasts against the block.

    Parameters
    ----------
    values : ndarray
        The entries that `segments_of` the block selects.
    scope : Scope
    rows : slice
    k : int
        Length of the operand's rows.
    columns : slice
        All of them by default.
    """
    size = scope.group_size or 1
    view: NDArray[Any]
    match scope.kind, scope.axis:
        case ScopeKind.TENSOR, _:
            view = values.reshape(1, 1)
        case (ScopeKind.TOKEN, _) | (ScopeKind.CHANNEL, 0):
            view = values[:, np.newaxis]
        case ScopeKind.CHANNEL, _:
            view = values[np.newaxis, :]
        case _, 0:
            view = np.repeat(values, np.diff(_group_edges(rows, size)), axis=0)
        case _:
            part = slice(*columns.indices(k))
            view = np.repeat(values, np.diff(_group_edges(part, size)), axis=1)
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
    for rows, columns in blocks(m, k, dtype):
        part = segments_of(scope, rows, columns)
        with np.errstate(all="ignore"):
            block = x[rows, columns].astype(dtype, copy=False)
            # Not fmin and fmax, which swallow NaN.
            np.minimum(low[part], _reduce(np.minimum, block, scope, rows, columns), out=low[part])
            np.maximum(high[part], _reduce(np.maximum, block, scope, rows, columns), out=high[part])
    return low, high


def _reduce(ufunc: np.ufunc, block: NDArray[Any], scope: Scope, rows: slice, columns: slice) -> NDArray[Any]:
    """Reduce the part of each segment that lies within a block."""
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
            part = ufunc.reduceat(block, _group_edges(rows, size)[:-1], axis=0)
        case _:
            part = ufunc.reduceat(block, _group_edges(columns, size)[:-1], axis=1)
    return part


def _groups(along: slice, size: int) -> slice:
    """Return which groups a range of rows or columns has a part of."""
    return slice(along.start // size, -(-along.stop // size))


def _group_edges(along: slice, size: int) -> NDArray[np.intp]:
    """Return where in a range of rows or columns its groups begin, and its end. It may begin and end inside a group."""
    groups = _groups(along, size)
    edges: NDArray[np.intp] = np.arange(groups.start, groups.stop + 1) * size
    edges = np.clip(edges, along.start, along.stop)
    edges -= along.start
    return edges
