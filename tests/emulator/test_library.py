"""Launches take what CUDA takes and refuse the rest by name."""

import ctypes
import struct

import numpy as np
import pytest

import quantplan as qp
from quantplan.emulator import compiler
from quantplan.emulator import library as module
from quantplan.emulator.library import Library, Region, Statistics
from quantplan.emulator.schedule import Schedule
from quantplan.errors import FaultKind, KernelFault

TEXT = """#include <qp/ptx/launch.cuh>
struct P { const char* in; char* out; long long n; };
struct alignas(64) Wide { char bytes[64]; const char* in; char* out; };

__device__ void copy(const P& p) {
  for (long long i = blockIdx.x * blockDim.x + threadIdx.x; i < p.n; i += blockDim.x * gridDim.x) p.out[i] = p.in[i];
}
__device__ void fill(const P& p) {
  char* shared = reinterpret_cast<char*>(qp::ptx::shared_memory());
  for (unsigned i = threadIdx.x; i < ::emulated::shared_bytes(); i += blockDim.x) shared[i] = 1;
  __syncthreads();
  if (threadIdx.x == 0 && reinterpret_cast<unsigned long long>(shared) % 1024 == 0) p.out[0] = shared[p.n - 1];
}
__device__ void address(const Wide& p) {
  if (threadIdx.x == 0) p.out[0] = static_cast<char>(reinterpret_cast<unsigned long long>(&p) % 64);
}
__device__ void second_row(const P& p) { p.out[threadIdx.x + p.n] = p.in[threadIdx.x + p.n]; }
QP_KERNEL(k_copy, 256, P, copy)
QP_KERNEL(k_fill, 1024, P, fill)
QP_KERNEL(k_address, 32, Wide, address)
QP_KERNEL(k_second_row, 32, P, second_row)
"""


@pytest.fixture(scope="module", params=[True, False], ids=["checked", "unchecked"])
def library(request):
    return Library(compiler.build(TEXT, arch=900, checked=request.param), checked=request.param)


def launch(library, kernel="k_copy", *, data=None, out=None, n=None, **options):
    data = np.arange(100, dtype=np.int8) if data is None else data
    out = np.zeros(100, np.int8) if out is None else out
    n = data.nbytes if n is None else n
    regions = [
        Region("in", data.ctypes.data, data.nbytes, data.nbytes, 1),
        Region("out", out.ctypes.data, out.nbytes, out.nbytes, 1, writable=True, initialized=False),
    ]
    settings = {
        "grid": (2,),
        "block": (32,),
        "shared_bytes": 0,
        "params": struct.pack("@PPq", data.ctypes.data, out.ctypes.data, n),
        "regions": regions,
        "schedule": Schedule(),
    }
    return out, library.launch(kernel, **settings | options)


def test_a_launch_runs_the_kernel_and_counts(library):
    out, statistics = launch(library)
    np.testing.assert_array_equal(out, np.arange(100))
    assert statistics == Statistics(switches=64, accesses=statistics.accesses)
    assert (statistics.accesses >= 200) == library.checked


@pytest.mark.parametrize("count", [1, 32, 3])
def test_extents_may_be_numpys_integers_and_fewer_than_three(library, count):
    launch(library, grid=np.array([count, 1]), block=[np.int64(32)])


LIMITS = [
    ("grid", (0,)),
    ("grid", (1, 0)),
    ("grid", (-1,)),
    ("grid", (2**31,)),
    ("grid", (1, 65536)),
    ("grid", (1, 1, 65536)),
    ("grid", ()),
    ("grid", (1, 1, 1, 1)),
    ("block", (0,)),
    ("block", (1025,)),
    ("block", (1, 1, 65)),
    ("block", (2**32 + 1,)),
    ("block", (16, 17)),
    ("shared_bytes", -1),
    ("shared_bytes", 227 * 1024 + 1),
]


@pytest.mark.parametrize("field, value", LIMITS)
def test_what_cuda_refuses_is_refused_by_name(library, field, value):
    with pytest.raises(qp.InvalidProblem) as caught:
        launch(library, **{field: value})
    assert (caught.value.op, caught.value.field) == ("emulator", field)
    assert str(value).rstrip("),") in str(caught.value)


def test_extents_are_integers(library):
    with pytest.raises(TypeError):
        launch(library, grid=(1.5,))


def test_launch_bounds_count(library):
    launch(library, block=(256,))
    with pytest.raises(qp.InvalidProblem, match="at most 256 threads, the launch bounds of k_copy"):
        launch(library, block=(257,))
    with pytest.raises(qp.InvalidProblem, match="at most 256 threads"):
        launch(library, block=(16, 16, 2))


@pytest.mark.parametrize("name", ["k_missing", "copy", "memcpy", "emulated_launch"])
def test_what_is_no_kernel_is_refused(library, name):
    with pytest.raises(qp.InvalidProblem) as caught:
        launch(library, name)
    assert (caught.value.field, caught.value.got) == ("kernel", name)


