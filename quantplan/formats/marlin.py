"""Marlin: 4-bit weights in the order in which tensor cores want them, so that a kernel loads and multiplies.

A tile is 16 rows of K by 64 columns of N. Each of its 128 words holds eight codes, and each of 32 lanes has four of
the words, one per 16 columns. Word j of lane l in tile (t, u) is ``packed[t, 128 u + 4 l + j]``. Its nibbles are

                     n = 64u + 16j + l div 4    … + 8
    k = 16t + r             nibble 0            nibble 2
    k = 16t + r + 1         nibble 4            nibble 6         r = 2 (l mod 4)
    k = 16t + r + 8         nibble 1            nibble 3
    k = 16t + r + 9         nibble 5            nibble 7

so rows 8 apart share a byte, and two mask operations turn a word into pairs of neighbours in K. Scales are permuted
within blocks of columns, so that a lane's own lie together.

Source: Frantar, Castro, Chen, Hoefler, Alistarh, "MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on Large
Language Models", https://arxiv.org/abs/2408.11743, and its packer, https://github.com/IST-DASLab/marlin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from quantplan.elements import ElementKind, to_element
from quantplan.errors import InvalidProblem
from quantplan.formats import _checks
from quantplan.formats._words import INTERLEAVED, octets_to_words, pack_words, unpack_words, words_to_octets
from quantplan.formats.int4 import Int4Weight, groups_in_order
from quantplan.record import field, to_integer

if TYPE_CHECKING:
    from numpy.typing import NDArray

TILE_K, TILE_N = 16, 64
"""Rows and columns of one tile: what K and N must be multiples of."""

SINGLE_N = 32
"""Columns over which the scales of a single group are permuted."""

_PAIRS = TILE_K // 2
_TILE_BYTES = _PAIRS * TILE_N
_BLOCK_BYTES = 1 << 20


def _byte_order() -> NDArray[np.intp]:
    """Return, for each byte of a packed tile, which byte of the (8, 64) pairs it is.

    The pair (i, n) is the byte whose low nibble is row i of the tile and whose high nibble is row i + 8.
    """
    lane, word, byte = np.ogrid[:32, :4, :4]
    pair = 2 * (lane % 4) + byte // 2
    column = 16 * word + lane // 4 + 8 * (byte % 2)
    order: NDArray[np.intp] = TILE_N * pair + column
    return order.ravel()


_TO_TILE = _byte_order()
_FROM_TILE = np.argsort(_TO_TILE)

_COLUMN = np.arange(TILE_N)
_GROUPED = 8 * (_COLUMN % 8) + _COLUMN // 8
_SINGLE = (2 * (_COLUMN // 8) + _COLUMN % 2 + 8 * (_COLUMN % 8 // 2))[:SINGLE_N]
"""Scales: stored column t of a block is original column ``order[t]``, for several groups and for one."""


@attrs.frozen(kw_only=True, eq=False, repr=False)
class MarlinWeight:
    """A 4-bit weight in Marlin's layout, with what a kernel needs beside it. `to_marlin` makes it.

    Parameters
    ----------
    weight_q : ndarray of int32, shape (K / 16, 2 N)
        Words of `pack_weight`, rows sorted by group.
    weight_scale : ndarray of float16, bfloat16 or float32, shape (groups, N)
        In the order of `pack_scales`.
    weight_zero_point : ndarray of int32, shape (groups, N / 8), optional
        Words of `pack_zeros`. None: symmetric, 8 everywhere.
    perm : ndarray of int32, shape (k,), optional
        Act-order: row i of the sorted weight belongs to column ``perm[i]`` of the activation, so a kernel gathers
        ``act[:, perm]`` while it loads. None: columns are in order.
    bias : ndarray, shape (n,), optional
        What a product adds; a checkpoint's linear may have one.
    group_size : int
        Rows per group; −1: one group.
    k, n : int
        Logical size; K and N are the padded one.
    """

    weight_q: NDArray[np.int32]
    weight_scale: NDArray[Any]
    weight_zero_point: NDArray[np.int32] | None = None
    perm: NDArray[np.int32] | None = None
    bias: NDArray[Any] | None = None
    group_size: int = field(to_integer)
    k: int = field(to_integer)
    n: int = field(to_integer)

    def operands(self) -> dict[str, NDArray[Any]]:
        """Return the weight's operands of Int4MarlinGemm under their names, without those that it does not have."""
        operands = {
            "weight_q": self.weight_q,
            "weight_scale": self.weight_scale,
            "weight_zero_point": self.weight_zero_point,
            "perm": self.perm,
            "bias": self.bias,
        }
        return {name: array for name, array in operands.items() if array is not None}

    def descriptor_fields(self) -> dict[str, Any]:
        """Return what Int4MarlinGemm's descriptor says about the weight, ``act_element`` excepted.

        That is the activations', and the element of the scales must be the same: see `to_marlin`. Whether there is a
        bias is said only where the weight has one: it may come from elsewhere.
        """
        bias = {} if self.bias is None else {"bias": True}
        return {
            "n": self.n,
            "k": self.k,
            "group_size": -1 if len(self.weight_scale) == 1 else self.group_size,
            "zero_point": self.weight_zero_point is not None,
            "act_order": self.perm is not None,
            **bias,
        }

    def __repr__(self) -> str:
        """Show what kind of weight it is, not its numbers."""
        kind = "symmetric" if self.weight_zero_point is None else "asymmetric"
        order = ", act-order" if self.perm is not None else ""
        return f"MarlinWeight(k={self.k}, n={self.n}, group_size={self.group_size}, {kind}{order})"


