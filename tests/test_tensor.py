"""TensorView describes anybody's memory without copying it, and keeps it alive."""

import copy
import gc
import pickle
import weakref
from types import SimpleNamespace

import attrs
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quantplan as qp
from quantplan.tensor import HOST, dense_strides, overlap

UNPACKED = [kind for kind in qp.ElementKind if not kind.packed]
PACKED = [kind for kind in qp.ElementKind if kind.packed]
CUDA1 = qp.Location("cuda", 1)


class Name:
    """A dtype of a library that is not here: its str is its name."""

    def __init__(self, name):
        self.name = name

    def __str__(self):
        return self.name


class Tensor:
    """What torch.Tensor offers of its memory. Shape and strides count items, as torch's do."""

    def __init__(self, dtype="torch.float32", shape=(2, 3), stride=(3, 1), device=("cpu", None), pointer=4096):
        self.dtype, self.shape, self._stride, self._pointer = Name(dtype), shape, stride, pointer
        self.device = SimpleNamespace(type=device[0], index=device[1])

    def data_ptr(self):
        return self._pointer

    def stride(self):
        return self._stride


def cuda_array(device=None, **interface):
    """Make an object with a CUDA array interface, as CuPy's arrays have."""
    interface = {"shape": (2, 3), "typestr": "<f4", "data": (4096, False), "version": 3} | interface
    return SimpleNamespace(__cuda_array_interface__=interface, device=device or SimpleNamespace(id=1))


# ---- NumPy


@pytest.mark.parametrize("kind", UNPACKED)
def test_numpy_arrays_of_every_element(kind):
    array = np.zeros((2, 3), kind.dtype)
    view = qp.TensorView.of(array)
    assert (view.pointer, view.shape, view.strides) == (array.ctypes.data, (2, 3), (3, 1))
    assert (view.element, view.location, view.readonly) == (kind, HOST, False)
    assert view.storage_shape == (2, 3)


BASE = np.arange(60, dtype=np.int32).reshape(6, 10)
VIEWS = {
    "dense": BASE,
    "one row": BASE[2],
    "rows apart": BASE[:, 2:7],
    "every second row": BASE[::2, 1:4],
    "every third column": BASE[:, ::3],
    "rows upwards": BASE[::-1],
    "columns leftwards": BASE[:, ::-1],
    "transposed": BASE.T,
    "fortran": np.asfortranarray(BASE),
    "broadcast": np.broadcast_to(BASE[0], (4, 10)),
    "0-d": BASE[1, 2, ...],
    "3-d": BASE.reshape(2, 3, 10)[:, :, 1:],
    "no rows": BASE[:0],
    "no columns": BASE[:, 3:3],
    "one column": BASE[:, 4:5],
}


