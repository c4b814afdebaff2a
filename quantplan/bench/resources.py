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
from quantplan.footprint import PlanResources
from quantplan.kernels import family_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quantplan.bench.tables import Row

_ROOT = Path(__file__).resolve().parents[2]
TARGET = "sm_90a"
SIZE = {"m": 4096, "k": 4096}
_MAIN: tuple[tuple[Any, str, str, str, dict[str, str]], ...] = (
    (qp.DynamicRangeQuantizeDescriptor, "bf16", "s8", "token", {}),
    (qp.DynamicRangeQuantizeDescriptor, "bf16", "fp8_e4m3", "token", {}),
    (qp.DynamicRangeQuantizeDescriptor, "bf16", "fp8_e4m3", "group:128", {}),
    (qp.DynamicRangeQuantizeDescriptor, "bf16", "fp8_e4m3", "group:32", {"scale_element": "e8m0"}),
    (qp.DynamicRangeQuantizeDescriptor, "bf16", "fp8_e4m3", "tensor", {}),
    (qp.DynamicRangeQuantizeDescriptor, "bf16", "s8", "channel:1", {}),
    (qp.QuantizeDescriptor, "bf16", "s8", "tensor", {}),
    (qp.QuantizeDescriptor, "bf16", "fp8_e4m3", "tensor", {}),
    (qp.QuantizeDescriptor, "bf16", "s8", "channel:1", {}),
    (qp.DequantizeDescriptor, "s8", "bf16", "token", {}),
    (qp.DequantizeDescriptor, "fp8_e4m3", "bf16", "group:128", {}),
)
PROBLEMS = tuple(
    kind(**SIZE, input_element=source, output_element=to, scope=scope, **fields)
    for kind, source, to, scope, fields in _MAIN
)
"""What a serving stack quantizes most, at one size."""


def measure(processes: int) -> Row:
    """Return what the page shows, as data."""
    from cuda.bindings import nvrtc  # noqa: PLC0415 - a check does without

    status, major, minor = nvrtc.nvrtcVersion()
    if int(status):
        raise RuntimeError(f"NVRTC does not tell its version: {status}")
    rows = [row.to_dict() for row in qp.resources(TARGET, PROBLEMS, processes=processes) if row.aligned]
    return {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "target": TARGET,
        "nvrtc": f"{major}.{minor}",
        "sources": digests(),
        "rows": rows,
    }


def table(data: Row) -> str:
    """Return the page's table: a line per launch."""
    lines = [line for row in data["rows"] for line in _lines(PlanResources.from_dict(row))]
    header = (
        *("Plan", "Kernel", "Registers", "Shared memory", "Spills", "Blocks of an SM", "Occupancy"),
        *("Loads in flight, of an SM", "Memory traffic"),
    )
    size = " × ".join(map(str, SIZE.values()))
    source = f"Operands of {size}, {data['target']}, NVRTC {data['nvrtc']}, compiled {data['date']}."
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
                f"{code.loads_in_flight} × {code.load_bytes} B, {kernel.bytes_in_flight // 1024} KB",
                f"{row.traffic:.2f}" if number == 0 else "",
            )
        )
    return lines


def digests() -> dict[str, str]:
    """Return the digests of the sources that the table tells of: with others, it is stale."""
    sources = ("quantize.cu", "dequantize.cu", "dynamic_range_quantize.cu")
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
