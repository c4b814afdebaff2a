from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantplan.elements import ElementKind
from quantplan.reference import exact_sum as module
from quantplan.reference.exact_sum import RANGES, exact_sum
from tests.reference import exact, exact_gemm

F16, BF16 = ElementKind.F16, ElementKind.BF16
E4M3, E5M2 = ElementKind.FP8_E4M3, ElementKind.FP8_E5M2
CODES = 4
"""Bits of the magnitudes of 4-bit weights without their zero points: at most 15."""
PAIRS = [(F16, None), (BF16, None), (E4M3, E4M3), (E4M3, E5M2), (E5M2, E4M3), (E5M2, E5M2)]
FP8_PAIRS = PAIRS[2:]
NAMES = ["f16", "bf16", "e4m3-e4m3", "e4m3-e5m2", "e5m2-e4m3", "e5m2-e5m2"]

# Magnitudes at which bands end: 53 bits less those of w less 7 for 128 products, counted from the format's unit first
# and then from a significand's last bit.
BANDS = {
    (F16, None): [2.0**16],
    (BF16, None): [2.0**e for e in (-91, -56, -21, 14, 49, 84, 119, 128)],
    (E4M3, E4M3): [2.0**9],
    (E4M3, E5M2): [2.0**5, 2.0**9],
    (E5M2, E4M3): [2.0**12, 2.0**16],
    (E5M2, E5M2): [2.0**-2, 2.0**10, 2.0**16],
}


def every_code(element, *, finite=True):
    """Return all values of an element."""
    codes = np.arange(1 << 8 * element.dtype.itemsize, dtype=f"u{element.dtype.itemsize}").view(element.dtype)
    with np.errstate(all="ignore"):
        return codes[np.isfinite(codes.astype(np.float32))] if finite else codes


def draw(random, pair, m, n, k):
    """Return operands whose codes are all as likely as each other, so of every exponent."""
    a_kind, w_kind = pair
    a = random.choice(every_code(a_kind), (m, k))
    if w_kind is None:
        return a, random.integers(-15, 15, (n, k), np.int8, endpoint=True)
    return a, random.choice(every_code(w_kind), (n, k))


def bits_of(pair):
    return CODES if pair[1] is None else RANGES[pair[1]].bits


def total(pair, a, w):
    return exact_sum(a, w, bits_of(pair))


def real(a, w):
    """Return the sums as fractions."""
    rows, columns = exact_gemm.values(a), exact_gemm.values(w)
    return [[exact_gemm.dot(row, column) for column in columns] for row in rows]


def fractions(sums):
    return [[Fraction(value) for value in row] for row in sums.tolist()]


def in_order(pair, a, w):
    """Return the sums as the contract orders them: parts of K, bands within a part, each addition rounded to f64."""
    limits = BANDS[pair]
    longest = 256 if len(limits) == 1 else 128
    rows, columns = exact_gemm.values(a), exact_gemm.values(w)
    result = []
    for row in rows:
        result.append([])
        for column in columns:
            value = 0.0
            for start in range(0, len(row), longest):
                low = 0.0
                for high in limits:
                    band = [x if low <= abs(x) < high else 0.0 for x in row[start : start + longest]]
                    partial = exact_gemm.dot(band, column[start : start + longest])
                    value = exact.rounded(Fraction(value) + partial, ElementKind.F64)
                    low = high
            result[-1].append(value)
    return result


def same_bits(one, other):
    return np.array_equal(one.view(np.uint64), other.view(np.uint64))


@pytest.mark.parametrize("element", RANGES)
def test_ranges_are_those_of_the_formats(element):
    magnitudes = np.abs(every_code(element).astype(np.float64))
    shape, unit = RANGES[element], 2.0 ** RANGES[element].unit
    assert magnitudes[magnitudes > 0].min() == unit
    assert 2.0 ** (shape.bits - 1) <= magnitudes.max() / unit < 2.0**shape.bits
    assert shape.significand == exact.FORMATS[element].precision


@pytest.mark.parametrize("pair", PAIRS, ids=NAMES)
def test_bands_and_parts_fit_a_double(pair):
    a_range, w_bits = RANGES[pair[0]], bits_of(pair)
    limits = module._band_limits(a_range, 53 - w_bits - 7)
    assert list(limits) == BANDS[pair]
    magnitudes = np.unique(np.abs(every_code(pair[0]).astype(np.float64)))
    low = 0.0
    for high in limits:
        band = magnitudes[(low <= magnitudes) & (magnitudes < high)]
        unit = min(quantum(v) for v in band.tolist() if v)
        assert band.max() / unit * 2.0**w_bits * 128 <= 2.0**53
        low = high
    assert low > magnitudes.max()


