"""Small kernels on the emulated device, straight through its library: no plan, no op."""

import struct

import numpy as np
import pytest

from quantplan.emulator import compiler
from quantplan.emulator.library import Library, Region
from quantplan.emulator.schedule import Schedule

PRELUDE = "#include <qp/ptx/launch.cuh>\n"


class Bench:
    """Compiles a kernel `body(const P&)` whose struct P holds pointers to arrays, then 64-bit integers, and runs it."""

    def run(
        self,
        text,
        arrays,
        *,
        body="body",
        outputs=(),
        scalars=(),
        grid=(1,),
        block=(32,),
        shared=0,
        arch=900,
        **schedule,
    ):
        """Run `text` and return its statistics. Arrays named in `outputs` may be written; the others are inputs."""
        wanted = Schedule(**schedule)
        library = self.library(text, body=body, threads=int(np.prod(block)), arch=arch, checked=wanted.checked)
        regions = [
            Region(
                name=name,
                begin=array.ctypes.data,
                row_bytes=array.nbytes,
                pitch=array.nbytes,
                rows=1,
                writable=name in outputs,
                initialized=name not in outputs,
            )
            for name, array in arrays.items()
        ]
        params = struct.pack(f"@{len(arrays)}P{len(scalars)}q", *(a.ctypes.data for a in arrays.values()), *scalars)
        return library.launch(
            "k", grid=grid, block=block, shared_bytes=shared, params=params, regions=regions, schedule=wanted
        )

    def library(self, text, *, body="body", threads=32, arch=900, checked=True):
        """Compile `text`, with an entry for `body`."""
        unit = f"{PRELUDE}{text}\nQP_KERNEL(k, {threads}, P, {body})\n"
        return Library(compiler.build(unit, arch=arch, checked=checked), checked=checked)


@pytest.fixture
def bench():
    return Bench()
