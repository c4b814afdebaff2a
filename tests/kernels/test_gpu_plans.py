"""The tests of every op's promises on silicon, run where there is none: on a stand-in for CuPy that emulates."""

import pytest

import quantplan as qp
from quantplan.bench import problems
from quantplan.bench.problems import ROWS
from quantplan.devices import gpu
from tests import fake_cupy
from tests.gpu import test_plans
from tests.gpu.problems import of_plans
from tests.gpu.twin import GpuTwin
from tests.kernels.twin import preload

ARCH = "sm_90a"


@pytest.fixture(scope="module")
def built():
    """Build the kernels of this file together."""
    preload(of_plans(), [ARCH], checked=False)


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


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request):
    return request.param


arrays = test_plans.arrays
for name, value in vars(test_plans).items():
    if name.startswith("test_"):
        globals()[name] = value
del name, value


def test_a_plan_that_gives_other_bits_is_noticed(monkeypatch, twin, target):
    """The tests compare what a GPU writes, and not what is expected with itself."""
    row = ROWS[0]
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


def test_a_code_that_is_wrong_is_noticed_whatever_was_in_the_outputs_before(monkeypatch, twin):
    """Codes are judged by the scales that are right, and not by what fills memory before anything is written."""
    row = problems.row("activation_quantize s8 token")
    run = GpuTwin.run

    def wrong(self, target, desc, arrays, **how):
        outputs = run(self, target, desc, arrays, **how)
        if target != "cpu":
            outputs["q"].reshape(-1)[0] ^= 64
        return outputs

    monkeypatch.setattr(GpuTwin, "run", wrong)
    with pytest.raises(AssertionError, match=r"^q"):
        test_plans.test_odd_and_empty_shapes_of_every_op_are_the_references(row, twin, test_plans.ODD[2], 3)


def test_an_op_that_a_gpu_does_not_run_is_no_skip(monkeypatch, twin, lab):
    monkeypatch.setattr(qp.DynamicRangeQuantizePlan, "variants", qp.DynamicRangeQuantizePlan.variants[-1:])
    desc = ROWS[0].descriptor(3, ROWS[0].small)
    with pytest.raises(qp.Unsupported):
        test_plans.Problem(twin, desc, lab.operands(desc))
