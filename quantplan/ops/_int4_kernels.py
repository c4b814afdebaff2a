"""The host side of Int4MarlinGemm's kernels: their tiles, what each is expected to take, and their launches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from quantplan.chips import chip
from quantplan.devices.device import Grid
from quantplan.elements import ElementKind
from quantplan.kernels import KernelSpec, ParamStruct
from quantplan.ops._linear_cost import Tile, expected_seconds
from quantplan.ops._linear_kernels import aligned, grid_limit
from quantplan.ops._quantize_kernels import ceil_div, element_name, flag, row_pitch
from quantplan.programs import KernelVariant, Launch, Program
from quantplan.reference.int4_kernel_bounds import Int4KernelErrorBound
from quantplan.types import MathPrecision, PrecisionGuarantee

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantplan.programs import Call
    from quantplan.tensor import TensorView

Desc: TypeAlias = Any
"""Int4MarlinGemm's descriptor."""

INT4_PARAMS = ParamStruct(
    "Int4Params",
    (
        ("act", "P"), ("weight_q", "P"), ("weight_scale", "P"), ("weight_zero_point", "P"), ("perm", "P"),
        ("bias", "P"), ("output", "P"),
        ("m", "q"), ("n", "q"), ("padded_n", "q"), ("act_stride", "q"), ("weight_stride", "q"),
        ("scale_stride", "q"), ("zero_point_stride", "q"), ("output_stride", "q"),
        ("k", "i"), ("padded_k", "i"), ("act_aligned", "i"), ("output_aligned", "i"),
    ),
)  # fmt: skip

RUN = 64
"""Rows of K that a warp has of a stage."""
MOST_K = 2**30 - 1
"""Offsets along a row are counted in bytes, in 32 bits."""
MARLIN_N = 64
_WARP = 32
_ISSUED = 4  # instructions of an SM in a cycle
_UNPACKING = 48  # instructions that make fragments of a tile of weights, 16 rows by 64 columns, loads included
_SECTOR = 32  # bytes that L2 gives at least
_SUMS_THAT_KEEP_BUSY = 16  # tiles of 16 x 8 that a warp adds to in turn


def group_rows(desc: Desc) -> int:
    """Return the rows of a group as kernels are told: 0 where one scale holds for all of K."""
    return 0 if desc.groups == 1 else int(desc.group_size)


def fold_rows(desc: Desc) -> int:
    """Return the rows after which a warp multiplies its sums by their scale; 0 for all of its share."""
    return min(group_rows(desc), RUN)


def gathered(desc: Desc) -> float:
    """Return the bytes that come for each one of activations: with act-order, each element's whole sector."""
    return _SECTOR / desc.act_element.itemsize if desc.act_order else 1


