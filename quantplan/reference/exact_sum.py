"""Dot products in float64 that come out the same whatever order BLAS adds in: every sum that it makes is exact.

A float64 holds 53 bits. Integers of at most b bits times integers of at most w bits, 2ˢ of them, sum up within
b + w + s bits in any order and with any part of it fused; floats of a narrow range are such integers times a power of
two. Where the activations' range is wider, they are cut into bands of exponents. Each band's product is exact, and
bands are then added elementwise, the smallest first: a fixed order, in which a row's bits cannot depend on other rows.

     exponents of a   ──────────────────────────────────►
                      │  band 0   │  band 1  │  band 2 │          a = a₀ + a₁ + a₂, each 0 outside its band

Infinities and NaN are in no band. A result that they reach is infinite or NaN in whatever order it is formed.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quantplan.elements import ElementKind
from quantplan.reference.rounding import fp8_values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_DOUBLE_BITS = 53
_SHORT = 128
"""Longest part of a sum that is cut into bands: a longer one would need more of them."""
_LONG = 256
"""Longest part of a sum that is not: what is widened to float64 at a time stays small beside the operands."""


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


def exact_sum(a: NDArray[Any], w: NDArray[Any], w_bits: int) -> NDArray[np.float64]:
    """Return ``a · wᵀ``, added up exactly as far as a float64 holds it, else rounded in a fixed order.

    K is cut into parts, and where a part needs them, into bands. What one element's part or band adds up to is exact.
    These sums are added part by part, each rounded to float64: a step that is exact too wherever b + w + log₂ K ≤ 53.

    Parameters
    ----------
    a : ndarray of float16, bfloat16 or FP8, shape (M, K)
    w : ndarray of FP8 or integers, shape (N, K)
    w_bits : int
        Bits of the largest magnitude in w, in units of its smallest one.
    """
    a_range = RANGES[ElementKind.of(a.dtype)]
    spare = _DOUBLE_BITS - w_bits
    longest = min(max(1 << max(0, spare - a_range.bits), _SHORT), _LONG)
    K = a.shape[1]
    total = np.zeros((len(a), len(w)))
    with np.errstate(all="ignore"):  # infinities times zero are NaN, as they should be
        for start in range(0, K, longest):
            part = slice(start, min(start + longest, K))
            limits = _band_limits(a_range, spare - (part.stop - start - 1).bit_length())
            for product in _products(_widened(a[:, part]), _widened(w[:, part]), limits):
                total += product
    return total


def _widened(x: NDArray[Any]) -> NDArray[np.float64]:
    kind = ElementKind.of(x.dtype)
    return (fp8_values(x, kind) if kind.is_fp8 else x).astype(np.float64)


def _products(
    a: NDArray[np.float64], w: NDArray[np.float64], limits: tuple[float, ...]
) -> Iterator[NDArray[np.float64]]:
    """Yield what ``a · wᵀ`` is the sum of, smallest exponents first; only bands that some element is in."""
    if len(limits) == 1:
        yield a @ w.T
        return
    finite = np.isfinite(a).all(axis=1, keepdims=True) & np.isfinite(w).all(axis=1)
    if not finite.all():  # an infinity must meet the number it is multiplied by, not the zeros of another band
        yield np.where(finite, 0.0, a @ w.T)
        a, w = (np.where(np.isfinite(x), x, 0.0) for x in (a, w))
    size, low = np.abs(a), float(np.finfo(np.float64).tiny)  # zeros are in no band
    for high in limits:
        inside = (low <= size) & (size < high)
        if inside.any():
            yield np.where(inside, a, 0.0) @ w.T
        low = high


@cache
def _band_limits(a_range: Range, budget: int) -> tuple[float, ...]:
    """Return the magnitudes at which bands end. The first counts in the format's units, later ones in their own."""
    limits, top = [], a_range.unit + budget
    end = a_range.unit + a_range.bits
    while top < end:
        limits.append(2.0**top)
        top += budget - (a_range.significand - 1)
    return (*limits, 2.0**end)
