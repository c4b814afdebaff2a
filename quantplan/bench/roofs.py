"""Roofs: what a GPU can do at most, measured in the run that they are compared with, on random data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.bench.graphs import TorchGraphs
from quantplan.bench.peers import PEERS, Bench
from quantplan.bench.timing import Sample, interleave

if TYPE_CHECKING:
    from collections.abc import Callable

    from quantplan.bench.memory import GpuMemory

SIZE = 8192
"""M, N and K of the product that tells a rate."""
COPIED = 1 << 30
"""Bytes of the copy that tells the bandwidth, unless memory is short."""
RATES = {"f16": "torch f16", "bf16": "torch bf16", "int8": "torch._int_mm", "fp8": "torch._scaled_mm"}
"""The matrix rates, and the peer that each is measured with."""
_ROUNDS, _LIMIT_S, _CALLS = 15, 3.0, 4
_DEVICE_TO_DEVICE = 3


def copy_bandwidth(memory: GpuMemory) -> dict[str, Any]:
    """Measure how many bytes a second a copy within the GPU reads and writes, together."""
    size = min(COPIED, memory.free() // 8) // 256 * 256
    (source, first), (target, second) = memory.device.allocate(size), memory.device.allocate(size)
    runtime, stream = memory.cupy.cuda.runtime, memory.stream

    def copy() -> None:
        runtime.memcpyAsync(target, source, size, _DEVICE_TO_DEVICE, stream.ptr)

    memory.fill(source, size, np.random.default_rng(0).integers(0, 256, 1 << 22, np.uint8))
    sample = _measure(lambda: memory.elapsed(copy))
    del first, second
    return _roof(2 * size, sample, "bytes/s", "cudaMemcpyAsync")


def torch_copy(torch: Any, memory: GpuMemory) -> dict[str, Any]:  # noqa: ANN401 - a module
    """Measure the same with torch, whose copy may be another."""
    count = min(COPIED, memory.free() // 8)
    graphs = TorchGraphs(torch, memory)
    source = torch.randint(0, 256, (count,), dtype=torch.uint8, device=graphs.device)
    target = torch.empty_like(source)
    replay = graphs.capture([lambda: target.copy_(source)])
    return _roof(2 * count, _measure(lambda: memory.elapsed(replay)), "bytes/s", "torch copy_")


def matmul_rate(name: str, torch: Any, memory: GpuMemory) -> dict[str, Any]:  # noqa: ANN401 - a module
    """Measure the multiplications and additions a second of a large product, in one of `RATES`."""
    graphs = TorchGraphs(torch, memory)
    bench = Bench(torch, graphs.device, SIZE, SIZE, SIZE, 1)
    calls = graphs.prepare(PEERS[RATES[name]].prepare, bench) * _CALLS
    replay = graphs.capture(calls)
    sample = _measure(lambda: memory.elapsed(replay) / _CALLS)
    graphs.release()
    return _roof(2 * SIZE**3, sample, "op/s", f"{RATES[name]}, {SIZE}³")


def _measure(timer: Callable[[], float]) -> Sample:
    return interleave({"roof": timer}, rounds=_ROUNDS, limit_s=_LIMIT_S)["roof"]


def _roof(amount: int, sample: Sample, unit: str, means: str) -> dict[str, Any]:
    return {"value": amount / sample.median * 1e6, "unit": unit, "means": means, "us": sample.to_dict()}
