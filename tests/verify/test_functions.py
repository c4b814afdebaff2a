import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest

from quantplan.types import EpilogueKind
from quantplan.verify import functions
from quantplan.verify.functions import activation, erf, erfc, sigmoid

# Abramowitz and Stegun, table 7.1 and beyond; OEIS A001113, A099286.
ERF_1 = Decimal("0.84270079294971486934122063508260925929606699796630290845993789783")
ERFC_1 = Decimal("0.15729920705028513065877936491739074070393300203369709154006210217")
E = Decimal("2.71828182845904523536028747135266249775724709369995957496696763")
GELU = {EpilogueKind.GELU_ERF, EpilogueKind.GELU_TANH}


@pytest.fixture(autouse=True)
def context():
    with localcontext(functions._CONTEXT):
        yield


def close(a, b, digits):
    return abs(a - b) <= abs(b).scaleb(-digits)


def test_published_digits():
    assert close(erf(Decimal(1)), ERF_1, 63)
    assert close(erfc(Decimal(1)), ERFC_1, 63)
    assert close(sigmoid(Decimal(1)), E / (1 + E), 60)


@pytest.mark.parametrize("x", ["3", "3.5", "5", "7.25"])
def test_series_and_continued_fraction_agree(monkeypatch, x):
    """Two unrelated formulas for one function: neither can be wrong alone."""
    by_fraction = erfc(Decimal(x))
    monkeypatch.setattr(functions, "_SERIES_END", 100)
    assert abs((1 - erf(Decimal(x))) - by_fraction) < Decimal("1e-74")


@pytest.mark.parametrize("x", [-30.0, -6.0, -2.5, -0.3, 1e-9, 0.7, 2.99, 3.01, 5.5, 26.0])
def test_floats_agree_to_their_last_digits(x):
    assert float(erfc(Decimal(x))) == pytest.approx(math.erfc(x), rel=1e-13)
    assert float(erf(Decimal(x))) == pytest.approx(math.erf(x), rel=1e-13)
    assert float(sigmoid(Decimal(x))) == pytest.approx(1 / (1 + math.exp(-x)), rel=1e-13)


@pytest.mark.parametrize("x", [-8.0, -1.5, -1e-3, 0.0, 0.25, 3.0, 12.0])
def test_activations_are_their_definitions(x):
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    expected = {
        EpilogueKind.IDENTITY: x,
        EpilogueKind.RELU: max(x, 0.0),
        EpilogueKind.GELU_TANH: 0.5 * x * (1 + math.tanh(inner)),
        EpilogueKind.GELU_ERF: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
        EpilogueKind.SILU: x / (1 + math.exp(-x)),
    }
    for kind, value in expected.items():
        assert float(activation(Fraction(x), kind)) == pytest.approx(value, rel=1e-11, abs=1e-14)


def test_identity_and_relu_are_exact():
    x = Fraction(-1, 3)
    assert activation(x, EpilogueKind.IDENTITY) == x
    assert activation(x, EpilogueKind.RELU) == 0
    assert activation(-x, EpilogueKind.RELU) == -x


def test_tails_keep_their_relative_precision():
    """The asymptotic series of erfc gives its first digits where 1 + erf would have cancelled to nothing."""
    x = Fraction(-36)
    z = 36 / math.sqrt(2)
    leading = math.exp(-z * z) / (z * math.sqrt(math.pi)) * (1 - 1 / (2 * z * z) + 3 / (4 * z**4))
    assert float(activation(x, EpilogueKind.GELU_ERF)) == pytest.approx(-18 * leading, rel=1e-6)
    assert float(activation(Fraction(-700), EpilogueKind.SILU)) == pytest.approx(-700 * math.exp(-700), rel=1e-12)


@pytest.mark.parametrize("kind", [EpilogueKind.GELU_TANH, EpilogueKind.GELU_ERF, EpilogueKind.SILU])
def test_enormous_arguments_are_no_trouble(kind):
    huge = Fraction(2) ** 2000
    assert activation(huge, kind) == huge
    assert activation(-huge, kind) == 0
    assert activation(Fraction(0), kind) == 0
