import math
from fractions import Fraction

import pytest

from quantplan.elements import ElementKind
from quantplan.verify.judge import HOPELESS, error_fraction, judge_bits, judge_errors

F32, F16, S8 = ElementKind.F32, ElementKind.F16, ElementKind.S8
E4M3, E5M2 = ElementKind.FP8_E4M3, ElementKind.FP8_E5M2


def test_equal_codes_are_right():
    assert judge_bits(S8, (1, 3), [1, 2, 3], [1, 2, 3]).mismatches == 0


def test_other_codes_are_counted_and_the_first_one_shown():
    verdict = judge_bits(S8, (2, 2), [1, 2, 255, 4], [1, 2, 3, 5])
    assert verdict.mismatches == 2
    assert verdict.example == "[1, 0]: expected -1 (0xff), got 3 (0x3)"
    assert "[1]: " in judge_bits(F32, (2,), [0, 0], [0, 1 << 31]).example


@pytest.mark.parametrize(
    "element, value, exact, bound, expected",
    [
        (F32, 1.5, Fraction(1), 1.0, 0.5),
        (F32, 1.0, Fraction(1), 0.0, 0.0),
        (F32, 1.0, Fraction(2), 0.0, HOPELESS),
        (F32, 3.0, Fraction(1), 1.0, 2.0),
        (F32, math.nan, Fraction(1), math.inf, 0.0),
        (F32, math.nan, Fraction(1), 1.0, HOPELESS),
        (F32, math.inf, Fraction(1), math.inf, 0.0),
        (F32, 1.0, Fraction(5), math.inf, 0.0),
        (F32, 1.0, Fraction(1), math.nan, HOPELESS),
        (F32, 1.0, Fraction(1), -1.0, HOPELESS),
        (F16, math.inf, Fraction(65519), 1.0, 0.0),
        (F16, math.inf, Fraction(65519), 0.5, HOPELESS),
        (F16, -math.inf, Fraction(-70000), 1.0, 0.0),
        (F16, math.inf, Fraction(-70000), 1.0, HOPELESS),
        (F16, 65504.0, Fraction(10) ** 400, 1e-300, HOPELESS),
        (E5M2, math.inf, Fraction(57344), 7168.0, HOPELESS),
        (E5M2, 57344.0, Fraction(57344), 7168.0, 0.0),
        (E5M2, 49152.0, Fraction(57344), 8192.0, 1.0),
    ],
)
def test_error_fraction(element, value, exact, bound, expected):
    assert error_fraction(element, value, exact, bound) == expected


def test_a_hair_beyond_the_bound_is_beyond_it():
    bound = 1.0
    assert error_fraction(F32, 1.0, Fraction(0), bound) == 1
    assert error_fraction(F32, 1.0, Fraction(-1, 10**40), bound) > 1
    assert error_fraction(F32, 1.0, Fraction(1, 10**40), bound) == 1


def test_the_worst_error_is_kept_and_the_first_breach_shown():
    one, two = 0x3F800000, 0x40000000
    verdict = judge_errors(F32, (1, 3), [Fraction(1), Fraction(1), None], [1.0, 0.5, 1.0], [one, two, 0x7FFFFFFF])
    assert (verdict.mismatches, verdict.fraction) == (1, 2.0)
    assert verdict.example == "[0, 1]: expected 1.0 ± 0.5, got 2.0"
    assert "expected inf" in judge_errors(F32, (1, 1), [Fraction(10) ** 400], [1.0], [one]).example
    assert "expected NaN" in judge_errors(F32, (1, 1), [None], [1.0], [one]).example


@pytest.mark.parametrize(
    "element, code, right",
    [(F32, 0x7FFFFFFF, True), (F32, 0x7FC00000, False), (F32, 0, False), (S8, 0, True), (S8, 1, False)],
)
def test_where_there_is_no_real_result_canonical_nan_must_come(element, code, right):
    assert judge_errors(element, (1, 1), [None], [math.inf], [code]).mismatches == (not right)


@pytest.mark.parametrize(
    "element, target, code",
    [(F32, math.inf, 0x7F800000), (F32, -math.inf, 0xFF800000), (E4M3, math.inf, 0x7E), (E5M2, -math.inf, 0xFB)],
)
def test_an_infinity_that_operands_determine_must_come_whatever_the_bound(element, target, code):
    assert judge_errors(element, (1, 2), [target] * 2, [math.inf] * 2, [code, code]).mismatches == 0
    assert judge_errors(element, (1, 2), [target] * 2, [math.inf] * 2, [code, code ^ 1]).mismatches == 1
    assert "expected inf" in judge_errors(F32, (1, 1), [math.inf], [math.inf], [0]).example
