import math
from random import Random

import pytest

from quantplan.elements import ElementKind
from quantplan.ops.quantize import QuantizeDescriptor, QuantizePlan
from quantplan.verify.attacks import fit, make_case, random_bits, step


def test_values_are_repeated_and_rounded_into_the_operands_that_there_are():
    desc = QuantizeDescriptor(m=2, k=3, input_element="f16", scope="token")
    case = make_case(QuantizePlan, "name", desc, x=[0.1, 1e6], scale=[0.5], zero_point=[3])
    assert set(case.inputs) == {"x", "scale"}
    assert case.inputs["x"].values == [0.0999755859375, math.inf] * 3
    assert case.inputs["scale"].values == [0.5, 0.5]


@pytest.mark.parametrize(
    "value, element, expected",
    [
        (0.1, ElementKind.BF16, 0.10009765625),
        (300, ElementKind.S8, 127),
        (-5, ElementKind.U4, 0),
        (3.0, ElementKind.E8M0, 4.0),
        (0.0, ElementKind.E8M0, 2.0**-127),
        (math.inf, ElementKind.E8M0, 2.0**127),
    ],
)
def test_fit(value, element, expected):
    assert fit(value, element) == expected


def test_fit_keeps_nan():
    assert math.isnan(fit(math.nan, ElementKind.E8M0))
    assert math.isnan(fit(math.nan, ElementKind.F16))


def test_step_walks_along_the_codes_and_stops_at_the_ends():
    assert step(1.0, ElementKind.F16, 1) == 1 + 2.0**-10
    assert step(-1.0, ElementKind.F16, -1) == -1 + 2.0**-11
    assert step(65504.0, ElementKind.F16, 1) == 65504.0
    assert step(2.0**-24, ElementKind.F16, -5) == 0


def test_random_bits_are_finite_and_of_every_magnitude():
    random = Random(1)
    drawn = [random_bits(random, ElementKind.F32) for _ in range(200)]
    assert all(map(math.isfinite, drawn))
    exponents = [math.frexp(v)[1] for v in drawn]
    assert min(exponents) < -100
    assert max(exponents) > 100
    assert all(random_bits(random, ElementKind.FP8_E4M3, positive=True) > 0 for _ in range(200))
