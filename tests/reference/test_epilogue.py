import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem
from quantplan.reference.epilogue import activation, scale_and_bias, store, to_codes
from quantplan.reference.rounding import CANONICAL_NAN, bits_of
from quantplan.types import EpilogueKind
from quantplan.verify.functions import activation as real_activation
from tests.reference import exact

SMOOTH = [EpilogueKind.GELU_TANH, EpilogueKind.GELU_ERF, EpilogueKind.SILU]
FLOATS = [np.float32, np.float64]


def floats(width, **limits):
    return st.floats(width=width, allow_nan=False, allow_infinity=False, **limits)


def test_identity_returns_its_argument():
    y = np.array([1.5, -np.inf], np.float32)
    assert activation(y, EpilogueKind.IDENTITY) is y


@pytest.mark.parametrize("dtype", FLOATS)
def test_relu_gives_plus_zero_and_keeps_nan(dtype):
    y = np.array([2.5, -2.5, 0.0, -0.0, np.inf, -np.inf, np.nan, -1e-44], dtype)
    result = activation(y, EpilogueKind.RELU)
    assert result.dtype == dtype
    assert np.array_equal(result, np.array([2.5, 0, 0, 0, np.inf, 0, np.nan, 0], dtype), equal_nan=True)
    assert not np.signbit(result[:6]).any()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", SMOOTH)
def test_smooth_activations_at_the_ends(kind, dtype):
    largest = np.finfo(dtype).max
    y = np.array([np.inf, largest, 1e4, 0.0, -0.0, -1e4, -largest, -np.inf, np.nan], dtype)
    result = activation(y, kind)
    assert np.array_equal(result, np.array([np.inf, largest, 1e4, 0, 0, 0, 0, 0, np.nan], dtype), equal_nan=True)
    assert np.signbit(result[:8]).tolist() == [False] * 4 + [True] * 4


@pytest.mark.parametrize("kind", SMOOTH)
@given(value=st.one_of(floats(32, min_value=-40, max_value=40), floats(32)))
def test_f32_activations_are_the_nearest_float_but_for_half_ulps_of_f64(kind, value):
    """Evaluated in f64, rounded once: wrong only where the real value is that close to a tie."""
    y = np.array([value], np.float32)
    got = Fraction(float(activation(y, kind)[0]))
    real = real_activation(Fraction(value), kind)
    near = [Fraction(exact.rounded(real + sign * abs(Fraction(value)) / 2**49, ElementKind.F32)) for sign in (-1, 1)]
    assert near[0] <= got <= near[1]


@pytest.mark.parametrize("kind", SMOOTH)
@given(value=st.one_of(floats(64, min_value=-40, max_value=40), floats(64)))
def test_f64_activations_are_within_eight_ulps_of_their_argument(kind, value):
    got = Fraction(float(activation(np.array([value]), kind)[0]))
    error = abs(got - real_activation(Fraction(value), kind))
    assert error <= 8 * abs(Fraction(value)) / 2**53 + Fraction(2) ** -1060


@pytest.mark.parametrize("kind", SMOOTH)
@pytest.mark.parametrize("value", [-5.0, -10.0, -20.0, -36.0])
def test_activations_of_large_negative_values_do_not_cancel(kind, value):
    """1 + erf and 1 + tanh would be 0 here, or a multiple of 2⁻⁵³."""
    value = max(value, -12.0) if kind is EpilogueKind.GELU_TANH else value
    got = activation(np.array([value]), kind)[0]
    real = float(real_activation(Fraction(value), kind))
    assert real < 0
    assert abs(got - real) <= abs(real) * 2.0**-38  # the exponent, of magnitude up to 2¹⁰, loses its last bits


@pytest.mark.parametrize("kind", SMOOTH)
def test_a_large_array_is_evaluated_like_a_small_one(kind):
    y = np.linspace(-9, 9, 100_003, dtype=np.float32).reshape(-1, 1)
    whole = activation(y, kind)
    for i in (0, 8191, 8192, 16384, 100_002):
        assert whole[i] == activation(y[i : i + 1], kind)[0]


