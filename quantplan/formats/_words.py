"""Eight 4-bit codes to an int32 word, along either axis: what the words of all checkpoint formats have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PER_WORD = 8
IN_ORDER = range(PER_WORD)
INTERLEAVED = (0, 2, 4, 6, 1, 3, 5, 7)
"""Nibble p holds code ``INTERLEAVED[p]``: a shift by 16 bits and one mask then give neighbours as a pair of halves."""


def pack_words(codes: NDArray[Any], axis: int, order: Sequence[int] = IN_ORDER) -> NDArray[np.int32]:
    """Pack codes 0 … 15, eight neighbours along an axis to a word.

    Parameters
    ----------
    codes : ndarray of uint8, shape (r, c)
        The size along ``axis`` is a multiple of 8.
    axis : int
        0 or 1.
    order : sequence of int
        Nibble p, counted from the lowest, holds the code ``order[p]`` of the eight.

    Returns
    -------
    ndarray of int32, shape (r / 8, c) or (r, c / 8)
    """
    eights = _eights(codes, axis)
    octets = np.empty((*eights.shape[1:], 4), np.uint8)  # the bytes of each word, lowest first, on every machine
    for byte in range(4):
        np.left_shift(eights[order[2 * byte + 1]], 4, out=octets[..., byte])
        octets[..., byte] |= eights[order[2 * byte]]
    return octets_to_words(octets)


def unpack_words(words: NDArray[np.int32], axis: int, order: Sequence[int] = IN_ORDER) -> NDArray[np.uint8]:
    """Undo `pack_words`.

    Parameters
    ----------
    words : ndarray of int32, shape (r, c)
    axis, order : as for `pack_words`

    Returns
    -------
    ndarray of uint8, shape (8 r, c) or (r, 8 c)
    """
    octets = words_to_octets(words)
    rows, columns = words.shape
    codes = np.empty((PER_WORD * rows, columns) if axis == 0 else (rows, PER_WORD * columns), np.uint8)
    eights = _eights(codes, axis)
    for byte in range(4):
        np.bitwise_and(octets[..., byte], 0xF, out=eights[order[2 * byte]])
        np.right_shift(octets[..., byte], 4, out=eights[order[2 * byte + 1]])
    return codes


def octets_to_words(octets: NDArray[np.uint8]) -> NDArray[np.int32]:
    """View bytes (…, 4), lowest first, as the words (…) that they are; on a big-endian machine, copy them."""
    return octets.view("<i4")[..., 0].astype(np.int32, copy=False)


def words_to_octets(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """View words (…) as their bytes (…, 4), lowest first; words that are not contiguous are copied."""
    return np.ascontiguousarray(words, "<i4")[..., np.newaxis].view(np.uint8)


def _eights(codes: NDArray[Any], axis: int) -> NDArray[Any]:
    """View codes as (8, …): item i is the i-th of each eight neighbours."""
    rows, columns = codes.shape
    if axis == 0:
        return codes.reshape(rows // PER_WORD, PER_WORD, columns).transpose(1, 0, 2)
    return codes.reshape(rows, columns // PER_WORD, PER_WORD).transpose(2, 0, 1)
