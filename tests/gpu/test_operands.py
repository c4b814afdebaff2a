"""Operands of CuPy, torch and DLPack, anywhere on the GPU: strided, misaligned, large; and what must not be touched.

Operands are made with copies and memset only, which CuPy needs no compiler for.
"""

import numpy as np
import pytest

import quantplan as qp

DESC = qp.QuantizeDescriptor(m=37, k=130, scope="token")
ROOM = 8 * 2**30


def expected(x, scale):
    q = np.zeros(x.shape, np.int8)
    desc = DESC.replace(m=x.shape[0], k=x.shape[1], input_element=qp.ElementKind.of(x.dtype))
    qp.QuantizePlan.select("cpu", desc).run(None, None, qp.QuantizeArgs(x=x, q=q, scale=scale))
    return q


@pytest.fixture
def host():
    rng = np.random.default_rng(0)
    return rng.standard_normal((37, 130)).astype(np.float32), rng.uniform(0.01, 0.1, 37).astype(np.float32)


def test_arrays_of_cupy(cupy, target, stream, host):
    x, scale = host
    q = cupy.zeros(x.shape, cupy.int8)
    args = qp.QuantizeArgs(x=cupy.asarray(x), q=q, scale=cupy.asarray(scale))
    cupy.cuda.Device().synchronize()
    qp.QuantizePlan.select(stream, DESC).run(stream, None, args)
    np.testing.assert_array_equal(q.get(stream=stream), expected(x, scale))


@pytest.mark.parametrize("layout", ["strided", "misaligned"])
def test_views_of_cupy(cupy, target, stream, host, layout):
    """Rows that lie apart, and addresses that are off alignment."""
    x, scale = host
    if layout == "strided":
        wide, out = np.zeros((37, 200), np.float32), np.full((37, 201), -77, np.int8)

        def part(array):
            return array[:, 3:133] if array.shape[1] == 200 else array[:, 5:135]
    else:
        wide, out = np.zeros(37 * 130 + 1, np.float32), np.full(37 * 130 + 3, -77, np.int8)

        def part(array):
            return array[-37 * 130 :].reshape(37, 130)

    part(wide)[...] = x
    inner, outer = cupy.asarray(wide), cupy.asarray(out)
    args = qp.QuantizeArgs(x=part(inner), q=part(outer), scale=cupy.asarray(scale))
    cupy.cuda.Device().synchronize()
    qp.QuantizePlan.select(target, DESC).run(stream, None, args)
    got = outer.get(stream=stream)
    np.testing.assert_array_equal(part(got), expected(x, scale))
    part(got)[...] = -77
    assert (got == -77).all(), "written outside of the operand"


