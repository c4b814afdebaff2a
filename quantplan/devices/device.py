"""What a device offers to plans: it loads kernels, and its kernels launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

from quantplan.devices.target import TargetKind
from quantplan.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from quantplan.devices.target import Target
    from quantplan.kernels import KernelSpec
    from quantplan.tensor import TensorView


@attrs.frozen
class Grid:
    """Extent of a launch: blocks of the kernel's own number of threads, and the shared memory of each."""

    blocks: int
    shared_bytes: int = 0


@attrs.frozen
class Touched:
    """Memory that a kernel reads, or writes without reading it first."""

    name: str
    view: TensorView
    written: bool


class Kernel(Protocol):
    """A loaded kernel."""

    def launch(self, grid: Grid, params: bytes, touched: Sequence[Touched], stream: object) -> None:
        """Launch on a checked stream of the device; nothing is compiled, allocated or waited for."""


class Device(Protocol):
    """Where kernels run."""

    def load(self, specs: Iterable[KernelSpec]) -> tuple[Kernel, ...]:
        """Make kernels ready to launch."""


def open_device(target: Target) -> Device:
    """Return the device of a target that runs kernels.

    Raises
    ------
    Unsupported
        The target runs none.
    """
    if target.kind is TargetKind.EMULATED and target.capability is not None:
        from quantplan.devices import emulated  # noqa: PLC0415 - ctypes and compilers are for those who emulate

        return emulated.device(target.capability)
    raise Unsupported(f"kernels are not launched on {target}", op="load", field="target")
