"""A-priori error bound of Int4MarlinGemm's kernels; the symbols are those of `quantplan.reference.error_model`.

The real result is Σ_b P_b·s_b + bias: P_b the sum of act·(q − z) over a block b of K, s_b its scale. A part of K is
what one warp, or group of warps, adds up by itself, block by block.

1. Products are exact, and so is q − z. A tensor core adds `cut` of them at a time to what it has: it cuts each at
   2^−bits of the largest of all, and the sum to 24 bits. With A_j = Σ|act·(q − z)| of a block up to step j, a step
   loses at most ε·A_j, ε = cut·2^−bits + 2⁻²³; rounding once, as a better one would, loses less: λ_b = ε·Σ_j A_j.
2. A block is added to its part by a fused multiply-add, and parts are added to each other. A term takes part in C
   additions, at most the blocks of a part and the number of parts:
   δ_t = Σ_b λ_b·|s_b| + γ(C)·Σ_b (|P_b·s_b| + λ_b·|s_b|) + B·η, with B blocks in all.
3. Bias and output as for the other GEMMs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from quantplan.elements import ElementKind
from quantplan.record import field
from quantplan.reference.error_model import FORMATS, SLACK, f64, finish
from quantplan.reference.gemm_bounds import int4_operands
from quantplan.types import ErrorBound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_F32 = FORMATS[ElementKind.F32]
_F64_UNIT = FORMATS[ElementKind.F64].unit
_STEP = 16
"""Rows of K of one instruction; in which order it adds them is its own affair."""


@attrs.frozen(kw_only=True, repr=False)
class Int4KernelErrorBound(ErrorBound):
    """Bound of a kernel of Int4MarlinGemm; see the module.

    Parameters
    ----------
    fold : int
        Rows of K after which sums are multiplied by their scale; 0 for all of a part.
    run : int
        Rows in a row that a warp has of each stage of the ring.
    warps : int
        Warps, or groups of warps, that a stage is dealt to.
    cluster : int
        Blocks that share the stages of K, in contiguous pieces.
    cut, bits : int
        Products that a tensor core adds at a time, and how many bits of them it keeps below the largest one's first.
    """

    fold: int = field(int)
    run: int = field(int)
    warps: int = field(int)
    cluster: int = field(int, 1)
    cut: int = field(int)
    bits: int = field(int)

    @property
    def formula(self) -> str:
        """The bound as one line of text."""
        return (
            f"{self._loss:.3g}·Σ_b|scale_b|·Σ_j A_bj + gamma(C)·Σ_b|scale_b·Σ act·(q - z)| + u32·|exact| + "
            "u_out·|exact| + eta"
        )

    @property
    def _loss(self) -> float:
        return float(self.cut * 2.0**-self.bits + 2.0**-23)

    def parts(self, depth: int) -> Iterator[list[NDArray[np.intp]]]:
        """Yield, for each part of a K, the rows of each of its blocks, in the order in which they are added."""
        stage = self.run * self.warps
        stages = -(-depth // stage)
        rows = np.arange(stages * stage).reshape(stages, self.warps, self.run)
        for rank in range(self.cluster):
            mine = rows[stages * rank // self.cluster : stages * (rank + 1) // self.cluster]
            for warp in range(self.warps):
                share = mine[:, warp].ravel()
                blocks = share.reshape(-1, self.fold) if self.fold else share[np.newaxis]
                kept = (block[block < depth] for block in blocks)
                yield [block for block in kept if block.size]

    def bound(self, desc: Any, args: Any) -> NDArray[np.float64]:  # noqa: ANN401 - the op's own types
        """Return the bound of each output element."""
        act, weight, scale, size = int4_operands(desc, args)
        shape = (desc.m, desc.n)
        value, total, lost = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        sound, blocks, longest, count = np.ones(shape, np.bool), 0, 0, 0
        with np.errstate(all="ignore"):
            for part in self.parts(desc.k):
                count += 1
                longest = max(longest, len(part))
                blocks += len(part)
                for rows in part:
                    a, w, s = act[:, rows], weight[rows], scale[rows[0] // size]
                    P, A, loss = a @ w, np.abs(a) @ np.abs(w), self._lost(a, w)
                    value += P * s
                    total += np.abs(P * s)
                    lost += loss * np.abs(s)
                    sound &= np.isfinite(P * s) & ((A + loss) * SLACK < _F32.overflow)
            error = lost + _F32.gamma(longest + count) * (total + lost) + 2 * blocks * _F32.tiny
            if args.bias is not None:
                value = value + f64(args.bias)
                error = error + _F32.unit * (np.abs(value) + error)
            most, output = np.abs(value) + error, FORMATS[desc.output_element]
            sound &= ((total + most) * SLACK < _F32.overflow) & (most * SLACK < output.overflow)
            if output.unit > _F32.unit:
                error = error + output.unit * most + output.tiny
            return finish(error, sound)

    def _lost(self, a: NDArray[np.float64], w: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return λ_b, and what the bound's own P_b is off by."""
        steps = -(-len(w) // _STEP) * (_STEP // self.cut)
        behind = steps - np.arange(len(w)) // _STEP * (_STEP // self.cut)
        lost: NDArray[np.float64] = (np.abs(a) * (self._loss * behind + 2 * len(w) * _F64_UNIT)) @ np.abs(w)
        return lost
