"""ElementKind: the element formats that tensors can hold, and what NumPy, ml_dtypes and torch call them."""

from __future__ import annotations

import enum
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

from quantplan.errors import InvalidProblem


class ElementKind(enum.Enum):
    """An element format. ``ElementKind.of`` accepts NumPy, ml_dtypes and torch dtypes and their names.

    The 4-bit kinds are stored two to a byte along the last axis, low nibble first, an odd tail padded with zero.
    """

    F64 = "f64"
    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    S8 = "s8"
    U8 = "u8"
    S4 = "s4"
    U4 = "u4"
    S32 = "s32"
    FP8_E4M3 = "fp8_e4m3"
    FP8_E5M2 = "fp8_e5m2"
    FP4_E2M1 = "fp4_e2m1"
    E8M0 = "e8m0"

    @classmethod
    def of(cls, value: object) -> ElementKind:
        """Return the kind that a dtype, dtype name or kind stands for.

        Raises
        ------
        InvalidProblem
            No kind has that name.
        """
        kind = cls.find(value)
        if kind is None:
            names = ", ".join(k.value for k in cls)
            raise InvalidProblem(
                field="element", expected=f"one of {names}, or a dtype of that format", got=repr(value)
            )
        return kind

    @classmethod
    def find(cls, value: object) -> ElementKind | None:
        """Return the kind like `of`, or None where there is none."""
        if isinstance(value, cls):
            return value
        scalar = isinstance(value, type) and issubclass(value, np.generic)  # Python's float says nothing of a width
        kind = _find(value) if scalar or isinstance(value, (str, np.dtype)) else None
        return kind or _BY_NAME.get(str(value).rpartition(".")[2].lower())

    bits: int
    """Width of one element in bits."""
    packed: bool
    """Whether two elements share a byte."""
    itemsize: int
    """Bytes of one storage item: an element, or a byte that holds two of them."""
    dtype: np.dtype[Any]
    """NumPy dtype of the storage: ml_dtypes for bf16, FP8 and E8M0, uint8 for packed pairs of 4-bit elements."""

    @property
    def is_float(self) -> bool:
        """Whether it is one of the wide floating-point formats that real values travel in."""
        return self in (ElementKind.F64, ElementKind.F32, ElementKind.F16, ElementKind.BF16)

    @property
    def is_integer(self) -> bool:
        """Whether it is an integer format."""
        return str(self.value)[0] in "su"

    @property
    def is_fp8(self) -> bool:
        """Whether it is an 8-bit floating-point value format (E8M0 is a scale format, not one of them)."""
        return str(self.value).startswith("fp8")

    @property
    def integer_range(self) -> tuple[int, int]:
        """Smallest and largest value of an integer format."""
        low = -(1 << (self.bits - 1)) if self.value[0] == "s" else 0
        return low, low + (1 << self.bits) - 1

    @property
    def largest(self) -> float:
        """Largest finite value of a floating-point format."""
        return _LARGEST[self]

    def storage_columns(self, columns: int) -> int:
        """Return the number of storage items along a last axis of so many elements."""
        return (columns + 1) // 2 if self.packed else columns


_DTYPES: dict[ElementKind, np.dtype[Any]] = {
    ElementKind.F64: np.dtype(np.float64),
    ElementKind.F32: np.dtype(np.float32),
    ElementKind.F16: np.dtype(np.float16),
    ElementKind.BF16: np.dtype(ml_dtypes.bfloat16),
    ElementKind.S8: np.dtype(np.int8),
    ElementKind.U8: np.dtype(np.uint8),
    ElementKind.S4: np.dtype(np.uint8),
    ElementKind.U4: np.dtype(np.uint8),
    ElementKind.S32: np.dtype(np.int32),
    ElementKind.FP8_E4M3: np.dtype(ml_dtypes.float8_e4m3fn),
    ElementKind.FP8_E5M2: np.dtype(ml_dtypes.float8_e5m2),
    ElementKind.FP4_E2M1: np.dtype(np.uint8),
    ElementKind.E8M0: np.dtype(ml_dtypes.float8_e8m0fnu),
}

for _kind, _dtype in _DTYPES.items():  # attributes, for every launch reads them
    _kind.dtype, _kind.packed = _dtype, _kind.value in ("s4", "u4", "fp4_e2m1")
    _kind.itemsize = _dtype.itemsize
    _kind.bits = 4 if _kind.packed else 8 * _dtype.itemsize

_LARGEST = {
    ElementKind.F64: float(np.finfo(np.float64).max),
    ElementKind.F32: float(np.finfo(np.float32).max),
    ElementKind.F16: 65504.0,
    ElementKind.BF16: float.fromhex("0x1.fep127"),
    ElementKind.FP8_E4M3: 448.0,
    ElementKind.FP8_E5M2: 57344.0,
    ElementKind.FP4_E2M1: 6.0,
    ElementKind.E8M0: 2.0**127,
}

_BY_NAME = {kind.value: kind for kind in ElementKind} | {
    "float64": ElementKind.F64,
    "double": ElementKind.F64,
    "float32": ElementKind.F32,
    "float": ElementKind.F32,
    "float16": ElementKind.F16,
    "half": ElementKind.F16,
    "bfloat16": ElementKind.BF16,
    "int8": ElementKind.S8,
    "uint8": ElementKind.U8,
    "int4": ElementKind.S4,
    "uint4": ElementKind.U4,
    "int32": ElementKind.S32,
    "e4m3": ElementKind.FP8_E4M3,
    "float8_e4m3fn": ElementKind.FP8_E4M3,
    "e5m2": ElementKind.FP8_E5M2,
    "float8_e5m2": ElementKind.FP8_E5M2,
    "e2m1": ElementKind.FP4_E2M1,
    "float4_e2m1fn": ElementKind.FP4_E2M1,
    "float4_e2m1fn_x2": ElementKind.FP4_E2M1,  # torch's name for a pair
    "float8_e8m0fnu": ElementKind.E8M0,
}


@cache
def _find(value: str | np.dtype[Any] | type) -> ElementKind | None:
    """Look a name, NumPy dtype or scalar type up by its native-endian name."""
    if isinstance(value, str):
        return _BY_NAME.get(value.rpartition(".")[2].lower())
    try:
        dtype = np.dtype(value)
    except TypeError:
        return None
    return _BY_NAME.get(dtype.name) if dtype.isnative else None


def to_element(value: object) -> ElementKind:
    """Convert to an `ElementKind`, as `ElementKind.of` does (attrs converters are plain functions)."""
    return ElementKind.of(value)
