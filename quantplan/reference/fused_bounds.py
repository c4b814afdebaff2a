"""A-priori error bounds of NormQuantize and ActivationQuantize; derived in docs/numerics.md.

The symbols are those of `quantplan.reference.error_model`. Codes are compared with y / scale, for the scale that is in
the arguments: where it is dynamic the bound is asked for after the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import attrs
import numpy as np

from quantplan.elements import ElementKind
from quantplan.reference.epilogue import activation
from quantplan.reference.error_model import FORMATS, SLACK, after_activation, f64, finish, host_or_operand
from quantplan.reference.row_quantize import CODE_MAX
from quantplan.reference.row_sums import additions
from quantplan.reference.scales import power_of_two_scale, widen_scale
from quantplan.reference.segments import spread
from quantplan.types import ErrorBound, GatingKind, NormKind, Scope

if TYPE_CHECKING:
    from numpy.typing import NDArray

_F32 = FORMATS[ElementKind.F32]
_SMALLEST_NORMAL = 2.0**-126


@attrs.frozen
class _Value:
    """Real numbers, how far what stands for them may be off, and whether all that led there can be trusted."""

    exact: NDArray[np.float64]
    error: NDArray[np.float64]
    sound: NDArray[np.bool]

    @classmethod
    def of(cls, operand: Any) -> Self:  # noqa: ANN401 - whatever NumPy can read
        """Take an operand as it is."""
        exact = f64(operand)
        return cls(exact, np.zeros_like(exact), np.isfinite(exact))

    def times(self, factor: NDArray[np.float64], gap: float = 0.0) -> _Value:
        """Return the product with factors that are off by ``gap``, relatively, rounded to f32."""
        exact = self.exact * factor
        carried = self.error * np.abs(factor) * (1 + gap) + gap * np.abs(exact)
        return self._rounded(exact, carried, _F32.tiny, np.isfinite(factor))

    def plus(self, addend: NDArray[np.float64]) -> _Value:
        """Return the sum, rounded to f32."""
        return self._rounded(self.exact + addend, self.error, 0.0, np.isfinite(addend))

    def _rounded(
        self, exact: NDArray[np.float64], carried: NDArray[np.float64], lost: float, finite: NDArray[np.bool]
    ) -> _Value:
        error = carried + _F32.unit * (np.abs(exact) + carried) + lost
        return _Value(exact, error, self.sound & finite & ((np.abs(exact) + error) * SLACK < _F32.overflow))

    def stored(self, desc: Any, args: Any) -> NDArray[np.float64]:  # noqa: ANN401 - two types
        """Return the bound of what is stored: the value rounded, or codes of it, as multiples of their scale."""
        size, error, sound = np.abs(self.exact), self.error, self.sound
        output = FORMATS.get(desc.output_element)
        if desc.scope is None:
            assert output is not None  # noqa: S101 - a real number
            sound = sound & ((size + error) * SLACK < output.overflow)
            if output.unit > _F32.unit:
                error = error + output.unit * (size + error) + output.tiny
            return finish(error, sound)
        static = desc.scope == Scope.tensor()
        scale, gap = _scales(desc, args)
        relative, divisor = _F32.unit + gap, np.abs(scale)
        error = (error * (1 + relative) + relative * size) / divisor + _F32.tiny
        size = size / divisor
        largest = float(CODE_MAX) if desc.output_element.is_integer else desc.output_element.largest
        if static:
            size = np.minimum(size, largest)
        error = error + (0.5 if output is None else output.unit * (size + error) + output.tiny)
        return finish(np.minimum(error, 2 * largest) if static else error, sound & np.isfinite(scale) & (scale != 0))


@attrs.frozen(kw_only=True, repr=False)
class NormErrorBound(ErrorBound):
    """Bound of NormQuantize.

    With h the stream, d = h for RMS and h − mean(h) for layers, q² = mean(d²), r = √(q² + ε) as real numbers, N the
    additions that a term of a row takes part in:

    1. The stream: one rounding each of the gate's product, the sum, and into its element give δ_h.
    2. The mean: δ_m = mean(δ_h) + γ(N + 1)·mean(|h| + δ_h) + η, and δ_d = δ_h + δ_m + u·(|d| + δ_h + δ_m); for RMS
       δ_d = δ_h.
    3. A root mean square changes by no more than that of what its arguments change by: r is off by δ_r = √mean(δ_d²),
       and by |fl(ε) − ε| / r for a host value, and is at least r' = r − δ_r. Products, sum, quotient, ε, root and
       reciprocal are N + 3 roundings under the root and two behind it, and 2η that is lost: with
       1 + t = (1 + γ((N + 3)/2 + 2))·(1 + 2η/r'²), as long as 2η/r'² ≤ ½.
    4. n = d / r: with 1 + κ = (r / r')·(1 + t)·(1 + u), δ_n = (δ_d + (|d| + δ_d)·κ) / r + η.
    5. Every factor and addend that follows is one rounding; then comes the output's.
    """

    @property
    def formula(self) -> str:
        """The bound as one line of text."""
        return (
            "((d' + (|d| + d')·k) / r + eta) carried through weight, bias, modulation and multiplier, one rounding "
            "each, with d' the error of the stream less its mean, 1 + k = r/(r - d_r)·(1 + gamma((N + 3)/2 + 3)), "
            "N = additions of a row; then one rounding into the output, in units of its scale"
        )

    def bound(self, desc: Any, args: Any) -> NDArray[np.float64]:  # noqa: ANN401 - the op's own types
        """Return the bound of each output element; see the class."""
        condition = np.arange(desc.m) // (desc.rows_per_condition or max(1, desc.m))
        with np.errstate(all="ignore"):
            value = _normalized(_stream(desc, args, condition), desc)
            if desc.weight:
                value = value.times(f64(args.weight))
            if desc.bias:
                value = value.plus(f64(args.bias))
            if desc.modulated:
                value = value.times(1 + f64(args.modulation_scale)[condition], _F32.unit)
                value = value.plus(f64(args.modulation_shift)[condition])
            if desc.multiplier:
                value = value.times(f64(args.multiplier))
            return value.stored(desc, args)


def _stream(desc: Any, args: Any, condition: NDArray[np.intp]) -> _Value:  # noqa: ANN401 - the op's own types
    """Return the residual stream (step 1)."""
    value = _Value.of(args.x)
    if not desc.residual:
        return value
    if desc.gated:
        value = value.times(f64(args.residual_gate)[condition])
    value = value.plus(f64(args.residual))
    element = FORMATS[desc.input_element]
    error = value.error
    if element.unit > _F32.unit:
        error = error + element.unit * (np.abs(value.exact) + error) + element.tiny
    return _Value(value.exact, error, value.sound & ((np.abs(value.exact) + error) * SLACK < element.overflow))


def _normalized(stream: _Value, desc: Any) -> _Value:  # noqa: ANN401 - the op's own type
    """Return n = d / r (steps 2 to 4)."""
    count, terms = max(1, desc.k), additions(desc.k)
    d, error = stream.exact, stream.error
    sizes = (np.abs(d) + error).sum(axis=1, keepdims=True)
    if desc.norm is NormKind.LAYER:
        mean = d.sum(axis=1, keepdims=True) / count
        off = error.sum(axis=1, keepdims=True) / count + _F32.gamma(terms + 1) * sizes / count + _F32.tiny
        d = d - mean
        error = error + off + _F32.unit * (np.abs(d) + error + off)
    epsilon = desc.epsilon
    gap = abs(float(np.float32(epsilon)) - epsilon)
    root = np.sqrt((d * d).sum(axis=1, keepdims=True) / count + epsilon)
    moved = np.sqrt((error * error).sum(axis=1, keepdims=True) / count) + gap / root
    least = root - moved
    underflow = 2 * _F32.tiny / (least * least)
    relative = root / least * (1 + _F32.gamma((terms + 3) / 2 + 2)) * (1 + underflow) * (1 + _F32.unit) - 1
    off = (error + (np.abs(d) + error) * relative) / root + _F32.tiny
    largest = np.maximum(sizes, ((np.abs(d) + error) ** 2).sum(axis=1, keepdims=True))
    fits = largest * 2 + epsilon * SLACK < _F32.overflow
    rows = stream.sound.all(axis=1, keepdims=True) & (least > 0) & (underflow <= 1 / 2) & fits
    return _Value(d / root, off, np.broadcast_to(rows, d.shape))


@attrs.frozen(kw_only=True, repr=False)
class ActivationErrorBound(ErrorBound):
    """Bound of ActivationQuantize.

    The activation is evaluated within ``activation_ulps``·u·|x|, as in `LinearErrorBound`; the factor of a gated one
    and the multiplier are one rounding each, and so is the output.

    Parameters
    ----------
    activation_ulps : float
        Error of evaluating GELU or SiLU, in units of u·|x|; the reference's is one rounding.
    """

    activation_ulps: float = 1.0

    @property
    def formula(self) -> str:
        """The bound as one line of text."""
        return (
            f"{self.activation_ulps:g}·u·|x| (0 for identity and ReLU), carried through up and multiplier, one "
            "rounding each; then one rounding into the output, in units of its scale"
        )

    def bound(self, desc: Any, args: Any) -> NDArray[np.float64]:  # noqa: ANN401 - the op's own types
        """Return the bound of each output element; see the class."""
        with np.errstate(all="ignore"):
            return self._value(desc, args).stored(desc, args)

    def bounds(self, desc: Any, args: Any) -> dict[str, NDArray[np.float64]]:  # noqa: ANN401 - the op's own types
        """Return the bound of the output, and that of the scales where they are dynamic.

        A scale is off by as much as the largest magnitude of its segment may be, over what it becomes, and by one
        rounding. A power of two may be the next one. Where a magnitude may have been 0, the scale may be 1.
        """
        found = {"output": self.bound(desc, args)}
        if desc.scope is None or desc.scope == Scope.tensor():
            return found
        with np.errstate(all="ignore"):
            value = self._value(desc, args)
            amax = _segment_max(np.abs(value.exact), desc.scope)
            error = _segment_max(value.error, desc.scope)
            sound = ~_segment_max(~value.sound, desc.scope).astype(bool)
            limit = float(CODE_MAX) if desc.output_element.is_integer else desc.output_element.largest
            exact = _dynamic_scale(amax, limit, args)
            ends = (_dynamic_scale(end, limit, args) for end in (amax + error, np.maximum(amax - error, 0)))
            furthest = np.maximum(*(np.abs(end - exact) for end in ends))
            furthest = np.where((amax <= error) & (error > 0), np.maximum(furthest, exact), furthest)
            if np.asarray(args.scale).dtype == np.float32:
                furthest = furthest + _F32.unit * (exact + furthest) + _F32.tiny
            found["scale"] = finish(furthest, sound)
        return found

    def _value(self, desc: Any, args: Any) -> _Value:  # noqa: ANN401 - the op's own types
        gate, up = _operands(desc, args)
        value = _Value.of(gate)
        if not desc.epilogue.exact:
            error = after_activation(desc.epilogue, value.exact, value.error, _F32, self.activation_ulps)
            value = _Value(activation(value.exact, desc.epilogue), error, value.sound)
        else:
            value = _Value(activation(value.exact, desc.epilogue), value.error, value.sound)
        if up is not None:
            value = value.times(f64(up))
        if desc.multiplier:
            value = value.times(f64(args.multiplier))
        return value


def _operands(desc: Any, args: Any) -> tuple[Any, Any]:  # noqa: ANN401 - the op's own types
    """Return what the activation is applied to, and its factor or None."""
    if desc.gating is GatingKind.MERGED:
        both = np.asarray(args.gate_up)
        return both[:, : desc.k], both[:, desc.k :]
    return (args.gate, args.up) if desc.gating is GatingKind.SPLIT else (args.x, None)


def _scales(desc: Any, args: Any) -> tuple[NDArray[np.float64], float]:  # noqa: ANN401 - two types
    """Return the scale of every element, and how far rounding a host value moves a quotient, relatively."""
    if desc.scope == Scope.tensor():
        given, gap = host_or_operand(desc, args, "scale", ElementKind.F32)
        return f64(given), gap
    scale = np.asarray(args.scale)
    element = ElementKind.F32 if scale.dtype == np.float32 else ElementKind.E8M0
    wide = widen_scale(scale, element, np.float64)
    return f64(spread(wide, desc.scope, slice(0, desc.m), desc.k)), 0.0


def _segment_max(values: NDArray[Any], scope: Scope) -> NDArray[np.float64]:
    """Return the largest value of each segment within rows, in the shape of the scales."""
    m, k = values.shape
    shape = scope.scale_shape(m, k)
    size = scope.group_size or max(1, k)
    groups = max(1, -(-k // size)) if len(shape) == 1 else shape[1]
    padded = np.zeros((m, groups * size))
    padded[:, :k] = values
    found: NDArray[np.float64] = padded.reshape(m, groups, size).max(axis=2).reshape(shape)
    return found


def _dynamic_scale(amax: NDArray[np.float64], limit: float, args: Any) -> NDArray[np.float64]:  # noqa: ANN401 - the op's own type
    """Return the scale of a real magnitude, before it is rounded to f32, or as the power of two that it is."""
    if np.asarray(args.scale).dtype != np.float32:
        return f64(widen_scale(power_of_two_scale(amax, limit), ElementKind.E8M0, np.float64))
    scale = np.maximum(amax / limit, _SMALLEST_NORMAL)
    return np.where(amax == 0, 1.0, scale)
