"""What follows a matrix product: scales, bias, activation, and the one rounding into the output element."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem
from quantplan.reference.rounding import round_to
from quantplan.types import EpilogueKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

OUTPUT_CODE_MAX = 127
"""An s8 output is symmetric: its codes are −127 … 127."""

_CHUNK = 1 << 13
_GELU_INNER = math.sqrt(2 / math.pi)
_GELU_CUBIC = 0.044715


def activation(y: NDArray[Any], epilogue: EpilogueKind) -> NDArray[Any]:
    """Apply an activation.

    GELU and SiLU are evaluated in f64 and rounded once to the element of ``y``. At −∞ they give −0: they approach zero
    from below, and underflow to −0 long before. At +∞ they give +∞.

    Parameters
    ----------
    y : ndarray of float32 or float64
    epilogue : EpilogueKind

    Returns
    -------
    ndarray
        Of the element of ``y``; ``y`` itself for the identity.
    """
    match epilogue:
        case EpilogueKind.IDENTITY:
            return y
        case EpilogueKind.RELU:
            return np.where((y > 0) | np.isnan(y), y, y.dtype.type(0))
    result = np.empty(y.shape, y.dtype)
    source, target = y.reshape(-1), result.reshape(-1)
    smooth = _SMOOTH[epilogue]
    with np.errstate(all="ignore"):
        for start in range(0, y.size, _CHUNK):  # f64 temporaries of a whole tile would outweigh its operands
            part = slice(start, start + _CHUNK)
            wide = source[part].astype(np.float64)
            target[part] = np.where(wide == -np.inf, -0.0, smooth(wide))
    return result


def scale_and_bias(
    acc: NDArray[np.int32], scale: NDArray[Any], bias: NDArray[Any] | None, dtype: type[np.floating[Any]]
) -> NDArray[Any]:
    """Return ``rne(rne(rne(acc) · scale) + bias)``, each operation rounded by itself in ``dtype``: no fma."""
    with np.errstate(all="ignore"):
        y = acc.astype(dtype)
        y *= scale
        if bias is not None:
            y += bias
    return y


def to_codes(y: NDArray[Any], output_scale: NDArray[Any]) -> NDArray[np.int8]:
    """Return ``clamp(rne(y / output_scale))`` in [−127, 127]; a NaN becomes 0."""
    with np.errstate(all="ignore"):
        codes: NDArray[Any] = y / output_scale
    np.rint(codes, out=codes)
    np.clip(codes, -OUTPUT_CODE_MAX, OUTPUT_CODE_MAX, out=codes)
    codes[np.isnan(codes)] = 0
    return codes.astype(np.int8)


def store(y: NDArray[Any], output: NDArray[Any], element: ElementKind, output_scale: NDArray[Any] | None) -> None:
    """Write the result of the epilogue: s8 codes, or values rounded once into the element with NaN made canonical."""
    if element is ElementKind.S8:
        if output_scale is None:
            raise InvalidProblem(field="output_scale", expected="a scale for s8 output", got="None")
        output[...] = to_codes(y, output_scale)
    else:
        output[...] = round_to(y, element)


def _gelu_erf(x: NDArray[np.float64]) -> NDArray[np.float64]:
    # x·Φ(x), with erfc in place of 1 + erf: no cancellation for negative x.
    z = x * -math.sqrt(0.5)
    tail = np.fromiter(map(math.erfc, z.tolist()), np.float64, len(z))
    return 0.5 * x * tail


def _gelu_tanh(x: NDArray[np.float64]) -> NDArray[np.float64]:
    # (1 + tanh t) / 2 is the logistic function of 2t: no cancellation for negative x.
    return _times_logistic(x, 2 * _GELU_INNER * (x + _GELU_CUBIC * (x * x * x)))


def _silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return _times_logistic(x, x)


def _times_logistic(x: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return x / (1 + exp(−t)) without overflow: the exponential of −|t| is at most 1."""
    small = np.exp(-np.abs(t))
    result: NDArray[np.float64] = np.where(t >= 0, x, x * small) / (1 + small)
    return result


_SMOOTH: dict[EpilogueKind, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    EpilogueKind.GELU_ERF: _gelu_erf,
    EpilogueKind.GELU_TANH: _gelu_tanh,
    EpilogueKind.SILU: _silu,
}
