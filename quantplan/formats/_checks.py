"""What tensors of a checkpoint must satisfy before anything is computed from them, or allocated for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from quantplan.errors import InvalidProblem
from quantplan.record import to_integer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MAX_DIMENSION = 2**31 - 1
MAX_CODE = 15
HINT = "pad_to_supported in quantplan.formats.padding pads K and N"

WORDS = (np.dtype(np.int32),)
CODES = (np.dtype(np.uint8),)
INDICES = (np.dtype(np.int32), np.dtype(np.int64))
SCALES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32))
INTEGERS = tuple(np.dtype(kind) for kind in "bBhHiIlLqQ")


def instance(op: str, field: str, value: object, kind: type) -> None:
    """Refuse what is not the weight that a function takes."""
    if not isinstance(value, kind):
        raise InvalidProblem(op=op, field=field, expected=f"a {kind.__name__}", got=type(value).__name__)


def integer(op: str, field: str, value: object) -> int:
    """Return a Python or NumPy integer as int; refuse everything else, booleans and arrays of several too."""
    try:
        return to_integer(value)
    except InvalidProblem as error:
        error.op, error.field = op, field
        raise


def tensor(op: str, field: str, value: object, dtypes: Sequence[np.dtype[Any]], ndim: int | None = 2) -> NDArray[Any]:
    """Return a tensor that is there, has one of the element types and ``ndim`` axes, and really holds its elements.

    Memory for results is allocated in proportion to the shapes of the tensors. A view that repeats its elements (a
    stride of zero, say) claims far more of them than it holds, so it is refused.
    """
    if value is None:
        raise InvalidProblem("missing", op=op, field=field)
    if not isinstance(value, np.ndarray):
        raise InvalidProblem(op=op, field=field, expected="a NumPy array", got=type(value).__name__)
    if value.dtype not in dtypes:
        names = " or ".join(dict.fromkeys(dtype.name for dtype in dtypes))
        raise InvalidProblem(op=op, field=field, expected=names, got=value.dtype)
    if ndim is not None and value.ndim != ndim:
        raise InvalidProblem(op=op, field=field, expected=f"{ndim} axes", got=f"shape {value.shape}")
    low, high = np.lib.array_utils.byte_bounds(value)
    if value.size and high - low < value.nbytes:
        claimed = f"{value.nbytes} bytes of elements in {high - low} bytes of memory"
        raise InvalidProblem(op=op, field=field, expected="elements that do not overlap", got=claimed)
    return value


def shape(op: str, field: str, value: NDArray[Any], expected: tuple[int, ...], meaning: str) -> None:
    """Refuse a tensor of another shape; ``meaning`` says in symbols what the expected one stands for."""
    if value.shape != expected:
        raise InvalidProblem(op=op, field=field, expected=f"shape {meaning} = {expected}", got=value.shape)


def size(op: str, field: str, name: str, value: int) -> int:
    """Return K or N if it is at least 1 and fits in 31 bits; ``field`` is the tensor whose shape it comes from."""
    if not 1 <= value <= MAX_DIMENSION:
        raise InvalidProblem(op=op, field=field, expected=f"{name} from 1 to {MAX_DIMENSION}", got=f"{name}={value}")
    return value


def multiple(op: str, field: str, name: str, value: int, of: int) -> None:
    """Refuse a K or N that is no multiple of what a layout needs."""
    if value % of:
        raise InvalidProblem(
            op=op, field=field, expected=f"{name} a multiple of {of}", got=f"{name}={value}", hint=HINT
        )


def groups(op: str, k: int, group_size: object) -> int:
    """Return the number of groups that K is cut into; −1 stands for one group, as long as K."""
    number = integer(op, "group_size", group_size)
    if number == -1:
        return 1
    if not 1 <= number <= MAX_DIMENSION:
        raise InvalidProblem(op=op, field="group_size", expected=f"-1, or from 1 to {MAX_DIMENSION}", got=number)
    return -(-k // number)


def four_bits(op: str, bits: object) -> None:
    """Refuse every width but 4, which is the only one whose layouts are known here."""
    number = integer(op, "bits", bits)
    if number != 4:  # noqa: PLR2004 - the width
        raise InvalidProblem(op=op, field="bits", expected=4, got=number)


def codes(op: str, field: str, value: NDArray[Any]) -> None:
    """Refuse values that four bits do not hold."""
    _within(op, field, value, MAX_CODE)


def group_index(op: str, field: str, value: object, k: int, count: int) -> NDArray[np.int32]:
    """Return g_idx, the group of each of the K rows, if every entry names one of the groups."""
    g_idx = tensor(op, field, value, INDICES, ndim=1)
    shape(op, field, g_idx, (k,), "(K,)")
    _within(op, field, g_idx, count - 1)
    return g_idx.astype(np.int32, copy=False)


def finite(op: str, field: str, value: NDArray[Any], expected: str = "finite scales") -> None:
    """Refuse NaN and infinities, with the words for what is expected instead.

    One of them as a scale makes whole columns NaN, and ``(q − z) · scale`` would no longer be zero in padding.
    """
    good = np.isfinite(value)
    if not good.all():
        where = np.unravel_index(int(np.argmin(good)), value.shape)
        got = f"{value[where]} at {tuple(int(i) for i in where)}"
        raise InvalidProblem(op=op, field=field, expected=expected, got=got)


def _within(op: str, field: str, value: NDArray[Any], largest: int) -> None:
    if not value.size:
        return
    low, high = int(value.min()), int(value.max())
    if low < 0 or high > largest:
        raise InvalidProblem(op=op, field=field, expected=f"values from 0 to {largest}", got=low if low < 0 else high)
