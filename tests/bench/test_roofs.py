"""Roofs are what was moved or computed, divided by the median time."""

import pytest

import quantplan as qp
from quantplan.bench import roofs
from quantplan.bench.memory import GpuMemory
from tests.bench.fake_torch import Torch


@pytest.fixture
def memory(gpus):
    return GpuMemory(qp.Target.parse("cuda:0"))


def test_a_copy_reads_and_writes(memory, gpus, monkeypatch):
    monkeypatch.setattr(roofs, "COPIED", 1 << 20)
    gpus.bytes_per_us = 1e6  # 1 TB/s of bytes that are copied
    found = roofs.copy_bandwidth(memory)
    assert found["value"] == pytest.approx(2e12)
    assert found["unit"] == "bytes/s"


def test_a_copy_takes_no_more_memory_than_an_eighth_of_what_is_free(memory, gpus):
    gpus.free = 1 << 20
    roofs.copy_bandwidth(memory)
    assert max(details[0] for name, _, *details in gpus.calls if name == "malloc") == 1 << 17


@pytest.mark.parametrize("name, us", [("f16", 20.0), ("bf16", 20.0), ("int8", 8.0), ("fp8", 9.0)])
def test_a_rate_counts_two_operations_a_product(memory, gpus, name, us):
    found = roofs.matmul_rate(name, Torch(gpus), memory)
    assert found["value"] == pytest.approx(2 * 8192**3 / us * 1e6)


def test_torch_copies_too(memory, gpus, monkeypatch):
    monkeypatch.setattr(roofs, "COPIED", 1 << 20)
    assert roofs.torch_copy(Torch(gpus), memory)["value"] == pytest.approx(2 * (1 << 20) / 10.0 * 1e6)
