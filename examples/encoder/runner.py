"""A layer on a target: launches as data, and what selects, binds, runs and captures them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

import quantplan as qp

from .model import Array, Arrays, Model

BEFORE, AFTER = slice(0, 2), slice(2, None)  # the launches before attention, and those after it


@dataclass(frozen=True)
class Launch:
    """One launch as data: the op, its descriptor, and for each operand the name of the array that it is."""

    name: str
    op: type[qp.Plan[Any, Any]]
    descriptor: Any
    operands: dict[str, str]

    @property
    def outputs(self) -> list[str]:
        """Names of the operands that are written."""
        return [operand.name for operand in self.op.operands(self.descriptor) if operand.output]


class Layer(Protocol):
    """What runs: the layer's arrays in host memory, and its launches."""

    model: Model
    arrays: Arrays
    launches: list[Launch]


def carrier(array: Array) -> Array:
    """Return an array as every library knows it: CuPy has no FP8, but bytes, which `quantplan.typed` names."""
    return array.view(np.uint8) if qp.ElementKind.of(array.dtype).is_fp8 else array


class Runner:
    """The layer on a target: its arrays lie there, and everything is selected, checked and bound before it runs."""

    def __init__(self, layer: Layer, target: str) -> None:
        self.layer = layer
        self.plans = [launch.op.select(target, launch.descriptor) for launch in layer.launches]
        self.stream: Any = None  # as the CPU and emulated GPUs have it
        carriers = {name: carrier(array) for name, array in layer.arrays.items()}
        if target.startswith("cuda"):
            import cupy  # noqa: PLC0415 - only a GPU needs it

            self.stream = cupy.cuda.Stream(non_blocking=True)
            with self.stream:  # what is copied on another stream may come too late
                self.arrays = {name: cupy.asarray(array) for name, array in carriers.items()}
        else:
            self.arrays = {name: array.copy() for name, array in carriers.items()}
        kinds = {name: qp.ElementKind.of(array.dtype) for name, array in layer.arrays.items()}
        workspace = qp.Workspace.allocate(max(plan.workspace_size for plan in self.plans), target)
        self.launches = []
        for launch, plan in zip(layer.launches, self.plans, strict=True):
            views = {operand: qp.typed(self.arrays[name], kinds[name]) for operand, name in launch.operands.items()}
            self.launches.append(plan.bind(workspace, launch.op.args_type(**views)))

    def run(self, part: slice) -> None:
        """Run some of the launches."""
        for launch in self.launches[part]:
            launch.run(self.stream)

    def capture(self, part: slice) -> Callable[[], None]:
        """Return what replays some of the launches, captured in a CUDA graph."""
        self.stream.begin_capture()
        self.run(part)
        graph = self.stream.end_capture()
        return lambda: graph.launch(self.stream)

    def read(self, name: str) -> Array:
        """Return a copy of an array in host memory."""
        array = self.arrays[name]
        host = array.copy() if self.stream is None else array.get(stream=self.stream)
        return host.view(self.layer.arrays[name].dtype)

    def write(self, name: str, values: Array) -> None:
        """Overwrite an array."""
        if self.stream is None:
            self.arrays[name][...] = carrier(values)
        else:
            self.arrays[name].set(carrier(values), stream=self.stream)

    def attend(self) -> None:
        """Compute attention, on the host."""
        self.write("attention", self.layer.model.attention(self.read("qkv.output")).astype(np.float16))

    def result(self, before: Callable[[], None], after: Callable[[], None]) -> Array:
        """Run the layer from its input, with what runs the launches before attention and after it."""
        self.write("stream", self.layer.arrays["stream"])
        before()
        self.attend()
        after()
        return self.read("result")
