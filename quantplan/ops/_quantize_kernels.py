"""The host side of the quantize family's kernels: which instances a problem needs, and the geometry of their launches.

Each kernel comes in two widths: vectors of 16 bytes for operands that are aligned so, and single elements for all
others (odd views, odd row pitches). Both are loaded when a plan is selected; the operands of a launch decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from quantplan.devices.device import Grid
from quantplan.elements import ElementKind
from quantplan.kernels import KernelSpec, ParamStruct
from quantplan.programs import Launch, Program
from quantplan.types import QuantizeMode, ScopeKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantplan.programs import Call
    from quantplan.tensor import TensorView
    from quantplan.types import Scope

Desc: TypeAlias = Any
"""A descriptor of the family."""
Args: TypeAlias = Any
"""Its arguments."""

THREADS = 256
_ROWS = 4  # rows of a thread in the elementwise kernels
_VECTOR_BYTES = 16

QUANTIZE_PARAMS = ParamStruct(
    "QuantizeParams",
    (
        ("x", "P"), ("q", "P"), ("scale", "P"), ("zero_point", "P"),
        ("m", "q"), ("k", "q"), ("x_stride", "q"), ("q_stride", "q"), ("group_size", "q"),
        ("scale_stride", "q"), ("zero_point_stride", "q"),
        ("host_scale", "d"), ("host_zero_point", "i"), ("q_min", "i"), ("q_max", "i"), ("columns_log2", "i"),
    ),
)  # fmt: skip
DEQUANTIZE_PARAMS = ParamStruct(
    "DequantizeParams",
    (
        ("q", "P"), ("output", "P"), ("scale", "P"), ("zero_point", "P"),
        ("m", "q"), ("k", "q"), ("q_stride", "q"), ("output_stride", "q"), ("group_size", "q"),
        ("scale_stride", "q"), ("zero_point_stride", "q"),
        ("host_scale", "d"), ("host_zero_point", "i"), ("columns_log2", "i"),
    ),
)  # fmt: skip
SEGMENTS_PARAMS = ParamStruct(
    "SegmentsParams",
    (
        ("x", "P"), ("q", "P"), ("scale", "P"), ("zero_point", "P"),
        ("m", "q"), ("k", "q"), ("x_stride", "q"), ("q_stride", "q"), ("length", "q"), ("per_row", "q"),
        ("scale_stride", "q"), ("zero_point_stride", "q"),
        ("q_min", "i"), ("q_max", "i"),
    ),
)  # fmt: skip
_NAMES = {ElementKind.FP8_E4M3: "e4m3", ElementKind.FP8_E5M2: "e5m2"}


def element_name(kind: ElementKind) -> str:
    """Return what ``element.cuh`` calls an element."""
    return _NAMES.get(kind, str(kind.value))


def packed_limit(kind: ElementKind) -> str | None:
    """Return why no kernel handles an element, or None."""
    return f"{kind.value} is stored in pairs, and the kernels move whole bytes" if kind.packed else None


# ---- arithmetic of shapes


def ceil_div(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """Return the smallest power of two ≥ n, 1 for n ≤ 1."""
    return 1 << max(0, n - 1).bit_length()


def per_of(scope: Scope) -> str:
    """Return quantize.cu's name for what shares a scale."""
    match scope.kind, scope.axis:
        case ScopeKind.TENSOR, _:
            return "Per::tensor"
        case (ScopeKind.TOKEN, _) | (ScopeKind.CHANNEL, 0):
            return "Per::row"
        case ScopeKind.CHANNEL, _:
            return "Per::column"
        case _, 0:
            return "Per::group_in_column"
    return "Per::group_in_row"


def row_pitch(view: TensorView) -> int:
    """Return the distance of rows in elements: that of dense rows where there is at most one."""
    return view.strides[0] if view.shape[0] > 1 else view.shape[1]


def matrix_pitch(view: TensorView | None) -> int:
    """Return the distance of rows of scales or zero points, where they are a matrix."""
    return row_pitch(view) if view is not None and len(view.shape) > 1 else 0


def width_of(widths: tuple[int, ...], *views: TensorView) -> int:
    """Return the first width in whose vectors all rows of the views are aligned; the last is a single element's."""
    return next(width for width in widths if all(_aligned(view, width) for view in views))


def _aligned(view: TensorView, width: int) -> bool:
    whole_rows = view.shape[0] <= 1 or view.strides[0] % width == 0
    return whole_rows and view.pointer % (width * view.element.itemsize) == 0


def vector_width(kind: ElementKind) -> int:
    """Return how many elements make 16 bytes."""
    return _VECTOR_BYTES // kind.itemsize


def widths(desc: Desc, real: ElementKind) -> tuple[int, ...]:
    """Return the widths that a problem's kernels come in, widest first; no group may end within a vector."""
    wide, scope = vector_width(real), desc.scope
    grouped = scope.kind is ScopeKind.GROUP and scope.axis == 1 and scope.group_size < desc.k
    return (1,) if grouped and scope.group_size % wide else (wide, 1)


