"""Attacks on Int4MarlinGemm.

A SKU meets the first few attacks and a share of the rest: the outputs of one kind of weight (element, group size, zero
points, act-order) divide them, since they share all code up to the last rounding.
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from quantplan.elements import ElementKind
from quantplan.verify import marlin
from quantplan.verify.attacks import fit_all, make_case
from quantplan.verify.attacks_gemm import SUMS_AT_TIES, floats, plain_sums
from quantplan.verify.exact import F32, FLOATS
from quantplan.verify.tensors import HostTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from quantplan.ops.int4_marlin_gemm import Int4MarlinGemmDescriptor
    from quantplan.plan import Plan
    from quantplan.verify.attacks import Case

_SCALES = [0.0173, 0.0091, 1 / 3, 0.0007, 0.013, 0.11, 0.05]
_OUTPUTS = [ElementKind.F16, ElementKind.BF16, ElementKind.F32]
_CODES = 16
_ZERO = 8  # what codes mean 0 by where there are no zero points

_WEIGHTS: dict[str, Callable[[Random, int], int]] = {
    "random": lambda draw, _: draw.randrange(_CODES),
    "lowest": lambda _, _k: 0,
    "highest": lambda _, _k: _CODES - 1,
    "zeros": lambda _, _k: _ZERO,
    "ones": lambda _, _k: _ZERO + 1,
    "opposites": lambda _, k: _ZERO - 5 if k % 2 else _ZERO + 5,
}
"""Codes by row of the weight; what the padding holds is random, and must not matter."""


class _Attack(NamedTuple):
    """Patterns of activations and weight, values of the other operands, and fields of the descriptor to replace.

    Scales are given a row per group, in the order of the columns. Zero points are random unless they are given.
    """

    name: str
    act: str
    weight: str
    values: Mapping[str, list[float]] = {}
    fields: Mapping[str, Any] = {}
    zero_point: int | None = None


def int4_attacks(plan: type[Plan[Any, Any]], desc: Int4MarlinGemmDescriptor) -> Iterator[Case]:
    """Yield attacks on a 4-bit product."""
    attacks = [
        _Attack("random", "random", "random"),
        _Attack("cancellation", "pairs", "opposites", zero_point=_ZERO),
        _Attack("all equal", "equal", "highest"),
        _Attack("swamped", "swamped", "highest", zero_point=0),
    ]
    rest = [*_on_sums(), *_on_scales(desc.act_element), *_on_results(desc.output_element), *_on_poison()]
    if desc.act_order:
        rest += _on_order(desc.k)
    attacks += rest[_OUTPUTS.index(desc.output_element) :: len(_OUTPUTS)]
    for attack in attacks:
        yield _case(plan, desc, attack)


def _case(plan: type[Plan[Any, Any]], desc: Int4MarlinGemmDescriptor, attack: _Attack) -> Case:
    problem = desc.replace(bias="bias" in attack.values, **attack.fields)
    (padded_k, padded_n), groups = problem.padded, problem.groups
    scales = tuple(attack.values.get("weight_scale", _SCALES))
    values: dict[str, Any] = {
        "act": floats(attack.act, desc.act_element, problem.m, problem.k),
        "weight_q": _weight(attack.weight, problem.k, problem.n, padded_k, padded_n),
        "weight_zero_point": _zero_points(attack.zero_point, groups, padded_n),
        "perm": _order(problem.k),
        **attack.values,
        "weight_scale": _scales(scales, desc.act_element, groups, padded_n),
    }
    return make_case(plan, attack.name, problem, **values)


@cache
def _weight(pattern: str, k: int, n: int, padded_k: int, padded_n: int) -> HostTensor:
    draw, code = Random(pattern), _WEIGHTS[pattern]  # noqa: S311 - test data
    rows = [
        [code(draw, i) if i < k and j < n else draw.randrange(_CODES) for j in range(padded_n)] for i in range(padded_k)
    ]
    return marlin.pack(rows, (padded_k // 16, 2 * padded_n), marlin.code_place)


@cache
def _zero_points(value: int | None, groups: int, padded_n: int) -> HostTensor:
    draw = Random("zero points")  # noqa: S311 - test data
    rows = [[draw.randrange(_CODES) if value is None else value for _ in range(padded_n)] for _ in range(groups)]
    return marlin.pack(rows, (groups, padded_n // 8), marlin.zero_place)


@cache
def _scales(values: tuple[float, ...], element: ElementKind, groups: int, padded_n: int) -> HostTensor:
    endless = itertools.cycle(fit_all(values, element))
    rows = [list(itertools.islice(endless, padded_n)) for _ in range(groups)]
    return HostTensor.of(element, (groups, padded_n), marlin.pack_scales(rows))


@cache
def _order(k: int) -> HostTensor:
    order = list(range(k))
    Random("order").shuffle(order)  # noqa: S311 - test data
    return HostTensor(ElementKind.S32, (k,), order)


def _on_sums() -> Iterator[_Attack]:
    """Yield sums that peak, cancel late, cross the groups' edges, or have little to add."""
    yield _Attack("even", "even", "random", {"bias": [1.7, -0.3, 1e-3, -12.5, 0.0]})
    yield _Attack("one huge", "one-huge", "lowest")
    yield _Attack("peak", "peak", "random")
    yield _Attack("subnormals", "subnormal", "random", {"weight_scale": [1.0, 3.0, 0.3, 1e3, 0.01]})
    yield _Attack("alternating", "alternating", "highest")
    yield _Attack("alternating weight", "equal", "opposites", zero_point=_ZERO)
    yield _Attack("extremes", "extremes", "random")
    yield _Attack("lowest weight, highest zero", "even", "lowest", zero_point=_CODES - 1)
    yield _Attack("highest weight, lowest zero", "even", "highest", zero_point=0)
    yield _Attack("rise and fall", "rise-and-fall", "highest", {"weight_scale": [1.0]})
    yield _Attack("edges", "edges", "random")
    yield _Attack("zeros", "zeros", "random")
    yield _Attack("zero weight", "random", "zeros", zero_point=_ZERO)
    yield _Attack("deep", "random", "random", fields={"m": 2, "n": 3, "k": 300})
    yield _Attack("one group", "even", "random", fields={"m": 2, "k": 61})
    yield _Attack("wide", "even", "random", {"bias": [0.5, -3.0, 7.0]}, {"m": 2, "n": 130, "k": 19})
    yield _Attack("one column", "even", "random", fields={"k": 1})
    yield _Attack("no columns", "zeros", "zeros", fields={"k": 0})
    yield _Attack("no columns, biased", "zeros", "zeros", {"bias": [0.3, -1.5, 0.0]}, {"k": 0})


