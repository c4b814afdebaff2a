from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem
from quantplan.recipes.smoothquant import (
    ActivationRange,
    fold_into_linear,
    fold_into_norm,
    quantize_weight_per_channel,
    smooth_weight,
    smoothing_factors,
    static_scale,
)
from quantplan.reference.dynamic_range_quantize import dynamic_range_quantize
from quantplan.reference.rounding import bits_of
from quantplan.reference.smoothquant_linear import smoothquant_linear
from quantplan.types import Scope


def calibrated(*batches):
    observer = ActivationRange(batches[0].shape[-1])
    for batch in batches:
        observer.observe(batch)
    return observer


def outliers(rows=200, channels=32):
    """Activations as they are in language models: a few channels a hundred times above the others."""
    random = np.random.default_rng(2)
    x = random.normal(size=(rows, channels)).astype(np.float32)
    x[:, ::8] *= 100
    return x


# ---- calibration


def test_channel_maxima():
    observer = calibrated(np.array([[1, -5, 0]], np.float32), np.array([[[-2, 3, 0]], [[1.5, 4, 0]]], np.float16))
    assert observer.amax.tolist() == [2, 5, 0]
    assert observer.amax.dtype == np.float32
    assert observer.count == 9


def test_the_maxima_are_a_copy():
    observer = calibrated(np.ones((1, 2), np.float32))
    observer.amax[:] = 9
    assert observer.amax.tolist() == [1, 1]


def test_batching_and_order_do_not_matter():
    x = outliers()
    whole, parts = calibrated(x), calibrated(*np.split(x[::-1], 10))
    assert np.array_equal(whole.amax, parts.amax)
    assert [whole.percentile(p) for p in (1, 50, 99.9)] == [parts.percentile(p) for p in (1, 50, 99.9)]


