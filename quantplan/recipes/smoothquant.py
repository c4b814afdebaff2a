"""SmoothQuant: move the difficulty of quantizing activations into the weights, offline.

A linear layer computes ``x · wᵀ``. Some input channels of x have magnitudes far above the others', and one scale for
the whole activation then wastes its codes on them. Dividing each channel of x by a factor and multiplying the matching
column of w by it changes nothing in real numbers, and evens out the two:

    (x / s) · (w · s)ᵀ = x · wᵀ,   s_j = max|x_j|^alpha / max|w_j|^(1 − alpha)

The division costs nothing at run time: it is folded into the norm or the linear layer that produces x.

    calibration = ActivationRange(K); for batch in …: calibration.observe(batch)
    s = smoothing_factors(calibration.amax, [w_q, w_k, w_v])        # layers that share an input share its factors
    gamma = fold_into_norm(gamma, s)
    weight_q, weight_scale = quantize_weight_per_channel(smooth_weight(w_q, s))
    act_scale = calibration.act_scale(factors=s)

Source: Xiao, Lin, Seznec, Wu, Demouth, Han, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models", ICML 2023, https://arxiv.org/abs/2211.10438.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem
from quantplan.recipes._checks import converted, finite, floats, listed, matrix, number, vector
from quantplan.record import to_size
from quantplan.reference.dynamic_range_quantize import dynamic_range_quantize
from quantplan.types import Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_CODE_MAX = 127
_SMALLEST_NORMAL = float(np.finfo(np.float32).smallest_normal)
_LARGEST = float(np.finfo(np.float32).max)
_CHUNK = 1 << 20


class ActivationRange:
    """Ranges of the activations that enter a linear layer, collected over calibration batches.

    Keeps the largest magnitude of each channel, and a histogram of all magnitudes over the values that bfloat16 has,
    for percentiles. Both are the same whatever the order of the samples and however they are batched.

    Parameters
    ----------
    channels : int
        Number of input features, K.

    Raises
    ------
    InvalidProblem
        No integer ≥ 0.

    Notes
    -----
    Source: Xiao et al., SmoothQuant, ICML 2023, section 4.
    """

    def __init__(self, channels: int) -> None:
        self.channels: int = converted("ActivationRange", "channels", to_size, channels)
        self._amax = np.zeros(self.channels, np.float32)
        self._histogram = np.zeros(1 << 15, np.int64)

    def observe(self, batch: NDArray[Any]) -> None:
        """Take a batch of activations into account.

        Parameters
        ----------
        batch : ndarray of float, shape (…, K)
            Any number of leading axes.

        Raises
        ------
        InvalidProblem
            No array of floats, another number of channels, or a value that is not a finite float32.
        """
        floats("ActivationRange", "batch", batch)
        if batch.ndim == 0 or batch.shape[-1] != self.channels:
            expected = f"shape (…, K={self.channels})"
            raise InvalidProblem(op="ActivationRange", field="batch", expected=expected, got=batch.shape)
        rows = batch.reshape(math.prod(batch.shape[:-1]), self.channels)
        step = max(1, _CHUNK // max(1, self.channels))
        amax, histogram = self._amax.copy(), self._histogram.copy()
        for start in range(0, len(rows), step):
            with np.errstate(all="ignore"):
                part = np.abs(rows[start : start + step].astype(np.float32))
            np.maximum(amax, part.max(axis=0), out=amax)  # propagates NaN
            upper_halves = part.view(np.uint32).reshape(-1) >> np.uint32(16)
            histogram += np.bincount(upper_halves, minlength=histogram.size)
        self._amax, self._histogram = finite("ActivationRange", "batch", amax), histogram

    @property
    def count(self) -> int:
        """Number of values seen."""
        return int(self._histogram.sum())

    @property
    def amax(self) -> NDArray[np.float32]:
        """Largest magnitude of each channel.

        Raises
        ------
        InvalidProblem
            Nothing was observed yet.
        """
        self._require_values()
        return self._amax.copy()

    def percentile(self, percent: float) -> float:
        """Return a magnitude that at least ``percent`` percent of all values do not exceed.

        The smallest such bfloat16, rounded up, and never more than the largest magnitude: within 0.8 % of the real
        percentile.

        Raises
        ------
        InvalidProblem
            Nothing was observed yet, or ``percent`` is outside (0, 100].
        """
        if not 0 < number("ActivationRange", "percent", percent) <= 100:  # noqa: PLR2004 - percent
            raise InvalidProblem(op="ActivationRange", field="percent", expected="a number in (0, 100]", got=percent)
        self._require_values()
        wanted = math.ceil(self.count * percent / 100)
        upper_half = int(np.searchsorted(np.cumsum(self._histogram), wanted))
        # Every value of this bin is below the first one of the next.
        edge = float(np.array([(upper_half + 1) << 16], np.uint32).view(np.float32)[0])
        return min(edge, float(self._amax.max()))

    def act_scale(self, *, percent: float | None = None, factors: NDArray[Any] | None = None) -> float:
        """Return a static activation scale: magnitude / 127 in float32, for the descriptor's ``act_scale``.

        Parameters
        ----------
        percent : float, optional
            Use this percentile of all magnitudes instead of the largest one; what is larger saturates.
        factors : ndarray, shape (K,), optional
            Smoothing factors that the activations will be divided by.

        Raises
        ------
        InvalidProblem
            Both options: percentiles of smoothed activations need a calibration of the smoothed model.
        """
        if factors is None:
            return static_scale(float(self.amax.max()) if percent is None else self.percentile(percent))
        if percent is not None:
            hint = "observe the smoothed activations, then ask for their percentile"
            raise InvalidProblem(
                op="ActivationRange", field="percent", expected="None with factors", got=percent, hint=hint
            )
        _require_factors("ActivationRange", factors, self.channels)
        with np.errstate(all="ignore"):
            return static_scale(float((self.amax / factors.astype(np.float32)).max()))

    def _require_values(self) -> None:
        if not self.count:
            raise InvalidProblem("nothing was observed yet", op="ActivationRange", hint="call observe(batch) first")


def static_scale(amax: float) -> float:
    """Return amax / 127 rounded to float32: at least its smallest normal number, and 1 for an amax of 0.

    Raises
    ------
    InvalidProblem
        No number, or one that is negative or beyond float32.
    """
    with np.errstate(all="ignore"):
        magnitude = np.float32(number("static_scale", "amax", amax))
        scale = magnitude / np.float32(_CODE_MAX)
    if not 0 <= magnitude <= _LARGEST:
        raise InvalidProblem(op="static_scale", field="amax", expected="a finite float32 ≥ 0", got=amax)
    return max(float(scale), _SMALLEST_NORMAL) if magnitude else 1.0


def smoothing_factors(
    act_amax: NDArray[Any], weights: Sequence[NDArray[Any]], alpha: float = 0.5
) -> NDArray[np.float32]:
    """Return the factor of each input channel: ``act_amax^alpha / weight_amax^(1 − alpha)``.

    A channel whose activations or weights are all zero keeps the factor 1: there is nothing to balance. Factors are
    kept within the normal numbers of float32.

    Parameters
    ----------
    act_amax : ndarray, shape (K,)
        Largest magnitude of each channel of the activations.
    weights : list or tuple of ndarray, each of shape (N, K)
        Weights of all linear layers that read these activations.
    alpha : float
        How much of the difficulty moves to the weights: 0 none of the activations' differences, 1 all of them.

    Returns
    -------
    ndarray of float32, shape (K,)

    Raises
    ------
    InvalidProblem
        No arrays of floats, shapes that do not match, no weights, alpha outside [0, 1], NaN or infinities.

    Notes
    -----
    Source: Xiao et al., SmoothQuant, ICML 2023, equation 4.
    """
    op = "smoothing_factors"
    if not 0 <= number(op, "alpha", alpha) <= 1:
        raise InvalidProblem(op=op, field="alpha", expected="a number in [0, 1]", got=alpha)
    activations = np.abs(finite(op, "act_amax", vector(op, "act_amax", act_amax)).astype(np.float64))
    if not listed(op, "weights", weights):
        raise InvalidProblem(op=op, field="weights", expected="at least one weight", got="none")
    weight_amax = np.zeros(activations.shape)
    for i, weight in enumerate(weights):
        name = f"weights[{i}]"
        magnitudes = np.abs(finite(op, name, matrix(op, name, weight, len(activations))))
        np.maximum(weight_amax, np.max(magnitudes, axis=0, initial=0), out=weight_amax)
    one = (activations == 0) | (weight_amax == 0)
    activations[one] = weight_amax[one] = 1
    with np.errstate(all="ignore"):
        factors = np.power(activations, alpha) / np.power(weight_amax, 1 - alpha)
    return np.clip(factors, _SMALLEST_NORMAL, _LARGEST).astype(np.float32)


def smooth_weight(weight: NDArray[Any], factors: NDArray[Any]) -> NDArray[Any]:
    """Return a weight [N, K] with each input channel multiplied by its factor: ``w · s``.

    The result is float32, or float64 for a float64 weight.

    Raises
    ------
    InvalidProblem
        No arrays of floats, shapes that do not match, NaN or infinities, or a product that overflows.
    """
    op = "smooth_weight"
    _require_factors(op, factors)
    finite(op, "weight", matrix(op, "weight", weight, len(factors)))
    return _applied(op, "weight", np.multiply, weight, factors)


def fold_into_norm(parameter: NDArray[Any], factors: NDArray[Any]) -> NDArray[Any]:
    """Return a norm's gain (or LayerNorm's bias) [K] divided by the factors: the norm then produces ``x / s``.

    The result is float32, or float64 for a float64 parameter.

    Raises
    ------
    InvalidProblem
        No arrays of floats, shapes that do not match, NaN or infinities, or a quotient that overflows.
    """
    op = "fold_into_norm"
    _require_factors(op, factors, len(vector(op, "parameter", parameter)))
    return _applied(op, "parameter", np.divide, parameter, factors)


def fold_into_linear(
    weight: NDArray[Any], bias: NDArray[Any] | None, factors: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the preceding linear layer's weight [K, J] and bias [K] divided by the factors.

    It then produces ``x / s``. Only where nothing nonlinear lies between the two layers: a factor moves through neither
    GELU nor SiLU.

    Raises
    ------
    InvalidProblem
        No arrays of floats, shapes that do not match, NaN or infinities, or a quotient that overflows.
    """
    op = "fold_into_linear"
    _require_factors(op, factors, len(finite(op, "weight", matrix(op, "weight", weight))))
    if bias is not None:
        vector(op, "bias", bias, len(factors))
    folded = _applied(op, "weight", np.divide, weight, factors[:, np.newaxis])
    return folded, None if bias is None else _applied(op, "bias", np.divide, bias, factors)


