"""A-priori error bounds of the floating-point GEMMs; the symbols are those of `quantplan.reference.error_model`.

The real result is act(Σ_b P_b·s_b + bias): P_b the sum of products of a block of K, s_b its scale.

1. P_b in f64 is off by at most ω·A_b, A_b = Σ|a·w|: bands and parts are each exact, and only adding them rounds.
   ω = 2·(K + 8)·2⁻⁵³ covers that, and the bound's own evaluation of P_b. FAST adds τ(J)·Σ|step sums|: J steps of 32,
   each cutting the running sum to 14 bits, τ(J) = J·2⁻¹³ / (1 − J·2⁻¹³).
2. A term is rne(rne(P_b)·s_b) with n = 2 roundings, and n = 3 where s_b itself is a rounded product:
   δ_b = γ(n)·|P_b·s_b| + (|P_b| + |s_b| + 1)·2η + the error of 1. times |s_b|. A host scale is the double that it is;
   rounding it to f32 moves the product by a factor within 1 ± g, which adds g·|P_b·s_b| for each of them.
3. B terms are added one by one: δ_t = Σ δ_b + γ(B − 1)·Σ(|P_b·s_b| + δ_b).
4. Bias, activation and output as for the W8A8 linears. An FP8 output is compared with act(x) / output_scale, clamped
   to the format: δ = (δ_a·(1 + r) + r·|act(x)|) / |output_scale| + η, r = u + g, then one rounding to FP8,
   and no more than twice the largest value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from quantplan.elements import ElementKind
from quantplan.formats import marlin
from quantplan.formats.fp8 import BLOCK
from quantplan.formats.int4 import SYMMETRIC_ZERO
from quantplan.record import field
from quantplan.reference.epilogue import activation
from quantplan.reference.error_model import FORMATS, SLACK, after_activation, f64, finish, host_or_operand
from quantplan.reference.fp8_gemm import FAST_BITS, FAST_STEP, scale_columns
from quantplan.reference.rounding import fp8_values
from quantplan.reference.scales import MX_BLOCK
from quantplan.types import Accumulation, EpilogueKind, ErrorBound, Fp8Scaling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Loss = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
    Block = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
    """One block of K: activations [M, k], weight [N, k], scales that broadcast to [M, N]."""

_F32 = FORMATS[ElementKind.F32]
_F64_UNIT = FORMATS[ElementKind.F64].unit


@attrs.frozen(kw_only=True, repr=False)
class Int4GemmErrorBound(ErrorBound):
    """Bound of Int4MarlinGemm's reference; see the module."""

    @property
    def formula(self) -> str:
        """The bound as one line of text."""
        return "(gamma(2) + gamma(G - 1))·Σ_g|scale_g·Σ act·(q - z)| + u32·|exact| + u_out·|exact| + eta, G groups"

    def bound(self, desc: Any, args: Any) -> NDArray[np.float64]:  # noqa: ANN401 - the op's own types
        """Return the bound of each output element."""
        total = ScaledTotal((desc.m, desc.n), roundings=2)
        for block in _int4_blocks(desc, args):
            total.add(block)
        return after_sum(total, desc, args, EpilogueKind.IDENTITY)


@attrs.frozen(kw_only=True, repr=False)
class Fp8GemmErrorBound(ErrorBound):
    """Bound of Fp8Gemm's reference; see the module.

    Parameters
    ----------
    accumulation : Accumulation
        FAST has the term τ(J).
    """

    accumulation: Accumulation = field(Accumulation, Accumulation.PROMOTED)

    @property
    def formula(self) -> str:
        """The bound as one line of text."""
        fast = "tau(K/32)·Σ_steps|scale·step| + " if self.accumulation is Accumulation.FAST else ""
        return f"L·({fast}(gamma(3) + gamma(B - 1))·Σ_b|scale_b·Σ a·w| + u32·|y|) + u_out·|exact| + eta, B blocks"

    def bound(self, desc: Any, args: Any) -> NDArray[np.float64]:  # noqa: ANN401 - the op's own types
        """Return the bound of each output element."""
        blocks, gap = fp8_blocks(desc, args)
        loss = _fast_loss if self.accumulation is Accumulation.FAST else _f64_loss
        total = ScaledTotal((desc.m, desc.n), roundings=3, gap=gap, loss=loss)
        for block in blocks:
            total.add(block)
        return after_sum(total, desc, args, desc.epilogue)


