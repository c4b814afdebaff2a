"""Attacks on Fp8Gemm.

A SKU meets the first few attacks and a share of the rest: the epilogues of one kind of product (elements, output,
scaling, accumulation) divide them, since they share all code up to the sum.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from quantplan.elements import ElementKind
from quantplan.types import EpilogueKind, Fp8Scaling
from quantplan.verify.attacks import make_case
from quantplan.verify.attacks_gemm import SUMS_AT_TIES, floats, sums
from quantplan.verify.exact import F32, FLOATS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from quantplan.ops.fp8_gemm import Fp8GemmDescriptor
    from quantplan.plan import Plan
    from quantplan.verify.attacks import Case

_ACT_SCALES = [0.02, 0.03, 0.011, 0.25, 0.007, 0.5, 0.017]
_WEIGHT_SCALES = [0.0173, 0.0091, 1 / 3, 0.0007, 0.013, 0.11, 0.05]
_UNIT = {"act_scale": [1.0], "weight_scale": [1.0]}
_EPILOGUES = list(EpilogueKind)
_CURVES = {
    "centre": [0.0001, 0.01, -0.3, -1e-6, 0.9],
    "bend": [-0.7, -0.75, -1.1, -1.27846, -2.0],
    "tail": [-3.0, -4.5, -5.6, -7.5, -9.0],
    "far tail": [-13.0, -20.0, -38.0, -88.5, -104.0],
    "line": [2.0, 3.3, 5.0, 17.0, 90.0],
}


class _Attack(NamedTuple):
    """Patterns of the operands, values of the others, and fields of the descriptor to replace."""

    name: str
    act: str
    weight: str
    values: Mapping[str, list[float]] = {}
    fields: Mapping[str, Any] = {}


def fp8_attacks(plan: type[Plan[Any, Any]], desc: Fp8GemmDescriptor) -> Iterator[Case]:
    """Yield attacks on an FP8 product."""
    attacks = [
        _Attack("random", "random", "random"),
        _Attack("cancellation", "pairs", "opposites"),
        _Attack("all equal", "equal", "equal"),
        _Attack("drowned", "drowned", "ones"),
    ]
    rest = [*_on_sums(), *_on_scales(desc), *_on_bias(), *_on_results(desc), *_on_poison()]
    if desc.output_element.is_fp8:
        rest += _on_output_scales()
    attacks += rest[_EPILOGUES.index(desc.epilogue) :: len(_EPILOGUES)]
    if desc.epilogue is EpilogueKind.IDENTITY:
        # more than one row of a weight's block scales, and more than one tile; too many elements for slow oracles
        attacks.append(_Attack("wide", "even", "even", {"bias": [0.5, -3.0, 7.0]}, {"m": 2, "n": 258, "k": 5}))
    if not desc.epilogue.exact:
        attacks.append(_on_curve(desc.output_element))
    for attack in attacks:
        yield _case(plan, desc, attack)


def _case(plan: type[Plan[Any, Any]], desc: Fp8GemmDescriptor, attack: _Attack) -> Case:
    fields = {"bias": "bias" in attack.values, **attack.fields}
    if desc.scaling is Fp8Scaling.TENSOR:
        fields = {"act_scale": None, "weight_scale": None, **fields}
    problem = desc.replace(**fields)
    values: dict[str, Any] = {
        "act_q": floats(attack.act, desc.act_element, problem.m, problem.k),
        "weight_q": floats(attack.weight, desc.weight_element, problem.n, problem.k),
        "act_scale": _ACT_SCALES,
        "weight_scale": _WEIGHT_SCALES,
        "output_scale": [0.07],
        **attack.values,
    }
    return make_case(plan, attack.name, problem, **values)


def _on_sums() -> Iterator[_Attack]:
    """Yield sums that peak, cancel late, cross the blocks' edges, or have little to add."""
    yield _Attack("even", "even", "even")
    yield _Attack("one huge", "one-huge", "one-huge")
    yield _Attack("peak", "peak", "even")
    yield _Attack("subnormals", "subnormal", "subnormal", {"act_scale": [1e3, 7e4], "weight_scale": [3e2, 0.1]})
    yield _Attack("subnormal by any", "subnormal", "random")
    yield _Attack("alternating", "alternating", "equal")
    yield _Attack("extremes", "extremes", "extremes")
    yield _Attack("largest", "largest", "largest")
    yield _Attack("rise and fall", "rise-and-fall", "equal", _UNIT)
    yield _Attack("edges", "edges", "even")
    yield _Attack("zeros", "zeros", "even")
    yield _Attack("deep", "random", "even", fields={"m": 2, "n": 3, "k": 300})
    yield _Attack("one column", "even", "even", fields={"k": 1})
    yield _Attack("no columns", "zeros", "zeros", fields={"k": 0})
    yield _Attack("no columns, biased", "zeros", "zeros", {"bias": [0.3, -1.5, 0.0]}, {"k": 0})


