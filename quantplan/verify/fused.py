"""What the fused ops must write, by the numeric contract in exact arithmetic; where that is not exact, real results.

Rows are made element by element, each step that the contract rounds by one call of `exact`. How they are stored is the
business of the quantize family's oracle.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from quantplan.elements import ElementKind
from quantplan.ops.dynamic_range_quantize import DynamicRangeQuantizeDescriptor
from quantplan.ops.quantize import QuantizeDescriptor
from quantplan.types import EpilogueKind, GatingKind, NormKind, Scope
from quantplan.verify.exact import F32, FLOATS, FORMATS, add, divide, multiply, square_root, subtract
from quantplan.verify.functions import activation
from quantplan.verify.quantize import dynamic_range_quantize, quantize, segment_of
from quantplan.verify.tensors import HostTensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quantplan.ops.activation_quantize import ActivationQuantizeDescriptor
    from quantplan.ops.norm_quantize import NormQuantizeDescriptor

    Inputs = Mapping[str, HostTensor]
    Target = Fraction | float | None

_RUN, _RUNS_PER_LANE, _WARP, _MOST_LANES = 8, 4, 32, 512
_CODE_MAX = 127


# ---- NormQuantize


def norm_quantize(desc: NormQuantizeDescriptor, inputs: Inputs) -> dict[str, list[int]]:
    """Return the codes that NormQuantize must write."""
    stream = _stream(desc, inputs)
    rows = [_finished(desc, inputs, i, _normalized(desc, row)) for i, row in enumerate(_rows(desc, stream))]
    expected = _stored(desc, [value for row in rows for value in row], inputs)
    if desc.residual:
        expected["residual_output"] = [FLOATS[desc.input_element].encode(value) for value in stream]
    return expected


def _rows(desc: Any, values: list[float]) -> list[list[float]]:  # noqa: ANN401 - two types
    return [values[i * desc.k : (i + 1) * desc.k] for i in range(desc.m)]


def _stream(desc: NormQuantizeDescriptor, inputs: Inputs) -> list[float]:
    x, form = inputs["x"].values, FLOATS[desc.input_element]
    if not desc.residual:
        return x
    branch = x
    if desc.gated:
        gates = [value for i in range(desc.m) for value in _condition(desc, inputs["residual_gate"], i)]
        branch = [multiply(gate, value, F32) for gate, value in zip(gates, x, strict=True)]
    pairs = zip(inputs["residual"].values, branch, strict=True)
    return [form.convert(add(old, new, F32)) for old, new in pairs]


def _condition(desc: NormQuantizeDescriptor, tensor: HostTensor, row: int) -> list[float]:
    i = 0 if desc.rows_per_condition is None else row // desc.rows_per_condition
    return tensor.values[i * desc.k : (i + 1) * desc.k]


def _normalized(desc: NormQuantizeDescriptor, row: list[float]) -> list[float]:
    k = float(desc.k)
    if desc.norm is NormKind.LAYER:
        mean = divide(_folded_sum(row), k, F32)
        row = [subtract(value, mean, F32) for value in row]
    mean_square = divide(_folded_sum([multiply(value, value, F32) for value in row]), k, F32)
    reciprocal = divide(1.0, square_root(add(mean_square, F32.convert(desc.epsilon), F32), F32), F32)
    return [multiply(value, reciprocal, F32) for value in row]


def _finished(desc: NormQuantizeDescriptor, inputs: Inputs, i: int, row: list[float]) -> list[float]:
    def times(values: list[float], factors: list[float]) -> list[float]:
        return [multiply(a, b, F32) for a, b in zip(values, factors, strict=True)]

    def plus(values: list[float], addends: list[float]) -> list[float]:
        return [add(a, b, F32) for a, b in zip(values, addends, strict=True)]

    if desc.weight:
        row = times(row, inputs["weight"].values)
    if desc.bias:
        row = plus(row, inputs["bias"].values)
    if desc.modulated:
        row = times(row, [add(1.0, s, F32) for s in _condition(desc, inputs["modulation_scale"], i)])
        row = plus(row, _condition(desc, inputs["modulation_shift"], i))
    return times(row, inputs["multiplier"].values) if desc.multiplier else row


def _folded_sum(terms: list[float]) -> float:
    """Return the sum of a row in the order of the contract."""
    wanted, lanes = -(-len(terms) // (_RUN * _RUNS_PER_LANE)), _WARP
    while lanes < min(wanted, _MOST_LANES):
        lanes *= 2
    padded = terms + [0.0] * (-len(terms) % (_RUN * lanes) or (0 if terms else _RUN * lanes))
    runs = [_fold(padded[at : at + _RUN]) for at in range(0, len(padded), _RUN)]
    sums = runs[:lanes]
    for at in range(lanes, len(runs), lanes):
        sums = [add(a, b, F32) for a, b in zip(sums, runs[at : at + lanes], strict=True)]
    warps = [_fold(sums[at : at + _WARP]) for at in range(0, lanes, _WARP)]
    return add(_fold(warps), 0.0, F32)


def _fold(values: list[float]) -> float:
    while len(values) > 1:
        half = len(values) // 2
        values = [add(a, b, F32) for a, b in zip(values[:half], values[half:], strict=True)]
    return values[0]


# ---- ActivationQuantize


def activation_quantize(desc: ActivationQuantizeDescriptor, inputs: Inputs) -> dict[str, list[int]]:
    """Return the codes that ActivationQuantize with an exact activation must write."""
    gate, up = _halves(desc, inputs)
    y = [_exact_activation(value, desc.epilogue) for value in gate]
    for factors in _factors(desc, inputs, up):
        y = [multiply(a, b, F32) for a, b in zip(y, factors, strict=True)]
    return _stored(desc, y, inputs)


def real_activation(desc: ActivationQuantizeDescriptor, inputs: Inputs, written: Inputs) -> dict[str, list[Target]]:
    """Return the real-valued results: of the output in units of its scales, and of those where they are dynamic.

    What codes stand for depends on the scale beside them: that is the one that was written.
    """
    gate, up = _halves(desc, inputs)
    y = [_real_activation(value, desc.epilogue) for value in gate]
    for factors in _factors(desc, inputs, up):
        y = [_times(a, b) for a, b in zip(y, factors, strict=True)]
    if desc.scope is None:
        return {"output": [_defined(value) for value in y]}
    limit = _limit(desc)
    if desc.scope == Scope.tensor():
        scale = F32.convert(desc.scale) if desc.scale is not None else inputs["scale"].values[0]
        return {"output": [_clamped(value, scale, limit) for value in y]}
    place = segment_of(desc.scope, desc.m, desc.k)
    scales = written["scale"]
    segments: list[list[Fraction | float]] = [[] for _ in scales.codes]
    for value, i in zip(y, place, strict=True):
        segments[i].append(value)
    found = [_dynamic_scale(segment, limit, scales.element) for segment in segments]
    outputs = [
        None
        if found[i] is None or not math.isfinite(scales.values[i])
        else Fraction(value) / Fraction(scales.values[i])
        for value, i in zip(y, place, strict=True)
    ]
    return {"output": list(outputs), "scale": list(found)}


def _halves(desc: ActivationQuantizeDescriptor, inputs: Inputs) -> tuple[list[float], list[float] | None]:
    if desc.gating is GatingKind.NONE:
        return inputs["x"].values, None
    if desc.gating is GatingKind.SPLIT:
        return inputs["gate"].values, inputs["up"].values
    both, k = inputs["gate_up"].values, desc.k
    starts = range(0, 2 * k * desc.m, 2 * k) if k else ()
    gate = [value for at in starts for value in both[at : at + k]]
    return gate, [value for at in starts for value in both[at + k : at + 2 * k]]


def _factors(desc: ActivationQuantizeDescriptor, inputs: Inputs, up: list[float] | None) -> list[list[float]]:
    factors = [] if up is None else [up]
    return [*factors, inputs["multiplier"].values * desc.m] if desc.multiplier else factors


def _exact_activation(value: float, epilogue: EpilogueKind) -> float:
    return 0.0 if epilogue is EpilogueKind.RELU and value <= 0 else value


def _real_activation(value: float, epilogue: EpilogueKind) -> Fraction | float:
    if math.isfinite(value):
        return activation(Fraction(value), epilogue)
    return -0.0 if value == -math.inf else value  # of GELU and SiLU, which approach zero from below


def _times(a: Fraction | float, b: float) -> Fraction | float:
    if isinstance(a, Fraction) and math.isfinite(b):
        return a * Fraction(b)
    return (float(a > 0) - float(a < 0)) * b if isinstance(a, Fraction) else a * b


def _defined(value: Fraction | float) -> Target:
    return None if isinstance(value, float) and math.isnan(value) else value


def _clamped(value: Fraction | float, scale: float, limit: Fraction) -> Target:
    """Return a result in units of a given scale, within what codes reach."""
    if math.isnan(value) or math.isnan(scale):
        return None
    if math.isinf(value) or scale == 0:
        return (limit if (value > 0) == (math.copysign(1, scale) > 0) else -limit) if value else None
    return min(max(Fraction(value) / Fraction(scale), -limit), limit)


def _dynamic_scale(segment: list[Fraction | float], limit: Fraction, element: ElementKind) -> Target:
    """Return the scale of a segment before it is rounded; None where a value is not finite."""
    if not all(map(math.isfinite, segment)):
        return None
    amax = max((abs(Fraction(value)) for value in segment), default=Fraction(0))
    if element is ElementKind.E8M0:
        quotient = amax / limit
        return Fraction(FORMATS[element].ceiling(quotient.numerator, quotient.denominator))  # type: ignore[union-attr] # E8M0's
    return max(amax / limit, Fraction(F32.smallest_normal)) if amax else Fraction(1)


# ---- how rows are stored


def _limit(desc: Any) -> Fraction:  # noqa: ANN401 - two types
    return Fraction(_CODE_MAX if desc.output_element.is_integer else FLOATS[desc.output_element].largest)


def _stored(desc: Any, y: list[float], inputs: Inputs) -> dict[str, list[int]]:  # noqa: ANN401 - two types
    """Return the codes of rows, and of their scales where they are dynamic."""
    output = desc.output_element
    if desc.scope is None:
        return {"output": [FLOATS[output].encode(FLOATS[output].convert(value)) for value in y]}
    fields = {"m": desc.m, "k": desc.k, "output_element": output, "scope": desc.scope}
    x = {"x": HostTensor.of(ElementKind.F32, (desc.m, desc.k), y)}
    if desc.scope == Scope.tensor():
        codes = quantize(QuantizeDescriptor(**fields, scale=desc.scale), {**inputs, **x})
    else:
        element = ElementKind.E8M0 if desc.scope == Scope.group(32) else ElementKind.F32
        codes = dynamic_range_quantize(DynamicRangeQuantizeDescriptor(**fields, scale_element=element), x)
    return {"output": codes.pop("q"), **codes}
