"""Int4Weight: the one form in memory that every 4-bit checkpoint format is read into and written from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from quantplan.errors import InvalidProblem
from quantplan.formats import _checks
from quantplan.record import field, to_integer

if TYPE_CHECKING:
    from numpy.typing import NDArray

SYMMETRIC_ZERO = 8
"""The code of a real zero in a weight without zero points."""

_BLOCK = 1 << 20


def _stored(axis: int) -> Any:  # noqa: ANN401 - attrs.field's own type
    """Make the field of a logical size, by default the stored one; a q without that axis is refused afterwards."""
    return field(to_integer, attrs.Factory(lambda weight: (*np.shape(weight.q), 0, 0)[axis], takes_self=True))


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Int4Weight:
    """A 4-bit weight: ``w[k, n] = (q[k, n] − zeros[g, n]) · scales[g, n]``, where g is the group of row k.

    The arrays are kept as they are given, not copied, and may be views with any strides.

    Parameters
    ----------
    q : ndarray of uint8, shape (K, N)
        Codes from 0 to 15.
    scales : ndarray of float16, bfloat16 or float32, shape (groups, N)
        Finite. Zero and negative scales mean what they say.
    zeros : ndarray of uint8, shape (groups, N), optional
        Codes that stand for zero, from 0 to 15. None: symmetric, 8 everywhere.
    g_idx : ndarray of int32, shape (K,), optional
        The group of each row, in the order in which the activation's columns come. None: row k is in group
        ``k // group_size``.
    group_size : int
        Rows per group; the last one may be smaller. −1: one group for all rows.
    k, n : int, optional
        Logical size, below (K, N) in a weight that has been padded.
    """

    q: NDArray[np.uint8]
    scales: NDArray[Any]
    zeros: NDArray[np.uint8] | None = None
    g_idx: NDArray[np.int32] | None = None
    group_size: int = field(to_integer, -1)
    k: int = _stored(0)
    n: int = _stored(1)

    def __attrs_post_init__(self) -> None:
        """Refuse parts that do not fit each other."""
        op = "Int4Weight"
        q = _checks.tensor(op, "q", self.q, _checks.CODES)
        rows, columns = _checks.size(op, "q", "K", q.shape[0]), _checks.size(op, "q", "N", q.shape[1])
        _checks.codes(op, "q", q)
        expected = (_checks.groups(op, rows, self.group_size), columns)
        scales = _checks.tensor(op, "scales", self.scales, _checks.SCALES)
        _checks.shape(op, "scales", scales, expected, "(groups, N)")
        _checks.finite(op, "scales", scales)
        if self.zeros is not None:
            zeros = _checks.tensor(op, "zeros", self.zeros, _checks.CODES)
            _checks.shape(op, "zeros", zeros, expected, "(groups, N)")
            _checks.codes(op, "zeros", zeros)
        if self.g_idx is not None:
            object.__setattr__(self, "g_idx", _checks.group_index(op, "g_idx", self.g_idx, rows, expected[0]))
        for name, stored in (("k", rows), ("n", columns)):
            if not 1 <= getattr(self, name) <= stored:
                raise InvalidProblem(op=op, field=name, expected=f"from 1 to {stored}", got=getattr(self, name))

    @classmethod
    def simplest(
        cls,
        *,
        q: NDArray[np.uint8],
        scales: NDArray[Any],
        zeros: NDArray[np.uint8] | None = None,
        g_idx: NDArray[np.int32] | None = None,
        group_size: int,
    ) -> Int4Weight:
        """Make a weight without what says nothing: zero points that are all 8, and a g_idx that is ``k // group_size``.

        The weight is the same, and the kernels for it are simpler.
        """
        return Int4Frame.simplest(*q.shape, scales=scales, zeros=zeros, g_idx=g_idx, group_size=group_size).weight(q)

    @property
    def groups(self) -> int:
        """Number of groups, of stored rows."""
        return len(self.scales)

    @property
    def symmetric(self) -> bool:
        """Whether a real zero has code 8 everywhere."""
        return self.zeros is None

    @property
    def row_groups(self) -> NDArray[np.int32]:
        """The group of each stored row, whether or not there is a g_idx."""
        return groups_in_order(self.q.shape[0], self.group_size) if self.g_idx is None else self.g_idx

    @property
    def zero_points(self) -> NDArray[np.uint8]:
        """The zero points, shape (groups, N), whether or not they are all 8."""
        return np.full(self.scales.shape, SYMMETRIC_ZERO, np.uint8) if self.zeros is None else self.zeros

    def dequantize(self) -> NDArray[np.float32]:
        """Return the real weight, padding included.

        Returns
        -------
        ndarray of float32, shape (K, N)
            Each product rounded once: exact for float16 scales, and for bfloat16 ones that do not overflow.
        """
        weight = np.empty(self.q.shape, np.float32)
        scales, zeros, group = self.scales.astype(np.float32), self.zero_points, self.row_groups
        step = max(1, _BLOCK // self.q.shape[1])
        for first in range(0, self.q.shape[0], step):
            rows = slice(first, first + step)
            np.subtract(self.q[rows], zeros[group[rows]], out=weight[rows], dtype=np.float32)
            with np.errstate(all="ignore"):
                weight[rows] *= scales[group[rows]]
        return weight

    def __repr__(self) -> str:
        """Show what kind of weight it is, not its numbers."""
        kind = "symmetric" if self.symmetric else "asymmetric"
        order = ", act-order" if self.g_idx is not None else ""
        padded = f", padded to {self.q.shape}" if self.q.shape != (self.k, self.n) else ""
        return f"Int4Weight(k={self.k}, n={self.n}, group_size={self.group_size}, {kind}{order}{padded})"


@attrs.frozen(kw_only=True, eq=False)
class Int4Frame:
    """All of a weight but its codes: what can be told of a layer without unpacking its largest tensor.

    Parameters
    ----------
    k, n : int
    scales, zeros, g_idx, group_size : as for `Int4Weight`
    """

    k: int
    n: int
    scales: NDArray[Any]
    zeros: NDArray[np.uint8] | None
    g_idx: NDArray[np.int32] | None
    group_size: int

    @classmethod
    def simplest(
        cls,
        k: int,
        n: int,
        *,
        scales: NDArray[Any],
        zeros: NDArray[np.uint8] | None,
        g_idx: NDArray[np.int32] | None,
        group_size: int,
    ) -> Int4Frame:
        """Leave out what says nothing: see `Int4Weight.simplest`."""
        if zeros is not None and (zeros == SYMMETRIC_ZERO).all():
            zeros = None
        if g_idx is not None and np.array_equal(g_idx, groups_in_order(g_idx.size, group_size)):
            g_idx = None
        return cls(k=k, n=n, scales=scales, zeros=zeros, g_idx=g_idx, group_size=group_size)

    def weight(self, q: NDArray[np.uint8]) -> Int4Weight:
        """Return the weight with its codes."""
        return Int4Weight(q=q, scales=self.scales, zeros=self.zeros, g_idx=self.g_idx, group_size=self.group_size)


def groups_in_order(rows: int, group_size: int) -> NDArray[np.int32]:
    """Return the group of each row when groups are runs of ``group_size`` rows; −1: all are in one."""
    if group_size == -1:
        return np.zeros(rows, np.int32)
    return np.arange(rows, dtype=np.int32) // np.int32(group_size)
