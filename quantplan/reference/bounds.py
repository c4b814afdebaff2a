"""A-priori error bounds of the quantize family's and the W8A8 linears' reference.

The symbols are those of `quantplan.reference.error_model`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from quantplan.elements import ElementKind, to_element
from quantplan.reference.dequantize import dequantize
from quantplan.reference.epilogue import OUTPUT_CODE_MAX, activation
from quantplan.reference.error_model import FORMATS, SLACK, Format, after_activation, f64, finish, host_or_operand
from quantplan.reference.igemm import int_gemm
from quantplan.reference.scales import widen_scale
from quantplan.reference.segments import spread
from quantplan.types import ErrorBound, Scope

if TYPE_CHECKING:
    from numpy.typing import NDArray


@attrs.frozen(kw_only=True, repr=False)
class LinearErrorBound(ErrorBound):
    """Bound of SmoothQuantLinear and QuantizedLinear.

    With P = acc·act_scale·weight_scale and x = P + bias as real numbers, acc an exact integer:

    1. The product is the result of n = ``roundings`` roundings: the scales' product (d₁, e₁), the conversion of acc,
       and the product of both (d₃, e₃). So |p − P| ≤ δ_p = γ(n)·|P| + (|acc| + 1)·η. A host scale that the arithmetic
       cannot hold is off by one more rounding: + |P|·|rne(act_scale) / act_scale − 1|.
    2. A bias is one rounded addition: |y − x| ≤ δ_y = δ_p + u·(|x| + δ_p); without one, δ_y = δ_p.
    3. The activation has slope at most L, |act(y)| ≤ |y|, and is evaluated within ``activation_ulps``·u·|y|, after an
       evaluation in f64 within 8 of f64's u: δ_a = L·δ_y + e_act·(|x| + δ_y) + η, and δ_a = δ_y for identity and ReLU.
    4. The output is one more rounding if it is narrower: δ = δ_a + u_out·(|act(x)| + δ_a) + η_out. It may be infinite
       where |act(x)| + δ_a reaches the overflow threshold, and so may what precedes it: there the bound is infinite.
    5. s8 codes are compared with clamp(act(x) / output_scale), and clamping brings nothing further apart: one rounded
       division and one rounding to an integer, δ = (δ_a·(1 + u) + u·|act(x)|) / output_scale + η + ½, at most 254.

    Parameters
    ----------
    roundings : int
        Roundings up to and including the product of the sum with its scale.
    activation_ulps : float
        Error of evaluating GELU or SiLU, in units of u·|y|; the reference's is one rounding.
    compute : ElementKind, optional
        Arithmetic of scales, bias and activation; by default F64 for F64 output and F32 for every other.
    """

    roundings: int = 3
    activation_ulps: float = 1.0
    compute: ElementKind | None = attrs.field(default=None, converter=attrs.converters.optional(to_element))

    @property
    def formula(self) -> str:
        """The bound as one line of text."""
        return (
            f"L·d + {self.activation_ulps:g}·u·|y| + u_out·|exact| + eta with "
            f"d = gamma({self.roundings})·|P| + u·|P + bias| + (|acc| + 1)·eta, P = acc·act_scale·weight_scale; "
            "s8: that over output_scale, + u·|exact| + 1/2"
        )

    def bound(self, desc: Any, args: Any) -> NDArray[np.float64]:  # noqa: ANN401 - two types
        """Return the bound of each output element; see the class."""
        wide = ElementKind.F64 if desc.output_element is ElementKind.F64 else ElementKind.F32
        compute = FORMATS[self.compute or wide]
        with np.errstate(all="ignore"):
            acc, fits = _exact_sums(desc, args)
            act, act_gap = host_or_operand(desc, args, "act_scale", self.compute or wide)
            act = f64(act).reshape(-1, 1)
            scale = act * f64(args.weight_scale).reshape(1, -1)
            product = acc * scale
            x = product if args.bias is None else product + f64(args.bias)
            relative = self.roundings * compute.unit
            error = (relative / (1 - relative) + act_gap) * np.abs(product) + (np.abs(acc) + 1) * compute.tiny
            if args.bias is not None:
                error += compute.unit * (np.abs(x) + error)
            sound = fits & (np.abs(scale) * SLACK < compute.overflow)
            sound &= (np.abs(product) + np.abs(x) + error) * SLACK < compute.overflow
            error = after_activation(desc.epilogue, x, error, compute, self.activation_ulps)
            size = np.abs(activation(x, desc.epilogue))
            if desc.output_element is ElementKind.S8:
                return _in_codes(desc, args, size, error, compute)
            output = FORMATS[desc.output_element]
            sound &= (size + error) * SLACK < output.overflow
            if output.unit > compute.unit:
                error += output.unit * (size + error) + output.tiny
            return finish(error, sound)


@attrs.frozen(kw_only=True, repr=False)
class QuantizeErrorBound(ErrorBound):
    """Bound of Quantize and DynamicRangeQuantize: how far codes times scales may be from what was quantized.

    The real value of a code is ``(q − zero_point)·scale``; scales and zero points are those in the arguments, so for a
    dynamic range the bound is asked for after the run. With r = x / scale, the computed quotient is within u·|r| + η
    of r.

    - Integers: rounding moves it by at most ½. Clamping moves it further only where r + zero_point is beyond the range
      by more than ½, which static scales allow, and negative elements where symmetric codes begin at 0: there the bound
      is infinite. (Rounded dynamic scales and zero points can exceed the range by ½ and a little; the little is added.)
      δ = scale·(max(½, excess) + 2u·|r| + η).
    - FP8: δ = scale·(max(u₈/(1 + u₈)·|r|, η₈) + 2u·|r| + η); infinite from where r saturates.
    - NVFP4: scale = rne32(block scale·global scale). The rounding of block scales to e4m3 makes codes clip at ±6 now
      and then, by |r| − 6: δ = scale·(max(|r|/5, ¼, |r| − 6) + 2u·|r| + 6u + η) + 6η, and |x| where a block scale is
      zero.

    Infinite for NaN and infinities, in x or in its scale.
    """

    @property
    def formula(self) -> str:
        """The bound as one line of text."""
        return (
            "scale·(step + 2u·|r| + eta) with r = x/scale and step = max(1/2, excess) for integers, "
            "max(|r|·u_q/(1 + u_q), eta_q) for FP8 and FP4, where FP4 also clips by |r| - 6; infinite where x saturates"
        )

    def bound(self, desc: Any, args: Any) -> NDArray[np.float64]:  # noqa: ANN401 - two types
        """Return the bound of each element's reconstruction error; see the class."""
        kind = desc.output_element
        compute = FORMATS[ElementKind.F64 if desc.input_element is ElementKind.F64 else ElementKind.F32]
        x = f64(args.x)
        with np.errstate(all="ignore"):
            scale = _segment_scales(desc, args, desc.input_element)
            ratio = x / scale
            size = np.abs(ratio)
            sound = np.isfinite(x) & np.isfinite(scale)
            rounding = 2 * compute.unit * size + compute.tiny
            if kind.is_integer:
                position = ratio + _segment_zero_points(desc, args)
                step = np.maximum(0.5, np.maximum(position - desc.q_max, desc.q_min - position))
                sound &= step <= 0.5 + 2.0**-10 + rounding
            else:
                quantized = FORMATS[kind]
                step = np.maximum(quantized.unit / (1 + quantized.unit) * size, quantized.tiny)
                if kind is ElementKind.FP4_E2M1:
                    step = np.maximum(step, size - kind.largest) + kind.largest * compute.unit
                else:
                    sound &= (size + rounding) * SLACK < quantized.overflow
            error = np.abs(scale) * (step + rounding)
            if kind is ElementKind.FP4_E2M1:
                lost = kind.largest * FORMATS[ElementKind.F32].tiny
                error = np.where(_zero_blocks(desc, args) | (scale == 0), np.abs(x), error) + lost
            return finish(error, sound)


