"""GPUs through CuPy, on a stand-in that records every call: what is loaded, what is launched, and what is refused."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import attrs
import numpy as np
import pytest

import quantplan as qp
from quantplan import cache, cubins
from quantplan.devices import gpu
from quantplan.devices.device import Grid
from quantplan.emulator import tensor_maps
from quantplan.kernels import KernelSpec, ParamStruct
from quantplan.ops._quantize_kernels import QUANTIZE_PARAMS
from quantplan.tensor_maps import Swizzle, TensorMap
from tests import fake_cupy
from tests.fake_cupy import Array, Gpus

DESC = qp.QuantizeDescriptor(m=40, k=64)
X, Q, SCALE = 2**44, 2**45, 2**46
SPEC = KernelSpec(source="quantize.cu", body="body<1>", threads=256, params=ParamStruct("P", (("n", "q"),)))


@pytest.fixture(autouse=True)
def compiled(monkeypatch, tmp_path):
    """Count compilations, and compile nothing: a cubin is a text that says what it would hold."""
    wanted = []

    def cubin(spec, arch):
        wanted.append((spec, arch))
        return f"{spec.name} for {arch}".encode()

    monkeypatch.setattr(cubins, "cubin", cubin)
    monkeypatch.setenv("QUANTPLAN_CACHE_DIR", str(tmp_path / "cache"))
    yield wanted
    cache._temporary.cache_clear()
    gpu._device.cache_clear()


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs of different architectures."""
    return fake_cupy.install(monkeypatch, Gpus((9, 0), (8, 9)))


def operands(desc=DESC, device=0, **changes):
    given = {
        "x": Array((desc.m, desc.k), np.float32, device=device, pointer=X),
        "q": Array((desc.m, desc.k), np.int8, device=device, pointer=Q),
        "scale": Array((1,), np.float32, device=device, pointer=SCALE),
    }
    return qp.QuantizeArgs(**given | changes)


def stream(handle=0x7F00, device=0):
    return SimpleNamespace(ptr=handle, device_id=device)


# ---- loading


def test_select_loads_every_kernel_that_a_launch_may_need(gpus, compiled, tmp_path):
    plan = qp.QuantizePlan.select("cuda:0", DESC)
    assert plan.sku.backend is qp.BackendKind.BESPOKE
    loads = [call for call in gpus.calls if call[0] == "load"]
    assert [content.decode() for *_, content in loads] == [f"{spec.name} for sm_90a" for spec, _ in compiled]
    assert len(loads) == 2, "one for aligned operands, one for all others"
    for _, device, path, content in loads:
        assert device == 0
        assert Path(path) == tmp_path / "cache" / "loaded" / f"{cubins.sha256(content)}.cubin"


def test_a_kernel_is_loaded_once_on_each_gpu(gpus, compiled):
    for _ in range(3):
        qp.QuantizePlan.select("cuda:0", DESC)
        qp.QuantizePlan.select("cuda:0", DESC.replace(m=7))
    assert len(compiled) == 2
    gpus.calls.clear()
    qp.QuantizePlan.select("cuda:0", DESC)
    assert gpus.calls == [], "a plan that is selected again costs nothing, and may be while a graph is captured"
    qp.QuantizePlan.select("cuda:1", DESC)
    assert [arch for _, arch in compiled] == ["sm_90a"] * 2 + ["sm_89"] * 2
    assert {device for name, device, *_ in gpus.calls if name == "load"} == {1}
    assert gpus.current == 0


def test_a_file_that_was_changed_is_written_anew(gpus, tmp_path):
    device = gpu.device(0, "sm_90a")
    (kernel,) = device.load([SPEC])
    (file,) = (tmp_path / "cache" / "loaded").glob("*.cubin")
    file.write_bytes(b"something else")
    device._loaded.clear()
    gpus._modules.clear()
    device.load([SPEC])
    contents = [content for name, _, *details in gpus.calls if name == "load" for content in details[1:]]
    assert contents == [f"{SPEC.name} for sm_90a".encode()] * 2
    assert kernel.spec is SPEC


def test_shared_memory_beyond_48_kb_is_asked_for(gpus):
    small, large = attrs.evolve(SPEC, shared_bytes=48 * 1024), attrs.evolve(SPEC, body="body<2>", shared_bytes=100_000)
    _, kernel = gpu.device(0, "sm_90a").load([small, large])
    assert [details for name, _, *details in gpus.calls if name == "shared"] == [["qp_body_2", 100_000]]
    kernel.prepare(Grid(3, shared_bytes=90_000), b"12345678", ())(qp.Stream(5, 0))
    assert gpus.launches == [[0, "qp_body_2", 3, 256, b"12345678", 90_000, 5]]