def to_marlin(weight: Int4Weight, *, scale_element: ElementKind | str | None = None) -> MarlinWeight:
    """Repack a weight. Rows are sorted by group, and keep their order within one.

    Parameters
    ----------
    weight : Int4Weight
        K a multiple of 16 and N of 64; `pad_to_supported` makes it so.
    scale_element : ElementKind or str, optional
        f16, bf16 or f32: what scales are rounded to. Kernels want that of the activations. None: as they are.

    Returns
    -------
    MarlinWeight
        The same numbers: codes and zero points are moved, never changed, and so are scales without ``scale_element``.

    Raises
    ------
    InvalidProblem
        A size that does not fit the tile, a g_idx with unequal groups, for which Marlin has no layout, or a scale
        beyond the range of ``scale_element``.
    """
    op = "to_marlin"
    _checks.instance(op, "weight", weight, Int4Weight)
    _check_tile(op, "q", *weight.q.shape)
    perm = None if weight.g_idx is None else sorting_permutation(op, weight.g_idx, weight.group_size)
    if perm is not None and perm[: weight.k].max() >= weight.k:
        raise InvalidProblem("padded rows must be in the last groups", op=op, field="g_idx")
    scales = cast(op, "scales", weight.scales, scale_element)
    return MarlinWeight(
        weight_q=pack_weight(weight.q if perm is None else weight.q[perm]),
        weight_scale=pack_scales(scales, weight.group_size),
        weight_zero_point=None if weight.zeros is None else pack_zeros(weight.zeros),
        perm=None if perm is None else perm[: weight.k],
        group_size=weight.group_size,
        k=weight.k,
        n=weight.n,
    )


def from_marlin(weight: MarlinWeight) -> Int4Weight:
    """Undo `to_marlin`: rows come back in the order of the activation's columns.

    Raises
    ------
    InvalidProblem
        Tensors that do not fit each other, or a perm that is no permutation.
    """
    op = "from_marlin"
    _checks.instance(op, "weight", weight, MarlinWeight)
    q = unpack_weight(weight.weight_q)
    rows = q.shape[0]
    _checks.groups(op, rows, weight.group_size)
    if not 1 <= weight.k <= rows:
        raise InvalidProblem(op=op, field="k", expected=f"from 1 to {rows}, the rows of weight_q", got=weight.k)
    g_idx = None
    if weight.perm is not None:
        perm = _checks.group_index(op, "perm", weight.perm, weight.k, weight.k)
        if np.bincount(perm, minlength=weight.k).max(initial=0) > 1:
            raise InvalidProblem(op=op, field="perm", expected="each column once", got="repeated columns")
        perm = np.concatenate([perm, np.arange(weight.k, rows, dtype=np.int32)])  # padded rows stay where they are
        sorted_q, q, g_idx = q, np.empty_like(q), np.empty_like(perm)
        q[perm] = sorted_q
        g_idx[perm] = groups_in_order(rows, weight.group_size)
    return Int4Weight(
        q=q,
        scales=unpack_scales(weight.weight_scale, weight.group_size),
        zeros=None if weight.weight_zero_point is None else unpack_zeros(weight.weight_zero_point),
        g_idx=g_idx,
        group_size=weight.group_size,
        k=weight.k,
        n=weight.n,
    )