def _on_scales(element: ElementKind) -> Iterator[_Attack]:
    """Yield scales at every edge of their format."""
    form = FLOATS[element]
    tiny = [form.smallest_subnormal, 3 * form.smallest_subnormal, form.smallest_normal]
    yield _Attack("tiny scales", "even", "random", {"weight_scale": tiny})
    yield _Attack("tiny results", "subnormal", "random", {"weight_scale": tiny})
    yield _Attack("huge scales", "even", "random", {"weight_scale": [form.largest, 1.0, form.largest / 512, 0.1, 0.0]})
    yield _Attack("negative and zero scales", "even", "random", {"weight_scale": [-0.01, 0.0, 0.02, -1 / 3]})
    yield _Attack("unit scales", "random", "random", {"weight_scale": [1.0]})


def _on_results(output: ElementKind) -> Iterator[_Attack]:
    """Yield results at ties of the outputs, at both ends of their range, and biases that they cancel or sink in."""
    one = {"weight_scale": [1.0, 0.5, 2.0**-9, 2.0**-7, 4.0]}
    for i, totals in enumerate(SUMS_AT_TIES):
        yield _Attack(f"ties {i}", plain_sums(*totals), "ones", one, zero_point=_ZERO)
    form = FLOATS[output]
    bottom = {"weight_scale": [max(form.smallest_subnormal / 2, 2.0**-24)]}
    yield _Attack("subnormal output", plain_sums(1, 3, -5), "ones", bottom, zero_point=_ZERO)
    top = {"weight_scale": [min(math.ldexp(1, form.max_exponent - 11), 2.0**15), 15.99, 16.01, 8.0]}
    yield _Attack("overflow", plain_sums(4095, 4097, -4700), "ones", top, zero_point=_ZERO)
    near = [-1777 * F32.convert(value) for value in _SCALES]
    yield _Attack("bias cancels", plain_sums(1777, -1777, 3), "ones", {"bias": near}, zero_point=_ZERO)
    yield _Attack("bias absorbs", "even", "random", {"bias": [2.0**15, -(2.0**14), 3e4, 1e-7, -1e4]})


def _on_poison() -> Iterator[_Attack]:
    """Yield operands of which one element is not finite: the damage shows, and stays in its row or column."""
    yield _Attack("NaN activation", "poison nan random", "random")
    # No other group may overflow on its own: with the opposite sign it would make the infinity NaN.
    yield _Attack("infinite activation", "poison inf even", "random")
    yield _Attack("infinite activation by one code", "poison -inf even", "highest", zero_point=0)
    # All of one sign: infinite whether the scale meets each weight or their sum.
    scales = {"weight_scale": [0.1, math.nan, math.inf, 0.3, 0.1]}
    yield _Attack("poisoned scale", "equal", "highest", scales, zero_point=0)
    yield _Attack("poisoned bias", "even", "random", {"bias": [math.nan, math.inf, -math.inf, 1.0, 2.0]})


def _on_order(k: int) -> Iterator[_Attack]:
    """Yield other orders of the activations: none at all, and one in which a column comes more than once."""
    yield _Attack("in order", "random", "random", {"perm": list(range(k))})
    yield _Attack("backwards", "random", "random", {"perm": list(range(k - 1, -1, -1))})
    yield _Attack("repeated columns", "random", "random", {"perm": [k - 1, 0, 7, 7]})
