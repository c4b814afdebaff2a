"""The host side of norm_quantize.cu and activation_quantize.cu: how rows are dealt out to threads, and their launches.

Each kernel comes twice: for operands whose rows all begin at multiples of 16 bytes and have a multiple of 8 elements,
and for any others. Both give the same bits, for the order of sums depends on the length of a row alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from quantplan.devices.device import Grid
from quantplan.elements import ElementKind
from quantplan.kernels import KernelSpec, ParamStruct
from quantplan.ops import _fused as fused
from quantplan.ops._quantize_kernels import ceil_div, element_name, flag, row_pitch
from quantplan.programs import Launch, Program
from quantplan.reference.row_sums import RUN, WARP, row_lanes
from quantplan.types import EpilogueKind, GatingKind, NormKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantplan.programs import Call
    from quantplan.tensor import TensorView

Desc: TypeAlias = Any
"""A descriptor of either op."""

NORM_PARAMS = ParamStruct(
    "NormParams",
    (
        ("x", "P"), ("residual", "P"), ("residual_gate", "P"), ("weight", "P"), ("bias", "P"),
        ("modulation_scale", "P"), ("modulation_shift", "P"), ("multiplier", "P"),
        ("residual_output", "P"), ("output", "P"), ("scale", "P"),
        ("m", "q"), ("x_stride", "q"), ("residual_stride", "q"), ("residual_output_stride", "q"),
        ("output_stride", "q"), ("scale_stride", "q"),
        ("gate_stride", "q"), ("modulation_scale_stride", "q"), ("modulation_shift_stride", "q"),
        ("k", "i"), ("rows_per_condition", "i"), ("epsilon", "f"), ("host_scale", "f"),
    ),
)  # fmt: skip
ACTIVATION_PARAMS = ParamStruct(
    "ActivationParams",
    (
        ("gate", "P"), ("up", "P"), ("multiplier", "P"), ("output", "P"), ("scale", "P"),
        ("m", "q"), ("gate_stride", "q"), ("up_stride", "q"), ("output_stride", "q"), ("scale_stride", "q"),
        ("k", "i"), ("host_scale", "f"),
    ),
)  # fmt: skip

_THREADS = 256  # of a block that has several rows
_MOST_KEPT = 8  # runs of a lane in registers: rows of up to 32768 elements are read once
_FEWER_KEPT = 4  # the same where elements have 32 bits or are loaded one by one: more would be spilled
_BYTES_AT_ONCE = 16
_ALL_ROWS = 2**31 - 1


@attrs.frozen
class _Rows:
    """How rows of some length are dealt out: to how many lanes, and how many runs to each."""

    lanes: int
    runs: int

    @classmethod
    def of(cls, k: int) -> _Rows:
        lanes = row_lanes(k)
        return cls(lanes, max(1, ceil_div(k, lanes * RUN)))

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.lanes if self.lanes > WARP else _THREADS

    def grid(self, m: int, reductions: int) -> Grid:
        """Return the grid of m rows, each of which is reduced so many times across warps."""
        shared = reductions * self.lanes // WARP * ElementKind.F32.itemsize if self.lanes > WARP else 0
        return Grid(ceil_div(m, self.threads // self.lanes), shared)


def _specs(
    source: str, body: str, parts: tuple[str, ...], params: ParamStruct, desc: Desc, *, light: bool, slim: bool
) -> tuple[KernelSpec, KernelSpec]:
    """Return a problem's kernel for aligned operands, and for others.

    One that is ``light`` has registers for many runs. One that is ``slim`` needs no more than 64 registers as long as
    it keeps few. Others would be spilled.
    """
    rows = _Rows.of(desc.k)

    def spec(*, aligned: bool) -> KernelSpec:
        narrow = aligned and desc.input_element is not ElementKind.F32
        kept = min(rows.runs, _MOST_KEPT if narrow and light else _FEWER_KEPT)
        shape = (flag(aligned), flag(rows.runs > kept), str(rows.lanes), str(kept))
        return KernelSpec(
            source=source,
            body=f"{body}<{', '.join((*parts, *shape))}>",
            threads=rows.threads,
            params=_slim(params) if narrow and slim and rows.runs <= _FEWER_KEPT else params,
        )

    return spec(aligned=True), spec(aligned=False)


def _slim(params: ParamStruct) -> ParamStruct:
    return attrs.evolve(params, name=f"Slim<{params.name}>")


def _stored(desc: Desc) -> tuple[str, ...]:
    """Return the parameters that say what is read and what becomes of it."""
    kind = {"real": "none", "static": "given", "token": "token", "mx": "group_32", "block": "group_128"}
    elements = (desc.input_element, desc.output_element, fused.scale_element(desc))
    return (*map(element_name, elements), f"RowScale::{kind[fused.granularity(desc)]}")


def _aligned(k: int, *views: TensorView | None) -> bool:
    """Whether the runs of all rows are whole, and aligned to what moves at once."""
    if k % RUN:
        return False
    for view in views:
        if view is None:
            continue
        size = view.element.itemsize
        step = min(_BYTES_AT_ONCE, RUN * size)
        pitch = view.strides[0] * size if len(view.shape) > 1 and view.shape[0] > 1 else 0
        if view.pointer % step or pitch % step:
            return False
    return True


def _pitch(view: TensorView | None) -> int:
    return 0 if view is None else row_pitch(view)


def _scale_pitch(view: TensorView | None) -> int:
    """Return the distance of the scales of two rows."""
    return 1 if view is None or len(view.shape) == 1 else row_pitch(view)


def _host_scale(desc: Desc) -> float:
    return float(ElementKind.F32.dtype.type(desc.scale or 0))


def _written(desc: Desc) -> tuple[str, ...]:
    return ("output",) if desc.scope is None or fused.static(desc) else ("output", "scale")


@attrs.frozen
class NormProgram(Program):
    """norm_quantize.cu: one launch."""

    source: str = "norm_quantize.cu"

    def specs(self, desc: Desc) -> tuple[KernelSpec, ...]:
        """Return the kernel for aligned operands, and for others."""
        stream = "Residual::gated" if desc.gated else "Residual::added" if desc.residual else "Residual::none"
        asked = {"by_weight": desc.weight, "by_bias": desc.bias}
        asked |= {"by_modulation": desc.modulated, "by_multiplier": desc.multiplier}
        factors = " | ".join(name for name, there in asked.items() if there) or "0"
        parts = (*_stored(desc), f"Norm::{desc.norm.value}", stream, factors)
        light = not desc.gated and not desc.modulated
        plain = desc.norm is NormKind.RMS and not desc.bias and not desc.multiplier
        slim = light and plain and desc.input_element is ElementKind.BF16
        return _specs(self.source, "norm_quantize", parts, NORM_PARAMS, desc, light=light, slim=slim)

    def launches(self, call: Call) -> Iterator[Launch]:
        """Yield the launch."""
        desc, args = call.desc, call.args
        aligned, other = self.specs(call.selected)
        vectors = (args.weight, args.bias, args.multiplier)
        conditions = (args.residual_gate, args.modulation_scale, args.modulation_shift)
        streams = (args.x, args.residual, args.residual_output, args.output)
        values = (
            *("x", "residual", "residual_gate", "weight", "bias", "modulation_scale", "modulation_shift"),
            *("multiplier", "residual_output", "output", "scale"),
            *(desc.m, *map(_pitch, streams), _scale_pitch(args.scale)),
            *map(_pitch, conditions),
            *(desc.k, desc.rows_per_condition or _ALL_ROWS, float(desc.epsilon), _host_scale(desc)),
        )
        yield Launch(
            aligned if _aligned(desc.k, *streams, *conditions, *vectors) else other,
            _Rows.of(desc.k).grid(desc.m, reductions=3),
            values,
            written=(*_written(desc), "residual_output") if desc.residual else _written(desc),
        )


@attrs.frozen
class ActivationProgram(Program):
    """activation_quantize.cu: one launch."""

    source: str = "activation_quantize.cu"

    def specs(self, desc: Desc) -> tuple[KernelSpec, ...]:
        """Return the kernel for aligned operands, and for others."""
        gated = desc.gating is not GatingKind.NONE
        parts = (*_stored(desc), f"Activation::{desc.epilogue.value}", flag(gated), flag(desc.multiplier))
        light = desc.epilogue is not EpilogueKind.GELU_ERF
        slim = light and desc.scope is not None
        return _specs(self.source, "activation_quantize", parts, ACTIVATION_PARAMS, desc, light=light, slim=slim)

    def launches(self, call: Call) -> Iterator[Launch]:
        """Yield the launch."""
        desc, args = call.desc, call.args
        aligned, other = self.specs(call.selected)
        name = {GatingKind.NONE: "x", GatingKind.MERGED: "gate_up", GatingKind.SPLIT: "gate"}[desc.gating]
        gate = getattr(args, name)
        values = (
            *(name, "up", "multiplier", "output", "scale"),
            *(desc.m, *map(_pitch, (gate, args.up, args.output)), _scale_pitch(args.scale)),
            *(desc.k, _host_scale(desc)),
        )
        yield Launch(
            aligned if _aligned(desc.k, gate, args.up, args.output, args.multiplier) else other,
            _Rows.of(desc.k).grid(desc.m, reductions=1),
            values,
            written=_written(desc),
        )
