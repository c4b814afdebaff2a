"""Dot products in float64 that come out the same whatever order BLAS adds in: every sum that it makes is exact.

A float64 holds 53 bits. Integers of at most b bits times integers of at most w bits, 2ˢ of them, sum up within
b + w + s bits in any order and with any part of it fused; floats of a narrow range are such integers times a power of
two. Where the activations' range is wider, they are cut into bands of exponents. Each band's product is exact, and
bands are then added elementwise, the smallest first: a fixed order, in which a row's bits cannot depend on other rows.

     exponents of a   ──────────────────────────────────►
                      │  band 0   │  band 1  │  band 2 │ ±∞, NaN │      a = a₀ + a₁ + a₂ + …, each 0 outside its band
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from quantplan.elements import ElementKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_DOUBLE_BITS = 53
_SHORT = 128
"""Longest sum that is made of bands. Longer ones are cut, and the parts added in order."""


class Range(NamedTuple):
    """A format as integers times a power of two: exponent of its smallest unit, bits of its largest value in units.

    ``significand`` is the number of bits that one value has at most.
    """

    unit: int
    bits: int
    significand: int


RANGES = {
    ElementKind.F16: Range(-24, 40, 11),
    ElementKind.BF16: Range(-133, 261, 8),
    ElementKind.FP8_E4M3: Range(-9, 18, 4),
    ElementKind.FP8_E5M2: Range(-16, 32, 3),
}


def exact_sum(a: NDArray[np.float64], w: NDArray[np.float64], a_range: Range, w_bits: int) -> NDArray[np.float64]:
    """Return ``a · wᵀ``; equal to the real sum where one band and one part hold it, else rounded in a fixed order.

    Parameters
    ----------
    a : ndarray of float64, shape (M, K)
        Values of a format of range ``a_range``.
    w : ndarray of float64, shape (N, K)
        Values that are integers of at most ``w_bits`` bits, times one power of two.
    a_range : Range
    w_bits : int
    """
    longest = max(1 << max(0, _DOUBLE_BITS - a_range.bits - w_bits), _SHORT)
    total = np.zeros((len(a), len(w)))
    with np.errstate(all="ignore"):  # infinities times zero are NaN, as they should be
        for start in range(0, a.shape[1], longest):
            part = slice(start, start + longest)
            depth = min(longest, a.shape[1] - start)
            for band in _bands(a[:, part], a_range, w_bits, depth):
                total += band @ w[:, part].T
    return total


def _bands(a: NDArray[np.float64], a_range: Range, w_bits: int, depth: int) -> Iterator[NDArray[np.float64]]:
    """Yield parts of a whose products are exact, smallest exponents first; only those that some element is in."""
    limits = _band_limits(a_range, _DOUBLE_BITS - w_bits - (depth - 1).bit_length())
    if len(limits) == 1 and np.isfinite(a).all():
        yield a
        return
    size = np.abs(a)
    which = np.searchsorted(limits, size, side="right")
    which[np.isnan(a)] = len(limits)
    for band in np.unique(which):
        yield np.where(which == band, a, 0.0)


@cache
def _band_limits(a_range: Range, budget: int) -> tuple[float, ...]:
    """Return the magnitudes at which bands end. The first counts in the format's units, later ones in their own."""
    limits, top = [], a_range.unit + budget
    end = a_range.unit + a_range.bits
    while top < end:
        limits.append(2.0**top)
        top += budget - (a_range.significand - 1)
    return (*limits, 2.0**end)