def quantum(value):
    """Return the largest power of two that a float is a multiple of."""
    numerator, denominator = value.as_integer_ratio()
    return (numerator & -numerator) / denominator


@pytest.mark.parametrize("k", [1, 2, 127, 128, 129, 256, 257, 300, 513])
@pytest.mark.parametrize("pair", [(F16, None), (E4M3, E4M3)], ids=["f16", "e4m3-e4m3"])
def test_sums_are_exact_where_one_band_holds_them(pair, k):
    """For 4-bit weights and f16 up to 512 products; for e4m3 up to 131072."""
    a, w = draw(np.random.default_rng(k), pair, 3, 4, k)
    k = min(k, 512)
    assert fractions(total(pair, a[:, :k], w[:, :k])) == real(a[:, :k], w[:, :k])


@pytest.mark.parametrize("k", [1, 2, 127, 128, 129, 255, 256, 257, 300])
@pytest.mark.parametrize("pair", PAIRS, ids=NAMES)
def test_sums_are_rounded_in_the_stated_order(pair, k):
    """Drawn from every exponent, so that K beyond a part and each band matter."""
    a, w = draw(np.random.default_rng(k), pair, 3, 4, k)
    sums = total(pair, a, w)
    assert sums.tolist() == in_order(pair, a, w)
    for row, reals, sizes in zip(sums.tolist(), real(a, w), real(np.abs(a), np.abs(w)), strict=True):
        for value, exactly, size in zip(row, reals, sizes, strict=True):
            assert abs(Fraction(value) - exactly) <= Fraction(k / 16 + 8) * size / 2**53


@pytest.mark.parametrize("pair", PAIRS, ids=NAMES)
@given(seed=st.integers(0, 2**32), k=st.integers(0, 128), spread=st.integers(0, 4))
def test_a_narrow_range_of_exponents_is_exact(pair, seed, k, spread):
    """One band and one part: the real sum, whatever the exponent."""
    random = np.random.default_rng(seed)
    finite = every_code(pair[0])
    size = np.abs(finite.astype(np.float64))
    start = random.choice(size) or 1.0
    near = finite[(start <= size) & (size <= start * 2.0**spread)]
    a, w = draw(random, pair, 2, 3, k)
    a = random.choice(near, a.shape)
    size = np.abs(near.astype(np.float64))
    if not any(size.min() < limit <= size.max() for limit in BANDS[pair]):
        assert fractions(total(pair, a, w)) == real(a, w)


@pytest.mark.parametrize("pair", PAIRS, ids=NAMES)
def test_extremes(pair):
    """The largest values, the smallest subnormals, and both at once."""
    a_codes, w_codes = every_code(pair[0]), np.array([15, -15], np.int8) if pair[1] is None else every_code(pair[1])
    size = np.abs(a_codes.astype(np.float64))
    largest, least = a_codes[size.argmax()], a_codes[np.where(size > 0, size, np.inf).argmin()]
    w_size = np.abs(w_codes.astype(np.float64))
    heaviest = w_codes[w_size.argmax()]
    a = np.array([[largest] * 128, [least] * 128, [largest] * 64 + [least] * 64, [largest, least] * 64])
    w = np.array([[heaviest] * 128, [heaviest, -heaviest] * 64, [-heaviest] * 127 + [0]]).astype(w_codes.dtype)
    sums = total(pair, a, w)
    assert fractions(sums)[:2] == real(a, w)[:2]
    assert sums.tolist() == in_order(pair, a, w)


def test_huge_terms_that_cancel_leave_the_small_ones():
    """Added one after the other in float64, 2⁻¹³³ would be lost beside 2¹²⁷."""
    a = np.array([[2.0**127, 2.0**-133, -(2.0**127), 2.0**-133]]).astype(ml_dtypes.bfloat16)
    assert exact_sum(a, np.ones((1, 4), np.int8), CODES).item() == 2.0**-132


@pytest.mark.parametrize("pair", PAIRS, ids=NAMES)
def test_no_part_of_a_row_depends_on_other_rows(pair):
    """A row alone has the bits that it has among huge, tiny, infinite and NaN ones, at any M and N."""
    random = np.random.default_rng(1)
    a, w = draw(random, pair, 7, 70, 300)
    finite = every_code(pair[0])
    size = np.abs(finite.astype(np.float64))
    a[1], a[2] = finite[size.argmax()], finite[np.where(size > 0, size, np.inf).argmin()]
    a[3] = 0
    a[5] = np.nan
    if pair[0] is not E4M3:
        a[4, 7] = np.inf
    everything = total(pair, a, w)
    for i in (0, 1, 2, 3, 6):
        assert same_bits(total(pair, a[i : i + 1], w), everything[i : i + 1])
        for j in (0, 33, 69):
            assert same_bits(total(pair, a[i : i + 1], w[j : j + 1]), everything[i : i + 1, j : j + 1])
    order = random.permutation(7)
    assert same_bits(total(pair, a[order], w)[order.argsort()][[0, 1, 2, 3, 6]], everything[[0, 1, 2, 3, 6]])
    larger = np.concatenate([random.choice(finite, (90, 300)), a])
    assert same_bits(total(pair, larger, w[:33])[90:][[0, 1, 2, 3, 6]], everything[[0, 1, 2, 3, 6], :33])


