"""Many numbers divided by one: the quotients of divide.cuh are IEEE 754's, bit for bit, where a code can tell."""

import numpy as np
import pytest

from tests.emulator.conftest import Bench

TEXT = """
#include <qp/divide.cuh>
struct P { const float* x; const float* d; float* general; float* within; long long n; };
__device__ void body(const P& p) {
  for (long long i = threadIdx.x; i < p.n; i += 32) {
    const qp::Divisor<float> divisor(p.d[i]);
    p.general[i] = divisor.divide(p.x[i]);
    p.within[i] = divisor.divide_within(p.x[i]);
  }
}
"""
COUNT = 250_000
SIGNIFICANDS = {
    "any": lambda rng: rng.integers(0, 1 << 23, COUNT),
    "just below two": lambda rng: (1 << 23) - 1 - rng.integers(0, 4096, COUNT),  # the hardest, by the header's proof
    "just above one": lambda rng: rng.integers(0, 4096, COUNT),
    "few bits": lambda rng: (1 << rng.integers(0, 23, COUNT)) | (1 << rng.integers(0, 23, COUNT)),
}


def numbers(rng, kind):
    """Return normal numbers of every exponent and both signs."""
    exponent, sign = rng.integers(1, 255, COUNT), rng.integers(0, 2, COUNT)
    return (SIGNIFICANDS[kind](rng) | (exponent << 23) | (sign << 31)).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("divisors", SIGNIFICANDS)
@pytest.mark.parametrize("dividends", SIGNIFICANDS)
def test_quotients_are_rounded_as_a_division_rounds_them(dividends, divisors):
    rng = np.random.default_rng(5)
    x, d = numbers(rng, dividends), numbers(rng, divisors)
    general, within = np.zeros((2, COUNT), np.float32)
    arrays = {"x": x, "d": d, "general": general, "within": within}
    Bench().run(TEXT, arrays, outputs=("general", "within"), scalars=(COUNT,), checked=False)
    with np.errstate(all="ignore"):
        true = x / d
    size = np.abs(true)
    told = (size > 2.0**-80) & (size < 2.0**59)
    assert told.sum() > COUNT // 3
    np.testing.assert_array_equal(within[told], true[told])
    np.testing.assert_array_equal(general[told], true[told])
    assert np.all(np.abs(general[size >= 2.0**60]) >= 2.0**59)  # so large that every code is at its limit
    assert np.all(np.abs(general[size <= 2.0**-80]) <= 2.0**-79)  # so small that every code is zero
    np.testing.assert_array_equal(np.signbit(general), np.signbit(true))


@pytest.mark.parametrize("x", [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-45, 3e38])
@pytest.mark.parametrize("d", [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 2.0**-126, 3e38])
def test_quotients_of_what_is_special(x, d):
    general, within = np.zeros((2, 1), np.float32)
    arrays = {"x": np.array([x], np.float32), "d": np.array([d], np.float32), "general": general, "within": within}
    Bench().run(TEXT, arrays, outputs=("general", "within"), scalars=(1,), checked=False)
    with np.errstate(all="ignore"):
        true = arrays["x"] / arrays["d"]
    if 2.0**60 <= abs(true[0]) < np.inf:
        assert abs(general[0]) >= 2.0**59
    else:
        np.testing.assert_array_equal(general, true)
        assert np.isnan(true[0]) or np.signbit(general[0]) == np.signbit(true[0])


SHORT = """
#include <qp/divide.cuh>
struct P { const float* x; const float* d; float* quotient; long long n; };
__device__ void body(const P& p) {
  for (long long i = threadIdx.x; i < p.n; i += 32) {
    const qp::ShortDivisor divisor(p.d[i]);
    for (long long j = 0; j < p.n; ++j) p.quotient[i * p.n + j] = divisor.divide_within(p.x[j]);
  }
}
"""
LIMITS = (127, 255, 448, 57344, 1, 3, 100)
OTHERS = sorted(set(range(1, 256)) - set(LIMITS))
NOT_ROUNDED = 1  # of all pairs of significands and limits: what lies there is beside no number that decides a code


def short_quotients(x, d):
    """Return what each number is when divided by each divisor."""
    quotient = np.zeros((len(d), len(x)), np.float32)
    Bench().run(SHORT, {"x": x, "d": d, "quotient": quotient}, outputs=("quotient",), scalars=(len(x),), checked=False)
    return quotient


def unequal_short_quotients(limit):
    """Try every significand that an f16 has, and so those of a bf16, with the scale of every other."""
    significands = np.arange(1024, 2048, dtype=np.float32)
    scales = significands / np.float32(limit)
    return np.count_nonzero(short_quotients(significands, scales) != significands / scales[:, None])


@pytest.mark.parametrize("limit", LIMITS)
def test_short_numbers_are_divided_by_their_own_scale(limit):
    assert unequal_short_quotients(limit) == 0


@pytest.mark.slow
def test_short_numbers_are_divided_by_the_scale_of_every_limit():
    assert sum(map(unequal_short_quotients, OTHERS)) == NOT_ROUNDED


def test_short_quotients_have_their_sign_and_range():
    x = np.array([0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 65504, 2.0**-133, 2.0**107, -3.0 * 2.0**50, -0.1], np.float32)
    d = np.array([2.0**-126, 1.1754945e-38, 1 / 3, 1.0, 3.7, 511.9, 3e20, 2.0**99, 1.1e30, 2.0**100, 0.1], np.float32)
    quotient = short_quotients(x, d)
    with np.errstate(all="ignore"):
        true = x / d[:, None]
    np.testing.assert_array_equal(np.signbit(quotient), np.signbit(true))
    told = (np.abs(true) > 2.0**-30) & (np.abs(true) < 2.0**20)
    np.testing.assert_array_equal(quotient[told], true[told])
    small = np.abs(true) <= 2.0**-30
    assert np.all(np.abs(quotient[small]) < 2.0**-29)
