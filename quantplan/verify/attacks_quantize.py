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
    from collections.abc import Iterator, Sequence

    from quantplan.ops.dequantize import DequantizeDescriptor
    from quantplan.ops.dynamic_range_quantize import DynamicRangeQuantizeDescriptor
    from quantplan.ops.quantize import QuantizeDescriptor
    from quantplan.plan import Plan
    from quantplan.verify.exact import Format

    AnyPlan = type[Plan[Any, Any]]

_FAR = [2**24 + 1, 2**31 - 1, -(2**31), -(2**30) - 1]  # zero points that no f32 subtraction gets right
_ODD_LEVELS = (3, 7, -3, -7, 5, 13)
_SMALL_POWERS = [2.0**e for e in (0, -3, 2, 1, -1)]  # scales under which ties stay exact in every input element
_ODD_SCALES = [0.1, 1 / 3, 0.7, 1.1, 0.013, 2.9]
_HOST_SCALE = 0.1  # not a number of f32 or f64
_SPECIAL = [math.nan, math.inf, 0.0, -0.0, -0.5, 1.0]


def quantize_attacks(plan: AnyPlan, desc: QuantizeDescriptor) -> Iterator[Case]:
    """Yield attacks on a static quantization."""
    yield from _on_values(plan, desc)
    yield from _on_static_scales(plan, desc)


def _on_values(plan: AnyPlan, desc: QuantizeDescriptor) -> Iterator[Case]:
    """Yield ties, extremes and poison under ordinary scales."""
    element, kind = desc.input_element, desc.output_element
    place = segment_of(desc.scope, desc.m, desc.k)
    ties = _picks("ties", tie_levels(kind), len(place))
    powers = [_SMALL_POWERS[i % len(_SMALL_POWERS)] for i in place]
    odd = [fit(_ODD_SCALES[i % len(_ODD_SCALES)], desc.scale_element) for i in place]
    near = _near(element, ties, odd)
    # The global scale of 1 leaves NVFP4's block scales as they are.
    usual: dict[str, Any] = {"zero_point": _zero_points(desc.q_min or 0, desc.q_max or 0), "global_scale": [1.0]}

    exact = [level * scale for level, scale in zip(ties, powers, strict=True)]
    yield make_case(plan, "ties", desc, x=exact, scale=_SMALL_POWERS, **usual)
    yield make_case(plan, "near ties", desc, x=near, scale=_ODD_SCALES, **usual)
    for bad, codes in _poisons(element, desc.m, desc.k):
        poisoned = make_case(plan, f"poison {bad:#x}", desc, x=[0.0], scale=_SMALL_POWERS, **usual)
        yield _with_codes(poisoned, "x", codes)
    if kind.is_integer:
        first, last = kind.integer_range
        narrow = desc.replace(q_min=first, q_max=last - 2)
        yield make_case(plan, "own range", narrow, x=near, scale=_ODD_SCALES, zero_point=[1, first])
    if desc.scale_element is ElementKind.FP8_E4M3:
        for value in (0.3, 2.0**-126, 0.0, math.nan, math.inf):
            x = _near(element, ties, [0.3 * scale for scale in odd])
            yield make_case(plan, f"global scale {value}", desc, x=x, scale=[*_ODD_SCALES, 0.0], global_scale=[value])


