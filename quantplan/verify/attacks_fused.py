"""Attacks on the fused ops: rows whose sums cancel, drown or overflow, poison, curves, and scales of every kind."""

from __future__ import annotations

import math
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any

from quantplan.types import EpilogueKind, GatingKind, Scope
from quantplan.verify.attacks import Case, fit, make_case, random_bits, step
from quantplan.verify.attacks_quantize import tie_levels
from quantplan.verify.exact import FLOATS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from quantplan.elements import ElementKind
    from quantplan.ops.activation_quantize import ActivationQuantizeDescriptor
    from quantplan.ops.norm_quantize import NormQuantizeDescriptor
    from quantplan.plan import Plan

    AnyPlan = type[Plan[Any, Any]]

_LONG = 300  # two runs for a lane, and several groups with a ragged end
_CURVE = [
    0.0001,
    0.01,
    -0.3,
    -1e-6,
    0.9,
    -0.7,
    -0.75,
    -1.1,
    -1.27846,
    -2.0,
    -3.0,
    -4.5,
    -5.6,
    -9.0,
    2.0,
    3.3,
    5.0,
    17.0,
]
_FAR = [-13.0, -20.0, -38.0, -88.5, -104.0, 90.0, -200.0, 1e-30, -1e-38, 6e4]


def norm_attacks(plan: AnyPlan, desc: NormQuantizeDescriptor) -> Iterator[Case]:
    """Yield attacks on a norm."""
    element, form, count = desc.input_element, FLOATS[desc.input_element], desc.m * desc.k
    usual: dict[str, Any] = {
        "residual": _ordinary("residual", count),
        "residual_gate": _ordinary("gate", 2 * desc.k),
        "weight": _ordinary("weight", desc.k),
        "bias": _ordinary("bias", desc.k),
        "modulation_scale": [0.3, -0.25, -1.0, 0.01, 2.0],
        "modulation_shift": _ordinary("shift", desc.k),
        "multiplier": [1.0, 0.013, 7.3, 1 / 3],
        "scale": [0.043],
    }
    everything = desc.replace(bias=True, modulated=True, rows_per_condition=2, multiplier=True)

    def case(name: str, x: Iterable[float], desc: NormQuantizeDescriptor = desc, **values: Any) -> Case:  # noqa: ANN401
        return make_case(plan, name, desc, **{**usual, "x": list(x), **values})

    x = _ordinary("x", count)
    yield case("ordinary", x)
    yield case("everything", x, everything)
    yield case("nothing", x, desc.replace(weight=False))
    opposite = [-fit(value, element) for value in usual["residual"]]
    nearly = [step(value, element, i % 3 - 1) for i, value in enumerate(opposite)]
    yield case("the stream cancels", nearly, residual_gate=[1.0])
    level = fit(1000.0, element)
    yield case(
        "far from zero", [step(level, element, i % 5) for i in range(count)], residual=[0.0], residual_gate=[1.0]
    )
    yield case("constant", [0.1], residual=[0.1], residual_gate=[1.0])
    yield case("zeros", [0.0, -0.0], everything, residual=[-0.0], residual_gate=[1.0])
    yield case("alternating", [0.3, -0.3], residual=[0.0])
    yield case("one huge", [fit(200.0, element), *[fit(2.0**-9, element)] * (desc.k - 1)], residual=[0.0])
    tiny = [form.smallest_subnormal * i for i in (1, 3, -2, 0, 7, -1)]
    yield case("subnormals", tiny, desc.replace(epsilon=1e-38), residual=tiny[::-1], residual_gate=[1.0])
    root = 2.0**-63 if form.min_exponent < -100 else form.smallest_normal  # noqa: PLR2004 - f32 and bf16
    small = [root * value for value in (1.0, -0.3, 0.01, 1.5, 0.7)]
    yield case("squares underflow", small, desc.replace(epsilon=1e-38), residual=[0.0], residual_gate=[1.0])
    yield case("extremes", [form.largest, -form.largest, 1.0, form.smallest_normal], residual=[0.0])
    yield case("overflow", [form.largest, form.largest / 2], residual=[form.largest, -form.largest, 1.0])
    for bad in (math.nan, math.inf, -math.inf):
        poisoned = [*x[:5], bad, *x[6:]]
        yield case(f"poison {bad}", poisoned)
    yield case("poisoned weight", x, weight=[math.nan, 1.0, math.inf], bias=[-math.inf, 0.0])
    long = {"k": _LONG} | ({"rows_per_condition": None} if desc.rows_per_condition is None else {})
    yield case("long", _ordinary("long", desc.m * _LONG), desc.replace(**long), residual=_ordinary("old", _LONG))
    yield case("no columns", [0.0], desc.replace(k=0))
    yield from _on_given_scales(desc, lambda name, fields, scale: case(name, x, desc.replace(**fields), scale=scale))


