import attrs
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

from quantplan.errors import InvalidProblem
from quantplan.formats import awq, compressed_tensors, gptq, marlin, padding
from quantplan.formats.int4 import Int4Weight
from tests.formats.weights import claims, random_weight, real, weights


@given(weight=weights(16, 64, act_order=False))
def test_every_format_tells_the_same_numbers(weight):
    expected = real(weight)
    size = weight.group_size
    ways = [
        gptq.from_gptq(**gptq.to_gptq(weight, version=1), version=1, group_size=size),
        gptq.from_gptq(**gptq.to_gptq(weight, version=2), version=2, group_size=size),
        awq.from_awq(**awq.to_awq(weight), group_size=size),
        compressed_tensors.from_compressed_tensors(**compressed_tensors.to_compressed_tensors(weight), group_size=size),
        marlin.from_marlin(marlin.to_marlin(weight)),
    ]
    for way in ways:
        np.testing.assert_array_equal(real(way), expected)


@given(weight=weights())
def test_dequantize_rounds_the_exact_product_once(weight):
    """Float16 and bfloat16 scales need no rounding at all."""
    np.testing.assert_array_equal(weight.dequantize(), real(weight).astype(np.float32))
    if weight.scales.dtype != np.float32:
        np.testing.assert_array_equal(weight.dequantize().astype(np.float64), real(weight))


def test_dequantize_in_several_blocks():
    weight = random_weight(np.random.default_rng(0), 40, 1 << 17, 16, symmetric=False, act_order=True)
    np.testing.assert_array_equal(weight.dequantize(), real(weight))


def test_a_product_that_overflows_is_infinite():
    largest = np.float32(3e38)
    scales = np.full((1, 1), largest, ml_dtypes.bfloat16)
    weight = Int4Weight(q=np.array([[0], [8], [9], [15]], np.uint8), scales=scales)
    assert weight.dequantize()[:, 0].tolist() == [-np.inf, 0, float(scales[0, 0]), np.inf]


def test_what_says_nothing_is_left_out():
    parts = {"q": np.zeros((4, 1), np.uint8), "scales": np.ones((2, 1), np.float16), "group_size": 2}
    eights = np.full((2, 1), 8, np.uint8)
    plain = Int4Weight.simplest(**parts, zeros=eights, g_idx=np.array([0, 0, 1, 1], np.int32))
    assert plain.zeros is None
    assert plain.g_idx is None
    kept = Int4Weight.simplest(**parts, zeros=eights - np.uint8([[0], [1]]), g_idx=np.array([0, 1, 0, 1], np.int32))
    assert kept.zeros.tolist() == [[8], [7]]
    assert kept.g_idx.tolist() == [0, 1, 0, 1]


def test_parts_that_are_always_there():
    weight = random_weight(np.random.default_rng(0), 5, 3, 2)
    assert weight.groups == 3
    assert weight.symmetric
    assert weight.row_groups.tolist() == [0, 0, 1, 1, 2]
    assert weight.zero_points.tolist() == [[8, 8, 8]] * 3
    assert (weight.k, weight.n) == (5, 3)


def test_arrays_are_not_copied_and_weights_compare_by_identity():
    q, scales = np.zeros((4, 2), np.uint8), np.ones((1, 2), np.float16)
    weight = Int4Weight(q=q, scales=scales)
    assert weight.q is q
    assert weight.scales is scales
    assert weight != Int4Weight(q=q, scales=scales)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        weight.k = 1


@pytest.mark.parametrize("value", [None, 5, "x", np.zeros((64, 64), np.uint8)], ids=repr)
@pytest.mark.parametrize(
    "op, call",
    [
        ("to_gptq", lambda weight: gptq.to_gptq(weight, version=1)),
        ("to_awq", awq.to_awq),
        ("to_compressed_tensors", compressed_tensors.to_compressed_tensors),
        ("to_marlin", marlin.to_marlin),
        ("from_marlin", marlin.from_marlin),
        ("pad_to_supported", padding.pad_to_supported),
        ("remove_padding", padding.remove_padding),
    ],
)
def test_what_is_no_weight_is_refused_by_name(op, call, value):
    with pytest.raises(InvalidProblem, match="Weight, got") as caught:
        call(value)
    assert (caught.value.op, caught.value.field) == (op, "weight")


def test_repr_tells_the_kind():
    rng = np.random.default_rng(0)
    assert repr(random_weight(rng, 8, 4)) == "Int4Weight(k=8, n=4, group_size=-1, symmetric)"
    asymmetric = random_weight(rng, 8, 4, 2, symmetric=False, act_order=True)
    assert repr(asymmetric) == "Int4Weight(k=8, n=4, group_size=2, asymmetric, act-order)"


HOSTILE = {
    "no codes": ({"q": None}, "q", "missing"),
    "codes of int8": ({"q": np.zeros((4, 2), np.int8)}, "q", "uint8, got int8"),
    "code 16": ({"q": np.full((4, 2), 16, np.uint8)}, "q", "got 16"),
    "codes of three axes": ({"q": np.zeros((4, 2, 1), np.uint8)}, "q", "2 axes"),
    "no rows": ({"q": np.zeros((0, 2), np.uint8)}, "q", "K=0"),
    "codes that are not there": ({"q": claims((4, 2), np.uint8)}, "q", "do not overlap"),
    "no scales": ({"scales": None}, "scales", "missing"),
    "scales of another N": ({"scales": np.ones((2, 3), np.float16)}, "scales", r"\(2, 2\), got \(2, 3\)"),
    "scale NaN": ({"scales": np.full((2, 2), np.nan, ml_dtypes.bfloat16)}, "scales", "nan at"),
    "zero point 16": ({"zeros": np.full((2, 2), 16, np.uint8)}, "zeros", "got 16"),
    "zeros of another shape": ({"zeros": np.zeros((1, 2), np.uint8)}, "zeros", r"\(2, 2\), got \(1, 2\)"),
    "zeros of int32": ({"zeros": np.zeros((2, 2), np.int32)}, "zeros", "got int32"),
    "group 2": ({"g_idx": np.full(4, 2, np.int32)}, "g_idx", "got 2"),
    "group size 0": ({"group_size": 0}, "group_size", "got 0"),
    "group size of a float": ({"group_size": 2.0}, "group_size", "an integer"),
    "k beyond the rows": ({"k": 5}, "k", "from 1 to 4"),
    "n of 0": ({"n": 0}, "n", "from 1 to 2"),
    "k of text": ({"k": "4"}, "k", "an integer"),
}


@pytest.mark.parametrize("changes, field, words", HOSTILE.values(), ids=HOSTILE)
def test_parts_that_do_not_fit_are_refused_by_name(changes, field, words):
    """Every disagreement is an error that names the part."""
    parts = {"q": np.zeros((4, 2), np.uint8), "scales": np.ones((2, 2), np.float16), "group_size": 2, **changes}
    with pytest.raises(InvalidProblem, match=words) as caught:
        Int4Weight(**parts)
    assert (caught.value.op, caught.value.field) == ("Int4Weight", field)