@pytest.mark.parametrize("name", VIEWS)
def test_strided_numpy_views_and_back(name):
    array = VIEWS[name]
    view = qp.TensorView.of(array)
    assert view.pointer == array.__array_interface__["data"][0]
    assert view.shape == array.shape
    assert view.strides == tuple(step // 4 for step in array.strides)
    back = view.numpy()
    np.testing.assert_array_equal(back, array, strict=True)
    assert back.strides == array.strides
    assert array.size == 0 or np.shares_memory(back, array)


@pytest.mark.parametrize("kind", UNPACKED)
def test_numpy_is_zero_copy_in_the_elements_dtype(kind):
    array = np.zeros((3, 5), kind.dtype)[:, 1:4]
    back = qp.TensorView.of(array).numpy()
    assert back.dtype == kind.dtype
    codes = back.view(f"u{kind.itemsize}")
    codes[1, 2] = 1
    assert array.view(f"u{kind.itemsize}")[1, 2] == 1


def test_views_of_views_are_themselves():
    view = qp.TensorView.of(BASE)
    assert qp.TensorView.of(view) is view


def test_read_only_arrays_stay_read_only():
    array = np.zeros(3, np.float32)
    array.flags.writeable = False
    view = qp.TensorView.of(array)
    assert view.readonly
    assert not view.numpy().flags.writeable


def test_a_view_keeps_its_owner_alive():
    array = np.arange(5, dtype=np.int8)
    gone = weakref.ref(array)
    view = qp.TensorView.of(array)
    del array
    gc.collect()
    assert view.numpy().tolist() == [0, 1, 2, 3, 4]
    derived = [view.numpy()[1:], qp.typed(view.numpy(), qp.U8)]
    del view
    gc.collect()
    assert gone() is not None
    del derived
    gc.collect()
    assert gone() is None


def test_a_misaligned_pointer_is_reported_as_it_is():
    """A contiguous but misaligned view keeps its true address; operands refuse it."""
    raw = np.zeros(33, np.uint8)
    start = 1 if raw.ctypes.data % 4 == 0 else 0
    array = raw[start : start + 32].view(np.float32)
    view = qp.TensorView.of(array)
    assert view.pointer == raw.ctypes.data + start
    assert view.pointer % 4
    np.testing.assert_array_equal(view.numpy(), array)


@pytest.mark.parametrize("layout", [np.dtype([("a", "u1"), ("b", "<f4")]), np.dtype([("a", "<f4"), ("b", "<u2")])])
def test_strides_between_items_are_misaligned(layout):
    """Rows of a packed struct do not start at multiples of the item size."""
    name = next(name for name in layout.names if layout[name].itemsize == 4)
    with pytest.raises(qp.MisalignedOperand, match="strides: expected multiples of 4 bytes, got"):
        qp.TensorView.of(np.zeros((2, 3), layout)[name])


@pytest.mark.parametrize("dtype", [">f4", ">i4", ">f8", "int16", "uint16", "int64", "complex64", "bool", "U1", "O"])
def test_dtypes_without_an_element_are_refused(dtype):
    with pytest.raises(qp.InvalidProblem, match="expected a dtype with an element kind, got"):
        qp.TensorView.of(np.zeros(2, dtype))


@pytest.mark.parametrize("dtype", [ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.float4_e2m1fn])
def test_ml_dtypes_unpacked_4_bit_arrays_are_refused_with_a_hint(dtype):
    with pytest.raises(qp.InvalidProblem, match=r"packed 4-bit elements, got unpacked .*\(pack two per byte") as caught:
        qp.TensorView.of(np.zeros((2, 4), dtype))
    assert "quantplan.typed" in caught.value.hint


def test_masked_arrays_are_refused():
    with pytest.raises(qp.InvalidProblem, match="mask"):
        qp.TensorView.of(np.ma.masked_array([1.0, 2.0], mask=[False, True]))


@pytest.mark.parametrize("thing", [None, 1.5, 3, "tensor", [1, 2], (1.0,), b"bytes", bytearray(4), np.float32(1), {}])
def test_what_is_no_tensor_is_refused(thing):
    with pytest.raises(qp.InvalidProblem) as caught:
        qp.TensorView.of(thing)
    assert caught.value.expected == "a tensor"
    assert caught.value.got == type(thing).__name__
    assert "wrap a number in a one-element array" in caught.value.hint


def test_asarray_reads_a_view():
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    view = qp.TensorView.of(array)
    assert np.shares_memory(np.asarray(view), array)
    assert np.array(view, copy=True).tolist() == array.tolist()
    assert not np.shares_memory(np.array(view, copy=True), array)
    converted = np.asarray(view, dtype=np.float64)
    assert converted.dtype == np.float64
    with pytest.raises(ValueError, match="copy"):
        np.asarray(view, dtype=np.float64, copy=False)


def test_device_memory_is_not_numpys():
    view = qp.TensorView.of(Tensor(device=("cuda", 1)))
    with pytest.raises(qp.DeviceMismatch, match="location: expected cpu, got cuda:1"):
        view.numpy()


# ---- typed


@pytest.mark.parametrize("carrier", [np.uint8, np.int8])
@pytest.mark.parametrize("kind", [qp.FP8_E4M3, qp.FP8_E5M2, qp.E8M0])
def test_eight_bit_integers_carry_fp8_and_e8m0(carrier, kind):
    codes = np.arange(-64, 64).astype(carrier).reshape(4, 32)[:, :30]
    view = qp.typed(codes, kind)
    assert (view.element, view.shape, view.strides) == (kind, (4, 30), (32, 1))
    assert np.shares_memory(view.numpy(), codes)
    assert view.numpy().dtype == kind.dtype
    np.testing.assert_array_equal(view.numpy().view(carrier), codes)


@pytest.mark.parametrize("carrier", [np.uint8, np.int8])
@pytest.mark.parametrize("kind", PACKED)
def test_bytes_carry_two_packed_elements_each(carrier, kind):
    codes = np.zeros((4, 8), carrier)[:, :5]
    view = qp.typed(codes, kind)
    assert (view.element, view.shape, view.storage_shape, view.strides) == (kind, (4, 10), (4, 5), (8, 1))
    assert view.numpy().dtype == np.uint8
    assert view.numpy().shape == (4, 5)
    assert np.shares_memory(view.numpy(), codes)


@pytest.mark.parametrize("carrier", [np.uint16, np.int16])
@pytest.mark.parametrize("kind", [qp.F16, qp.BF16])
def test_sixteen_bit_integers_carry_f16_and_bf16(carrier, kind):
    codes = np.array([0x3C00, 0x3F80], carrier)
    view = qp.typed(codes, kind)
    assert view.element is kind
    assert view.numpy()[{qp.F16: 0, qp.BF16: 1}[kind]] == 1.0


@pytest.mark.parametrize("kind", qp.ElementKind)
def test_typing_again_changes_nothing(kind):
    carrier = np.zeros((2, 4), np.uint8 if kind.packed else kind.dtype)
    once = qp.typed(carrier, kind)
    assert qp.typed(once, kind) is once


def test_typed_takes_names():
    assert qp.typed(np.zeros(2, np.uint8), "float8_e4m3fn").element is qp.FP8_E4M3


@pytest.mark.parametrize(
    "dtype, kind",
    [
        (np.float32, qp.FP8_E4M3),
        (np.float32, qp.F16),
        (np.float16, qp.BF16),
        (ml_dtypes.float8_e4m3fn, qp.FP8_E5M2),
        (ml_dtypes.float8_e4m3fn, qp.S8),
        (ml_dtypes.float8_e4m3fn, qp.FP4_E2M1),
        (np.uint8, qp.F16),
        (np.uint8, qp.F32),
        (np.int32, qp.S8),
        (np.int32, qp.FP4_E2M1),
        (np.float64, qp.F32),
    ],
)
def test_typed_is_no_cast(dtype, kind):
    with pytest.raises(qp.InvalidProblem) as caught:
        qp.typed(np.zeros((2, 4), dtype), kind)
    error = caught.value
    assert (error.op, error.field) == ("typed", "array")
    assert error.expected == f"{8 * kind.itemsize}-bit integers to carry {kind.value}"
    assert error.got == qp.ElementKind.of(dtype).value
    assert "astype()" in error.hint


@pytest.mark.parametrize("kind", [qp.U4, qp.FP4_E2M1, qp.U8, qp.FP8_E4M3])
def test_packed_elements_are_not_typed_as_something_else(kind):
    view = qp.typed(np.zeros((2, 4), np.uint8), qp.S4)
    with pytest.raises(qp.InvalidProblem, match="typed: array"):
        qp.typed(view, kind)


# ---- torch


@pytest.mark.parametrize(
    "dtype, kind",
    [
        ("torch.float64", qp.F64),
        ("torch.float32", qp.F32),
        ("torch.float16", qp.F16),
        ("torch.bfloat16", qp.BF16),
        ("torch.int8", qp.S8),
        ("torch.uint8", qp.U8),
        ("torch.int32", qp.S32),
        ("torch.float8_e4m3fn", qp.FP8_E4M3),
        ("torch.float8_e5m2", qp.FP8_E5M2),
        ("torch.float8_e8m0fnu", qp.E8M0),
    ],
)
def test_torch_tensors(dtype, kind):
    tensor = Tensor(dtype, shape=(4, 3), stride=(8, 1), device=("cuda", 1), pointer=512)
    view = qp.TensorView.of(tensor)
    assert (view.pointer, view.shape, view.strides) == (512, (4, 3), (8, 1))
    assert (view.element, view.location, view.readonly) == (kind, CUDA1, False)
    assert view.owner is tensor


def test_torchs_packed_fp4_counts_pairs():
    view = qp.TensorView.of(Tensor("torch.float4_e2m1fn_x2", shape=(4, 8), stride=(16, 1)))
    assert (view.element, view.shape, view.storage_shape, view.strides) == (qp.FP4_E2M1, (4, 16), (4, 8), (16, 1))


@pytest.mark.parametrize("dtype", ["torch.int4", "torch.uint4"])
def test_torchs_unpacked_4_bit_tensors_are_refused(dtype):
    with pytest.raises(qp.InvalidProblem, match=f"got unpacked {dtype}"):
        qp.TensorView.of(Tensor(dtype))


@pytest.mark.parametrize(
    "device, location",
    [(("cpu", None), HOST), (("cuda", 0), qp.Location("cuda", 0)), (("cuda", None), qp.Location("cuda", 0))],
)
def test_torch_devices(device, location):
    assert qp.TensorView.of(Tensor(device=device)).location == location


@pytest.mark.parametrize("device", ["meta", "mps", "xpu"])
def test_other_devices_of_torch_are_neither_host_nor_cuda(device):
    location = qp.TensorView.of(Tensor(device=(device, None))).location
    assert location != HOST
    assert location.kind != "cuda"


@pytest.mark.parametrize("dtype", ["torch.int64", "torch.bool", "torch.complex64", "torch.float8_e4m3fnuz"])
def test_torch_dtypes_without_an_element_are_refused(dtype):
    with pytest.raises(qp.InvalidProblem, match=f"got {dtype}"):
        qp.TensorView.of(Tensor(dtype))


def test_host_memory_of_torch_reads_as_numpy():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensor = Tensor(shape=(3, 2), stride=(4, 1), pointer=array.ctypes.data)
    np.testing.assert_array_equal(qp.TensorView.of(tensor).numpy(), array[:, :2])


def test_torch_itself():
    torch = pytest.importorskip("torch", reason="torch is not installed; a stand-in is tested above")
    tensor = torch.arange(12, dtype=torch.float32).reshape(3, 4)[:, 1:]
    view = qp.TensorView.of(tensor)
    assert (view.shape, view.strides, view.element, view.location) == ((3, 3), (4, 1), qp.F32, HOST)
    np.testing.assert_array_equal(view.numpy(), tensor.numpy())


# ---- CUDA array interface


@pytest.mark.parametrize(
    "interface, shape, strides, kind",
    [
        ({}, (2, 3), (3, 1), qp.F32),
        ({"strides": None}, (2, 3), (3, 1), qp.F32),
        ({"strides": (32, 4)}, (2, 3), (8, 1), qp.F32),
        ({"strides": (4, 8)}, (2, 3), (1, 2), qp.F32),
        ({"typestr": "<f8", "strides": (24, 8)}, (2, 3), (3, 1), qp.F64),
        ({"typestr": "<f2"}, (2, 3), (3, 1), qp.F16),
        ({"typestr": "|i1"}, (2, 3), (3, 1), qp.S8),
        ({"typestr": "|u1"}, (2, 3), (3, 1), qp.U8),
        ({"typestr": "<i4"}, (2, 3), (3, 1), qp.S32),
        ({"shape": ()}, (), (), qp.F32),
        ({"shape": (0, 4), "data": (0, False)}, (0, 4), (4, 1), qp.F32),
    ],
)
def test_cuda_arrays(interface, shape, strides, kind):
    array = cuda_array(**interface)
    view = qp.TensorView.of(array)
    assert (view.shape, view.strides, view.element, view.location) == (shape, strides, kind, CUDA1)
    assert view.pointer == array.__cuda_array_interface__["data"][0]
    assert view.owner is array


def test_read_only_cuda_arrays():
    assert qp.TensorView.of(cuda_array(data=(4096, True))).readonly
    assert not qp.TensorView.of(cuda_array()).readonly


def test_masked_cuda_arrays_are_refused():
    with pytest.raises(qp.InvalidProblem, match="expected a dense array, got one with a mask"):
        qp.TensorView.of(cuda_array(mask=cuda_array()))
    assert qp.TensorView.of(cuda_array(mask=None)).element is qp.F32


@pytest.mark.parametrize("typestr", [">f4", "<i8", "<c8", "|V2", "|b1"])
def test_cuda_arrays_of_other_types_are_refused(typestr):
    with pytest.raises(qp.InvalidProblem, match="element kind"):
        qp.TensorView.of(cuda_array(typestr=typestr))


def test_cuda_strides_between_items_are_misaligned():
    with pytest.raises(qp.MisalignedOperand, match="multiples of 4 bytes"):
        qp.TensorView.of(cuda_array(strides=(13, 4)))


class DlpackDevice(SimpleNamespace):
    def __dlpack_device__(self):
        return (2, 3)


@pytest.mark.parametrize(
    "array, index",
    [
        (cuda_array(SimpleNamespace(id=2)), 2),
        (cuda_array(SimpleNamespace(index=1)), 1),
        (DlpackDevice(__cuda_array_interface__=cuda_array().__cuda_array_interface__), 3),
        (DlpackDevice(__cuda_array_interface__=cuda_array().__cuda_array_interface__, device="gpu"), 3),
    ],
)
def test_the_device_of_a_cuda_array(array, index):
    assert qp.TensorView.of(array).location == qp.Location("cuda", index)


def test_a_cuda_array_that_does_not_know_its_device_is_refused():
    array = SimpleNamespace(__cuda_array_interface__=cuda_array().__cuda_array_interface__)
    with pytest.raises(qp.InvalidProblem) as caught:
        qp.TensorView.of(array)
    assert caught.value.field == "device"
    assert "CuPy or torch" in caught.value.hint


def test_codes_on_a_gpu_are_typed_without_being_read():
    view = qp.typed(cuda_array(typestr="|u1"), qp.FP8_E4M3)
    assert (view.element, view.location, view.shape) == (qp.FP8_E4M3, CUDA1, (2, 3))


# ---- geometry


@pytest.mark.parametrize("shape, strides", [((), ()), ((5,), (1,)), ((2, 3), (3, 1)), ((2, 0, 4), (0, 4, 1))])
def test_dense_strides(shape, strides):
    assert dense_strides(shape) == strides


@pytest.mark.parametrize("name", VIEWS)
def test_extent_is_what_numpy_says(name):
    array = VIEWS[name]
    expected = np.lib.array_utils.byte_bounds(array)
    first, last = qp.TensorView.of(array).extent
    if array.size:
        assert (first, last) == expected
    else:
        assert first == last


def test_extent_of_packed_elements_counts_bytes():
    codes = np.zeros((3, 8), np.uint8)
    first, last = qp.typed(codes[:, :5], qp.S4).extent
    assert (first, last - first) == (codes.ctypes.data, 2 * 8 + 5)
    odd = qp.TensorView(codes.ctypes.data, (3, 9), (8, 1), qp.S4)
    assert odd.extent == (first, last)


def test_extent_beyond_32_bits():
    """A view of 2**40 elements reaches 2**42 bytes."""
    view = qp.TensorView(4096, (2**20, 2**20), (2**20, 1), qp.F32, CUDA1)
    assert view.extent == (4096, 4096 + 2**42)
    assert view.shape[0] * view.shape[1] == 2**40


def test_views_that_are_laid_out_alike_share_a_layout():
    memory = np.zeros(4096, np.uint8)
    start = -memory.ctypes.data % 16
    views = [qp.TensorView.of(memory[start + far : start + far + 96].reshape(8, 12)) for far in (0, 16, 1600)]
    (layout,) = {view.layout for view in views}
    assert qp.TensorView(views[0].pointer, [8, 12], [12, 1], qp.U8).layout is layout
    assert attrs.evolve(views[0], pointer=views[0].pointer + 32, owner=None).layout is layout


@pytest.mark.parametrize(
    "change",
    [
        {"pointer": 4097},
        {"shape": (2, 4)},
        {"strides": (9, 1)},
        {"element": qp.U8},
        {"location": CUDA1},
        {"readonly": True},
    ],
)
def test_a_layout_tells_all_that_a_check_looks_at(change):
    view = qp.TensorView(4096, (2, 8), (8, 1), qp.S8)
    assert attrs.evolve(view, **change).layout is not view.layout


def test_a_view_has_one_stride_per_axis():
    with pytest.raises(qp.InvalidProblem, match=r"TensorView: strides: expected one per axis of \(2, 8\), got \(8,\)"):
        qp.TensorView(4096, (2, 8), (8,), qp.S8)


@pytest.mark.parametrize(
    "view, text",
    [
        (qp.TensorView(0, (2, 3), (3, 1), qp.F32), "TensorView(f32, (2, 3), cpu)"),
        (qp.TensorView(0, (2, 3), (8, 1), qp.S8, CUDA1), "TensorView(s8, (2, 3), strides=(8, 1), cuda:1)"),
        (qp.TensorView(0, (2, 5), (3, 1), qp.S4), "TensorView(s4, (2, 5), cpu)"),
    ],
)
def test_repr(view, text):
    assert repr(view) == text


def test_locations_compare_by_value():
    assert qp.Location("cuda", 1) == CUDA1 != qp.Location("cuda", 0)
    assert (str(HOST), str(CUDA1)) == ("cpu", "cuda:1")


# ---- overlap

BUFFER = np.zeros(600, np.uint8)


def slices_of_the_buffer(seed):
    """Cut two slices with steps, usually from the same matrix, else from matrices that lie across each other."""
    rng = np.random.default_rng(seed)
    dtype, columns, start = np.uint8, rng.choice([5, 8, 12]), 0
    found = []
    for _ in range(2):
        if rng.random() < 0.2:
            dtype, columns, start = rng.choice([np.uint8, np.float32]), rng.choice([5, 8, 12]), rng.integers(30)
        rows = (BUFFER.size - start) // (columns * np.dtype(dtype).itemsize)
        matrix = np.ndarray((rows, columns), dtype, BUFFER, offset=start)[:6]
        cut = []
        for n in matrix.shape:
            low, high = rng.integers(n // 2 + 1), rng.integers(n // 2, n + 1)
            cut.append(slice(low, high, rng.integers(1, 5)))
        found.append(matrix[tuple(cut)][:: rng.choice([1, 1, -1]), :: rng.choice([1, 1, -1])])
    return found


@settings(max_examples=400)
@given(seed=st.integers(0, 2**32))
def test_shared_memory_always_overlaps(seed):
    a, b = slices_of_the_buffer(seed)
    first, second = qp.TensorView.of(a), qp.TensorView.of(b)
    if np.shares_memory(a, b):
        assert overlap(first, second)
        assert overlap(second, first)
    elif a.size == 0 or b.size == 0 or not np.may_share_memory(a, b):
        assert not overlap(first, second)
        assert not overlap(second, first)


@given(
    edges=st.lists(st.integers(0, 40), min_size=4, max_size=4, unique=True),
    rows=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_column_ranges_side_by_side_do_not_overlap(edges, rows):
    wide = np.zeros((5, 40), np.int32)
    left, end, start, right = sorted(edges)
    a = qp.TensorView.of(wide[: rows[0], left:end])
    b = qp.TensorView.of(wide[5 - rows[1] :, start:right])
    assert not overlap(a, b)
    assert not overlap(b, a)


def test_column_ranges_side_by_side_of_packed_elements():
    wide = np.zeros((4, 16), np.uint8)
    a, b = qp.typed(wide[:, :8], qp.S4), qp.typed(wide[:, 8:], qp.S4)
    assert not overlap(a, b)
    assert overlap(a, qp.typed(wide[:, 7:9], qp.U4))


def test_columns_with_steps_overlap_where_they_interleave_on_one():
    wide = np.zeros((4, 16), np.uint8)
    assert overlap(qp.TensorView.of(wide[:, ::4]), qp.TensorView.of(wide[:, 8:10]))


def test_the_same_addresses_of_two_devices_do_not_overlap():
    views = [qp.TensorView(4096, (4,), (1,), qp.F32, location) for location in (HOST, CUDA1, qp.Location("cuda", 0))]
    assert [overlap(views[0], view) for view in views] == [True, False, False]
    assert not overlap(views[1], views[2])


def test_a_view_does_not_travel_without_its_memory():
    """A copied pointer would outlive, or never have had, the memory that it points to."""
    view = qp.TensorView.of(np.zeros(3))
    with pytest.raises(qp.InvalidProblem, match="pickle: expected the array itself, got a borrowed view"):
        pickle.dumps(view)
    assert copy.deepcopy(view) is view
    with pytest.raises(qp.InvalidProblem, match="pickle"):
        copy.copy(view)


class Broken:
    """Claims protocols that it does not keep."""

    def __init__(self, **members):
        vars(self).update(members)


def raising(kind):
    def refuse(**_):
        raise kind("not for export")

    return refuse


@pytest.mark.parametrize(
    "obj",
    [
        Broken(__cuda_array_interface__={"typestr": "<f4", "data": (0, False)}),
        Broken(__cuda_array_interface__=3),
        Broken(__dlpack__=lambda **_: "no capsule", __dlpack_device__=lambda: (1, 0)),
        Broken(__dlpack__=lambda **_: None),
        Broken(__dlpack__=raising(BufferError), __dlpack_device__=lambda: (1, 0)),
        Broken(__dlpack__=raising(RuntimeError), __dlpack_device__=lambda: (1, 0)),
        Broken(data_ptr=lambda: 0, stride=None, dtype="float32", shape=(1,), device=None),
    ],
    ids=["no shape", "no dictionary", "no capsule", "no device", "no export", "deleted", "no stride"],
)
def test_a_tensor_that_breaks_its_protocol_is_refused(obj):
    with pytest.raises(
        qp.InvalidProblem, match="expected a tensor that keeps its protocol, got Broken, which breaks it"
    ):
        qp.TensorView.of(obj)
