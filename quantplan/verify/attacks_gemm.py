"""Rows of numbers that floating-point sums are attacked with, made once for each format and size.

Every SKU that reads such an operand gets the same one, so that its exact sums are computed once (`gemm`).
"""

from __future__ import annotations

import math
from functools import cache
from random import Random
from typing import TYPE_CHECKING

from quantplan.verify.attacks import fit_all, random_bits
from quantplan.verify.exact import FLOATS
from quantplan.verify.tensors import HostTensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from quantplan.elements import ElementKind

    Pattern = Callable[[ElementKind, Random, int], list[float]]
    """Returns one row of K values; the random numbers go on from row to row."""

SUMS_AT_TIES = ([2049, 259, -17], [4102, -257, 9], [33 * 127, 19, -8197])
"""Sums at midpoints of f16, bf16 and FP8."""

_BYTE, _BYTES = 8, 2
_POISONED = 5  # column of a poisoned row's one value that is not finite


@cache
def floats(pattern: str, element: ElementKind, rows: int, k: int) -> HostTensor:
    """Return an operand [rows, k] of a pattern, or of one of three more.

    Parameters
    ----------
    pattern : str
        A name in `PATTERNS`; ``poison VALUE NAME``: one of these, but for a value in its middle row; ``sums A B …`` and
        ``bytes A B …``: rows whose products with ``powers``, or with ones, add up to given integers below 2¹⁶.
    element : ElementKind
        What it holds; values are rounded to it.
    rows, k : int
        Its shape.
    """
    name, *details = pattern.split()
    draw = Random(f"{pattern} {rows}")  # noqa: S311 - test data; activations and weight differ in their rows
    if name in ("sums", "bytes"):
        split = _bits if name == "sums" else _bytes
        lines = [split(int(details[i % len(details)]), k) for i in range(rows)]
    else:
        lines = [PATTERNS[details[1] if name == "poison" else name](element, draw, k) for _ in range(rows)]
    if name == "poison":
        lines[rows // 2][_POISONED] = float(details[0])
    return HostTensor.of(element, (rows, k), fit_all([value for line in lines for value in line], element))


def sums(*totals: int) -> str:
    """Return the name of the pattern that makes given sums with the pattern ``powers``."""
    return " ".join(["sums", *map(str, totals)])


def plain_sums(*totals: int) -> str:
    """Return the name of the pattern that makes given sums with ones: for formats that hold eight bits."""
    return " ".join(["bytes", *map(str, totals)])


def _bits(total: int, k: int) -> list[float]:
    """Return the bits of an integer, all but the lowest eight of them times 2⁸."""
    sign, size = (-1, -total) if total < 0 else (1, total)
    return [sign * (size >> j & 1) * math.ldexp(1, j // _BYTE * _BYTE) for j in range(k)]


def _bytes(total: int, k: int) -> list[float]:
    sign, size = (-1, -total) if total < 0 else (1, total)
    return [sign * float(size & 0xFF << _BYTE * j if j < _BYTES else 0) for j in range(k)]


def _random(element: ElementKind, draw: Random, k: int) -> list[float]:
    return [random_bits(draw, element) for _ in range(k)]


def _even(_element: ElementKind, draw: Random, k: int) -> list[float]:
    return [draw.choice((-1, 1)) * draw.uniform(0.5, 4) for _ in range(k)]


def _pairs(element: ElementKind, draw: Random, k: int) -> list[float]:
    """Return equals in pairs, which `_opposites` cancels, and a rest of 1."""
    values = [random_bits(draw, element) for _ in range(k // 2)]
    return [*(v for value in values for v in (value, value)), 1.0][:k]


def _swamped(element: ElementKind, draw: Random, k: int) -> list[float]:
    """Return a large number, and small ones that lose bits to it, all the same way, in sums of 24 bits."""
    large = min(math.ldexp(1, 15), element.largest)
    return [large, *(draw.uniform(2.0**-9, 2.0**-7) for _ in range(k - 1))][:k]


def _drowned(element: ElementKind, draw: Random, k: int) -> list[float]:
    """Return the largest number, and ones just too small for a sum of 14 bits that it is part of: 8-bit formats."""
    form = FLOATS[element]
    (below_two,) = _equal(element, draw, 1)
    return [form.largest, *[below_two * math.ldexp(1, form.max_exponent - 14)] * (k - 1)][:k]


def _opposites(_element: ElementKind, draw: Random, k: int) -> list[float]:
    values = [draw.uniform(0.5, 4) for _ in range(k // 2)]
    return [*(v for value in values for v in (value, -value)), 1.0][:k]


def _equal(element: ElementKind, _draw: Random, k: int) -> list[float]:
    """Return the number below 2 throughout: every bit of its significand is set."""
    return [2 - math.ldexp(1, -FLOATS[element].mantissa_bits)] * k


def _one_huge(element: ElementKind, _draw: Random, k: int) -> list[float]:
    return [FLOATS[element].largest, *[1.0] * k][:k]


def _peak(element: ElementKind, _draw: Random, k: int) -> list[float]:
    return [FLOATS[element].largest if j == k // 2 else 0.75 for j in range(k)]


def _subnormal(element: ElementKind, draw: Random, k: int) -> list[float]:
    form = FLOATS[element]
    return [draw.randint(-7, 7) % (1 << form.mantissa_bits) * form.smallest_subnormal for _ in range(k)]


def _alternating(element: ElementKind, draw: Random, k: int) -> list[float]:
    (value,) = _equal(element, draw, 1)
    return [-value if j % 2 else value for j in range(k)]


def _extremes(element: ElementKind, draw: Random, k: int) -> list[float]:
    return [draw.choice((-1, 1)) * FLOATS[element].largest for _ in range(k)]


def _largest(element: ElementKind, _draw: Random, k: int) -> list[float]:
    return [FLOATS[element].largest] * k


def _rise_and_fall(element: ElementKind, draw: Random, k: int) -> list[float]:
    """Return a sum that grows over half of K and then returns to almost nothing."""
    (value,) = _equal(element, draw, 1)
    return [value if j < k // 2 else -value for j in range(k)]


def _edges(_element: ElementKind, _draw: Random, k: int) -> list[float]:
    """Return zeros but for the columns on either side of each 32: what a block that is cut one off loses or gains."""
    return [1.0 + j / 4 if j % 32 in (31, 0) else 0.0 for j in range(k)]


PATTERNS: dict[str, Pattern] = {
    "random": _random,
    "even": _even,
    "swamped": _swamped,
    "drowned": _drowned,
    "pairs": _pairs,
    "opposites": _opposites,
    "equal": _equal,
    "one-huge": _one_huge,
    "peak": _peak,
    "subnormal": _subnormal,
    "alternating": _alternating,
    "extremes": _extremes,
    "largest": _largest,
    "rise-and-fall": _rise_and_fall,
    "edges": _edges,
    "ones": lambda _element, _draw, k: [1.0] * k,
    "zeros": lambda _element, _draw, k: [-0.0 if j % 3 else 0.0 for j in range(k)],
    "powers": lambda _element, _draw, k: [math.ldexp(1, j % _BYTE) for j in range(k)],
}
