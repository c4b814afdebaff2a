"""What every device offers to plans, and which device a target opens."""

import inspect

import pytest

import quantplan as qp
from quantplan.devices import emulated, gpu
from quantplan.devices.device import Device, Grid, Kernel, open_device
from tests import fake_cupy


def test_a_grid_has_less_blocks_than_cuda_counts():
    """The number is exact, however large the problem."""
    assert Grid(2**31 - 1).blocks == 2**31 - 1
    assert Grid(0).shared_bytes == 0
    with pytest.raises(qp.Unsupported, match="2147483648 blocks, and a grid has less than 2147483648"):
        Grid(2**31)


def test_emulated_targets_open_emulated_devices():
    device = open_device(qp.Target.parse("emulated:sm_90a"))
    assert device == emulated.EmulatedDevice((9, 0))
    assert open_device(qp.Target.parse("emulated:sm_90a")) is device


def test_gpus_open_devices_of_their_architecture(monkeypatch):
    fake_cupy.install(monkeypatch, fake_cupy.Gpus((9, 0), (8, 9)))
    first, second = (open_device(qp.Target.parse(f"cuda:{index}")) for index in (0, 1))
    assert (first.index, first.arch) == (0, "sm_90a")
    assert (second.index, second.arch) == (1, "sm_89")
    assert open_device(qp.Target.parse("cuda:0")) is first
    gpu._device.cache_clear()


@pytest.mark.parametrize("target", ["cpu", "sm_90a"])
def test_other_targets_launch_no_kernels(target):
    with pytest.raises(qp.Unsupported, match=f"kernels are not launched on {target}"):
        open_device(qp.Target.parse(target))


@pytest.mark.parametrize(
    "protocol, kinds",
    [(Device, (emulated.EmulatedDevice, gpu.CudaDevice)), (Kernel, (emulated.EmulatedKernel, gpu.CudaKernel))],
)
def test_devices_offer_the_same(protocol, kinds):
    methods = {name: value for name, value in vars(protocol).items() if name in {"load", "prepare"}}
    assert methods
    for kind in kinds:
        for name, stated in methods.items():
            own = inspect.signature(getattr(kind, name)).parameters
            assert list(own) == list(inspect.signature(stated).parameters)
