"""Library: kernels compiled for the emulated device, launched through ctypes; their faults become errors."""

from __future__ import annotations

import ctypes
import math
import operator
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import attrs

from quantplan.emulator import places
from quantplan.emulator.schedule import Accumulation, Completion, Order, Schedule
from quantplan.errors import FaultKind, InvalidProblem, KernelFault

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAME_BYTES = 32
_FAULTS = (None, *FaultKind)  # in the order of abi.h

# CUDA's limits, of every architecture that quantplan knows; an architecture may have less shared memory.
_MOST_BLOCKS = (2**31 - 1, 65535, 65535)
_MOST_THREADS = (1024, 1024, 64)
_MOST_SHARED_BYTES = 227 * 1024
_PARAMS_ALIGNMENT = 128  # as much as any field can ask for

# Signal handlers belong to the process, so it runs one launch at a time, in whichever library. A fork waits for it, and
# so finds no launch half done.
_one_at_a_time = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_one_at_a_time.acquire,
        after_in_parent=_one_at_a_time.release,
        after_in_child=_one_at_a_time.release,
    )


@attrs.frozen
class Region:
    """Memory that a kernel may touch: ``rows`` rows of ``row_bytes`` bytes, ``pitch`` bytes apart.

    Parameters
    ----------
    name : str
        What the operand is called.
    begin : int
        Address.
    row_bytes, pitch, rows : int
        Its extent. Rows do not overlap.
    writable : bool
        Whether the kernel may write it.
    initialized : bool
        Whether it may be read before the kernel has written it; inputs always may.
    """

    name: str
    begin: int
    row_bytes: int
    pitch: int
    rows: int
    writable: bool = False
    initialized: bool = True

    def __attrs_post_init__(self) -> None:
        """Refuse rows that overlap: a byte would have two histories."""
        if self.rows > 1 and self.pitch < self.row_bytes:
            raise _refused(f"pitch of {self.name}", f"at least row_bytes={self.row_bytes}", self.pitch)


@attrs.frozen
class Statistics:
    """What a launch did: switches between threads, and instrumented loads and stores."""

    switches: int
    accesses: int


# ---- the structures of include/emulated/abi.h


class _Region(ctypes.Structure):
    _fields_: ClassVar = [
        ("begin", ctypes.c_uint64),
        ("row_bytes", ctypes.c_uint64),
        ("pitch", ctypes.c_uint64),
        ("rows", ctypes.c_uint64),
        ("writable", ctypes.c_int32),
        ("initialized", ctypes.c_int32),
        ("name", ctypes.c_char * _NAME_BYTES),
    ]


class _Launch(ctypes.Structure):
    _fields_: ClassVar = [
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint64),
        ("params", ctypes.c_void_p),
        ("params_bytes", ctypes.c_uint64),
        ("regions", ctypes.POINTER(_Region)),
        ("region_count", ctypes.c_int32),
        ("order", ctypes.c_int32),
        ("completion", ctypes.c_int32),
        ("accumulation", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
        ("checked", ctypes.c_int32),
        ("cluster", ctypes.c_uint32),
    ]


class _Place(ctypes.Structure):
    _fields_: ClassVar = [("pc", ctypes.c_uint64), ("file", ctypes.c_char * 256), ("line", ctypes.c_int32)]


class _Report(ctypes.Structure):
    _fields_: ClassVar = [
        ("fault", ctypes.c_int32),
        ("message", ctypes.c_char * 768),
        ("place", _Place),
        ("other", _Place),
        ("block", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_uint32 * 3),
        ("switches", ctypes.c_uint64),
        ("accesses", ctypes.c_uint64),
    ]


_ORDERS, _COMPLETIONS, _ACCUMULATIONS = (
    {member: i for i, member in enumerate(kind)} for kind in (Order, Completion, Accumulation)
)


