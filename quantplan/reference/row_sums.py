"""Sums along rows in one fixed order: folded in f32, as the kernels fold them.

A float sum has as many values as there are orders. This one is a function of the row's length alone, is short (so its
error bound is small), and is how a GPU adds: a row is cut into runs of eight neighbours, which are dealt out to lanes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RUN = 8
"""Neighbours that one lane adds first."""
WARP = 32
_RUNS_PER_LANE = 4
_MOST_LANES = 512


def row_lanes(k: int) -> int:
    """Return how many lanes share a row of k elements: about four runs each, at least a warp and at most 512."""
    wanted = -(-k // (RUN * _RUNS_PER_LANE))
    return min(max(WARP, 1 << max(0, wanted - 1).bit_length()), _MOST_LANES)


def additions(k: int) -> int:
    """Return how many additions a term of a row of k elements takes part in, at most."""
    lanes = row_lanes(k)
    return RUN.bit_length() - 1 + max(0, -(-k // (RUN * lanes)) - 1) + lanes.bit_length() - 1


def row_sums(terms: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sum of each row; every addition is rounded to f32.

    Run j belongs to lane j mod L, L = ``row_lanes(k)``. Each run is folded: its second half is added to its first,
    until one number is left. The runs of a lane are added in their order, then the lanes of each warp of 32 are
    folded, then the warps. Zeros stand behind the end of the row, and at last 0 is added: a sum of −0 is 0.

    Parameters
    ----------
    terms : ndarray of float32, shape (m, k)

    Returns
    -------
    ndarray of float32, shape (m,)
    """
    m, k = terms.shape
    lanes = row_lanes(k)
    turns = max(1, -(-k // (RUN * lanes)))
    padded = np.zeros((m, turns * lanes * RUN), np.float32)
    padded[:, :k] = terms
    with np.errstate(all="ignore"):
        runs = _fold(padded.reshape(m, turns, lanes, RUN))
        lane_sums = runs[:, 0]
        for turn in range(1, turns):
            lane_sums = lane_sums + runs[:, turn]
        total: NDArray[np.float32] = _fold(_fold(lane_sums.reshape(m, lanes // WARP, WARP))) + np.float32(0)
    return total


def _fold(values: NDArray[Any]) -> NDArray[Any]:
    """Add the second half of the last axis to the first until one number is left."""
    while (half := values.shape[-1] // 2) > 0:
        values = values[..., :half] + values[..., half:]
    return values[..., 0]
