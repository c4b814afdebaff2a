"""Kernels with steps that can be left out, to show that each of them is needed and that its absence is caught.

A ``.cu`` of this folder names its kernels in ``enum Scenario`` and their steps in ``enum Step``, where ``nothing`` is
first. A line that a fault shall name ends in ``// @mark``.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from quantplan.emulator.schedule import Completion, Order
from quantplan.errors import KernelFault

POISON = 0xA5
SCHEDULES = [
    {"order": order, "completion": completion, "seed": seed}
    for order in Order
    for completion in Completion
    for seed in ((1, 2) if Order.RANDOM is order or Completion.RANDOM is completion else (0,))
]

PREAMBLE = """
using namespace qp::ptx;
struct P { const unsigned char* in; unsigned char* out; long long scenario, without; };
#define UNLESS(step) if (p.without != step)
__device__ inline uint4* output(const P& p) { return reinterpret_cast<uint4*>(p.out) + 64 * blockIdx.x; }
__device__ inline const uint4* input(const P& p) { return reinterpret_cast<const uint4*>(p.in); }
__device__ inline uint4* slots() { return reinterpret_cast<uint4*>(shared_memory()); }
"""
# The same for kernels with tensor maps of both, and with coordinates and a size.
MAPPED = "#include <qp/ptx/tensor_map.cuh>" + PREAMBLE.replace(
    "struct P { const unsigned char* in; unsigned char* out; long long scenario, without; }",
    "struct P { TensorMap in_map, out_map; const unsigned char* in; unsigned char* out; "
    "long long scenario, without, c0, c1, c2, bytes; }",
)


def source(name, preamble=PREAMBLE):
    """Return a text of this folder, behind what all of them use."""
    return preamble + (Path(__file__).parent / name).read_text(encoding="utf-8")


def aligned(data, boundary=128):
    """Copy bytes to an address that is a multiple of `boundary`."""
    data = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
    room = np.empty(data.size + boundary, np.uint8)
    first = -room.ctypes.data % boundary
    view = room[first : first + data.size]
    view[...] = data
    return view


def random_bytes(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8)


class Scenarios:
    """Runs the scenarios of one text."""

    def __init__(self, bench, text, **launch):
        self.bench, self.text, self.launch = bench, text, launch
        self.numbers = {}
        for kind in ("Scenario", "Step"):
            names = re.search(rf"enum {kind} {{([^}}]*)}}", text)[1]
            self.numbers.update({name.strip(): i for i, name in enumerate(names.split(","))})

    def run(self, scenario, data, out_bytes, *, without="nothing", scalars=(), **options):
        """Return the bytes that a scenario writes; those that it does not write are poison."""
        out = aligned(np.full(out_bytes, POISON, np.uint8))
        self.bench.run(
            self.text,
            {"in": aligned(data), "out": out},
            outputs=("out",),
            scalars=(self.numbers[scenario], self.numbers[without], *scalars),
            **self.launch,
            **options,
        )
        return out

    def fault(self, scenario, data, out_bytes, **options):
        """Return the fault in which a scenario ends."""
        with pytest.raises(KernelFault) as caught:
            self.run(scenario, data, out_bytes, **options)
        return caught.value

    def line(self, mark):
        """Return the place that is marked with ``// @mark``."""
        (number,) = (i for i, line in enumerate(self.text.splitlines(), start=2) if re.search(rf"@{mark}\b", line))
        return f"kernel.cpp:{number}"
