"""What a device offers to plans: it loads kernels, and its kernels launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import attrs

from quantplan.devices.target import TargetKind
from quantplan.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from quantplan.devices.target import Target
    from quantplan.kernels import KernelSpec
    from quantplan.tensor import TensorView
    from quantplan.tensor_maps import TensorMap

_MOST_BLOCKS = 2**31


@attrs.frozen
class Grid:
    """Extent of a launch: blocks of the kernel's own number of threads, and the shared memory of each.

    Parameters
    ----------
    blocks : int
        Blocks, or for a kernel whose blocks go from tile to tile, the tiles.
    shared_bytes : int
        Dynamic shared memory of a block.
    resident : int
        For such a kernel how many blocks an SM holds; no more are launched than the device holds at once. 0 for others.
    """

    blocks: int
    shared_bytes: int = 0
    resident: int = 0

    def __attrs_post_init__(self) -> None:
        """Refuse more blocks than CUDA counts."""
        if self.blocks >= _MOST_BLOCKS:
            raise Unsupported(
                f"{self.blocks} blocks, and a grid has less than {_MOST_BLOCKS}", op="launch", field="grid"
            )

    def launched(self, sms: int, cluster: int) -> int:
        """Return how many blocks a device of so many SMs launches, in whole clusters."""
        return min(self.blocks, max(1, self.resident * sms // cluster) * cluster) if self.resident else self.blocks


@attrs.frozen
class Touched:
    """Memory that a kernel reads, or writes without reading it first."""

    name: str
    view: TensorView
    written: bool


class Kernel(Protocol):
    """A loaded kernel."""

    def prepare(self, grid: Grid, params: bytes, touched: Callable[[], Sequence[Touched]]) -> Callable[[Any], None]:
        """Return a launch, to be called with a checked stream; then nothing is compiled, allocated or waited for."""

    def tensor_map(self, tensor_map: TensorMap, address: int) -> bytes:
        """Encode a map for the address of its operand."""


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
    if target.kind is TargetKind.CUDA:
        from quantplan.devices import gpu  # noqa: PLC0415 - importing quantplan touches no CUDA

        return gpu.device(target.index, target.arch)
    raise Unsupported(f"kernels are not launched on {target}", op="load", field="target")
