from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantplan.errors import InvalidProblem
from quantplan.formats.marlin import from_marlin, to_marlin
from quantplan.formats.padding import pad_to_supported
from quantplan.recipes import int4
from quantplan.recipes.int4 import CLIPPING_RATIOS, round_to_nearest

F16, F32, BF16 = np.float16, np.float32, ml_dtypes.bfloat16
SCALES = {"f16": F16, "bf16": BF16}
RNG = np.random.default_rng(0)


def heavy_tailed(n, k):
    """Weights with a few outliers, as trained ones have."""
    return (RNG.standard_t(3, (n, k)) / 50).astype(F32)


def group_of(weight, k):
    return np.arange(k) // (k if weight.group_size == -1 else weight.group_size)


def exact_error(w, weight):
    """Return each group's squared error as fractions, from the definition of an Int4Weight and nothing else."""
    n, k = w.shape
    errors = np.zeros(weight.scales.shape, object)
    zeros = np.full(errors.shape, 8) if weight.zeros is None else weight.zeros
    for i, (j, g) in enumerate(zip(range(k), group_of(weight, k), strict=True)):
        for column in range(n):
            step = Fraction(float(weight.scales[g, column]))
            real = (int(weight.q[i, column]) - int(zeros[g, column])) * step
            errors[g, column] += (Fraction(float(w[column, j])) - real) ** 2
    return errors


@st.composite
def problems(draw, *, extreme=False):
    """Draw a weight and options: ragged groups, magnitudes that the scales' element can hold."""
    n, k = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    element = draw(st.sampled_from(["f16", "bf16"]))
    w = rng.standard_t(2, (n, k)) * 10.0 ** draw(st.integers(-30 if extreme else -4, 3))
    w[rng.random((n, k)) < draw(st.sampled_from([0, 0.5, 1]))] = 0
    if draw(st.booleans()):
        w = np.abs(w) * draw(st.sampled_from([-1, 1]))
    options = {
        "group_size": draw(st.sampled_from([-1, 1, 3, 8, 16, 32, 128])),
        "symmetric": draw(st.booleans()),
        "scale_element": element,
    }
    return w.astype(F32), options


# ---- values


