"""The host side of dynamic_range_quantize.cu for segments within a row: one kernel reads each once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from quantplan.devices.device import Grid
from quantplan.elements import ElementKind
from quantplan.kernels import KernelSpec
from quantplan.ops import _quantize_kernels as family
from quantplan.ops._quantize_kernels import THREADS, Args, Desc, ceil_div, element_name, flag, power_of_two
from quantplan.programs import Launch, Program
from quantplan.types import QuantizeMode, ScopeKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantplan.programs import Call

SOURCE = "dynamic_range_quantize.cu"
_WARP = 32
_MOST_LANES = 1024
_CHUNK, _SECTOR, _LINE = 16, 32, 128  # bytes: neighbouring lanes read whole lines and write whole sectors
_KEPT = 4  # chunks of a thread: enough loads in flight, and enough work for what it does once
_MOST_KEPT = 8  # the same, where more lanes would leave an SM one block, or the rest would be read a second time
_ENOUGH_THREADS = 132 * 256  # for a large GPU: with fewer, threads have less to do
_MOST_COLUMNS = 1 << 31  # of a row: the kernels count them in 32 bits


def asymmetric(desc: Desc) -> bool:
    """Return whether segments have zero points."""
    return desc.mode is QuantizeMode.ASYMMETRIC


def state_bytes(desc: Desc) -> int:
    """Size of a segment's range: a magnitude, or an interval, in the wide element."""
    wide = ElementKind.F64.itemsize if desc.input_element is ElementKind.F64 else ElementKind.F32.itemsize
    return wide * (2 if asymmetric(desc) else 1)


def elements(desc: Desc) -> tuple[str, ...]:
    """Return the kernels' names of the elements of x, q and the scales."""
    return tuple(map(element_name, (desc.input_element, desc.output_element, desc.scale_element)))


def limits(desc: Desc) -> tuple[int, int]:
    """Return the least and the greatest code."""
    return desc.q_min or 0, desc.q_max or 0


def within_rows(desc: Desc) -> bool:
    """Whether a scale depends on one row alone: by its scope, or because the tensor is a row."""
    return desc.scope.within_rows or (desc.scope.kind is ScopeKind.TENSOR and desc.m <= 1)


def row_widths(desc: Desc) -> tuple[int, ...]:
    """Return the widths of kernels whose chunks are all whole: in vectors only where rows end with one."""
    widths = family.widths(desc, desc.input_element)
    return widths[-1:] if desc.k % widths[0] else widths


def scale_pitches(args: Args, *, of_a_row: int) -> tuple[int, int]:
    """Return the distance of rows of scales and of zero points; where they are vectors, it is the given one."""
    scale, zero_point = args.scale, args.zero_point
    if len(scale.shape) == 1:
        return of_a_row, of_a_row
    return family.matrix_pitch(scale), family.matrix_pitch(zero_point)


@attrs.frozen
class _Shape:
    """What a segment's instance is made for, in the order of its parameters.

    Chunks of so many elements, which each of so many lanes keeps so many of, of so many segments at once.
    """

    width: int
    lanes: int
    kept: int
    abreast: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.lanes if self.lanes > _WARP else THREADS

    @property
    def per_block(self) -> int:
        """Segments of a block."""
        return self.threads // self.lanes * self.abreast

    @property
    def shared_states(self) -> int:
        """Ranges that the warps of a block tell each other."""
        return self.lanes // _WARP if self.lanes > _WARP else 0


