"""Attacks on the quantize family: ties and their neighbours, extremes, subnormals, poison, and scales of every kind."""

from __future__ import annotations

import itertools
import math
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any

from quantplan.elements import ElementKind
from quantplan.types import QuantizeMode
from quantplan.verify.attacks import Case, fit, make_case, random_bits, step
from quantplan.verify.exact import F32, F64, FLOATS, decoded
from quantplan.verify.quantize import asymmetric_range, segment_of, symmetric_scale
from quantplan.verify.tensors import HostTensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantplan.ops.dequantize import DequantizeDescriptor
    from quantplan.ops.dynamic_range_quantize import DynamicRangeQuantizeDescriptor
    from quantplan.ops.quantize import QuantizeDescriptor
    from quantplan.plan import Plan
    from quantplan.verify.exact import Format

    AnyPlan = type[Plan[Any, Any]]

_S32 = (-(2**31), 2**31 - 1)
_SMALL_POWERS = [2.0**e for e in (0, -3, 2, 1, -1)]  # scales under which ties stay exact in every input element
_ODD_SCALES = [0.1, 1 / 3, 0.7, 1.1, 0.013, 2.9]
_SPECIAL = [math.nan, math.inf, 0.0, -0.0, -0.5, 1.0]


def quantize_attacks(plan: AnyPlan, desc: QuantizeDescriptor) -> Iterator[Case]:
    """Yield attacks on a static quantization."""
    element, kind = desc.input_element, desc.output_element
    ties = tie_levels(kind)
    low, high = (desc.q_min or 0, desc.q_max or 0)
    inner = [0, low, high, (low + high) // 2 + 1]
    place = segment_of(desc.scope, desc.m, desc.k)

    def case(name: str, x: list[float], scale: list[float], zero_point: list[int], desc: Any = desc) -> Case:  # noqa: ANN401
        # The global scale of 1 leaves the block scales as they are.
        return make_case(plan, name, desc, x=x, scale=scale, zero_point=zero_point, global_scale=[1.0])

    count = len(place)
    picks = _picks("ties", ties, count)
    powers = [_SMALL_POWERS[i % len(_SMALL_POWERS)] for i in place]
    yield case("ties", [level * s for level, s in zip(picks, powers, strict=True)], _SMALL_POWERS, inner)

    odd = [fit(_ODD_SCALES[i % len(_ODD_SCALES)], desc.scale_element) for i in place]
    yield case("near ties", _near(element, picks, odd), _ODD_SCALES, inner)

    yield case("wide", _wide(element, count), _positive(desc.scale_element), inner)
    yield case("extremes", _extremes(element), [1.0, *_edges(desc.scale_element)], [*inner, *_S32])
    yield _with_codes(case("poison", _wide(element, count), _SMALL_POWERS, inner), "x", _poison(element))
    yield case("special scales", [1.5, -2.5, 0.0, -0.0, math.nan, math.inf, -math.inf], _SPECIAL, inner)
    if "global_scale" in {operand.name for operand in plan.operands(desc)}:
        for value in (0.3, 2.0**-126, 0.0, math.nan, math.inf):
            x = _near(element, picks, [0.3 * s for s in odd])
            yield make_case(plan, f"global scale {value}", desc, x=x, scale=[*_ODD_SCALES, 0.0], global_scale=[value])
    elif desc.scope.kind.value == "tensor" and desc.scale_element is not ElementKind.E8M0:
        asymmetric = desc.mode is QuantizeMode.ASYMMETRIC
        host = desc.replace(scale=0.1, zero_point=inner[-1] if asymmetric else None)
        yield case("host scale", _near(element, picks, [fit(0.1, desc.scale_element)] * count), [], [], host)
    if kind.is_integer:
        first, last = kind.integer_range
        narrow = desc.replace(q_min=first, q_max=last - 2)
        yield case("own range", _near(element, picks, odd), _ODD_SCALES, [first, 1], narrow)


def dynamic_attacks(plan: AnyPlan, desc: DynamicRangeQuantizeDescriptor) -> Iterator[Case]:
    """Yield attacks on a dynamic quantization."""
    element, form = desc.input_element, FLOATS[desc.input_element]
    place = segment_of(desc.scope, desc.m, desc.k)
    count = len(place)

    def case(name: str, x: list[float], desc: Any = desc) -> Case:  # noqa: ANN401
        return make_case(plan, name, desc, x=x)

    yield case("zeros", [0.0, -0.0, 0.0])
    yield case("constant", [0.1])
    yield case("alternating", [0.3, -0.3])
    yield case("one huge", [form.largest, *[fit(0.7, element)] * (count - 1)])
    yield case("subnormals", [form.smallest_subnormal * i for i in (1, 3, -2, 0, 7, -1)])
    yield case("underflow", [form.smallest_normal * v for v in (1.0, -0.3, 0.01, 1.5)])
    yield case("extremes", [-form.largest, form.largest, form.smallest_subnormal, 1.0, -1.0, form.largest / 2])
    yield case("wide", _wide(element, count))
    yield _with_codes(case("poison", [0.5, -2.0, 3.25]), "x", _poison(element))
    yield case("exact range", _with_ranges(desc, place, [float(e) for e in (0, 1, -2, 3)], 0))
    yield case("tiny range", _with_ranges(desc, place, [_tiny(form) + e for e in (0, 2, 3, 5)], 1))
    yield case("range above", _with_ranges(desc, place, [float(e) for e in (0, 1, -2, 3)], 1))
    yield case("near ties", _dynamic_near_ties(desc, place))
    if desc.output_element.is_integer:
        first, last = desc.output_element.integer_range
        narrow = desc.replace(q_min=first, q_max=last - 2)
        yield case("own range", _dynamic_near_ties(narrow, place), narrow)
    yield make_case(plan, "no columns", desc.replace(k=0), x=[0.0])


def dequantize_attacks(plan: AnyPlan, desc: DequantizeDescriptor) -> Iterator[Case]:
    """Yield attacks on a dequantization."""
    kind = desc.input_element
    codes = list(range(1 << kind.bits))
    low, high = kind.integer_range if kind.is_integer else (0, 0)
    inner = [0, low, high, (low + high) // 2 + 1]

    def case(name: str, scale: list[float], zero_point: list[int], desc: Any = desc, overall: float = 1.0) -> Case:  # noqa: ANN401
        made = make_case(plan, name, desc, q=[0], scale=scale, zero_point=zero_point, global_scale=[overall])
        return _with_codes(made, "q", _picks(name, codes, desc.m * desc.k))

    whole = case("every code", _ODD_SCALES, inner, desc.replace(m=7))
    yield _with_codes(whole, "q", [codes[i % len(codes)] for i in range(7 * desc.k)])
    yield case("wide scales", _positive(desc.scale_element), inner)
    yield case("edge scales", _edges(desc.scale_element), [*inner, *_S32])
    yield case("far zero points", _ODD_SCALES, [*_S32, 2**24 + 1, -(2**30) - 1, 16777217])
    yield case("special scales", _SPECIAL, inner)
    yield case("output ties", _midpoints(desc.output_element), [0, 1, -1])
    if desc.scale_element is ElementKind.FP8_E4M3:
        for value in (0.3, 2.0**-126, 1e38, 0.0, math.nan, math.inf):
            yield case(f"global scale {value}", _ODD_SCALES, inner, overall=value)
    elif desc.scope.kind.value == "tensor" and desc.scale_element is not ElementKind.E8M0:
        asymmetric = desc.mode is QuantizeMode.ASYMMETRIC
        yield case("host scale", [], [], desc.replace(scale=0.1, zero_point=inner[-1] if asymmetric else None))


@cache
def tie_levels(kind: ElementKind) -> tuple[float, ...]:
    """Return the midpoints between neighbouring codes, the ends of the range, and what lies just beyond them."""
    if kind.is_integer:
        low, high = kind.integer_range
        return tuple(i + 0.5 for i in range(low - 2, high + 2))
    values = sorted({v for v in decoded(kind) if math.isfinite(v)})
    middles = [(a + b) / 2 for a, b in itertools.pairwise(values)]
    top = values[-1]
    beyond = top + (top - values[-2]) / 2  # where rounding would reach the first code there is none for
    return (*middles, top, -top, beyond, -beyond, 2 * beyond)


def _picks(name: str, options: Any, count: int) -> list[Any]:  # noqa: ANN401 - levels or codes
    """Draw without favour: a shuffled list of all options, again and again."""
    random = Random(name)  # noqa: S311 - test data, the same every time
    drawn: list[Any] = []
    while len(drawn) < count:
        drawn += random.sample(list(options), len(options))
    return drawn[:count]


@cache
def _wide_values(element: ElementKind, count: int) -> tuple[float, ...]:
    random = Random("wide")  # noqa: S311
    return tuple(random_bits(random, element) for _ in range(count))


def _wide(element: ElementKind, count: int) -> list[float]:
    """Return finite values of every magnitude."""
    return list(_wide_values(element, count))


def _positive(element: ElementKind) -> list[float]:
    """Return scales of every magnitude."""
    random = Random("scales")  # noqa: S311
    if element is ElementKind.E8M0:
        return [2.0**e for e in random.sample(range(-127, 128), 37)]
    return [random_bits(random, element, positive=True) for _ in range(37)]


def _edges(element: ElementKind) -> list[float]:
    """Return the smallest and the largest scales."""
    if element is ElementKind.E8M0:
        return [2.0**e for e in (-127, -126, 127, 126)]
    form = FLOATS[element]
    return [form.smallest_subnormal, form.smallest_normal, form.largest, step(form.smallest_normal, element, -1)]


def _extremes(element: ElementKind) -> list[float]:
    form = FLOATS[element]
    finite = [form.largest, form.smallest_normal, form.smallest_subnormal, 1.0, 2.0**15, min(2.0**31, form.largest)]
    return [sign * value for value in (*finite, 0.0, math.inf) for sign in (1, -1)] + [math.nan]


def _poison(element: ElementKind) -> list[int]:
    """Return codes of NaNs with payloads and signs, and of both infinities, each followed by harmless ones."""
    form = FLOATS[element]
    infinity = form.encode(math.inf)
    sign = 1 << (form.bits - 1)
    one = form.encode(1.0)
    bad = [infinity + 1, sign | form.encode(math.nan), infinity, sign | infinity, sign | infinity + 3]
    return [code for b in bad for code in (b, *[one, sign | one + 1] * 10)]


def _with_codes(case: Case, name: str, codes: list[int]) -> Case:
    """Replace an operand's codes, repeating the given ones."""
    old = case.inputs[name]
    repeated = [codes[i % len(codes)] for i in range(len(old.codes))]
    return Case(case.name, case.desc, {**case.inputs, name: HostTensor(old.element, old.shape, repeated)})


def _near(element: ElementKind, levels: list[float], scales: list[float]) -> list[float]:
    """Return the products of levels and scales in the element, or the numbers next to them."""
    pairs = zip(levels, scales, strict=True)
    return [step(fit(level * s, element), element, i % 3 - 1) for i, (level, s) in enumerate(pairs)]


def _midpoints(element: ElementKind) -> list[float]:
    """Return scales that lie halfway between numbers of an output element, where theirs has the digits for that."""
    bits = FLOATS[element].precision
    return [(2.0**bits + odd) * 2.0 ** (e - bits) for odd, e in ((1, 0), (3, 1), (1, -14), (5, -20), (7, 3))]


def _limit(desc: DynamicRangeQuantizeDescriptor) -> float:
    """Return what the largest magnitude of a segment is divided by."""
    return FLOATS[desc.output_element].largest if desc.q_max is None else float(desc.q_max)


def _tiny(form: Format) -> float:
    """Return an exponent below that of E8M0's smallest scale, or else the format's own lowest."""
    return max(-129.0, form.min_exponent)


def _with_ranges(
    desc: DynamicRangeQuantizeDescriptor, place: list[int], exponents: list[float], ulps: int
) -> list[float]:
    """Return ties under scales of 2^exponent, or under scales whose ranges are a few ulps wider.

    The first element of each segment spans its range; in asymmetric modes the second one does, too.
    """
    element, ties = desc.input_element, _picks("ranges", tie_levels(desc.output_element), len(place))
    limit = _limit(desc)
    asymmetric = desc.mode is QuantizeMode.ASYMMETRIC
    shift = (limit + (desc.q_min or 0)) // 2 + 3 if asymmetric else 0.0
    ends = [limit - shift, (desc.q_min or 0) - shift] if asymmetric else [limit]
    lowest = ends[-1] if asymmetric else -limit
    seen: dict[int, int] = {}
    values = []
    for i, tie in zip(place, ties, strict=True):
        nth = seen[i] = seen.get(i, -1) + 1
        unit = math.ldexp(1, int(exponents[i % len(exponents)]))
        if nth < len(ends):
            values.append(step(fit(ends[nth] * unit, element), element, ulps))
        else:
            values.append(fit(min(max(tie - shift, lowest), ends[0]) * unit, element))
    return values


def _dynamic_near_ties(desc: DynamicRangeQuantizeDescriptor, place: list[int]) -> list[float]:
    """Return values next to the ties under the scales that arbitrary ranges lead to."""
    element, limit = desc.input_element, _limit(desc)
    form = F64 if element is ElementKind.F64 else F32
    random = Random("near ties")  # noqa: S311
    ties = _picks("near ties", tie_levels(desc.output_element), len(place))
    seen: dict[int, tuple[float, int]] = {}
    values = []
    for n, (i, tie) in enumerate(zip(place, ties, strict=True)):
        if i not in seen:
            top = fit(random.uniform(0.5, 40.0), element)
            if desc.mode is QuantizeMode.ASYMMETRIC:
                seen[i] = asymmetric_range(0.0, top, desc.q_min or 0, desc.q_max or 0, form)
            else:
                seen[i] = symmetric_scale(top, limit, desc.scale_element, form), 0
            values.append(top)
            continue
        scale, zero_point = seen[i]
        top = limit * scale
        near = step(fit((tie - zero_point) * scale, element), element, n % 3 - 1)
        low = 0.0 if desc.mode is QuantizeMode.ASYMMETRIC else -top
        values.append(min(max(near, fit(low, element)), fit(top, element)))
    return values
