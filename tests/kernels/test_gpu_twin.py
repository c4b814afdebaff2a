"""The tests on silicon, run where there is none: on a stand-in for CuPy that launches on the emulated device."""

import numpy as np
import pytest

import quantplan as qp
from tests import fake_cupy
from tests.gpu import test_quantize_family
from tests.gpu.twin import GpuTwin
from tests.kernels.twin import preload

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
    """Fault 21."""
    twin.check(DESCS[2].replace(m=0))


def test_a_gpus_twin_notices_a_launch_that_does_nothing(twin, gpus, monkeypatch):
    monkeypatch.setattr(gpus, "launched", lambda *details: None)
    with pytest.raises(AssertionError, match="differ"):
        twin.check(DESCS[0])


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