def pack_weight(q: NDArray[Any]) -> NDArray[np.int32]:
    """Pack codes into Marlin's words.

    Parameters
    ----------
    q : ndarray of any integer dtype, shape (K, N)
        Codes from 0 to 15: unsigned with zero points, and value + 8 without. K a multiple of 16, N of 64.

    Returns
    -------
    ndarray of int32, shape (K / 16, 2 N)
    """
    op = "pack_weight"
    q = _checks.tensor(op, "q", q, _checks.INTEGERS)
    _check_tile(op, "q", *q.shape)
    _checks.codes(op, "q", q)
    k, n = q.shape
    tiles, columns = k // TILE_K, n // TILE_N
    halves = q.reshape(tiles, 2, _PAIRS, n)
    packed = np.empty((tiles, columns, _TILE_BYTES), np.uint8)
    for block in _blocks(tiles, n):
        low, high = halves[block, 0].astype(np.uint8, copy=False), halves[block, 1].astype(np.uint8)
        high <<= 4
        high |= low
        pairs = high.reshape(len(high), _PAIRS, columns, TILE_N).swapaxes(1, 2)
        packed[block] = pairs.reshape(len(high), columns, _TILE_BYTES).take(_TO_TILE, axis=2)
    return octets_to_words(packed.reshape(tiles, 2 * n, 4))