@pytest.mark.parametrize("shared_bytes", [1, 1000, 48 * 1024, 227 * 1024])
def test_shared_memory_is_as_large_as_asked_for(library, shared_bytes):
    out, _ = launch(library, "k_fill", shared_bytes=shared_bytes, n=shared_bytes, grid=(1,))
    assert out[0] == 1
    if library.checked:
        with pytest.raises(KernelFault) as caught:
            launch(library, "k_fill", shared_bytes=shared_bytes, n=shared_bytes + 1, grid=(1,))
        assert caught.value.kind is FaultKind.OUT_OF_BOUNDS


def test_parameters_are_aligned_as_any_field_may_ask(library):
    out = np.full(1, 7, np.int8)
    region = Region("out", out.ctypes.data, 1, 1, 1, writable=True)
    params = bytes(64) + struct.pack("@PP", 0, out.ctypes.data) + bytes(48)
    for _ in range(5):
        launch(library, "k_address", params=params, regions=[region], grid=(1,))
        assert out[0] == 0


def test_without_operands_and_parameters(library):
    launch(library, params=bytes(24), regions=[])


def test_an_operand_without_rows_cannot_be_touched(library):
    data = np.zeros(8, np.int8)
    regions = [Region("in", data.ctypes.data, 8, 8, 0), Region("out", data.ctypes.data, 0, 0, 1, writable=True)]
    launch(library, data=data, n=0, regions=regions)
    if library.checked:
        with pytest.raises(KernelFault, match="reads 1 bytes"):
            launch(library, data=data, regions=regions)


def test_long_names_are_cut(library):
    data, out = np.zeros(8, np.int8), np.zeros(4, np.int8)
    regions = [
        Region("in", data.ctypes.data, 8, 8, 1),
        Region("öutput_with_a_name_longer_than_thirty_one_bytes", out.ctypes.data, 4, 4, 1, writable=True),
    ]
    if library.checked:
        with pytest.raises(KernelFault, match="öutput_with_a_name_longer"):
            launch(library, data=data, out=out, regions=regions, grid=(1,))


# ---- regions


def test_rows_that_overlap_are_refused():
    with pytest.raises(qp.InvalidProblem) as caught:
        Region("x", 4096, 64, 48, 2)
    assert (caught.value.field, caught.value.got) == ("pitch of x", 48)
    Region("x", 4096, 64, 48, 1)
    Region("x", 4096, 64, 64, 2)


@pytest.mark.parametrize("block, n, fault", [(8, 0, False), (8, 12, False), (9, 0, True), (8, 11, True), (8, 24, True)])
def test_rows_lie_a_pitch_apart(library, block, n, fault):
    data, out = np.arange(24, dtype=np.int8), np.zeros(24, np.int8)
    regions = [
        Region("in", data.ctypes.data, 8, 12, 2),
        Region("out", out.ctypes.data, 8, 12, 2, writable=True, initialized=False),
    ]
    options = {"data": data, "out": out, "n": n, "regions": regions, "grid": (1,), "block": (block,)}
    if fault and library.checked:
        with pytest.raises(KernelFault) as caught:
            launch(library, "k_second_row", **options)
        assert caught.value.kind is FaultKind.OUT_OF_BOUNDS
    elif not fault:
        launch(library, "k_second_row", **options)
        np.testing.assert_array_equal(out[n : n + 8], np.arange(n, n + 8))


# ---- the interface


def test_the_structures_are_those_of_the_header():
    kinds = {name: getattr(module, f"_{name}") for name in ("Region", "Launch", "Place", "Report")}
    expected, expressions = [], []
    for name, kind in kinds.items():
        fields = [field for field, _ in kind._fields_]
        expected += [ctypes.sizeof(kind), *(getattr(kind, field).offset for field in fields)]
        expressions += [f"sizeof(emulated::{name})", *(f"offsetof(emulated::{name}, {field})" for field in fields)]
    text = f"""#include <emulated/abi.h>
#include <qp/ptx/launch.cuh>
struct P {{ long long* out; }};
static const long long numbers[] = {{{", ".join(expressions)}}};
__device__ void body(const P& p) {{ p.out[threadIdx.x] = numbers[threadIdx.x]; }}
QP_KERNEL(k, 1024, P, body)
"""
    out = np.zeros(len(expected), np.int64)
    region = Region("out", out.ctypes.data, out.nbytes, out.nbytes, 1, writable=True)
    library = Library(compiler.build(text, arch=900, checked=True), checked=True)
    launch(library, "k", params=struct.pack("@P", out.ctypes.data), regions=[region], grid=(1,), block=(out.size,))
    np.testing.assert_array_equal(out, expected)
