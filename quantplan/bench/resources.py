"""What the main kernels take of an H100, without one: the table of docs/performance.md.

``python -m quantplan.bench.resources`` compiles the kernels, and writes what it finds to a file of results.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import quantplan as qp
from quantplan.bench.page import table as markdown
from quantplan.footprint import KernelResources, PlanResources
from quantplan.kernels import family_digest, nvrtc_version
from quantplan.plan import plan_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quantplan.bench.tables import Row

_ROOT = Path(__file__).resolve().parents[2]
TARGET = "sm_90a"
SIZE = {"m": 4096, "k": 4096}
_MAIN: tuple[tuple[Any, str, str, str, dict[str, Any]], ...] = (
    (qp.DynamicRangeQuantizeDescriptor, "bf16", "s8", "token", {}),
    (qp.DynamicRangeQuantizeDescriptor, "bf16", "fp8_e4m3", "token", {}),
    (qp.DynamicRangeQuantizeDescriptor, "bf16", "fp8_e4m3", "group:128", {}),
    (qp.DynamicRangeQuantizeDescriptor, "bf16", "fp8_e4m3", "group:32", {"scale_element": "e8m0"}),
    (qp.DynamicRangeQuantizeDescriptor, "bf16", "fp8_e4m3", "tensor", {"m": 64}),
    (qp.DynamicRangeQuantizeDescriptor, "bf16", "fp8_e4m3", "tensor", {}),
    (qp.DynamicRangeQuantizeDescriptor, "bf16", "s8", "channel:1", {}),
    (qp.QuantizeDescriptor, "bf16", "s8", "tensor", {}),
    (qp.QuantizeDescriptor, "bf16", "fp8_e4m3", "tensor", {}),
    (qp.QuantizeDescriptor, "bf16", "s8", "channel:1", {}),
    (qp.DequantizeDescriptor, "s8", "bf16", "token", {}),
    (qp.DequantizeDescriptor, "fp8_e4m3", "bf16", "group:128", {}),
)
_BLOCKS: dict[str, Any] = {"output_element": "fp8_e4m3", "scope": "group:128"}
_FUSED: tuple[tuple[Any, dict[str, Any]], ...] = (
    (qp.NormQuantizeDescriptor, {"residual": True}),
    (qp.NormQuantizeDescriptor, {"norm": "layer", "residual": True, "gated": True, "modulated": True, **_BLOCKS}),
    (qp.ActivationQuantizeDescriptor, {}),
    (qp.ActivationQuantizeDescriptor, _BLOCKS),
)
_ROWS = (1, 16, 64, 128, 4096)  # of a W8A8 linear: each is run by another kernel
_INT4_ROWS = (1, 16, 32, 64, 4096)  # the same of 4-bit weights
PROBLEMS: tuple[Any, ...] = (
    *(
        kind(**{**SIZE, **fields}, input_element=source, output_element=to, scope=scope)
        for kind, source, to, scope, fields in _MAIN
    ),
    *(kind(**SIZE, **fields) for kind, fields in _FUSED),
    *(qp.QuantizedLinearDescriptor(m=m, n=SIZE["m"], k=SIZE["k"], output_element=qp.BF16) for m in _ROWS),
    *(qp.Int4MarlinGemmDescriptor(m=m, n=SIZE["m"], k=SIZE["k"]) for m in _INT4_ROWS),
    *(
        qp.Fp8GemmDescriptor(m=m, n=SIZE["m"], k=SIZE["k"], output_element=qp.BF16, scaling=scaling)
        for scaling in (qp.Fp8Scaling.TOKEN_CHANNEL, qp.Fp8Scaling.BLOCK)
        for m in (1, 64, SIZE["m"])
    ),
)
"""What a serving stack runs most, at one size."""


def measure(processes: int) -> Row:
    """Return what the page shows, as data."""
    chosen = {desc: plan_type(desc).select(TARGET, desc).sku.name for desc in PROBLEMS}
    found = qp.resources(TARGET, PROBLEMS, processes=processes)
    rows = [row.to_dict() for row in found if row.aligned and row.sku == chosen[row.descriptor]]
    return {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "target": TARGET,
        "nvrtc": nvrtc_version(),
        "sources": digests(),
        "rows": rows,
    }


def table(data: Row) -> str:
    """Return the page's table: a line per launch."""
    lines = [line for row in data["rows"] for line in _lines(PlanResources.from_dict(row))]
    header = (
        *("Plan", "Kernel", "Registers", "Shared memory", "Spills", "Blocks of an SM", "Occupancy"),
        *("Under way at once, of an SM", "Memory traffic"),
    )
    size = " × ".join(map(str, SIZE.values()))
    compiled = f"{data['target']}, NVRTC {data['nvrtc']}, compiled {data['date']}"
    source = f"Matrices of {size}, with fewer rows where the kernel is for fewer; {compiled}."
    return f"{markdown(header, lines)}\n\n{source}"


def _lines(row: PlanResources) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for number, kernel in enumerate(row.kernels):
        code, full = kernel.code, kernel.occupancy
        lines.append(
            (
                f"`{row.sku}`" if number == 0 else "",
                f"`{kernel.kernel.partition('<')[0]}`",
                str(code.registers),
                f"{code.static_shared_bytes + kernel.dynamic_shared_bytes} B",
                str(code.spill_store_bytes + code.spill_load_bytes),
                f"{full.blocks} × {kernel.threads}",
                f"{full.fraction:.0%}",
                f"{_under_way(kernel)}, {kernel.bytes_in_flight // 1024} KB",
                f"{row.traffic:.2f}" if number == 0 else "",
            )
        )
    return lines


def _under_way(kernel: KernelResources) -> str:
    """Return what a thread loads at once, or a block copies."""
    if kernel.ring_bytes:
        return f"ring of {kernel.ring_bytes // 1024} KB"
    return f"{kernel.code.loads_in_flight} × {kernel.code.load_bytes} B"


def digests() -> dict[str, str]:
    """Return the digests of the sources that the table tells of: with others, it is stale."""
    quantize = ("quantize.cu", "dequantize.cu", "dynamic_range_quantize.cu", "dynamic_range_quantize_sm90a.cu")
    sources = (*quantize, "int8_gemm_sm90a.cu", "int4_marlin_gemm_sm90a.cu", "fp8_gemm_sm90a.cu")
    return {source: family_digest(source) for source in sources}


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, and write the result file; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, default=1, help="how many compile at a time")
    parser.add_argument("--results", type=Path, default=_ROOT / "docs" / "performance" / "results")
    options = parser.parse_args(argv)
    data = measure(options.processes)
    path = options.results / f"resources-{data['date']}.json"
    path.write_text(json.dumps(data) + "\n", encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
