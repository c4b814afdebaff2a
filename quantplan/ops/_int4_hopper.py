"""The host side of Int4MarlinGemm's kernels for sm_90a: tiles that wgmma multiplies and tensor maps bring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from quantplan.chips import chip
from quantplan.devices.device import Grid
from quantplan.kernels import KernelSpec, ParamStruct
from quantplan.ops import _int4_kernels as portable
from quantplan.ops._linear_cost import Tile, expected_seconds
from quantplan.ops._linear_hopper import BARRIERS, CLUSTERS, MOST_ROWS, SMS, copied_rows
from quantplan.ops._quantize_kernels import ceil_div
from quantplan.programs import KernelVariant, Launch, Program
from quantplan.reference.int4_kernel_bounds import Int4KernelErrorBound
from quantplan.tensor_maps import Swizzle, TensorMap, mappable
from quantplan.types import ArchSku

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantplan.programs import Call
    from quantplan.tensor import TensorView
    from quantplan.types import PrecisionGuarantee

Desc: TypeAlias = Any
"""Int4MarlinGemm's descriptor."""

MAPPED_PARAMS = ParamStruct(
    "MappedInt4Params",
    (
        *(("act_map", "T"), ("weight_map", "T"), ("scale_map", "T"), ("zero_point_map", "T")),
        *portable.INT4_PARAMS.fields,
    ),
)

_GROUPS = 2  # warp groups that multiply
_LINE = 64  # columns of activations that a box brings: a line of the swizzle
_TILE_ROWS = 16  # of Marlin's tiles
_CODES_OF_WORD = 8
_BOX_WORDS = 256  # two tiles of 64 columns
_BOX_BEGINS = 128  # bytes that a box's place in shared memory is a multiple of
_THREADS = 384
_MOST_COLUMNS = 2**30 - 512  # the same of columns, which have two words each
_TURN = 0.08  # of a whole tile's time: what a block begins and ends with, a cluster's exchange included
_PAIR = 2  # SMs come in pairs
_IN_CLUSTERS = 120
"""SMs that larger clusters surely fill at once.

A cluster lies within a part of the chip. Parts have two SMs more or fewer from chip to chip, and what one has left over
helps no other: if 132 SMs get 32 clusters of 4, one of them may have to wait until all others are done.
"""


def _sms(cluster: int) -> int:
    """Return how many SMs clusters of so many blocks surely fill at once."""
    return SMS if cluster <= _PAIR else _IN_CLUSTERS


_UNPACKED = 12  # instructions that make a fragment of a word


