import tracemalloc

import numpy as np
import pytest
from hypothesis import given

from quantplan.errors import InvalidProblem
from quantplan.formats import awq, gptq, marlin
from tests.formats.weights import INTERLEAVED, claims, nibble, picks, random_weight, read_only, real, same, weights


@pytest.fixture
def tensors():
    return awq.to_awq(random_weight(np.random.default_rng(4), 40, 16, 16, symmetric=False))


def test_every_nibble_is_where_the_formula_says():
    weight = random_weight(np.random.default_rng(0), 20, 24, 8, symmetric=False)
    tensors = awq.to_awq(weight)
    assert [(name, array.dtype, array.shape) for name, array in tensors.items()] == [
        ("qweight", np.int32, (20, 3)),
        ("qzeros", np.int32, (3, 3)),
        ("scales", np.float16, (3, 24)),
    ]
    for p in range(8):
        for c in range(3):
            for k in range(20):
                assert nibble(tensors["qweight"][k, c], p) == weight.q[k, 8 * c + INTERLEAVED[p]]
            for g in range(3):
                assert nibble(tensors["qzeros"][g, c], p) == weight.zeros[g, 8 * c + INTERLEAVED[p]]


def test_one_word_by_hand():
    """Columns 0 … 7 hold 0 … 7: the nibbles, lowest first, are 0 2 4 6 1 3 5 7."""
    weight = awq.from_awq(
        np.array([[0x75316420]], np.int32),
        np.array([[0x00000001]], np.int32),
        np.ones((1, 8), np.float16),
        group_size=-1,
    )
    assert weight.q.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert weight.zeros.tolist() == [[1, 0, 0, 0, 0, 0, 0, 0]]  # as stored, not less one


def test_spot_checks_of_a_real_layer():
    weight = random_weight(np.random.default_rng(8), 4096, 1024, 128, symmetric=False)
    tensors = awq.to_awq(weight)
    for k, c, p in picks(4096, 128, 8):
        assert nibble(tensors["qweight"][k, c], p) == weight.q[k, 8 * c + INTERLEAVED[p]]
    back = awq.from_awq(**tensors, group_size=128)
    same(back, weight)


@given(weight=weights(1, 8, act_order=False))
def test_round_trip(weight):
    back = awq.from_awq(**read_only(awq.to_awq(weight)), group_size=weight.group_size)
    same(back, weight)
    assert back.symmetric == weight.symmetric or (weight.zeros == 8).all()


@given(weight=weights(16, 64, act_order=False))
def test_round_trip_through_marlin(weight):
    tensors = awq.to_awq(weight)
    packed = marlin.to_marlin(awq.from_awq(**tensors, group_size=weight.group_size))
    assert packed.perm is None
    back = awq.to_awq(marlin.from_marlin(packed))
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_the_same_numbers_as_gptq(tensors):
    weight = awq.from_awq(**tensors, group_size=16)
    other = gptq.from_gptq(**gptq.to_gptq(weight, version=2), version=2, group_size=16)
    np.testing.assert_array_equal(real(other), real(weight))


def test_act_order_cannot_be_written():
    weight = random_weight(np.random.default_rng(0), 16, 8, 8, act_order=True)
    with pytest.raises(InvalidProblem, match="no act-order") as caught:
        awq.to_awq(weight)
    assert caught.value.field == "g_idx"


def test_a_misfit_is_not_written():
    """Part of a word is refused, with the way out."""
    with pytest.raises(InvalidProblem, match="pad_to_supported"):
        awq.to_awq(random_weight(np.random.default_rng(0), 16, 12))


HOSTILE = {
    "no qweight": ({"qweight": None}, "qweight", "missing"),
    "no qzeros": ({"qzeros": None}, "qzeros", "missing"),
    "no scales": ({"scales": None}, "scales", "missing"),
    "group size 0": ({"group_size": 0}, "group_size", "got 0"),
    "group size of another checkpoint": ({"group_size": 32}, "scales", r"= \(2, 16\)"),
    "three bits": ({"bits": 3}, "bits", "expected 4, got 3"),
    "qweight of GPTQ": ({"qweight": np.zeros((5, 16), np.int32)}, "scales", r"= \(1, 128\)"),
    "qweight of floats": ({"qweight": np.zeros((40, 2), np.float32)}, "qweight", "expected int32"),
    "empty qweight": ({"qweight": np.zeros((0, 2), np.int32)}, "qweight", "K=0"),
    "qweight without columns": ({"qweight": np.zeros((40, 0), np.int32)}, "qweight", "N=0"),
    "qzeros of more groups": ({"qzeros": np.zeros((4, 2), np.int32)}, "qzeros", r"= \(3, 2\), got \(4, 2\)"),
    "scale NaN": ({"scales": np.full((3, 16), np.nan, np.float16)}, "scales", "nan at"),
}


@pytest.mark.parametrize("changes, field, words", HOSTILE.values(), ids=HOSTILE)
def test_hostile_tensors_are_refused_by_name(tensors, changes, field, words):
    """Every disagreement is an error that names the tensor."""
    with pytest.raises(InvalidProblem, match=words) as caught:
        awq.from_awq(**{**tensors, "group_size": 16, **changes})
    assert (caught.value.op, caught.value.field) == ("from_awq", field)


def test_shapes_beyond_the_memory_behind_them_allocate_nothing(tensors):
    """Shape bombs are refused before memory of their size is asked for."""
    tensors["qweight"] = claims((2**20, 2**20))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidProblem, match="qweight: expected elements that do not overlap"):
            awq.from_awq(**tensors, group_size=16)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
