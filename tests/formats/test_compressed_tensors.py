import tracemalloc

import numpy as np
import pytest
from hypothesis import given

from quantplan.errors import InvalidProblem
from quantplan.formats import compressed_tensors, gptq, marlin, padding
from tests.formats.weights import claims, nibble, picks, random_weight, read_only, real, same, weights

read = compressed_tensors.from_compressed_tensors
write = compressed_tensors.to_compressed_tensors


@pytest.fixture
def tensors():
    """Return the tensors of a layer with everything, and with sizes that end within a word."""
    return write(random_weight(np.random.default_rng(4), 42, 13, 16, symmetric=False, act_order=True))


def test_every_nibble_is_where_the_formula_says():
    weight = random_weight(np.random.default_rng(0), 19, 11, 8, symmetric=False, act_order=True)
    tensors = write(weight)
    assert {name: (array.dtype, array.shape) for name, array in tensors.items()} == {
        "weight_packed": (np.int32, (11, 3)),
        "weight_scale": (np.float16, (11, 3)),
        "weight_shape": (np.int64, (2,)),
        "weight_zero_point": (np.int32, (2, 3)),
        "weight_g_idx": (np.int32, (19,)),
    }
    for n in range(11):
        for k in range(24):
            expected = weight.q[k, n] if k < 19 else 0
            assert nibble(tensors["weight_packed"][n, k // 8], k % 8) == expected
    for g in range(3):
        for n in range(16):
            expected = weight.zeros[g, n] if n < 11 else 0
            assert nibble(tensors["weight_zero_point"][n // 8, g], n % 8) == expected
    assert tensors["weight_shape"].tolist() == [11, 19]


def test_values_are_signed_and_stored_with_8_added():
    """One row of −8 … −1, then 0 … 7, with scale 1, is read as these very values."""
    packed = np.array([[0x76543210, -0x01234568]], np.int32)
    weight = read(packed, np.ones((1, 1), np.float16), group_size=-1)
    assert weight.dequantize()[:, 0].tolist() == list(range(-8, 8))


def test_spot_checks_of_a_real_layer():
    weight = random_weight(np.random.default_rng(8), 4096, 1024, 128)
    tensors = write(weight)
    for k, n in picks(4096, 1024):
        assert nibble(tensors["weight_packed"][n, k // 8], k % 8) == weight.q[k, n]
    same(read(**tensors, group_size=128), weight)


@given(weight=weights())
def test_round_trip(weight):
    back = read(**read_only(write(weight)), group_size=weight.group_size)
    same(back, weight)
    np.testing.assert_array_equal(real(back), real(weight))


@given(weight=weights())
def test_round_trip_through_marlin(weight):
    tensors = write(weight)
    padded = padding.pad_to_supported(read(**tensors, group_size=weight.group_size))
    back = write(padding.remove_padding(marlin.from_marlin(marlin.to_marlin(padded))))
    zeros = tensors.get("weight_zero_point")
    if zeros is not None and "weight_zero_point" not in back:  # zero points that happened to be all 8
        assert (weight.zeros == 8).all()
        del tensors["weight_zero_point"]
    g_idx = tensors.get("weight_g_idx")
    if g_idx is not None and "weight_g_idx" not in back:  # a shuffle that happened to change no group
        assert (np.diff(g_idx) >= 0).all()
        del tensors["weight_g_idx"]
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_the_same_numbers_as_gptq():
    weight = random_weight(np.random.default_rng(3), 40, 16, 16, symmetric=False, act_order=True)
    ours = read(**write(weight), group_size=16)
    other = gptq.from_gptq(**gptq.to_gptq(weight, version=1), version=1, group_size=16)
    np.testing.assert_array_equal(real(ours), real(other))


def test_without_a_shape_k_is_what_the_words_hold(tensors):
    del tensors["weight_shape"]
    tensors["weight_g_idx"] = None
    weight = read(**tensors, group_size=16)
    assert weight.q.shape == (48, 13)


def test_nibbles_behind_k_are_ignored(tensors):
    tensors["weight_packed"][:, -1] |= np.int32(-1) << 8  # 42 ends two nibbles into the word
    weight = read(**tensors, group_size=16)
    assert weight.q.shape == (42, 13)


def test_scales_are_not_copied(tensors):
    assert np.shares_memory(read(**tensors, group_size=16).scales, tensors["weight_scale"])


HOSTILE = {
    "no weight": ({"weight_packed": None}, "weight_packed", "missing"),
    "no scale": ({"weight_scale": None}, "weight_scale", "missing"),
    "group size 0": ({"group_size": 0}, "group_size", "got 0"),
    "eight bits": ({"bits": 8}, "bits", "expected 4, got 8"),
    "weight of int8": ({"weight_packed": np.zeros((13, 42), np.int8)}, "weight_packed", "expected int32"),
    "empty weight": ({"weight_packed": np.zeros((0, 6), np.int32)}, "weight_packed", "N=0"),
    "weight without columns": ({"weight_packed": np.zeros((13, 0), np.int32)}, "weight_packed", "K=0"),
    "transposed scale": ({"weight_scale": np.ones((3, 13), np.float16)}, "weight_scale", r"= \(13, 3\)"),
    "scale infinite": ({"weight_scale": np.full((13, 3), -np.inf, np.float16)}, "weight_scale", "-inf at"),
    "zero points not packed": ({"weight_zero_point": np.zeros((13, 3), np.int8)}, "weight_zero_point", "int32"),
    "zero points of more columns": ({"weight_zero_point": np.zeros((3, 3), np.int32)}, "weight_zero_point", "2, 3"),
    "group -1": ({"weight_g_idx": np.full(42, -1, np.int32)}, "weight_g_idx", "got -1"),
    "group 3": ({"weight_g_idx": np.full(42, 3, np.int32)}, "weight_g_idx", "got 3"),
    "another N": ({"weight_shape": np.array([12, 42])}, "weight_shape", "got 12 and 42"),
    "K before the last word": ({"weight_shape": np.array([13, 40])}, "weight_shape", "K from 41 to 48"),
    "K behind the last word": ({"weight_shape": np.array([13, 49])}, "weight_shape", "K from 41 to 48"),
    "K huge": ({"weight_shape": np.array([13, 2**62])}, "weight_shape", "K from 41 to 48"),
    "K negative": ({"weight_shape": np.array([13, -1])}, "weight_shape", "K from 41 to 48"),
    "shape of three": ({"weight_shape": np.array([13, 42, 1])}, "weight_shape", r"\(2,\)"),
    "shape of floats": ({"weight_shape": np.array([13.0, 42.0])}, "weight_shape", "float64"),
}


@pytest.mark.parametrize("changes, field, words", HOSTILE.values(), ids=HOSTILE)
def test_hostile_tensors_are_refused_by_name(tensors, changes, field, words):
    """Every disagreement is an error that names the tensor."""
    with pytest.raises(InvalidProblem, match=words) as caught:
        read(**{**tensors, "group_size": 16, **changes})
    assert (caught.value.op, caught.value.field) == ("from_compressed_tensors", field)


def test_shapes_beyond_the_memory_behind_them_allocate_nothing(tensors):
    """Shape bombs are refused before memory of their size is asked for."""
    tensors["weight_packed"] = claims((2**20, 2**20))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidProblem, match="weight_packed: expected elements that do not overlap"):
            read(**tensors, group_size=16)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
