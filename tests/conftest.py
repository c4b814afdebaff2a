"""What the tests of all ops share: operands for any descriptor, a run on the CPU, and awkward memory."""

import contextlib
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import settings

import quantplan as qp
from quantplan.emulator import compiler
from quantplan.errors import QuantPlanError
from quantplan.plan import plan_type
from tests import headers

# The same examples in every run, and on a busy machine no test fails for being slow; `make test-full` draws new ones.
settings.register_profile("sample", deadline=None, derandomize=True)
settings.register_profile("full", deadline=None, max_examples=1000)
settings.load_profile("sample")

POISON = 0xA5
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


class Lab:
    """Makes operands for a descriptor from the op's own statement of them, and runs it on the reference device."""

    def __init__(self):
        self.rng = np.random.default_rng(7)

    def operands(self, desc):
        """Return an array of storage per operand: random inputs, and outputs full of poison."""
        arrays = {}
        for operand in plan_type(desc).operands(desc):
            if operand.output:
                arrays[operand.name] = self.poisoned(operand.storage, operand.element.dtype)
            else:
                arrays[operand.name] = self._random(operand.name, operand.element, operand.storage)
        return arrays

    def _random(self, name, element, shape):
        rng, dtype = self.rng, element.dtype
        if element is qp.E8M0:
            return rng.integers(120, 130, shape).astype(np.uint8).view(dtype)
        if name.endswith("scale"):
            return rng.uniform(0.01, 0.1, shape).astype(dtype)
        if name == "perm":
            return rng.permutation(shape[0]).astype(dtype)
        packed = name == "weight_zero_point" and dtype == np.int32  # eight of them in a word
        if name.endswith("zero_point") and not packed:
            return rng.integers(0, 8, shape).astype(dtype)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)
        return rng.standard_normal(shape).astype(dtype)

    @staticmethod
    def poisoned(shape, dtype):
        """Return an array whose every byte is poison."""
        array = np.empty(shape, dtype)
        array.view(np.uint8)[...] = POISON
        return array

    @staticmethod
    def args(desc, arrays):
        """Return the op's Args, with packed bytes under their element's name."""
        kind = plan_type(desc)
        elements = {operand.name: operand.element for operand in kind.operands(desc)}
        named = {
            name: qp.typed(array, elements[name]) if name in elements and elements[name].packed else array
            for name, array in arrays.items()
        }
        return kind.args_type(**named)

    def run(self, desc, arrays):
        """Run on the CPU and return the outputs as bytes, by name."""
        kind = plan_type(desc)
        kind.select("cpu", desc).run(None, None, self.args(desc, arrays))
        return {o.name: np.ascontiguousarray(arrays[o.name]).tobytes() for o in kind.operands(desc) if o.output}

    def placed(self, desc, arrays, layout):
        """Return copies that lie in one of the layouts below; what must be aligned stays dense."""
        packed = {operand.name for operand in plan_type(desc).operands(desc) if operand.alignment > 1}
        place = np.copy if layout == "dense" else getattr(self, layout)
        return {name: np.copy(array) if name in packed else place(array) for name, array in arrays.items()}

    def strided(self, array):
        """Copy a matrix into a wider one of poison, at an odd column."""
        if array.ndim != 2:
            return array.copy()
        rows, columns = array.shape
        view = self.poisoned((rows, columns + 5), array.dtype)[:, 3 : 3 + columns]
        view[...] = array
        return view

    def padded(self, array):
        """Copy a matrix into a wider one of poison, whose rows begin at multiples of 16 elements."""
        if array.ndim != 2:
            return array.copy()
        rows, columns = array.shape
        view = self.poisoned((rows, columns // 16 * 16 + 16), array.dtype)[:, :columns]
        view[...] = array
        return view

    def misaligned(self, array):
        """Copy to an address that is a multiple of the item's size and of nothing larger."""
        view = np.empty(array.size + 2, array.dtype)
        first = 1 + view.__array_interface__["data"][0] // array.itemsize % 2
        flat = view[first : first + array.size]
        flat[...] = array.reshape(-1)
        return flat.reshape(array.shape)

    @staticmethod
    def gaps(view):
        """Return the bytes around a strided matrix, one value each; one that stayed dense has none."""
        if view.base is None:
            return {POISON}
        wide = view.base
        return set(wide[:, :3].tobytes() + wide[:, 3 + view.shape[1] :].tobytes())

    @staticmethod
    def values(element, storage, columns):
        """Return the numbers that stored codes stand for, as floats."""
        if not element.packed:
            return storage.astype(np.float64)
        codes = np.stack([storage & 0xF, storage >> 4], axis=-1).reshape(len(storage), -1)[:, :columns]
        names = {qp.S4: np.array([*range(8), *range(-8, 0)]), qp.U4: np.arange(16), qp.FP4_E2M1: FP4}
        return names[element][codes].astype(np.float64)

    def reals(self, desc, arrays, element):
        """Return ``(q − zero_point) · scale`` exactly, as a dictionary of fractions by (row, column)."""
        scope, q = desc.scope, self.values(element, arrays["q"], desc.k)
        scale, zero_point, overall = (arrays.get(name) for name in ("scale", "zero_point", "global_scale"))
        size = scope.group_size
        place = {
            (qp.ScopeKind.TENSOR, None): lambda i, j: 0,
            (qp.ScopeKind.TOKEN, None): lambda i, j: i,
            (qp.ScopeKind.CHANNEL, 1): lambda i, j: j,
            (qp.ScopeKind.GROUP, 0): lambda i, j: (i // size, j),
            (qp.ScopeKind.GROUP, 1): lambda i, j: (i, j // size),
        }[scope.kind, scope.axis]
        real = {}
        for i, j in np.ndindex(desc.m, desc.k):
            factor = scale[place(i, j)]
            if overall is not None:
                factor = np.float32(factor) * overall[0]
            offset = 0 if zero_point is None else int(zero_point[place(i, j)])
            real[i, j] = (Fraction(float(q[i, j])) - offset) * Fraction(float(factor))
        return real

    def row(self, desc, arrays, i):
        """Return the problem that row ``i`` is by itself."""
        kind = plan_type(desc)
        alone = desc.replace(m=1)
        part = dict(arrays)
        for many, one in zip(kind.operands(desc), kind.operands(alone), strict=True):
            if many.shape != one.shape:
                rows_per_entry = -(-desc.m // many.shape[0])  # above 1 for groups along axis 0
                index = i // rows_per_entry
                part[many.name] = arrays[many.name][index : index + 1].copy()
        return alone, part


@pytest.fixture(autouse=True)
def _plans_anew():
    """Let no test see another's plans, which may hold a stand-in's kernels."""
    yield
    qp.Plan.forget()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Let coverage not trace the tests that say so; pytest-cov's own mark for it has no effect under xdist."""
    if item.get_closest_marker("untraced") is None:
        return (yield)
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)


@pytest.fixture(scope="session")
def precompiled():
    """Build kernels with precompiled headers from here on, which takes two thirds of the time."""
    folders = compiler._folders
    with pytest.MonkeyPatch.context() as patch:
        with contextlib.suppress(QuantPlanError):  # no compiler: the tests that need one say so
            folder = headers.cached()
            patch.setattr(compiler, "_folders", lambda: (folder, *folders()))
        yield


@pytest.fixture
def lab():
    return Lab()
