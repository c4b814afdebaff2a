"""The tests of every op's promises on silicon, run where there is none: on a stand-in for CuPy that emulates."""

import contextlib
import itertools

import pytest

import quantplan as qp
from quantplan.devices import gpu
from quantplan.plan import plan_type
from tests import fake_cupy
from tests.gpu import test_plans
from tests.gpu.twin import GpuTwin
from tests.kernels.twin import preload

ARCH = "sm_90a"


def has_kernel(row):
    desc = row.descriptor(test_plans.M, row.small)
    return any(report.supported for report in plan_type(desc).why_not(ARCH, desc))


WITH_KERNELS = [row for row in test_plans.ROWS if has_kernel(row)]


@pytest.fixture(scope="module")
def built():
    """Build the kernels of this file together."""
    ms, shapes = (0, 1, 3, *test_plans.SOME, test_plans.M), test_plans.ODD
    descs = []
    for row, m in itertools.product(WITH_KERNELS, ms):
        for shape in (row.small, *shapes):
            with contextlib.suppress(qp.InvalidProblem):  # the tests say so
                descs.append(row.descriptor(m, shape))
    preload(descs, [ARCH], checked=False)


@pytest.fixture
def target(built, monkeypatch, tmp_path):
    fake_cupy.install_emulated(monkeypatch, tmp_path, fake_cupy.EmulatedGpus((9, 0)))
    monkeypatch.setattr(test_plans, "RUNS", 1)
    return qp.Target.parse("cuda:0")


@pytest.fixture
def cupy(target):
    return gpu.device(0, target.arch).cupy


@pytest.fixture
def twin(lab, target):
    return GpuTwin(lab, target)


@pytest.fixture(params=WITH_KERNELS, ids=lambda row: row.name)
def row(request):
    return request.param


arrays = test_plans.arrays
for name, value in vars(test_plans).items():
    if name.startswith("test_"):
        globals()[name] = value
del name, value


def test_a_plan_that_gives_other_bits_is_noticed(monkeypatch, twin, target):
    """The tests compare what a GPU writes, and not what is expected with itself."""
    row = WITH_KERNELS[0]
    arrays = twin.lab.operands(row.descriptor(test_plans.M, row.small))
    outputs = test_plans.Problem.outputs
    turns = iter(range(1000))

    def unsteady(self, stream):
        return {**outputs(self, stream), "turn": next(turns)}

    monkeypatch.setattr(test_plans.Problem, "outputs", unsteady)
    for test in (
        test_plans.test_a_hundred_runs_of_every_op_give_the_same_bits,
        test_plans.test_every_op_is_captured_and_replayed,
    ):
        with pytest.raises((AssertionError, TypeError)):
            test(row, arrays, twin)
