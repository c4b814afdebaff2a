"""Attacks on the W8A8 linears: sums and scales chosen so that a wrong order, a fused step or a lost bit shows."""

from __future__ import annotations

import math
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any

from quantplan.elements import ElementKind
from quantplan.types import EpilogueKind, Scope
from quantplan.verify.attacks import Case, make_case
from quantplan.verify.exact import F32, F64, FLOATS, Format, multiply

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from quantplan.plan import Plan

_ROOM = 127  # magnitude that every activation and weight element holds
_DEEP = 1201  # products enough for a sum beyond 2²⁴, where an f32 no longer holds every integer
_LONGEST = {ElementKind.S8: 131071, ElementKind.U8: 65793}  # the contract's bounds on K
_ODD_SCALES = [0.0173, 0.0091, 1 / 3, 0.0007, 0.013]
_SUMS_AT_TIES = [2049, 2051, 4098 + 2, 257, 259, 65537, -2049, -259, 131073, 33 * 127, 1, -1, 513, 4103, -8197]


def linear_attacks(plan: type[Plan[Any, Any]], desc: Any) -> Iterator[Case]:  # noqa: ANN401 - two descriptors
    """Yield attacks on a linear layer."""
    attack = _Attacks(plan, desc)
    yield from attack.on_sums()
    yield from attack.on_scales()
    yield from attack.on_bias()
    yield from attack.on_results()
    if desc.output_element is ElementKind.S8:
        yield from attack.on_requantization()