class Dlpack:
    """An array that speaks DLPack only, as JAX's do."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_arrays_by_dlpack(cupy, target, stream, host):
    x, scale = host
    q = cupy.zeros(x.shape, cupy.int8)
    args = qp.QuantizeArgs(x=Dlpack(cupy.asarray(x)), q=Dlpack(q), scale=Dlpack(cupy.asarray(scale)))
    assert args.x.location == target.location
    cupy.cuda.Device().synchronize()
    qp.QuantizePlan.select(target, DESC).run(stream, None, args)
    np.testing.assert_array_equal(q.get(stream=stream), expected(x, scale))


def test_tensors_of_torch(target, host):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU: it was built without CUDA")
    x, scale = host
    on_gpu = {name: torch.from_numpy(array).cuda() for name, array in (("x", x), ("scale", scale))}
    q = torch.zeros(x.shape, dtype=torch.int8, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    qp.QuantizePlan.select(stream, DESC).run(stream, None, qp.QuantizeArgs(q=q, **on_gpu))
    stream.synchronize()
    np.testing.assert_array_equal(q.cpu().numpy(), expected(x, scale))


def test_fp8_codes_travel_as_bytes(cupy, target, stream, host):
    x, _ = host
    codes = cupy.zeros(x.shape, cupy.uint8)
    desc = qp.QuantizeDescriptor(m=37, k=130, output_element="fp8_e4m3", scale=0.25)
    args = qp.QuantizeArgs(x=cupy.asarray(x), q=qp.typed(codes, qp.FP8_E4M3))
    cupy.cuda.Device().synchronize()
    qp.QuantizePlan.select(target, desc).run(stream, None, args)
    on_host = np.zeros(x.shape, np.uint8)
    qp.QuantizePlan.select("cpu", desc).run(None, None, qp.QuantizeArgs(x=x, q=qp.typed(on_host, qp.FP8_E4M3)))
    np.testing.assert_array_equal(codes.get(stream=stream), on_host)


def test_host_memory_is_refused(cupy, target, stream, host):
    x, scale = host
    plan = qp.QuantizePlan.select(target, DESC)
    with pytest.raises(qp.DeviceMismatch, match="x: expected cuda:0, got cpu"):
        plan.run(stream, None, qp.QuantizeArgs(x=x, q=cupy.zeros(x.shape, cupy.int8), scale=cupy.asarray(scale)))


@pytest.mark.parametrize("extra", [0, 4096])
def test_a_dirty_workspace_does_not_matter_and_nothing_behind_it_is_touched(cupy, target, stream, extra):
    desc = qp.DynamicRangeQuantizeDescriptor(m=300, k=40, scope="channel:1")
    x = np.random.default_rng(1).standard_normal((300, 40)).astype(np.float32)
    plan = qp.DynamicRangeQuantizePlan.select(target, desc)
    memory = cupy.asarray(np.full(plan.workspace_size + extra, 0xFF, np.uint8))
    workspace = qp.Workspace.from_buffer(memory[: plan.workspace_size])
    q, scale = cupy.zeros((300, 40), cupy.int8), cupy.zeros(40, cupy.float32)
    args = qp.DynamicRangeQuantizeArgs(x=cupy.asarray(x), q=q, scale=scale)
    cupy.cuda.Device().synchronize()
    plan.run(stream, workspace, args)
    np.testing.assert_array_equal(scale.get(stream=stream), np.abs(x).max(axis=0) / np.float32(127))
    assert (memory.get()[plan.workspace_size :] == 0xFF).all()


def test_more_elements_than_32_bits_count(cupy, target, stream):
    """For real, in one dense matrix; rows from everywhere are compared."""
    m, k = 65_600, 32_768
    assert m * k > 2**31
    free, total = cupy.cuda.Device(target.index).mem_info
    if free < ROOM:
        pytest.skip(
            f"needs {ROOM / 2**30:.0f} GiB of GPU memory, and {free / 2**30:.1f} of {total / 2**30:.1f} are free"
        )
    desc = qp.DynamicRangeQuantizeDescriptor(m=m, k=k, input_element="f16", scope="token")
    factors = np.arange(1, 8, dtype=np.float16)
    chunk = np.tile(np.random.default_rng(2).standard_normal((7, k)).astype(np.float16) * factors[:, None], (128, 1))
    x, q, scale = cupy.zeros((m, k), cupy.float16), cupy.zeros((m, k), cupy.int8), cupy.zeros(m, cupy.float32)
    for start in range(0, m, len(chunk)):
        x[start : start + len(chunk)].set(chunk[: m - start])
    cupy.cuda.Device().synchronize()
    plan = qp.DynamicRangeQuantizePlan.select(target, desc)
    plan.run(stream, None, qp.DynamicRangeQuantizeArgs(x=x, q=q, scale=scale))
    stream.synchronize()
    rows = [0, 1, 2**31 // k - 1, 2**31 // k, 2**31 // k + 1, m - 1]
    some, count = np.stack([x[i].get() for i in rows]), len(rows)
    codes, scales = np.zeros((count, k), np.int8), np.zeros(count, np.float32)
    args = qp.DynamicRangeQuantizeArgs(x=some, q=codes, scale=scales)
    qp.DynamicRangeQuantizePlan.select("cpu", desc.replace(m=count)).run(None, None, args)
    np.testing.assert_array_equal(np.stack([q[i].get() for i in rows]), codes)
    np.testing.assert_array_equal(scale.get()[rows], scales)
    assert (scale.get() > 0).all(), "a row was left out"
    del x, q
    cupy.get_default_memory_pool().free_all_blocks()
