import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantplan.reference.packing import pack_nibbles, unpack_nibbles

SHAPES = st.tuples(st.integers(0, 4), st.integers(0, 9))


def test_low_nibble_first_and_an_odd_tail_of_zero():
    codes = np.array([[1, 2, 3], [15, 0, 9]], dtype=np.uint8)
    assert pack_nibbles(codes).tolist() == [[0x21, 0x03], [0x0F, 0x09]]


def test_signed_codes_are_twos_complement():
    codes = np.array([[-8, 7, -1]], dtype=np.int8)
    packed = pack_nibbles(codes)
    assert packed.tolist() == [[0x78, 0x0F]]
    assert unpack_nibbles(packed, 3, signed=True).tolist() == [[-8, 7, -1]]
    assert unpack_nibbles(packed, 3).tolist() == [[8, 7, 15]]


def test_every_byte_unpacks_as_ml_dtypes_reads_its_nibbles():
    packed = np.arange(256, dtype=np.uint8)[np.newaxis]
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(1, -1)
    np.testing.assert_array_equal(unpack_nibbles(packed, 512), nibbles)
    expected = nibbles.view(ml_dtypes.int4).astype(np.int8)
    np.testing.assert_array_equal(unpack_nibbles(packed, 512, signed=True), expected)


@given(shape=SHAPES, seed=st.integers(0, 99), signed=st.booleans())
def test_round_trip(shape, seed, signed):
    low, high, dtype = (-8, 8, np.int8) if signed else (0, 16, np.uint8)
    codes = np.random.default_rng(seed).integers(low, high, shape).astype(dtype)
    packed = pack_nibbles(codes)
    assert packed.shape == (shape[0], (shape[1] + 1) // 2)
    back = unpack_nibbles(packed, shape[1], signed=signed)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize("k", [5, 6])
def test_strided_and_misaligned_rows(k):
    """Rows any distance apart give what contiguous ones give."""
    wide = np.random.default_rng(0).integers(0, 16, (4, 20)).astype(np.uint8)
    codes = wide[:, 3 : 3 + k]
    packed = pack_nibbles(codes)
    np.testing.assert_array_equal(packed, pack_nibbles(codes.copy()))
    buffer = np.full((4, 9), 0xEE, dtype=np.uint8)
    buffer[:, 1 : 1 + packed.shape[1]] = packed
    np.testing.assert_array_equal(unpack_nibbles(buffer[:, 1 : 1 + packed.shape[1]], k), codes)


def test_what_is_packed_stays_as_it_was():
    codes = np.array([[-1, -2, -3]], dtype=np.int8)
    pack_nibbles(codes)
    assert codes.tolist() == [[-1, -2, -3]]
    packed = np.array([[0x9F]], dtype=np.uint8)
    unpack_nibbles(packed, 2, signed=True)
    assert packed.tolist() == [[0x9F]]
