import math
from operator import mul

import pytest

from quantplan.elements import ElementKind
from quantplan.verify.attacks_gemm import PATTERNS, SUMS_AT_TIES, floats, plain_sums, sums
from quantplan.verify.exact import FLOATS

ELEMENTS = [ElementKind.FP8_E4M3, ElementKind.FP8_E5M2, ElementKind.F16, ElementKind.BF16]


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("k", [0, 1, 133])
def test_a_pattern_fills_every_row_with_finite_numbers(pattern, element, k):
    tensor = floats(pattern, element, 3, k)
    assert (tensor.shape, len(tensor.values)) == ((3, k), 3 * k)
    assert all(map(math.isfinite, tensor.values))


def test_an_operand_is_made_once():
    assert floats("random", ElementKind.F16, 3, 7) is floats("random", ElementKind.F16, 3, 7)


@pytest.mark.parametrize("element", ELEMENTS)
def test_rows_add_up_to_what_their_pattern_says(element):
    powers = floats("powers", element, 1, 20).values
    for totals in (*SUMS_AT_TIES, [65535, -1, 4097]):
        values = floats(sums(*totals), element, 4, 20).values
        found = [sum(map(mul, values[i * 20 : i * 20 + 20], powers)) for i in range(4)]
        assert found == [*totals, totals[0]]


@pytest.mark.parametrize("element", [ElementKind.F16, ElementKind.BF16])
def test_rows_of_wider_formats_add_up_by_themselves(element):
    for totals in (*SUMS_AT_TIES, [65535 - 32, -1, 4097]):
        values = floats(plain_sums(*totals), element, 3, 20).values
        assert [sum(values[i * 20 : i * 20 + 20]) for i in range(3)] == totals


@pytest.mark.parametrize("element", ELEMENTS)
def test_pairs_and_opposites_cancel(element):
    act, weight = floats("pairs", element, 1, 133).values, floats("opposites", element, 1, 133).values
    assert sum(a * w for a, w in zip(act, weight, strict=True)) == 1.0


@pytest.mark.parametrize("element", ELEMENTS)
def test_patterns_are_what_their_names_say(element):
    form = FLOATS[element]
    assert max(map(abs, floats("subnormal", element, 3, 133).values)) < form.smallest_normal
    assert any(floats("subnormal", element, 3, 133).values)
    assert set(map(abs, floats("extremes", element, 3, 7).values)) == {form.largest}
    assert math.frexp(floats("equal", element, 1, 1).values[0])[0] == 1 - 2.0**-form.precision
    assert [j for j, value in enumerate(floats("edges", element, 1, 133).values) if value] == [
        0,
        31,
        32,
        63,
        64,
        95,
        96,
        127,
        128,
    ]
    assert {math.copysign(1, value) for value in floats("zeros", element, 1, 9).values} == {1, -1}


def test_poison_is_one_element():
    values = floats("poison nan even", ElementKind.FP8_E4M3, 3, 8).values
    assert [i for i, value in enumerate(values) if math.isnan(value)] == [13]
    assert floats("poison -inf even", ElementKind.FP8_E5M2, 5, 8).values[21] == -math.inf
    assert math.isnan(floats("poison inf even", ElementKind.FP8_E4M3, 1, 8).values[5])  # e4m3 has no infinity
