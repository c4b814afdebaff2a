"""fp8_gemm: FP8 matrix product with scales per tensor, per token and channel, per block, or MX."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.elements import ElementKind
from quantplan.formats.fp8 import BLOCK
from quantplan.reference.exact_sum import RANGES, exact_sum
from quantplan.reference.float_gemm import add_scaled, finish, tiles
from quantplan.reference.scales import MX_BLOCK
from quantplan.types import Accumulation, EpilogueKind, Fp8Scaling

if TYPE_CHECKING:
    from numpy.typing import NDArray

FAST_STEP = 32
"""K that one tensor-core instruction adds to an accumulator: between two of them, FAST keeps no more than 14 bits."""
FAST_BITS = 14

_E8M0_BIAS, _E8M0_NAN = 127, 0xFF


def fp8_gemm(
    act_q: NDArray[Any],
    weight_q: NDArray[Any],
    output: NDArray[Any],
    *,
    act_scale: float | NDArray[Any],
    weight_scale: float | NDArray[Any],
    scaling: Fp8Scaling = Fp8Scaling.TENSOR,
    accumulation: Accumulation = Accumulation.PROMOTED,
    bias: NDArray[np.float32] | None = None,
    epilogue: EpilogueKind = EpilogueKind.IDENTITY,
    output_element: ElementKind = ElementKind.F32,
    output_scale: float | NDArray[Any] | None = None,
) -> None:
    """Compute ``output = act(Σ_b rne(act_scale · weight_scale) · rne(Σ_{k in b} act_q · weight_q) + bias)``.

    Sums within a block of K are exact (or rounded in a fixed order, see `exact_sum`) and rounded once to f32. Blocks
    are added in f32 in K order, each operation rounded by itself. Scales per tensor, token and channel have one block.

    Parameters
    ----------
    act_q, weight_q : ndarray of float8_e4m3fn or float8_e5m2, shapes (M, K) and (N, K)
    output : ndarray of shape (M, N)
        Written.
    act_scale : float or ndarray
        TENSOR: a number or (1,); TOKEN_CHANNEL: (M,); BLOCK: (M, ⌈K/128⌉), all f32; MX: (M, ⌈K/32⌉) of E8M0.
    weight_scale : float or ndarray
        TENSOR: a number or (1,); TOKEN_CHANNEL: (N,); BLOCK: (⌈N/128⌉, ⌈K/128⌉), all f32; MX: (N, ⌈K/32⌉) of E8M0.
    scaling : Fp8Scaling
    accumulation : Accumulation
        FAST cuts the running sum to 14 significant bits after every 32 of K, a model of tensor cores that do not
        promote: each of their instructions loses as much.
    bias : ndarray of float32, shape (N,), optional
    epilogue : EpilogueKind
    output_element : ElementKind
        F32, F16, BF16, FP8_E4M3 or FP8_E5M2.
    output_scale : float or ndarray of shape (1,), optional
        For FP8 output, what it is divided by.
    """
    (M, K), N = act_q.shape, len(weight_q)
    depth = {Fp8Scaling.BLOCK: BLOCK, Fp8Scaling.MX: MX_BLOCK}.get(scaling, max(K, 1))
    add = _fast_sum if accumulation is Accumulation.FAST else exact_sum
    weight_bits = RANGES[ElementKind.of(weight_q.dtype)].bits
    a_scales, w_scales = scale_columns(act_scale, M, scaling), scale_columns(weight_scale, N, scaling, shared_rows=True)
    for columns, rows in product(tiles(N), tiles(M)):
        total = None
        for b, start in enumerate(range(0, K, depth)):
            part = slice(start, start + depth)
            block = add(act_q[rows, part], weight_q[columns, part], weight_bits)
            with np.errstate(all="ignore"):
                scale = a_scales[rows, b, np.newaxis] * w_scales[np.newaxis, columns, b]
            total = add_scaled(total, block, scale)
        finish(
            total,
            output[rows, columns],
            bias=None if bias is None else bias[columns],
            epilogue=epilogue,
            output_element=output_element,
            output_scale=output_scale,
        )


def scale_columns(
    scales: float | NDArray[Any], length: int, scaling: Fp8Scaling, *, shared_rows: bool = False
) -> NDArray[np.float32]:
    """Return scales as (length, blocks of K): one row per row of the operand."""
    given: NDArray[Any] = np.asarray(scales)
    with np.errstate(all="ignore"):
        if scaling is Fp8Scaling.MX:
            codes = given.view(np.uint8)
            powers = np.ldexp(np.float32(1), codes.astype(np.int32) - _E8M0_BIAS)
            return np.where(codes == _E8M0_NAN, np.float32(np.nan), powers)
        given = given.astype(np.float32)
    if scaling is Fp8Scaling.BLOCK:
        return np.repeat(given, BLOCK, axis=0)[:length] if shared_rows else given
    return np.broadcast_to(given.reshape(-1, 1), (length, 1))


def _fast_sum(a: NDArray[Any], w: NDArray[Any], w_bits: int) -> NDArray[np.float64]:
    """Return ``a · wᵀ`` with its running sum cut, not rounded, to 14 significant bits after every step."""
    total = np.zeros((len(a), len(w)))
    for start in range(0, a.shape[1], FAST_STEP):
        part = slice(start, start + FAST_STEP)
        with np.errstate(all="ignore"):
            total += exact_sum(a[:, part], w[:, part], w_bits)
        total.view(np.uint64)[np.isfinite(total)] &= ~np.uint64((1 << (53 - FAST_BITS)) - 1)
    return total
