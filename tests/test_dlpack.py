"""Arrays of libraries that quantplan does not know by name come through DLPack, on the host and on GPUs."""

import ctypes
import gc
import weakref

import ml_dtypes
import numpy as np
import pytest

import quantplan as qp
from quantplan import dlpack

VERSIONED, UNVERSIONED = b"dltensor_versioned", b"dltensor"
CPU, CUDA, CUDA_HOST, OPENCL, VULKAN, METAL, ROCM, CUDA_MANAGED = 1, 2, 3, 4, 7, 8, 10, 13


class Hidden:
    """A NumPy array of which only DLPack is to be seen."""

    def __init__(self, array, **forced):
        self.array, self.forced = array, forced

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options | self.forced)


class FromBefore(Hidden):
    """A producer from before DLPack 1.0: it knows no versions."""

    def __dlpack__(self, stream=None):
        assert stream is None
        return self.array.__dlpack__()


class Unversioned(ctypes.Structure):
    _fields_ = (("dl_tensor", dlpack._Tensor), ("manager_ctx", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class Producer:
    """A capsule made by hand, over memory that may be anywhere."""

    def __init__(self, *, dtype=(2, 32, 1), device=(CPU, 0), shape=(2, 3), strides=None, data=4096, offset=0, **more):
        self.calls, self.name, self.device = [], more.pop("name", VERSIONED), device
        integers = [None if axis is None else (ctypes.c_int64 * len(axis))(*axis) for axis in (shape, strides)]
        self.tensor = dlpack._Tensor(
            data, dlpack._Device(*device), len(shape), dlpack._DataType(*dtype), integers[0], integers[1], offset
        )
        if self.name == VERSIONED:
            self.managed = dlpack._Versioned(
                more.pop("major", 1), more.pop("minor", 1), None, None, more.pop("flags", 0), self.tensor
            )
        else:
            self.managed = Unversioned(self.tensor, None, None)
        self.kept = (integers, more)

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **options):
        self.calls.append(options)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self.managed), self.name, None)


# ---- NumPy as the producer


@pytest.mark.parametrize("hide", [Hidden, FromBefore])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int8, np.uint8, np.int32])
def test_every_dtype_that_numpy_exports(dtype, hide):
    array = np.arange(12).astype(dtype).reshape(3, 4)
    view = qp.TensorView.of(hide(array))
    assert view.element is qp.ElementKind.of(dtype)
    assert (view.pointer, view.shape, view.strides) == (array.ctypes.data, (3, 4), (4, 1))
    assert (view.location, view.readonly) == (qp.Location("cpu"), False)
    assert np.shares_memory(view.numpy(), array)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(60).astype(np.int32).reshape(6, 10)[::2, 1:4],
        np.arange(60).astype(np.int32).reshape(6, 10)[::-1, ::-2],
        np.arange(60).astype(np.int32).reshape(6, 10).T,
        np.zeros((0, 4), np.float32),
        np.zeros((4, 0), np.float32),
        np.array(3.5),
        np.zeros((2, 3, 4), np.uint8)[1:],
    ],
)
def test_shapes_and_strides(array):
    view, expected = qp.TensorView.of(Hidden(array)), qp.TensorView.of(array)
    assert (view.shape, view.element) == (expected.shape, expected.element)
    assert array.size == 0 or (view.pointer, view.strides) == (expected.pointer, expected.strides)
    np.testing.assert_array_equal(view.numpy(), array, strict=True)


def test_memory_lives_as_long_as_the_view():
    class Owner(np.ndarray):
        """An array that can be watched."""

    owner = np.arange(8, dtype=np.float32).view(Owner)
    gone = weakref.ref(owner)
    view = qp.TensorView.of(Hidden(owner))
    del owner
    gc.collect()
    assert view.numpy().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    rest = view.numpy()[4:]
    del view
    gc.collect()
    assert rest.tolist() == [4, 5, 6, 7]
    assert gone() is not None
    del rest
    gc.collect()
    assert gone() is None


def test_the_capsule_is_not_consumed():
    """A consumed capsule is renamed, and then nobody frees the memory who does not call its deleter."""
    array = np.zeros(3, np.float32)
    view = qp.TensorView.of(Hidden(array))
    assert "used_dltensor" not in repr(view.owner)


def test_read_only_arrays():
    array = np.zeros(3, np.float32)
    array.flags.writeable = False
    view = qp.TensorView.of(Hidden(array))
    assert view.readonly
    assert not view.numpy().flags.writeable


# ---- capsules made by hand


@pytest.mark.parametrize("name", [VERSIONED, UNVERSIONED])
@pytest.mark.parametrize(
    "dtype, kind",
    [
        ((0, 8, 1), qp.S8),
        ((0, 32, 1), qp.S32),
        ((1, 8, 1), qp.U8),
        ((2, 16, 1), qp.F16),
        ((2, 32, 1), qp.F32),
        ((2, 64, 1), qp.F64),
        ((4, 16, 1), qp.BF16),
        ((10, 8, 1), qp.FP8_E4M3),
        ((12, 8, 1), qp.FP8_E5M2),
        ((14, 8, 1), qp.E8M0),
    ],
)
def test_type_codes(dtype, kind, name):
    view = qp.TensorView.of(Producer(dtype=dtype, name=name))
    assert (view.element, view.pointer, view.shape, view.strides) == (kind, 4096, (2, 3), (3, 1))


