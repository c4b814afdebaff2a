"""mma.sync on whole matrices, against NumPy's integers and sums that are exact or cut as tensor cores cut them."""

import math
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from quantplan.emulator.schedule import Accumulation, Order
from quantplan.errors import KernelBuildError

TEXT = (Path(__file__).parent / "mma.cu").read_text(encoding="utf-8")
ELEMENTS = {
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "s8": np.int8,
    "u8": np.uint8,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}
INTEGERS = [("s8", "s8"), ("u8", "s8"), ("s8", "u8"), ("u8", "u8")]
FLOATS = [("f16", "f16"), ("bf16", "bf16"), ("e4m3", "e4m3"), ("e4m3", "e5m2"), ("e5m2", "e4m3"), ("e5m2", "e5m2")]
PAIRS = [*FLOATS[:2], *INTEGERS, *FLOATS[2:]]  # in the order of mma.cu
# Of the truncated model: products at a time, fractional bits, significant bits, exponent of the smallest normal number.
CUTS = {"f16": (8, 24, 24, -14), "bf16": (8, 24, 24, -126), "e4m3": (16, 13, 14, -6), "e5m2": (16, 13, 14, -14)}
NAN = 0x7FFFFFFF

# ---- fragments, element by element as the PTX ISA lists them


def a_places(width):
    """Rows and columns of A that each lane holds, as (lane, i)."""
    n = 32 // width  # elements of a register
    lane, i = np.ogrid[:32, : 4 * n]
    row = lane // 4 + np.where((i // n) % 2 == 0, 0, 8)
    return row, lane % 4 * n + i % n + np.where(i < 2 * n, 0, 4 * n)


def b_places(width):
    n = 32 // width
    lane, i = np.ogrid[:32, : 2 * n]
    return lane % 4 * n + i % n + np.where(i < n, 0, 4 * n), lane // 4 + 0 * i


def c_places():
    lane, i = np.ogrid[:32, :4]
    return lane // 4 + np.where(i < 2, 0, 8), lane % 4 * 2 + i % 2


def words(matrices, places):
    return np.ascontiguousarray(matrices[:, *places]).view(np.uint32).reshape(len(matrices), 32, -1)


@pytest.fixture
def multiply(bench):
    """Return ``A·B + C`` of stacks of matrices, as the emulated instruction computes it."""

    def run(pair, a, b, c, **schedule):
        width = 8 * a.dtype.itemsize
        arrays = {
            "a": words(a, a_places(width)),
            "b": words(b, b_places(width)),
            "c": words(c, c_places()),
            "d": np.empty((len(a), 32, 4), c.dtype),
        }
        which = (PAIRS.index(pair),)
        bench.run(TEXT, arrays, outputs=("d",), scalars=which, grid=(len(a),), **schedule)
        result = np.empty_like(c)
        result[:, *c_places()] = arrays["d"]
        return result

    return run


def shapes(pair):
    k = 32 // np.dtype(ELEMENTS[pair[0]]).itemsize
    return (16, k), (k, 8), (16, 8)


# ---- oracles


def products(a, b, c):
    """Return the terms of each sum, C's first, as (matrix, row, column, term)."""
    a, b, c = (m.astype(np.float64) for m in (a, b, c))
    each = a[:, :, np.newaxis, :] * b.swapaxes(1, 2)[:, np.newaxis, :, :]
    return np.concatenate([c[..., np.newaxis], each], axis=-1)


def rounded_sum(terms):
    """Return the exact sum as f32: rounded to odd in f64, which leaves the rounding to f32 its ties."""
    total = math.fsum(terms)
    rest = math.fsum([*terms, -total])
    if rest and not np.float64(total).view(np.uint64) & 1:
        total = math.nextafter(total, math.copysign(math.inf, rest))
    with np.errstate(over="ignore"):
        return np.float32(total)


def toward_zero(value, quantum):
    return int(value / quantum) * quantum


def exponent(x, least):
    return max(math.frexp(x)[1] - 1, least)


def truncated_sum(pair, a, b, total):
    """Return the sum of one row and one column as the truncated model defines it."""
    step, fraction, significant, _ = CUTS[pair[0]]
    leasts = [CUTS[element][3] for element in pair]
    for start in range(0, len(a), step):
        terms = [(Fraction(total), exponent(total, -126))]
        for x, y in zip(a[start : start + step].tolist(), b[start : start + step].tolist(), strict=True):
            terms.append((Fraction(x) * Fraction(y), exponent(x, leasts[0]) + exponent(y, leasts[1])))
        quantum = Fraction(2) ** (max((e for term, e in terms if term), default=0) - fraction)
        cut = float(sum(toward_zero(term, quantum) for term, _ in terms))
        total = float(toward_zero(Fraction(cut), Fraction(2) ** (exponent(cut, -126) + 1 - significant)))
        if abs(total) >= 2.0**128:
            return math.copysign(math.inf, total)
    return total


