"""Measure the reference device: how far its exact integer GEMM is from NumPy's f32 matmul, and how long casts take.

``python -m quantplan.bench.reference`` writes ``docs/performance/results/reference-DATE.json``.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import quantplan as qp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SCHEMA = 1
SHAPES = ((1, 4096, 4096), (64, 1536, 576), (512, 512, 512), (1024, 1024, 1024))
"""M, N, K of the measured linears: one token, a small model's odd shape, and two square ones."""

_RESULTS = Path(__file__).resolve().parents[2] / "docs" / "performance" / "results"
_SEED = 20  # any: the time of a GEMM does not depend on its values


def machine() -> dict[str, Any]:
    """Describe what a time depends on: processor, cores, and NumPy with its BLAS threads."""
    try:
        import threadpoolctl  # noqa: PLC0415 - an extra, needed here only
    except ModuleNotFoundError as error:
        raise SystemExit("counting BLAS threads needs threadpoolctl: pip install 'quantplan[bench]'") from error
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    return {
        "cpu": _processor(),
        "cpu_count": os.cpu_count(),
        "blas": pools[0]["internal_api"] if pools else "unknown",
        "blas_threads": max((pool["num_threads"] for pool in pools), default=1),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _processor() -> str:
    """Return the processor's model name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def interleaved(*functions: Callable[[], object], rounds: int) -> list[float]:
    """Median time of each function in milliseconds, taken in turn so that a busy spell hits all of them alike."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()  # the first call pays for memory that later ones reuse
    for _ in range(rounds):
        for function, spent in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            spent.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(spent) for spent in times]


def measure_gemm(m: int, n: int, k: int, *, rounds: int) -> dict[str, Any]:
    """Measure a W8A8 linear against an f32 matmul of the same shape."""
    rng = np.random.default_rng(_SEED)
    act_q = rng.integers(-127, 128, (m, k), dtype=np.int8)
    weight_q = rng.integers(-127, 128, (n, k), dtype=np.int8)
    weight_scale = np.full(n, 0.01, np.float32)
    output = np.empty((m, n), np.float32)
    plan = qp.SmoothQuantLinearPlan.select("cpu", qp.SmoothQuantLinearDescriptor(m=m, n=n, k=k, act_scale=0.02))
    args = qp.SmoothQuantLinearArgs(act_q=act_q, weight_q=weight_q, weight_scale=weight_scale, output=output)
    launch = plan.bind(None, args)
    act, weight = act_q.astype(np.float32), weight_q.astype(np.float32)
    product = np.empty((m, n), np.float32)
    ours, theirs = interleaved(lambda: launch.run(None), lambda: np.matmul(act, weight.T, out=product), rounds=rounds)
    return {
        "sku": plan.sku.name,
        "source_digest": plan.sku.source_digest,
        "m": m,
        "n": n,
        "k": k,
        "ms": ours,
        "f32_ms": theirs,
        "ratio": ours / theirs,
    }


def measure_casts(m: int, k: int, *, rounds: int) -> list[dict[str, Any]]:
    """Measure the FP8 cast with a static scale, and dynamic s8 quantization per token."""
    x = np.random.default_rng(_SEED).standard_normal((m, k), dtype=np.float32)
    fp8 = qp.QuantizePlan.select("cpu", qp.QuantizeDescriptor(m=m, k=k, output_element=qp.FP8_E4M3, scale=1.0))
    token = qp.DynamicRangeQuantizePlan.select("cpu", qp.DynamicRangeQuantizeDescriptor(m=m, k=k))
    fp8_launch = fp8.bind(None, qp.QuantizeArgs(x=x, q=np.empty((m, k), qp.FP8_E4M3.dtype)))
    token_launch = token.bind(
        None,
        qp.DynamicRangeQuantizeArgs(x=x, q=np.empty((m, k), np.int8), scale=np.empty(m, np.float32)),
    )
    times = interleaved(lambda: fp8_launch.run(None), lambda: token_launch.run(None), rounds=rounds)
    return [
        {"name": name, "sku": sku.name, "source_digest": sku.source_digest, "m": m, "k": k, "ms": ms}
        for name, sku, ms in zip(
            ("FP8 e4m3 cast, static scale", "s8 quantization per token"), (fp8.sku, token.sku), times, strict=True
        )
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the result file; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each function (default 15)")
    parser.add_argument("--results", type=Path, default=_RESULTS, help="folder of the result file")
    options = parser.parse_args(argv)
    date = dt.datetime.now(tz=dt.UTC).date().isoformat()
    result = {
        "schema": SCHEMA,
        "date": date,
        "machine": machine(),
        "gemm": [measure_gemm(*shape, rounds=options.rounds) for shape in SHAPES],
        "ops": measure_casts(1024, 1024, rounds=options.rounds),
    }
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"reference-{date}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
