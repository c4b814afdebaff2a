"""What the W8A8 linears must give: the contract's exact bits, and the real-valued result that error bounds are about.

The integer sum is exact. `bits` then follows the contract's order, one rounding per call of `exact`; it exists for the
epilogues that every device computes alike. `real` rounds nothing at all.
"""

from __future__ import annotations

import math
from fractions import Fraction
from operator import mul
from typing import TYPE_CHECKING, NamedTuple

from quantplan.elements import ElementKind
from quantplan.types import EpilogueKind
from quantplan.verify.exact import F32, F64, FLOATS, FORMATS, add, divide, multiply, nearest_integer
from quantplan.verify.functions import activation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from quantplan.ops.quantized_linear import QuantizedLinearDescriptor
    from quantplan.ops.smoothquant_linear import SmoothQuantLinearDescriptor
    from quantplan.verify.tensors import HostTensor

    LinearDescriptor = SmoothQuantLinearDescriptor | QuantizedLinearDescriptor

CODE_LIMIT = 127
"""A requantized S8 output keeps to ±127."""


class Terms(NamedTuple):
    """What one output element is made of, exactly."""

    total: int
    act_scale: float
    weight_scale: float
    bias: float | None
    output_scale: float | None


def bits(desc: LinearDescriptor, inputs: Mapping[str, HostTensor]) -> list[int]:
    """Return the codes that the output must have, where the epilogue is identity or ReLU."""
    return [_code(desc, terms) for terms in _elements(desc, inputs, rounded=True)]


def real(desc: LinearDescriptor, inputs: Mapping[str, HostTensor]) -> list[Fraction | None]:
    """Return the real-valued result of each element; None where an operand is not finite, so that it is NaN.

    An S8 output's result is the code before its rounding, so a Fraction within ±127.
    """
    return [_real(desc, terms) for terms in _elements(desc, inputs, rounded=False)]


def _elements(desc: LinearDescriptor, inputs: Mapping[str, HostTensor], *, rounded: bool) -> Iterator[Terms]:
    """Yield what each output element is made of; the contract rounds host scales to the arithmetic's element first."""
    form = F64 if desc.output_element is ElementKind.F64 else F32
    act, weight = inputs["act_q"].values, inputs["weight_q"].values
    m, n, k = desc.m, desc.n, desc.k
    convert = form.convert if rounded else float
    act_scales = _spread(inputs.get("act_scale"), getattr(desc, "act_scale", None), m, convert)
    weight_scales = _spread(inputs["weight_scale"], None, n, convert)
    zero_points = _spread(inputs.get("act_zero_point"), int(desc.act_zero_point), m, int)
    bias = inputs["bias"].values if "bias" in inputs else [None] * n
    requantized = desc.output_element is ElementKind.S8
    (output_scale,) = _spread(inputs.get("output_scale"), desc.output_scale, 1, convert) if requantized else [None]
    columns = [weight[j * k : (j + 1) * k] for j in range(n)]
    sums = [sum(map(int, column)) for column in columns]
    for i in range(m):
        row = act[i * k : (i + 1) * k]
        for j, column in enumerate(columns):
            total = int(sum(map(mul, row, column))) - int(zero_points[i]) * sums[j]
            yield Terms(total, act_scales[i], weight_scales[j], bias[j], output_scale)


def _spread(given: HostTensor | None, host: float | None, count: int, convert: Callable[[float], float]) -> list[float]:
    """Return one value per row or column, from an operand or from the descriptor."""
    values = [convert(host or 0)] if given is None else given.values
    return values * count if len(values) == 1 else values


def _code(desc: LinearDescriptor, terms: Terms) -> int:
    form = F64 if desc.output_element is ElementKind.F64 else F32
    scale = multiply(terms.act_scale, terms.weight_scale, form)
    y = multiply(form.round(terms.total, 1), scale, form)
    if terms.bias is not None:
        y = add(y, terms.bias, form)
    if desc.epilogue is EpilogueKind.RELU and not math.isnan(y):
        y = y if y > 0 else 0.0
    if terms.output_scale is None:
        output = FLOATS[desc.output_element]
        return output.encode(output.convert(y))
    return FORMATS[ElementKind.S8].encode(_requantized(divide(y, terms.output_scale, form)))


def _requantized(quotient: float) -> int:
    if math.isnan(quotient):
        return 0
    if math.isinf(quotient):
        return CODE_LIMIT if quotient > 0 else -CODE_LIMIT
    return min(max(nearest_integer(quotient), -CODE_LIMIT), CODE_LIMIT)


def _real(desc: LinearDescriptor, terms: Terms) -> Fraction | None:
    operands = (terms.act_scale, terms.weight_scale, terms.bias or 0, terms.output_scale or 0)
    if not all(map(math.isfinite, operands)):
        return None
    product = terms.total * Fraction(terms.act_scale) * Fraction(terms.weight_scale)
    result = activation(product + Fraction(terms.bias or 0), desc.epilogue)
    if terms.output_scale is None:
        return result
    if terms.output_scale == 0:  # the quotient is infinite, or 0 / 0
        return Fraction(CODE_LIMIT if result > 0 else -CODE_LIMIT) if result else None
    return min(max(result / Fraction(terms.output_scale), Fraction(-CODE_LIMIT)), Fraction(CODE_LIMIT))
