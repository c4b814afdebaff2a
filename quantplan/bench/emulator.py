"""Measure the emulated device: how many CUDA threads it runs in a second, checked and not.

``python -m quantplan.bench.emulator --results FOLDER`` writes ``FOLDER/emulator-DATE.json``.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.bench.reference import interleaved, machine
from quantplan.emulator import compiler
from quantplan.emulator.library import Library, Region
from quantplan.emulator.schedule import Order, Schedule
from quantplan.kernels import ParamStruct

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SCHEMA = 1
ROWS, COLUMNS, THREADS = 1000, 256, 256
"""Of the matrix, and of a block, which takes one row: five shuffles and one barrier for an element a thread."""

_TEXT = """#include <qp/ptx/launch.cuh>
struct Params { const float* x; float* range; long long k; };

// The largest magnitude of each row.
__device__ void row_range(const Params& p) {
  float* part = reinterpret_cast<float*>(qp::ptx::shared_memory());
  float most = 0;
  for (long long i = threadIdx.x; i < p.k; i += blockDim.x) most = fmaxf(most, fabsf(p.x[blockIdx.x * p.k + i]));
  for (int step = 16; step; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = most;
  __syncthreads();
  if (threadIdx.x) return;
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) most = fmaxf(most, part[warp]);
  p.range[blockIdx.x] = most;
}
QP_KERNEL(row_range, 1024, Params, row_range)
"""
_PARAMS = ParamStruct("Params", (("x", "P"), ("range", "P"), ("k", "q")))


def launcher(schedule: Schedule, rows: int) -> Callable[[], object]:
    """Return a function that runs the kernel once."""
    library = Library(compiler.build(_TEXT, arch=900, checked=schedule.checked), checked=schedule.checked)
    x = np.random.default_rng(0).standard_normal((rows, COLUMNS), dtype=np.float32)
    found = np.empty(rows, np.float32)
    regions = [
        Region("x", x.ctypes.data, x[0].nbytes, x.strides[0], rows),
        Region("range", found.ctypes.data, found.nbytes, found.nbytes, 1, writable=True, initialized=False),
    ]
    params = _PARAMS.pack([x.ctypes.data, found.ctypes.data, COLUMNS])
    geometry: dict[str, Any] = {"grid": (rows,), "block": (THREADS,), "shared_bytes": 4 * THREADS // 32}

    def launch() -> None:
        library.launch("row_range", **geometry, params=params, regions=regions, schedule=schedule)
        np.testing.assert_array_equal(found, abs(x).max(axis=1))

    return launch


def measure(rows: int, *, rounds: int) -> list[dict[str, Any]]:
    """Measure the kernel under each kind of schedule."""
    kinds = [(checked, order) for checked in (False, True) for order in (Order.ASCENDING, Order.RANDOM)]
    schedules = [Schedule(order=order, checked=checked) for checked, order in kinds]
    times = interleaved(*(launcher(schedule, rows) for schedule in schedules), rounds=rounds)
    return [
        {"schedule": schedule.to_dict(), "ms": ms, "threads_per_second": rows * THREADS / ms * 1e3}
        for schedule, ms in zip(schedules, times, strict=True)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the result file; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="timed launches of each kind (default 15)")
    parser.add_argument("--results", type=Path, required=True, help="folder of the result file")
    options = parser.parse_args(argv)
    date = dt.datetime.now(tz=dt.UTC).date().isoformat()
    result = {"schema": SCHEMA, "date": date, "machine": machine(), "rows": measure(ROWS, rounds=options.rounds)}
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"emulator-{date}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
