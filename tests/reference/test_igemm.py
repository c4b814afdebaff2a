import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from quantplan.reference import igemm
from quantplan.reference.igemm import gemm_tiles, int_gemm

DTYPES = [np.int8, np.uint8]


def random_operands(seed, m, n, k, dtype):
    random = np.random.default_rng(seed)
    info = np.iinfo(dtype)
    a = random.integers(info.min, info.max, (m, k), dtype, endpoint=True)
    return a, random.integers(-128, 127, (n, k), np.int8, endpoint=True)


def wide_product(a, w):
    return a.astype(np.int64) @ w.T.astype(np.int64)


def wrapped(values):
    return (np.asarray(values) & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def test_a_small_product():
    a = np.array([[1, 2, 3], [-4, 5, -6]], np.int8)
    w = np.array([[7, -8, 9], [0, 1, 0]], np.int8)
    assert int_gemm(a, w).tolist() == [[18, 2], [-122, 5]]
    assert int_gemm(a, w).dtype == np.int32


@given(st.integers(0, 2**32), *[st.integers(0, 70)] * 3, st.sampled_from(DTYPES))
def test_it_equals_64_bit_integers(seed, m, n, k, dtype):
    a, w = random_operands(seed, m, n, k, dtype)
    assert np.array_equal(int_gemm(a, w), wide_product(a, w))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [511, 512, 513, 1023, 1024, 1025, 2048, 3001])
@pytest.mark.parametrize("last", [-1, 0, 1])
def test_no_partial_sum_is_rounded(dtype, k, last):
    """Largest odd products: one more block of them, and a float32 would lose the last bit."""
    a = np.full((3, k), np.iinfo(dtype).max, dtype)
    w = np.full((3, k), 127, np.int8)
    w[1], w[2] = -127, -128
    w[:, -1] = last
    assert np.array_equal(int_gemm(a, w), wide_product(a, w))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "m, n, k", [(1, 1300, 4100), (257, 513, 1030), (70, 3, 40000), (2, 66, 70000), (600, 5, 2050), (600, 700, 300)]
)
def test_every_shape_of_tile(dtype, m, n, k):
    a, w = random_operands(7, m, n, k, dtype)
    expected = a.astype(np.float64) @ w.T.astype(np.float64)  # below 2⁵³: exact
    assert np.array_equal(int_gemm(a, w), expected)


@pytest.mark.parametrize("k", [1, 1024, 1025, 5000])
def test_minus_128_as_operand_is_exact(k):
    """−128 is legal on both sides, and its products are the largest there are."""
    a = np.full((2, k), -128, np.int8)
    w = np.full((3, k), -128, np.int8)
    w[1] = 127
    assert int_gemm(a, w).tolist() == [[16384 * k, -16256 * k, 16384 * k]] * 2


@pytest.mark.parametrize("dtype, largest, limit", [(np.int8, -128, 131071), (np.uint8, 255, 65793)])
def test_the_largest_k_is_exact_and_one_more_wraps(dtype, largest, limit):
    """The S32 sum is exact up to the limit on K; beyond, it is the sum modulo 2³²."""
    a, w = np.full((1, limit + 1), largest, dtype), np.full((1, limit + 1), -128, np.int8)
    sums = [largest * -128 * k for k in (limit, limit + 1)]
    assert -(2**31) <= sums[0] < 2**31
    assert not -(2**31) <= sums[1] < 2**31
    assert int_gemm(a[:, :limit], w[:, :limit]).item() == sums[0]
    assert int_gemm(a, w).item() == wrapped(sums[1])


def test_zero_k_gives_zeros():
    """An empty sum is written, not left as it was."""
    assert int_gemm(np.empty((2, 0), np.int8), np.empty((3, 0), np.int8)).tolist() == [[0] * 3] * 2


@pytest.mark.parametrize("m, n", [(0, 3), (3, 0), (0, 0)])
def test_an_empty_product(m, n):
    """No rows or no columns are no work."""
    a, w = np.empty((m, 5), np.int8), np.empty((n, 5), np.int8)
    assert int_gemm(a, w).shape == (m, n)
    assert list(gemm_tiles(a, w)) == []


def test_rows_do_not_depend_on_m():
    """A row alone gives what it gives among others."""
    a, w = random_operands(3, 300, 40, 1500, np.int8)
    whole = int_gemm(a, w)
    for row in (0, 63, 64, 256, 299):
        assert np.array_equal(int_gemm(a[row : row + 1], w)[0], whole[row])


def test_strided_rows_equal_contiguous_ones():
    """Any row stride, on either operand."""
    a, w = random_operands(5, 20, 30, 700, np.uint8)
    a_wide, w_wide = np.full((40, 801), 99, np.uint8), np.full((60, 901), 99, np.int8)
    a_wide[::2, 50:750], w_wide[::2, 1:701] = a, w
    assert np.array_equal(int_gemm(a_wide[::2, 50:750], w_wide[::2, 1:701]), int_gemm(a, w))


