"""What is asked of the CUDA driver, with stand-ins for cuda-python: there need not be any."""

import struct
import subprocess
import sys
from types import SimpleNamespace

import pytest

import quantplan as qp
from quantplan.devices import cuda
from quantplan.emulator import compiler
from quantplan.tensor_maps import Swizzle, TensorMap
from tests import fake_cuda
from tests.fake_cuda import CUresult, DynamicLibNotFoundError, Machine


@pytest.fixture
def install(monkeypatch):
    """Put a machine's cuda-python in place of whatever is installed."""
    return lambda machine: fake_cuda.install(monkeypatch, machine)


@pytest.fixture
def _no_cuda_python(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cuda", None)


ASK = [cuda.driver, cuda.device_count, lambda: cuda.compute_capability(0), lambda: qp.Target.parse("cuda:0")]


@pytest.mark.usefixtures("_no_cuda_python")
@pytest.mark.parametrize("ask", ASK)
def test_without_cuda_python(ask):
    with pytest.raises(qp.DriverNotFound, match="cuda: cuda-python is not installed") as caught:
        ask()
    assert "pip install 'quantplan[cuda13]'" in caught.value.hint
    assert "'cpu' needs no GPU" in caught.value.hint
    assert isinstance(caught.value.__cause__, ImportError)


@pytest.mark.parametrize("ask", ASK)
def test_without_a_driver(install, ask):
    install(Machine([(9, 0)], libraries=()))
    with pytest.raises(qp.DriverNotFound, match="cuda: no CUDA driver on this machine") as caught:
        ask()
    assert "'cpu'" in caught.value.hint
    assert isinstance(caught.value.__cause__, DynamicLibNotFoundError)


def test_the_driver_is_cuda_core(install):
    core = install(Machine([(9, 0)]))
    assert cuda.driver() is core


def test_two_gpus(install):
    install(Machine([(9, 0), (12, 1)]))
    assert cuda.device_count() == 2
    assert cuda.compute_capability(0) == (9, 0)
    assert cuda.compute_capability(1) == (12, 1)


def test_capabilities_are_plain_integers(install):
    class ComputeCapability(tuple):
        """cuda.core's own kind of tuple."""

        __slots__ = ()

    install(Machine([ComputeCapability((9, 0))]))
    assert type(cuda.compute_capability(0)) is tuple


@pytest.mark.parametrize("index", [2, 3, 1000, -1])
def test_an_index_that_no_gpu_has(install, index):
    install(Machine([(9, 0), (12, 1)]))
    with pytest.raises(qp.InvalidProblem) as caught:
        cuda.compute_capability(index)
    error = caught.value
    assert (error.op, error.field, error.expected, error.got) == ("cuda", "device", "an index below 2", index)


def test_gpus_hidden_from_this_process_do_not_count(install):
    """CUDA numbers the GPUs that CUDA_VISIBLE_DEVICES shows; the management library counts all of the machine."""
    install(Machine([(9, 0)], installed=8))
    assert cuda.device_count() == 1
    with pytest.raises(qp.InvalidProblem, match="an index below 1, got 5"):
        cuda.compute_capability(5)


def test_the_management_library_is_not_needed(install):
    """A container may have libcuda without libnvidia-ml, and so may Jetson."""
    install(Machine([(8, 7)], libraries=("cuda",)))
    assert cuda.device_count() == 1
    assert cuda.compute_capability(0) == (8, 7)


def test_a_driver_that_shows_no_gpu(install):
    """CUDA does not even initialise then, for instance when CUDA_VISIBLE_DEVICES is empty."""
    install(Machine([], installed=1))
    assert cuda.device_count() == 0
    assert qp.devices() == [qp.Target.parse("cpu")]
    with pytest.raises(qp.QuantPlanError):
        cuda.compute_capability(0)


def test_in_the_child_of_a_process_that_used_cuda(install, monkeypatch):
    """CUDA does not start a second time, and says only that it has not started."""
    install(Machine([(9, 0)]))
    monkeypatch.setattr(sys.modules["cuda.bindings.driver"], "cuInit", lambda _: (CUresult.CUDA_ERROR_NOT_INITIALIZED,))
    with pytest.raises(qp.DriverError, match="CUDA_ERROR_NOT_INITIALIZED") as caught:
        qp.Target.parse("cuda:0")
    assert "spawn" in caught.value.hint


def test_the_targets_of_this_machine(install):
    install(Machine([(9, 0), (8, 9)]))
    assert list(map(str, qp.devices())) == ["cpu", "cuda:0", "cuda:1"]
    assert [target.arch for target in qp.devices()] == ["cpu", "sm_90a", "sm_89"]


def test_cuda_python_as_installed_has_what_is_asked_of_it():
    core = pytest.importorskip("cuda.core", reason="cuda-core is not installed; the stand-ins above speak for 1.2")
    from cuda import pathfinder  # noqa: PLC0415 - only where it is installed
    from cuda.bindings import driver  # noqa: PLC0415 - the same

    assert issubclass(pathfinder.DynamicLibNotFoundError, Exception)
    assert callable(pathfinder.load_nvidia_dynamic_lib)
    assert hasattr(core.Device, "compute_capability")
    assert callable(core.Device.get_all_devices)
    assert callable(driver.cuDeviceGetCount)


# ---- tensor maps

DRIVER = """#include <stdint.h>
int cuTensorMapEncodeTiled(void* map, int type, uint32_t rank, void* address, const uint64_t* extents,
                           const uint64_t* pitches, const uint32_t* box, const uint32_t* steps, int interleave,
                           int swizzle, int fetch, int fill) {
  if ((uintptr_t)map % 128) return 1;
  const uint64_t told[16] = {type, rank, (uintptr_t)address, extents[0], extents[1], pitches[0], box[0], box[1],
                             steps[0], steps[1], interleave, swizzle, fetch, fill, 14, 15};
  for (int i = 0; i < 16; ++i) ((uint64_t*)map)[i] = told[i];
  return 0;
}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the stand-in is built as the emulated device is")
def test_the_drivers_function_gets_what_its_declaration_says(install, monkeypatch, tmp_path):
    machine = Machine([(9, 0)])
    install(machine)
    source, library = tmp_path / "driver.c", tmp_path / "libcuda.so"
    source.write_text(DRIVER)
    command = [*compiler.find_compiler(), "-x", "c", "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    monkeypatch.setattr(
        sys.modules["cuda.pathfinder"], "load_nvidia_dynamic_lib", lambda name: SimpleNamespace(abs_path=str(library))
    )
    cuda.encode_tiled.cache_clear()
    try:
        encoded = [cuda.encode(TensorMap("x", (64, 100), (208,), 2, (8, 64), Swizzle.B128), 2**44) for _ in range(9)]
    finally:
        cuda.encode_tiled.cache_clear()
    told = (1, 2, 2**44, 100, 64, 208, 64, 8, 1, 1, 0, 3, 3, 0, 14, 15)
    assert [struct.unpack("@16Q", one) for one in encoded] == [told] * 9, "wherever Python's memory lies"
