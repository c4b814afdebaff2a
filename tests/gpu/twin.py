"""Problems on a GPU, held to the reference bit by bit: the emulator's twin, with operands that travel to the GPU."""

import attrs
import numpy as np
import pytest

import quantplan as qp
from quantplan.devices import gpu
from quantplan.plan import plan_type
from tests.kernels.twin import Twin


class GpuTwin(Twin):
    """Runs what `Twin` runs on an emulated GPU on a real one, with operands that lie in memory in the same way."""

    def __init__(self, lab, target):
        super().__init__(lab)
        self.target = target
        self.cupy = gpu.device(target.index, target.arch).cupy
        self.location = target.location
        with self.cupy.cuda.Device(target.index):
            self.stream = self.cupy.cuda.Stream(non_blocking=True)

    def run(self, target, desc, arrays, variant=None, **how):
        """Run on the CPU, or on the GPU whatever else the target is; return its outputs' arrays.

        A variant that this GPU does not run skips the test, with the reason.
        """
        if target == "cpu":
            return super().run(target, desc, arrays, **how)
        kind = plan_type(desc)
        plan = self.plan(desc, variant)
        assert plan.sku.backend is qp.BackendKind.BESPOKE
        args, copies = self.send(desc, arrays)
        workspace = qp.Workspace.allocate(plan.workspace_size, self.target) if plan.workspace_size else None
        plan.run(self.stream, workspace, args)
        outputs = {operand.name: arrays[operand.name] for operand in kind.operands(desc) if operand.output}
        for name, array in outputs.items():
            _root(array)[...] = copies[name].get(stream=self.stream)
        return outputs

    def plan(self, desc, variant):
        """Select a plan for the GPU, of a variant if it is named."""
        kind = plan_type(desc)
        if variant is not None and (reason := refusal(kind, variant, desc, self.target)):
            pytest.skip(reason)
        return kind.select(self.target, desc, qp.PlanPreference(variant=variant))

    def send(self, desc, arrays):
        """Return the op's Args with copies of arrays, and the copies: of all the memory that an array is a part of."""
        copies, views = {}, {}
        args = self.lab.args(desc, arrays)
        with self.cupy.cuda.Device(self.target.index), self.stream:
            for name, array in arrays.items():
                root, view = _root(array), getattr(args, name)
                copy = copies[name] = self.cupy.asarray(root)
                pointer = int(copy.data.ptr) + view.pointer - root.ctypes.data
                views[name] = attrs.evolve(view, pointer=pointer, location=self.location, owner=copy)
        return type(args)(**views), copies


def refusal(kind, name, desc, target):
    """Return why a variant runs a problem on other GPUs only; None where it runs on this one, or on none."""
    (variant,) = (one for one in kind.variants if one.name == name)
    reason = None if variant.limit(desc) else variant.why_not(desc, target)
    return reason and f"{name}: {reason}"


def _root(array):
    """Return the bytes of the memory that an array is a part of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.reshape(-1, order="A").view(np.uint8)
