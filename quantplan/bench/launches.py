"""What a launch costs the host with a real driver, beside the bare calls below it."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

import quantplan as qp
from quantplan import kernels
from quantplan.bench import memory as place
from quantplan.bench.timing import Sample, interleave
from quantplan.devices import gpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from quantplan.bench.memory import GpuMemory

DRIVER = "cuLaunchKernel alone"
"""What no launch can take less than: the driver's own call, with arguments that are ready."""
CALLS = 200
"""Launches in a row: less than a stream holds, so that none waits for the GPU."""
_ROUNDS, _LIMIT_S = 15, 6.0
_EMPTY = """#include <qp/ptx/launch.cuh>
struct Params { void* nothing; };
__device__ void nothing(const Params&) {}
QP_KERNEL(empty, 32, Params, nothing)
"""
DESC = qp.DynamicRangeQuantizeDescriptor(m=16, k=4096, input_element=qp.BF16)


def measure(memory: GpuMemory) -> dict[str, Any]:
    """Return the microseconds of each way to launch, and of compiling a kernel."""
    stream = memory.stream
    plan = qp.DynamicRangeQuantizePlan.select(stream, DESC)
    args = place.send(memory, DESC, place.blocks(DESC))
    bound = plan.bind(None, args)
    replay = memory.capture([lambda: bound.run(stream)])
    raw, driver = _empty(memory)
    calls: dict[str, Callable[[], object]] = {
        "run": lambda: plan.run(stream, None, args),
        "bound run": lambda: bound.run(stream),
        "graph replay": replay,
        "RawKernel alone": raw,
        DRIVER: driver,
    }
    timers = {name: _timer(call, stream) for name, call in calls.items()}
    with memory.cupy.cuda.Device(memory.target.index):
        samples = interleave(timers, rounds=_ROUNDS, limit_s=_LIMIT_S)
    return {"us": {name: s.to_dict() for name, s in samples.items()}, "compile_s": _compile_seconds(memory)}


def _timer(call: Callable[[], object], stream: Any) -> Callable[[], float]:  # noqa: ANN401 - CuPy's
    def timer() -> float:
        stream.synchronize()
        gc.disable()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        spent = time.perf_counter() - start
        gc.enable()
        return spent / CALLS * 1e6

    return timer


def _empty(memory: GpuMemory) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return launches of a kernel that does nothing: CuPy's, and the driver's with arguments that are ready."""
    cubin = kernels.compile_text(_EMPTY, memory.target.arch)
    with memory.cupy.cuda.Device(memory.target.index):
        function = memory.cupy.RawModule(path=str(gpu._file_of(cubin))).get_function("empty").kernel  # noqa: SLF001 - it has no public name
    value = np.zeros(1, np.dtype([("params", "V8")]))
    stream = memory.stream

    def raw() -> None:
        function((1,), (32,), (value,), shared_mem=0, stream=stream)

    library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    launch = library.cuLaunchKernel
    pointer = ctypes.c_void_p(value.ctypes.data)
    grid = [ctypes.c_uint(extent) for extent in (1, 1, 1, 32, 1, 1, 0)]
    ready = (ctypes.c_void_p(function.ptr), *grid, ctypes.c_void_p(stream.ptr), ctypes.byref(pointer), None)

    def driver() -> None:
        if status := launch(*ready):
            raise RuntimeError(f"cuLaunchKernel: CUDA_ERROR {status}")

    return raw, driver  # the first keeps the value alive that the second points to


def _compile_seconds(memory: GpuMemory) -> float:
    """Return how long a kernel of a family takes to compile, past the compiler's own start."""
    specs = qp.DynamicRangeQuantizePlan.choose(memory.target, DESC).kernels(DESC)
    spent = []
    for spec in specs[:2]:
        start = time.perf_counter()
        kernels.compile_cubin([spec], memory.target.arch)
        spent.append(time.perf_counter() - start)
    return float(Sample.of(spent).low)
