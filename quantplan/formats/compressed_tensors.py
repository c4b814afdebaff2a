"""compressed-tensors, format "pack-quantized": weight_packed, weight_scale and their companions of one layer.

    weight_packed     [N, ⌈K / 8⌉]       nibble i of word (n, c) is column 8 c + i of row n: value + 8
    weight_scale      [N, groups]
    weight_zero_point [⌈N / 8⌉, groups]  nibble i of word (r, g) is row 8 r + i: value + 8; absent if symmetric
    weight_g_idx      [K]                the group of each k; absent without act-order
    weight_shape      [2]                N and K, which padding in the last words hides

Values are signed, −8 … 7, and stored with 8 added: the codes of every other format. All tensors are the transposes of
what `Int4Weight` holds, which is why its arrays are then views.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.errors import InvalidProblem
from quantplan.formats import _checks
from quantplan.formats._words import PER_WORD, pack_words, unpack_words
from quantplan.formats.int4 import Int4Frame, Int4Weight

if TYPE_CHECKING:
    from numpy.typing import NDArray


def from_compressed_tensors(
    weight_packed: NDArray[Any] | None,
    weight_scale: NDArray[Any] | None,
    weight_zero_point: NDArray[Any] | None = None,
    weight_g_idx: NDArray[Any] | None = None,
    weight_shape: NDArray[Any] | None = None,
    *,
    group_size: int,
    bits: int = 4,
) -> Int4Weight:
    """Read the tensors of one layer.

    Parameters
    ----------
    weight_packed : ndarray of int32, shape (N, ceil(K / 8))
    weight_scale : ndarray of float16, bfloat16 or float32, shape (N, groups)
    weight_zero_point : ndarray of int32, shape (ceil(N / 8), groups), optional
        None: symmetric.
    weight_g_idx : ndarray of int32 or int64, shape (K,), optional
        None: ``k // group_size``.
    weight_shape : ndarray of int32 or int64, shape (2,), optional
        N and K. None: K is 8 times the words of a row.
    group_size : int
        From the checkpoint's configuration; −1 for one group.
    bits : int
        From the configuration; only 4 can be read.

    Returns
    -------
    Int4Weight
        Of transposed views, without zero points if they are all 8.

    Raises
    ------
    InvalidProblem
        A tensor that is missing or does not fit the others; its name is the error's field.
    """
    frame = frame_of_compressed_tensors(
        weight_packed,
        weight_scale,
        weight_zero_point,
        weight_g_idx,
        weight_shape,
        group_size=group_size,
        bits=bits,
    )
    words = _checks.tensor("from_compressed_tensors", "weight_packed", weight_packed, _checks.WORDS)
    return frame.weight(unpack_words(words, 1)[:, : frame.k].T)


def frame_of_compressed_tensors(
    weight_packed: NDArray[Any] | None,
    weight_scale: NDArray[Any] | None,
    weight_zero_point: NDArray[Any] | None = None,
    weight_g_idx: NDArray[Any] | None = None,
    weight_shape: NDArray[Any] | None = None,
    *,
    group_size: int,
    bits: int = 4,
) -> Int4Frame:
    """Check all that `from_compressed_tensors` checks, and read all but the codes; the parameters are the same."""
    op = "from_compressed_tensors"
    _checks.four_bits(op, bits)
    words = _checks.tensor(op, "weight_packed", weight_packed, _checks.WORDS)
    n = _checks.size(op, "weight_packed", "N", words.shape[0])
    k = _checks.size(op, "weight_packed", "K", PER_WORD * words.shape[1])
    if weight_shape is not None:
        k = _logical_k(op, weight_shape, n, k)
    groups = _checks.groups(op, k, group_size)
    scale = _checks.tensor(op, "weight_scale", weight_scale, _checks.SCALES)
    _checks.shape(op, "weight_scale", scale, (n, groups), "(N, groups)")
    _checks.finite(op, "weight_scale", scale)
    zero_words = None
    if weight_zero_point is not None:
        zero_words = _checks.tensor(op, "weight_zero_point", weight_zero_point, _checks.WORDS)
        _checks.shape(op, "weight_zero_point", zero_words, (-(-n // PER_WORD), groups), "(⌈N / 8⌉, groups)")
    g_idx = None
    if weight_g_idx is not None:
        g_idx = _checks.group_index(op, "weight_g_idx", weight_g_idx, k, groups)
    return Int4Frame.simplest(
        k,
        n,
        scales=scale.T,
        zeros=None if zero_words is None else unpack_words(zero_words, 0)[:n].T,
        g_idx=g_idx,
        group_size=group_size,
    )


def to_compressed_tensors(weight: Int4Weight) -> dict[str, NDArray[Any]]:
    """Write the tensors of one layer, padding included.

    Returns
    -------
    dict of str to ndarray
        ``weight_packed``, ``weight_scale`` and ``weight_shape``; ``weight_zero_point`` of an asymmetric weight, and
        ``weight_g_idx`` of one with act-order. The names are those that `from_compressed_tensors` takes.
    """
    _checks.instance("to_compressed_tensors", "weight", weight, Int4Weight)
    k, n = weight.q.shape
    tensors: dict[str, NDArray[Any]] = {
        "weight_packed": pack_words(_whole_words(weight.q.T, 1), 1),
        "weight_scale": np.ascontiguousarray(weight.scales.T),
        "weight_shape": np.array([n, k], np.int64),
    }
    if weight.zeros is not None:
        tensors["weight_zero_point"] = pack_words(_whole_words(weight.zeros.T, 0), 0)
    if weight.g_idx is not None:
        tensors["weight_g_idx"] = weight.g_idx
    return tensors


def _logical_k(op: str, weight_shape: object, n: int, stored: int) -> int:
    """Return K from weight_shape, if it says the N that there is and a K that ends in the last words."""
    sizes = _checks.tensor(op, "weight_shape", weight_shape, _checks.INDICES, ndim=1)
    _checks.shape(op, "weight_shape", sizes, (2,), "(2,)")
    rows, k = int(sizes[0]), int(sizes[1])
    if rows != n or not stored - PER_WORD < k <= stored:
        expected = f"N = {n} and K from {stored - PER_WORD + 1} to {stored}, as weight_packed has"
        raise InvalidProblem(op=op, field="weight_shape", expected=expected, got=f"{rows} and {k}")
    return k


def _whole_words(codes: NDArray[np.uint8], axis: int) -> NDArray[np.uint8]:
    """Return codes that fill whole words along an axis, the missing ones zero."""
    missing = -codes.shape[axis] % PER_WORD
    if not missing:
        return codes
    return np.pad(codes, [(0, missing if i == axis else 0) for i in range(2)])