class _Attacks:
    """Cases of one descriptor; each method attacks one step of the contract."""

    def __init__(self, plan: type[Plan[Any, Any]], desc: Any) -> None:  # noqa: ANN401 - two descriptors
        self.plan = plan
        self.desc = desc
        self.per_token = isinstance(desc.act_zero_point, bool)
        self.low, self.high = desc.act_element.integer_range
        self.form = F64 if desc.output_element is ElementKind.F64 else F32

    def case(self, name: str, act: Iterable[float], weight: Iterable[float], **values: Any) -> Case:  # noqa: ANN401
        """Make a case; operands that are not named have harmless values."""
        fields = {"bias": "bias" in values, **values.pop("fields", {})}
        defaults: dict[str, Any] = {
            "act_scale": [0.02, 0.03, 0.01],
            "weight_scale": _ODD_SCALES,
            "act_zero_point": [0],
            "bias": [0.0],
            "output_scale": [0.07],
        }
        desc = self.desc.replace(**fields)
        return make_case(self.plan, name, desc, act_q=act, weight_q=weight, **{**defaults, **values})

    def acts(self, name: str = "act") -> tuple[int, ...]:
        """Return activations all over the element's range."""
        return _draw(name, self.desc.m * self.desc.k, self.low, self.high)

    def weights(self) -> tuple[int, ...]:
        """Return weights all over S8, -128 among them."""
        return (-128, *_draw("weight", self.desc.n * self.desc.k - 1, -128, 127))

    def with_sums(self, sums: list[int]) -> dict[str, list[int]]:
        """Return operands whose sums are the given ones, one per row of the activations, whatever the weight's row."""
        k = self.desc.k
        zero = 128 if self.low == 0 else 0  # unsigned activations need a zero point for negative sums
        act = []
        for total in sums:
            sign, rest = (-1, -total) if total < 0 else (1, total)
            big, small = divmod(rest, _ROOM)
            row = [small]
            while len(row) < k:
                row.append(min(big, _ROOM))
                big -= row[-1]
            act += [zero + sign * digit for digit in row]
        return {"act": act, "weight": [1, *[_ROOM] * (k - 1)], "act_zero_point": [zero]}

    def summing(self, name: str, sums: list[int], **values: Any) -> Case:  # noqa: ANN401
        """Make a case of given sums."""
        operands = self.with_sums(sums[: self.desc.m])
        fields = {**values.pop("fields", {}), **self.offset(operands["act_zero_point"])}
        return self.case(name, **{**operands, **values}, fields=fields)

    def offset(self, zero_points: list[int]) -> dict[str, Any]:
        """Return the descriptor's field that asks for zero points."""
        return {"act_zero_point": any(zero_points) if self.per_token else zero_points[0]}

    def on_sums(self) -> Iterator[Case]:
        """Yield sums that cancel, peak, overflow 24 bits, or have nothing to add."""
        low, high, k = self.low, self.high, self.desc.k
        yield self.case("random", self.acts(), self.weights())
        pairs = [value for a in self.acts()[: k // 2] for value in (a, a)]
        signs = [s * w for w in _draw("pairs", k // 2, 1, 127) for s in (1, -1)]
        yield self.case("cancellation", [*pairs, high][:k], [*signs, 1][:k])
        yield self.case("one huge", [high, *[1] * (k - 1)], [-128, *[1] * (k - 1)])
        for a in (low, high):
            yield self.case(f"extremes {a}", [a], [-128, 127])
            yield self.case(f"all {a} by -128", [a], [-128])
        yield self.case("zeros", [0], [0, 0, 1])
        yield self.case("alternating", [1, 0], [1, -1, 1])
        zero_points = [low, high, (low + high) // 2 + 1]
        yield self.case(
            "zero points",
            self.acts("offset"),
            self.weights(),
            act_zero_point=zero_points,
            fields=self.offset(zero_points),
        )
        deep = {"m": 2, "n": 2, "k": _DEEP}
        act, weight = _draw("deep act", 2 * _DEEP, 120, 127), _draw("deep weight", 2 * _DEEP, 121, 127)
        yield self.case("deep", act, weight, fields=deep)
        if self.desc.epilogue is EpilogueKind.IDENTITY and self.desc.output_element is ElementKind.F64:
            yield self.case("longest", [low], [-128], fields={"m": 2, "n": 1, "k": _LONGEST[self.desc.act_element]})
        if self.desc.epilogue.exact:
            yield self.case("tall and wide", self.acts(), self.weights(), fields={"m": 19, "n": 17, "k": 35})
        yield self.case("one column", [high, low], [127, -128, 1], fields={"k": 1})
        yield self.case("no columns", [0], [0], fields={"k": 0})
        yield self.case("no columns, biased", [0], [0], bias=[0.3, -1.5, 0.0], fields={"k": 0})

    def on_scales(self) -> Iterator[Case]:
        """Yield scales that tell one order of multiplication from another, and ones at every edge of the format."""
        form, act, weight = self.form, self.acts(), self.weights()
        yield self.case("odd scales", act, weight, act_scale=[1.1, 0.7, 0.3], weight_scale=[1 / 3, 0.1, 1.7, 0.9, 1.3])
        yield self.case("tensor scale", act, weight, fields={"weight_scope": Scope.tensor()})
        yield self.case("negative scale", act, weight, act_scale=[-0.02], weight_scale=[0.01, -0.01])
        yield self.case("zero scale", act, weight, act_scale=[0.0], bias=[0.0, 0.25, -1.0])
        tiny, huge = form.smallest_normal, form.largest
        root = math.ldexp(1, form.min_exponent // 2)
        yield self.case("tiny products", act, weight, act_scale=[root], weight_scale=[root / 8, root / 3, root / 4096])
        yield self.case("tiny results", [1, 0, 0], [1, -1, 3], act_scale=[tiny], weight_scale=[1.0, 0.3, 2.0**-10])
        small = FLOATS.get(self.desc.output_element, form).smallest_subnormal
        sums = [1, 3, -5]
        yield self.summing("subnormal output", sums, act_scale=[small / 2], weight_scale=[1.0, 0.5, 0.75, 1.25, 3.0])
        yield self.case("huge products", act, weight, act_scale=[huge], weight_scale=[1.0, 1.5, 0.001, 1e-6, 0.0])
        if self.desc.epilogue.exact:
            poison = [math.nan, math.inf, -math.inf, 0.1, 0.2]
            yield self.case("poisoned weight scale", act, weight, weight_scale=poison)
            yield self.case("poisoned act scale", act, weight, act_scale=[math.inf, 0.1, math.nan])
        else:
            yield self.case("NaN weight scale", act, weight, weight_scale=[math.nan, 0.1])
        if not self.per_token:
            yield self.case("host act scale", act, weight, fields={"act_scale": 0.1})
            yield self.case("negative host act scale", act, weight, fields={"act_scale": -1 / 3})

    def on_bias(self) -> Iterator[Case]:
        """Yield biases that a fused multiply-add, or another order, would round differently."""
        act, weight, form = self.acts(), self.weights(), self.form
        yield self.case("bias", act, weight, bias=[1.7, -0.3, 1e-3, -12.5, 0.0])
        scale = form.convert(0.1)
        sums = [1777, -1777, 3]
        products = [multiply(form.convert(w), scale, form) for w in _ODD_SCALES]
        near = [-multiply(1777.0, product, form) for product in products]
        yield self.summing("bias cancels", sums, act_scale=[scale], bias=near)
        yield self.summing("bias absorbs", sums, act_scale=[scale], bias=[2.0**20, -(2.0**25), 3e7, 1e-9, -1e5])
        yield self.case("negative zero bias", [0], [0], bias=[-0.0, 0.0])
        poison = [math.nan, math.inf, -math.inf] if self.desc.epilogue.exact else [math.nan]
        yield self.case("poisoned bias", act, weight, bias=[*poison, 1.0, 2.0])

    def on_results(self) -> Iterator[Case]:
        """Yield results at ties of every output, beyond its range, and all along the activations' curves."""
        for i in range(0, len(_SUMS_AT_TIES), self.desc.m):
            sums = _SUMS_AT_TIES[i : i + self.desc.m]
            yield self.summing(
                f"ties {i}", sums, act_scale=[1.0], weight_scale=[1.0, 0.5, 2.0**-12, 2.0**-7, 4.0], output_scale=[2.0]
            )
        form = FLOATS.get(self.desc.output_element, F32)
        edge = _overflow_scale(form)
        yield self.summing(
            "overflow",
            [4095, 4097, -4096],
            act_scale=[edge],
            weight_scale=[1.0, 0.999, 1.001, 2.0, 0.5],
            output_scale=[edge],
        )
        curves = {
            "centre": [0.0001, 0.01, -0.3, -1e-6, 0.9],
            "bend": [-0.7, -0.75, -1.1, -1.27846, -2.0],
            "tail": [-3.0, -4.5, -5.6, -7.5, -9.0],
            "far tail": [-13.0, -20.0, -38.0, -88.5, -104.0],
            "line": [2.0, 3.3, 5.0, 17.0, 90.0],
        }
        for name, points in curves.items():
            # Sums of 1000, 1003 and 997 bring three neighbours of each point.
            scales = [point / 1000 for point in points]
            yield self.summing(name, [1000, 1003, 997], act_scale=[1.0], weight_scale=scales, output_scale=[0.01])

    def on_requantization(self) -> Iterator[Case]:
        """Yield output scales of every kind, host values among them."""
        act, weight = self.acts(), self.weights()
        for value in (1e-30, 1e30, 3.0):
            yield self.case(f"output scale {value}", act, weight, output_scale=[value])
        yield self.case("host output scale", act, weight, fields={"output_scale": 0.1})
        if self.desc.epilogue.exact:
            for value in (0.0, math.nan, math.inf, -0.05):
                yield self.case(f"output scale {value}", act, weight, output_scale=[value])


@cache
def _draw(name: str, count: int, low: int, high: int) -> tuple[int, ...]:
    """Return random integers, the same on every call."""
    random = Random(name)  # noqa: S311 - test data
    return tuple(random.randint(low, high) for _ in range(count))


def _overflow_scale(form: Format) -> float:
    """Return a scale under which a sum of 4096 is the first number that the format has no room for."""
    return math.ldexp(1, form.max_exponent + 1 - 12)
