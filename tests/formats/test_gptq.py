import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantplan.errors import InvalidProblem
from quantplan.formats import gptq, marlin
from tests.formats.weights import claims, nibble, picks, random_weight, read_only, real, same, weights


def stored_zero(z, version):
    """Return what a version stores for a zero point, from a table: no arithmetic that could wrap like the code's."""
    return {1: [15, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], 2: list(range(16))}[version][z]


@pytest.fixture
def tensors():
    """Return the tensors of a layer with everything: zero points, act-order, a ragged last group."""
    return gptq.to_gptq(random_weight(np.random.default_rng(4), 40, 16, 16, symmetric=False, act_order=True), version=1)


@pytest.mark.parametrize("version", [1, 2])
def test_every_nibble_is_where_the_formula_says(version):
    weight = random_weight(np.random.default_rng(0), 40, 24, 16, symmetric=False, act_order=True)
    tensors = gptq.to_gptq(weight, version=version)
    assert [(name, array.dtype, array.shape) for name, array in tensors.items()] == [
        ("qweight", np.int32, (5, 24)),
        ("qzeros", np.int32, (3, 3)),
        ("scales", np.float16, (3, 24)),
        ("g_idx", np.int32, (40,)),
    ]
    for k in range(40):
        for n in range(24):
            assert nibble(tensors["qweight"][k // 8, n], k % 8) == weight.q[k, n]
    for g in range(3):
        for n in range(24):
            assert nibble(tensors["qzeros"][g, n // 8], n % 8) == stored_zero(weight.zeros[g, n], version)
    np.testing.assert_array_equal(tensors["g_idx"], weight.g_idx)


def test_version_1_stores_zero_as_15_and_leaves_its_neighbours_alone():
    """Adding one to a whole word would carry into the next nibble, and taking one from it would borrow."""
    stored = np.array([[0x6FEF0F7F]], np.int32)
    weight = gptq.from_gptq(np.zeros((1, 8), np.int32), stored, np.ones((1, 8), np.float16), version=1, group_size=-1)
    assert weight.zeros.tolist() == [[0, 8, 0, 1, 0, 15, 0, 7]]
    assert gptq.to_gptq(weight, version=1)["qzeros"].tolist() == stored.tolist()
    assert gptq.to_gptq(weight, version=2)["qzeros"].view(np.uint32).tolist() == [[0x70F01080]]


@pytest.mark.parametrize("version, word", [(1, 0x77777777), (2, -0x77777778)])
def test_a_symmetric_weight_stores_8_everywhere(version, word):
    weight = random_weight(np.random.default_rng(0), 16, 8, 8)
    tensors = gptq.to_gptq(weight, version=version)
    assert tensors["qzeros"].tolist() == [[word], [word]]
    back = gptq.from_gptq(**tensors, version=version, group_size=8)
    assert back.zeros is None
    assert back.symmetric
    other = gptq.from_gptq(**tensors, version=3 - version, group_size=8)
    assert not other.symmetric


@given(weight=weights(8, 8), version=st.sampled_from([1, 2]))
def test_round_trip(weight, version):
    tensors = read_only(gptq.to_gptq(weight, version=version))
    back = gptq.from_gptq(**tensors, version=version, group_size=weight.group_size)
    same(back, weight)
    np.testing.assert_array_equal(real(back), real(weight))


@given(weight=weights(16, 64), version=st.sampled_from([1, 2]))
def test_round_trip_through_marlin(weight, version):
    """A real repack: the tensors of the checkpoint come back bit for bit, act-order and ragged groups included."""
    tensors = read_only(gptq.to_gptq(weight, version=version))
    read = gptq.from_gptq(**tensors, version=version, group_size=weight.group_size)
    back = gptq.to_gptq(marlin.from_marlin(marlin.to_marlin(read)), version=version)
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_a_real_layer_through_marlin():
    weight = random_weight(np.random.default_rng(8), 4096, 1024, 128, symmetric=False, act_order=True)
    tensors = gptq.to_gptq(weight, version=1)
    packed = marlin.to_marlin(gptq.from_gptq(**tensors, version=1, group_size=128))
    q = marlin.unpack_weight(packed.weight_q)
    scales = marlin.unpack_scales(packed.weight_scale, 128).astype(np.float64)
    zeros = marlin.unpack_zeros(packed.weight_zero_point)
    group = np.arange(4096) // 128
    np.testing.assert_array_equal((q.astype(np.float64) - zeros[group]) * scales[group], real(weight)[packed.perm])
    for k, n in picks(4096, 1024):
        assert nibble(tensors["qweight"][k // 8, n], k % 8) == weight.q[k, n]


def test_a_g_idx_in_order_says_nothing(tensors):
    tensors["g_idx"] = np.arange(40, dtype=np.int32) // 16
    with_g_idx = gptq.from_gptq(**tensors, version=1, group_size=16)
    assert with_g_idx.g_idx is None
    del tensors["g_idx"]
    same(with_g_idx, gptq.from_gptq(**tensors, version=1, group_size=16))


def test_scales_and_g_idx_are_not_copied(tensors):
    weight = gptq.from_gptq(**tensors, version=1, group_size=16)
    assert weight.scales is tensors["scales"]
    assert weight.g_idx is tensors["g_idx"]


def test_a_g_idx_of_int64_is_narrowed_after_it_was_checked(tensors):
    tensors["g_idx"] = tensors["g_idx"].astype(np.int64)
    assert gptq.from_gptq(**tensors, version=1, group_size=16).g_idx.dtype == np.int32
    tensors["g_idx"][3] += 2**32  # would be in range, had it been narrowed before
    with pytest.raises(InvalidProblem, match="values from 0 to 2"):
        gptq.from_gptq(**tensors, version=1, group_size=16)


def test_uneven_groups_are_read_and_written(tensors):
    """Only Marlin needs equal groups; a g_idx of any kind is a sound GPTQ checkpoint."""
    tensors["g_idx"] = np.array([2, 0] * 20, np.int32)
    weight = gptq.from_gptq(**tensors, version=1, group_size=16)
    np.testing.assert_array_equal(gptq.to_gptq(weight, version=1)["g_idx"], tensors["g_idx"])


def with_value(array, value):
    changed = array.copy()
    changed[3] = value
    return changed


HOSTILE = {
    "no qweight": ({"qweight": None}, "qweight", "missing"),
    "no qzeros": ({"qzeros": None}, "qzeros", "missing"),
    "no scales": ({"scales": None}, "scales", "missing"),
    "group beyond the last": ({"g_idx": lambda a: with_value(a, 3)}, "g_idx", "from 0 to 2, got 3"),
    "negative group": ({"g_idx": lambda a: with_value(a, -1)}, "g_idx", "got -1"),
    "short g_idx": ({"g_idx": lambda a: a[:-1]}, "g_idx", r"= \(40,\), got \(39,\)"),
    "g_idx of floats": ({"g_idx": lambda a: a.astype(np.float32)}, "g_idx", "got float32"),
    "g_idx of two axes": ({"g_idx": lambda a: a[np.newaxis]}, "g_idx", "1 axes"),
    "group size 0": ({"group_size": 0}, "group_size", "got 0"),
    "group size below -1": ({"group_size": -16}, "group_size", "got -16"),
    "group size beyond 31 bits": ({"group_size": 2**31}, "group_size", "got 2147483648"),
    "group size of text": ({"group_size": "128"}, "group_size", "an integer"),
    "group size that is a flag": ({"group_size": True}, "group_size", "an integer"),
    "group size of another checkpoint": ({"group_size": 8}, "scales", r"= \(5, 16\), got \(3, 16\)"),
    "two bits": ({"bits": 2}, "bits", "expected 4, got 2"),
    "eight bits": ({"bits": 8}, "bits", "expected 4, got 8"),
    "bits of text": ({"bits": "4"}, "bits", "an integer"),
    "bits of two": ({"bits": np.array([4, 4])}, "bits", "an integer"),
    "bits that are a float": ({"bits": 4.0}, "bits", "an integer"),
    "version 0": ({"version": 0}, "version", "1 or 2"),
    "version of text": ({"version": "gptq_v2"}, "version", "an integer"),
    "version that is a flag": ({"version": True}, "version", "an integer"),
    "version that is a float": ({"version": 1.0}, "version", "an integer"),
    "versions of two": ({"version": np.array([1, 2])}, "version", "an integer"),
    "qweight of int64": ({"qweight": lambda a: a.astype(np.int64)}, "qweight", "expected int32, got int64"),
    "qweight of big-endian words": ({"qweight": lambda a: a.astype(">i4")}, "qweight", "expected int32"),
    "qweight of one axis": ({"qweight": lambda a: a.ravel()}, "qweight", "2 axes"),
    "empty qweight": ({"qweight": lambda a: a[:0]}, "qweight", "got K=0"),
    "qweight without columns": ({"qweight": lambda a: a[:, :0]}, "qweight", "got N=0"),
    "N that qzeros cannot hold": ({"qweight": lambda a: a[:, :12]}, "qweight", "N a multiple of 8"),
    "qweight of fewer columns": ({"qweight": lambda a: a[:, :8]}, "scales", r"= \(3, 8\)"),
    "qweight of fewer rows": ({"qweight": lambda a: a[:2]}, "scales", r"= \(1, 16\)"),
    "scales of fewer groups": ({"scales": lambda a: a[:2]}, "scales", r"= \(3, 16\), got \(2, 16\)"),
    "scales of float64": ({"scales": lambda a: a.astype(np.float64)}, "scales", "got float64"),
    "scale NaN": ({"scales": lambda a: np.where(a == a[1, 2], np.nan, a)}, "scales", r"nan at \(1, 2\)"),
    "scale infinite": ({"scales": lambda a: np.where(a == a[2, 0], np.inf, a)}, "scales", r"inf at \(2, 0\)"),
    "qzeros of more columns": ({"qzeros": lambda a: np.tile(a, 2)}, "qzeros", r"= \(3, 2\), got \(3, 4\)"),
    "qzeros of fewer groups": ({"qzeros": lambda a: a[1:]}, "qzeros", r"= \(3, 2\), got \(2, 2\)"),
    "a list": ({"qzeros": lambda a: a.tolist()}, "qzeros", "a NumPy array, got list"),
}


@pytest.mark.parametrize("changes, field, words", HOSTILE.values(), ids=HOSTILE)
def test_hostile_tensors_are_refused_by_name(tensors, changes, field, words):
    """Every disagreement is an error that names the tensor."""
    call = {**tensors, "version": 1, "group_size": 16}
    for name, change in changes.items():
        value = change(call[name]) if callable(change) else change
        if name == "scales" and value is not None and value.dtype != np.float64:
            value = value.astype(np.float16)
        call[name] = value
    with pytest.raises(InvalidProblem, match=words) as caught:
        gptq.from_gptq(**call)
    assert caught.value.op == "from_gptq"
    assert caught.value.field == field


@pytest.mark.parametrize(
    "name, array",
    [
        ("qweight", claims((2**20, 2**22))),
        ("qweight", claims((2**28, 16))),  # K itself passes 31 bits
        ("qweight", np.lib.stride_tricks.as_strided(np.zeros(64, np.int32), (60, 60), (4, 4))),
        ("qzeros", claims((3, 2))),
        ("scales", claims((3, 16), np.float16)),
        ("g_idx", claims((40,))),
    ],
)
def test_shapes_beyond_the_memory_behind_them_allocate_nothing(tensors, name, array):
    """Shape bombs are refused before memory of their size is asked for."""
    tensors[name] = array
    tracemalloc.start()
    try:
        with pytest.raises(InvalidProblem, match="do not overlap") as caught:
            gptq.from_gptq(**tensors, version=1, group_size=16)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert caught.value.field == name


def test_a_k_beyond_31_bits_is_refused():
    """Eight codes to a word take K past what the words' own count fits in."""
    memory = np.lib.stride_tricks.as_strided(np.zeros(1, np.int32), (2**28, 0), (4, 4))
    with pytest.raises(InvalidProblem, match="K=2147483648"):
        gptq.from_gptq(memory, None, None, version=1, group_size=128)


@pytest.mark.parametrize("k, n, size", [(12, 8, "K=12"), (8, 12, "N=12")])
def test_a_misfit_is_not_written(k, n, size):
    """Part of a word is refused, with the way out."""
    with pytest.raises(InvalidProblem, match="pad_to_supported") as caught:
        gptq.to_gptq(random_weight(np.random.default_rng(0), k, n), version=2)
    assert caught.value.got == size


def test_an_unknown_version_is_not_written():
    with pytest.raises(InvalidProblem, match="to_gptq: version"):
        gptq.to_gptq(random_weight(np.random.default_rng(0), 8, 8), version=3)
