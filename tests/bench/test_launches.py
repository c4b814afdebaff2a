"""What a launch costs the host, each way to launch beside the others."""

import pytest

import quantplan as qp
from quantplan.bench import launches
from quantplan.bench.memory import GpuMemory
from tests.kernels.twin import preload


@pytest.fixture
def memory(gpus):
    preload([launches._DESC], checked=False)
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