def test_large_batches_go_through_in_pieces():
    x = np.ones((3, 700_000), np.float32)
    x[2, 5], x[0, 1] = 7, -3
    observer = calibrated(x)
    assert (observer.count, observer.amax[5], observer.amax[1]) == (x.size, 7, 3)


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60),
    st.floats(0.01, 100),
)
def test_a_percentile_is_at_least_the_real_one_and_a_bfloat16_step_above_it_at_most(values, percent):
    observer = calibrated(np.array(values, np.float32).reshape(-1, 1))
    got = observer.percentile(percent)
    magnitudes = sorted(abs(v) for v in values)
    covered = sum(m <= got for m in magnitudes)
    assert covered >= Fraction(percent) / 100 * len(values) * (1 - Fraction(1, 2**50))
    real = magnitudes[min(len(values) - 1, max(0, -int(-len(values) * percent // 100) - 1))]
    assert got <= real + max(real * 2**-7, 2.0**-133) or got == magnitudes[-1]


def test_the_last_percentile_is_the_maximum():
    observer = calibrated(outliers())
    assert observer.percentile(100) == observer.amax.max()
    assert observer.act_scale(percent=100) == observer.act_scale()


def test_the_act_scale_is_the_maximum_or_a_percentile_over_127():
    x = np.full((1000, 1), 0.5, np.float32)
    x[0] = -100
    observer = calibrated(x)
    assert observer.act_scale() == np.float32(100) / np.float32(127)
    edge = np.float32(0.5 + 2**-8)  # the bfloat16 after 0.5
    assert observer.act_scale(percent=99) == edge / np.float32(127)


def test_the_act_scale_of_smoothed_activations():
    observer = calibrated(np.array([[8, -6], [1, 2]], np.float32))
    assert observer.act_scale(factors=np.array([4, 1], np.float32)) == np.float32(6) / np.float32(127)


@pytest.mark.parametrize(
    "amax, scale",
    [
        (0.0, 1.0),
        (127.0, 1.0),
        (1.0, float(np.float32(1) / np.float32(127))),
        (2.0**-126, 2.0**-126),
        (1e-44, 2.0**-126),
    ],
)
def test_static_scales(amax, scale):
    """An amax of 0 gives 1, and an underflow the smallest normal."""
    assert static_scale(amax) == scale


@pytest.mark.parametrize("amax", [-1.0, np.nan, np.inf, 1e300, -1e300])
def test_static_scales_need_a_magnitude(amax):
    with pytest.raises(InvalidProblem, match="amax: expected a finite float32 ≥ 0"):
        static_scale(amax)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_activations_that_are_not_finite_are_refused_and_change_nothing(value):
    observer = calibrated(np.ones((1, 2), np.float32))
    with pytest.raises(InvalidProblem, match="batch: expected finite values"):
        observer.observe(np.array([[5.0, value]]))
    assert observer.amax.tolist() == [1, 1]
    assert observer.count == 2


@pytest.mark.parametrize("shape", [(3,), (2, 3), ()])
def test_activations_of_another_width_are_refused(shape):
    with pytest.raises(InvalidProblem, match="expected shape"):
        ActivationRange(2).observe(np.zeros(shape, np.float32))


def test_an_observer_that_has_seen_nothing_says_so():
    observer = ActivationRange(3)
    observer.observe(np.empty((0, 3), np.float32))
    for ask in (lambda: observer.amax, observer.act_scale, lambda: observer.percentile(50)):
        with pytest.raises(InvalidProblem, match="nothing was observed yet"):
            ask()


def test_percentiles_of_smoothed_activations_are_refused():
    with pytest.raises(InvalidProblem, match="observe the smoothed activations"):
        calibrated(np.ones((1, 2), np.float32)).act_scale(percent=99, factors=np.ones(2))


@pytest.mark.parametrize("percent", [0, -1, 100.5, np.nan])
def test_percentages_have_a_range(percent):
    with pytest.raises(InvalidProblem, match="a number in"):
        calibrated(np.ones((1, 2), np.float32)).percentile(percent)


def test_a_layer_without_inputs_has_seen_nothing():
    observer = calibrated(np.zeros((5, 0), np.float32), np.zeros((2, 3, 0), np.float32))
    assert observer.count == 0
    with pytest.raises(InvalidProblem, match="nothing was observed"):
        observer.act_scale()


def test_callers_that_trap_floating_point_errors_get_the_same():
    x = np.array([[1e-44, 3e-39, 0], [1e-300, 1e-10, 1]])
    for dtype in (np.float32, np.float64):
        with np.errstate(all="ignore"):
            given = x.astype(dtype)
            wanted = results(given)
        with np.errstate(all="raise"):
            assert results(given) == wanted


def results(x):
    observer = calibrated(x)
    factors = smoothing_factors(observer.amax, [x])
    scales = (observer.act_scale(), observer.act_scale(factors=factors), static_scale(1e-44))
    return (*scales, factors.tolist(), [part.tolist() for part in quantize_weight_per_channel(x)])


# ---- factors


def test_factors_by_hand():
    weights = [np.array([[1, -2, 0.5]]), np.array([[-4, 1, 0.25], [0, 0, 0]])]
    amax = np.array([16, 2, 8], np.float32)
    assert smoothing_factors(amax, weights).tolist() == [2, 1, 4]
    assert smoothing_factors(amax, weights, alpha=1).tolist() == [16, 2, 8]
    assert smoothing_factors(amax, weights, alpha=0).tolist() == [0.25, 0.5, 2]
    assert smoothing_factors(amax, weights).dtype == np.float32


def test_channels_of_zeros_keep_the_factor_one():
    """Nothing is divided by zero."""
    amax, weight = np.array([0, 3, 0], np.float32), np.array([[4.0, 0, 0]])
    for alpha in (0, 0.5, 1):
        assert smoothing_factors(amax, [weight], alpha).tolist() == [1, 1, 1]


def test_extreme_channels_give_factors_that_are_normal_numbers():
    amax, weight = np.array([1e300, 1e-300]), np.array([[1e-300, 1e300]])
    factors = smoothing_factors(amax, [weight], 0.5)
    assert factors.tolist() == [np.finfo(np.float32).max, 2.0**-126]


def test_weights_may_be_bfloat16():
    weight = np.array([[4, 0.25]], ml_dtypes.bfloat16)
    assert smoothing_factors(np.array([1, 1], np.float32), [weight]).tolist() == [0.5, 2]


@pytest.mark.parametrize("alpha", [-0.1, 1.1, np.nan])
def test_alpha_has_a_range(alpha):
    with pytest.raises(InvalidProblem, match=r"alpha: expected a number in \[0, 1\]"):
        smoothing_factors(np.ones(2), [np.ones((3, 2))], alpha)


@pytest.mark.parametrize(
    "amax, weights, field",
    [
        (np.ones((1, 2)), [np.ones((3, 2))], "act_amax"),
        (np.array([1, np.nan]), [np.ones((3, 2))], "act_amax"),
        (np.ones(2), [], "weights"),
        (np.ones(2), [np.ones((3, 2)), np.ones((2, 3))], r"weights\[1\]"),
        (np.ones(2), [np.ones(2)], r"weights\[0\]"),
        (np.ones(2), [np.array([[1, np.inf]])], r"weights\[0\]"),
    ],
)
def test_factors_need_matching_finite_operands(amax, weights, field):
    with pytest.raises(InvalidProblem, match=field):
        smoothing_factors(amax, weights)


# ---- folding


@given(st.integers(0, 2**32), st.data())
def test_power_of_two_factors_change_nothing_in_exact_arithmetic(seed, data):
    """Folded into the preceding layer and multiplied into the weight, they cancel without a rounding."""
    k, j, n = (data.draw(st.integers(1, 5)) for _ in range(3))
    random = np.random.default_rng(seed)
    exponents = np.array(data.draw(st.lists(st.integers(-20, 20), min_size=k, max_size=k)))
    factors = np.exp2(exponents).astype(np.float32)
    before, bias = random.normal(size=(k, j)).astype(np.float32), random.normal(size=k).astype(np.float32)
    weight = random.normal(size=(n, k)).astype(np.float32)
    folded, folded_bias = fold_into_linear(before, bias, factors)
    smoothed = smooth_weight(weight, factors)

    def exact_output(w1, b1, w2):
        hidden = [sum(map(Fraction, map(float, row))) + Fraction(float(b)) for row, b in zip(w1, b1, strict=True)]
        return [sum(Fraction(float(w)) * h for w, h in zip(row, hidden, strict=True)) for row in w2]

    assert exact_output(folded, folded_bias, smoothed) == exact_output(before, bias, weight)
    assert np.array_equal(fold_into_norm(bias, factors), folded_bias)


def test_folding_by_hand():
    factors = np.array([2, 0.5], np.float32)
    assert fold_into_norm(np.array([3, 3], np.float32), factors).tolist() == [1.5, 6]
    weight, bias = fold_into_linear(np.array([[2, 4, 6], [1, 2, 3]], np.float32), None, factors)
    assert weight.tolist() == [[1, 2, 3], [2, 4, 6]]
    assert bias is None
    assert smooth_weight(np.array([[1, 1], [3, 4]], np.float32), factors).tolist() == [[2, 0.5], [6, 2]]


@pytest.mark.parametrize("dtype, result", [(np.float64, np.float64), (np.float16, np.float32)])
def test_folding_is_done_in_f32_or_f64(dtype, result):
    factors = np.array([3.0], np.float32)
    assert fold_into_norm(np.ones(1, dtype), factors).dtype == result
    assert fold_into_norm(np.ones(1, dtype), factors)[0] == result(1) / result(3)
    assert smooth_weight(np.ones((1, 1), dtype), factors).dtype == result


@pytest.mark.parametrize(
    "factors",
    [np.ones(3), np.ones((2, 1)), np.array([1, 0]), np.array([1, np.nan]), np.array([1, 1e-300]), np.array([1, 1e300])],
)
def test_factors_that_do_not_fit_are_refused(factors):
    with pytest.raises(InvalidProblem, match="factors"):
        fold_into_norm(np.ones(2), factors)
    with pytest.raises(InvalidProblem, match="factors"):
        fold_into_linear(np.ones((2, 5)), None, factors)
    with pytest.raises(InvalidProblem, match=r"factors|weight"):
        smooth_weight(np.ones((5, 2)), factors)
    with pytest.raises(InvalidProblem, match="factors"):
        calibrated(np.ones((1, 2))).act_scale(factors=factors)


def test_other_operands_that_do_not_fit_are_refused():
    factors = np.ones(2, np.float32)
    for call, field in (
        (lambda: fold_into_linear(np.ones((2, 5)), np.ones(5), factors), "bias"),
        (lambda: fold_into_linear(np.ones(2), None, factors), "weight"),
        (lambda: fold_into_norm(np.ones((2, 2)), factors), "parameter"),
        (lambda: fold_into_norm(np.array([1, np.nan]), factors), "parameter"),
        (lambda: smooth_weight(np.ones(2), factors), "weight"),
        (lambda: smooth_weight(np.full((1, 1), 1e38, np.float32), np.array([10.0])), "weight"),
    ):
        with pytest.raises(InvalidProblem, match=field):
            call()


# ---- weights


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_quantized_weights_are_those_of_dynamic_range_quantize(dtype):
    random = np.random.default_rng(3)
    weight = (random.normal(size=(9, 50)) * random.uniform(1e-3, 10, (9, 1))).astype(dtype)
    weight[4], weight[5] = 0, weight[5] * dtype(1e-3)
    weight_q, weight_scale = quantize_weight_per_channel(weight)
    q, scale = np.empty((9, 50), np.int8), np.empty(9, np.float32)
    dynamic_range_quantize(
        weight, q, scale, None, output_element=ElementKind.S8, scope=Scope.token(), q_min=-127, q_max=127
    )
    assert np.array_equal(weight_q, q)
    assert np.array_equal(bits_of(weight_scale), bits_of(scale))
    assert (weight_q.dtype, weight_scale.dtype) == (np.int8, np.float32)
    assert weight_scale[4] == 1
    assert weight_q.min() >= -127


def test_quantized_weights_by_hand():
    weight_q, weight_scale = quantize_weight_per_channel(np.array([[-127, 63.5, 0.5, 1.5], [0, 0, 0, 0]]))
    assert weight_scale.tolist() == [1, 1]
    assert weight_q.tolist() == [[-127, 64, 0, 2], [0, 0, 0, 0]]


@pytest.mark.parametrize("weight", [np.ones(3), np.array([[1, np.nan]]), np.array([[1e39]])])
def test_weights_that_cannot_be_quantized_are_refused(weight):
    with pytest.raises(InvalidProblem, match="weight"):
        quantize_weight_per_channel(weight)


def test_smoothing_makes_a_layer_with_outliers_more_accurate():
    """The whole recipe, from calibration to layer."""
    random = np.random.default_rng(6)
    x = outliers()
    weight = random.normal(size=(24, 32)).astype(np.float32)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)

    def error(factors):
        act_scale = calibrated(x).act_scale(factors=factors)
        act_q = np.clip(np.rint(x / factors / np.float32(act_scale)), -127, 127).astype(np.int8)
        weight_q, weight_scale = quantize_weight_per_channel(smooth_weight(weight, factors))
        output = np.empty(exact.shape, np.float32)
        smoothquant_linear(act_q, weight_q, weight_scale, output, act_scale=act_scale, output_element=ElementKind.F32)
        return float(np.sqrt(np.mean((output - exact) ** 2)))

    factors = smoothing_factors(calibrated(x).amax, [weight])
    assert error(factors) < error(np.ones(32, np.float32))


# ---- arguments that are no floats
ONES = np.ones(2, np.float32)
SQUARE = np.ones((2, 2), np.float32)
NO_ARRAYS = [[1.0, 1.0], "x", 1.0, ONES.astype(complex), SQUARE.astype(complex), SQUARE.astype(np.int8)]
TAKES_AN_ARRAY = [
    ("ActivationRange", "batch", lambda x: ActivationRange(2).observe(x)),
    ("ActivationRange", "factors", lambda x: calibrated(SQUARE).act_scale(factors=x)),
    ("smoothing_factors", "act_amax", lambda x: smoothing_factors(x, [SQUARE])),
    ("smoothing_factors", "weights[1]", lambda x: smoothing_factors(ONES, [SQUARE, x])),
    ("smooth_weight", "weight", lambda x: smooth_weight(x, ONES)),
    ("smooth_weight", "factors", lambda x: smooth_weight(SQUARE, x)),
    ("fold_into_norm", "parameter", lambda x: fold_into_norm(x, ONES)),
    ("fold_into_norm", "factors", lambda x: fold_into_norm(ONES, x)),
    ("fold_into_linear", "weight", lambda x: fold_into_linear(x, None, ONES)),
    ("fold_into_linear", "bias", lambda x: fold_into_linear(SQUARE, x, ONES)),
    ("fold_into_linear", "factors", lambda x: fold_into_linear(SQUARE, None, x)),
    ("quantize_weight_per_channel", "weight", quantize_weight_per_channel),
]


@pytest.mark.parametrize("op, field, function", TAKES_AN_ARRAY, ids=[" ".join(case[:2]) for case in TAKES_AN_ARRAY])
def test_what_is_no_array_of_floats_is_refused(op, field, function):
    for value in NO_ARRAYS:
        with pytest.raises(InvalidProblem) as caught:
            function(value)
        assert (caught.value.op, caught.value.field) == (op, field)


@pytest.mark.parametrize("value", ["x", None, [1], True, 1j])
@pytest.mark.parametrize(
    "op, field, function",
    [
        ("smoothing_factors", "alpha", lambda x: smoothing_factors(ONES, [SQUARE], x)),
        ("ActivationRange", "percent", lambda x: calibrated(SQUARE).percentile(x)),
        ("ActivationRange", "channels", lambda x: ActivationRange(-1 if x is True else x)),
        ("static_scale", "amax", static_scale),
    ],
    ids=["alpha", "percent", "channels", "amax"],
)
def test_what_is_no_number_is_refused(op, field, function, value):
    with pytest.raises(InvalidProblem) as caught:
        function(value)
    assert (caught.value.op, caught.value.field) == (op, field)


@pytest.mark.parametrize("weights", [None, SQUARE, "x", (), []])
def test_weights_are_a_list(weights):
    with pytest.raises(InvalidProblem, match="smoothing_factors: weights: expected"):
        smoothing_factors(ONES, weights)