@given(st.integers(0, 2**32), st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(0, 1100)), st.data())
def test_zero_points_are_subtracted_modulo_two_to_the_32(seed, shape, data):
    m, n, k = shape
    a, w = random_operands(seed, m, n, k, data.draw(st.sampled_from(DTYPES)))
    count = data.draw(st.sampled_from([1, m]))
    zero_point = data.draw(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=count, max_size=count))
    centred = a.astype(np.int64) - np.array(zero_point, np.int64).reshape(-1, 1)
    expected = wrapped(centred.astype(object) @ w.T.astype(object)) if k else np.zeros((m, n))
    product = np.full((m, n), 1, np.int32)
    for rows, columns, tile in gemm_tiles(a, w, np.array(zero_point, np.int32)):
        product[rows, columns] = tile
    assert np.array_equal(product, expected)


def test_each_row_of_every_tile_has_its_own_zero_point():
    a, w = random_operands(11, 600, 5, 70, np.uint8)
    zero_point = np.arange(600, dtype=np.int32) % 256
    expected = (a.astype(np.int64) - zero_point[:, np.newaxis]) @ w.T.astype(np.int64)
    for rows, columns, tile in gemm_tiles(a, w, zero_point):
        assert np.array_equal(tile, expected[rows, columns])


def test_tiles_cover_the_product_once():
    a, w = random_operands(1, 530, 1100, 20, np.int8)
    seen = np.zeros((530, 1100), int)
    for rows, columns, tile in gemm_tiles(a, w):
        assert tile.shape == seen[rows, columns].shape
        seen[rows, columns] += 1
    assert (seen == 1).all()


def test_products_under_way_at_once_do_not_share_memory():
    """Scratch memory is kept between calls, so two generators must not be given the same."""
    a, w = random_operands(1, 600, 600, 40, np.int8)
    expected = wide_product(a, w)
    for (rows, columns, tile), (_, _, other) in zip(gemm_tiles(a, w), gemm_tiles(a, -w), strict=True):
        assert np.array_equal(int_gemm(a[:2], w[:2]), expected[:2, :2])
        assert np.array_equal(tile, expected[rows, columns])
        assert not np.shares_memory(tile, other)


def test_scratch_memory_comes_back_from_an_abandoned_product():
    a, w = random_operands(1, 600, 600, 40, np.int8)
    spare = len(igemm._SPARE)
    tiles = gemm_tiles(a, w)
    next(tiles)
    tiles.close()
    assert len(igemm._SPARE) == max(spare, 1)


@pytest.mark.parametrize("m, n, k", [(16, 4096, 4096), (1024, 1024, 1024), (4096, 64, 4096)])
def test_scratch_memory_stays_beside_the_operands(m, n, k, monkeypatch):
    a, w = random_operands(1, m, n, k, np.int8)
    monkeypatch.setattr(igemm, "_SPARE", [])
    tracemalloc.start()
    try:
        product = int_gemm(a, w)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    operands = a.nbytes + w.nbytes + product.nbytes
    assert a.nbytes + w.nbytes + peak <= 4 * operands


class SnatchedAway(list):
    """Spare memory that another thread takes between a look at it and the taking."""

    def __bool__(self):
        return True

    def pop(self):
        raise IndexError


def test_spare_memory_that_another_thread_takes_is_not_missed(monkeypatch):
    monkeypatch.setattr(igemm, "_SPARE", SnatchedAway())
    a, w = random_operands(2, 3, 5, 7, np.int8)
    np.testing.assert_array_equal(int_gemm(a, w), wide_product(a, w))


def best_time(function, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.timing
@pytest.mark.parametrize(
    "m, n, k",
    [(1, 4096, 4096), (4, 4096, 4096), (16, 4096, 4096), (512, 576, 1536), (1024, 1024, 1024), (256, 4096, 4096)],
)
def test_it_takes_at_most_three_times_a_float32_product(m, n, k):
    """On one thread: several threads that wait for each other measure what else the machine does."""
    a, w = random_operands(1, m, n, k, np.int8)
    a_float, w_float = a.astype(np.float32), w.astype(np.float32)
    with threadpool_limits(1):
        for _ in range(5):  # a neighbour can still spoil one comparison
            float_time = best_time(lambda: a_float @ w_float.T, 4)
            int_time = best_time(lambda: int_gemm(a, w), 4)
            if int_time <= 3 * float_time:
                return
    pytest.fail(f"int_gemm took {int_time * 1e3:.2f} ms, a float32 product {float_time * 1e3:.2f} ms")
