"""Where operands of a verified plan lie: in the memory that a test fills and inspects, or in a copy of it on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import attrs

from quantplan.devices.target import Target, TargetKind
from quantplan.errors import Unsupported
from quantplan.tensor import HOST, Location
from quantplan.workspace import Workspace

if TYPE_CHECKING:
    from quantplan.plan import Plan
    from quantplan.tensor import TensorView
    from quantplan.verify.tensors import Memory


class Placement(Protocol):
    """A device's memory."""

    @property
    def stream(self) -> object:
        """What plans are launched on."""

    def send(self, memory: Memory) -> TensorView:
        """Return an operand on the device that holds what the memory holds."""

    def fetch(self, memory: Memory, operand: TensorView) -> None:
        """Bring what a plan wrote back into the memory."""

    def workspace(self, plan: Plan[Any, Any]) -> Workspace | None:
        """Return scratch memory for one launch."""


def placement(target: Target) -> Placement:
    """Return the memory of a target.

    Raises
    ------
    Unsupported
        Nothing runs on the target.
    DriverNotFound
        It is a GPU, and CuPy is not installed.
    """
    if target.location == HOST:
        return HostPlacement()
    if target.kind is not TargetKind.CUDA:
        raise Unsupported(f"nothing runs on {target}", op="verify", field="target")
    from quantplan.devices import gpu  # noqa: PLC0415 - importing quantplan touches no CUDA

    return CudaPlacement(target, gpu.device(target.index, target.arch).cupy)


class HostPlacement:
    """What NumPy holds is what the plan reads and writes."""

    stream = None

    def send(self, memory: Memory) -> TensorView:
        """Return the memory itself."""
        return memory.operand

    def fetch(self, memory: Memory, operand: TensorView) -> None:
        """Do nothing: it is there."""

    def workspace(self, plan: Plan[Any, Any]) -> Workspace | None:
        """Return scratch memory, where the plan needs some."""
        return Workspace.allocate(plan.workspace_size, plan.target) if plan.workspace_size else None


class CudaPlacement:
    """Copies on a GPU, with the guards around them, all on one stream.

    Parameters
    ----------
    target : Target
        The GPU.
    cupy : module
        CuPy, which owns the copies.
    """

    def __init__(self, target: Target, cupy: Any) -> None:  # noqa: ANN401 - a module
        self.target, self.cupy = target, cupy
        with cupy.cuda.Device(target.index):
            self.stream = cupy.cuda.Stream(non_blocking=True)
        self._scratch: Workspace | None = None

    def send(self, memory: Memory) -> TensorView:
        """Copy the whole buffer; the operand is the same part of the copy."""
        with self.cupy.cuda.Device(self.target.index), self.stream:
            copy = self.cupy.asarray(memory.buffer)
        view = memory.operand
        pointer = int(copy.data.ptr) + view.pointer - memory.buffer.__array_interface__["data"][0]
        return attrs.evolve(view, pointer=pointer, location=Location("cuda", self.target.index), owner=copy)

    def fetch(self, memory: Memory, operand: TensorView) -> None:
        """Wait for the stream, and copy the whole buffer back."""
        owner: Any = operand.owner
        with self.cupy.cuda.Device(self.target.index):
            memory.buffer[...] = owner.get(stream=self.stream)

    def workspace(self, plan: Plan[Any, Any]) -> Workspace | None:
        """Return scratch memory, where the plan needs some; it lives until the next launch."""
        self._scratch = Workspace.allocate(plan.workspace_size, plan.target) if plan.workspace_size else None
        return self._scratch
