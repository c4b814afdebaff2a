"""Where a 4-bit weight's numbers lie in Marlin's words, by the layout's formula: what `quantplan.formats` is held to.

For tile row t, tile column u, lane l of 32 and word j of 4, nibble p of word [t, 128 u + 4 l + j] is the code at

    k = 16 t + 2 (l mod 4) + v₀ + 8 v₁        n = 64 u + 16 j + l div 4 + 8 v₂        v = v₂v₁v₀ = _INTERLEAVE[p]

Here it is read backwards: from k and n to the word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantplan.elements import ElementKind
from quantplan.verify.tensors import HostTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Place = tuple[int, int]
    """Index of a word, and how far its nibble lies from the right in bits."""

_INTERLEAVE = (0, 2, 4, 6, 1, 3, 5, 7)
_BLOCK = 64
_SINGLE_BLOCK = 32
_SINGLE_ORDER = [2 * (t // 8) + t % 2 + 8 * (t % 8 // 2) for t in range(_SINGLE_BLOCK)]
"""Stored scale t of a block is that of column ``order[t]``, where there is one row of scales."""


def code_place(k: int, n: int, padded_n: int) -> Place:
    """Return where the code of row k and column n lies."""
    low, pair, half = k % 2, k % 8 // 2, k % 16 // 8
    word, eight, lane_row = n % 64 // 16, n % 16 // 8, n % 8
    column = 128 * (n // 64) + 4 * (4 * lane_row + pair) + word
    return k // 16 * 2 * padded_n + column, 4 * _INTERLEAVE.index(4 * eight + 2 * half + low)


def zero_place(group: int, n: int, padded_n: int) -> Place:
    """Return where the zero point of a group and column n lies: in the order of several groups' scales, interleaved."""
    stored = scale_place(n, single=False)
    return group * padded_n // 8 + stored // 8, 4 * _INTERLEAVE.index(stored % 8)


def scale_place(n: int, *, single: bool) -> int:
    """Return which stored scale of its row is that of column n."""
    if single:
        return n - n % _SINGLE_BLOCK + _SINGLE_ORDER.index(n % _SINGLE_BLOCK)
    column = n % _BLOCK
    return n - column + 8 * (column % 8) + column // 8


def pack(rows: Sequence[Sequence[int]], shape: tuple[int, int], place: Callable[[int, int, int], Place]) -> HostTensor:
    """Return the words that hold a padded matrix of codes from 0 to 15."""
    words = [0] * (shape[0] * shape[1])
    for i, row in enumerate(rows):
        for n, code in enumerate(row):
            word, shift = place(i, n, len(row))
            words[word] |= code << shift
    return HostTensor(ElementKind.S32, shape, words)


def unpack(
    words: HostTensor, rows: int, columns: int, padded_n: int, place: Callable[[int, int, int], Place]
) -> list[list[int]]:
    """Return the logical part of a padded matrix of codes."""
    places = ((place(i, n, padded_n) for n in range(columns)) for i in range(rows))
    return [[words.codes[word] >> shift & 0xF for word, shift in row] for row in places]


def pack_scales(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return rows of scales in the stored order, one row after the other."""
    single = len(rows) == 1
    stored = [0.0] * sum(map(len, rows))
    for g, row in enumerate(rows):
        for n, scale in enumerate(row):
            stored[g * len(row) + scale_place(n, single=single)] = scale
    return stored


def unpack_scales(scales: HostTensor, columns: int) -> list[list[float]]:
    """Return the first columns' scales, a list per group."""
    groups, width = scales.shape[0], scales.shape[1]
    order = [scale_place(n, single=groups == 1) for n in range(columns)]
    return [[scales.values[g * width + stored] for stored in order] for g in range(groups)]