class Library:
    """A library that `compiler.build` made.

    Parameters
    ----------
    path : pathlib.Path
        The library.
    checked : bool
        Whether it was built with its accesses instrumented.
    """

    def __init__(self, path: Path, *, checked: bool) -> None:
        self.path = path
        self.checked = checked
        self._kernels = ctypes.CDLL(str(path))
        self._run = self._kernels.emulated_launch  # of the runtime, which the library links
        self._run.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Launch), ctypes.POINTER(_Report)]
        self._run.restype = ctypes.c_int

    def launch(
        self,
        name: str,
        *,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int,
        params: bytes,
        regions: Sequence[Region],
        schedule: Schedule,
    ) -> Statistics:
        """Run a kernel to its end.

        Parameters
        ----------
        name : str
            The kernel.
        grid, block : sequence of int
            Up to three extents each.
        shared_bytes : int
            Dynamic shared memory of a block.
        params : bytes
            The parameter struct.
        regions : sequence of Region
            What the kernel may touch, apart from its shared memory.
        schedule : Schedule
            Which of the possible executions to run.

        Raises
        ------
        KernelFault
            The kernel did what CUDA forbids or leaves undefined, or would not have ended.
        InvalidProblem
            The library has no such kernel, or CUDA would refuse the launch.
        """
        entry, bound, cluster = self._find(name)
        if not 0 <= shared_bytes <= _MOST_SHARED_BYTES:
            raise _refused("shared_bytes", f"0 to {_MOST_SHARED_BYTES}", shared_bytes)
        blocks, threads = _extents("grid", grid, _MOST_BLOCKS), _extents("block", block, _MOST_THREADS)
        if math.prod(threads) > bound:
            raise _refused("block", f"at most {bound} threads, the launch bounds of {name}", threads)
        if blocks[0] % cluster:
            raise _refused("grid", f"a multiple of {cluster} blocks, the cluster of {name}", blocks)
        memory = (_Region * len(regions))(*map(_region, regions))
        room = ctypes.create_string_buffer(len(params) + _PARAMS_ALIGNMENT)
        parameters = -(-ctypes.addressof(room) // _PARAMS_ALIGNMENT) * _PARAMS_ALIGNMENT
        ctypes.memmove(parameters, params, len(params))
        config = _Launch(
            grid=blocks,
            block=threads,
            shared_bytes=shared_bytes,
            params=parameters,
            params_bytes=len(params),
            regions=memory,
            region_count=len(regions),
            order=_ORDERS[schedule.order],
            completion=_COMPLETIONS[schedule.completion],
            accumulation=_ACCUMULATIONS[schedule.accumulation],
            seed=schedule.seed,
            checked=self.checked,
            cluster=cluster,
        )
        report = _Report()
        with _one_at_a_time:
            began = self._run(entry, config, report)
        if not began:
            raise MemoryError(f"emulator: no memory for {threads} threads and the state of what they access")
        if report.fault:
            raise self._fault(name, report)
        return Statistics(switches=report.switches, accesses=report.accesses)

    def _find(self, name: str) -> tuple[int | None, int, int]:
        """Return a kernel's address, the most threads that a block of it may have, and the blocks of a cluster."""
        try:
            bound, cluster = (
                ctypes.c_uint.in_dll(self._kernels, f"{name}_{of}").value for of in ("threads", "cluster")
            )
            return ctypes.cast(self._kernels[name], ctypes.c_void_p).value, min(bound, _MOST_THREADS[0]), cluster
        except (AttributeError, ValueError):
            raise _refused("kernel", "a kernel of the library", name) from None

    def _fault(self, name: str, report: _Report) -> KernelFault:
        return KernelFault(
            report.message.decode(errors="replace"),
            kind=_FAULTS[report.fault] or FaultKind.CRASH,
            kernel=name,
            place=self._place(report.place) or "an unknown line",
            other_place=self._place(report.other),
            block=(report.block[0], report.block[1], report.block[2]),
            thread=(report.thread[0], report.thread[1], report.thread[2]),
        )

    def _place(self, place: _Place) -> str | None:
        if place.line:
            return f"{Path(place.file.decode()).name}:{place.line}"
        return places.line_of(self.path, place.pc) if place.pc else None


def _refused(field: str, expected: str, got: object) -> InvalidProblem:
    return InvalidProblem(op="emulator", field=field, expected=expected, got=got)


def _extents(field: str, given: Sequence[int], most: tuple[int, int, int]) -> tuple[int, int, int]:
    whole = tuple(map(operator.index, given))
    x, y, z = (*whole, 1, 1)[:3] if 1 <= len(whole) <= len(most) else (0, 0, 0)
    if not all(1 <= extent <= limit for extent, limit in zip((x, y, z), most, strict=True)):
        raise _refused(field, f"one to three extents, up to {most}", whole)
    return x, y, z


def _region(region: Region) -> _Region:
    return _Region(
        begin=region.begin,
        row_bytes=region.row_bytes,
        pitch=region.pitch,
        rows=region.rows,
        writable=region.writable,
        initialized=region.initialized or not region.writable,
        name=region.name.encode()[: _NAME_BYTES - 1],
    )
