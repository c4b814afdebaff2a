"""The host side of the W8A8 linears' kernels for sm_90a: tiles that wgmma multiplies and tensor maps bring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from quantplan.chips import chip
from quantplan.devices.device import Grid
from quantplan.kernels import KernelSpec, ParamStruct
from quantplan.ops import _linear_kernels as portable
from quantplan.ops._linear_cost import Tile, expected_seconds
from quantplan.ops._quantize_kernels import ceil_div, element_name, flag
from quantplan.programs import KernelVariant, Launch, Program
from quantplan.tensor_maps import Swizzle, TensorMap, mappable
from quantplan.types import ArchSku

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantplan.programs import Call

Desc: TypeAlias = Any
"""A descriptor of either linear."""

MAPPED_PARAMS = ParamStruct(
    "MappedLinearParams", (("act_map", "T"), ("weight_map", "T"), *portable.LINEAR_PARAMS.fields)
)

_BK = 128  # bytes of K in a tile: a line of the swizzle
_SWIZZLED_ROWS = 8  # of a tile, from which on the swizzle begins anew
_ROW_BYTES = 16  # what the rows' distance is a multiple of, for tensor maps
MOST_ROWS = 2**31 - 512  # a copy's coordinates are signed, and the last tile may begin in the last row
BARRIERS = 2 * 8  # bytes of a stage's two mbarriers
SMS = 132  # of an H100 or H200, which clusters are made to fill: they must not depend on the GPU at hand
CLUSTERS = (1, 2, 4, 8)
SCALE_WARPS = 2  # that bring scales, where stages have them beside operands: one for each operand
MOST_SHARED = 227 * 1024  # bytes of shared memory that a block may have
HALF_SHARED = 113 * 1024  # the same where two share an SM
_BUSY = 64 * 1024  # bytes that an SM has to have under way, to keep memory busy


def copied_rows(tile: int, desc: Desc) -> int:
    """Return how many rows of activations are copied: `copied_rows` of the kernels."""
    return min(tile, max(1, ceil_div(desc.m, _SWIZZLED_ROWS)) * _SWIZZLED_ROWS)


@attrs.frozen
class Ring:
    """A ring of stages in a block's shared memory.

    Parameters
    ----------
    stages : int
        How many there are.
    shared_bytes : int
        The block's shared memory.
    """

    stages: int
    shared_bytes: int

    @classmethod
    def filling(cls, most: int, rest: int, stage_bytes: int) -> Ring:
        """Return the longest ring that fits beside the ``rest`` of a block's shared memory."""
        each = stage_bytes + BARRIERS
        stages = (most - rest) // each
        return cls(stages, rest + stages * each)


@attrs.frozen
class WgmmaTile:
    """Tiles of 128 rows: two warp groups multiply, each 64 rows.

    Parameters
    ----------
    bn : int
        Columns of the output: 128, 192 or 256.
    cluster : int
        Blocks whose tiles lie one below the other, and which load the weight for each other.
    beside : int
        Bytes of scales that a stage of the ring has beside its operands.
    """

    bn: int
    cluster: int = 1
    beside: int = 0

    bm = 128
    threads = 384

    @property
    def name(self) -> str:
        """Name of the variant: rows and columns of a cluster's tiles."""
        return f"wgmma-{self.bm * self.cluster}x{self.bn}"

    @property
    def stage_bytes(self) -> int:
        """Bytes of operands in a stage of the ring."""
        return (self.bm + self.bn) * _BK

    def ring(self, desc: Desc) -> Ring:  # noqa: ARG002 - the other tile looks at it
        """Return the ring, beside eight warps' staging, what columns give, and sums of the weight."""
        rest = 8 * 16 * (128 + 16) + self.bn * 2 * 8 + 256 * 4
        return Ring.filling(MOST_SHARED, rest, self.stage_bytes + self.beside)

    def limit(self, desc: Desc) -> str | None:
        """Return why there are too many tiles, or None."""
        return portable.grid_limit(self._tiles(desc))

    def cost(self, desc: Desc, capability: tuple[int, int]) -> float:
        """Return the seconds that a problem is expected to take on a typical chip."""
        gpu, ring = chip(capability), self.ring(desc)
        tile = Tile(
            bm=self.bm,
            bn=self.bn,
            bk=_BK,
            stages=ring.stages,
            shared_bytes=ring.shared_bytes,
            cycles=self.bm * self.bn / gpu.wgmma_macs,
            below=self.cluster,
            persistent=True,
        )
        return expected_seconds(desc, gpu, tile)

    def body(self, desc: Desc) -> tuple[str, str, int]:
        """Return the end of the kernel's name, its shape, and the blocks of a cluster."""
        return "wgmma", f"WgmmaShape<{self.bn}, {self.cluster}, {self.ring(desc).stages}>", self.cluster

    def boxes(self, desc: Desc) -> tuple[int, int]:
        """Return how many rows of activations and of the weight are copied at once."""
        return copied_rows(self.bm, desc), self.bn // self.cluster

    def grid(self, desc: Desc, selected: Desc) -> Grid:
        """Return the launch's extent: blocks go from tile to tile."""
        return Grid(self._tiles(desc), self.ring(selected).shared_bytes, resident=1)

    def _tiles(self, desc: Desc) -> int:
        return ceil_div(desc.m, self.bm * self.cluster) * self.cluster * ceil_div(desc.n, self.bn)