def _on_scales(desc: Fp8GemmDescriptor) -> Iterator[_Attack]:
    """Yield scales at every edge of float32, and ones whose product is."""
    yield _Attack("unit scales", "random", "even", _UNIT)
    if desc.scaling is Fp8Scaling.TENSOR:
        yield _Attack("host scales", "even", "random", fields={"act_scale": 0.1, "weight_scale": 1 / 3})
        yield _Attack("one host scale", "even", "even", fields={"act_scale": 1e-40, "weight_scale": None})
    root = math.ldexp(1, -63)
    yield _Attack("tiny scales", "even", "random", {"act_scale": [root], "weight_scale": [root / 8, root / 4097]})
    tiny = F32.smallest_normal
    yield _Attack("tiny results", "even", "subnormal", {"act_scale": [tiny], "weight_scale": [1.0, 0.3, 0.0625]})
    huge = {"act_scale": [F32.largest], "weight_scale": [0.001, 1.5, 1e-6, 1.0, 0.0]}
    yield _Attack("huge scales", "even", "random", huge)
    signs = {"act_scale": [-0.02, 0.0, 0.01], "weight_scale": [0.01, -0.03, 0.0]}
    yield _Attack("negative and zero scales", "even", "even", signs)


def _on_bias() -> Iterator[_Attack]:
    """Yield biases that swallow the product, or that it cancels."""
    yield _Attack("bias", "even", "random", {"bias": [1.7, -0.3, 1e-3, -12.5, 0.0]})
    yield _Attack("bias absorbs", "even", "even", {"bias": [2.0**20, -(2.0**25), 3e7, 1e-9, -1e5]})
    scale = F32.convert(0.1)
    near = [-1777 * scale * F32.convert(value) for value in _WEIGHT_SCALES]
    yield _Attack("bias cancels", sums(1777, -1777, 3), "powers", {"act_scale": [scale], "bias": near})


def _on_results(desc: Fp8GemmDescriptor) -> Iterator[_Attack]:
    """Yield results at ties of the outputs, and at both ends of their range."""
    for i, totals in enumerate(SUMS_AT_TIES):
        scales = {"act_scale": [1.0], "weight_scale": [1.0, 0.5, 2.0**-12, 2.0**-7, 4.0], "output_scale": [2.0]}
        yield _Attack(f"ties {i}", sums(*totals), "powers", scales)
    form = FLOATS[desc.output_element]
    top, bottom = math.ldexp(1, form.max_exponent - 11), round(math.log2(form.smallest_subnormal)) - 1
    low = {"act_scale": [math.ldexp(1, bottom // 2)], "weight_scale": [math.ldexp(1, bottom - bottom // 2)]}
    high = {"act_scale": [top], "weight_scale": [1.0, 0.999, 1.001, 2.0, 0.5]}
    if desc.output_element.is_fp8:
        low, high = (
            {**_UNIT, "output_scale": [math.ldexp(1, -bottom)]},
            {**_UNIT, "output_scale": [4096 / form.largest]},
        )
    yield _Attack("subnormal output", sums(1, 3, -5), "powers", low)
    yield _Attack("overflow", sums(4095, 4097, -4700), "powers", high)


def _on_poison() -> Iterator[_Attack]:
    """Yield operands of which one element is not finite: the damage shows, and stays in its row or column."""
    yield _Attack("NaN activation", "poison nan random", "random")
    yield _Attack("NaN weight", "random", "poison nan random")
    yield _Attack("infinite activation", "poison inf random", "even")
    yield _Attack("infinite weight", "random", "poison -inf random")
    yield _Attack("poisoned act scale", "even", "even", {"act_scale": [0.1, math.nan, 0.2, 0.3, 0.1, math.inf]})
    yield _Attack("poisoned weight scale", "even", "even", {"weight_scale": [0.1, math.nan, math.inf, 0.3, 0.1]})
    yield _Attack("poisoned bias", "even", "even", {"bias": [math.nan, math.inf, -math.inf, 1.0, 2.0]})


def _on_output_scales() -> Iterator[_Attack]:
    """Yield scales of an FP8 output of every kind, host values among them."""
    for value in (1e-30, 1e30, 3.0, 0.0, math.nan, math.inf, -0.05):
        yield _Attack(f"output scale {value}", "even", "even", {"output_scale": [value]})
    yield _Attack("host output scale", "even", "even", fields={"output_scale": 0.1})
    tiny = {"act_scale": [2.0**-70], "weight_scale": [2.0**-72]}
    yield _Attack("subnormal host output scale", "even", "even", tiny, {"output_scale": 2e-45})


def _on_curve(output: ElementKind) -> _Attack:
    """Return results along one part of the activations' curves; the outputs divide the parts."""
    outputs = [ElementKind.F32, ElementKind.F16, ElementKind.BF16, ElementKind.FP8_E4M3, ElementKind.FP8_E5M2]
    name, points = list(_CURVES.items())[outputs.index(output)]
    values = {"act_scale": [2.0**-10], "weight_scale": [1.0], "bias": points, "output_scale": [0.01]}
    return _Attack(name, sums(0, 3, -5), "powers", values)
