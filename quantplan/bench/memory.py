"""Operands of problems: random contents, and memory for them on the emulated device or on a GPU.

What is measured may take gigabytes, which are filled by copying: a random block goes to the GPU once, and is doubled
there until the operand is full. CuPy needs no compiler for that.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from quantplan.devices import gpu
from quantplan.elements import ElementKind
from quantplan.plan import plan_type
from quantplan.tensor import Location, TensorView
from quantplan.workspace import ALIGNMENT, Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from quantplan.devices.target import Target
    from quantplan.operands import Operand
    from quantplan.plan import Plan

POISON = 0xA5
"""Of which outputs are full before anything is written."""

_BLOCK = 1 << 20
"""Elements that are random; beyond, they repeat."""
_HOST_TO_DEVICE, _DEVICE_TO_HOST, _DEVICE_TO_DEVICE = 1, 2, 3  # cudaMemcpyKind


def contents(operand: Operand, rng: np.random.Generator, most: int | None = None) -> NDArray[Any]:
    """Return an operand's storage, or the first ``most`` elements of it: outputs full of poison, inputs random.

    Scales are small positive numbers, permutations are permutations, and codes are any.
    """
    shape, element = operand.storage, operand.element
    if operand.name == "perm":
        return rng.permutation(shape[0]).astype(element.dtype)  # half of one would point beyond its end
    if most is not None and np.prod(shape) > most:
        shape = (most,)
    if operand.output:
        return np.full((*shape, element.itemsize), POISON, np.uint8).view(element.dtype)[..., 0]
    if element is ElementKind.E8M0:
        return rng.integers(120, 127, shape, np.uint8).view(element.dtype)
    return _numbers(operand.name, element, shape, rng)


def _numbers(name: str, element: ElementKind, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[Any]:
    if name.endswith("scale"):
        return rng.uniform(0.005, 0.02, shape).astype(element.dtype)
    if name == "zero_point":
        return rng.integers(0, 8, shape).astype(element.dtype)
    if element.dtype.kind in "iu":
        limits = np.iinfo(element.dtype)
        return rng.integers(limits.min, limits.max, shape, element.dtype, endpoint=True)
    return rng.standard_normal(shape, np.float32).astype(element.dtype)


class Memory(Protocol):
    """A device's memory."""

    @property
    def stream(self) -> Any:  # noqa: ANN401 - CuPy's, or None
        """What plans are launched on."""

    def send(self, operand: Operand, values: NDArray[Any]) -> TensorView:
        """Return an operand that holds some values, over and over."""

    def fetch(self, view: TensorView) -> NDArray[Any]:
        """Wait for the stream, and return a copy of an operand's storage."""


class HostMemory:
    """Where the reference and the emulated device have their operands."""

    stream = None

    def send(self, operand: Operand, values: NDArray[Any]) -> TensorView:
        """Return an operand in an array of its own."""
        size = int(np.prod(operand.storage)) * operand.element.itemsize
        room = np.empty(size + ALIGNMENT, np.uint8)  # as aligned as a GPU's memory is
        array = room[-room.ctypes.data % ALIGNMENT :][:size].view(operand.element.dtype).reshape(operand.storage)
        array[...] = np.resize(values, operand.storage)
        return TensorView(array.ctypes.data, operand.shape, operand.strides, operand.element, owner=array)

    def fetch(self, view: TensorView) -> NDArray[Any]:
        """Return a copy."""
        owner: Any = view.owner
        return np.array(owner)