@attrs.frozen
class SwappedTile:
    """Tiles of a few rows and 64 columns: the weight takes the instruction's rows, and a cluster shares K.

    Parameters
    ----------
    tokens : int
        Rows of the output: 8 to 64.
    beside : int
        Bytes of scales that a stage of the ring has beside its operands.
    """

    tokens: int
    beside: int = 0

    bn = 64

    @property
    def name(self) -> str:
        """Name of the variant."""
        return f"wgmma-{self.tokens}x{self.bn}"

    @property
    def threads(self) -> int:
        """Threads of a block: four warps multiply, one copies."""
        return 32 * (4 + 1 + (SCALE_WARPS if self.beside else 0))

    @property
    def stage_bytes(self) -> int:
        """Bytes of operands in a stage of the ring."""
        return (self.tokens + self.bn) * _BK

    def ring(self, desc: Desc) -> Ring:
        """Return the ring, beside sums that a cluster exchanges, and sums of the weight's rows.

        Two blocks share an SM. Where there are no two, and half of its shared memory holds too little of the weight to
        keep memory busy, a block has all of it. As `cluster`, that is a function of N and K alone.
        """
        rest, each = self.tokens * (self.bn + 4) * 4 + 128 * 4, self.stage_bytes + self.beside
        half = Ring.filling(HALF_SHARED, rest, each)
        alone = ceil_div(desc.n, self.bn) * self.cluster(desc) <= SMS
        return Ring.filling(MOST_SHARED, rest, each) if alone and half.stages * self.bn * _BK < _BUSY else half

    def limit(self, desc: Desc) -> str | None:
        """Return why there are too many rows, or too many tiles, or None."""
        if desc.m > self.tokens:
            return f"M={desc.m}, and it takes up to {self.tokens} rows"
        blocks = ceil_div(desc.n, self.bn) * self.cluster(desc)
        return f"{blocks} blocks, and a grid has less than {2**31}" if blocks >= 2**31 else None

    def cluster(self, desc: Desc) -> int:
        """Return how many blocks share K: as few as fill the GPU, and no more than there are tiles along K.

        It is a function of N and K alone, so that no row's bits could ever depend on M.
        """
        tiles, depth = ceil_div(desc.n, self.bn), ceil_div(desc.k, _BK)
        return next((c for c in CLUSTERS if tiles * c >= SMS * 3 // 4 or 2 * c > depth), CLUSTERS[-1])

    def cost(self, desc: Desc, capability: tuple[int, int]) -> float:
        """Return the seconds that a problem is expected to take on a typical chip."""
        gpu, ring = chip(capability), self.ring(desc)
        tile = Tile(
            bm=self.tokens,
            bn=self.bn,
            bk=_BK,
            stages=ring.stages,
            shared_bytes=ring.shared_bytes,
            cycles=max(self.tokens, 16) * self.bn / gpu.wgmma_macs,
            split=self.cluster(desc),
        )
        return expected_seconds(desc, gpu, tile)

    def body(self, desc: Desc) -> tuple[str, str, int]:
        """Return the end of the kernel's name, its shape, and the blocks of a cluster."""
        cluster = self.cluster(desc)
        return "wgmma_swapped", f"SwappedShape<{self.tokens}, {cluster}, {self.ring(desc).stages}>", cluster

    def boxes(self, desc: Desc) -> tuple[int, int]:
        """Return how many rows of activations and of the weight are copied at once."""
        return copied_rows(self.tokens, desc), self.bn

    def grid(self, desc: Desc, selected: Desc) -> Grid:
        """Return the launch's extent: a cluster for each tile."""
        return Grid(ceil_div(desc.n, self.bn) * self.cluster(selected), self.ring(selected).shared_bytes)


def mapped_limit(desc: Desc) -> str | None:
    """Return why tensor maps describe the operands of a problem nowhere, or None."""
    if desc.k == 0 or desc.k % _ROW_BYTES:
        return f"K={desc.k}, and tensor maps need rows of a positive multiple of {_ROW_BYTES} bytes"
    if max(desc.m, desc.n) > MOST_ROWS:
        return f"{max(desc.m, desc.n)} rows, and tensor maps count up to {MOST_ROWS}"
    return None


def tensor_maps(tile: WgmmaTile | SwappedTile, call: Call) -> tuple[TensorMap, TensorMap] | None:
    """Return the maps of activations and weight, or None where one of them lies so that there is none."""
    views = (("act_q", call.args.act_q), ("weight_q", call.args.weight_q))
    boxes = [(rows, _BK) for rows in tile.boxes(call.desc)]
    if not all(mappable(view, box=box, swizzle=Swizzle.B128) for (_, view), box in zip(views, boxes, strict=True)):
        return None
    act, weight = (
        TensorMap.of(name, view, box=box, swizzle=Swizzle.B128) for (name, view), box in zip(views, boxes, strict=True)
    )
    return act, weight


TILES: tuple[WgmmaTile | SwappedTile, ...] = (
    *map(SwappedTile, (8, 16, 32, 64)),
    *(WgmmaTile(128), WgmmaTile(128, cluster=2), WgmmaTile(256, cluster=2)),
)


@attrs.frozen
class WgmmaProgram(Program):
    """int8_gemm_sm90a.cu: one launch; int8_gemm.cu's where tensor maps cannot describe the operands.

    Parameters
    ----------
    tile : WgmmaTile or SwappedTile
        How the product is cut.
    """

    tile: WgmmaTile | SwappedTile
    source: str = "int8_gemm_sm90a.cu"

    def limit(self, desc: Desc) -> str | None:
        """Return why the kernel cannot run the problem, or None."""
        return mapped_limit(desc) or self.tile.limit(desc)

    def specs(self, desc: Desc) -> tuple[KernelSpec, ...]:
        """Return the kernel, and the one for operands that lie otherwise."""
        kind, shape, cluster = self.tile.body(desc)
        parts = (
            *map(element_name, (desc.act_element, desc.output_element)),
            *(f"Activation::{desc.epilogue.value}", flag(bool(desc.act_zero_point)), shape),
        )
        own = KernelSpec(
            source=self.source,
            body=f"int8_{kind}<{', '.join(parts)}>",
            threads=self.tile.threads,
            params=MAPPED_PARAMS,
            shared_bytes=self.tile.ring(desc).shared_bytes,
            cluster=cluster,
        )
        return own, *self._otherwise(desc).specs(desc)

    def launches(self, call: Call) -> Iterator[Launch]:
        """Yield the launch."""
        maps = tensor_maps(self.tile, call)
        if maps is None:
            yield from self._otherwise(call.selected).launches(call)
            return
        values = (*maps, *portable.linear_values(call))
        grid, ring = self.tile.grid(call.desc, call.selected), self.tile.ring(call.selected)
        own, ring_bytes = self.specs(call.selected)[0], ring.stages * self.tile.stage_bytes
        yield Launch(own, grid, values, written=("output",), ring_bytes=ring_bytes)

    @staticmethod
    def _otherwise(desc: Desc) -> portable.MmaProgram:
        return portable.MmaProgram(min(portable.TILES, key=lambda tile: tile.cost(desc, (9, 0))))


VARIANTS = tuple(
    KernelVariant(tile.name, WgmmaProgram(tile), portable.promise, arch=ArchSku.SM90A, price=tile.cost)
    for tile in TILES
)
"""The kernels of either linear for sm_90a."""
