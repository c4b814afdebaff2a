"""What the quantize family must write, element by element, from the numeric contract in exact arithmetic.

Every function takes a descriptor and the inputs by the names of the op's Args, and returns the expected codes of each
output. A step that the contract rounds is one call of `exact`; everything else is an exact value.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from quantplan.elements import ElementKind
from quantplan.types import QuantizeMode, Scope, ScopeKind
from quantplan.verify.exact import (
    E2M1,
    E4M3,
    E8M0,
    F32,
    F64,
    FLOATS,
    FORMATS,
    Format,
    divide,
    multiply,
    nearest_integer,
    subtract,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from quantplan.ops.dequantize import DequantizeDescriptor
    from quantplan.ops.dynamic_range_quantize import DynamicRangeQuantizeDescriptor
    from quantplan.ops.quantize import QuantizeDescriptor
    from quantplan.verify.tensors import HostTensor

_TWO_LEVEL = 2688.0  # 6 · 448: the largest FP4 value times the largest e4m3 block scale


def quantize(desc: QuantizeDescriptor, inputs: Mapping[str, HostTensor]) -> dict[str, list[int]]:
    """Return the codes that a static quantization must write."""
    form = F64 if desc.input_element is ElementKind.F64 else F32
    place = segment_of(desc.scope, desc.m, desc.k)
    scales = _given_scales(desc, inputs, form)
    pairs = zip(inputs["x"].values, place, strict=True)
    if desc.scale_element is ElementKind.FP8_E4M3:
        blocks = inputs["scale"].values
        return {"q": [_two_level_code(x, blocks[i], scales[i], form) for x, i in pairs]}
    zero_points = _given_zero_points(desc, inputs, len(scales))
    return {"q": [_quantized(desc, x, scales[i], zero_points[i], form) for x, i in pairs]}


def dequantize(desc: DequantizeDescriptor, inputs: Mapping[str, HostTensor]) -> dict[str, list[int]]:
    """Return the codes that a dequantization must write."""
    wide = ElementKind.F64 in (desc.scale_element, desc.output_element)
    form = F64 if wide and desc.scale_element in (ElementKind.F64, ElementKind.E8M0) else F32
    place = segment_of(desc.scope, desc.m, desc.k)
    scales = _given_scales(desc, inputs, form)
    zero_points = _given_zero_points(desc, inputs, len(scales))
    output = FLOATS[desc.output_element]
    products = [
        multiply(q - zero_points[i] if zero_points[i] else q, scales[i], form)
        for q, i in zip(inputs["q"].values, place, strict=True)
    ]
    return {"output": [output.encode(output.convert(product)) for product in products]}


def dynamic_range_quantize(
    desc: DynamicRangeQuantizeDescriptor, inputs: Mapping[str, HostTensor]
) -> dict[str, list[int]]:
    """Return the codes that a dynamic quantization must write: values, scales and zero points."""
    x = inputs["x"].values
    place = segment_of(desc.scope, desc.m, desc.k)
    segments: list[list[float]] = [[] for _ in range(math.prod(desc.scope.scale_shape(desc.m, desc.k)))]
    for value, i in zip(x, place, strict=True):
        segments[i].append(value)
    form = F64 if desc.input_element is ElementKind.F64 else F32
    if desc.scale_element is ElementKind.FP8_E4M3:
        return _two_level(x, place, segments, form)
    ranges = [_range(desc, segment, form) for segment in segments]
    codes = [_quantized(desc, value, *ranges[i], form) for value, i in zip(x, place, strict=True)]
    scale_form = FORMATS[desc.scale_element]
    expected = {"q": codes, "scale": [scale_form.encode(scale) for scale, _ in ranges]}
    if desc.mode is QuantizeMode.ASYMMETRIC:
        expected["zero_point"] = [FORMATS[ElementKind.S32].encode(zero_point) for _, zero_point in ranges]
    return expected


def segment_of(scope: Scope, m: int, k: int) -> list[int]:
    """Return, for each element of a [m, k] operand, the index of its scale."""
    size = scope.group_size or 1
    groups = -(-k // size)
    match scope.kind, scope.axis:
        case ScopeKind.TENSOR, _:
            return [0] * (m * k)
        case (ScopeKind.TOKEN, _) | (ScopeKind.CHANNEL, 0):
            return [i for i in range(m) for _ in range(k)]
        case ScopeKind.CHANNEL, _:
            return list(range(k)) * m
        case _, 1:
            return [i * groups + j // size for i in range(m) for j in range(k)]
    return [i // size * k + j for i in range(m) for j in range(k)]


def symmetric_scale(amax: float, q_max: float, element: ElementKind, form: Format) -> float:
    """Return the scale of a segment whose largest magnitude is known."""
    if element is ElementKind.E8M0:
        (num, den), (q_num, q_den) = amax.as_integer_ratio(), q_max.as_integer_ratio()
        return E8M0.ceiling(num * q_den, den * q_num)
    return max(divide(amax, q_max, form), form.smallest_normal) if amax else 1.0


def asymmetric_range(low: float, high: float, q_min: int, q_max: int, form: Format) -> tuple[float, int]:
    """Return scale and zero point of a segment with values from ``low`` to ``high``."""
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return 1.0, 0
    width = subtract(high, low, form)
    if math.isfinite(width):
        scale = divide(width, q_max - q_min, form)
    else:
        halves = subtract(divide(high, 2, form), divide(low, 2, form), form)
        scale = divide(halves, (q_max - q_min) / 2, form)
    scale = max(scale, form.smallest_normal)
    zero_point = nearest_integer(subtract(q_min, divide(low, scale, form), form))
    return scale, min(max(zero_point, q_min), q_max)


def _range(desc: DynamicRangeQuantizeDescriptor, segment: Sequence[float], form: Format) -> tuple[float, int]:
    if not all(map(math.isfinite, segment)):
        return math.nan, 0
    if desc.mode is QuantizeMode.ASYMMETRIC:
        low, high = min(segment, default=0.0), max(segment, default=0.0)
        return asymmetric_range(low, high, *_integer_range(desc), form)
    amax = max(map(abs, segment), default=0.0)
    largest = FLOATS[desc.output_element].largest if desc.q_max is None else float(desc.q_max)
    return symmetric_scale(amax, largest, desc.scale_element, form), 0


def _two_level(
    x: Sequence[float], place: Sequence[int], segments: Sequence[Sequence[float]], form: Format
) -> dict[str, list[int]]:
    """NVFP4: an e4m3 scale per block, times one f32 scale for the tensor."""
    amaxes = [max(map(abs, segment), default=0.0) for segment in segments]
    overall = math.nan
    if all(map(math.isfinite, x)):
        amax = max(amaxes, default=0.0)
        overall = max(F32.convert(divide(amax, _TWO_LEVEL, form)), F32.smallest_normal) if amax else 1.0
    if math.isinf(overall):
        overall = math.nan  # only f64 reaches this: the tensor is spoilt, as by an infinity
    divisor = multiply(E2M1.largest, overall, F32)
    blocks = [E4M3.convert(divide(amax, divisor, form), saturate=True) for amax in amaxes]
    scales = [multiply(block, overall, F32) for block in blocks]
    return {
        "q": [_two_level_code(value, blocks[i], scales[i], form) for value, i in zip(x, place, strict=True)],
        "scale": [E4M3.encode(block) for block in blocks],
        "global_scale": [F32.encode(overall)],
    }


def _two_level_code(x: float, block: float, scale: float, form: Format) -> int:
    """Return an FP4 code; a block scale of zero makes it zero, and so does NaN, which FP4 cannot hold."""
    return E2M1.encode(E2M1.convert(divide(x, scale, form))) if block else 0


def _given_scales(
    desc: QuantizeDescriptor | DequantizeDescriptor, inputs: Mapping[str, HostTensor], form: Format
) -> list[float]:
    if desc.scale is not None:
        return [form.convert(desc.scale)] * math.prod(desc.scope.scale_shape(desc.m, desc.k))
    scales = inputs["scale"].values
    if "global_scale" not in inputs:
        return scales
    (overall,) = inputs["global_scale"].values
    return [multiply(scale, overall, F32) for scale in scales]


def _given_zero_points(
    desc: QuantizeDescriptor | DequantizeDescriptor, inputs: Mapping[str, HostTensor], count: int
) -> list[int]:
    if "zero_point" in inputs:
        return [int(value) for value in inputs["zero_point"].values]
    return [desc.zero_point or 0] * count


def _integer_range(desc: QuantizeDescriptor | DynamicRangeQuantizeDescriptor) -> tuple[int, int]:
    """Return the descriptor's range; only floating-point outputs have none."""
    return desc.q_min or 0, desc.q_max or 0


def _quantized(
    desc: QuantizeDescriptor | DynamicRangeQuantizeDescriptor, x: float, scale: float, zero_point: int, form: Format
) -> int:
    """Return the code of one element under a scale that may be anything; NaN gives the zero point, or NaN."""
    element = desc.output_element
    quotient = divide(x, scale, form)
    if not element.is_integer:
        target = FLOATS[element]
        return target.encode(target.convert(quotient, saturate=desc.saturate))
    low, high = _integer_range(desc)
    if math.isnan(quotient):
        level = zero_point
    elif math.isinf(quotient):
        level = high if quotient > 0 else low
    else:
        level = nearest_integer(quotient) + zero_point
    return FORMATS[element].encode(min(max(level, low), high))
