"""Operands of a verified plan lie on the device of the plan, and come back with the guards around them."""

import attrs
import numpy as np
import pytest

import quantplan as qp
from quantplan.ops.dynamic_range_quantize import DynamicRangeQuantizePlan
from quantplan.ops.quantize import QuantizePlan
from quantplan.verify import verify
from quantplan.verify.placement import CudaPlacement, HostPlacement, placement
from quantplan.verify.tensors import HostTensor
from tests import fake_cupy
from tests.kernels.twin import preload

TENSOR = HostTensor(qp.F32, (3, 5), list(range(15)))


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    return fake_cupy.install_emulated(monkeypatch, tmp_path, fake_cupy.EmulatedGpus((8, 0), (9, 0)))


@pytest.mark.parametrize("target", ["cpu", "emulated:sm_80"])
def test_on_the_host_operands_stay_where_they_are(target):
    place, memory = placement(qp.Target.parse(target)), TENSOR.memory()
    assert isinstance(place, HostPlacement)
    assert place.stream is None
    operand = place.send(memory)
    assert operand.pointer == memory.operand.pointer
    place.fetch(memory, operand)
    assert memory.load() == TENSOR.codes
    plan = QuantizePlan.select("cpu", qp.QuantizeDescriptor(m=1, k=1))
    assert place.workspace(plan) is None


def test_an_architecture_has_no_memory():
    with pytest.raises(qp.Unsupported, match="verify: target: nothing runs on sm_90a"):
        placement(qp.Target.parse("sm_90a"))


def test_on_a_gpu_operands_are_copies_with_their_guards(gpus):
    place, memory = placement(qp.Target.parse("cuda:1")), TENSOR.memory()
    assert isinstance(place, CudaPlacement)
    assert place.stream.device_id == 1
    operand = place.send(memory)
    view = memory.operand
    assert operand.location == qp.Location("cuda", 1)
    assert operand.owner.device.id == 1
    assert (operand.shape, operand.strides, operand.element) == (view.shape, view.strides, view.element)
    assert operand.pointer - operand.owner.data.ptr == view.pointer - memory.buffer.ctypes.data == 12
    host = attrs.evolve(operand, location=qp.Location("cpu")).numpy()  # the stand-in's memory can be looked into
    np.testing.assert_array_equal(host, view.numpy())
    host[1, 2] = 7
    host[2, 4:].base[...] = 0
    assert memory.load() == TENSOR.codes
    place.fetch(memory, operand)
    assert memory.load() != TENSOR.codes
    assert gpus.calls[-1] == ("get", 1, place.stream.ptr)
    assert gpus.current == 0


def test_scratch_memory_lives_until_the_next_launch(gpus):
    place = placement(qp.Target.parse("cuda:1"))
    plan = DynamicRangeQuantizePlan.select("cuda:1", qp.DynamicRangeQuantizeDescriptor(m=500, k=8, scope="channel:1"))
    workspace = place.workspace(plan)
    assert (workspace.nbytes, workspace.location) == (plan.workspace_size, qp.Location("cuda", 1))
    assert place._scratch is workspace


def test_plans_on_a_gpu_are_verified(gpus, monkeypatch):
    """Sound kernels pass, and a launch that goes astray is noticed."""
    descs = [qp.QuantizeDescriptor(m=3, k=37), qp.QuantizeDescriptor(m=3, k=8, input_element="f16", scope="token")]
    preload(descs, ["sm_90a"], checked=False)
    report = verify("cuda:1", descriptors=descs)
    assert report.problems == ()
    assert report.target == "cuda:1"
    assert {plan.backend for plan in report.plans} == {"bespoke"}
    assert {device for name, device, *_ in gpus.calls if name == "launch"} == {1}
    monkeypatch.setattr(gpus, "launched", lambda *details: None)
    report = verify("cuda:1", descriptors=descs)
    assert any("breaks its guarantee" in problem for problem in report.problems)