def _on_static_scales(plan: AnyPlan, desc: QuantizeDescriptor) -> Iterator[Case]:
    """Yield scales and zero points of every kind, from the edges of their elements and beyond all sense."""
    element, kind = desc.input_element, desc.output_element
    count, segments = desc.m * desc.k, math.prod(desc.scope.scale_shape(desc.m, desc.k))
    inner = _zero_points(desc.q_min or 0, desc.q_max or 0)
    usual: dict[str, Any] = {"zero_point": inner, "global_scale": [1.0]}

    yield make_case(plan, "wide", desc, x=_wide(element, count), scale=_positive(desc.scale_element), **usual)
    for scales in _chunks([1.0, *_edges(desc.scale_element)], segments):
        yield make_case(plan, f"extremes under {scales[0]}", desc, x=_extremes(element), scale=scales, **usual)
    for scales in _chunks(_SPECIAL, segments):
        x = [1.5, -2.5, 0.0, -0.0, math.nan, math.inf, -math.inf]
        yield make_case(plan, f"scale {scales[0]}", desc, x=x, scale=scales, **usual)
    if desc.mode is QuantizeMode.ASYMMETRIC:
        x = [-float(zero_point) + offset for offset in (0, 1, -1, 2**31) for zero_point in _FAR]
        for zero_points in _chunks(_FAR, segments):
            yield make_case(plan, f"zero point {zero_points[0]}", desc, x=x, scale=[1.0], zero_point=zero_points)
    if segments == 1 and desc.scale_element in (ElementKind.F32, ElementKind.F64):
        ties = _picks("ties", tie_levels(kind), count)
        x = _near(element, ties, [fit(_HOST_SCALE, desc.scale_element)] * count)
        yield make_case(plan, "host scale", _on_host(desc, inner), x=x)


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
    yield case("negative", [-0.3, -2.0, -1.0])
    yield case("one huge", [form.largest, *[fit(0.7, element)] * (count - 1)])
    yield case("subnormals", [form.smallest_subnormal * i for i in (1, 3, -2, 0, 7, -1)])
    yield case("underflow", [form.smallest_normal * v for v in (1.0, -0.3, 0.01, 1.5)])
    yield case("extremes", [-form.largest, form.largest, form.smallest_subnormal, 1.0, -1.0, form.largest / 2])
    yield case("wide", _wide(element, count))
    for bad, codes in _poisons(element, desc.m, desc.k):
        yield _with_codes(case(f"poison {bad:#x}", [0.0]), "x", codes)
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
    segments = math.prod(desc.scope.scale_shape(desc.m, desc.k))
    inner = _zero_points(*(kind.integer_range if kind.is_integer else (0, 0)))

    def case(name: str, scale: list[float], zero_point: list[int], desc: Any = desc, overall: float = 1.0) -> Case:  # noqa: ANN401
        made = make_case(plan, name, desc, q=[0], scale=scale, zero_point=zero_point, global_scale=[overall])
        return _with_codes(made, "q", _picks(name, range(1 << kind.bits), desc.m * desc.k))

    whole = case("every code", _ODD_SCALES, inner, desc.replace(m=7))
    yield _with_codes(whole, "q", list(range(1 << kind.bits)))
    yield case("wide scales", _positive(desc.scale_element), inner)
    for scales in _chunks(_edges(desc.scale_element), segments):
        yield case(f"scale {scales[0]}", scales, inner)
    for scales in _chunks(_SPECIAL, segments):
        yield case(f"special scale {scales[0]}", scales, inner)
    if desc.mode is QuantizeMode.ASYMMETRIC:
        for zero_points in _chunks(_FAR, segments):
            yield case(f"zero point {zero_points[0]}", _ODD_SCALES, zero_points)
    yield case("output ties", _midpoints(desc.output_element), [0, 1, -1])
    yield from _rounded_twice(plan, desc, segments)
    if desc.scale_element is ElementKind.FP8_E4M3:
        for value in (0.3, 2.0**-126, 1e38, 0.0, math.nan, math.inf):
            yield case(f"global scale {value}", _ODD_SCALES, inner, overall=value)
    if segments == 1 and desc.scale_element in (ElementKind.F32, ElementKind.F64):
        yield case("host scale", [], [], _on_host(desc, inner))


def _rounded_twice(plan: AnyPlan, desc: DequantizeDescriptor, segments: int) -> Iterator[Case]:
    """Yield products that the two roundings of the contract take elsewhere than one rounding would."""
    if desc.scale_element is ElementKind.E8M0:
        return  # products with a power of two are exact
    two_levels = desc.scale_element is ElementKind.FP8_E4M3
    scale_element = ElementKind.F32 if two_levels else desc.scale_element
    levels = [v for v in _ODD_LEVELS if v in decoded(desc.input_element)]
    for scales in _chunks(_double_rounding_scales(desc.output_element, scale_element), 1 if two_levels else segments):
        name = f"rounded twice under {scales[0]}"
        block, overall = ([1.0], scales) if two_levels else (scales, [1.0])
        yield make_case(plan, name, desc, q=levels, scale=block, zero_point=[0], global_scale=overall)


@cache
def _double_rounding_scales(output: ElementKind, scale: ElementKind) -> tuple[float, ...]:
    """Return scales whose product with 3 or 7 lies next to a tie of the output, and on it once rounded."""
    wide, narrow = FLOATS[scale], FLOATS[output]
    found = []
    for i in range(64):
        tie = 2.0**narrow.precision + 2 * i + 1
        for level in (3, 7):
            factor = wide.round(int(tie), level)
            num, den = factor.as_integer_ratio()
            if narrow.convert(wide.round(level * num, den)) != narrow.round(level * num, den):
                found.append(factor)
    return tuple(found[:4])


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


def _poisons(element: ElementKind, m: int, k: int) -> Iterator[tuple[int, list[int]]]:
    """Yield a NaN's or an infinity's code, and codes among which it is; the first row is always harmless."""
    form = FLOATS[element]
    infinity, nan, sign = form.encode(math.inf), form.encode(math.nan), 1 << (form.bits - 1)
    one = form.encode(1.0)
    clean = [one + (i % 7) | (sign if i % 2 else 0) for i in range(m * k)]
    spots = (k * (m // 2) + k // 3, m * k - 1)  # inside, and at the very end
    for bad in ((infinity + 1, sign | nan), (sign | infinity,), (infinity,), (sign | infinity + 3,)):
        codes = list(clean)
        for spot, code in zip(spots, bad, strict=False):
            codes[spot] = code
        yield bad[0], codes


def _zero_points(low: int, high: int) -> list[int]:
    """Return zero points within a range, its ends among them."""
    return [(low + high) // 2 + 3 if high else 0, low, high, 0]


def _on_host(desc: Any, zero_points: list[int]) -> Any:  # noqa: ANN401 - two descriptors
    """Return the problem with its scale, and its zero point if it has one, in the descriptor."""
    return desc.replace(scale=_HOST_SCALE, zero_point=zero_points[0] if desc.mode is QuantizeMode.ASYMMETRIC else None)


def _chunks(values: Sequence[Any], segments: int) -> Iterator[list[Any]]:
    """Cut values into as many cases as it takes for each of them to have a segment."""
    for start in range(0, len(values), max(1, segments)):
        yield list(values[start : start + segments])


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