def test_more_shared_memory_than_the_gpu_has(gpus):
    with pytest.raises(qp.Unsupported, match=r"qp_body_1 takes 300000 bytes of shared memory, and this GPU has less"):
        gpu.device(0, "sm_90a").load([attrs.evolve(SPEC, shared_bytes=300_000)])
    assert gpus.current == 0


def test_more_threads_than_the_gpu_runs(gpus):
    gpus.threads = 128
    with pytest.raises(qp.Unsupported, match=r"qp_body_1 takes 256 threads, and this GPU runs it with up to 128"):
        gpu.device(0, "sm_90a").load([SPEC])


TOO_OLD = ["CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_ERROR_INVALID_IMAGE"]


@pytest.mark.parametrize(
    "call, name", [*(("load", name) for name in TOO_OLD), ("device", "cudaErrorInsufficientDriver")]
)
def test_a_driver_that_is_too_old(gpus, call, name):
    gpus.refuse(call, name)
    with pytest.raises(qp.DriverError) as caught:
        qp.QuantizePlan.select("cuda:0", DESC)
    error = caught.value
    assert (error.name, error.code, error.op) == (name, fake_cupy.REFUSALS[name][0], "load")
    assert "update the NVIDIA driver" in error.hint
    assert re.search(rf"{name}: .*: qp_quantize_\w+ for sm_90a", str(error))
    assert isinstance(error.__cause__, fake_cupy.CudaError)


def test_other_refusals_have_no_remedy_of_ours(gpus):
    gpus.refuse("load", "CUDA_ERROR_OUT_OF_MEMORY")
    with pytest.raises(qp.DriverError, match="CUDA_ERROR_OUT_OF_MEMORY: out of memory") as caught:
        qp.QuantizePlan.select("cuda:0", DESC)
    assert (caught.value.code, caught.value.hint) == (2, None)


