"""Measure what a launch costs on the host: the time around the driver's call, with a launch that does nothing.

``python -m quantplan.bench.host`` prints microseconds beside the goals, and beside a bare ctypes call and torch's
dispatch of a tiny op where torch is installed. It exits with 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime as dt
import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

import quantplan as qp
from quantplan.bench.reference import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from quantplan.devices.device import Grid, Touched
    from quantplan.kernels import KernelSpec

SCHEMA = 1
TARGET = "emulated:sm_90a"  # its operands are NumPy's; what would run the kernels is replaced
GOALS = {"bound run": 3.0, "validated run": 8.0, "cached select": 100.0}
"""Microseconds over the driver's call."""

M, K = 16, 4096


class _NullKernel:
    """Launches nothing."""

    def prepare(self, grid: Grid, params: bytes, touched: Callable[[], Sequence[Touched]]) -> Callable[[Any], None]:  # noqa: ARG002 - Kernel's signature
        return lambda stream: None  # noqa: ARG005 - the same


class _NullDevice:
    """Loads nothing."""

    def load(self, specs: Iterable[KernelSpec]) -> tuple[_NullKernel, ...]:
        return tuple(_NullKernel() for _ in specs)


def microseconds(function: Callable[[], object], *, calls: int, rounds: int) -> float:
    """Return the median over rounds of the time of a call."""
    function()
    spent = []
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        spent.append((time.perf_counter() - start) / calls * 1e6)
        gc.enable()
    return statistics.median(spent)


def _cases() -> dict[str, tuple[Callable[[], object], int]]:
    """Return each measured call, with how often to repeat it in a round."""
    desc = qp.DynamicRangeQuantizeDescriptor(m=M, k=K, input_element=qp.BF16)
    kind = qp.DynamicRangeQuantizePlan
    x, q, scale = np.zeros((M, K), qp.BF16.dtype), np.zeros((M, K), np.int8), np.zeros(M, np.float32)
    args = qp.DynamicRangeQuantizeArgs(x=x, q=q, scale=scale)
    plan = kind.select(TARGET, desc)
    family: qp.PlanFamily[Any, Any] = qp.PlanFamily.select(TARGET, desc, ms=(1, M, 64))
    launch, layer = plan.bind(None, args), family.bind()
    widths = iter(range(8, 1_000_000, 8))
    nothing = ctypes.pythonapi.Py_IsInitialized
    cases: dict[str, tuple[Callable[[], object], int]] = {
        "bound run": (lambda: launch.run(None), 5000),
        "validated run": (lambda: plan.run(None, None, args), 2000),
        "full bind and run": (lambda: plan.bind(None, args).run(None), 2000),
        "partial bind's run": (lambda: layer.run(None, None, x=x, q=q, scale=scale), 1000),
        "arguments and validated run": (
            lambda: plan.run(None, None, qp.DynamicRangeQuantizeArgs(x=x, q=q, scale=scale)),
            1000,
        ),
        "cached select": (lambda: kind.select(TARGET, desc), 500),
        "new descriptor and select": (lambda: kind.select(TARGET, desc.replace(k=next(widths))), 200),
        "ctypes call": (nothing, 5000),
    }
    try:
        import torch  # noqa: PLC0415 - an extra
    except ImportError:
        return cases
    a = torch.zeros(1)
    return cases | {"torch dispatch (CPU, in place)": (lambda: a.add_(1), 5000)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=11, help="timed rounds of each call (default 11)")
    parser.add_argument("--results", type=Path, help="folder of a result file; without it nothing is written")
    options = parser.parse_args(argv)
    with mock.patch("quantplan.programs.open_device", return_value=_NullDevice()):
        times = {
            name: microseconds(call, calls=calls, rounds=options.rounds) for name, (call, calls) in _cases().items()
        }
    missed = []
    for name, spent in times.items():
        goal = GOALS.get(name)
        if goal is None:
            verdict = ""
        elif spent <= goal:
            verdict = f"goal {goal:g}: met"
        else:
            verdict = f"goal {goal:g}: missed by {spent - goal:.1f}"
            missed.append(name)
        print(f"{name:<32}{spent:8.2f} µs  {verdict}".rstrip())
    if "torch dispatch (CPU, in place)" not in times:
        print("torch is not installed: its dispatch was not measured")
    if options.results is not None:
        date = dt.datetime.now(tz=dt.UTC).date().isoformat()
        options.results.mkdir(parents=True, exist_ok=True)
        result = {"schema": SCHEMA, "date": date, "machine": machine(), "m": M, "k": K, "microseconds": times}
        path = options.results / f"host-{date}.json"
        path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
