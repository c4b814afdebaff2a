"""Padding: weights of any size, made to fit the tiles of kernels without changing a single result.

A padded weight is zero exactly, not approximately. Its code equals its zero point, so that ``(q − z) · scale`` is
``0 · scale``, and every scale is finite. Padded columns only add outputs, which nobody reads. The logical K and N stay
with the weight: callers pad neither activations nor outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantplan.errors import InvalidProblem
from quantplan.formats import _checks
from quantplan.formats.int4 import SYMMETRIC_ZERO, Int4Weight, groups_in_order
from quantplan.formats.marlin import TILE_N

if TYPE_CHECKING:
    from numpy.typing import NDArray

TILE = TILE_N
"""What K and N are padded to multiples of: the columns of a Marlin tile, and kernels step through K by as many.

(The Marlin layout by itself needs K to be a multiple of 16.)
"""

_LARGEST_TILE = 4096


def padded_size(size: int) -> int:
    """Return the K or N of a padded weight, by the logical one: the next multiple of the tile."""
    return -(-size // TILE) * TILE


def pad_to_supported(weight: Int4Weight, *, k_multiple: int = TILE, n_multiple: int = TILE) -> Int4Weight:
    """Pad K and N of a weight up to a multiple of the tile.

    Padded rows come after all others: in the last group while it has room, then in groups of their own. New groups and
    columns get scale 1 and zero point 8. A weight of one group keeps one.

    Parameters
    ----------
    weight : Int4Weight
    k_multiple, n_multiple : int
        Tile, up to 4096; what kernels take by default.

    Returns
    -------
    Int4Weight
        The same ``k`` and ``n``, and a larger ``q``. A weight that fits is returned as it is.

    Raises
    ------
    InvalidProblem
        A tile that is none, or a padded K or N beyond 31 bits.
    """
    op = "pad_to_supported"
    _checks.instance(op, "weight", weight, Int4Weight)
    rows, columns = weight.q.shape
    padded_rows = _checks.size(op, "q", "padded K", _round_up(rows, k_multiple, "k_multiple"))
    padded_columns = _checks.size(op, "q", "padded N", _round_up(columns, n_multiple, "n_multiple"))
    if (padded_rows, padded_columns) == (rows, columns):
        return weight
    # One group stays one group, so that its scales keep the layout that the logical K gives them.
    group_size = -1 if weight.groups == 1 else weight.group_size
    groups = _checks.groups(op, padded_rows, group_size)

    scales = np.ones((groups, padded_columns), weight.scales.dtype)
    scales[: weight.groups, :columns] = weight.scales
    row_groups = groups_in_order(padded_rows, group_size)
    row_groups[:rows] = weight.row_groups
    q = np.full((padded_rows, padded_columns), SYMMETRIC_ZERO, np.uint8)
    q[:rows, :columns] = weight.q
    zeros: NDArray[np.uint8] | None = None
    if weight.zeros is not None:
        zeros = np.full(scales.shape, SYMMETRIC_ZERO, np.uint8)
        zeros[: weight.groups, :columns] = weight.zeros
        q[rows:] = zeros[row_groups[rows:]]
    return Int4Weight(
        q=q,
        scales=scales,
        zeros=zeros,
        g_idx=None if weight.g_idx is None else row_groups,
        group_size=group_size,
        k=weight.k,
        n=weight.n,
    )


def remove_padding(weight: Int4Weight) -> Int4Weight:
    """Return the logical part of a padded weight, as views; one without padding is returned as it is."""
    op = "remove_padding"
    _checks.instance(op, "weight", weight, Int4Weight)
    if weight.q.shape == (weight.k, weight.n):
        return weight
    groups = _checks.groups(op, weight.k, weight.group_size)
    return Int4Weight(
        q=weight.q[: weight.k, : weight.n],
        scales=weight.scales[:groups, : weight.n],
        zeros=None if weight.zeros is None else weight.zeros[:groups, : weight.n],
        g_idx=None if weight.g_idx is None else weight.g_idx[: weight.k],
        group_size=weight.group_size,
    )


def _round_up(size: int, tile: object, field: str) -> int:
    number = _checks.integer("pad_to_supported", field, tile)
    if not 1 <= number <= _LARGEST_TILE:
        raise InvalidProblem(op="pad_to_supported", field=field, expected=f"from 1 to {_LARGEST_TILE}", got=number)
    return -(-size // number) * number