def test_select_while_a_graph_is_captured(gpus):
    gpus.refuse("load", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
    with pytest.raises(qp.CaptureError, match="not permitted when stream is capturing") as caught:
        qp.QuantizePlan.select("cuda:0", DESC)
    assert "before the capture" in caught.value.hint


def test_what_is_no_refusal_of_the_driver_passes(gpus, monkeypatch):
    monkeypatch.setattr(gpus, "load", lambda path: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        qp.QuantizePlan.select("cuda:0", DESC)


def test_without_cupy(gpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(qp.DriverNotFound, match="CuPy is not installed") as caught:
        qp.QuantizePlan.select("cuda:0", DESC)
    assert "quantplan[cuda13]" in caught.value.hint


def test_without_a_driver(gpus, monkeypatch):
    monkeypatch.setattr(sys.modules["cuda.pathfinder"], "load_nvidia_dynamic_lib", lambda name: _no_library())
    with pytest.raises(qp.DriverNotFound, match="no CUDA driver"):
        gpu.device(0, "sm_90a")
    assert gpus.calls == []


def _no_library():
    raise sys.modules["cuda.pathfinder"].DynamicLibNotFoundError("nowhere")


# ---- where no folder can be written


@pytest.mark.skipif(sys.platform != "linux", reason="files in memory are Linux's")
def test_without_any_folder_cubins_are_loaded_from_memory(gpus, monkeypatch):
    """Neither the cache nor a temporary folder can be written: a read-only container."""

    def nowhere(*args, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(cache, "_make", lambda path: "it cannot be written")
    monkeypatch.setattr(cache.tempfile, "mkdtemp", nowhere)
    gpu.device(0, "sm_90a").load([SPEC])
    (path, content), *_ = [details for name, _, *details in gpus.calls if name == "load"]
    assert path.startswith("/proc/self/fd/")
    assert content == Path(path).read_bytes() == f"{SPEC.name} for sm_90a".encode()
    assert gpu._in_memory(content) == Path(path), "the file is kept, for CuPy remembers its name"


def test_a_full_disk_is_no_reason_to_fail(gpus, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write", full)
    gpu.device(0, "sm_90a").load([SPEC])
    assert "load" in gpus.names()


def test_elsewhere_a_folder_is_needed(gpus, monkeypatch):
    monkeypatch.setattr(cache, "write", lambda path, content: (_ for _ in ()).throw(OSError(30, "read-only")))
    gpu._in_memory.cache_clear()
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(qp.DriverError, match="no folder can be written") as caught:
        gpu.device(0, "sm_90a").load([SPEC])
    assert "QUANTPLAN_CACHE_DIR" in caught.value.hint


# ---- launching


def expected_params(desc, x=X, q=Q, **changes):
    """Return the struct of QuantizeParams, by name, for dense operands."""
    values = dict.fromkeys((name for name, _ in QUANTIZE_PARAMS.fields), 0)
    values |= {"x": x, "q": q, "scale": SCALE, "m": desc.m, "k": desc.k, "x_stride": desc.k, "q_stride": desc.k}
    values |= {"group_size": 1, "q_min": -127, "q_max": 127, "columns_log2": 4}
    return QUANTIZE_PARAMS.pack(list((values | changes).values()))


def test_a_launch_is_what_the_plan_says(gpus):
    plan = qp.QuantizePlan.select("cuda:0", DESC)
    plan.run(stream(0x7F00), None, operands())
    ((device, name, blocks, threads, params, shared, handle),) = gpus.launches
    assert (device, handle, threads, shared) == (0, 0x7F00, 256, 0)
    assert name == "qp_quantize_f32_s8_f32_Per_tensor_false_true_4"
    assert blocks == 1, "16 threads across 64 columns, 16 · 4 rows to a block"
    assert params == expected_params(DESC)


@pytest.mark.parametrize("m, blocks", [(1, 1), (64, 1), (65, 2), (64 * 70_000, 70_000)])
def test_the_grid_follows_the_rows(gpus, m, blocks):
    desc = DESC.replace(m=m)
    qp.QuantizePlan.select("cuda:0", desc).run(stream(), None, operands(desc))
    assert gpus.launches[0][2] == blocks


def test_misaligned_operands_take_the_kernel_that_moves_single_elements(gpus):
    plan = qp.QuantizePlan.select("cuda:0", DESC)
    plan.run(stream(), None, operands(x=Array((40, 64), np.float32, pointer=X + 4)))
    name, params = gpus.launches[0][1], gpus.launches[0][4]
    assert name.endswith("_1")
    assert params[:8] == (X + 4).to_bytes(8, "little")


def test_nothing_is_loaded_compiled_or_allocated_at_run(gpus, compiled):
    desc = qp.DynamicRangeQuantizeDescriptor(m=600, k=64, scope="channel:1")
    plan = qp.DynamicRangeQuantizePlan.select("cuda:0", desc)
    workspace = qp.Workspace.allocate(plan.workspace_size, "cuda:0")
    args = qp.DynamicRangeQuantizeArgs(
        x=Array((600, 64), np.float32, pointer=X),
        q=Array((600, 64), np.int8, pointer=Q),
        scale=Array((64,), np.float32, pointer=SCALE),
    )
    gpus.calls.clear()
    compiled.clear()
    plan.run(stream(), workspace, args)
    plan.bind(workspace, args).run(stream())
    assert set(gpus.names()) == {"launch"}
    assert compiled == []
    half = len(gpus.launches) // 2
    assert half >= 2, "ranges, then scales, then codes"
    assert gpus.launches[:half] == gpus.launches[half:]
    assert workspace.pointer.to_bytes(8, "little") in gpus.launches[0][4]


def test_a_bound_plan_prepares_its_launch_once(gpus, monkeypatch):
    plan = qp.QuantizePlan.select("cuda:0", DESC)
    prepared = []
    original = gpu.CudaKernel.prepare
    monkeypatch.setattr(gpu.CudaKernel, "prepare", lambda *a: prepared.append(1) or original(*a))
    bound = plan.bind(None, operands())
    for _ in range(5):
        bound.run(stream())
    assert len(prepared) == 1
    assert len(gpus.launches) == 5
    assert all(launch == gpus.launches[0] for launch in gpus.launches)


def test_an_empty_problem_launches_nothing(gpus):
    """CuPy would make one block of none."""
    desc = DESC.replace(m=0)
    qp.QuantizePlan.select("cuda:0", desc).run(stream(), None, operands(desc))
    assert gpus.launches == []


def test_a_launch_that_is_refused_is_our_error(gpus):
    plan = qp.QuantizePlan.select("cuda:0", DESC)
    gpus.refuse("launch", "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES")
    with pytest.raises(qp.DriverError, match="too many resources requested for launch: qp_quantize") as caught:
        plan.run(stream(), None, operands())
    assert (caught.value.op, caught.value.code) == ("launch", 701)


# ---- tensor maps

KINDS, SWIZZLES = {"UINT8": 0, "UINT16": 1, "UINT32": 2, "UINT64": 4}, {"NONE": 0, "32B": 1, "64B": 2}  # cuda.h's
MAP = TensorMap("x", (64, 100), (208,), 2, (8, 64), Swizzle.B128)


def test_the_driver_encodes_a_map(gpus):
    (kernel,) = gpu.device(1, "sm_90a").load([SPEC])
    assert kernel.tensor_map(MAP, X) == tensor_maps.encode(MAP, X), "as the stand-in encodes it"
    ((address, extents, pitches, box, steps, enums),) = gpus.machine.encoded
    assert address == X
    assert (extents, pitches, box, steps) == ([100, 64], [208], [64, 8], [1, 1]), "the innermost dimension first"
    assert enums == (1, 0, 3, 3, 0), "u16, not interleaved, swizzled by 128 B, fetched by 256 B, filled with zero"
    assert gpus.current == 0


@pytest.mark.parametrize("itemsize, kind", [(1, "UINT8"), (2, "UINT16"), (4, "UINT32"), (8, "UINT64")])
@pytest.mark.parametrize("swizzle, span", [(Swizzle.NONE, "NONE"), (Swizzle.B32, "32B"), (Swizzle.B64, "64B")])
def test_a_map_is_of_bits(gpus, itemsize, kind, swizzle, span):
    (kernel,) = gpu.device(0, "sm_90a").load([SPEC])
    box = (8, 4, (swizzle or 32) // itemsize)
    kernel.tensor_map(TensorMap("x", (3, 4, 100), (8192, 1024), itemsize, box, swizzle), X)
    ((_, extents, pitches, sides, steps, enums),) = gpus.machine.encoded
    assert (extents, pitches, sides, steps) == ([100, 4, 3], [1024, 8192], [*reversed(box)], [1, 1, 1])
    assert enums == (KINDS[kind], 0, SWIZZLES[span], 3, 0)


def test_a_map_that_the_driver_refuses(gpus):
    (kernel,) = gpu.device(0, "sm_90a").load([SPEC])
    with pytest.raises(qp.DriverError, match=r"CUDA_ERROR_INVALID_VALUE: no map of TensorMap\(operand='x'") as caught:
        kernel.tensor_map(MAP, X + 8)
    assert (caught.value.code, caught.value.name) == (1, "CUDA_ERROR_INVALID_VALUE")


# ---- streams and devices


@pytest.mark.parametrize(
    "given, handle",
    [
        (SimpleNamespace(ptr=0x7F00, device_id=1), 0x7F00),
        (SimpleNamespace(cuda_stream=0x7F01, device_index=1), 0x7F01),
        (SimpleNamespace(__cuda_stream__=lambda: (0, 0x7F02), device=SimpleNamespace(device_id=1)), 0x7F02),
        (qp.Stream(0x7F03, 1), 0x7F03),
        (0x7F04, 0x7F04),
        (0, 0),
    ],
    ids=["cupy", "torch", "protocol", "ours", "handle", "default"],
)
def test_streams_of_every_library(gpus, given, handle):
    """The launch goes where the caller says, on the device of the plan."""
    qp.QuantizePlan.select("cuda:1", DESC).run(given, None, operands(device=1))
    ((device, *_, where),) = gpus.launches
    assert (device, where) == (1, handle)
    assert gpus.current == 0


def test_there_is_no_default_stream(gpus):
    plan = qp.QuantizePlan.select("cuda:0", DESC)
    with pytest.raises(qp.InvalidProblem, match="there is no implicit default stream"):
        plan.run(None, None, operands())
    assert gpus.launches == []


def test_a_stream_of_another_device_is_refused(gpus):
    plan = qp.QuantizePlan.select("cuda:0", DESC)
    with pytest.raises(qp.DeviceMismatch, match="stream: expected cuda:0, got cuda:1"):
        plan.run(stream(device=1), None, operands())
    assert gpus.launches == []


def test_a_plan_can_be_selected_for_a_stream(gpus):
    assert qp.QuantizePlan.select(stream(device=1), DESC).target == qp.Target.parse("cuda:1")


@pytest.mark.parametrize("name, dtype", [("x", np.float32), ("q", np.int8)])
def test_operands_on_another_device_are_refused_before_anything_is_launched(gpus, name, dtype):
    plan = qp.QuantizePlan.select("cuda:0", DESC)
    with pytest.raises(qp.DeviceMismatch) as caught:
        plan.run(stream(), None, operands(**{name: Array((40, 64), dtype, device=1, pointer=2**47)}))
    assert (caught.value.field, caught.value.expected, caught.value.got) == (name, "cuda:0", "cuda:1")
    with pytest.raises(qp.DeviceMismatch):
        plan.run(stream(), None, operands(scale=np.ones(1, np.float32)))
    assert gpus.launches == []


def test_the_callers_device_is_current_again_after_a_launch(gpus):
    plan = qp.QuantizePlan.select("cuda:1", DESC)
    bound = plan.bind(None, operands(device=1))
    for before in (0, 1):
        gpus.set_device(before)
        bound.run(stream(device=1))
        assert gpus.current == before
    assert [launch[0] for launch in gpus.launches] == [1, 1]
    gpus.set_device(0)
    gpus.refuse("launch", "CUDA_ERROR_INVALID_VALUE")
    with pytest.raises(qp.DriverError):
        bound.run(stream(device=1))
    assert gpus.current == 0


def test_in_and_out_may_not_overlap(gpus):
    plan = qp.QuantizePlan.select("cuda:0", DESC)
    with pytest.raises(qp.InvalidProblem, match="memory of its own, apart from x"):
        plan.run(stream(), None, operands(q=Array((40, 64), np.int8, pointer=X + 100)))
    assert gpus.launches == []


def test_an_address_that_no_element_can_have(gpus):
    plan = qp.QuantizePlan.select("cuda:0", DESC)
    with pytest.raises(qp.MisalignedOperand, match="x: expected a pointer aligned to 4 bytes"):
        plan.run(stream(), None, operands(x=Array((40, 64), np.float32, pointer=X + 2)))
    assert gpus.launches == []


# ---- memory


def test_memory_is_of_the_device_and_freed_with_its_owner(gpus):
    pointer, owner = gpu.device(1, "sm_89").allocate(1000)
    assert (pointer % 256, owner.device_id, owner.size) == (0, 1, 1000)
    assert gpus.current == 0


def test_no_memory_has_an_address_too(gpus):
    pointer, owner = gpu.device(0, "sm_90a").allocate(0)
    assert pointer
    assert owner.size == 1


@pytest.mark.parametrize(
    "name, kind",
    [("cudaErrorMemoryAllocation", qp.DriverError), ("cudaErrorStreamCaptureUnsupported", qp.CaptureError)],
)
def test_memory_that_is_refused(gpus, name, kind):
    gpus.refuse("malloc", name)
    with pytest.raises(kind, match=f"allocate: {name}: .*: 1000 bytes"):
        gpu.device(0, "sm_90a").allocate(1000)


# ---- fork

FORKS = """
import os, sys
import pytest
import quantplan as qp
from quantplan import cubins
from quantplan.devices import gpu
from tests import fake_cupy
from tests.devices.test_gpu import DESC, operands, stream

cubins.cubin = lambda spec, arch: spec.name.encode()
gpus = fake_cupy.install(pytest.MonkeyPatch(), fake_cupy.Gpus())

def child(use):
    number = os.fork()
    if number:
        return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    try:
        use()
    except qp.DriverError as error:
        assert "does not survive a fork" in str(error) and "spawn" in error.hint and error.code == 3
        os._exit(7)
    os._exit(0)

select = lambda: qp.QuantizePlan.select("cuda:0", DESC)
assert child(lambda: select().run(stream(), None, operands())) == 0, "the parent has not used CUDA"
bound = select().bind(None, operands())
assert child(lambda: bound.run(stream())) == 7
assert child(lambda: select().run(stream(), None, operands())) == 7
assert child(lambda: qp.QuantizePlan.select("cuda:0", DESC.replace(output_element="u8"))) == 7
assert child(lambda: gpu.device(0, "sm_90a").allocate(8)) == 7
assert child(lambda: qp.QuantizePlan.select("cpu", DESC)) == 0
bound.run(stream())
assert len(gpus.launches) == 1
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform does not fork")
def test_a_child_of_a_parent_that_used_cuda_gets_a_clear_error(tmp_path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "QUANTPLAN_CACHE_DIR": str(tmp_path / "own"), "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", FORKS], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