def _f64_loss(a: NDArray[np.float64], w: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what sums of exact parts in f64 lose, and the bound's own evaluation of them (step 1)."""
    return np.asarray(2 * (a.shape[1] + 8) * _F64_UNIT * (np.abs(a) @ np.abs(w).T))


class ScaledTotal:
    """Sums over blocks: the real result, the sizes of the terms, their errors, and whether nothing overflows.

    Parameters
    ----------
    shape : tuple[int, int]
        M and N.
    roundings : int
        Of a term: of its sum, of its scale, and of their product.
    gap : float
        How far the rounding of host scales moves a product, relatively.
    loss : callable
        Returns the error of a block's sum, of its activations and weight.
    splits : int
        How many sums of blocks are added up in the end.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        roundings: int,
        gap: float = 0.0,
        loss: Loss = _f64_loss,
        splits: int = 1,
    ) -> None:
        self.value, self.size, self.error = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self.sound = np.ones(shape, np.bool)
        self._blocks, self._loss, self._splits = 0, loss, splits
        self._relative = _F32.gamma(roundings) + gap * (1 + _F32.gamma(roundings))

    def add(self, block: Block) -> None:
        """Add a block's term and its error (steps 1 and 2)."""
        a, w, scale = block
        with np.errstate(all="ignore"):
            P = a @ w.T
            lost = self._loss(a, w)
            term, s = P * scale, np.abs(scale)
            size = np.abs(term)
            self.value += term
            self.size += size
            self.error += self._relative * size + 2 * _F32.tiny * (np.abs(P) + s + 1) + lost * s * (1 + self._relative)
            largest = np.maximum(np.abs(P) + lost, s)
            self.sound &= np.isfinite(term) & (largest * SLACK < _F32.overflow)
        self._blocks += 1

    def summed(self) -> NDArray[np.float64]:
        """Return the error of the sum (step 3)."""
        return self.error + _F32.gamma(max(0, self._blocks - 1) + self._splits - 1) * (self.size + self.error)


def _fast_loss(a: NDArray[np.float64], w: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what cutting the running sum after each step loses too."""
    steps = range(0, a.shape[1], FAST_STEP)
    cut = len(steps) * 2.0 ** (1 - FAST_BITS)
    if cut >= 1:
        return np.full((len(a), len(w)), np.inf)
    sizes = sum(np.abs(a[:, k : k + FAST_STEP] @ w[:, k : k + FAST_STEP].T) for k in steps)
    return _f64_loss(a, w) + cut / (1 - cut) * sizes


def after_sum(
    total: ScaledTotal,
    desc: Any,  # noqa: ANN401 - two types
    args: Any,  # noqa: ANN401 - two types
    epilogue: EpilogueKind,
    activation_ulps: float = 1.0,
) -> NDArray[np.float64]:
    """Return the bound after bias, activation and output (step 4)."""
    with np.errstate(all="ignore"):
        x, error = total.value, total.summed()
        if args.bias is not None:
            x = x + f64(args.bias)
            error = error + _F32.unit * (np.abs(x) + error)
        sound = total.sound & ((total.size + np.abs(x) + error) * SLACK < _F32.overflow)
        error = after_activation(epilogue, x, error, _F32, activation_ulps)
        size = np.abs(activation(x, epilogue))
        output, most = FORMATS[desc.output_element], np.inf
        if desc.output_element.is_fp8:
            scale, gap = host_or_operand(desc, args, "output_scale", ElementKind.F32)
            sound &= np.isfinite(scale) & (scale != 0)
            relative, divisor, largest = _F32.unit + gap, np.abs(scale), desc.output_element.largest
            error = (error * (1 + relative) + relative * size) / divisor + _F32.tiny
            size, most = np.minimum(size / divisor, largest), 2 * largest
        else:
            sound &= (size + error) * SLACK < output.overflow
        if output.unit > _F32.unit:
            error = error + output.unit * (size + error) + output.tiny
        return finish(np.minimum(error, most), sound)


def int4_operands(
    desc: Any,  # noqa: ANN401 - the op's own types
    args: Any,  # noqa: ANN401 - the op's own types
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], int]:
    """Return activations [M, K] in the weight's order, q − z [K, N], scales [groups, N], and the rows of a group."""
    act = f64(args.act)
    if args.perm is not None:
        act = act[:, np.asarray(args.perm)]
    K, N = desc.k, desc.n
    q = marlin.unpack_weight(np.asarray(args.weight_q))[:K, :N].astype(np.float64)
    scale = f64(marlin.unpack_scales(np.asarray(args.weight_scale), desc.group_size))[:, :N]
    size = max(K, 1) if desc.group_size < 0 else desc.group_size
    if args.weight_zero_point is None:
        return act, q - SYMMETRIC_ZERO, scale, size
    zero = f64(marlin.unpack_zeros(np.asarray(args.weight_zero_point)))[:, :N]
    return act, q - zero[np.arange(K) // size], scale, size


def _int4_blocks(desc: Any, args: Any) -> Iterator[Block]:  # noqa: ANN401 - the op's own types
    act, weight, scale, size = int4_operands(desc, args)
    for g, start in enumerate(range(0, desc.k, size)):
        part = slice(start, start + size)
        yield act[:, part], weight[part].T, scale[g][np.newaxis, :]


def fp8_blocks(desc: Any, args: Any, most: int | None = None) -> tuple[Iterator[Block], float]:  # noqa: ANN401 - the op's own types
    """Return the blocks of an Fp8Gemm, and how far the rounding of its host scales moves a product, relatively.

    Parameters
    ----------
    desc : Fp8GemmDescriptor
        The problem.
    args : Fp8GemmArgs
        Its operands.
    most : int, optional
        How long a block may be: blocks that share a scale are cut further.
    """
    act_scale, act_gap = _scales(desc, args, "act_scale")
    weight_scale, weight_gap = _scales(desc, args, "weight_scale")
    a = f64(fp8_values(np.asarray(args.act_q), desc.act_element))
    w = f64(fp8_values(np.asarray(args.weight_q), desc.weight_element))
    scaled = {Fp8Scaling.BLOCK: BLOCK, Fp8Scaling.MX: MX_BLOCK}.get(desc.scaling, max(desc.k, 1))
    depth = min(scaled, most or scaled)

    def blocks() -> Iterator[Block]:
        for start in range(0, desc.k, depth):
            part, b = slice(start, start + depth), start // scaled
            with np.errstate(all="ignore"):
                scale = act_scale[:, b, np.newaxis] * weight_scale[np.newaxis, :, b]
            yield a[:, part], w[:, part], scale

    return blocks(), (1 + act_gap) * (1 + weight_gap) - 1


def _scales(desc: Any, args: Any, name: str) -> tuple[NDArray[np.float64], float]:  # noqa: ANN401 - the op's own types
    """Return the scales of an operand's rows, by blocks of K, and the gap of a host value."""
    given, gap = host_or_operand(desc, args, name, ElementKind.F32)
    weight = name == "weight_scale"
    rows = desc.n if weight else desc.m
    if gap:
        return np.full((rows, 1), given), gap
    return f64(scale_columns(given, rows, desc.scaling, shared_rows=weight)), gap
