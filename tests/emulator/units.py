"""Kernels with a flaw to switch on: sound without it, and a fault at a marked line with it.

Each ``__device__ void NAME(const P& p)`` of a ``.cu`` of this folder is a kernel; the whole file is one translation
unit. ``p.flaw`` is zero where it shall be right. A line that a fault shall name ends in ``// @mark``.
"""

from __future__ import annotations

import re
import struct
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from quantplan.emulator import compiler
from quantplan.emulator.library import Library, Region
from quantplan.emulator.schedule import Order, Schedule
from quantplan.errors import KernelFault

MOST_THREADS = 1024
POISON = -0x5A5A5A5B
SCHEDULES = [
    {"order": order, "seed": seed} for order in Order for seed in ((1, 2, 3) if order is Order.RANDOM else (0,))
]

PREAMBLE = """#include <qp/ptx/launch.cuh>
struct P { const int* in; int* out; long long flaw; };
__device__ inline int* shared() { return reinterpret_cast<int*>(qp::ptx::shared_memory()); }
"""


class Unit:
    """The kernels of one text.

    Parameters
    ----------
    name : str
        A file of this folder.
    """

    def __init__(self, name):
        self.text = PREAMBLE + (Path(__file__).parent / name).read_text(encoding="utf-8")
        self.names = re.findall(r"^__device__ void (\w+)\(const P& p\)", self.text, re.MULTILINE)
        self.library = cache(self._library)

    def _library(self, *, checked=True):
        entries = "".join(f"QP_KERNEL(k_{name}, {MOST_THREADS}, P, {name})\n" for name in self.names)
        return Library(compiler.build(f"{self.text}\n{entries}", arch=900, checked=checked), checked=checked)

    def run(
        self,
        name,
        *,
        data=None,
        out=64,
        flaw=0,
        grid=(1,),
        block=(64,),
        shared=1024,
        initialized=False,
        rows=None,
        beside=(),
        **schedule,
    ):
        """Run a kernel and return its output of ints: `out` many, or an array.

        `rows` describes a strided input, and `beside` are regions of other operands.
        """
        data = np.arange(64, dtype=np.int32) if data is None else data
        out = np.full(out, POISON, np.int32) if isinstance(out, int) else out
        wanted = Schedule(**schedule)
        count, row_bytes, pitch = rows or (1, data.nbytes, data.nbytes)
        regions = [
            Region("in", data.ctypes.data, row_bytes, pitch, count),
            Region("out", out.ctypes.data, out.nbytes, out.nbytes, 1, writable=True, initialized=initialized),
            *beside,
        ]
        params = struct.pack("@PPq", data.ctypes.data, out.ctypes.data, flaw)
        self.statistics = self.library(checked=wanted.checked).launch(
            f"k_{name}", grid=grid, block=block, shared_bytes=shared, params=params, regions=regions, schedule=wanted
        )
        return out

    def fault(self, name, *, flaw=1, **options):
        """Return the fault in which a kernel ends."""
        with pytest.raises(KernelFault) as caught:
            self.run(name, flaw=flaw, **options)
        return caught.value

    def line(self, mark):
        """Return the place that is marked with ``// @mark``."""
        (number,) = (i for i, line in enumerate(self.text.splitlines(), 1) if re.search(rf"@{mark}\b", line))
        return f"kernel.cpp:{number}"