@pytest.mark.parametrize("pair", PAIRS, ids=NAMES)
def test_the_order_within_a_part_does_not_matter(pair):
    """Whatever order BLAS adds in: a permuted part has the same bits."""
    random = np.random.default_rng(2)
    a, w = draw(random, pair, 5, 9, 128)
    for _ in range(5):
        order = random.permutation(128)
        assert same_bits(total(pair, a[:, order], w[:, order]), total(pair, a, w))


@pytest.mark.parametrize("pair", PAIRS, ids=NAMES)
def test_integers_at_0_ulp(pair):
    random = np.random.default_rng(3)
    a, w = random.integers(-8, 8, (5, 700), endpoint=True), random.integers(-4, 4, (6, 700), endpoint=True)
    sums = total(pair, a.astype(pair[0].dtype), w.astype(np.int8 if pair[1] is None else pair[1].dtype))
    assert np.array_equal(sums, a @ w.T)


@pytest.mark.parametrize("pair", PAIRS, ids=NAMES)
def test_infinities_and_nan_stay_in_their_rows_and_columns(pair):
    """An infinity meets the number that it is multiplied by; bands put no zeros in its way."""
    a_kind, w_kind = pair
    has_infinity = a_kind is not E4M3
    a = np.ones((5, 150), a_kind.dtype)
    a[0, 0] = every_code(a_kind).astype(np.float64).max()
    a[:, 149] = 2.0 ** RANGES[a_kind].unit  # several bands, in the second part too
    a[1, 140], a[2, [3, 140]] = np.nan, [np.inf, 1] if has_infinity else np.nan
    a[3, [3, 140]] = [np.inf, -np.inf] if has_infinity else np.nan
    w = np.ones((4, 150), np.int8 if w_kind is None else w_kind.dtype)
    w[1, 3], w[2] = 0, -w[2]
    if w_kind is not None:
        w[3, 2] = np.inf if w_kind is E5M2 else np.nan
    sums, expected = total(pair, a, w), real(a, w)
    for i, j in np.ndindex(sums.shape):
        wanted = expected[i][j]
        if isinstance(wanted, Fraction):
            assert sums[i, j] == exact.rounded(wanted, ElementKind.F64) or len(BANDS[pair]) > 1
            assert np.isfinite(sums[i, j])
        else:
            assert np.array_equal(sums[i, j], wanted, equal_nan=True)


def test_an_infinite_weight_is_multiplied_by_no_band_but_its_own():
    """Were it, zero times infinity would make NaN of every row that shares a call with a row of another band."""
    e5m2 = ml_dtypes.float8_e5m2
    w = np.array([[np.inf, 1.0], [-np.inf, 1.0]], e5m2)
    a = np.array([[1.0, 1.0], [57344.0, 2.0**-16], [2.0**-16, -57344.0], [0.0, 1.0]], e5m2)
    expected = [[np.inf, -np.inf]] * 3 + [[np.nan, np.nan]]
    assert np.array_equal(exact_sum(a, w, 32), expected, equal_nan=True)
    assert np.array_equal(exact_sum(a[:1], w, 32), expected[:1], equal_nan=True)


def test_an_infinity_of_one_part_meets_that_of_another():
    a = np.zeros((2, 400), np.float16)
    a[:, 0], a[:, 399] = np.inf, [np.inf, -np.inf]
    assert np.array_equal(exact_sum(a, np.ones((1, 400), np.int8), CODES), [[np.inf], [np.nan]], equal_nan=True)


@pytest.mark.parametrize("m, n, k", [(0, 3, 4), (3, 0, 4), (2, 3, 0)])
def test_empty_sums(m, n, k):
    """No products are a sum of zero."""
    sums = exact_sum(np.empty((m, k), np.float16), np.empty((n, k), np.int8), CODES)
    assert sums.shape == (m, n)
    assert not sums.any()


@pytest.mark.parametrize("pair", FP8_PAIRS, ids=NAMES[2:])
def test_every_product_of_two_codes(pair):
    a, w = every_code(pair[0])[:, np.newaxis], every_code(pair[1])[:, np.newaxis]
    assert np.array_equal(total(pair, a, w), a.astype(np.float64) * w.astype(np.float64).T)