@attrs.frozen
class Int4WgmmaTile:
    """Tiles whose weights become fragments in registers, 64 rows of the instruction, and whose tokens are its columns.

    Parameters
    ----------
    tokens : int
        Rows of the output: 8 to 128.
    words : int
        Marlin's words that a lane has of each 16 rows of K: 64 columns each to a warp group.
    share_k : bool
        Whether the two warp groups share K; else they share columns.
    stages : int
        Buffers of the ring.
    clusters : tuple[int, ...]
        How many blocks may share K: those of a cluster. Without 1, a tile is shared wherever K is long enough.
    """

    tokens: int
    words: int
    share_k: bool
    stages: int
    clusters: tuple[int, ...] = CLUSTERS

    @property
    def groups_k(self) -> int:
        """Warp groups along K."""
        return _GROUPS if self.share_k else 1

    @property
    def bn(self) -> int:
        """Columns of the tile."""
        return portable.MARLIN_N * self.words * (_GROUPS // self.groups_k)

    @property
    def bk(self) -> int:
        """Rows of K of a stage."""
        return portable.RUN * self.groups_k

    @property
    def name(self) -> str:
        """Name of the variant."""
        return f"wgmma-{self.tokens}x{self.bn}{'' if 1 in self.clusters else '-split'}"

    def groups(self, desc: Desc) -> int:
        """Return the groups whose scales come with a stage; none where one scale holds for all of K."""
        group = portable.group_rows(desc)
        return max(1, self.bk // group) if group else 0

    def stage_bytes(self, desc: Desc) -> int:
        """Return the bytes of a buffer of the ring: weights, activations, scales and zero points."""
        zeros = self.bn // 2 if desc.zero_point else 0
        factors = ceil_div(self.groups(desc) * (2 * self.bn + zeros), _BOX_BEGINS) * _BOX_BEGINS
        return self.bn * self.bk // 2 + self.tokens * self.bk * 2 + factors

    def shared_bytes(self, desc: Desc) -> int:
        """Return a block's shared memory: ring and mbarriers; the ring becomes the sums that the epilogue reads."""
        return self.stages * (self.stage_bytes(desc) + BARRIERS)

    def cluster(self, desc: Desc) -> int:
        """Return how many blocks share K, by what fills the GPU best: a function of N and K alone."""
        tiles, depth = ceil_div(desc.n, self.bn), ceil_div(desc.k, self.bk)
        fit = [c for c in self.clusters if 2 * c <= depth] or [1]
        return min(fit, key=lambda c: ceil_div(tiles, _sms(c) // c) * (1 / c + _TURN))

    def tiles(self, desc: Desc) -> int:
        """Return the tiles of a problem's output."""
        return ceil_div(desc.m, self.tokens) * ceil_div(desc.n, self.bn)

    def cost(self, desc: Desc, capability: tuple[int, int]) -> float:
        """Return the seconds that a problem is expected to take on a typical chip."""
        gpu = chip(capability)
        fold = portable.fold_rows(desc)
        folded = self.tokens * self.bn / (_GROUPS * _LINE * 2) * (1 / fold if fold else 0)
        issued = (self.bn / _LINE * 4 * _UNPACKED / _TILE_ROWS + folded * 4) / 4
        tile = Tile(
            bm=self.tokens,
            bn=self.bn,
            bk=self.bk,
            stages=self.stages,
            shared_bytes=self.shared_bytes(desc),
            cycles=max(self.tokens, 16) * self.bn / (gpu.wgmma_macs / 2) + issued / 2,
            row_bytes=desc.act_element.itemsize,
            column_bytes=0.5,
            gathered=portable.gathered(desc),
            split=self.cluster(desc),
            sms=_sms(self.cluster(desc)),
        )
        return expected_seconds(desc, gpu, tile)

    def promise(self, desc: Desc) -> PrecisionGuarantee:
        """Return the guarantee; kernels that cut K alike add in one order."""
        fold, cluster = portable.fold_rows(desc), self.cluster(desc)
        bound = Int4KernelErrorBound(fold=fold, run=portable.RUN, warps=self.groups_k, cluster=cluster, cut=16, bits=25)
        reduction_id = f"wgmma-k16.runs-{portable.RUN}-of-{self.groups_k}.cluster-{cluster}.fold-{fold or 'all'}"
        return portable.guarantee(reduction_id, bound, desc)


TILES = (
    Int4WgmmaTile(8, words=4, share_k=True, stages=8),
    Int4WgmmaTile(16, words=4, share_k=True, stages=8),
    Int4WgmmaTile(32, words=4, share_k=True, stages=7),
    Int4WgmmaTile(64, words=2, share_k=True, stages=7),
    Int4WgmmaTile(128, words=1, share_k=False, stages=8, clusters=(1,)),
    Int4WgmmaTile(128, words=1, share_k=False, stages=8, clusters=(2, 4)),
)


@attrs.frozen
class Int4WgmmaProgram(Program):
    """int4_marlin_gemm_sm90a.cu: one launch.

    Parameters
    ----------
    tile : Int4WgmmaTile
        How the product is cut.
    """

    tile: Int4WgmmaTile
    source: str = "int4_marlin_gemm_sm90a.cu"

    def limit(self, desc: Desc) -> str | None:
        """Return why the kernel cannot run the problem, or None."""
        if desc.k == 0:
            return "K=0, and tensor maps need rows"
        if desc.m > MOST_ROWS or desc.n > _MOST_COLUMNS:
            return f"M={desc.m}, N={desc.n}, and tensor maps count up to {MOST_ROWS} rows, {_MOST_COLUMNS} columns"
        return portable.limit(desc, self.tile.tiles(desc) * self.tile.cluster(desc))

    def specs(self, desc: Desc) -> tuple[KernelSpec, ...]:
        """Return the kernel."""
        tile, cluster = self.tile, self.tile.cluster(desc)
        numbers = (tile.tokens // 8, tile.words, _GROUPS // tile.groups_k, tile.groups_k, cluster, tile.stages)
        return (
            KernelSpec(
                source=self.source,
                body=f"int4_wgmma<{portable.template(desc)}, Int4WgmmaShape<{', '.join(map(str, numbers))}>>",
                threads=_THREADS,
                params=MAPPED_PARAMS,
                shared_bytes=tile.shared_bytes(desc),
                cluster=cluster,
            ),
        )

    def launches(self, call: Call) -> Iterator[Launch]:
        """Yield the launch."""
        desc, args, tile = call.desc, call.args, self.tile
        (spec,) = self.specs(call.selected)
        box = (copied_rows(tile.tokens, desc), _LINE)
        mapped = not desc.act_order and mappable(args.act, box=box, swizzle=Swizzle.B128)
        act_map = TensorMap.of("act", args.act, box=box, swizzle=Swizzle.B128) if mapped else None
        weight_map = TensorMap.of("weight_q", args.weight_q, box=(tile.bk // _TILE_ROWS, _BOX_WORDS))
        *values, _, output_aligned = portable.int4_values(call)
        yield Launch(
            spec,
            Grid(tile.tiles(desc) * spec.cluster, spec.shared_bytes),
            (act_map, weight_map, *self._factor_maps(call), *values, int(mapped), output_aligned),
            written=("output",),
            ring_bytes=tile.stages * tile.stage_bytes(call.selected),
        )

    def _factor_maps(self, call: Call) -> tuple[TensorMap | None, TensorMap | None]:
        """Return the maps of scales and zero points: beyond the groups that K has, no padding but zeros."""
        desc, args, groups = call.desc, call.args, self.tile.groups(call.selected)
        if not groups:
            return None, None

        def of(operand: str, view: TensorView, columns: int) -> TensorMap:
            whole = TensorMap.of(operand, view, box=(groups, columns))
            return attrs.evolve(whole, shape=(ceil_div(desc.k, desc.group_size), *whole.shape[1:]))

        zeros, columns = args.weight_zero_point, self.tile.bn
        return (
            of("weight_scale", args.weight_scale, columns),
            None if zeros is None else of("weight_zero_point", zeros, columns // _CODES_OF_WORD),
        )


VARIANTS = tuple(
    KernelVariant(tile.name, Int4WgmmaProgram(tile), tile.promise, arch=ArchSku.SM90A, price=tile.cost)
    for tile in TILES
)
"""The kernels for sm_90a."""
