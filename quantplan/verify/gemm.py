"""What the floating-point GEMMs are compared with: the real-valued result, in integers and fractions.

Every number of a format is an integer times the format's smallest one, so sums of products are sums of integers. Where
an operand is not finite the result follows IEEE 754 on the extended reals: an infinity, or NaN. Nothing is rounded but
the host's scales, which the contract says are float32.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache, lru_cache
from operator import mul
from typing import TYPE_CHECKING, NamedTuple

from quantplan.types import EpilogueKind, Fp8Scaling
from quantplan.verify import marlin
from quantplan.verify.exact import F32, FLOATS
from quantplan.verify.functions import activation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from quantplan.elements import ElementKind
    from quantplan.ops.fp8_gemm import Fp8GemmDescriptor
    from quantplan.ops.int4_marlin_gemm import Int4MarlinGemmDescriptor
    from quantplan.verify.tensors import HostTensor

    Extended = Fraction | float
    """A real number, or a float that is none: an infinity or NaN."""
    Number = int | float
    """The same, where the real number is an integer."""

BLOCK, MX_BLOCK = 128, 32
SYMMETRIC_ZERO = 8

_REMEMBERED = 1 << 12


class Codes(NamedTuple):
    """A 4-bit weight: Marlin's words, and what it takes to read them."""

    weight: HostTensor
    zero_point: HostTensor | None
    k: int
    n: int
    group_size: int

    @property
    def depth(self) -> int:
        """Rows per group."""
        return max(self.k, 1) if self.group_size < 0 else self.group_size

    @property
    def starts(self) -> range:
        """First rows of the groups."""
        return range(0, self.k, self.depth)

    def columns(self) -> list[list[int]]:
        """Return q − z of each column, padding left out."""
        k, n, padded_n = self.k, self.n, self.weight.shape[1] // 2
        codes = marlin.unpack(self.weight, k, n, padded_n, marlin.code_place)
        zeros = [[SYMMETRIC_ZERO] * n for _ in self.starts]
        if self.zero_point is not None:
            zeros = marlin.unpack(self.zero_point, len(self.starts), n, padded_n, marlin.zero_place)
        return [[codes[i][j] - zeros[i // self.depth][j] for i in range(k)] for j in range(n)]


def fp8_gemm(desc: Fp8GemmDescriptor, inputs: Mapping[str, HostTensor]) -> list[Extended | None]:
    """Return the real-valued result of each element; None where it is NaN.

    An FP8 output's result is what its codes stand for: divided by the output's scale, and clamped.
    """
    act, weight = inputs["act_q"], inputs["weight_q"]
    depth = {Fp8Scaling.BLOCK: BLOCK, Fp8Scaling.MX: MX_BLOCK}.get(desc.scaling, max(desc.k, 1))
    unit = _unit(act.element) * _unit(weight.element)
    act_scales = [[_times(unit, s) for s in row] for row in _scale_rows(inputs.get("act_scale"), desc.act_scale)]
    weight_scales = _scale_rows(inputs.get("weight_scale"), desc.weight_scale)
    shared = BLOCK if desc.scaling is Fp8Scaling.BLOCK else 1  # rows of the weight that have one row of scales
    sums = iter(_block_sums(act, weight, depth))
    totals = []
    for i in range(desc.m):
        row = act_scales[i % len(act_scales)]
        for j in range(desc.n):
            column = weight_scales[j // shared % len(weight_scales)]
            totals.append(_dot(next(sums), map(_times, row, column)))
    results = _biased_and_activated(totals, inputs.get("bias"), desc.epilogue)
    if not desc.output_element.is_fp8:
        return [_defined(y) for y in results]
    host = desc.output_scale
    output_scale = inputs["output_scale"].values[0] if host is None else F32.convert(host)
    return [_defined(_requantized(y, output_scale, desc.output_element.largest)) for y in results]


def int4_marlin_gemm(desc: Int4MarlinGemmDescriptor, inputs: Mapping[str, HostTensor]) -> list[Extended | None]:
    """Return the real-valued result of each element; None where it is NaN."""
    act = inputs["act"]
    unit = _unit(act.element)
    codes = Codes(inputs["weight_q"], inputs.get("weight_zero_point"), desc.k, desc.n, desc.group_size)
    sums = iter(_group_sums(act, inputs.get("perm"), codes))
    rows = marlin.unpack_scales(inputs["weight_scale"], desc.n)
    columns = [[_times(unit, _lift(row[j])) for row in rows] for j in range(desc.n)]
    totals = [_dot(next(sums), columns[j]) for _ in range(desc.m) for j in range(desc.n)]
    return [_defined(y) for y in _biased_and_activated(totals, inputs.get("bias"), EpilogueKind.IDENTITY)]


@lru_cache(_REMEMBERED)
def _block_sums(act: HostTensor, weight: HostTensor, depth: int) -> list[list[Number]]:
    """Return each output element's sums of products over blocks of K, in units of the formats' smallest numbers."""
    starts = range(0, act.shape[1], depth)
    rows, columns = _number_rows(act), _number_rows(weight)
    return [[_product(a[s : s + depth], w[s : s + depth]) for s in starts] for a in rows for w in columns]


@lru_cache(_REMEMBERED)
def _group_sums(act: HostTensor, perm: HostTensor | None, codes: Codes) -> list[list[Number]]:
    """Return each output element's sums of act · (q − z) over groups, in units of the activations' smallest number."""
    columns, starts, depth = codes.columns(), codes.starts, codes.depth
    rows = _number_rows(act)
    if perm is not None:
        rows = [[row[int(i)] for i in perm.values] for row in rows]
    return [[_product(a[s : s + depth], w[s : s + depth]) for s in starts] for a in rows for w in columns]


def _number_rows(tensor: HostTensor) -> list[list[Number]]:
    table, k = _numbers(tensor.element), tensor.shape[1]
    numbers = [table[code] for code in tensor.codes]
    return [numbers[i * k : (i + 1) * k] for i in range(tensor.shape[0])]


@cache
def _numbers(element: ElementKind) -> tuple[Number, ...]:
    """Return the values of all codes, in units of the format's smallest number."""
    form = FLOATS[element]
    values = map(form.decode, range(1 << form.bits))
    return tuple(int(v / form.smallest_subnormal) if math.isfinite(v) else v for v in values)


def _unit(element: ElementKind) -> Fraction:
    return Fraction(FLOATS[element].smallest_subnormal)


def _product(a: Sequence[Number], w: Sequence[Number]) -> Number:
    """Return the sum of products."""
    if any(isinstance(v, float) for v in (*a, *w)):
        total = _dot(a, map(_lift, w))
        return int(total) if isinstance(total, Fraction) else total
    products: int = sum(map(mul, a, w))
    return products


def _dot(numbers: Iterable[Number], factors: Iterable[Extended]) -> Extended:
    total: Extended = Fraction(0)
    for number, factor in zip(numbers, factors, strict=False):  # groups that are all padding have scales, and no sum
        total = _plus(total, _times(_lift(number), factor))
    return total


def _scale_rows(operand: HostTensor | None, host: float | None) -> list[list[Extended]]:
    """Return scales as rows along K: one row and one column where there is one scale."""
    if operand is None:
        return [[_lift(F32.convert(host or 0))]]
    values, (rows, *columns) = operand.values, operand.shape
    width = math.prod(columns)
    return [[_lift(v) for v in values[i * width : (i + 1) * width]] for i in range(rows)]


def _biased_and_activated(
    totals: Sequence[Extended], bias: HostTensor | None, epilogue: EpilogueKind
) -> Iterable[Extended]:
    biases = [Fraction(0)] if bias is None else [_lift(v) for v in bias.values]
    for i, total in enumerate(totals):
        x = _plus(total, biases[i % len(biases)])
        if isinstance(x, Fraction):
            yield activation(x, epilogue)
        else:
            yield Fraction(0) if x < 0 and epilogue is not EpilogueKind.IDENTITY else x  # all of them vanish at −∞


def _requantized(y: Extended, scale: float, limit: float) -> Extended:
    """Return y / scale, clamped where it is finite; a scale of 0 leads to the ends of the range."""
    if not math.isfinite(scale):
        return Fraction(0) if math.isinf(scale) and isinstance(y, Fraction) else math.nan
    if scale == 0:
        return Fraction(_sign(y)) * Fraction(limit) if isinstance(y, Fraction) else y
    quotient = _times(y, 1 / Fraction(scale))
    return min(max(quotient, Fraction(-limit)), Fraction(limit)) if isinstance(quotient, Fraction) else quotient


def _defined(y: Extended) -> Extended | None:
    return None if isinstance(y, float) and math.isnan(y) else y


def _lift(value: Number) -> Extended:
    return Fraction(value) if math.isfinite(value) else value


def _times(a: Extended, b: Extended) -> Extended:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a * b
    return _sign(a) * _sign(b)  # infinite or NaN: sizes of the finite ones do not matter


def _plus(a: Extended, b: Extended) -> Extended:
    if isinstance(a, Fraction):
        return a + b if isinstance(b, Fraction) else b
    return a if isinstance(b, Fraction) else a + b


def _sign(value: Extended) -> float:
    return float((value > 0) - (value < 0)) if isinstance(value, Fraction) else value
