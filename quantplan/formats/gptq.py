"""GPTQ checkpoints, versions 1 and 2: qweight, qzeros, scales and g_idx of one layer.

    qweight [K / 8, N]  nibble i of word (r, n) is row 8 r + i:      ┌ 7 ┬ … ┬ 1 ┬ 0 ┐   eight rows of a column
    qzeros  [groups, N / 8]  nibble i of word (g, c) is column 8 c + i
    scales  [groups, N]
    g_idx   [K]         the group of each row

Version 1 stores every zero point less one, modulo 16: 0 is stored as 15. Version 2 stores it as it is. Nothing in the
tensors tells them apart; the checkpoint's ``checkpoint_format`` does: "gptq" is version 1, "gptq_v2" version 2.
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

_V1, _V2 = 1, 2
_ONE, _MASK = np.uint8(1), np.uint8(15)


def from_gptq(
    qweight: NDArray[Any] | None,
    qzeros: NDArray[Any] | None,
    scales: NDArray[Any] | None,
    g_idx: NDArray[Any] | None = None,
    *,
    version: int,
    group_size: int,
    bits: int = 4,
) -> Int4Weight:
    """Read the tensors of one layer.

    Parameters
    ----------
    qweight : ndarray of int32, shape (K / 8, N)
    qzeros : ndarray of int32, shape (groups, N / 8)
    scales : ndarray of float16, bfloat16 or float32, shape (groups, N)
    g_idx : ndarray of int32 or int64, shape (K,), optional
        The group of each row; None: ``k // group_size``.
    version : int
        1 or 2: how zero points are stored.
    group_size : int
        From the checkpoint's configuration; −1 for one group. Shapes alone do not determine it when the last group is
        smaller than the others.
    bits : int
        From the configuration; only 4 can be read.

    Returns
    -------
    Int4Weight
        Without zero points if they are all 8, and without g_idx if it only says ``k // group_size``.

    Raises
    ------
    InvalidProblem
        A tensor that is missing or does not fit the others; its name is the error's field.
    """
    frame = frame_of_gptq(qweight, qzeros, scales, g_idx, version=version, group_size=group_size, bits=bits)
    return frame.weight(unpack_words(_checks.tensor("from_gptq", "qweight", qweight, _checks.WORDS), 0))


def frame_of_gptq(
    qweight: NDArray[Any] | None,
    qzeros: NDArray[Any] | None,
    scales: NDArray[Any] | None,
    g_idx: NDArray[Any] | None = None,
    *,
    version: int,
    group_size: int,
    bits: int = 4,
) -> Int4Frame:
    """Check all that `from_gptq` checks, and read all but the codes; the parameters are the same."""
    op = "from_gptq"
    _checks.four_bits(op, bits)
    _check_version(op, version)
    words = _checks.tensor(op, "qweight", qweight, _checks.WORDS)
    k = _checks.size(op, "qweight", "K", PER_WORD * words.shape[0])
    n = _checks.size(op, "qweight", "N", words.shape[1])
    _checks.multiple(op, "qweight", "N", n, PER_WORD)  # qzeros has no room for part of a word
    groups = _checks.groups(op, k, group_size)
    scales = _checks.tensor(op, "scales", scales, _checks.SCALES)
    _checks.shape(op, "scales", scales, (groups, n), "(groups, N)")
    _checks.finite(op, "scales", scales)
    zero_words = _checks.tensor(op, "qzeros", qzeros, _checks.WORDS)
    _checks.shape(op, "qzeros", zero_words, (groups, n // PER_WORD), "(groups, N / 8)")
    if g_idx is not None:
        g_idx = _checks.group_index(op, "g_idx", g_idx, k, groups)

    zeros = unpack_words(zero_words, 1)
    if version == _V1:
        zeros = (zeros + _ONE) & _MASK
    return Int4Frame.simplest(k, n, scales=scales, zeros=zeros, g_idx=g_idx, group_size=group_size)


def to_gptq(weight: Int4Weight, *, version: int) -> dict[str, NDArray[Any]]:
    """Write the tensors of one layer, padding included.

    Parameters
    ----------
    weight : Int4Weight
        K and N multiples of 8.
    version : int
        1 or 2.

    Returns
    -------
    dict of str to ndarray
        ``qweight``, ``qzeros``, ``scales`` and ``g_idx``, under the names that `from_gptq` takes.
    """
    op = "to_gptq"
    _checks.instance(op, "weight", weight, Int4Weight)
    _check_version(op, version)
    _checks.multiple(op, "q", "K", weight.q.shape[0], PER_WORD)
    _checks.multiple(op, "q", "N", weight.q.shape[1], PER_WORD)
    zeros = weight.zero_points
    if version == _V1:
        zeros = (zeros - _ONE) & _MASK  # 0 − 1 wraps to 255, whose low nibble is the 15 that stands for 0
    return {
        "qweight": pack_words(weight.q, 0),
        "qzeros": pack_words(zeros, 1),
        "scales": weight.scales,
        "g_idx": weight.row_groups,
    }


def _check_version(op: str, version: object) -> None:
    number = _checks.integer(op, "version", version)
    if number not in (_V1, _V2):
        raise InvalidProblem(op=op, field="version", expected="1 or 2", got=number)
