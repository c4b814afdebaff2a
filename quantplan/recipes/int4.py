"""Int4: quantize a float weight to 4 bits by rounding it to the nearest code, group by group.

Every run of ``group_size`` input features of an output feature is a group with a scale of its own, and, if asymmetric,
a zero point. Scales are stored in 16 bits, and codes are chosen for the scale *as it is stored*. It is rounded up into
those 16 bits: no weight lies beyond the last code, so none is off by more than half a step (and float32's last bits).

                 plain                               with the MSE option, clipped at 3/4
    weights      ·  ·· ··· ··  ·        ·            ·  ·· ··· ··  ·        ·
    codes      |   |   |   |   |   |   |   |         |  |  |  |  |  |  |  | ◄── the outlier moves here

A few large weights make the steps of their group coarse. The MSE option tries smaller scales, which clip the large
weights and serve the many others better, and keeps the one with the smallest squared error.

    weight = round_to_nearest(w, group_size=128, mse=True)          # w is [N, K]; the result an Int4Weight, [K, N]
    packed = formats.marlin.to_marlin(formats.padding.pad_to_supported(weight))

Source: the baseline of Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", ICLR 2023, https://arxiv.org/abs/2210.17323, and the search for a clipping ratio in its code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quantplan.elements import ElementKind, to_element
from quantplan.errors import InvalidProblem
from quantplan.formats.int4 import SYMMETRIC_ZERO, Int4Weight
from quantplan.recipes._checks import converted, finite, matrix
from quantplan.record import to_flag, to_integer

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLIPPING_RATIOS = tuple(1 - i / 50 for i in range(26))
"""What the MSE option multiplies a group's range by: from all of it down to a half."""

_CODE_MAX = 15
_SYMMETRIC_MAX = 7
_CHUNK = 1 << 18
"""Weights worked on at a time: the temporaries are some ten times as large, in float32."""
_GAIN = 2.0**-20
"""A squared error that is smaller by less than this, relatively, may be so by its own rounding errors."""


class _Codes(NamedTuple):
    """Codes (…, groups, group size) and what stands for their steps and zeros, (…, groups)."""

    q: NDArray[np.float32]
    scale: NDArray[Any]
    zero: NDArray[np.float32]

    def keep_better(self, other: _Codes, better: NDArray[np.bool]) -> None:
        """Take over the groups in which the other codes are better."""
        for own, new in zip(self, other, strict=True):
            own[better] = new[better]


