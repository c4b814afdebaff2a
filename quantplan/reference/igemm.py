"""Exact int8 matrix product through float32 BLAS, in blocks small enough that no partial sum is ever rounded.

A float32 holds every integer up to 2²⁴. Products of 8-bit integers are at most 2¹⁴ (s8·s8: (−128)²) or 32640 (u8·s8:
255·128) in magnitude, so a sum of 1024 or 512 of them, in any order and with any part of it fused, is exact. Blocks of
K are then added in int32, modulo 2³².

      K block ►
    ┌────┬────┬──┐        The product is cut into tiles. For each tile, K blocks of both operands are widened to
    │ a₀ │ a₁ │a₂│ rows   float32, multiplied and added: scratch memory is a few megabytes whatever the shape, and what
    └────┴────┴──┘        BLAS reads is still in cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_EXACT_K = {np.dtype(np.int8): 1024, np.dtype(np.uint8): 512}
_TILE = (256, 512)
_FEW_ROWS = 64
_WIDENED_ELEMENTS = (1 << 16, 1 << 21)


def int_gemm(a: NDArray[Any], w: NDArray[np.int8]) -> NDArray[np.int32]:
    """Return ``a · wᵀ`` in int32, modulo 2³².

    Parameters
    ----------
    a : ndarray of int8 or uint8, shape (M, K)
    w : ndarray of int8, shape (N, K)
        Either may have any row stride.

    Returns
    -------
    ndarray of int32, shape (M, N)
        Exact up to K = 131071 (s8·s8) or 65793 (u8·s8), where no sum can leave int32. Zeros if K is 0.
    """
    product = np.empty((len(a), len(w)), np.int32)
    for rows, columns, tile in gemm_tiles(a, w):
        product[rows, columns] = tile
    return product


def gemm_tiles(
    a: NDArray[Any], w: NDArray[np.int8], zero_point: NDArray[np.int32] | None = None
) -> Iterator[tuple[slice, slice, NDArray[np.int32]]]:
    """Yield ``(a − zero_point) · wᵀ`` in int32, modulo 2³², tile by tile.

    Parameters
    ----------
    a : ndarray of int8 or uint8, shape (M, K)
    w : ndarray of int8, shape (N, K)
    zero_point : ndarray of int32, shape (M,) or (1,), optional
        Subtracted from each row of ``a``; every int32 is allowed.

    Yields
    ------
    rows, columns : slice
        The tile's place in the product.
    tile : ndarray of int32
        Its values, valid until the next tile is asked for: the memory is used again.
    """
    (M, K), N = a.shape, len(w)
    shape = _TileShape.of(M, N, K, _EXACT_K[a.dtype])
    try:
        scratch = _SPARE.pop()
    except IndexError:  # not asked for beforehand: another thread may take the last one in between
        scratch = _Scratch()
    try:
        for n in range(0, N, shape.width):
            for m in range(0, M, shape.height):
                rows, columns = slice(m, min(m + shape.height, M)), slice(n, min(n + shape.width, N))
                zp = None if zero_point is None else np.broadcast_to(zero_point, (M,))[rows]
                yield rows, columns, _tile(a[rows], w[columns], zp, shape, scratch)
    finally:
        _SPARE.append(scratch)


class _TileShape(NamedTuple):
    """Sizes of a tile: rows of a, rows of w, columns of K widened at once, columns of K multiplied at once."""

    height: int
    width: int
    widened: int
    depth: int

    @classmethod
    def of(cls, M: int, N: int, K: int, exact: int) -> _TileShape:
        """Choose a tile whose widened blocks take about as many bytes as the operands, within fixed limits.

        Where one side has few rows, memory traffic is what counts, and NumPy widens whole rows at twice the speed of
        parts of rows: there a tile has fewer rows rather than parts of them.
        """
        smallest, largest = _WIDENED_ELEMENTS
        budget = min(max((M + N) * K // 4, smallest), largest)
        height, width = _TILE
        if max(width, height) * min(exact, K) > budget:
            width = height
        if min(M, N) <= _FEW_ROWS:
            height = width = min(max(budget // max(K, 1), _FEW_ROWS), width)
        height, width = max(1, min(height, M)), max(1, min(width, N))
        blocks = max(1, budget // (max(height, width) * exact))
        whole_rows = max(height, width) * K <= budget
        return cls(height, width, max(K, 1) if whole_rows else blocks * exact, exact)


class _Scratch:
    """Memory kept from tile to tile and from call to call: fresh pages cost more than the arithmetic on them."""

    def __init__(self) -> None:
        self._memory: dict[str, NDArray[np.uint8]] = {}

    def matrix(self, name: str, rows: int, columns: int, dtype: type[np.generic] = np.float32) -> NDArray[Any]:
        """Return the contiguous matrix that is kept under a name, with whatever was last written there."""
        nbytes = 4 * rows * columns
        memory = self._memory.get(name)
        if memory is None or memory.size < nbytes:
            memory = self._memory[name] = np.empty(nbytes, np.uint8)
        return memory[:nbytes].view(dtype).reshape(rows, columns)


# As many as there were ever products under way at once: one per thread, as a rule. `pop` and `append` are atomic.
_SPARE: list[_Scratch] = []


def _tile(
    a: NDArray[Any],
    w: NDArray[np.int8],
    zero_point: NDArray[np.int32] | None,
    shape: _TileShape,
    scratch: _Scratch,
) -> NDArray[np.int32]:
    """Return (a − zero_point)·wᵀ = a·wᵀ − zero_point·Σₖw for operands that fit in one tile."""
    (M, K), N = a.shape, len(w)
    total = scratch.matrix("total", M, N, np.int32)
    total[:] = 0
    part, whole = scratch.matrix("part", M, N), scratch.matrix("whole", M, N, np.int32)
    w_sum = np.zeros(N, np.int32)
    for start in range(0, K, shape.widened):
        stop = min(start + shape.widened, K)
        a_wide, w_wide = scratch.matrix("a", M, stop - start), scratch.matrix("w", N, stop - start)
        np.copyto(a_wide, a[:, start:stop])
        np.copyto(w_wide, w[:, start:stop])
        for k in range(0, stop - start, shape.depth):
            a_block, w_block = a_wide[:, k : k + shape.depth], w_wide[:, k : k + shape.depth]
            np.matmul(a_block, w_block.T, out=part)
            np.copyto(whole, part, casting="unsafe")
            total += whole  # modulo 2³², as NumPy adds arrays and as GPUs accumulate
            if zero_point is not None:
                w_sum += (w_block @ np.ones(w_block.shape[1], np.float32)).astype(np.int32)
    if zero_point is not None:
        total -= np.multiply.outer(zero_point, w_sum)
    return total