@attrs.frozen(kw_only=True, repr=False)
class DequantizeErrorBound(ErrorBound):
    """Bound of Dequantize against the real product y = (q − zero_point)·scale.

    The difference is exact. The product is one rounding, after another one for NVFP4's scale, and the output one more
    if it is narrower: δ = γ(n)·|y| + c·η, then + u_out·(|y| + δ) + η_out; n = 1 and c = 1, or n = 2 and c = 7 for
    NVFP4, whose codes are at most 6. Infinite where a rounding reaches the overflow threshold, and where the operands
    hold NaN or infinities.
    """

    @property
    def formula(self) -> str:
        """The bound as one line of text."""
        return "gamma(n)·|(q - zero_point)·scale| + u_out·|exact| + eta, n = 1 (2 with two levels of scales)"

    def bound(self, desc: Any, args: Any) -> NDArray[np.float64]:  # noqa: ANN401 - each op has its own types
        """Return the bound of each output element; see the class."""
        wide = ElementKind.F64 in (desc.scale_element, desc.output_element) and desc.scale_element in (
            ElementKind.F64,
            ElementKind.E8M0,
        )
        compute, output = FORMATS[ElementKind.F64 if wide else ElementKind.F32], FORMATS[desc.output_element]
        two_levels = desc.scale_element is ElementKind.FP8_E4M3
        with np.errstate(all="ignore"):
            scale = _segment_scales(desc, args, desc.output_element)
            exact = np.abs((_code_values(desc, args) - _segment_zero_points(desc, args)) * scale)
            relative = (2 if two_levels else 1) * compute.unit
            error = relative / (1 - relative) * exact + (7 if two_levels else 1) * compute.tiny
            sound = (exact + error) * SLACK < min(compute.overflow, output.overflow)
            sound &= np.abs(scale) * SLACK < compute.overflow
            if output.unit > compute.unit:
                error += output.unit * (exact + error) + output.tiny
            return finish(error, sound)


