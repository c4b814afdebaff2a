"""Which SKUs are attacked where an op has thousands: few, among which all meet that may disturb each other."""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

STRENGTH = 3
"""How many parts of a SKU meet wherever they can: a tile and its scales, which make a bound, with each part besides."""


def covering(skus: Sequence[Sequence[str]], strength: int = STRENGTH) -> list[int]:
    """Return the places of few SKUs that have together whatever any SKU has together.

    Parameters
    ----------
    skus : sequence of sequence of str
        The parts of each: variant, elements, activation, and so on, in the order of their names.
    strength : int
        How many parts are held together: any ``strength`` parts that one of all SKUs has, one of the chosen ones has.

    Returns
    -------
    list of int
        In order; the same on every call.
    """
    rows = zip(*itertools.zip_longest(*skus, fillvalue=""), strict=True)  # to lack a part is a part too
    groups = [frozenset(itertools.combinations(enumerate(row), min(strength, len(row)))) for row in rows]
    missing = set().union(*groups)
    # Greedy: the one that brings most comes next. What one brings only shrinks, so the others need not be counted anew
    # while the first one, counted anew, stays first.
    waiting = [(-len(group), place) for place, group in enumerate(groups)]
    heapq.heapify(waiting)
    chosen = []
    while missing:
        counted, place = heapq.heappop(waiting)
        brings = len(groups[place] & missing)
        if brings < -counted:
            heapq.heappush(waiting, (-brings, place))
            continue
        chosen.append(place)
        missing -= groups[place]
    return sorted(chosen)