@given(
    st.integers(-(2**31), 2**31 - 1),
    st.floats(width=32),
    st.one_of(st.none(), st.floats(width=32)),
)
def test_each_operation_of_scale_and_bias_is_rounded_in_f32(acc, scale, bias):
    """No fma: the product is rounded before the bias is added."""
    got = scale_and_bias(
        np.array([[acc]], np.int32),
        np.array([[scale]], np.float32),
        None if bias is None else np.array([bias], np.float32),
        np.float32,
    )
    expected = exact.multiply(exact.rounded(Fraction(acc), ElementKind.F32), scale, ElementKind.F32)
    if bias is not None:
        both = math.isfinite(expected) and math.isfinite(bias)
        total = Fraction(expected) + Fraction(bias) if both else expected + bias
        expected = exact.rounded(total, ElementKind.F32) if both and total else expected + bias
    assert np.array_equal(got[0, 0], np.float32(expected), equal_nan=True)
    assert np.isnan(expected) or np.signbit(got[0, 0]) == (math.copysign(1, expected) < 0)


def test_a_product_and_a_bias_that_an_fma_would_not_round_apart():
    acc, scale = 2**24 + 2, np.float32(1 + 2**-23)
    bias = np.array([-float(np.float32(acc) * scale)], np.float32)
    args = np.array([[acc]], np.int32), np.array([[scale]], np.float32), bias, np.float32
    assert scale_and_bias(*args)[0, 0] == 0
    assert Fraction(acc) * Fraction(float(scale)) + Fraction(float(bias[0])) != 0


def test_f64_keeps_every_bit_of_the_sum():
    acc = np.array([[2**31 - 1]], np.int32)
    assert scale_and_bias(acc, np.array([[1.0]]), None, np.float64)[0, 0] == 2**31 - 1


@pytest.mark.parametrize(
    "y, code",
    [
        (1.25, 2),  # 2.5: the tie goes to even
        (1.75, 4),
        (-1.25, -2),
        (63.5, 127),
        (-64.0, -127),
        (1e30, 127),
        (np.inf, 127),
        (-np.inf, -127),
        (np.nan, 0),
        (-0.0, 0),
    ],
)
def test_s8_codes(y, code):
    assert to_codes(np.array([[y]], np.float32), np.array([[0.5]], np.float32)).tolist() == [[code]]


@given(floats(32), floats(32, min_value=2.0**-149))
def test_s8_codes_round_a_true_f32_quotient(y, scale):
    """A reciprocal, or a quotient in another precision, differs at ties."""
    quotient = exact.divide(y, scale, ElementKind.F32)
    expected = min(max(round(quotient), -127), 127) if math.isfinite(quotient) else math.copysign(127, quotient)
    assert to_codes(np.array([y], np.float32), np.array([scale], np.float32)).item() == expected


def test_f16_overflow_is_infinite():
    """Neither a wrapped value, nor the largest finite one."""
    y = np.array([65519.996, 65520, -65520, 7e4, 1e30], np.float32)
    output = np.empty(5, np.float16)
    store(y, output, ElementKind.F16, None)
    assert output.tolist() == [65504, np.inf, -np.inf, np.inf, np.inf]


@pytest.mark.parametrize("element", [ElementKind.F64, ElementKind.F32, ElementKind.F16, ElementKind.BF16])
def test_nan_is_stored_in_its_canonical_form(element):
    bits = [0xFFF8000000000001, 0x7FF0000000000001] if element is ElementKind.F64 else [0xFFC00001, 0x7F800001]
    integer = np.uint64 if element is ElementKind.F64 else np.uint32
    y = np.array(bits, integer).view(np.float64 if element is ElementKind.F64 else np.float32)
    output = np.empty(2, element.dtype)
    store(y, output, element, None)
    assert bits_of(output).tolist() == [CANONICAL_NAN[element]] * 2


def test_s8_needs_an_output_scale():
    with pytest.raises(InvalidProblem, match="output_scale: expected a scale for s8 output"):
        store(np.ones(1, np.float32), np.empty(1, np.int8), ElementKind.S8, None)