def quantize_weight_per_channel(weight: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize a weight symmetrically to s8 with one scale per output channel.

    The bits are those of DynamicRangeQuantize with scope ``token``: ``scale = amax / 127`` in float32, codes
    ``rne(w / scale)`` in [−127, 127]; a row of zeros has scale 1.

    Parameters
    ----------
    weight : ndarray of float32, float16, bfloat16 or float64, shape (N, K)
        float64 is rounded to float32 first, for the scales of every linear with f32 scales are float32.

    Returns
    -------
    weight_q : ndarray of int8, shape (N, K)
    weight_scale : ndarray of float32, shape (N,)

    Raises
    ------
    InvalidProblem
        No matrix of floats, NaN or infinities.
    """
    op = "quantize_weight_per_channel"
    with np.errstate(all="ignore"):
        single = finite(op, "weight", matrix(op, "weight", weight).astype(np.float32, copy=False))
    weight_q = np.empty(weight.shape, np.int8)
    weight_scale = np.empty(len(weight), np.float32)
    dynamic_range_quantize(
        single,
        weight_q,
        weight_scale,
        None,
        output_element=ElementKind.S8,
        scope=Scope.token(),
        q_min=-_CODE_MAX,
        q_max=_CODE_MAX,
    )
    return weight_q, weight_scale


def _applied(op: str, field: str, operation: np.ufunc, values: NDArray[Any], factors: NDArray[Any]) -> NDArray[Any]:
    """Apply a division or multiplication in float32, or in float64 for such values; refuse what is not finite."""
    dtype = np.float64 if values.dtype == np.float64 else np.float32
    with np.errstate(all="ignore"):
        return finite(op, field, operation(values.astype(dtype), factors.astype(dtype)))


def _require_factors(op: str, factors: object, channels: int | None = None) -> None:
    with np.errstate(all="ignore"):
        single = vector(op, "factors", factors, channels).astype(np.float32)  # what float32 operands are scaled by
    if not (np.isfinite(single) & (single > 0)).all():
        raise InvalidProblem(op=op, field="factors", expected="finite float32 numbers above 0", got="others")
