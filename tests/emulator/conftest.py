"""Small kernels on the emulated device, straight through its library: no plan, no op."""

import numpy as np
import pytest

from quantplan.emulator import compiler, tensor_maps
from quantplan.emulator.library import Library, Region
from quantplan.emulator.schedule import Schedule
from quantplan.kernels import ParamStruct

PRELUDE = "#include <qp/ptx/launch.cuh>\n"


def pack(maps, pointers, scalars):
    """Return the struct: encoded tensor maps, pointers, 64-bit integers."""
    letters = "T" * len(maps) + "P" * len(pointers) + "q" * len(scalars)
    return ParamStruct("P", tuple((f"f{i}", letter) for i, letter in enumerate(letters))).pack(
        [*maps, *pointers, *scalars]
    )


def entry(threads, cluster, body="body"):
    """Return the line that makes `body` the kernel ``k``."""
    return (
        f"QP_CLUSTER_KERNEL(k, {cluster}, {threads}, P, {body})"
        if cluster > 1
        else f"QP_KERNEL(k, {threads}, P, {body})"
    )


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
        cluster=1,
        arch=900,
        maps=(),
        **schedule,
    ):
        """Run `text` and return its statistics. Arrays named in `outputs` may be written; the others are inputs.

        Tensor maps of them come first in the struct.
        """
        wanted = Schedule(**schedule)
        threads = int(np.prod(block))
        library = self.library(text, body=body, threads=threads, cluster=cluster, arch=arch, checked=wanted.checked)
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
        encoded = [b"" if one is None else tensor_maps.encode(one, arrays[one.operand].ctypes.data) for one in maps]
        params = pack(encoded, [array.ctypes.data for array in arrays.values()], scalars)
        return library.launch(
            "k", grid=grid, block=block, shared_bytes=shared, params=params, regions=regions, schedule=wanted
        )

    def library(self, text, *, body="body", threads=32, cluster=1, arch=900, checked=True):
        """Compile `text`, with an entry for `body`."""
        unit = f"{PRELUDE}{text}\n{entry(threads, cluster, body)}\n"
        return Library(compiler.build(unit, arch=arch, checked=checked), checked=checked)


@pytest.fixture
def bench():
    return Bench()


@pytest.fixture(scope="session", autouse=True)
def _headers(precompiled):
    """Build kernels faster."""
