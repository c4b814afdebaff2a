"""What an emulated kernel's tensor maps hold: the description itself, as ``TensorMap`` of include/emulated/abi.h."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from quantplan.tensor_maps import MAP_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quantplan.tensor_maps import TensorMap

_MARK = 0x50414D524F534E54
_LAYOUT = struct.Struct("@2Q3Q2Q3I3I")


def encode(tensor_map: TensorMap, address: int) -> bytes:
    """Return the bytes of a map for an address."""
    encoded = _LAYOUT.pack(
        _MARK,
        address,
        *_innermost_first(tensor_map.shape, 3),
        *_innermost_first(tensor_map.pitches, 2),
        *_innermost_first(tensor_map.box, 3),
        len(tensor_map.shape),
        tensor_map.itemsize,
        tensor_map.swizzle,
    )
    return encoded.ljust(MAP_BYTES, b"\0")


def _innermost_first(extents: Sequence[int], count: int) -> tuple[int, ...]:
    return (*reversed(extents), 0, 0, 0)[:count]
