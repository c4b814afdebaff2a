"""NormQuantize's rows, one element and one rounding at a time."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from quantplan.elements import ElementKind
from quantplan.reference import row_quantize
from quantplan.reference.norm_quantize import norm_quantize
from quantplan.types import NormKind, Scope
from tests.reference.test_row_sums import in_order

F32, BF16 = np.float32, ml_dtypes.bfloat16
RNG = np.random.default_rng(9)
RMS, LAYER = NormKind


def norm(x, *, norm=RMS, epsilon=1e-5, output_element=ElementKind.F32, scope=None, scale=None, **more):
    """Return the output."""
    output = np.empty(x.shape, output_element.dtype)
    how = {"norm": norm, "epsilon": epsilon, "output_element": output_element, "scope": scope}
    norm_quantize(x, output, scale, **how, **more)
    return output


def total(terms):
    return in_order(terms, lambda a, b: a + b, F32(0)) + F32(0)


def by_element(x, i, *, norm=RMS, epsilon=1e-5, rows_per_condition=None, **operands):
    """Return row i of y, and of the stream, as scalars of f32."""
    condition = 0 if rows_per_condition is None else i // rows_per_condition
    at = {
        name: array[condition] if array.ndim > 1 and name.startswith(("mod", "residual_gate")) else array
        for name, array in operands.items()
    }
    h = [F32(value) for value in x[i]]
    if "residual" in at:
        if "residual_gate" in at:
            h = [F32(g) * value for g, value in zip(at["residual_gate"], h, strict=True)]
        h = [(F32(r) + value).astype(x.dtype) for r, value in zip(at["residual"][i], h, strict=True)]
    stream = np.array(h, x.dtype)
    d, k = [F32(value) for value in h], F32(len(h))
    if norm is LAYER:
        mean = total(d) / k
        d = [value - mean for value in d]
    rho = F32(1) / np.sqrt(total([value * value for value in d]) / k + F32(epsilon))
    y = [value * rho for value in d]
    for j, value in enumerate(y):
        result = value
        if "weight" in at:
            result = result * F32(at["weight"][j])
        if "bias" in at:
            result = result + F32(at["bias"][j])
        if "modulation_scale" in at:
            result = result * (F32(1) + F32(at["modulation_scale"][j]))
            result = result + F32(at["modulation_shift"][j])
        y[j] = result * at["multiplier"][j] if "multiplier" in at else result
    return y, stream


# ---- by hand


def test_rms_by_hand():
    """The mean of 9, 1, 1, 25 is 36/4; with an ε of 7 the root is 4."""
    x = np.array([[3, 1, -1, 5]], F32)
    assert norm(x, epsilon=7).tolist() == [[0.75, 0.25, -0.25, 1.25]]


def test_layer_by_hand():
    """Mean 4, distances −3, −1, 1, 3, mean square 5; with an ε of 11 the root is 4."""
    x = np.array([[1, 3, 5, 7]], F32)
    assert norm(x, norm=LAYER, epsilon=11).tolist() == [[-0.75, -0.25, 0.25, 0.75]]


def test_factors_and_addends_come_in_their_order():
    x = np.array([[2, -2]], F32)  # n = 1, −1 for an ε too small to see
    row = {"weight": np.array([2, 3], F32), "bias": np.array([1, 1], F32)}
    assert norm(x, epsilon=1e-30, **row).tolist() == [[3, -2]]
    modulation = {"modulation_scale": np.array([[1, 2]], F32), "modulation_shift": np.array([[0.5, -0.5]], F32)}
    assert norm(x, epsilon=1e-30, **row, **modulation).tolist() == [[6.5, -6.5]]
    multiplier = np.array([2, 4], F32)
    assert norm(x, epsilon=1e-30, **row, **modulation, multiplier=multiplier).tolist() == [[13, -26]]


def test_the_residual_is_gated_and_stored_and_normalized():
    x, residual = np.array([[1, 3], [1, 3]], F32), np.array([[2, 1], [2, 1]], F32)
    stream = np.empty_like(x)
    gate = np.array([[2, 1], [0, -1]], F32)
    y = norm(x, epsilon=1e-30, residual=residual, residual_output=stream, residual_gate=gate, rows_per_condition=1)
    assert stream.tolist() == [[4, 4], [2, -2]]
    assert y.tolist() == [[1, 1], [1, -1]]


def test_the_stream_is_rounded_before_it_is_normalized():
    """256 + 1 is no bf16: the stream is 256, and so is what is normalized; unrounded, y would be another."""
    x, residual = np.array([[1, 0]], BF16), np.array([[256, 256]], BF16)
    stream = np.empty_like(x)
    y = norm(x, epsilon=1e-30, residual=residual, residual_output=stream)
    assert stream.astype(F32).tolist() == [[256, 256]]
    assert y[0, 0] == y[0, 1] == 1


def test_epsilon_is_an_f32():
    """1 + 2⁻³⁰ rounds to 1 there; with ε = 3 the root of 1 + 3 is 2."""
    assert norm(np.ones((1, 4), F32), epsilon=3 + 2.0**-30).tolist() == [[0.5] * 4]


@pytest.mark.parametrize("kind", NormKind)
def test_a_row_of_zeros_is_zero(kind):
    y = norm(np.zeros((1, 5), F32), norm=kind, epsilon=1e-45)
    assert y.tolist() == [[0] * 5]
    assert not np.signbit(y).any()


def test_negative_zeros_stay():
    x = np.array([[-0.0, 1.0]], F32)
    assert np.signbit(norm(x))[0].tolist() == [True, False]
    assert np.signbit(norm(np.full((1, 3), -0.0, F32), norm=LAYER)).all()  # −0 less a mean of +0


# ---- what is not finite


def test_nan_fills_its_row_and_no_other():
    for kind in NormKind:
        x = np.ones((3, 300), F32)
        x[1, 299] = np.nan
        y = norm(x, norm=kind)
        assert np.isnan(y[1]).all()
        assert (y.view(np.uint32)[1] == 0x7FFFFFFF).all()
        assert np.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_an_infinity_is_nan_and_hides_its_row(bad):
    x = np.array([[1, bad, -2], [1, 2, 3]], F32)
    y = norm(x)
    assert np.isnan(y[0]).tolist() == [False, True, False]
    assert y[0, [0, 2]].tolist() == [0, 0]
    assert np.isfinite(y[1]).all()
    assert np.isnan(norm(x, norm=LAYER)[0]).all()


def test_scales_are_nan_where_the_nan_is():
    x = np.ones((2, 256), F32)
    x[0, 200] = np.inf
    scale = np.empty(2, F32)
    codes = norm(x, output_element=ElementKind.S8, scope=Scope.token(), scale=scale)
    assert np.isnan(scale).tolist() == [True, False]
    assert not codes[0].any()
    scale = np.empty((2, 2), F32)
    codes = norm(x, output_element=ElementKind.FP8_E4M3, scope=Scope.group(128), scale=scale)
    assert np.isnan(scale).tolist() == [[False, True], [False, False]]
    assert set(codes.view(np.uint8)[0, 128:].tolist()) == {0x7F}
    assert not codes.view(np.uint8)[0, :128].any()


def test_a_mean_square_that_overflows_gives_zeros():
    assert norm(np.array([[1e20, -1e20, 1]], F32)).tolist() == [[0, 0, 0]]


def test_no_columns_have_no_mean():
    scale = np.empty(2, F32)
    x = np.empty((2, 0), F32)
    assert norm(x, output_element=ElementKind.S8, scope=Scope.token(), scale=scale).shape == (2, 0)
    assert scale.tolist() == [1, 1]
    assert norm(np.empty((0, 4), F32)).shape == (0, 4)


# ---- element by element

OPTIONAL = ("residual", "residual_gate", "weight", "bias", "modulation", "multiplier")


def operands(m, k, dtype, wanted, conditions):
    def real(*shape):
        return RNG.standard_normal(shape).astype(dtype)

    made = {"residual": real(m, k), "residual_gate": real(conditions, k), "weight": real(k), "bias": real(k)}
    made |= {"modulation_scale": real(conditions, k), "modulation_shift": real(conditions, k)}
    made["multiplier"] = RNG.standard_normal(k).astype(F32)
    return {name: array for name, array in made.items() if name.split("_s")[0] in wanted}


@pytest.mark.parametrize("dtype", [F32, np.float16, BF16])
@pytest.mark.parametrize("kind", NormKind)
def test_every_step_is_rounded_by_itself(kind, dtype):
    m, k, rows_per_condition = 5, 77, 2
    for wanted in ((), OPTIONAL[:1], OPTIONAL[2:3], OPTIONAL[:4], OPTIONAL[4:], OPTIONAL):
        given = operands(m, k, dtype, wanted, 3)
        x = (RNG.standard_normal((m, k)) * 3 + 1).astype(dtype)
        stream = np.empty_like(x)
        how = {"norm": kind, "rows_per_condition": rows_per_condition, "epsilon": 0.1}
        y = norm(x, **how, **given, residual_output=stream if "residual" in given else None)
        for i in range(m):
            expected, expected_stream = by_element(x, i, **how, **given)
            assert y[i].tolist() == [float(value) for value in expected]
            if "residual" in given:
                assert stream[i].tobytes() == expected_stream.tobytes()


@pytest.mark.parametrize("kind", NormKind)
def test_a_long_row_is_summed_in_the_stated_order(kind):
    x = (RNG.standard_normal((1, 2500)) + 5).astype(F32)
    expected, _ = by_element(x, 0, norm=kind)
    assert norm(x, norm=kind)[0].tolist() == [float(value) for value in expected]


@pytest.mark.parametrize("at_once", [1, 60, 1 << 20])
def test_rows_are_the_same_in_blocks_of_any_size(monkeypatch, at_once):
    random = np.random.default_rng(1)
    x, residual = random.standard_normal((2, 9, 40)).astype(F32)
    given = {name: random.standard_normal((3, 40)).astype(F32) for name in ("modulation_scale", "modulation_shift")}
    whole = np.empty_like(x)
    scale = np.empty((9, 2), ElementKind.E8M0.dtype)
    how = {"output_element": ElementKind.FP8_E4M3, "scope": Scope.group(32), "scale_element": ElementKind.E8M0}
    how |= {"rows_per_condition": 4, **given}
    expected = norm(x, scale=scale, residual=residual, residual_output=whole, **how)
    monkeypatch.setattr(row_quantize, "_ELEMENTS_AT_ONCE", at_once)
    again, stream = np.empty_like(scale), residual.copy()
    codes = norm(x, scale=again, residual=stream, residual_output=stream, **how)  # in place
    assert (codes.tobytes(), again.tobytes(), stream.tobytes()) == (
        expected.tobytes(),
        scale.tobytes(),
        whole.tobytes(),
    )


def test_batches_and_conditions():
    """All rows share a condition unless it is said how many do; the last condition may have fewer."""
    x = np.full((5, 2), 2, F32)
    shift = np.arange(6, dtype=F32).reshape(3, 2)
    zero = np.zeros((3, 2), F32)
    how = {"modulation_scale": zero, "modulation_shift": shift, "epsilon": 1e-30}
    y = norm(x, rows_per_condition=2, **how)
    assert (y - 1)[:, 0].tolist() == [0, 0, 2, 2, 4]
    assert (norm(x, **how) - 1)[:, 0].tolist() == [0] * 5


def test_every_element_of_the_input_and_the_output():
    for dtype, element in itertools.product(
        (F32, np.float16, BF16), (ElementKind.F32, ElementKind.F16, ElementKind.BF16)
    ):
        y = norm(np.array([[3, 1, -1, 5]], dtype), epsilon=7, output_element=element)
        assert y.dtype == element.dtype
        assert y.astype(F32).tolist() == [[0.75, 0.25, -0.25, 1.25]]
