"""The tests on silicon, run where there is none: on a stand-in for CuPy that launches on the emulated device."""

import numpy as np
import pytest

import quantplan as qp
from quantplan.bench.problems import row
from quantplan.devices import gpu
from tests import fake_cupy
from tests.gpu import test_operands, test_quantize_family, test_streams
from tests.gpu.twin import GpuTwin
from tests.kernels.twin import preload

SHARED = [test_operands.DESC, test_operands.DESC.replace(scope="tensor", output_element="fp8_e4m3"), test_streams.DESC]
SHARED += [qp.DynamicRangeQuantizeDescriptor(m=300, k=40, scope="tensor")]
DESCS = [
    qp.QuantizeDescriptor(m=5, k=70, scope="channel:1", mode="asymmetric"),
    qp.DequantizeDescriptor(m=5, k=70, scope="token", output_element="bf16"),
    qp.DynamicRangeQuantizeDescriptor(m=70, k=70, scope="tensor", input_element="f16"),
]


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    preload(DESCS, ["sm_80"], checked=False)
    return fake_cupy.install_emulated(monkeypatch, tmp_path, fake_cupy.EmulatedGpus((8, 0)))


@pytest.fixture
def twin(lab, gpus):
    return GpuTwin(lab, qp.Target.parse("cuda:0"))


@pytest.mark.parametrize("layout", ["dense", "strided", "misaligned"])
@pytest.mark.parametrize("desc", DESCS, ids=str)
def test_a_gpus_twin_gives_the_references_bits(twin, gpus, desc, layout):
    twin.check(desc, layout=layout, checked=True, order="random")
    assert all(handle == twin.stream.ptr for *_, handle in gpus.launches)
    assert gpus.launches


def test_an_empty_problem_writes_its_scale(twin):
    twin.check(DESCS[2].replace(m=0))


def test_a_gpus_twin_notices_a_launch_that_does_nothing(twin, gpus, monkeypatch):
    monkeypatch.setattr(gpus, "launched", lambda *details: None)
    with pytest.raises(AssertionError, match="differ"):
        twin.check(DESCS[0])


def test_a_gpus_twin_runs_the_variant_that_is_named(twin, monkeypatch):
    desc = DESCS[0].replace(k=71)
    asked = []
    select = qp.QuantizePlan.select
    monkeypatch.setattr(qp.QuantizePlan, "select", lambda *which: asked.append(which) or select(*which))
    twin.check(desc, variant="elementwise")
    assert [which[2].variant for which in asked if which[0] is twin.target] == ["elementwise"]


def test_a_variant_that_the_gpu_does_not_run_skips_with_the_reason(twin):
    desc = row("fp8_gemm tensor").descriptor(3, row("fp8_gemm tensor").small)
    with pytest.raises(pytest.skip.Exception, match=r"wgmma-8x64.*sm_90a"):
        twin.check(desc, variant="wgmma-8x64")


def test_operands_keep_their_place_in_memory(twin):
    desc = DESCS[0]
    for place in (np.copy, twin.lab.strided, twin.lab.misaligned):
        arrays = {name: place(array) for name, array in twin.lab.operands(desc).items()}
        args, copies = twin.send(desc, arrays)
        for name, array in arrays.items():
            view = getattr(args, name)
            assert view.pointer % 16 == array.ctypes.data % 16
            assert [s * array.itemsize for s in view.strides] == list(array.strides)
            assert view.owner is copies[name]


def test_silicon_gets_the_cases_of_the_emulator():
    shared = [name for name in vars(test_quantize_family) if name.startswith("test_")]
    assert "test_sampled_kernels_give_the_references_bits" in shared
    assert "test_every_16_bit_pattern" in shared
    assert len(shared) > 15


# ---- operands and streams


@pytest.fixture
def target(monkeypatch, tmp_path):
    preload(SHARED, ["sm_90a"], checked=False)
    fake_cupy.install_emulated(monkeypatch, tmp_path, fake_cupy.EmulatedGpus((9, 0)))
    monkeypatch.setattr(test_streams, "RUNS", 2)
    return qp.Target.parse("cuda:0")


@pytest.fixture
def cupy(target):
    return gpu.device(0, target.arch).cupy


@pytest.fixture
def stream(cupy):
    return cupy.cuda.Stream(non_blocking=True)


host, problem = test_operands.host, test_streams.problem
test_arrays_of_cupy = test_operands.test_arrays_of_cupy
test_views_of_cupy = test_operands.test_views_of_cupy
test_fp8_codes_travel_as_bytes = test_operands.test_fp8_codes_travel_as_bytes
test_host_memory_is_refused = test_operands.test_host_memory_is_refused
test_a_dirty_workspace = test_operands.test_a_dirty_workspace_does_not_matter_and_nothing_behind_it_is_touched
test_streams_by_any_name = test_streams.test_streams_by_any_name
test_a_bound_plan_is_captured = test_streams.test_a_bound_plan_is_captured_and_replayed
test_plans_run_while_a_graph_is_captured = (
    test_streams.test_plans_that_are_loaded_can_be_run_in_full_while_a_graph_is_captured
)
test_a_hundred_runs = test_streams.test_a_hundred_runs_give_the_same_bits
test_concurrent_streams = test_streams.test_concurrent_streams_and_threads_share_a_plan