def test_symmetric_by_hand():
    """Amax / 7, codes offset by 8, ties to even; the weight is transposed."""
    w = np.array([[7, -7, 0.5, 1.5, -0.5, 3, 0, -1], [0, 0, 0, 0, 14, -2, 1, 3]], F32)
    weight = round_to_nearest(w, group_size=4)
    assert weight.scales.tolist() == [[1, 1], [3 / 7 // 2**-12 * 2**-12 + 2**-12, 2]]
    assert weight.q[:4, 0].tolist() == [15, 1, 8, 10]
    assert weight.q[:, 1].tolist() == [8, 8, 8, 8, 15, 7, 8, 10]
    assert (weight.symmetric, weight.g_idx, weight.group_size, weight.k, weight.n) == (True, None, 4, 8, 2)


def test_asymmetric_by_hand():
    """(max − min) / 15 with the zero point that −min has; ranges include 0."""
    w = np.array([[-5, 10, 0, 2.5, 3, 15, 6, 7.4], [0, 0, 0, 0, -15, -1, -2.5, -8]], F32)
    weight = round_to_nearest(w, group_size=4, symmetric=False)
    assert weight.scales.tolist() == [[1, 1], [1, 1]]
    assert weight.zeros.tolist() == [[5, 0], [0, 15]]
    assert weight.q[:, 0].tolist() == [0, 15, 5, 7, 3, 15, 6, 7]
    assert weight.q[:, 1].tolist() == [0, 0, 0, 0, 0, 14, 13, 7]


def test_the_mse_option_by_hand():
    """A weight of 8 wants the scale 8 / 7, those of 1 want 1: 0.88 of the range comes nearest, if there are many."""
    for count, scale in ((1, 1171 / 1024), (1000, 1030 / 1024)):
        w = np.array([[8] + [1] * count], F32)
        assert round_to_nearest(w, group_size=-1).scales.tolist() == [[1171 / 1024]]
        searched = round_to_nearest(w, group_size=-1, mse=True)
        assert searched.scales.tolist() == [[scale]]
        assert searched.q.ravel().tolist() == [15] + [9] * count


def test_a_clipped_weight_may_use_the_lowest_code():
    """−8 is the one code that plain symmetric rounding leaves unused."""
    w = np.array([[-8] + [1, -1] * 60], F32)
    assert round_to_nearest(w, group_size=-1).q.min() == 1
    assert round_to_nearest(w, group_size=-1, mse=True).q.min() == 0


def test_a_group_of_zeros_has_scale_one():
    """Nothing is divided by zero."""
    for symmetric, zero in ((True, 8), (False, 0)):
        for mse in (False, True):
            weight = round_to_nearest(np.zeros((3, 40), F32), group_size=32, symmetric=symmetric, mse=mse)
            assert set(weight.scales.ravel().tolist()) == {1}
            assert set(weight.q.ravel().tolist()) == {zero}


def test_the_ratios_begin_with_all_of_the_range():
    assert CLIPPING_RATIOS[0] == 1
    assert CLIPPING_RATIOS[-1] == 0.5
    assert sorted(CLIPPING_RATIOS, reverse=True) == list(CLIPPING_RATIOS)


@pytest.mark.parametrize("group_size, groups", [(-1, 1), (32, 5), (64, 3), (128, 2), (500, 1), (2**31 - 1, 1)])
def test_groups_and_ragged_last_ones(group_size, groups):
    """Each is quantized by itself; one that is larger than K costs no more memory than K."""
    w = heavy_tailed(6, 150)
    weight = round_to_nearest(w, group_size=group_size)
    assert (weight.q.shape, weight.scales.shape, weight.group_size) == ((150, 6), (groups, 6), group_size)
    size = 150 if group_size == -1 else group_size
    for g in range(groups):
        alone = round_to_nearest(w[:, g * size : (g + 1) * size], group_size=-1)
        np.testing.assert_array_equal(alone.q, weight.q[g * size : (g + 1) * size])
        np.testing.assert_array_equal(alone.scales[0], weight.scales[g])


# ---- properties


@given(problems(extreme=True))
def test_no_weight_is_off_by_more_than_half_a_step(problem):
    """Scales are rounded up, so nothing clips; quotients of 15 steps are float32."""
    w, options = problem
    weight = round_to_nearest(w, **options)
    assert weight.scales.dtype == SCALES[options["scale_element"]]
    scales = weight.scales.astype(np.float64)[group_of(weight, w.shape[1])].T
    zeros = weight.zero_points.astype(int)[group_of(weight, w.shape[1])].T
    steps = w.astype(np.float64) / scales - (weight.q.T.astype(int) - zeros)
    assert np.abs(steps).max() <= 0.5 + 16 * 2.0**-23


@given(problems())
def test_the_mse_option_is_never_worse_than_plain_rounding(problem):
    """In any group, in exact arithmetic, with scales as they are stored."""
    w, options = problem
    plain, searched = round_to_nearest(w, **options), round_to_nearest(w, **options, mse=True)
    assert (exact_error(w, searched) <= exact_error(w, plain)).all()


@given(problems(extreme=True))
def test_the_mse_option_is_never_worse_at_extreme_magnitudes_either(problem):
    w, options = problem
    plain, searched = round_to_nearest(w, **options), round_to_nearest(w, **options, mse=True)
    assert (exact_error(w, searched) <= exact_error(w, plain)).all()


@given(problems())
def test_zero_stays_zero(problem):
    w, options = problem
    weight = round_to_nearest(w, **options)
    assert not weight.dequantize().T[w == 0].any()


@given(problems())
def test_the_smallest_scale_that_clips_nothing(problem):
    """The scale below it would put the largest magnitude (or the whole range) beyond the last code."""
    w, options = problem
    weight = round_to_nearest(w, **options)
    groups = group_of(weight, w.shape[1])
    for g in range(weight.groups):
        part = w[:, groups == g].astype(np.float64)
        high, low = np.maximum(part.max(axis=1), 0), np.minimum(part.min(axis=1), 0)
        wanted = np.maximum(high, -low) / 7 if weight.symmetric else (high - low) / 15
        scale = weight.scales[g]
        some = wanted > 0
        below = np.nextafter(scale, scale.dtype.type(0)).astype(np.float64)
        assert (below < wanted * (1 + 2.0**-22))[some].all()
        assert (scale.astype(np.float64) >= wanted * (1 - 2.0**-22))[some].all()


def test_the_search_finds_the_best_of_its_scales():
    """Held against every ratio tried by itself, one group at a time."""
    w = heavy_tailed(12, 64)
    for symmetric in (True, False):
        found = exact_error(w, round_to_nearest(w, group_size=32, symmetric=symmetric, mse=True))
        for ratio in CLIPPING_RATIOS:
            clipped = np.empty((12, 2), object)
            for row, g in np.ndindex(12, 2):
                part = w[row : row + 1, 32 * g : 32 * g + 32]
                low, high = min(part.min(), 0) * F32(ratio), max(part.max(), 0) * F32(ratio)
                limits = np.array([[max(high, -low)]] if symmetric else [[low, high]], F32)
                scale = round_to_nearest(limits, group_size=-1, symmetric=symmetric)
                step, zero = F32(scale.scales[0, 0]), int(scale.zero_points[0, 0])
                codes = np.clip(np.rint(part / step) + zero, 0, 15) - zero
                clipped[row, g] = sum(
                    (Fraction(float(v)) - int(c) * Fraction(float(step))) ** 2
                    for v, c in zip(part[0], codes[0], strict=True)
                )
            slack = Fraction(1) - Fraction(1, 2**19)
            assert (found.T * slack <= clipped).all(), ratio


def test_mse_helps_where_there_are_outliers():
    w = heavy_tailed(64, 256)
    for symmetric in (True, False):
        errors = [
            np.square(round_to_nearest(w, symmetric=symmetric, mse=mse).dequantize().T - w).mean()
            for mse in (False, True)
        ]
        assert errors[1] < errors[0]


def test_zero_points_help_where_weights_are_not_centred():
    w = heavy_tailed(64, 256) + F32(0.03)
    errors = [
        np.square(round_to_nearest(w, symmetric=symmetric).dequantize().T - w).mean() for symmetric in (True, False)
    ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("mse", [False, True])
def test_rows_are_independent_whatever_is_worked_on_together(monkeypatch, mse):
    w = heavy_tailed(40, 96)
    whole = round_to_nearest(w, group_size=32, mse=mse)
    monkeypatch.setattr(int4, "_CHUNK", 7 * 96)
    pieces = round_to_nearest(w, group_size=32, mse=mse)
    row = round_to_nearest(w[17:18], group_size=32, mse=mse)
    for name in ("q", "scales"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(pieces, name))
        np.testing.assert_array_equal(getattr(whole, name)[:, 17:18], getattr(row, name))


@pytest.mark.parametrize("factor", [2.0**10, 2.0**-80, 2.0**90])
def test_power_of_two_factors_change_scales_only(factor):
    """Not even those whose squares are beyond float32."""
    w = heavy_tailed(8, 64)
    for symmetric in (True, False):
        one, other = (
            round_to_nearest(x, symmetric=symmetric, scale_element="bf16", mse=True) for x in (w, w * F32(factor))
        )
        np.testing.assert_array_equal(one.q, other.q)
        np.testing.assert_array_equal(one.scales.astype(F32) * F32(factor), other.scales.astype(F32))


@pytest.mark.parametrize("dtype", [F16, BF16, np.float64])
def test_weights_of_other_elements_are_their_float32_values(dtype):
    w = heavy_tailed(5, 70).astype(dtype)
    for name in ("q", "scales"):
        np.testing.assert_array_equal(
            getattr(round_to_nearest(w, mse=True), name), getattr(round_to_nearest(w.astype(F32), mse=True), name)
        )


def test_strided_weights_are_read_and_not_written():
    w = heavy_tailed(70, 5)
    view, copy = w.T[::-1], np.ascontiguousarray(w.T[::-1])
    view.flags.writeable = False
    np.testing.assert_array_equal(round_to_nearest(view).q, round_to_nearest(copy).q)


def test_the_result_packs_for_the_kernels():
    """K and N that fit no tile, all the way to Marlin and back."""
    for symmetric in (True, False):
        weight = round_to_nearest(heavy_tailed(50, 150), group_size=64, symmetric=symmetric)
        back = from_marlin(to_marlin(pad_to_supported(weight)))
        np.testing.assert_array_equal(back.dequantize()[:150, :50], weight.dequantize())


# ---- refusals


@pytest.mark.parametrize(
    "weight, words",
    [
        ([[1.0]], "a NumPy array, got list"),
        (np.ones((2, 2), np.int8), "f32, f16, bf16 or f64, got int8"),
        (np.ones(3, F32), r"shape \(N, K\), got \(3,\)"),
        (np.ones((2, 0), F32), r"got \(2, 0\)"),
        (np.ones((0, 2), F32), r"got \(0, 2\)"),
        (np.array([[1, np.nan]], F32), "finite values"),
        (np.array([[np.inf]], F16), "finite values"),
        (np.array([[1e39]]), "finite values"),
        (np.array([[1, 7 * 65520]], F32), r"finite in f16, got an overflow \(use scale_element=bf16\)"),
    ],
)
@pytest.mark.parametrize("mse", [False, True])
def test_weights_that_cannot_be_quantized_are_refused(weight, words, mse):
    with pytest.raises(InvalidProblem, match=f"round_to_nearest: weight: expected .*{words}"):
        round_to_nearest(weight, mse=mse)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_callers_that_trap_floating_point_errors_get_the_same(symmetric, dtype):
    w = np.array([[1e-44, 3e-39, 0, 1e-300], [1e-4, 1e-10, 1, 1e-7]])
    with np.errstate(all="ignore"):
        w = w.astype(dtype)
        wanted = round_to_nearest(w, group_size=2, symmetric=symmetric, mse=True)
    with np.errstate(all="raise"):
        got = round_to_nearest(w, group_size=2, symmetric=symmetric, mse=True)
    assert (got.q == wanted.q).all()
    assert (got.scales == wanted.scales).all()


def test_the_largest_scale_of_f16_and_what_bf16_takes():
    assert round_to_nearest(np.array([[7 * 65504.0]]), group_size=-1).scales.tolist() == [[65504]]
    assert np.isfinite(round_to_nearest(np.array([[3e38]]), scale_element="bf16").scales.astype(F32)).all()


@pytest.mark.parametrize(
    "options, field, words",
    [
        ({"group_size": 0}, "group_size", "-1, or an integer ≥ 1"),
        ({"group_size": -2}, "group_size", "-1, or an integer ≥ 1"),
        ({"group_size": 32.0}, "group_size", "an integer"),
        ({"symmetric": 1}, "symmetric", "True or False"),
        ({"mse": "yes"}, "mse", "True or False"),
        ({"scale_element": "f32"}, "scale_element", "f16 or bf16"),
        ({"scale_element": "f8"}, "scale_element", "one of"),
    ],
)
def test_options_that_are_none_are_refused(options, field, words):
    with pytest.raises(InvalidProblem) as caught:
        round_to_nearest(np.ones((2, 2), F32), **options)
    assert (caught.value.op, caught.value.field) == ("round_to_nearest", field)
    assert words in str(caught.value.expected)
