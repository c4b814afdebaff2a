"""A-priori error bounds of Fp8Gemm's kernels, whose tensor cores cut sums; docs/numerics.md has the derivation.

An instruction adds c products at a time to its sum. All addends are aligned to the largest exponent e among them, that
of a product being the sum of its factors' (a subnormal number has the smallest normal one); what is below 2^(e − f) is
cut off, and so is what the new sum has beyond s bits. With A_j = Σ|a·w| over the products of step j, S_j their sum, M_j
the largest 2^(e of a product), and T no less than any sum on the way:

1. A step's products and its old sum lose no more than min(A_j, c·2⁻ᶠ·max(M_j, T)), and the new sum 2¹⁻ˢ·T. There are
   J steps between two promotions:
   λ = Σ_j min(A_j, c·2⁻ᶠ·max(M_j, T)) + J·2¹⁻ˢ·T
   A cut makes nothing larger, so T = Σ A_j will do. With the λ of that, T = min(Σ A_j, Σ|S_j| + λ) is closer.
2. Without scales that change along K, the C chunks between promotions are added in f32, as are the sums of the S parts
   that share K: λ_P = Σ_c λ_c + γ(C + S − 2)·Σ_c(|P_c| + λ_c). With such scales each chunk is a term of its own. Either
   way a term is the result of n = 2 roundings: of its scale, and of its sum times that.
3. The rest is as in `gemm_bounds`: sums of terms, with one addition more for each part that shares K, then bias,
   activation, output.

Instructions that round instead, to nearest and once, are off by less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from quantplan.elements import ElementKind
from quantplan.record import field, to_size
from quantplan.reference.error_model import FORMATS
from quantplan.reference.gemm_bounds import ScaledTotal, after_sum, fp8_blocks
from quantplan.types import ErrorBound, Fp8Scaling

if TYPE_CHECKING:
    from numpy.typing import NDArray

_F32 = FORMATS[ElementKind.F32]
ACTIVATION_ULPS = 16.0
"""What evaluating GELU or SiLU in f32 is off by, in its units: see docs/numerics.md."""
_LEAST_EXPONENT = {ElementKind.FP8_E4M3: -6, ElementKind.FP8_E5M2: -14}
_NORM = 16
"""Of the norm that stands for the largest of a step's products: a matrix product computes it."""


@attrs.frozen(kw_only=True, repr=False)
class Fp8KernelErrorBound(ErrorBound):
    """Bound of a kernel of Fp8Gemm; see the module.

    Parameters
    ----------
    products : int
        c: products that are added at a time.
    fraction : int
        f: bits that are kept behind the largest exponent of the addends.
    significant : int
        s: bits that are kept of a sum.
    interval : int
        K between two promotions to f32; 0 for none.
    splits : int
        Parts that share K.
    """

    products: int = field(to_size)
    fraction: int = field(to_size)
    significant: int = field(to_size)
    interval: int = field(to_size)
    splits: int = field(to_size, 1)

    @property
    def formula(self) -> str:
        """The bound as one line of text."""
        chunks = f"{self.interval} of K" if self.interval else "all of K"
        step = f"min(A_j, {self.products}·2^-{self.fraction}·max(M_j, T))"
        lost = f"Σ_c|scale_c|·(Σ_j {step} + J·2^-{self.significant - 1}·T)"
        rounded = f"(gamma(2) + gamma(C + {self.splits - 2}))·Σ_c|scale_c·Σ a·w| + {ACTIVATION_ULPS:g}·u32·|y|"
        where = f"C chunks c of {chunks}, J steps j of {self.products}"
        return f"L·({lost} + {rounded}) + u_out·|exact| + eta, {where}"

    def bound(self, desc: Any, args: Any) -> NDArray[np.float64]:  # noqa: ANN401 - the op's own types
        """Return the bound of each output element."""
        scaled = desc.scaling in (Fp8Scaling.BLOCK, Fp8Scaling.MX)
        least = _LEAST_EXPONENT[desc.act_element], _LEAST_EXPONENT[desc.weight_element]

        def chain(a: NDArray[np.float64], w: NDArray[np.float64]) -> NDArray[np.float64]:
            return self._chain(a, w, least)

        def promoted(a: NDArray[np.float64], w: NDArray[np.float64]) -> NDArray[np.float64]:
            return self._promoted(a, w, least)

        blocks, gap = fp8_blocks(desc, args, self.interval if scaled else None)
        total = ScaledTotal(
            (desc.m, desc.n),
            roundings=2,
            gap=gap,
            loss=chain if scaled else promoted,
            splits=self.splits if scaled else 1,
        )
        for block in blocks:
            total.add(block)
        return after_sum(total, desc, args, desc.epilogue, ACTIVATION_ULPS)

    def _promoted(self, a: NDArray[np.float64], w: NDArray[np.float64], least: tuple[int, int]) -> NDArray[np.float64]:
        """Return what a sum over chunks loses (step 2)."""
        depth = a.shape[1]
        starts = range(0, depth, self.interval or max(depth, 1))
        lost, size = np.zeros((len(a), len(w))), np.zeros((len(a), len(w)))
        for start in starts:
            part = slice(start, start + (self.interval or depth))
            lost += self._chain(a[:, part], w[:, part], least)
            size += np.abs(a[:, part] @ w[:, part].T)
        return np.asarray(lost + _F32.gamma(max(0, len(starts) - 1) + self.splits - 1) * (size + lost))

    def _chain(self, a: NDArray[np.float64], w: NDArray[np.float64], least: tuple[int, int]) -> NDArray[np.float64]:
        """Return what a sum loses in the tensor cores (step 1)."""
        parts = [slice(k, k + self.products) for k in range(0, a.shape[1], self.products)]
        size, sums = np.zeros((len(a), len(w))), np.zeros((len(a), len(w)))
        steps = []
        for part in parts:
            of_step = np.abs(a[:, part]) @ np.abs(w[:, part]).T
            size += of_step
            sums += np.abs(a[:, part] @ w[:, part].T)
            steps.append((of_step, _largest(a[:, part], w[:, part], least)))
        quantum, cut = self.products * 2.0**-self.fraction, len(parts) * 2.0 ** (1 - self.significant)

        def lost(top: NDArray[np.float64]) -> NDArray[np.float64]:
            old = top if len(parts) > 1 else 0.0  # a first step adds to zero
            shifted = sum(np.minimum(of_step, quantum * np.maximum(largest, old)) for of_step, largest in steps)
            return np.asarray(shifted + cut * top)

        return lost(np.minimum(size, sums + lost(size)))


def _largest(a: NDArray[np.float64], w: NDArray[np.float64], least: tuple[int, int]) -> NDArray[np.float64]:
    """Return no less than the largest power of two that a product's exponents stand for."""
    a, w = (_powers(values, bottom) for values, bottom in zip((a, w), least, strict=True))
    return np.asarray((a @ w.T) ** (1 / _NORM))


def _powers(values: NDArray[np.float64], least: int) -> NDArray[np.float64]:
    """Return 2^e of each value, to the power of the norm; of zeros 0."""
    exponents = np.maximum(np.frexp(values)[1] - 1, least)
    return np.where(values == 0, 0.0, np.ldexp(1.0, _NORM * exponents))