def unpack_weight(packed: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Undo `pack_weight`.

    Parameters
    ----------
    packed : ndarray of int32, shape (K / 16, 2 N)

    Returns
    -------
    ndarray of uint8, shape (K, N)
    """
    op = "unpack_weight"
    packed = _checks.tensor(op, "packed", packed, _checks.WORDS)
    tiles, width = packed.shape
    k, n = tiles * TILE_K, width // 2
    _checks.multiple(op, "packed", "2 N", width, 2 * TILE_N)
    octets = words_to_octets(packed).reshape(tiles, n // TILE_N, _TILE_BYTES)
    q = np.empty((k, n), np.uint8)
    halves = q.reshape(tiles, 2, _PAIRS, n)
    for block in _blocks(tiles, n):
        tile = octets[block].take(_FROM_TILE, axis=2)
        rows = tile.reshape(len(tile), n // TILE_N, _PAIRS, TILE_N).swapaxes(1, 2).reshape(len(tile), _PAIRS, n)
        np.bitwise_and(rows, 0xF, out=halves[block, 0])
        np.right_shift(rows, 4, out=halves[block, 1])
    return q


def pack_scales(scales: NDArray[Any], group_size: int) -> NDArray[Any]:
    """Permute scales into the order in which kernels read them.

    Parameters
    ----------
    scales : ndarray of float16, bfloat16 or float32, shape (groups, N)
        One row means one scale per column, whose order is another than that of several groups. N is a multiple of 64,
        and of 32 for one row.
    group_size : int
        −1 for one row; else 1 or more.

    Returns
    -------
    ndarray of the same dtype and shape
    """
    return _permute("pack_scales", scales, group_size, inverse=False)


def unpack_scales(scales: NDArray[Any], group_size: int) -> NDArray[Any]:
    """Undo `pack_scales`; the parameters are the same."""
    return _permute("unpack_scales", scales, group_size, inverse=True)


def pack_zeros(zeros: NDArray[Any]) -> NDArray[np.int32]:
    """Permute zero points as several groups' scales are, even those of one group, and pack them.

    Within each eight they are interleaved as the codes are, and packed along N, low nibble first.

    Parameters
    ----------
    zeros : ndarray of any integer dtype, shape (groups, N)
        From 0 to 15. N is a multiple of 64.

    Returns
    -------
    ndarray of int32, shape (groups, N / 8)
    """
    op = "pack_zeros"
    zeros = _checks.tensor(op, "zeros", zeros, _checks.INTEGERS)
    _checks.multiple(op, "zeros", "N", zeros.shape[1], TILE_N)
    _checks.codes(op, "zeros", zeros)
    return pack_words(_reorder(zeros.astype(np.uint8, copy=False), _GROUPED), 1, INTERLEAVED)


def unpack_zeros(packed: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Undo `pack_zeros`.

    Parameters
    ----------
    packed : ndarray of int32, shape (groups, N / 8)

    Returns
    -------
    ndarray of uint8, shape (groups, N)
    """
    op = "unpack_zeros"
    packed = _checks.tensor(op, "packed", packed, _checks.WORDS)
    _checks.multiple(op, "packed", "N", 8 * packed.shape[1], TILE_N)
    return _reorder(unpack_words(packed, 1, INTERLEAVED), np.argsort(_GROUPED))


def cast(op: str, name: str, values: NDArray[Any], element: object) -> NDArray[Any]:
    """Round finite scales, or a bias, to another element if one is given; refuse those that become infinite."""
    if element is None:
        return values
    try:
        kind = to_element(element)
    except InvalidProblem as error:
        error.op, error.field = op, "scale_element"
        raise
    if kind.dtype not in _checks.SCALES:
        raise InvalidProblem(op=op, field="scale_element", expected="f16, bf16 or f32", got=kind.value)
    with np.errstate(all="ignore"):
        rounded = values.astype(kind.dtype, copy=False)
    _checks.finite(op, name, rounded, f"{name} that are finite in {kind.value}")
    return rounded


def _permute(op: str, scales: NDArray[Any], group_size: int, *, inverse: bool) -> NDArray[Any]:
    scales = _checks.tensor(op, "scales", scales, _checks.SCALES)
    rows, columns = scales.shape
    _checks.groups(op, rows, group_size)
    if group_size == -1:
        _checks.shape(op, "scales", scales, (1, columns), "(1, N)")
    order = _SINGLE if rows == 1 else _GROUPED
    _checks.multiple(op, "scales", "N", columns, order.size)
    return _reorder(scales, np.argsort(order) if inverse else order)


def _reorder(matrix: NDArray[Any], order: NDArray[np.intp]) -> NDArray[Any]:
    """Return a contiguous copy whose columns are permuted within each block of ``order.size``."""
    rows, columns = matrix.shape
    blocks = matrix.reshape(rows, columns // order.size, order.size)
    return blocks.take(order, axis=2).reshape(rows, columns)


def _check_tile(op: str, field: str, k: int, n: int) -> None:
    _checks.multiple(op, field, "K", k, TILE_K)
    _checks.multiple(op, field, "N", n, TILE_N)


def _blocks(tiles: int, n: int) -> list[slice]:
    """Cut rows of tiles into blocks whose bytes stay in a core's cache between the steps."""
    step = max(1, _BLOCK_BYTES // (TILE_K * max(1, n)))
    return [slice(first, first + step) for first in range(0, tiles, step)]


def sorting_permutation(op: str, g_idx: NDArray[np.int32], group_size: int) -> NDArray[np.int32] | None:
    """Return the stable order that sorts g_idx, or None where it is sorted; refuse groups of unequal sizes."""
    perm = np.argsort(g_idx, kind="stable").astype(np.int32)
    expected = groups_in_order(g_idx.size, group_size)
    wrong = g_idx[perm] != expected
    if wrong.any():
        group = int(expected[int(np.argmax(wrong))])
        raise InvalidProblem(
            op=op,
            field="g_idx",
            expected=f"{np.count_nonzero(expected == group)} rows in group {group}",
            got=np.count_nonzero(g_idx == group),
            hint="Marlin's groups have equal sizes, but for a smaller last one",
        )
    return None if np.array_equal(perm, np.arange(perm.size)) else perm
