"""The host side of the W8A8 linears' kernels: their tiles, what each is expected to take, and their launches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from quantplan.chips import chip
from quantplan.devices.device import Grid
from quantplan.elements import ElementKind
from quantplan.kernels import KernelSpec, ParamStruct
from quantplan.ops import _linear as linear
from quantplan.ops._linear_cost import Tile, expected_seconds
from quantplan.ops._quantize_kernels import ceil_div, element_name, flag, row_pitch, width_of
from quantplan.programs import KernelVariant, Launch, Program
from quantplan.reference.bounds import LinearErrorBound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantplan.chips import Chip
    from quantplan.programs import Call
    from quantplan.tensor import TensorView
    from quantplan.types import PrecisionGuarantee

Desc: TypeAlias = Any
"""A descriptor of either linear."""

LINEAR_PARAMS = ParamStruct(
    "LinearParams",
    (
        ("act_q", "P"), ("weight_q", "P"), ("act_scale", "P"), ("weight_scale", "P"), ("act_zero_point", "P"),
        ("bias", "P"), ("output_scale", "P"), ("output", "P"),
        ("m", "q"), ("n", "q"), ("act_stride", "q"), ("weight_stride", "q"), ("output_stride", "q"),
        ("act_scale_stride", "q"), ("weight_scale_stride", "q"),
        ("host_act_scale", "d"), ("k", "i"), ("host_act_zero_point", "i"), ("host_output_scale", "f"),
        ("act_aligned", "i"), ("weight_aligned", "i"), ("output_aligned", "i"),
    ),
)  # fmt: skip

ACTIVATION_ULPS = 16.0
"""What evaluating GELU or SiLU in the arithmetic of the epilogue is off by, in its units: see docs/numerics.md."""
_SHARED_BYTES_PER_CYCLE = 128
_SUMS_THAT_KEEP_BUSY = 16  # tiles of 16 x 8 that a warp adds to in turn
_WARP = 32
_CHUNK = 16


@attrs.frozen
class MmaTile:
    """How int8_gemm.cu cuts a product: the tile of a block, how many warps share it in each direction, and its ring.

    Parameters
    ----------
    bm, bn, bk : int
        Rows and columns of the output, and bytes of K that a stage holds.
    warps_m, warps_n, warps_k : int
        Warps along each of them.
    stages : int
        Buffers of the ring.
    """

    bm: int
    bn: int
    bk: int
    warps_m: int
    warps_n: int
    warps_k: int
    stages: int

    @property
    def name(self) -> str:
        """Name of the variant."""
        return f"mma-{self.bm}x{self.bn}"

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return _WARP * self.warps_m * self.warps_n * self.warps_k

    @property
    def stage_bytes(self) -> int:
        """Bytes of a buffer of the ring."""
        return (self.bm + self.bn) * self.bk

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: the ring, and in its place the sums that the epilogue reads."""
        ring = self.stages * self.stage_bytes
        sums = 4 * self.warps_k * (self.bm * (self.bn + 8) + self.bn)
        return max(ring, sums)

    def blocks(self, desc: Desc) -> int:
        """Return the tiles of a problem's output."""
        return ceil_div(desc.m, self.bm) * ceil_div(desc.n, self.bn)

    def cost(self, desc: Desc, capability: tuple[int, int]) -> float:
        """Return the seconds that a problem is expected to take on a typical chip; see `expected_seconds`."""
        gpu = chip(capability)
        return self.expected_seconds(desc, gpu, gpu.int8_macs)

    def expected_seconds(self, desc: Desc, gpu: Chip, macs: int) -> float:
        """Return the same for a GPU whose mma.sync multiplies and adds so often in a cycle of an SM."""
        warps = self.warps_m * self.warps_n  # of those along K, each reads what the others do not
        read = warps * (self.bm // self.warps_m + self.bn // self.warps_n) / _SHARED_BYTES_PER_CYCLE
        # neither hides the other wholly, and a warp with few sums of its own waits for each product
        multiplied = self.bm * self.bn / macs
        own = self.bm // self.warps_m // 16 * (self.bn // self.warps_n // 8)
        busy = min(1.0, own * max(1, ceil_div(self.blocks(desc), gpu.sms)) / _SUMS_THAT_KEEP_BUSY)
        tile = Tile(
            bm=self.bm,
            bn=self.bn,
            bk=self.bk,
            stages=self.stages - 1,
            shared_bytes=self.shared_bytes,
            cycles=(multiplied + read) / busy,
        )
        return expected_seconds(desc, gpu, tile)


TILES = (
    MmaTile(16, 32, 256, warps_m=1, warps_n=1, warps_k=4, stages=8),
    MmaTile(64, 64, 128, warps_m=2, warps_n=2, warps_k=1, stages=5),
    MmaTile(128, 128, 64, warps_m=2, warps_n=2, warps_k=1, stages=4),
)
"""For a token or a few, for tens, and for hundreds."""


@attrs.frozen
class MmaProgram(Program):
    """int8_gemm.cu: one launch, a block for each tile of the output."""

    tile: MmaTile
    source: str = "int8_gemm.cu"

    def limit(self, desc: Desc) -> str | None:
        """Return why there are too many tiles, or None."""
        return grid_limit(self.tile.blocks(desc))

    def specs(self, desc: Desc) -> tuple[KernelSpec, ...]:
        """Return the kernel."""
        tile = self.tile
        shape = ", ".join(map(str, attrs.astuple(tile)))
        parts = (
            *map(element_name, (desc.act_element, desc.output_element)),
            f"Activation::{desc.epilogue.value}",
            flag(bool(desc.act_zero_point)),
            f"GemmShape<{shape}>",
        )
        return (
            KernelSpec(
                source=self.source,
                body=f"int8_gemm<{', '.join(parts)}>",
                threads=tile.threads,
                params=LINEAR_PARAMS,
                shared_bytes=tile.shared_bytes,
            ),
        )

    def launches(self, call: Call) -> Iterator[Launch]:
        """Yield the launch."""
        (spec,) = self.specs(call.selected)
        tile = self.tile
        grid, ring_bytes = Grid(tile.blocks(call.desc), tile.shared_bytes), (tile.stages - 1) * tile.stage_bytes
        yield Launch(spec, grid, linear_values(call), written=("output",), ring_bytes=ring_bytes)


def linear_values(call: Call) -> tuple[Any, ...]:
    """Return the fields of `LINEAR_PARAMS` for a run."""
    desc, args = call.desc, call.args
    wide = linear.scale_element(desc).dtype.type
    act, weight, output = args.act_q, args.weight_q, args.output
    per_token = hasattr(args, "act_zero_point")
    return (
        *("act_q", "weight_q", "act_scale", "weight_scale", "act_zero_point" if per_token else None),
        *("bias", "output_scale", "output"),
        *(desc.m, desc.n, row_pitch(act), row_pitch(weight), row_pitch(output)),
        *(int(per_token), int(args.weight_scale.shape != (1,) or desc.n == 1)),
        float(wide(getattr(desc, "act_scale", None) or 0)),
        *(desc.k, 0 if per_token else desc.act_zero_point),
        float(ElementKind.F32.dtype.type(desc.output_scale or 0)),
        *(int(aligned(view)) for view in (act, weight, output)),
    )


def grid_limit(blocks: int) -> str | None:
    """Return why so many tiles are too many, or None."""
    return f"{blocks} tiles, and a grid has less than {2**31} blocks" if blocks >= 2**31 else None


def aligned(view: TensorView) -> bool:
    """Return whether every row begins at a multiple of 16 bytes."""
    return width_of((_CHUNK // view.element.itemsize, 1), view) > 1


def promise(desc: Desc) -> PrecisionGuarantee:
    """Return the kernels' guarantee: the reference's, apart from how GELU and SiLU are evaluated."""
    own = linear.promise(desc)
    if desc.epilogue.exact:
        return own
    bound = LinearErrorBound(activation_ulps=ACTIVATION_ULPS)
    return own.replace(error_bound=bound, reduction_id=f"{own.reduction_id}.kernel")


VARIANTS = tuple(KernelVariant(tile.name, MmaProgram(tile), promise, price=tile.cost) for tile in TILES)
"""The kernels of either linear."""