def _exact_sums(desc: Any, args: Any) -> tuple[NDArray[np.float64], NDArray[np.bool]]:  # noqa: ANN401 - two types
    """Return Σ (a − zero_point)·w, and whether int32 holds it."""
    a, w = np.asarray(args.act_q), np.asarray(args.weight_q)
    acc = int_gemm(a, w).astype(np.int64)
    zero_point = getattr(args, "act_zero_point", None)
    if zero_point is None:
        zero_point = int(desc.act_zero_point)
    acc -= np.asarray(zero_point, np.int64).reshape(-1, 1) * w.sum(axis=1, dtype=np.int64)
    limit = 2**31
    return acc.astype(np.float64), (-limit <= acc) & (acc < limit)


def _in_codes(
    desc: Any,  # noqa: ANN401 - two types
    args: Any,  # noqa: ANN401 - two types
    size: NDArray[np.float64],
    error: NDArray[np.float64],
    compute: Format,
) -> NDArray[np.float64]:
    """Return the bound of s8 codes, given the size and the error of what they are codes of."""
    scale, gap = host_or_operand(desc, args, "output_scale", ElementKind.F32)
    relative = compute.unit + gap
    codes = (error * (1 + relative) + relative * size) / np.abs(scale) + compute.tiny + 0.5
    furthest = 2.0 * OUTPUT_CODE_MAX
    # Where an operand is not finite there is no real result; an overflow on the way can at worst give the other end.
    known = np.isfinite(scale) & ~np.isnan(size) & ~np.isnan(error)
    return np.where(known, np.fmin(codes * SLACK, furthest), np.inf)


def _segment_scales(desc: Any, args: Any, real: ElementKind) -> NDArray[np.float64]:  # noqa: ANN401 - three types
    """Return the scale of every element, as the arithmetic uses it."""
    host = getattr(desc, "scale", None)
    element = desc.scale_element
    given = np.array([host], element.dtype) if host is not None else np.asarray(args.scale)
    wide = ElementKind.F64 in (real, element)
    overall = None if args.global_scale is None else np.asarray(args.global_scale)
    scales = widen_scale(given, element, np.float64 if wide else np.float32, overall)
    return f64(spread(scales, desc.scope, slice(0, desc.m), desc.k))


def _segment_zero_points(desc: Any, args: Any) -> NDArray[np.float64]:  # noqa: ANN401 - three types
    """Return the zero point of every element."""
    host = getattr(desc, "zero_point", None)
    if host is None and args.zero_point is None:
        return np.zeros((1, 1))
    given = np.array([host]) if host is not None else np.asarray(args.zero_point)
    return f64(spread(given, desc.scope, slice(0, desc.m), desc.k))


def _zero_blocks(desc: Any, args: Any) -> NDArray[np.bool]:  # noqa: ANN401 - two types
    """Return which elements have an NVFP4 block scale of zero."""
    scales = widen_scale(np.asarray(args.scale), desc.scale_element, np.float32)
    zero: NDArray[np.bool] = spread(scales, desc.scope, slice(0, desc.m), desc.k) == 0
    return zero


def _code_values(desc: Any, args: Any) -> NDArray[np.float64]:  # noqa: ANN401 - Dequantize's
    """Return the numbers that codes stand for: dequantized with a scale of one, exactly."""
    values = np.empty((desc.m, desc.k), np.float64)
    dequantize(
        np.asarray(args.q),
        values,
        np.ones(1),
        None,
        input_element=desc.input_element,
        output_element=ElementKind.F64,
        scope=Scope.tensor(),
        scale_element=ElementKind.F64,
    )
    return values