@attrs.frozen
class Int4Tile:
    """How int4_marlin_gemm.cu cuts a product: what a warp has of it, how many warps a block has, and its ring.

    Parameters
    ----------
    octets : int
        Eights of tokens of a warp, which has 64 columns.
    warps_m, warps_n, warps_k : int
        Warps along tokens, columns and K.
    stages : int
        Buffers of the ring.
    """

    octets: int
    warps_m: int
    warps_n: int
    warps_k: int
    stages: int

    @property
    def tokens(self) -> int:
        """Rows of a block's tile of the output."""
        return 8 * self.octets * self.warps_m

    @property
    def bn(self) -> int:
        """Columns of the tile."""
        return MARLIN_N * self.warps_n

    @property
    def bk(self) -> int:
        """Rows of K of a stage."""
        return RUN * self.warps_k

    @property
    def name(self) -> str:
        """Name of the variant."""
        return f"mma-{self.tokens}x{self.bn}"

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return _WARP * self.warps_m * self.warps_n * self.warps_k

    def stage_bytes(self, desc: Desc) -> int:
        """Return the bytes of a buffer of the ring: weights, activations, scales, zero points, indices."""
        group = group_rows(desc)
        groups = max(1, self.bk // group) if group else 0
        zeros = groups * self.bn // 2 if desc.zero_point else 0
        perm = self.bk * 4 if desc.act_order else 0
        return self.bn * self.bk // 2 + self.tokens * self.bk * 2 + groups * self.bn * 2 + zeros + perm

    def shared_bytes(self, desc: Desc) -> int:
        """Return the shared memory of a block: the ring, and in its place the sums that the epilogue reads."""
        return max(self.stages * self.stage_bytes(desc), 4 * self.warps_k * self.tokens * (self.bn + 4))

    def blocks(self, desc: Desc) -> int:
        """Return the tiles of a problem's output."""
        return ceil_div(desc.m, self.tokens) * ceil_div(desc.n, self.bn)

    def cost(self, desc: Desc, capability: tuple[int, int]) -> float:
        """Return the seconds that a problem is expected to take on a typical chip; see `expected_seconds`."""
        gpu = chip(capability)
        warps = self.warps_m * self.warps_n
        folds = MARLIN_N // (fold_rows(desc) or RUN) if group_rows(desc) else 0
        issued = warps * ((_UNPACKING + 4 * self.octets) / 16 + 16 * self.octets * folds / RUN) / _ISSUED
        multiplied = self.tokens * self.bn / (gpu.int8_macs / 2)
        busy = min(1.0, 4 * self.octets * max(1, ceil_div(self.blocks(desc), gpu.sms)) / _SUMS_THAT_KEEP_BUSY)
        tile = Tile(
            bm=self.tokens,
            bn=self.bn,
            bk=self.bk,
            stages=self.stages - 1,
            shared_bytes=self.shared_bytes(desc),
            cycles=multiplied / busy + issued,
            row_bytes=desc.act_element.itemsize,
            column_bytes=0.5,
            gathered=gathered(desc),
        )
        return expected_seconds(desc, gpu, tile)

    def promise(self, desc: Desc) -> PrecisionGuarantee:
        """Return the guarantee; kernels of one tile add in one order."""
        fold = fold_rows(desc)
        return guarantee(
            f"mma-k16.runs-{RUN}-of-{self.warps_k}.fold-{fold or 'all'}",
            Int4KernelErrorBound(fold=fold, run=RUN, warps=self.warps_k, cut=8, bits=24),
            desc,
        )


def guarantee(reduction_id: str, bound: Int4KernelErrorBound, desc: Desc) -> PrecisionGuarantee:
    """Return what a kernel promises that adds in a certain order."""
    half = MathPrecision.F16 if desc.act_element is ElementKind.F16 else MathPrecision.BF16
    return PrecisionGuarantee(
        math_precision=half,
        accumulator=ElementKind.F32,
        bit_stable_on_same_hardware=True,
        deterministic=True,
        bit_identical_to_reference=False,
        batch_invariant=True,
        reduction_id=reduction_id,
        error_bound=bound,
    )


TILES = (
    Int4Tile(1, warps_m=1, warps_n=1, warps_k=4, stages=6),
    Int4Tile(2, warps_m=1, warps_n=1, warps_k=4, stages=5),
    Int4Tile(4, warps_m=1, warps_n=2, warps_k=2, stages=5),
    Int4Tile(4, warps_m=2, warps_n=2, warps_k=2, stages=4),
    Int4Tile(4, warps_m=4, warps_n=2, warps_k=1, stages=4),
)
"""For a token, for up to 16, 32 and 64, and for hundreds."""


def template(desc: Desc) -> str:
    """Return the template arguments that a problem gives every kernel."""
    names = map(element_name, (desc.act_element, desc.output_element))
    return ", ".join((*names, str(group_rows(desc)), flag(desc.zero_point)))


@attrs.frozen
class Int4Program(Program):
    """int4_marlin_gemm.cu: one launch, a block for each tile of the output."""

    tile: Int4Tile
    source: str = "int4_marlin_gemm.cu"

    def limit(self, desc: Desc) -> str | None:
        """Return why the kernel cannot run the problem, or None."""
        return limit(desc, self.tile.blocks(desc))

    def specs(self, desc: Desc) -> tuple[KernelSpec, ...]:
        """Return the kernel."""
        tile = self.tile
        shape = f"Int4Shape<{', '.join(map(str, attrs.astuple(tile)))}>"
        return (
            KernelSpec(
                source=self.source,
                body=f"int4_gemm<{template(desc)}, {flag(desc.act_order)}, {shape}>",
                threads=tile.threads,
                params=INT4_PARAMS,
                shared_bytes=tile.shared_bytes(desc),
            ),
        )

    def launches(self, call: Call) -> Iterator[Launch]:
        """Yield the launch."""
        (spec,) = self.specs(call.selected)
        grid = Grid(self.tile.blocks(call.desc), spec.shared_bytes)
        ring_bytes = (self.tile.stages - 1) * self.tile.stage_bytes(call.selected)
        yield Launch(spec, grid, int4_values(call), written=("output",), ring_bytes=ring_bytes)


def limit(desc: Desc, blocks: int) -> str | None:
    """Return why no kernel runs a problem that takes so many blocks, or None."""
    if desc.k > MOST_K:
        return f"K={desc.k}, and rows have up to {MOST_K} activations"
    return grid_limit(blocks)


def int4_values(call: Call) -> tuple[Any, ...]:
    """Return the fields of `INT4_PARAMS` for a run."""
    desc, args = call.desc, call.args
    packed = (args.weight_q, args.weight_scale, args.weight_zero_point)
    strides = [0 if view is None else pitch_bytes(view) for view in (args.act, *packed)]
    return (
        *("act", "weight_q", "weight_scale", "weight_zero_point", "perm", "bias", "output"),
        *(desc.m, desc.n, desc.padded[1], *strides, row_pitch(args.output)),
        *(desc.k, desc.padded[0], int(aligned(args.act)), int(aligned(args.output))),
    )


def pitch_bytes(view: TensorView) -> int:
    """Return the distance of rows in bytes."""
    return row_pitch(view) * view.element.itemsize


VARIANTS = tuple(KernelVariant(tile.name, Int4Program(tile), tile.promise, price=tile.cost) for tile in TILES)
"""The kernels for every GPU."""
