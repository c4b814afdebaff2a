"""What the recipes ask of their arguments: each refusal is an `InvalidProblem` that names the op and the field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem
from quantplan.record import to_number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


def floats(op: str, field: str, value: object) -> NDArray[Any]:
    """Take an array of f32, f16, bf16 or f64, of any shape."""
    if not isinstance(value, np.ndarray):
        raise InvalidProblem(op=op, field=field, expected="a NumPy array", got=type(value).__name__)
    kind = ElementKind.find(value.dtype)
    if kind is None or not kind.is_float:
        raise InvalidProblem(op=op, field=field, expected="f32, f16, bf16 or f64", got=value.dtype)
    return value


def matrix(op: str, field: str, value: object, columns: int | None = None) -> NDArray[Any]:
    """Take a matrix of floats, with a number of columns if one is given."""
    array = floats(op, field, value)
    if array.ndim != 2 or columns not in (None, array.shape[1]):  # noqa: PLR2004 - a matrix
        wanted = "K" if columns is None else f"K={columns}"
        raise InvalidProblem(op=op, field=field, expected=f"shape (N, {wanted})", got=array.shape)
    return array


def vector(op: str, field: str, value: object, length: int | None = None) -> NDArray[Any]:
    """Take a vector of floats, of a length if one is given."""
    array = floats(op, field, value)
    if array.ndim != 1 or length not in (None, len(array)):
        wanted = "K" if length is None else f"K={length}"
        raise InvalidProblem(op=op, field=field, expected=f"shape ({wanted},)", got=array.shape)
    return array


def finite(op: str, field: str, array: NDArray[Any]) -> NDArray[Any]:
    """Take an array without NaN and infinities, which may come from an overflow too."""
    if not np.isfinite(array).all():
        raise InvalidProblem(op=op, field=field, expected="finite values", got="NaN, an infinity, or an overflow")
    return array


def listed(op: str, field: str, value: object) -> Sequence[Any]:
    """Take a list or a tuple."""
    if not isinstance(value, (list, tuple)):
        raise InvalidProblem(op=op, field=field, expected="a list", got=type(value).__name__)
    return value


def number(op: str, field: str, value: object) -> float:
    """Take a Python or NumPy real number."""
    result: float = converted(op, field, to_number, value)
    return result


def converted(op: str, field: str, convert: Callable[[Any], Any], value: object) -> Any:  # noqa: ANN401 - the converter's
    """Convert a parameter, and name it where that fails."""
    try:
        return convert(value)
    except InvalidProblem as error:
        error.op, error.field = op, field
        raise


def fp8(op: str, element: object) -> ElementKind:
    """Take FP8_E4M3 or FP8_E5M2."""
    kind = ElementKind.find(element)
    if kind is None or not kind.is_fp8:
        got = getattr(element, "value", repr(element))
        raise InvalidProblem(op=op, field="element", expected="fp8_e4m3 or fp8_e5m2", got=got)
    return kind
