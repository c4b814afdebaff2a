"""Reading DLPack capsules: the way to arrays of libraries that quantplan does not know by name.

Source: DLPack 1.1, ``dlpack.h``. NumPy's own reader knows neither GPU memory nor bf16 and FP8.
"""

from __future__ import annotations

import ctypes
from typing import Any

from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem
from quantplan.tensor import HOST, Location, dense_strides

_CPU, _CUDA, _CUDA_HOST, _CUDA_MANAGED = 1, 2, 3, 13
_READ_ONLY = 1
_MAJOR = 1

# (type code, bits, lanes): the codes of DLDataTypeCode
_ELEMENTS = {
    (0, 8, 1): ElementKind.S8,
    (0, 32, 1): ElementKind.S32,
    (1, 8, 1): ElementKind.U8,
    (2, 16, 1): ElementKind.F16,
    (2, 32, 1): ElementKind.F32,
    (2, 64, 1): ElementKind.F64,
    (4, 16, 1): ElementKind.BF16,
    (10, 8, 1): ElementKind.FP8_E4M3,
    (12, 8, 1): ElementKind.FP8_E5M2,
    (14, 8, 1): ElementKind.E8M0,
    (17, 4, 2): ElementKind.FP4_E2M1,
}


class _Device(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("dl_tensor", _Tensor),
    )


def read(obj: Any) -> dict[str, Any]:  # noqa: ANN401 - any library's array
    """Return the fields of the `TensorView` of a DLPack producer.

    The capsule itself is the owner: it is not consumed, so its destructor returns the memory when the view goes.

    Raises
    ------
    InvalidProblem
        An element or a memory that quantplan has no name for.
    """
    capsule = _capsule(obj)
    tensor, readonly = _tensor(capsule)
    dtype, device = tensor.dtype, tensor.device
    kind = _ELEMENTS.get((dtype.code, dtype.bits, dtype.lanes))
    if kind is None:
        got = f"DLPack type code {dtype.code}, {dtype.bits} bits, {dtype.lanes} lanes"
        raise InvalidProblem(expected="a dtype with an element kind", got=got, hint="see quantplan.ElementKind")
    if device.device_type in (_CPU, _CUDA_HOST):
        location = HOST
    elif device.device_type in (_CUDA, _CUDA_MANAGED):
        location = Location("cuda", device.device_id)
    else:
        raise InvalidProblem(field="device", expected="cpu or cuda memory", got=f"DLPack device {device.device_type}")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else dense_strides(shape)
    if kind.packed and shape:
        shape = (*shape[:-1], 2 * shape[-1])
    return {
        "pointer": (tensor.data or 0) + tensor.byte_offset,
        "shape": shape,
        "strides": strides,
        "element": kind,
        "location": location,
        "readonly": readonly,
        "owner": capsule,
    }


def _capsule(obj: Any) -> Any:  # noqa: ANN401 - any library's array
    """Ask for a capsule without synchronising streams: ordering is the caller's, as for every operand."""
    on_cuda = obj.__dlpack_device__()[0] in (_CUDA, _CUDA_MANAGED)
    stream = {"stream": -1} if on_cuda else {}
    try:
        return obj.__dlpack__(max_version=(1, 1), **stream)
    except TypeError:  # a producer from before DLPack 1.0 has no such parameter
        return obj.__dlpack__(**stream)


def _tensor(capsule: Any) -> tuple[_Tensor, bool]:  # noqa: ANN401 - PyCapsule has no type of its own
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    is_valid = ctypes.pythonapi.PyCapsule_IsValid
    is_valid.restype, is_valid.argtypes = ctypes.c_int, (ctypes.py_object, ctypes.c_char_p)
    if is_valid(capsule, b"dltensor_versioned"):
        managed = ctypes.cast(get_pointer(capsule, b"dltensor_versioned"), ctypes.POINTER(_Versioned)).contents
        if managed.major != _MAJOR:
            raise InvalidProblem(expected=f"DLPack {_MAJOR}", got=f"DLPack {managed.major}.{managed.minor}")
        return managed.dl_tensor, bool(managed.flags & _READ_ONLY)
    # the unversioned struct begins with the tensor and cannot say that it is read-only
    return ctypes.cast(get_pointer(capsule, b"dltensor"), ctypes.POINTER(_Tensor)).contents, False