# ---- operands


def finite_codes(rng, shape, dtype):
    """Draw among all finite numbers of a format, so that most sums span many exponents."""
    width = np.dtype(dtype).itemsize
    drawn = rng.integers(0, 1 << 8 * width, shape, np.uint16).astype(f"u{width}").view(dtype)
    return np.where(np.isfinite(drawn.astype(np.float32)), drawn, dtype(1))


def draw(kind, pair, seed=0, count=2):
    rng = np.random.default_rng(seed)
    a_shape, b_shape, c_shape = ((count, *shape) for shape in shapes(pair))
    kinds = [ELEMENTS[element] for element in pair]
    if kind == "normal":
        a, b = (rng.standard_normal(s).astype(t) for s, t in zip((a_shape, b_shape), kinds, strict=True))
        return a, b, rng.standard_normal(c_shape).astype(np.float32)
    if kind == "codes":
        a, b = (finite_codes(rng, s, t) for s, t in zip((a_shape, b_shape), kinds, strict=True))
        return a, b, np.ldexp(rng.standard_normal(c_shape), rng.integers(-140, 30, c_shape)).astype(np.float32)
    # cancellation: the second half of K undoes the first, but for one small difference
    a, b = (rng.standard_normal(s).astype(t) for s, t in zip((a_shape, b_shape), kinds, strict=True))
    half = a.shape[2] // 2
    a[..., half:], b[:, half:] = -a[..., :half], b[:, :half]
    a[..., -1] *= kinds[0](0.875)
    return a, b, np.ldexp(rng.standard_normal(c_shape), -20).astype(np.float32)


# ---- integers


@pytest.mark.parametrize("pair", INTEGERS)
def test_integers_are_exact_and_wrap(multiply, pair):
    rng = np.random.default_rng(1)
    limits = np.iinfo(np.int32)
    a_shape, b_shape, c_shape = shapes(pair)
    a, b = (
        rng.integers(np.iinfo(t).min, np.iinfo(t).max + 1, (4, *shape), t)
        for t, shape in zip((ELEMENTS[element] for element in pair), (a_shape, b_shape), strict=True)
    )
    c = rng.integers(limits.min, limits.max, (4, *c_shape), np.int32)
    a[3], b[3], c[3] = a[3].max(), b[3].max(), limits.max
    exact = a.astype(np.int64) @ b.astype(np.int64) + c
    got = multiply(pair, a, b, c, order=Order.RANDOM)
    np.testing.assert_array_equal(got, exact.astype(np.int32))
    assert (got != exact).any(), "no sum has wrapped"


# ---- floats


@pytest.mark.parametrize("accumulation", Accumulation)
@pytest.mark.parametrize("pair", FLOATS)
def test_small_integers_as_floats_are_exact(multiply, pair, accumulation):
    rng = np.random.default_rng(2)
    a_shape, b_shape, c_shape = shapes(pair)
    a = rng.integers(-3, 4, (2, *a_shape)).astype(ELEMENTS[pair[0]])
    b = rng.integers(-3, 4, (2, *b_shape)).astype(ELEMENTS[pair[1]])
    c = rng.integers(-99, 100, (2, *c_shape)).astype(np.float32)
    expected = a.astype(np.float32) @ b.astype(np.float32) + c
    np.testing.assert_array_equal(multiply(pair, a, b, c, accumulation=accumulation), expected)


@pytest.mark.parametrize("kind", ["normal", "codes", "cancelling"])
@pytest.mark.parametrize("pair", FLOATS)
def test_the_exact_model_rounds_once(multiply, pair, kind):
    a, b, c = draw(kind, pair)
    expected = np.apply_along_axis(rounded_sum, -1, products(a, b, c))
    np.testing.assert_array_equal(multiply(pair, a, b, c), expected)


