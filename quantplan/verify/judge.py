"""The verdict on one output: bits against the contract's bits, or real errors against the bound."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import attrs

from quantplan.elements import ElementKind
from quantplan.verify.exact import FLOATS, FORMATS, Format

if TYPE_CHECKING:
    from collections.abc import Sequence

HOPELESS = 1e300
"""Fraction of the bound that stands for an error without measure: NaN, or an infinity that is not due."""


@attrs.frozen
class Verdict:
    """What is wrong with an output.

    Parameters
    ----------
    mismatches : int
        Elements that break the guarantee.
    example : str
        The first of them: where, what was expected, what came.
    fraction : float, optional
        Largest error as a fraction of the bound, where a bound was the measure.
    """

    mismatches: int
    example: str = ""
    fraction: float | None = None


def judge_bits(element: ElementKind, shape: tuple[int, ...], expected: Sequence[int], got: Sequence[int]) -> Verdict:
    """Compare codes."""
    if list(expected) == list(got):
        return Verdict(0)
    wrong = [i for i, pair in enumerate(zip(expected, got, strict=True)) if pair[0] != pair[1]]
    decode = FORMATS[element].decode
    want, came = expected[wrong[0]], got[wrong[0]]
    text = f"{_index(wrong[0], shape)}: expected {decode(want)} ({want:#x}), got {decode(came)} ({came:#x})"
    return Verdict(len(wrong), text)


def judge_errors(
    element: ElementKind,
    shape: tuple[int, ...],
    exact: Sequence[Fraction | float | None],
    bound: Sequence[float],
    got: Sequence[int],
) -> Verdict:
    """Compare the distance from the real result with the bound.

    Where there is no real result, because operands are NaN (None) or infinite, the code itself is determined: the one
    canonical NaN, or the infinity, which FP8 saturates.
    """
    mismatches, example, worst = 0, "", 0.0
    decode = FORMATS[element].decode
    for i, (code, target, limit) in enumerate(zip(got, exact, bound, strict=True)):
        if not isinstance(target, Fraction | int):
            fraction = 0.0 if code == _special(element, target) else HOPELESS
        else:
            fraction = error_fraction(element, decode(code), target, limit)
        worst = max(worst, fraction)
        if fraction > 1:
            mismatches += 1
            want = "NaN" if target is None else repr(_to_float(target))
            example = example or f"{_index(i, shape)}: expected {want} ± {limit:.3g}, got {decode(code)}"
    return Verdict(mismatches, example, worst)


def error_fraction(element: ElementKind, value: float, exact: Fraction, bound: float) -> float:
    """Return the error of a value as a fraction of its bound.

    Parameters
    ----------
    element : ElementKind
        Element of the output.
    value : float
        What came.
    exact : Fraction
        The real result.
    bound : float
        Largest error allowed. An infinity is right where ``|exact| + bound`` reaches the overflow threshold, but never
        in FP8, which saturates. An infinite bound allows anything: sums that overflow on their way may become NaN.
    """
    if math.isnan(bound) or bound < 0:
        return HOPELESS
    if math.isinf(bound):
        return 0.0
    if math.isnan(value) or (math.isinf(value) and element.is_fp8):
        return HOPELESS
    if math.isinf(value):
        due = abs(exact) + Fraction(bound) >= _threshold(FLOATS[element]) and (exact > 0) == (value > 0)
        return 0.0 if due else HOPELESS
    return _ratio(abs(Fraction(value) - exact), Fraction(bound))


def _ratio(distance: Fraction, bound: Fraction) -> float:
    """Return distance / bound as a float that is above 1 exactly when the distance is above the bound."""
    if distance > bound * Fraction(HOPELESS):
        return HOPELESS
    fraction = float(distance / bound) if distance else 0.0
    return max(fraction, math.nextafter(1, 2)) if distance > bound else min(fraction, 1.0)


def _threshold(form: Format) -> Fraction:
    """Return the smallest magnitude that rounds to infinity."""
    return Fraction(form.largest) + Fraction(2) ** (form.max_exponent - form.mantissa_bits - 1)


def _special(element: ElementKind, value: float | None) -> int:
    """Return the code that NaN (None) or an infinity has in an output."""
    if element is ElementKind.E8M0:
        return FORMATS[element].encode(math.nan)
    if element not in FLOATS:
        return 0
    form = FLOATS[element]
    return form.encode(form.convert(math.nan if value is None else value, saturate=element.is_fp8))


def _to_float(value: Fraction | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _index(i: int, shape: tuple[int, ...]) -> str:
    return f"[{i // shape[1]}, {i % shape[1]}]" if len(shape) == 2 else f"[{i}]"  # noqa: PLR2004 - a matrix
