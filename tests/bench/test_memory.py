"""Operands for measurements: their contents are sound, and they arrive on the device."""

import numpy as np
import pytest

import quantplan as qp
from quantplan.bench import memory as module
from quantplan.bench.memory import POISON, GpuMemory, HostMemory, arrays, blocks, send
from quantplan.bench.problems import ROWS
from quantplan.plan import plan_type


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_reference_runs_with_the_operands_of_every_line(row):
    desc = row.descriptor(19, row.small)
    values = arrays(desc)
    args = send(HostMemory(), desc, values)
    plan_type(desc).select("cpu", desc).run(None, None, args)
    for operand in plan_type(desc).operands(desc):
        got = HostMemory().fetch(getattr(args, operand.name))
        if operand.output:
            assert (np.ascontiguousarray(got).view(np.uint8) != POISON).any(), "nothing was written"
            if operand.element.is_float:
                assert np.isfinite(got.astype(np.float64)).all()
        else:
            np.testing.assert_array_equal(got.view(np.uint8), values[operand.name].view(np.uint8))


def test_operands_are_the_same_every_time_and_aligned_as_on_a_gpu():
    desc = ROWS[0].descriptor(19, ROWS[0].small)
    first, second = arrays(desc), arrays(desc)
    assert all((first[name].view(np.uint8) == second[name].view(np.uint8)).all() for name in first)
    args = send(HostMemory(), desc, first)
    assert all(getattr(args, name).pointer % 256 == 0 for name in first)


def test_a_permutation_is_whole_however_long(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 64)
    module._block.cache_clear()
    desc = qp.Int4MarlinGemmDescriptor(m=2, n=64, k=256, act_order=True)
    found = blocks(desc)
    assert sorted(found["perm"].tolist()) == list(range(256))
    assert found["act"].size == 64
    module._block.cache_clear()


# ---- on a GPU


@pytest.fixture
def memory(gpus):
    return GpuMemory(qp.Target.parse("cuda:0"))


def test_an_operand_repeats_its_block_to_its_end(memory):
    desc = qp.QuantizeDescriptor(m=7, k=11, scope="token")
    operand = plan_type(desc).operands(desc)[0]
    block = np.arange(10, dtype=np.float32)
    view = memory.send(operand, block)
    assert (view.location, view.shape) == (qp.Location("cuda", 0), (7, 11))
    np.testing.assert_array_equal(memory.fetch(view).reshape(-1), np.resize(block, 77))


def test_an_empty_operand_is_none_to_copy(memory):
    desc = qp.QuantizeDescriptor(m=0, k=11, scope="token")
    operand = plan_type(desc).operands(desc)[0]
    assert memory.fetch(memory.send(operand, np.zeros((0, 11), np.float32))).shape == (0, 11)


def test_work_is_timed_by_the_gpus_own_clock(memory, gpus):
    def work():
        gpus.now += 40.0

    def ahead():
        gpus.now += 1000.0

    assert memory.elapsed(work) == pytest.approx(40.0)
    assert memory.elapsed(work, ahead) == pytest.approx(40.0), "what runs ahead does not count"


def test_what_is_captured_runs_when_it_is_replayed(memory, gpus):
    launched = []
    stream = memory.stream

    def launch():
        gpus.captures[stream.ptr].append(("k", 1, 32, b"", 0))

    gpus.launched = lambda *details: launched.append(details)
    replay = memory.capture([launch, launch])
    assert launched == []
    replay()
    assert len(launched) == 2


def test_a_gpu_describes_itself(memory):
    assert memory.properties()["multiProcessorCount"] == 7
    assert memory.free() == 2**34
