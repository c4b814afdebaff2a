import math

import numpy as np
import pytest

from quantplan.reference import segments
from quantplan.reference.segments import blocks, segment_ranges, segments_of, spread
from quantplan.types import Scope
from tests.reference.exact import segment_of

SCOPES = [
    Scope.tensor(),
    Scope.token(),
    Scope.channel(0),
    Scope.channel(1),
    Scope.group(1),
    Scope.group(4),
    Scope.group(5),
    Scope.group(100),
    Scope.group(1, axis=0),
    Scope.group(3, axis=0),
    Scope.group(100, axis=0),
    Scope.group(2**31 - 1),
    Scope.group(2**31 - 1, axis=0),
]
SHAPES = [(1, 1), (7, 10), (8, 4), (10, 3), (1, 17)]


@pytest.fixture(params=[4, 26, 1 << 18], ids=["rows are cut", "some rows a block", "one block"])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(segments, "_BLOCK_BYTES", 4 * request.param)


def by_hand(x, scope):
    """Smallest and largest value of each segment, element by element."""
    ranges = {}
    for (i, j), value in np.ndenumerate(x):
        low, high = ranges.setdefault(segment_of(i, j, scope), (0.0, 0.0))
        poisoned = math.isnan(value) or math.isnan(low)
        ranges[segment_of(i, j, scope)] = (math.nan,) * 2 if poisoned else (min(low, value), max(high, value))
    return ranges


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_ranges_are_those_of_each_segment(scope, shape):
    """A NaN is the range of its segment, whatever its place, and of no other."""
    rng = np.random.default_rng(5)
    for special in (None, np.nan, np.inf, -np.inf):
        x = rng.standard_normal(shape).astype(np.float32)
        if special is not None:
            x[rng.integers(shape[0]), rng.integers(shape[1])] = special
        low, high = segment_ranges(x, scope, np.float32)
        assert low.shape == high.shape == scope.scale_shape(*shape)
        for index, (expected_low, expected_high) in by_hand(x, scope).items():
            np.testing.assert_array_equal([low[index], high[index]], [expected_low, expected_high])


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_spread_gives_each_element_the_value_of_its_segment(scope, shape):
    m, k = shape
    values = np.random.default_rng(2).standard_normal(scope.scale_shape(m, k))
    got = np.full(shape, np.nan)
    for rows, columns in blocks(m, k, np.float32):
        got[rows, columns] = spread(values[segments_of(scope, rows, columns)], scope, rows, k, columns)
    expected = [[values[segment_of(i, j, scope)] for j in range(k)] for i in range(m)]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_empty_segments_have_the_range_zero(scope, shape):
    """K = 0 or M = 0 leaves a segment without elements."""
    low, high = segment_ranges(np.zeros(shape, np.float32), scope, np.float32)
    assert low.shape == scope.scale_shape(*shape)
    assert not low.any()
    assert not high.any()


def test_the_range_includes_zero():
    """All elements on one side of zero."""
    low, high = segment_ranges(np.array([[1.0, 2.0], [-3.0, -2.0]]), Scope.token(), np.float64)
    assert low.tolist() == [0, -3]
    assert high.tolist() == [2, 0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "m, k",
    [
        (0, 3),
        (3, 0),
        (1, 1),
        (5, 1 << 18),
        (3, 1 << 20),
        (2, (1 << 19) + 3),
        (1 << 19, 1),
        (3000, 257),
        (2**31 - 1, 2**31 - 1),
    ],
)
def test_blocks_cover_every_element_once(m, k, dtype):
    """Sizes whose product leaves 32 bits."""
    elements = (1 << 20) // np.dtype(dtype).itemsize
    if m * k > 1 << 40:  # too many blocks to walk
        assert next(blocks(m, k, dtype)) == (slice(0, 1), slice(0, elements))
        return
    covered = np.zeros((m, k), np.int8)
    for rows, columns in blocks(m, k, dtype):
        assert columns.start % 2 == 0
        assert columns.stop == k or columns.stop % 2 == 0
        assert 0 < covered[rows, columns].size <= elements
        covered[rows, columns] += 1
    assert (covered == 1).all()
