"""The host side of Fp8Gemm's kernels for sm_90a: tiles that wgmma multiplies and tensor maps bring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from quantplan.kernels import KernelSpec, ParamStruct
from quantplan.ops import _fp8_kernels as portable
from quantplan.ops._linear_hopper import SwappedTile, WgmmaTile, mapped_limit, tensor_maps
from quantplan.ops._quantize_kernels import ceil_div
from quantplan.programs import Launch, Program
from quantplan.reference.fp8_kernel_bounds import Fp8KernelErrorBound
from quantplan.types import Accumulation, ArchSku, Fp8Scaling

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantplan.programs import Call
    from quantplan.types import PrecisionGuarantee

Desc: TypeAlias = Any
"""An Fp8GemmDescriptor."""

_ALIGNED = 16  # bytes that a stage's scales are aligned to

MAPPED_PARAMS = ParamStruct(
    "MappedFp8GemmParams", (("act_map", "T"), ("weight_map", "T"), *portable.GEMM_PARAMS.fields)
)


@attrs.frozen
class Fp8WgmmaTile:
    """How fp8_gemm_sm90a.cu cuts a product.

    Parameters
    ----------
    tile : WgmmaTile or SwappedTile
        Its tiles and ring.
    accumulation : Accumulation
        Whether sums leave the tensor cores.
    """

    tile: WgmmaTile | SwappedTile
    accumulation: Accumulation = Accumulation.PROMOTED

    @property
    def name(self) -> str:
        """Name of the variant."""
        return f"{self.tile.name}{'-fast' if self.accumulation is Accumulation.FAST else ''}"

    def cut(self, desc: Desc) -> WgmmaTile | SwappedTile:
        """Return the tiles and ring for a problem: `StageScales` of the kernels lie beside operands."""
        if not portable.along_k(desc):
            return self.tile
        rows, columns = (self.tile.tokens if isinstance(self.tile, SwappedTile) else self.tile.bm), self.tile.bn
        scales = 4 * (rows + columns) if desc.scaling is Fp8Scaling.MX else rows + 1
        return attrs.evolve(self.tile, beside=ceil_div(4 * scales, _ALIGNED) * _ALIGNED)

    def cost(self, desc: Desc, capability: tuple[int, int]) -> float:
        """Return the seconds that a problem is expected to take on a typical chip."""
        return self.cut(desc).cost(desc, capability)

    def promise(self, desc: Desc) -> PrecisionGuarantee:
        """Return what the kernel promises: Hopper's sums of 32 products."""
        swapped = isinstance(self.tile, SwappedTile)
        splits = self.tile.cluster(desc) if isinstance(self.tile, SwappedTile) else 1
        every = portable.interval(desc, portable.PROMOTED_K, self.accumulation)
        bound = Fp8KernelErrorBound(products=32, fraction=13, significant=14, interval=every, splits=splits)
        order = f"swapped.{splits}" if swapped else "rows"
        return portable.guarantee(desc, self.accumulation, f"wgmma.{every}.{order}", bound)


TILES = (
    *(Fp8WgmmaTile(SwappedTile(tokens)) for tokens in (8, 16, 32, 64)),
    *map(Fp8WgmmaTile, (WgmmaTile(128), WgmmaTile(128, cluster=2), WgmmaTile(192, cluster=2))),
    *(Fp8WgmmaTile(tile, portable.FAST) for tile in (SwappedTile(16), SwappedTile(64))),
    *(Fp8WgmmaTile(tile, portable.FAST) for tile in (WgmmaTile(128), WgmmaTile(256, cluster=2))),
)
"""For few rows and for many. Two sets of sums leave no registers for tiles of 256 columns: those are fast only."""
_SCALED_COLUMNS = 128  # beside whose two sets of sums there are registers for scales


@attrs.frozen
class Fp8WgmmaProgram(Program):
    """fp8_gemm_sm90a.cu: one launch. Where tensor maps cannot describe the operands, its threads copy them.

    Parameters
    ----------
    tile : Fp8WgmmaTile
        How the product is cut.
    """

    tile: Fp8WgmmaTile
    source: str = "fp8_gemm_sm90a.cu"

    def limit(self, desc: Desc) -> str | None:
        """Return why the kernel cannot run the problem, or None."""
        if portable.along_k(desc) and self.tile.tile.bn > _SCALED_COLUMNS:
            return f"{desc.scaling.value} scales: beside two sets of sums of this tile there are no registers for them"
        reason = mapped_limit(desc) or self.tile.tile.limit(desc)
        return reason or portable.one_block_limit(desc, self.tile.accumulation)

    def specs(self, desc: Desc) -> tuple[KernelSpec, ...]:
        """Return the kernel."""
        tile = self.tile.cut(desc)
        kind, shape, cluster = tile.body(desc)
        parts = (*portable.template_arguments(desc, self.tile.accumulation), shape)
        return (
            KernelSpec(
                source=self.source,
                body=f"fp8_{kind}<{', '.join(parts)}>",
                threads=tile.threads,
                params=MAPPED_PARAMS,
                shared_bytes=tile.ring(desc).shared_bytes,
                cluster=cluster,
            ),
        )

    def launches(self, call: Call) -> Iterator[Launch]:
        """Yield the launch."""
        (spec,) = self.specs(call.selected)
        tile = self.tile.cut(call.selected)
        maps = tensor_maps(tile, call)
        values = (*(maps or (None, None)), *portable.gemm_values(call, mapped=maps is not None))
        grid, ring_bytes = tile.grid(call.desc, call.selected), tile.ring(call.selected).stages * tile.stage_bytes
        yield Launch(spec, grid, values, written=("output",), ring_bytes=ring_bytes)


VARIANTS = tuple(
    portable.Fp8Variant(
        tile.name,
        Fp8WgmmaProgram(tile),
        tile.promise,
        arch=ArchSku.SM90A,
        accumulation=tile.accumulation,
        price=tile.cost,
    )
    for tile in TILES
)
"""Fp8Gemm's kernels for sm_90a."""