def round_to_nearest(
    weight: NDArray[Any],
    *,
    group_size: int = 128,
    symmetric: bool = True,
    scale_element: ElementKind = ElementKind.F16,
    mse: bool = False,
) -> Int4Weight:
    """Quantize a weight to 4 bits with one scale for every group of input features.

    Symmetric: ``scale = amax / 7``, codes −7 … 7 stored as 1 … 15 (a clipped weight may use −8, stored as 0).
    Asymmetric: ``scale = (max − min) / 15`` of the range widened to include 0, so that a weight of zero stays zero.
    A group of zeros has scale 1.

    Parameters
    ----------
    weight : ndarray of float32, float16, bfloat16 or float64, shape (N, K)
        One row per output feature. float64 is rounded to float32 first.
    group_size : int
        Input features that share a scale; the last group of a row may be smaller. −1: one scale per row.
        Int4MarlinGemm takes −1, 32, 64 and 128.
    symmetric : bool
        Whether zero is code 8 everywhere; otherwise each group has a zero point.
    scale_element : ElementKind
        F16 or BF16, as the activations will be. bfloat16 has the range of float32, and float16 finer steps.
    mse : bool
        Search `CLIPPING_RATIOS` for the scale with the smallest squared error in each group. It is never larger than
        that of plain rounding, with the scales as they are stored.

    Returns
    -------
    Int4Weight
        Its ``q`` is (K, N): the transpose of the weight.

    Raises
    ------
    InvalidProblem
        No matrix of floats, a K or N of 0, NaN or infinities, a group size that is none, or a weight so large that a
        scale overflows its element.
    """
    op = "round_to_nearest"
    matrix(op, "weight", weight)
    if 0 in weight.shape:
        raise InvalidProblem(op=op, field="weight", expected="shape (N, K), N and K ≥ 1", got=weight.shape)
    element = converted(op, "scale_element", to_element, scale_element)
    if element not in (ElementKind.F16, ElementKind.BF16):
        raise InvalidProblem(op=op, field="scale_element", expected="f16 or bf16", got=element.value)
    symmetric, mse = converted(op, "symmetric", to_flag, symmetric), converted(op, "mse", to_flag, mse)
    N, K = weight.shape
    given = converted(op, "group_size", to_integer, group_size)
    if given != -1 and given < 1:
        raise InvalidProblem(op=op, field="group_size", expected="-1, or an integer ≥ 1", got=given)
    size = K if given == -1 else min(given, K)
    groups = -(-K // size)
    q = np.empty((K, N), np.uint8)
    scales = np.empty((groups, N), element.dtype)
    zeros = None if symmetric else np.empty((groups, N), np.uint8)
    rows_at_once = max(1, _CHUNK // (groups * size))
    for start in range(0, N, rows_at_once):
        rows = slice(start, start + rows_at_once)
        w = _in_groups(op, weight[rows], groups, size)
        with np.errstate(all="ignore"):
            codes = _quantize(w, element, CLIPPING_RATIOS if mse else CLIPPING_RATIOS[:1], symmetric=symmetric)
        if not np.isfinite(codes.scale).all():
            hint = "scale the weight down" if element is ElementKind.BF16 else "use scale_element=bf16"
            expected = f"weights whose scales are finite in {element.value}"
            raise InvalidProblem(op=op, field="weight", expected=expected, got="an overflow", hint=hint)
        q[:, rows] = codes.q.reshape(len(w), -1)[:, :K].T
        scales[:, rows] = codes.scale.T
        if zeros is not None:
            zeros[:, rows] = codes.zero.T
    return Int4Weight(q=q, scales=scales, zeros=zeros, group_size=given)


def _quantize(w: NDArray[np.float32], element: ElementKind, ratios: tuple[float, ...], *, symmetric: bool) -> _Codes:
    """Return the best codes of groups, the first ratio's unless another's are better by more than rounding errors."""
    low = np.minimum(w.min(axis=-1), 0)
    high = np.maximum(w.max(axis=-1), 0)
    best = _round(w, low, high, element, symmetric=symmetric)
    if len(ratios) > 1:
        smallest = _squared_error(w, best)
        for ratio in ratios[1:]:
            share = np.float32(ratio)
            clipped = _round(w, low * share, high * share, element, symmetric=symmetric)
            error = _squared_error(w, clipped)
            better = error < smallest * (1 - _GAIN)
            best.keep_better(clipped, better)
            smallest[better] = error[better]
    return best


def _round(
    w: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    element: ElementKind,
    *,
    symmetric: bool,
) -> _Codes:
    """Round groups to the nearest codes of the range [low, high], which includes 0."""
    wanted: NDArray[Any]
    if symmetric:
        wanted = np.maximum(-low, high) / np.float32(_SYMMETRIC_MAX)
    else:
        wanted = high / np.float32(_CODE_MAX) - low / np.float32(_CODE_MAX)  # the difference itself may overflow
    scale = _rounded_up(wanted, element)
    step = scale.astype(np.float32)
    zero = np.full_like(step, SYMMETRIC_ZERO) if symmetric else np.clip(np.rint(-low / step), 0, _CODE_MAX)
    q = w / step[..., np.newaxis]
    np.rint(q, out=q)
    q += zero[..., np.newaxis]
    np.clip(q, 0, _CODE_MAX, out=q)
    return _Codes(q, scale, zero)


def _rounded_up(wanted: NDArray[Any], element: ElementKind) -> NDArray[Any]:
    """Return the smallest numbers of an element that are not below the wanted ones; 1 where nothing is wanted."""
    scale = wanted.astype(element.dtype)
    bits = scale.view(np.uint16)
    bits += scale.astype(np.float32) < wanted
    scale[wanted == 0] = 1
    return scale


def _squared_error(w: NDArray[np.float32], codes: _Codes) -> NDArray[np.float64]:
    """Return the squared error of each group. A code times its stored scale is exact, and squares are float64."""
    error = codes.q - codes.zero[..., np.newaxis]
    error *= codes.scale.astype(np.float32)[..., np.newaxis]
    np.subtract(w, error, out=error)
    wide = error.astype(np.float64)
    total: NDArray[np.float64] = np.einsum("...k,...k->...", wide, wide)
    return total


def _in_groups(op: str, rows: NDArray[Any], groups: int, size: int) -> NDArray[np.float32]:
    """Return rows of a weight as float32 (rows, groups, size), the last group filled with zeros, which cost nothing."""
    with np.errstate(all="ignore"):
        single = rows.astype(np.float32)
    missing = groups * size - finite(op, "weight", single).shape[1]
    if missing:
        single = np.pad(single, ((0, 0), (0, missing)))
    return single.reshape(len(single), groups, size)