def activation_attacks(plan: AnyPlan, desc: ActivationQuantizeDescriptor) -> Iterator[Case]:
    """Yield attacks on an activation."""
    element, form, count = desc.input_element, FLOATS[desc.input_element], desc.m * desc.k
    usual: dict[str, Any] = {"multiplier": [1.0, 0.013, 7.3, 1 / 3, 1.1], "scale": [0.043]}

    def case(
        name: str,
        gate: Iterable[float],
        up: Iterable[float] = (1.0,),
        desc: ActivationQuantizeDescriptor = desc,
        **values: Any,  # noqa: ANN401
    ) -> Case:
        gates, ups = _cycled(gate, desc.m * desc.k), _cycled(up, desc.m * desc.k)
        rows = range(0, desc.m * desc.k, desc.k) if desc.k else ()
        both = [value for at in rows for half in (gates, ups) for value in half[at : at + desc.k]]
        given = {"x": gates, "gate": gates, "up": ups, "gate_up": both or [0.0]}
        return make_case(plan, name, desc, **{**usual, **given, **values})

    x, factors = _ordinary("gate", count), _ordinary("up", count)
    yield case("ordinary", x, factors)
    multiplied = desc.replace(multiplier=True)
    yield case("multiplied", x, factors, multiplied)
    if desc.gating is not GatingKind.NONE:
        yield case("apart", x, factors, multiplied.replace(gating=GatingKind.SPLIT))
    yield case("curve", _CURVE, factors)
    yield case("far along the curve", _FAR, factors)
    ties = tie_levels(desc.output_element) if desc.scope is not None else [1 + 2.0**-9, 1 + 2.0**-12, -1 - 2.0**-12]
    yield case("ties", [fit(level * 0.043, element) for level in ties])
    yield case("wide", _wide(element, count), _wide(element, count + 1))
    yield case("zeros", [0.0, -0.0], [1.0, -1.0, 0.0])
    yield case("subnormals", [form.smallest_subnormal * i for i in (1, 3, -2, 0, 7, -1)])
    yield case("extremes", [form.largest, -form.largest, 1.0, form.smallest_normal])
    yield case("overflow", [form.largest], [form.largest, -form.largest, 2.0], multiplied)
    for bad in (math.nan, math.inf, -math.inf):
        yield case(f"poison {bad}", [*x[:5], bad, *x[6:]], factors)
        if desc.gating is not GatingKind.NONE:
            yield case(f"poisoned factor {bad}", x, [*factors[:5], bad, *factors[6:]])
    long = desc.replace(k=_LONG)
    yield case("long", _ordinary("long gate", long.m * _LONG), _ordinary("long up", long.m * _LONG), long)
    yield case("no columns", [0.0], desc=desc.replace(k=0))
    if desc.epilogue in (EpilogueKind.IDENTITY, EpilogueKind.RELU):
        yield from _on_given_scales(
            desc, lambda name, fields, scale: case(name, x, factors, desc.replace(**fields), scale=scale)
        )


def _on_given_scales(desc: Any, case: Any) -> Iterator[Case]:  # noqa: ANN401 - two types, and their maker
    """Yield given scales of every kind, a host value among them."""
    if desc.scope != Scope.tensor():
        return
    for scale in (1.0, 1e-30, 3e38, 1e-40, 0.0, -0.05, math.nan, math.inf):
        yield case(f"scale {scale}", {}, [scale])
    yield case("host scale", {"scale": 0.1}, [])


def _cycled(values: Iterable[float], count: int) -> list[float]:
    given = list(values)
    return [given[i % len(given)] for i in range(count)]


@cache
def _ordinary(name: str, count: int) -> list[float]:
    """Return numbers as a model has them, the same on every call."""
    random = Random(name)  # noqa: S311 - test data
    return [random.gauss(0, 1) for _ in range(count)]


@cache
def _wide(element: ElementKind, count: int) -> list[float]:
    """Return numbers of every exponent."""
    random = Random(count)  # noqa: S311 - test data
    return [random_bits(random, element) for _ in range(count)]
