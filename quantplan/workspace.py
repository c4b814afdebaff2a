"""Workspace: scratch memory that the caller owns and lends to a launch."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np

from quantplan.devices.target import Target, TargetKind
from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem, MisalignedOperand, Unsupported
from quantplan.record import to_size
from quantplan.tensor import HOST, Location, TensorView

ALIGNMENT = 256
"""Alignment of every workspace, in bytes."""


@attrs.frozen(eq=False)
class Workspace:
    """Borrowed scratch memory. Plans neither own, grow nor clear it; use one per concurrently running stream.

    Parameters
    ----------
    pointer : int
        Address, a multiple of 256.
    nbytes : int
        Size in bytes.
    location : Location
        Where the memory is.
    owner : object
        Kept alive as long as the workspace.
    """

    pointer: int
    nbytes: int
    location: Location = HOST
    owner: object = attrs.field(default=None, repr=False)

    @classmethod
    def allocate(cls, nbytes: int, target: object) -> Workspace:
        """Allocate exactly ``nbytes`` where a target's or stream's operands live.

        Parameters
        ----------
        nbytes : int
            Usually ``plan.workspace_size`` or ``family.workspace_size``.
        target : str, Target or stream
            Whose memory to use.

        Raises
        ------
        InvalidProblem
            A negative size.
        Unsupported
            The target is an architecture, where nothing runs.
        DriverNotFound
            A GPU is named, and CuPy, whose allocator is used, is not installed.
        """
        where = Target.parse(target)
        try:
            size = to_size(nbytes)
        except InvalidProblem as error:
            error.op, error.field = "Workspace", "nbytes"
            raise
        if where.kind is TargetKind.ARCH:
            raise Unsupported(f"{where} is an architecture, not a device", op="Workspace", field="target")
        if where.kind is TargetKind.CUDA:
            from quantplan.devices import gpu  # noqa: PLC0415 - importing quantplan touches no CUDA

            pointer, owner = gpu.device(where.index, where.arch).allocate(size)
            return cls(pointer, size, Location("cuda", where.index), owner)
        buffer = np.empty(size + ALIGNMENT, np.uint8)
        start = buffer.__array_interface__["data"][0]
        return cls(start + -start % ALIGNMENT, size, HOST, buffer)

    @classmethod
    def from_buffer(cls, obj: object) -> Workspace:
        """Borrow a dense, writable CuPy, torch or NumPy array, usually of bytes, as scratch memory.

        Raises
        ------
        MisalignedOperand
            It does not start at a multiple of 256 bytes.
        InvalidProblem
            It is read-only or has gaps.
        """
        view = TensorView.of(obj)
        first, _ = view.extent
        nbytes = math.prod(view.storage_shape) * view.element.itemsize
        if view.readonly or not _without_gaps(view):
            raise InvalidProblem(op="Workspace", field="buffer", expected="writable memory without gaps", got=view)
        if first % ALIGNMENT:
            raise MisalignedOperand(
                op="Workspace", field="buffer", expected=f"a multiple of {ALIGNMENT} bytes", got=f"address {first:#x}"
            )
        return cls(first, nbytes, view.location, obj)

    def __reduce__(self) -> Any:  # noqa: ANN401 - object's own signature
        """Refuse: a copy would point at memory that it does not keep alive."""
        raise InvalidProblem(op="Workspace", field="pickle", expected="its size", got="borrowed memory")

    def numpy(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the bytes as a NumPy array (host memory only)."""
        return TensorView(self.pointer, (self.nbytes,), (1,), ElementKind.U8, self.location, False, self.owner).numpy()


def _without_gaps(view: TensorView) -> bool:
    """Whether each byte between the first and the last belongs to exactly one item."""
    if 0 in view.shape:
        return True
    step = 1
    for stride, extent in sorted((abs(s), n) for s, n in zip(view.strides, view.storage_shape, strict=True) if n > 1):
        if stride != step:
            return False
        step *= extent
    return True
