"""What a launch costs the host, each way to launch beside the others."""

import ctypes
from types import SimpleNamespace

import pytest

import quantplan as qp
from quantplan import kernels
from quantplan.bench import launches
from quantplan.bench.memory import GpuMemory
from tests import fake_cupy
from tests.kernels.twin import preload


@pytest.fixture
def memory(gpus):
    preload([launches.DESC], checked=False)
    return GpuMemory(qp.Target.parse("cuda:0"))


def test_every_way_to_launch_is_timed_and_compiling_is_too(memory, monkeypatch):
    called = []
    bare = (lambda: called.append("raw"), lambda: called.append("driver"))
    monkeypatch.setattr(launches, "_empty", lambda memory: bare)
    monkeypatch.setattr(launches, "CALLS", 2)
    monkeypatch.setattr(launches, "_ROUNDS", 2)
    monkeypatch.setattr(launches.kernels, "compile_cubin", lambda specs, arch: b"")
    found = launches.measure(memory)
    assert set(found["us"]) == {"run", "bound run", "graph replay", "RawKernel alone", "cuLaunchKernel alone"}
    assert all(sample["median"] > 0 for sample in found["us"].values())
    assert found["compile_s"] >= 0
    assert called.count("raw") == called.count("driver")


def test_the_kernel_that_does_nothing_compiles():
    assert kernels.compile_text(launches._EMPTY, "sm_90a")


def test_the_driver_is_called_with_a_grid_a_stream_and_a_pointer_to_the_parameter(memory, gpus, monkeypatch):
    calls = []

    def launch(function, *rest):
        *extents, stream, parameters, extra = rest
        parameter = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))[0]
        calls.append((function.value, [e.value for e in extents], stream.value, ctypes.string_at(parameter, 8), extra))
        return 0

    monkeypatch.setattr(launches.ctypes, "CDLL", lambda name: SimpleNamespace(cuLaunchKernel=launch))
    monkeypatch.setattr(fake_cupy.Function, "ptr", 0x77, raising=False)
    monkeypatch.setattr(launches.kernels, "compile_text", lambda text, arch: b"a cubin")
    gpus.launched = lambda *details: calls.append(details)
    raw, driver = launches._empty(memory)
    raw()
    driver()
    assert calls[0][:3] == ("empty", 1, 32)
    assert calls[1] == (0x77, [1, 1, 1, 32, 1, 1, 0], memory.stream.ptr, bytes(8), None)


def test_a_launch_that_the_driver_refuses_is_an_error(memory, monkeypatch):
    monkeypatch.setattr(launches.ctypes, "CDLL", lambda name: SimpleNamespace(cuLaunchKernel=lambda *_: 700))
    monkeypatch.setattr(fake_cupy.Function, "ptr", 0x77, raising=False)
    monkeypatch.setattr(launches.kernels, "compile_text", lambda text, arch: b"a cubin")
    with pytest.raises(RuntimeError, match="700"):
        launches._empty(memory)[1]()
