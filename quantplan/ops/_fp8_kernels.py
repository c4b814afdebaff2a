"""The host side of Fp8Gemm's kernels: their tiles, what each promises, and their launches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from quantplan.chips import chip
from quantplan.devices.device import Grid
from quantplan.elements import ElementKind
from quantplan.kernels import KernelSpec, ParamStruct
from quantplan.ops._linear_kernels import MmaTile, aligned, grid_limit
from quantplan.ops._quantize_kernels import element_name, flag, matrix_pitch, row_pitch
from quantplan.programs import KernelVariant, Launch, Program
from quantplan.reference.fp8_kernel_bounds import Fp8KernelErrorBound
from quantplan.reference.scales import MX_BLOCK
from quantplan.types import Accumulation, ArchSku, Fp8Scaling, MathPrecision, PrecisionGuarantee

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantplan.devices.target import Target
    from quantplan.programs import Call
    from quantplan.types import ErrorBound

Desc: TypeAlias = Any
"""An Fp8GemmDescriptor."""

GEMM_PARAMS = ParamStruct(
    "Fp8GemmParams",
    (
        ("act_q", "P"), ("weight_q", "P"), ("act_scale", "P"), ("weight_scale", "P"),
        ("act_block_scale", "P"), ("weight_block_scale", "P"), ("bias", "P"), ("output_scale", "P"), ("output", "P"),
        ("m", "q"), ("n", "q"), ("act_stride", "q"), ("weight_stride", "q"), ("output_stride", "q"),
        ("act_scale_stride", "q"), ("weight_scale_stride", "q"),
        ("act_block_stride", "q"), ("weight_block_stride", "q"),
        ("k", "i"), ("host_act_scale", "f"), ("host_weight_scale", "f"), ("host_output_scale", "f"),
        ("act_aligned", "i"), ("weight_aligned", "i"), ("output_aligned", "i"), ("mapped", "i"),
    ),
)  # fmt: skip

_SCALING = {Fp8Scaling.BLOCK: "block", Fp8Scaling.MX: "mx"}
PROMOTED_K = 128
"""K after which sums leave the tensor cores at the latest."""
_CONVERTING = (9, 10)  # compute capabilities, without their minor part, whose mma.sync makes f16 of FP8


def along_k(desc: Desc) -> bool:
    """Return whether scales change along K."""
    return desc.scaling in _SCALING


def one_block_limit(desc: Desc, accumulation: Accumulation) -> str | None:
    """Return why a fast variant cannot run the problem, or None."""
    fast = accumulation is Accumulation.FAST
    return f"{desc.scaling.value} scales are always promoted" if fast and along_k(desc) else None


def template_arguments(desc: Desc, accumulation: Accumulation) -> tuple[str, ...]:
    """Return the template arguments that all kernels have: elements, activation, scaling, and whether it is fast."""
    return (
        *map(element_name, (desc.act_element, desc.weight_element, desc.output_element)),
        f"Activation::{desc.epilogue.value}",
        f"Scaling::{_SCALING.get(desc.scaling, 'whole')}",
        flag(accumulation is Accumulation.FAST),
    )


def gemm_values(call: Call, *, mapped: bool = False) -> tuple[Any, ...]:
    """Return the fields of `GEMM_PARAMS` for a run."""
    desc, args = call.desc, call.args
    act, weight, output = args.act_q, args.weight_q, args.output
    blocks, names = along_k(desc), ("act_scale", "weight_scale")
    each = int(desc.scaling is Fp8Scaling.TOKEN_CHANNEL)
    return (
        *("act_q", "weight_q"),
        *((None, None, *names) if blocks else (*names, None, None)),
        *("bias", "output_scale", "output"),
        *(desc.m, desc.n, row_pitch(act), row_pitch(weight), row_pitch(output)),
        *(each, each),
        *(matrix_pitch(args.act_scale), matrix_pitch(args.weight_scale)),
        desc.k,
        *(float(ElementKind.F32.dtype.type(1 if host is None else host)) for host in _host_scales(desc)),
        *(int(aligned(view)) for view in (act, weight, output)),
        int(mapped),
    )


def _host_scales(desc: Desc) -> tuple[float | None, ...]:
    return desc.act_scale, desc.weight_scale, desc.output_scale


def guarantee(desc: Desc, accumulation: Accumulation, reduction: str, bound: ErrorBound) -> PrecisionGuarantee:
    """Return what all variants promise, with the order of their sums and their bound."""
    return PrecisionGuarantee(
        math_precision=MathPrecision.FP8,
        accumulator=ElementKind.F32,
        bit_stable_on_same_hardware=True,
        deterministic=True,
        bit_identical_to_reference=False,
        batch_invariant=True,
        reduction_id=f"{reduction}.{accumulation.value}.{desc.scaling.value}.{desc.epilogue.value}",
        error_bound=bound,
    )


def interval(desc: Desc, most: int, accumulation: Accumulation) -> int:
    """Return the K between two promotions, or 0: ``most``, but for shorter blocks of scales."""
    if accumulation is Accumulation.FAST:
        return 0
    return min(most, MX_BLOCK) if desc.scaling is Fp8Scaling.MX else most


@attrs.frozen
class Fp8MmaTile:
    """How fp8_gemm.cu cuts a product.

    Parameters
    ----------
    tile : MmaTile
        Its tiles, warps and ring.
    multiplier : str
        What mma.sync multiplies: ``fp8``, or ``f16`` that fragments are converted to.
    accumulation : Accumulation
        Whether sums leave the tensor cores.
    """

    tile: MmaTile
    multiplier: str = "fp8"
    accumulation: Accumulation = Accumulation.PROMOTED

    @property
    def name(self) -> str:
        """Name of the variant."""
        kind = "mma" if self.multiplier == "fp8" else f"mma-{self.multiplier}"
        end = "-fast" if self.accumulation is Accumulation.FAST else ""
        return f"{kind}-{self.tile.bm}x{self.tile.bn}{end}"

    @property
    def own_k(self) -> int:
        """K that a warp multiplies of a tile, before sums leave the tensor cores."""
        return self.tile.bk // self.tile.warps_k

    def cost(self, desc: Desc, capability: tuple[int, int]) -> float:
        """Return the seconds that a problem is expected to take on a typical chip."""
        gpu = chip(capability)
        rate = gpu.int8_macs // (1 if self.multiplier == "fp8" else 2)
        return self.tile.expected_seconds(desc, gpu, rate)

    def promise(self, desc: Desc) -> PrecisionGuarantee:
        """Return what the kernel promises: Ada's sums of 16 FP8 products, or Ampere's of 8 f16 ones."""
        products, fraction, significant = (16, 13, 14) if self.multiplier == "fp8" else (8, 24, 24)
        every, splits = interval(desc, self.own_k, self.accumulation), self.tile.warps_k
        bound = Fp8KernelErrorBound(
            products=products, fraction=fraction, significant=significant, interval=every, splits=splits
        )
        share = f"{splits}x{self.own_k}" if splits > 1 else "1"
        return guarantee(desc, self.accumulation, f"mma.{self.multiplier}.{every}.{share}", bound)


FAST = Accumulation.FAST
TILES = (
    Fp8MmaTile(MmaTile(16, 32, 256, warps_m=1, warps_n=2, warps_k=2, stages=8)),
    Fp8MmaTile(MmaTile(64, 64, 128, warps_m=2, warps_n=2, warps_k=1, stages=5)),
    Fp8MmaTile(MmaTile(128, 128, 128, warps_m=2, warps_n=4, warps_k=1, stages=3)),
    Fp8MmaTile(MmaTile(16, 32, 256, warps_m=1, warps_n=2, warps_k=2, stages=8), accumulation=FAST),
    Fp8MmaTile(MmaTile(128, 128, 64, warps_m=2, warps_n=2, warps_k=1, stages=4), accumulation=FAST),
    Fp8MmaTile(MmaTile(16, 32, 256, warps_m=1, warps_n=2, warps_k=2, stages=8), "f16"),
    Fp8MmaTile(MmaTile(64, 64, 128, warps_m=2, warps_n=2, warps_k=1, stages=5), "f16"),
)
"""For a token or a few, for tens, and for hundreds. Sums of f16 products keep all bits: they have no fast kernels."""


@attrs.frozen
class Fp8MmaProgram(Program):
    """fp8_gemm.cu: one launch, a block for each tile of the output."""

    tile: Fp8MmaTile
    source: str = "fp8_gemm.cu"

    def limit(self, desc: Desc) -> str | None:
        """Return why the kernel cannot run the problem, or None."""
        return grid_limit(self.tile.tile.blocks(desc)) or one_block_limit(desc, self.tile.accumulation)

    def specs(self, desc: Desc) -> tuple[KernelSpec, ...]:
        """Return the kernel."""
        tile = self.tile.tile
        shape = ", ".join(map(str, attrs.astuple(tile)))
        parts = (
            *template_arguments(desc, self.tile.accumulation),
            f"Multiplier::{self.tile.multiplier}",
            f"GemmShape<{shape}>",
        )
        return (
            KernelSpec(
                source=self.source,
                body=f"fp8_gemm<{', '.join(parts)}>",
                threads=tile.threads,
                params=GEMM_PARAMS,
                shared_bytes=tile.shared_bytes,
            ),
        )

    def launches(self, call: Call) -> Iterator[Launch]:
        """Yield the launch."""
        (spec,) = self.specs(call.selected)
        tile = self.tile.tile
        grid, ring_bytes = Grid(tile.blocks(call.desc), tile.shared_bytes), (tile.stages - 1) * tile.stage_bytes
        yield Launch(spec, grid, gemm_values(call), written=("output",), ring_bytes=ring_bytes)


@attrs.frozen
class Fp8Variant(KernelVariant):
    """A kernel of Fp8Gemm.

    Parameters
    ----------
    converted : bool
        Whether it is left out where mma.sync converts FP8 itself: other kernels do so there, and say so.
    """

    converted: bool = False

    def why_not(self, desc: Desc, target: Target) -> str | None:
        """Return why it cannot run the problem on the target, or None."""
        reason = super().why_not(desc, target)
        if reason is None and self.converted and target.capability and target.capability[0] in _CONVERTING:
            return f"{target} makes f16 of what mma.sync multiplies: mma-f16 does so with a closer bound"
        return reason


def _variant(tile: Fp8MmaTile) -> Fp8Variant:
    native = tile.multiplier == "fp8"
    return Fp8Variant(
        tile.name,
        Fp8MmaProgram(tile),
        tile.promise,
        arch=ArchSku.SM89 if native else ArchSku.SM80,
        accumulation=tile.accumulation,
        price=tile.cost,
        converted=native,
    )


VARIANTS = tuple(map(_variant, TILES))
"""Fp8Gemm's kernels with mma.sync."""
