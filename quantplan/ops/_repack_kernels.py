"""The host side of repack_marlin.cu: a block for 64 rows and 256 columns, one launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from quantplan.devices.device import Grid
from quantplan.kernels import KernelSpec, ParamStruct
from quantplan.programs import Launch, Program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantplan.programs import Call

THREADS = 128
ROWS, COLUMNS = 64, 256
SHARED_BYTES = 4 * 8 * 34 * 8 + 4 * ROWS
"""Four tiles of rows, eight rows of 34 columns of 8 bytes each, and the indices of 64 rows."""

PARAMS = ParamStruct(
    "RepackMarlinParams",
    (
        ("qweight", "P"), ("perm", "P"), ("weight_q", "P"),
        ("k", "q"), ("n", "q"), ("qweight_stride", "q"), ("weight_q_stride", "q"),
    ),
)  # fmt: skip


@attrs.frozen
class RepackProgram(Program):
    """repack_marlin.cu: one kernel per source, and one for rows out of order."""

    source: str = "repack_marlin.cu"

    def specs(self, desc: Any) -> tuple[KernelSpec, ...]:  # noqa: ANN401 - Program's signature
        """Return the kernel."""
        name = f"{desc.source_layout.value}_sorted" if desc.act_order else desc.source_layout.value
        return (KernelSpec(source=self.source, body=f"repack_marlin<Source::{name}>", threads=THREADS, params=PARAMS),)

    def launches(self, call: Call) -> Iterator[Launch]:
        """Yield the launch."""
        desc, args = call.desc, call.args
        k, n = desc.padded
        (spec,) = self.specs(desc)
        yield Launch(
            spec=spec,
            grid=Grid(k // ROWS * -(-n // COLUMNS), shared_bytes=SHARED_BYTES),
            values=(
                *("qweight", "perm", "weight_q"),
                *(desc.k, desc.n, _pitch(args.qweight), _pitch(args.weight_q)),
            ),
            written=("weight_q",),
        )


def _pitch(view: Any) -> int:  # noqa: ANN401 - a TensorView
    """Return the distance of rows in words: that of dense rows where there is at most one."""
    return int(view.strides[0] if view.shape[0] > 1 else view.shape[1])
