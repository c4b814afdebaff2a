"""AWQ checkpoints: qweight, qzeros and scales of one layer.

    qweight [K, N / 8]       nibble p of word (k, c) is column 8 c + I[p],  I = 0 2 4 6 1 3 5 7
    qzeros  [groups, N / 8]  the same order; zero points are stored as they are
    scales  [groups, N]

A word packs along N, while GPTQ's packs along K. Rows are in order: there is no g_idx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quantplan.errors import InvalidProblem
from quantplan.formats import _checks
from quantplan.formats._words import INTERLEAVED, PER_WORD, pack_words, unpack_words
from quantplan.formats.int4 import Int4Frame, Int4Weight

if TYPE_CHECKING:
    from numpy.typing import NDArray


def from_awq(
    qweight: NDArray[Any] | None,
    qzeros: NDArray[Any] | None,
    scales: NDArray[Any] | None,
    *,
    group_size: int,
    bits: int = 4,
) -> Int4Weight:
    """Read the tensors of one layer.

    Parameters
    ----------
    qweight : ndarray of int32, shape (K, N / 8)
    qzeros : ndarray of int32, shape (groups, N / 8)
    scales : ndarray of float16, bfloat16 or float32, shape (groups, N)
    group_size : int
        From the checkpoint's configuration; −1 for one group.
    bits : int
        From the configuration; only 4 can be read.

    Returns
    -------
    Int4Weight
        Without zero points if they are all 8.

    Raises
    ------
    InvalidProblem
        A tensor that is missing or does not fit the others; its name is the error's field.
    """
    frame = frame_of_awq(qweight, qzeros, scales, group_size=group_size, bits=bits)
    return frame.weight(unpack_words(_checks.tensor("from_awq", "qweight", qweight, _checks.WORDS), 1, INTERLEAVED))


def frame_of_awq(
    qweight: NDArray[Any] | None,
    qzeros: NDArray[Any] | None,
    scales: NDArray[Any] | None,
    *,
    group_size: int,
    bits: int = 4,
) -> Int4Frame:
    """Check all that `from_awq` checks, and read all but the codes; the parameters are the same."""
    op = "from_awq"
    _checks.four_bits(op, bits)
    words = _checks.tensor(op, "qweight", qweight, _checks.WORDS)
    k = _checks.size(op, "qweight", "K", words.shape[0])
    n = _checks.size(op, "qweight", "N", PER_WORD * words.shape[1])
    groups = _checks.groups(op, k, group_size)
    scales = _checks.tensor(op, "scales", scales, _checks.SCALES)
    _checks.shape(op, "scales", scales, (groups, n), "(groups, N)")
    _checks.finite(op, "scales", scales)
    zero_words = _checks.tensor(op, "qzeros", qzeros, _checks.WORDS)
    _checks.shape(op, "qzeros", zero_words, (groups, n // PER_WORD), "(groups, N / 8)")
    zeros = unpack_words(zero_words, 1, INTERLEAVED)
    return Int4Frame.simplest(k, n, scales=scales, zeros=zeros, g_idx=None, group_size=group_size)


def to_awq(weight: Int4Weight) -> dict[str, NDArray[Any]]:
    """Write the tensors of one layer, padding included.

    Parameters
    ----------
    weight : Int4Weight
        N a multiple of 8, rows in order.

    Returns
    -------
    dict of str to ndarray
        ``qweight``, ``qzeros`` and ``scales``, under the names that `from_awq` takes.
    """
    op = "to_awq"
    _checks.instance(op, "weight", weight, Int4Weight)
    _checks.multiple(op, "q", "N", weight.q.shape[1], PER_WORD)
    if weight.g_idx is not None:
        raise InvalidProblem("AWQ has no act-order", op=op, field="g_idx", expected="None", got="one")
    return {
        "qweight": pack_words(weight.q, 1, INTERLEAVED),
        "qzeros": pack_words(weight.zero_points, 1, INTERLEAVED),
        "scales": weight.scales,
    }
