"""The host side of dynamic quantization whose segments cross rows: one launch, two or three.

A small tensor is one cluster's, which keeps it while its range is found. Any other is read twice: its parts' ranges
first. Columns have many scales, which a launch of its own chooses in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from quantplan.devices.device import Grid
from quantplan.kernels import MOST_CLUSTER, KernelSpec, ParamStruct
from quantplan.ops import _dynamic_kernels as dynamic
from quantplan.ops import _quantize_kernels as family
from quantplan.ops._quantize_kernels import THREADS, Args, Desc, Tiling, ceil_div, element_name, flag, power_of_two
from quantplan.programs import WORKSPACE, Launch, Program
from quantplan.types import ScopeKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantplan.programs import Call

CLUSTER_PARAMS = ParamStruct(
    "ClusterParams",
    (
        ("x", "P"), ("q", "P"), ("scale", "P"), ("zero_point", "P"),
        ("x_stride", "q"), ("q_stride", "q"), ("chunks", "i"), ("per_row", "i"), ("q_min", "i"), ("q_max", "i"),
    ),
)  # fmt: skip
JOINED_PARAMS = ParamStruct(
    "JoinedParams",
    (
        ("x", "P"), ("partial", "P"), ("q", "P"), ("scale", "P"), ("zero_point", "P"),
        ("m", "q"), ("k", "q"), ("x_stride", "q"), ("q_stride", "q"),
        ("parts", "i"), ("q_min", "i"), ("q_max", "i"), ("columns_log2", "i"),
    ),
)  # fmt: skip
RANGES_PARAMS = ParamStruct(
    "RangesParams",
    (
        ("x", "P"), ("partial", "P"),
        ("m", "q"), ("k", "q"), ("x_stride", "q"), ("rows_per_part", "q"), ("columns_log2", "i"), ("across", "i"),
    ),
)  # fmt: skip
SCALES_PARAMS = ParamStruct(
    "ScalesParams",
    (
        ("partial", "P"), ("scale", "P"), ("zero_point", "P"),
        ("rows", "q"), ("columns", "q"), ("scale_stride", "q"), ("zero_point_stride", "q"), ("parts", "q"),
        ("q_min", "i"), ("q_max", "i"),
    ),
)  # fmt: skip

CLUSTER_THREADS = 512
_CLUSTER_LANES = MOST_CLUSTER * CLUSTER_THREADS
_MOST_KEPT = 8  # chunks of 16 bytes that a thread of a cluster keeps
_MBARRIER_BYTES = 16
_WARP = 32
_MOST_BLOCKS = 768  # of the reduction of a tensor: six of each SM of a large GPU, whose states the next launch joins
_MOST_PARTS = 64  # of a reduction to a scale per column
_ROWS_PER_THREAD = 8  # of a part of a column, at least


def _tensor(desc: Desc) -> bool:
    return desc.scope.kind is ScopeKind.TENSOR


def _codes(desc: Desc) -> tuple[str, ...]:
    """Return what selects the rounding of a kernel."""
    return (*dynamic.elements(desc), flag(dynamic.asymmetric(desc)), flag(desc.saturate))


@attrs.frozen
class ClusterProgram(Program):
    """A small tensor: one launch of one cluster."""

    source: str = "dynamic_range_quantize_sm90a.cu"

    def limit(self, desc: Desc) -> str | None:
        """Return why the kernel does not exist for a problem."""
        if not _tensor(desc) or dynamic.within_rows(desc):
            return f"a scale of scope {desc.scope} is not that of several rows of a tensor"
        most = _CLUSTER_LANES * _MOST_KEPT * family.vector_width(desc.input_element)
        if desc.m * desc.k > most:
            return f"{desc.m * desc.k} elements, and a cluster keeps {most}"
        return family.packed_limit(desc.output_element)

    def specs(self, desc: Desc) -> tuple[KernelSpec, ...]:
        """Return the kernel in both widths."""
        return tuple(self._spec(desc, width) for width in dynamic.row_widths(desc))

    def launches(self, call: Call) -> Iterator[Launch]:
        """Yield the launch."""
        desc, args = call.desc, call.args
        width = family.width_of(dynamic.row_widths(desc), args.x, args.q)
        pitches = (family.row_pitch(args.x), family.row_pitch(args.q))
        dense = pitches == (desc.k, desc.k)  # then rows follow each other as if all were one
        chunks, per_row = desc.m * desc.k // width, desc.k // width
        values = (
            *("x", "q", "scale", "zero_point"),
            *(*pitches, chunks, max(1, chunks if dense else per_row), *dynamic.limits(desc)),
        )
        states = CLUSTER_THREADS // _WARP + MOST_CLUSTER
        yield Launch(
            self._spec(call.selected, width),
            Grid(MOST_CLUSTER, _MBARRIER_BYTES + states * dynamic.state_bytes(desc)),
            values,
            written=("q", "scale", "zero_point"),
        )

    def _spec(self, desc: Desc, width: int) -> KernelSpec:
        kept = min(_MOST_KEPT, power_of_two(ceil_div(desc.m * desc.k, width * _CLUSTER_LANES)))
        body = f"quantize_in_cluster<{', '.join((*_codes(desc), str(width), str(kept)))}>"
        return KernelSpec(
            source=self.source, body=body, threads=CLUSTER_THREADS, params=CLUSTER_PARAMS, cluster=MOST_CLUSTER
        )


@attrs.frozen
class TensorProgram(Program):
    """A tensor of any size: the ranges of its parts, then codes."""

    source: str = dynamic.SOURCE

    def limit(self, desc: Desc) -> str | None:
        """Return why the kernels do not exist for a problem."""
        if not _tensor(desc) or dynamic.within_rows(desc):
            return f"a scale of scope {desc.scope} is not that of several rows of a tensor"
        return family.packed_limit(desc.output_element)

    def workspace_size(self, desc: Desc) -> int:
        """Return room for the ranges of all parts, whichever width the operands allow and however few rows come."""
        if not (desc.m and desc.k):
            return 0
        widths = family.widths(desc, desc.input_element)
        return dynamic.state_bytes(desc) * max(self._parts(desc, width)[1] for width in widths)

    def specs(self, desc: Desc) -> tuple[KernelSpec, ...]:
        """Return the reduction and the quantization in both widths."""
        widths = family.widths(desc, desc.input_element)
        return (*(_ranges_spec(desc, width) for width in widths), *(self._joined_spec(desc, width) for width in widths))

    def launches(self, call: Call) -> Iterator[Launch]:
        """Yield both launches; where there is no element, only the one that writes the scale."""
        desc, args, parts = call.desc, call.args, 0
        if desc.m and desc.k and call.workspace is not None:
            width = family.width_of(family.widths(desc, desc.input_element), args.x)
            across, parts = self._parts(desc, width)
            yield _ranges(desc, args, width, Tiling.of(desc.k, width), across, parts)
        yield self._joined(desc, args, parts)

    def _joined(self, desc: Desc, args: Args, parts: int) -> Launch:
        m, k = (desc.m, desc.k) if parts else (0, 1)
        width = family.width_of(family.widths(desc, desc.input_element), args.x, args.q)
        tiling = Tiling.of(k, width)
        values = (
            *("x", WORKSPACE if parts else None, "q", "scale", "zero_point"),
            *(m, k, family.row_pitch(args.x), family.row_pitch(args.q)),
            *(parts, *dynamic.limits(desc), tiling.log2),
        )
        state = dynamic.state_bytes(desc)
        return Launch(
            self._joined_spec(desc, width),
            Grid(max(1, tiling.blocks(m)), THREADS // _WARP * state),
            values,
            written=("q", "scale", "zero_point"),
            scratch_bytes=parts * state,
        )

    @staticmethod
    def _parts(desc: Desc, width: int) -> tuple[int, int]:
        """Return how many blocks of the reduction lie side by side, and how many there are."""
        tiling = Tiling.of(desc.k, width)
        across = min(tiling.across, _MOST_BLOCKS)
        return across, across * min(ceil_div(desc.m, tiling.high), _MOST_BLOCKS // across)

    def _joined_spec(self, desc: Desc, width: int) -> KernelSpec:
        body = f"quantize_joined<{', '.join((*_codes(desc), str(width)))}>"
        return KernelSpec(source=self.source, body=body, threads=THREADS, params=JOINED_PARAMS)


@attrs.frozen
class _Cut:
    """How rows are cut into parts, whose columns' ranges are reduced by one block for each strip of columns."""

    tiling: Tiling
    rows_per_part: int
    parts: int

    @classmethod
    def of(cls, desc: Desc, width: int) -> _Cut:
        """Return the cut of a problem with m ≥ 1, read in chunks of a width."""
        rows = desc.scope.group_size
        if rows is None:
            rows = max(ceil_div(desc.m, _MOST_PARTS), _ROWS_PER_THREAD * _ROWS_PER_THREAD)
        rows = min(rows, desc.m)
        # a warp across a strip of columns; short parts leave no work for many rows of threads
        high = min(_ROWS_PER_THREAD, power_of_two(rows))
        tiling = Tiling.of(desc.k, width, most_columns=THREADS // high)
        return cls(tiling, rows, ceil_div(desc.m, rows))


@attrs.frozen
class ColumnsProgram(Program):
    """Segments of columns: their ranges in parts, then scales, then codes."""

    source: str = dynamic.SOURCE

    def limit(self, desc: Desc) -> str | None:
        """Return why the kernels do not exist for a problem."""
        if _tensor(desc) or dynamic.within_rows(desc):
            return f"a scale of scope {desc.scope} is not a column's"
        return family.packed_limit(desc.output_element)

    def workspace_size(self, desc: Desc) -> int:
        """Return room for the ranges of all parts, however few rows come."""
        if not (desc.m and desc.k):
            return 0
        parts = ceil_div(desc.m, desc.scope.group_size or _ROWS_PER_THREAD * _ROWS_PER_THREAD)
        if not desc.scope.group_size:
            parts = min(_MOST_PARTS, parts)
        return dynamic.state_bytes(desc) * int(desc.k) * parts

    def specs(self, desc: Desc) -> tuple[KernelSpec, ...]:
        """Return the reduction and the quantization in both widths, and what chooses the scales in between."""
        widths = family.widths(desc, desc.input_element)
        ranges = (_ranges_spec(desc, width) for width in widths)
        quantize = (family.quantize_spec(desc, width) for width in widths)
        return (*ranges, self._scales_spec(desc), *quantize)

    def launches(self, call: Call) -> Iterator[Launch]:
        """Yield the three launches; only the scales' where there is no element."""
        desc, args = call.desc, call.args
        if not (desc.m and desc.k) or call.workspace is None:
            yield self._scales(desc, args, 0)
            return
        width = family.width_of(family.widths(desc, desc.input_element), args.x)
        cut = _Cut.of(desc, width)
        yield _ranges(desc, args, width, cut.tiling, cut.tiling.across, cut.parts, cut.rows_per_part)
        yield self._scales(desc, args, cut.parts)
        yield family.quantize_launch(desc, args)

    def _scales(self, desc: Desc, args: Args, parts: int) -> Launch:
        rows = ceil_div(desc.m, desc.scope.group_size) if desc.scope.group_size else 1
        values = (
            *(WORKSPACE if parts else None, "scale", "zero_point"),
            *(rows, desc.k, *dynamic.scale_pitches(args, of_a_row=0), parts // rows if parts else 0),
            *dynamic.limits(desc),
        )
        return Launch(
            self._scales_spec(desc),
            Grid(rows * ceil_div(desc.k, THREADS)),
            values,
            written=("scale", "zero_point"),
            scratch_bytes=parts * desc.k * dynamic.state_bytes(desc),
        )

    def _scales_spec(self, desc: Desc) -> KernelSpec:
        body = f"scales<{', '.join((*dynamic.elements(desc), flag(dynamic.asymmetric(desc))))}>"
        return KernelSpec(source=self.source, body=body, threads=THREADS, params=SCALES_PARAMS)


def _ranges(  # noqa: PLR0917 - one call each for tensors and columns
    desc: Desc, args: Args, width: int, tiling: Tiling, across: int, parts: int, rows_per_part: int = 0
) -> Launch:
    """Return the reduction of a tensor to so many states, or of its columns in so many parts of some rows."""
    whole, state = _tensor(desc), dynamic.state_bytes(desc)
    values = (
        *("x", WORKSPACE),
        *(desc.m, desc.k, family.row_pitch(args.x), rows_per_part, tiling.log2, across),
    )
    return Launch(
        _ranges_spec(desc, width),
        Grid(parts if whole else parts * across, state * (THREADS // _WARP if whole else THREADS * width)),
        values,
        written=(WORKSPACE,),
        scratch_bytes=state * parts * (1 if whole else desc.k),
    )


def _ranges_spec(desc: Desc, width: int) -> KernelSpec:
    parts = (element_name(desc.input_element), flag(dynamic.asymmetric(desc)), flag(_tensor(desc)), str(width))
    return KernelSpec(source=dynamic.SOURCE, body=f"ranges<{', '.join(parts)}>", threads=THREADS, params=RANGES_PARAMS)
