"""Kernels on the emulated device, held to the reference bit by bit on the same bytes."""

import numpy as np

import quantplan as qp
from quantplan.devices import emulated
from quantplan.devices.device import open_device
from quantplan.devices.target import Target
from quantplan.emulator.schedule import schedule
from quantplan.plan import plan_type

ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a")


class Twin:
    """Runs a problem on the CPU and on an emulated GPU and compares every output bit."""

    def __init__(self, lab):
        self.lab = lab
        self.rng = np.random.default_rng(11)

    def run(self, target, desc, arrays, variant=None, **how):
        """Run on a target, there by one of its variants if it is named; return the outputs' arrays."""
        kind = plan_type(desc)
        with schedule(**how):  # select builds what this schedule runs, checked or not
            plan = kind.select(target, desc, qp.PlanPreference(variant=None if target == "cpu" else variant))
        assert target == "cpu" or plan.sku.backend is qp.BackendKind.BESPOKE
        workspace = None
        if plan.workspace_size:
            workspace = qp.Workspace.allocate(plan.workspace_size, target)
            workspace.numpy()[...] = 0xA5  # whatever lies there must not matter
        with schedule(**how):
            plan.run(None, workspace, self.lab.args(desc, arrays))
        return {operand.name: arrays[operand.name] for operand in kind.operands(desc) if operand.output}

    def check(self, desc, inputs=None, *, arch="sm_90a", layout="dense", **how):
        """Assert equal bits; `inputs` replaces some of the operands, `layout` is how matrices lie in memory.

        Whatever else there is, a variant's name or a schedule, is passed on to `run`.
        """
        arrays = self.lab.operands(desc) | (inputs or {})
        expected = self.run("cpu", desc, {name: array.copy() for name, array in arrays.items()})
        placed = self.lab.placed(desc, arrays, layout)
        got = self.run(f"emulated:{arch}", desc, placed, **how)
        for name, array in got.items():
            wrong = np.argwhere(bits(array) != bits(expected[name]))
            assert not len(wrong), f"{name}{wrong[0].tolist()}: {len(wrong)} of {array.size} differ for {desc}"
            if layout == "strided" and array.ndim == 2:
                assert self.lab.gaps(array) == {0xA5}, f"{name}: written between its rows"
        return got

    def awkward(self, m, k, element):
        """Return values of every kind: ordinary rows, and rows of zeros, NaN, infinities, the tiny and the huge."""
        dtype = qp.ElementKind.of(element).dtype
        x = self.rng.standard_normal((m, k)) * 10.0 ** self.rng.integers(-3, 3, (m, 1))
        with np.errstate(all="ignore"):
            x = x.astype(dtype)
            limits = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 6e-8, 3e38, 65504, -448]).astype(dtype)
        if m > 1:
            x[1 % m] = 0
        if m > 4:
            x[2, k // 2] = limits[0]
            x[3, k - 1] = limits[1]
            x[4, :] *= dtype.type(0)
            x[4, :: max(1, k // 3)] = limits[5]
        if m > 6:
            x[5, : min(k, len(limits) - 3)] = limits[3 : 3 + min(k, len(limits) - 3)]
            x[6, 0] = limits[2]
        return x


def bits(array):
    """Return an array's bit patterns, densely."""
    size = array.dtype.itemsize
    return np.ascontiguousarray(array).view(f"u{size}")


def preload(descriptors, archs=("sm_90a",), *, checked=True, wanted=None):
    """Build the kernels of many problems together, which costs a tenth of building them one by one.

    They are the same translation units in each process, whatever it has built before: the first process to want them
    builds them for all.
    """
    for arch in archs:
        target = Target.parse(f"emulated:{arch}")
        specs = {}
        for desc in descriptors:
            for variant in plan_type(desc).variants:
                if wanted in (None, variant.name) and variant.why_not(desc, target) is None:
                    specs |= dict.fromkeys(variant.kernels(desc))
        device = open_device(target)
        for spec in specs:
            emulated._libraries.pop((spec, device._arch, checked), None)
        with schedule(checked=checked):
            device.load(specs)
