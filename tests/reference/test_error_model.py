import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from quantplan.elements import ElementKind
from quantplan.reference.epilogue import activation
from quantplan.reference.error_model import _LIPSCHITZ, FORMATS, SLACK, after_activation, f64, finish
from quantplan.types import EpilogueKind
from quantplan.verify.functions import activation as real_activation
from tests.reference import exact

F32, F64 = FORMATS[ElementKind.F32], FORMATS[ElementKind.F64]
SMOOTH = [e for e in EpilogueKind if not e.exact]


@pytest.mark.parametrize("element", FORMATS, ids=lambda e: e.value)
def test_formats(element):
    """Unit roundoff, half of the smallest subnormal, and the first magnitude that does not round to a finite value."""
    model, shape = FORMATS[element], exact.FORMATS[element]
    assert model.unit == 2.0**-shape.precision
    if element is ElementKind.F64:
        assert model.tiny > 2.0**-1075  # the bounds' own underflows included
        assert model.overflow == float(shape.largest)
        return
    assert model.tiny == 2.0 ** (shape.emin - shape.precision)
    edge = Fraction(model.overflow)
    beyond = exact.nearest(edge, shape.precision, shape.emin)
    if element is ElementKind.FP8_E4M3:  # 464 is a tie that goes to 448, the even one
        assert beyond == shape.largest
        beyond = exact.nearest(edge + Fraction(1, 1000), shape.precision, shape.emin)
    assert beyond > shape.largest
    assert exact.nearest(edge - Fraction(1, 1000), shape.precision, shape.emin) == shape.largest


@pytest.mark.parametrize("model", FORMATS.values(), ids=lambda m: f"u={m.unit}")
@pytest.mark.parametrize("n", [1, 2, 3])
def test_gamma_covers_every_row_of_roundings(model, n):
    u, gamma = Fraction(model.unit), Fraction(model.gamma(n))
    assert gamma * (1 + Fraction(2) ** -50) >= (1 + u) ** n - 1
    assert gamma * (1 + Fraction(2) ** -50) >= 1 - (1 - u) ** n
    assert gamma <= 2 * n * u / (1 - n * u)
    assert model.gamma(0) == 0


@pytest.mark.parametrize("epilogue", SMOOTH, ids=lambda e: e.value)
def test_slopes_are_the_largest_there_are_and_hardly_more(epilogue):
    step = Fraction(1, 1024)
    values = [real_activation(Fraction(i, 64) + d, epilogue) for i in range(-640, 641) for d in (Fraction(0), step)]
    steepest = max(abs(b - a) / step for a, b in zip(values[::2], values[1::2], strict=True))
    assert 0.99 * _LIPSCHITZ[epilogue] < steepest < _LIPSCHITZ[epilogue]


@pytest.mark.parametrize("epilogue", [e for e in EpilogueKind if e.exact], ids=lambda e: e.value)
def test_exact_activations_add_no_error(epilogue):
    error = np.array([0.25, 0])
    assert after_activation(epilogue, np.array([3.0, -1]), error, F32, 1.0) is error


@pytest.mark.parametrize("epilogue", SMOOTH, ids=lambda e: e.value)
def test_an_activation_of_an_inexact_argument_stays_within_its_bound(epilogue):
    """Arguments moved by their whole error, in either direction, then evaluated and rounded to f32."""
    random = np.random.default_rng(1)
    x = np.concatenate([random.normal(size=300) * 3, random.normal(size=100) * 2.0**-140, [0, 1.418, -60, -5e3, 40]])
    error = np.abs(x) * 2.0 ** random.integers(-40, -10, x.size) + 2.0**-149
    bound = after_activation(epilogue, x, error, F32, 1.0) * SLACK
    worst = Fraction(0)
    for sign in (-1, 1):
        moved = (x + sign * error * random.random(x.size)).astype(np.float32)
        reached = np.abs(moved.astype(np.float64) - x) <= error
        for i in np.flatnonzero(reached):
            distance = abs(
                Fraction(float(activation(moved[i : i + 1], epilogue)[0])) - real_activation(Fraction(x[i]), epilogue)
            )
            worst = max(worst, distance / Fraction(bound[i]))
    assert Fraction(1, 4) < worst <= 1


def test_more_ulps_are_a_wider_bound():
    x, error = np.array([1.0]), np.array([0.0])
    one, four = (after_activation(EpilogueKind.SILU, x, error, F32, ulps).item() for ulps in (1.0, 4.0))
    assert 3 * F32.unit <= four - one <= 3.01 * F32.unit
    assert after_activation(EpilogueKind.SILU, x, error, F64, 1.0).item() < 2.0**-49


def test_a_bound_is_inflated_for_its_own_roundings():
    """By more than a few roundings in f64, and than terms of second order in f32: γ(n)² for n up to a few hundred."""
    assert finish(np.array([1.0, 0]), np.array([True, True])).tolist() == [SLACK, 0]
    assert 1 + F32.gamma(300) ** 2 + 1000 * F64.unit < SLACK < 1 + 2.0**-16


def test_a_bound_that_does_not_apply_is_infinite():
    error = np.array([1.0, np.nan, np.inf, 1.0])
    assert finish(error, np.array([False, True, True, True])).tolist() == [math.inf, math.inf, math.inf, SLACK]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, np.int8])
def test_operands_are_widened_exactly(dtype):
    wide = f64(np.array([[1, -3], [0, 7]]).astype(dtype))
    assert wide.dtype == np.float64
    assert wide.tolist() == [[1, -3], [0, 7]]
