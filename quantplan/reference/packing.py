"""4-bit storage: two codes to a byte along the last axis, low nibble first, an odd tail padded with zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pack_nibbles(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """Pack 4-bit codes, one to an item, into bytes.

    Parameters
    ----------
    codes : ndarray of int8 or uint8, shape (m, k)
        Only the low four bits of each item count: a negative S4 value is its own two's complement.

    Returns
    -------
    ndarray of uint8, shape (m, ceil(k / 2))
    """
    nibbles: NDArray[np.uint8] = codes.view(np.uint8) & np.uint8(0xF)
    packed = nibbles[:, ::2].copy()
    odd = nibbles[:, 1::2]
    packed[:, : odd.shape[1]] |= odd << 4
    return packed


def unpack_nibbles(packed: NDArray[np.uint8], k: int, *, signed: bool = False) -> NDArray[Any]:
    """Unpack bytes into 4-bit codes, one to an item.

    Parameters
    ----------
    packed : ndarray of uint8, shape (m, ceil(k / 2))
    k : int
        Number of codes per row; the padding nibble of an odd ``k`` is dropped.
    signed : bool
        Read them as two's complement, −8 … 7.

    Returns
    -------
    ndarray of int8 if signed, else uint8, shape (m, k)
    """
    codes = np.empty((packed.shape[0], k), dtype=np.uint8)
    codes[:, ::2] = packed & 0xF
    codes[:, 1::2] = packed[:, : k // 2] >> 4
    if not signed:
        return codes
    codes <<= 4
    values = codes.view(np.int8)
    values >>= 4  # an arithmetic shift: it copies the sign bit
    return values