@attrs.frozen
class SegmentsProgram(Program):
    """Segments within a row: one kernel reads each once."""

    source: str = SOURCE

    def limit(self, desc: Desc) -> str | None:
        """Return why the kernel does not exist for a problem."""
        if not within_rows(desc):
            return f"a scale of scope {desc.scope} depends on several rows"
        return family.packed_limit(desc.output_element)

    def specs(self, desc: Desc) -> tuple[KernelSpec, ...]:
        """Return the kernel in both widths, for dense operands and for others."""
        shapes = (self._shape(desc, width, dense=dense) for width in row_widths(desc) for dense in (True, False))
        return tuple(self._spec(desc, shape) for shape in dict.fromkeys(shapes))

    def launches(self, call: Call) -> Iterator[Launch]:
        """Yield the launch."""
        desc, args, selected = call.desc, call.args, call.selected
        dense = self._dense(desc, args)
        shape = self._shape(selected, family.width_of(row_widths(desc), args.x, args.q), dense=dense)
        m, k, (length, per_row) = desc.m, desc.k, self._segments(desc)
        if desc.scope.kind is ScopeKind.TENSOR and not m:
            m, k, length = 1, 0, 0  # no row has a scale, but a tensor without rows has one
        segments = m * per_row
        if dense:
            m, k, per_row = 1, m * k, segments
        values = (
            *("x", "q", "scale", "zero_point"),
            *(m, k, family.row_pitch(args.x), family.row_pitch(args.q), length, per_row),
            *scale_pitches(args, of_a_row=1),
            *limits(desc),
        )
        yield Launch(
            self._spec(selected, shape),
            Grid(ceil_div(segments, shape.per_block), shape.shared_states * state_bytes(desc)),
            values,
            written=("q", "scale", "zero_point"),
        )

    def _spec(self, desc: Desc, shape: _Shape) -> KernelSpec:
        flags = (flag(asymmetric(desc)), flag(desc.saturate))
        body = f"quantize_segments<{', '.join((*elements(desc), *flags, *map(str, attrs.astuple(shape))))}>"
        return KernelSpec(source=self.source, body=body, threads=shape.threads, params=family.SEGMENTS_PARAMS)

    @staticmethod
    def _segments(desc: Desc) -> tuple[int, int]:
        """Return the length of a segment, and how many a row has."""
        length = min(desc.scope.group_size or desc.k, desc.k)
        return length, ceil_div(desc.k, length) if length else 1

    def _dense(self, desc: Desc, args: Args) -> bool:
        """Whether groups follow each other across rows too, as if all rows were one."""
        length, per_row = self._segments(desc)
        if per_row <= 1 or desc.k % length or desc.m * desc.k >= _MOST_COLUMNS:
            return False
        pitches = ((args.x, desc.k), (args.q, desc.k), (args.scale, per_row), (args.zero_point, per_row))
        return all(view is None or family.row_pitch(view) == pitch for view, pitch in pitches)

    def _shape(self, desc: Desc, width: int, *, dense: bool) -> _Shape:
        """Return how threads share the segments of a problem.

        A thread has a few chunks. Where that leaves much of a GPU idle, more threads have fewer, but not many of a
        block: an SM issues for each of them what a thread does once. Up to a warp lanes need no barrier, and beyond 512
        a block is alone on its SM, which has nothing to load while that one computes.
        """
        length, per_row = self._segments(desc)
        segments, chunks = desc.m * per_row, ceil_div(length, width)
        least = min(power_of_two(chunks), max(_LINE // _CHUNK, _SECTOR // width))
        lanes = max(least, power_of_two(ceil_div(chunks, _KEPT)))
        while segments * lanes < _ENOUGH_THREADS and lanes < min(THREADS, chunks):
            lanes *= 2
        narrow = desc.input_element is not ElementKind.F64  # which leaves fewer registers
        most = _MOST_KEPT if narrow else _KEPT
        half = _MOST_LANES // 2
        lanes = min(lanes, half if chunks <= half * most else _MOST_LANES)
        kept, abreast = min(most, ceil_div(chunks, lanes)), 1
        if dense and narrow and lanes <= _WARP:
            while 2 * abreast * kept <= _KEPT and segments * lanes >= 2 * abreast * _ENOUGH_THREADS:
                abreast *= 2
        return _Shape(width, lanes, max(1, kept), abreast)
