from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantplan.elements import ElementKind
from quantplan.reference.smoothquant_linear import smoothquant_linear
from quantplan.types import EpilogueKind


def run(act_q, weight_q, weight_scale, element=ElementKind.F32, **options):
    output = np.full((len(act_q), len(weight_q)), 77, element.dtype)
    wide = np.float64 if element is ElementKind.F64 else np.float32
    smoothquant_linear(act_q, weight_q, np.array(weight_scale, wide), output, output_element=element, **options)
    return output


ACT = np.array([[1, -2, 3], [4, 5, -128]], np.int8)
WEIGHT = np.array([[10, 20, 30], [-1, 0, 1]], np.int8)
SUMS = np.array([[60, 2], [-3700, -132]])


def test_a_case_by_hand():
    output = run(ACT, WEIGHT, [0.5, 2.0], act_scale=0.25, bias=np.array([1.0, -0.5], np.float32))
    assert output.tolist() == [[8.5, 0.5], [-461.5, -66.5]]


def test_relu_and_one_scale_for_the_whole_weight():
    output = run(ACT, WEIGHT, [2.0], act_scale=0.25, epilogue=EpilogueKind.RELU)
    assert output.tolist() == [[30, 1], [0, 0]]


def test_u8_activations_and_a_zero_point():
    act = np.array([[0, 128, 255]], np.uint8)
    output = run(act, WEIGHT, [1.0], act_scale=1.0, act_zero_point=128)
    assert output.tolist() == [[-128 * 10 + 127 * 30, 255]]


@given(st.data())
def test_integers_come_out_exactly(data):
    """Scales of one, and sums below 2²⁴: the result is the integer, whatever the zero point."""
    m, n, k = (data.draw(st.integers(1, 4)) for _ in range(3))
    act = data.draw(st.lists(st.lists(st.integers(0, 255), min_size=k, max_size=k), min_size=m, max_size=m))
    weight = data.draw(st.lists(st.lists(st.integers(-128, 127), min_size=k, max_size=k), min_size=n, max_size=n))
    zero_point = data.draw(st.integers(0, 255))
    output = run(np.array(act, np.uint8), np.array(weight, np.int8), [1.0], act_scale=1.0, act_zero_point=zero_point)
    expected = [[sum((a - zero_point) * w for a, w in zip(x, y, strict=True)) for y in weight] for x in act]
    assert output.tolist() == expected


@pytest.mark.parametrize("scale", [0.0, -0.0])
def test_an_act_scale_of_zero_gives_bias_or_zeros(scale):
    """A scale of zero is well defined."""
    bias = np.array([1.5, -2.5], np.float32)
    assert run(ACT, WEIGHT, [0.5, 2.0], act_scale=scale, bias=bias).tolist() == [[1.5, -2.5]] * 2
    assert run(ACT, WEIGHT, [0.5, 2.0], act_scale=scale).tolist() == [[0, 0]] * 2


def test_a_negative_act_scale_negates_the_product():
    """Unusual, but well defined."""
    positive = run(ACT, WEIGHT, [0.5, 2.0], act_scale=0.1)
    assert np.array_equal(run(ACT, WEIGHT, [0.5, 2.0], act_scale=-0.1), -positive)


def test_an_act_scale_may_be_a_number_or_an_array():
    as_number = run(ACT, WEIGHT, [0.3, 0.7], act_scale=0.1)
    as_array = run(ACT, WEIGHT, [0.3, 0.7], act_scale=np.array([0.1], np.float32))
    assert np.array_equal(as_number, as_array)


def test_the_act_scale_is_rounded_to_f32_unless_the_output_is_f64():
    """For f64 output it stays the Python double."""
    narrow = np.float32(0.1) * np.float32(0.3)
    assert run(ACT, WEIGHT, [0.3], act_scale=0.1)[0, 0] == np.float32(60) * narrow
    assert run(ACT, WEIGHT, [0.3], ElementKind.F64, act_scale=0.1)[0, 0] == 60 * (0.1 * 0.3)
    assert 60 * (float(np.float32(0.1)) * 0.3) != 60 * (0.1 * 0.3)


def test_the_scales_are_multiplied_first():
    """One rounding of the scales' product, one of its product with the sum: another order gives other bits."""
    act, weight = np.full((1, 1), 127, np.int8), np.full((1, 1), 61, np.int8)
    differs = 0
    for i in range(50):
        a, b = np.float32(0.01 + i / 977), np.float32(0.02 + i / 1013)
        got = run(act, weight, [b], act_scale=float(a))[0, 0]
        assert got == np.float32(127 * 61) * (a * b)
        differs += got != np.float32(127 * 61) * a * b
    assert differs


def test_a_sum_beyond_24_bits_is_rounded_to_even_before_it_is_scaled():
    k = 1041
    act, weight = np.full((1, k), 127, np.int8), np.full((1, k), 127, np.int8)
    weight[0, 0] = 125
    total = 127 * 127 * k - 2 * 127
    assert total > 2**24
    assert total % 2 == 1
    output = run(act, weight, [1.0], act_scale=3.0)
    nearest_even = round(Fraction(total, 2)) * 2
    assert output[0, 0] == np.float32(3.0) * np.float32(nearest_even)
    assert run(act, weight, [1.0], ElementKind.F64, act_scale=3.0)[0, 0] == 3 * total


def test_s8_output():
    output = run(ACT, WEIGHT, [0.5, 2.0], ElementKind.S8, act_scale=0.25, output_scale=np.array([5.0], np.float32))
    assert output.tolist() == [[2, 0], [-92, -13]]  # 1.5, 0.2, −92.5 and −13.2


@pytest.mark.parametrize("element", [ElementKind.F32, ElementKind.S8])
def test_k_of_zero(element):
    """The bias, or zeros."""
    act, weight = np.empty((2, 0), np.int8), np.empty((2, 0), np.int8)
    scale = 1.0 if element is ElementKind.S8 else None
    assert run(act, weight, [1.0], element, act_scale=0.5, output_scale=scale).tolist() == [[0, 0]] * 2
    bias = np.array([3.0, -4.0], np.float32)
    assert run(act, weight, [1.0], element, act_scale=0.5, bias=bias, output_scale=scale).tolist() == [[3, -4]] * 2