def flag(value: bool) -> str:  # noqa: FBT001 - a word of C++
    """Return C++'s word for a truth value."""
    return "true" if value else "false"


@attrs.frozen
class Tiling:
    """How a block of 256 threads lies over rows and columns: 2**log2 threads wide."""

    log2: int
    across: int

    @classmethod
    def of(cls, k: int, width: int, most_columns: int = THREADS) -> Tiling:
        """Return the tiling of rows of k elements in chunks of a width."""
        columns = min(most_columns, power_of_two(ceil_div(k, width)))
        return cls(columns.bit_length() - 1, ceil_div(k, width * columns))

    @property
    def high(self) -> int:
        """Rows of threads."""
        return THREADS >> self.log2

    def blocks(self, m: int) -> int:
        """Return the blocks that an elementwise kernel needs for m rows."""
        return self.across * ceil_div(m, self.high * _ROWS)


# ---- Quantize and Dequantize


@attrs.frozen
class QuantizeProgram(Program):
    """quantize.cu: one launch, any scope."""

    source: str = "quantize.cu"

    def limit(self, desc: Desc) -> str | None:
        """Return why the kernel does not exist for a problem."""
        return packed_limit(desc.output_element)

    def specs(self, desc: Desc) -> tuple[KernelSpec, ...]:
        """Return the kernel in both widths."""
        return tuple(quantize_spec(desc, width) for width in widths(desc, desc.input_element))

    def launches(self, call: Call) -> Iterator[Launch]:
        """Yield the launch."""
        desc = call.desc
        yield quantize_launch(desc, call.args, host_scale=desc.scale, host_zero_point=desc.zero_point)


def quantize_spec(desc: Desc, width: int) -> KernelSpec:
    """Return quantize.cu's kernel for a problem, of a width."""
    parts = (
        *map(element_name, (desc.input_element, desc.output_element, desc.scale_element)),
        *(per_of(desc.scope), flag(desc.mode is QuantizeMode.ASYMMETRIC), flag(desc.saturate), str(width)),
    )
    return KernelSpec(
        source="quantize.cu", body=f"quantize<{', '.join(parts)}>", threads=THREADS, params=QUANTIZE_PARAMS
    )


def quantize_launch(
    desc: Desc,
    args: Args,
    *,
    host_scale: float | None = None,
    host_zero_point: int | None = None,
) -> Launch:
    """Return the launch of quantize.cu for scales that are known."""
    x, q = args.x, args.q
    width = width_of(widths(desc, desc.input_element), x, q)
    tiling = Tiling.of(desc.k, width)
    values = (
        *("x", "q", "scale", "zero_point"),
        *(desc.m, desc.k, row_pitch(x), row_pitch(q), desc.scope.group_size or 1),
        *(matrix_pitch(args.scale), matrix_pitch(args.zero_point)),
        *(_host_number(host_scale, desc.scale_element), host_zero_point or 0),
        *(desc.q_min or 0, desc.q_max or 0, tiling.log2),
    )
    return Launch(
        quantize_spec(desc, width),
        Grid(tiling.blocks(desc.m)),
        values,
        written=("q",),
    )


@attrs.frozen
class DequantizeProgram(Program):
    """dequantize.cu: one launch, any scope."""

    source: str = "dequantize.cu"

    def limit(self, desc: Desc) -> str | None:
        """Return why the kernel does not exist for a problem."""
        return packed_limit(desc.input_element)

    def specs(self, desc: Desc) -> tuple[KernelSpec, ...]:
        """Return the kernel in both widths."""
        return tuple(self._spec(desc, width) for width in widths(desc, desc.output_element))

    def launches(self, call: Call) -> Iterator[Launch]:
        """Yield the launch."""
        desc, args = call.desc, call.args
        q, output = args.q, args.output
        width = width_of(widths(desc, desc.output_element), q, output)
        tiling = Tiling.of(desc.k, width)
        values = (
            *("q", "output", "scale", "zero_point"),
            *(desc.m, desc.k, row_pitch(q), row_pitch(output), desc.scope.group_size or 1),
            *(matrix_pitch(args.scale), matrix_pitch(args.zero_point)),
            *(_host_number(desc.scale, desc.scale_element), desc.zero_point or 0, tiling.log2),
        )
        yield Launch(
            self._spec(desc, width),
            Grid(tiling.blocks(desc.m)),
            values,
            written=("output",),
        )

    def _spec(self, desc: Desc, width: int) -> KernelSpec:
        parts = (
            *map(element_name, (desc.input_element, desc.output_element, desc.scale_element)),
            *(per_of(desc.scope), flag(desc.mode is QuantizeMode.ASYMMETRIC), str(width)),
        )
        body = f"dequantize<{', '.join(parts)}>"
        return KernelSpec(source=self.source, body=body, threads=THREADS, params=DEQUANTIZE_PARAMS)


def _host_number(value: float | None, kind: ElementKind) -> float:
    """Return a host scale as its element holds it."""
    return 0.0 if value is None else float(kind.dtype.type(value))