def test_a_tie_is_broken_by_the_smallest_term(multiply):
    """Rounded to f64 first, the sums of the first two rows would be ties."""
    tie, tiny = 2.0**-24, 2.0**-90
    a = np.zeros((1, 16, 16), ml_dtypes.bfloat16)
    a[0, :4, :2] = [[tie, tiny], [tie, -tiny], [tie, 0], [3 * tie, 0]]
    b = np.ones((1, 16, 8), ml_dtypes.bfloat16)
    c = np.ones((1, 16, 8), np.float32)
    got = multiply(("bf16", "bf16"), a, b, c)[0, :5, 0]
    np.testing.assert_array_equal(got, np.float32([1 + 2 * tie, 1, 1, 1 + 4 * tie, 1]))


@pytest.mark.parametrize("kind", ["normal", "codes", "cancelling"])
@pytest.mark.parametrize("pair", FLOATS)
def test_the_truncated_model_cuts_as_stated(multiply, pair, kind):
    a, b, c = draw(kind, pair, count=1)
    expected = np.empty_like(c)
    x, y = a.astype(np.float64), b.astype(np.float64)
    for m, row, column in np.ndindex(c.shape):
        expected[m, row, column] = truncated_sum(pair, x[m, row], y[m, :, column], float(c[m, row, column]))
    np.testing.assert_array_equal(multiply(pair, a, b, c, accumulation=Accumulation.TRUNCATED), expected)


@pytest.mark.parametrize("pair", FLOATS)
def test_truncated_sums_stay_as_near_as_their_bits_allow(multiply, pair):
    step, fraction, significant, _ = CUTS[pair[0]]
    a, b, c = draw("normal", pair)
    terms = products(a, b, c)
    steps = (terms.shape[-1] - 1) // step
    # each step cuts step + 1 terms below the largest partial sum or product, and then the sum
    size = np.abs(terms).sum(axis=-1)
    bound = steps * size * ((step + 1) * 2.0**-fraction + 2.0 ** (1 - significant))
    got = multiply(pair, a, b, c, accumulation=Accumulation.TRUNCATED)
    error = np.abs(got - terms.sum(axis=-1))
    assert (error <= bound).all()
    assert error.any()
    assert not (got.view(np.uint32) & ((1 << (24 - significant)) - 1)).any()


@pytest.mark.parametrize("accumulation", Accumulation)
@pytest.mark.parametrize("pair", FLOATS)
def test_nan_and_infinity_propagate(multiply, pair, accumulation):
    a, b, c = draw("normal", pair, count=1)
    left, right = (ELEMENTS[element] for element in pair)
    a[0, 0, 5] = left(np.nan)
    b[0, 3, 7] = right(np.nan)
    c[0, 2, 1] = np.nan
    c[0, 3, 2] = np.inf
    c[0, 4, 3] = -np.inf
    nan = np.zeros((16, 8), bool)
    nan[0, :] = nan[:, 7] = nan[2, 1] = True
    infinities = {(3, 2): np.inf, (4, 3): -np.inf}
    if pair[0] != "e4m3":  # which has no infinity
        a[0, 5] = left(1)
        a[0, 5, 1] = left(np.inf)
        b[0, 1] = np.where(np.arange(8) % 2, right(2), right(-2))
        b[0, 1, 4] = right(0)  # ∞ · 0
        c[0, 5, 0] = np.inf  # −∞ + ∞
        nan[5, [0, 4]] = True
        infinities |= {(5, column): np.inf if column % 2 else -np.inf for column in (1, 2, 3, 5, 6)}
    got = multiply(pair, a, b, c, accumulation=accumulation)[0]
    np.testing.assert_array_equal(np.isnan(got), nan)
    assert (got.view(np.uint32)[nan] == NAN).all()
    assert {place: got[place] for place in map(tuple, np.argwhere(np.isinf(got)).tolist())} == infinities


@pytest.mark.parametrize("accumulation", Accumulation)
def test_sums_overflow_to_infinity(multiply, accumulation):
    a = np.zeros((1, 16, 16), ml_dtypes.bfloat16)
    b = np.zeros((1, 16, 8), ml_dtypes.bfloat16)
    c = np.full((1, 16, 8), np.finfo(np.float32).max)
    a[0, :, 0], b[0, 0] = 2.0**60, 2.0**42  # less than half a unit of the largest number's last place
    a[0, 1, 0], a[0, 2, 0] = 2.0**64, -(2.0**64)
    got = multiply(("bf16", "bf16"), a, b, c, accumulation=accumulation)[0]
    assert (got[0] == c[0, 0]).all()
    assert np.isposinf(got[1]).all()
    assert np.isfinite(got[2]).all()


def test_fp8_is_refused_where_there_is_none(bench):
    with pytest.raises(KernelBuildError, match="FP8 needs sm_89 or newer"):
        bench.library(TEXT, arch=860)