def test_packed_fp4_counts_pairs():
    view = qp.TensorView.of(Producer(dtype=(17, 4, 2), shape=(2, 8), strides=(16, 1)))
    assert (view.element, view.shape, view.storage_shape, view.strides) == (qp.FP4_E2M1, (2, 16), (2, 8), (16, 1))


@pytest.mark.parametrize(
    "dtype",
    [
        (0, 16, 1),
        (0, 64, 1),
        (0, 4, 1),
        (1, 4, 1),
        (2, 32, 4),
        (5, 64, 1),
        (6, 8, 1),
        (8, 8, 1),
        (11, 8, 1),
        (99, 8, 1),
    ],
)
def test_other_type_codes_are_refused(dtype):
    with pytest.raises(qp.InvalidProblem) as caught:
        qp.TensorView.of(Producer(dtype=dtype))
    assert caught.value.got == f"DLPack type code {dtype[0]}, {dtype[1]} bits, {dtype[2]} lanes"


@pytest.mark.parametrize(
    "device, location",
    [
        ((CPU, 0), qp.Location("cpu")),
        ((CUDA_HOST, 0), qp.Location("cpu")),
        ((CUDA, 0), qp.Location("cuda", 0)),
        ((CUDA, 3), qp.Location("cuda", 3)),
        ((CUDA_MANAGED, 1), qp.Location("cuda", 1)),
    ],
)
def test_devices(device, location):
    assert qp.TensorView.of(Producer(device=device)).location == location


@pytest.mark.parametrize("device", [OPENCL, VULKAN, METAL, ROCM, 14, 99])
def test_other_devices_are_refused(device):
    with pytest.raises(qp.InvalidProblem, match=f"device: expected cpu or cuda memory, got DLPack device {device}"):
        qp.TensorView.of(Producer(device=(device, 0)))


@pytest.mark.parametrize("device, asked", [(CPU, None), (CUDA_HOST, None), (CUDA, -1), (CUDA_MANAGED, -1)])
def test_no_stream_is_synchronised(device, asked):
    """-1 asks a producer not to synchronise; on the host there is no stream to ask about."""
    producer = Producer(device=(device, 0))
    qp.TensorView.of(producer)
    assert [call.get("stream") for call in producer.calls] == [asked]


def test_reading_takes_one_capsule_and_asks_for_a_version_that_is_understood():
    producer = Producer()
    qp.TensorView.of(producer)
    assert [call["max_version"][0] for call in producer.calls] == [1]


@pytest.mark.parametrize("flags, readonly", [(0, False), (1, True), (2, False), (3, True)])
def test_the_read_only_flag(flags, readonly):
    assert qp.TensorView.of(Producer(flags=flags)).readonly is readonly


def test_the_byte_offset_counts():
    assert qp.TensorView.of(Producer(data=4096, offset=24)).pointer == 4120


def test_empty_tensors_may_have_no_memory():
    view = qp.TensorView.of(Producer(data=None, shape=(0, 4)))
    assert (view.pointer, view.shape) == (0, (0, 4))
    assert view.numpy().shape == (0, 4)


def test_scalars_have_neither_shape_nor_strides():
    view = qp.TensorView.of(Producer(shape=()))
    assert (view.shape, view.strides) == ((), ())


def test_64_bit_extents():
    """More than 2**31 elements along an axis, and in all."""
    view = qp.TensorView.of(Producer(shape=(2**33, 2**20), device=(CUDA, 0)))
    assert view.shape == (2**33, 2**20)
    assert view.strides == (2**20, 1)
    assert view.extent == (4096, 4096 + 2**55)


def test_a_version_whose_layout_nobody_knows_is_refused():
    """DLPack: of a capsule with another major version only the deleter may be used."""
    with pytest.raises(qp.QuantPlanError):
        qp.TensorView.of(Producer(major=2))


def test_minor_versions_only_add():
    assert qp.TensorView.of(Producer(minor=9)).element is qp.F32


# ---- libraries


def test_jax_arrays():
    jax = pytest.importorskip("jax", reason="jax is not installed; capsules made by hand are tested above")
    for dtype in (np.float32, np.int8, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        array = jax.numpy.arange(6).reshape(2, 3).astype(dtype)
        view = qp.TensorView.of(array)
        assert (view.element, view.shape) == (qp.ElementKind.of(dtype), (2, 3))
        np.testing.assert_array_equal(view.numpy(), np.asarray(array))


def test_torch_tensors_through_dlpack():
    torch = pytest.importorskip("torch", reason="torch is not installed; capsules made by hand are tested above")
    tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    view = qp.TensorView(**dlpack.read(tensor))
    assert (view.element, view.shape, view.pointer) == (qp.BF16, (2, 3), tensor.data_ptr())
