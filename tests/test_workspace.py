"""A workspace is exactly as large as asked for, 256-byte aligned, and borrowed memory is never copied."""

import copy
import gc
import pickle
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

import quantplan as qp
from quantplan.workspace import ALIGNMENT
from tests import fake_cuda, fake_cupy


def aligned(nbytes, offset=0):
    """Make a byte array that starts ``offset`` bytes after a multiple of the alignment."""
    raw = np.zeros(nbytes + 2 * ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT + offset
    return raw[start : start + nbytes]


# ---- allocate


@pytest.mark.parametrize("nbytes", [0, 1, 255, 256, 257, 4096, 1_000_003])
@pytest.mark.parametrize("target", ["cpu", "emulated:sm_90a", qp.Target.parse("cpu")])
def test_allocations_are_exact_and_aligned(nbytes, target):
    workspace = qp.Workspace.allocate(nbytes, target)
    assert workspace.nbytes == nbytes
    assert workspace.pointer % ALIGNMENT == 0
    assert workspace.location == qp.Location("cpu")
    memory = workspace.numpy()
    assert (memory.shape, memory.dtype) == ((nbytes,), np.uint8)
    memory[...] = 7
    assert nbytes == 0 or workspace.numpy()[-1] == 7


def test_allocations_are_apart():
    first, second = (qp.Workspace.allocate(1024, "cpu") for _ in range(2))
    first.numpy()[...] = 1
    second.numpy()[...] = 2
    assert set(first.numpy()) == {1}


@pytest.mark.parametrize("nbytes", [-1, 1.0, "16", None, True])
def test_sizes_that_are_none(nbytes):
    with pytest.raises(qp.InvalidProblem, match="Workspace: nbytes: expected an integer") as caught:
        qp.Workspace.allocate(nbytes, "cpu")
    assert str(caught.value.got) == repr(nbytes)


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_an_architecture_has_no_memory(target):
    with pytest.raises(qp.Unsupported, match=f"Workspace: target: {target} is an architecture, not a device"):
        qp.Workspace.allocate(256, target)


def test_nonsense_targets_are_refused():
    with pytest.raises(qp.InvalidProblem, match="target"):
        qp.Workspace.allocate(256, "gpu")


def test_memory_of_a_gpu_is_cupys(monkeypatch):
    """Memory of its own, not a pool's, on the device that the target names; the workspace keeps it."""
    gpus = fake_cupy.install(monkeypatch, fake_cupy.Gpus((9, 0), (8, 9)))
    first, second = (qp.Workspace.allocate(1000, "cuda:1") for _ in range(2))
    assert first.location == qp.Location("cuda", 1)
    assert (first.nbytes, first.pointer % ALIGNMENT, first.pointer != second.pointer) == (1000, 0, True)
    assert (first.owner.ptr, first.owner.device_id) == (first.pointer, 1)
    assert [call for call in gpus.calls if call[0] == "malloc"] == [("malloc", 1, 1000)] * 2
    with pytest.raises(qp.DeviceMismatch):
        first.numpy()
    stream = SimpleNamespace(ptr=0x7F00, device_id=0)
    assert qp.Workspace.allocate(0, stream).location == qp.Location("cuda", 0)
    gpus.refuse("malloc", "cudaErrorMemoryAllocation")
    with pytest.raises(qp.DriverError, match="out of memory: 4096 bytes"):
        qp.Workspace.allocate(4096, "cuda:0")


def test_without_a_driver_there_is_no_memory_of_a_gpu(monkeypatch):
    fake_cuda.install(monkeypatch, fake_cuda.Machine([(9, 0)], libraries=()))
    gpu = qp.Target(kind="cuda", index=0, capability=(9, 0))
    with pytest.raises(qp.DriverNotFound, match="no CUDA driver on this machine"):
        qp.Workspace.allocate(256, gpu)


# ---- from_buffer


@pytest.mark.parametrize("nbytes", [1, 256, 1000])
def test_borrowed_memory_is_used_as_it_is(nbytes):
    buffer = aligned(nbytes)
    workspace = qp.Workspace.from_buffer(buffer)
    assert (workspace.pointer, workspace.nbytes) == (buffer.ctypes.data, nbytes)
    assert np.shares_memory(workspace.numpy(), buffer)
    workspace.numpy()[...] = 9
    assert set(buffer) == {9}


@pytest.mark.parametrize(
    "buffer",
    [
        aligned(1024).view(np.float32),
        aligned(1024).view(np.float64).reshape(8, 16),
        aligned(1024).reshape(2, 2, 256),
        aligned(1024).reshape(4, 256).T,
        aligned(1024)[::-1],
        qp.typed(aligned(1024), qp.S4),
    ],
)
def test_any_element_and_shape_without_gaps(buffer):
    workspace = qp.Workspace.from_buffer(buffer)
    assert workspace.nbytes == 1024
    assert workspace.pointer % ALIGNMENT == 0


@pytest.mark.parametrize("offset", [1, 16, 128, 255])
def test_misaligned_buffers_are_refused(offset):
    buffer = aligned(1024, offset)
    with pytest.raises(qp.MisalignedOperand) as caught:
        qp.Workspace.from_buffer(buffer)
    error = caught.value
    assert (error.op, error.field, error.expected) == ("Workspace", "buffer", "a multiple of 256 bytes")
    assert error.got == f"address {buffer.ctypes.data:#x}"


GAPS = {
    "every second byte": aligned(1024)[::2],
    "rows apart": aligned(1024).reshape(4, 256)[:, :128],
    "one byte for all": np.lib.stride_tricks.as_strided(aligned(1024), (1024,), (0,)),
    "first and last byte, again and again": np.lib.stride_tricks.as_strided(aligned(1024), (2, 3), (5, 0)),
}


@pytest.mark.parametrize("name", GAPS)
def test_buffers_with_gaps_are_refused(name):
    with pytest.raises(qp.InvalidProblem, match="Workspace: buffer: expected writable memory without gaps"):
        qp.Workspace.from_buffer(GAPS[name])


def test_read_only_buffers_are_refused():
    buffer = aligned(1024)
    buffer.flags.writeable = False
    with pytest.raises(qp.InvalidProblem, match="writable memory"):
        qp.Workspace.from_buffer(buffer)


@pytest.mark.parametrize("thing", [None, 1024, bytearray(1024)])
def test_what_is_no_array_is_refused(thing):
    with pytest.raises(qp.InvalidProblem, match="expected a tensor"):
        qp.Workspace.from_buffer(thing)


def test_gpu_buffers_stay_on_their_gpu():
    """Sizes beyond 32 bits are exact."""
    interface = {"shape": (2**33,), "typestr": "|u1", "data": (2**40, False), "version": 3}
    buffer = SimpleNamespace(__cuda_array_interface__=interface, device=SimpleNamespace(id=1))
    workspace = qp.Workspace.from_buffer(buffer)
    assert (workspace.pointer, workspace.nbytes) == (2**40, 2**33)
    assert workspace.location == qp.Location("cuda", 1)
    assert workspace.owner is buffer
    with pytest.raises(qp.DeviceMismatch):
        workspace.numpy()


def test_a_workspace_keeps_its_memory_alive():
    buffer = aligned(1024)
    gone = weakref.ref(buffer)
    workspace = qp.Workspace.from_buffer(buffer)
    del buffer
    gc.collect()
    assert gone() is not None
    memory = workspace.numpy()
    del workspace
    gc.collect()
    assert gone() is not None
    del memory
    gc.collect()
    assert gone() is None


def test_workspaces_cannot_be_changed_or_mistaken_for_another():
    workspace = qp.Workspace.allocate(256, "cpu")
    with pytest.raises(AttributeError):
        workspace.nbytes = 512
    assert workspace == workspace  # noqa: PLR0124 - equal to itself
    assert workspace != qp.Workspace.allocate(256, "cpu")


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_workspace_does_not_travel_without_its_memory(duplicate):
    with pytest.raises(qp.InvalidProblem, match="pickle: expected its size, got borrowed memory"):
        duplicate(qp.Workspace.allocate(64, "cpu"))
