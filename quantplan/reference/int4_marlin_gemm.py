"""int4_marlin_gemm: f16 or bf16 activations times 4-bit weights in Marlin's layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem
from quantplan.formats import marlin
from quantplan.formats.int4 import SYMMETRIC_ZERO
from quantplan.reference.exact_sum import exact_sum
from quantplan.reference.float_gemm import add_scaled, finish, tiles
from quantplan.types import EpilogueKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

GROUP_SIZES = (-1, 32, 64, 128)
"""Rows of the weight that share a scale; −1 for all of them."""
_CODE_BITS = 4
"""Bits of |q − z|, which is at most 15."""
_SLAB = 1024
"""Rows of the weight that are unpacked at a time, a multiple of Marlin's tiles."""


def int4_marlin_gemm(
    act: NDArray[Any],
    weight_q: NDArray[np.int32],
    weight_scale: NDArray[Any],
    output: NDArray[Any],
    *,
    group_size: int,
    weight_zero_point: NDArray[np.int32] | None = None,
    perm: NDArray[np.int32] | None = None,
    bias: NDArray[Any] | None = None,
    output_element: ElementKind = ElementKind.F16,
) -> None:
    """Compute ``output = Σ_g rne(scale_g · rne(Σ_{k in g} act · (q − z))) + bias``.

    Sums within a group are exact (or rounded in a fixed order, see `exact_sum`) and rounded once to f32. Groups are
    added in f32 in K order, each operation rounded by itself.

    Parameters
    ----------
    act : ndarray of float16 or bfloat16, shape (M, K)
    weight_q : ndarray of int32, Marlin words of K and N padded to multiples of 64
    weight_scale : ndarray of the activations' element, shape (groups, N padded), in Marlin's order
    output : ndarray of shape (M, N)
        Written.
    group_size : int
        Rows of the weight that share a scale; −1 for one scale per column.
    weight_zero_point : ndarray of int32, Marlin's packed zero points, optional
        Symmetric weights have 8 everywhere.
    perm : ndarray of int32, shape (K,), optional
        Row k of the weight meets column ``perm[k]`` of the activations (act-order).
    bias : ndarray of the activations' element, shape (N,), optional
    output_element : ElementKind
        F16, BF16 or F32.
    """
    (M, K), N = act.shape, output.shape[1]
    size = max(K, 1) if group_size < 0 else group_size
    scale = marlin.unpack_scales(weight_scale, group_size)[:, :N].astype(np.float32)
    zero = None if weight_zero_point is None else marlin.unpack_zeros(weight_zero_point)[:, :N].view(np.int8)
    gathered = act if perm is None else act[:, _checked(perm, K)]
    groups = [slice(start, start + size) for start in range(0, K, size)]
    for columns in tiles(N):
        code = _codes(weight_q, K, columns)
        for g, part in enumerate(groups):
            code[part] -= np.int8(SYMMETRIC_ZERO) if zero is None else zero[g, columns]
        for rows in tiles(M):
            total = None
            for g, part in enumerate(groups):
                block = exact_sum(gathered[rows, part], code[part].T, _CODE_BITS)
                total = add_scaled(total, block, scale[g, columns])
            finish(
                total,
                output[rows, columns],
                bias=None if bias is None else bias[columns],
                epilogue=EpilogueKind.IDENTITY,
                output_element=output_element,
            )


def _codes(weight_q: NDArray[np.int32], K: int, columns: slice) -> NDArray[np.int8]:
    """Unpack a tile of columns, which starts at a multiple of 64, without its padding."""
    first, last = columns.start // marlin.TILE_N, -(-columns.stop // marlin.TILE_N)
    words = weight_q[:, 2 * marlin.TILE_N * first : 2 * marlin.TILE_N * last]
    q = np.empty((K, columns.stop - columns.start), np.int8)
    for start in range(0, K, _SLAB):
        slab = marlin.unpack_weight(words[start // marlin.TILE_K : (start + _SLAB) // marlin.TILE_K])
        q[start : start + _SLAB] = slab[: K - start, : q.shape[1]]
    return q


def _checked(perm: NDArray[np.int32], K: int) -> NDArray[np.int32]:
    """Refuse indices that no column has; a kernel trusts them."""
    if len(perm) and not 0 <= perm.min() <= perm.max() < K:
        got = f"{perm.min()} … {perm.max()}"
        raise InvalidProblem(op="Int4MarlinGemm", field="perm", expected=f"indices in [0, {K})", got=got)
    return perm