class GpuMemory:
    """A GPU's memory, on one stream that waits for no other.

    Parameters
    ----------
    target : Target
        The GPU.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.device = gpu.device(target.index, target.arch)
        self.cupy = self.device.cupy
        with self.cupy.cuda.Device(target.index):
            self.stream = self.cupy.cuda.Stream(non_blocking=True)

    def send(self, operand: Operand, values: NDArray[Any]) -> TensorView:
        """Return an operand in memory of its own."""
        size = int(np.prod(operand.storage)) * operand.element.itemsize
        pointer, owner = self.device.allocate(size)
        self.fill(pointer, size, np.ascontiguousarray(values).view(np.uint8).reshape(-1))
        location = Location("cuda", self.target.index)
        return TensorView(pointer, operand.shape, operand.strides, operand.element, location, owner=owner)

    def fill(self, pointer: int, size: int, block: NDArray[np.uint8]) -> None:
        """Write a block over and over until so many bytes are full."""
        runtime = self.cupy.cuda.runtime
        done = min(size, block.size)
        with self.cupy.cuda.Device(self.target.index):
            if done:
                runtime.memcpy(pointer, block.ctypes.data, done, _HOST_TO_DEVICE)
            while done < size:
                more = min(done, size - done)
                runtime.memcpy(pointer + done, pointer, more, _DEVICE_TO_DEVICE)
                done += more
            runtime.deviceSynchronize()  # copies within the GPU return before they are done

    def fetch(self, view: TensorView) -> NDArray[Any]:
        """Wait for the stream, and return a copy."""
        array = np.empty(view.storage_shape, view.element.dtype)
        with self.cupy.cuda.Device(self.target.index):
            self.stream.synchronize()
            if array.nbytes:
                self.cupy.cuda.runtime.memcpy(array.ctypes.data, view.pointer, array.nbytes, _DEVICE_TO_HOST)
        return array

    def capture(self, launches: Sequence[Callable[[], object]]) -> Callable[[], object]:
        """Capture launches on the stream; the result replays them."""
        with self.cupy.cuda.Device(self.target.index):
            self.stream.begin_capture()
            try:
                for launch in launches:
                    launch()
            finally:
                captured = self.stream.end_capture()
        return lambda: captured.launch(self.stream)

    def elapsed(self, work: Callable[[], object], ahead: Callable[[], object] | None = None) -> float:
        """Return the microseconds that work takes on the GPU, which other work ahead of it may keep busy until then."""
        with self.cupy.cuda.Device(self.target.index):
            start, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
            if ahead is not None:
                ahead()
            start.record(self.stream)
            work()
            end.record(self.stream)
            end.synchronize()
            return float(self.cupy.cuda.get_elapsed_time(start, end)) * 1e3

    def free(self) -> int:
        """Return the bytes of memory that nothing holds."""
        with self.cupy.cuda.Device(self.target.index):
            return int(self.cupy.cuda.runtime.memGetInfo()[0])

    def properties(self) -> Mapping[str, Any]:
        """Return what CUDA tells of the GPU."""
        found: dict[str, Any] = self.cupy.cuda.runtime.getDeviceProperties(self.target.index)
        return found


def arrays(desc: Any, seed: int = 0) -> dict[str, NDArray[Any]]:  # noqa: ANN401 - any descriptor
    """Return the storage of each operand of a problem."""
    rng = np.random.default_rng(seed)
    return {operand.name: contents(operand, rng) for operand in plan_type(desc).operands(desc)}


def blocks(desc: Any) -> dict[str, NDArray[Any]]:  # noqa: ANN401 - any descriptor
    """Return for each operand of a problem what `Memory.send` may repeat."""
    return {operand.name: _block(operand) for operand in plan_type(desc).operands(desc)}


@lru_cache(256)
def _block(operand: Operand) -> NDArray[Any]:
    return contents(operand, np.random.default_rng(0), _BLOCK)


def send(memory: Memory, desc: Any, values: Mapping[str, NDArray[Any]]) -> Any:  # noqa: ANN401 - any descriptor and its Args
    """Return the Args of a problem, in a device's memory."""
    kind = plan_type(desc)
    return kind.args_type(**{o.name: memory.send(o, values[o.name]) for o in kind.operands(desc)})


def workspace(plan: Plan[Any, Any]) -> Workspace | None:
    """Return scratch memory, where a plan needs some."""
    return Workspace.allocate(plan.workspace_size, plan.target) if plan.workspace_size else None
