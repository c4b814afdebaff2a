"""The layout is tested element by element against the formula of the format, evaluated in plain Python.

The packer computes nothing by that formula: it moves bytes by a table. Weights are random, because constant ones look
the same in every layout.
"""

import time
import tracemalloc

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import quantplan as qp
from quantplan.errors import InvalidProblem
from quantplan.formats import marlin
from quantplan.formats.int4 import Int4Weight
from quantplan.formats.padding import pad_to_supported
from tests.formats.weights import INTERLEAVED, SCALE_DTYPES, claims, nibble, picks, random_weight, real, same, weights

REAL_LAYER = (4096, 14336)


def position(t, column, p):
    """Return (k, n) of nibble p of the word packed[t, column]."""
    u, rest = divmod(column, 128)
    lane, j = divmod(rest, 4)
    v = INTERLEAVED[p]
    k = 16 * t + 2 * (lane % 4) + (v & 1) + 8 * ((v >> 1) & 1)
    n = 64 * u + 16 * j + lane // 4 + 8 * (v >> 2)
    return k, n


@pytest.fixture(scope="module")
def layer():
    return np.random.default_rng(5).integers(0, 16, REAL_LAYER, dtype=np.uint8)


@pytest.mark.parametrize("k, n", [(16, 64), (48, 192), (16, 320)])
def test_every_nibble_is_where_the_formula_says(k, n):
    q = np.random.default_rng(k + n).integers(0, 16, (k, n), dtype=np.uint8)
    packed = marlin.pack_weight(q)
    assert packed.dtype == np.int32
    assert packed.shape == (k // 16, 2 * n)
    seen = set()
    for t in range(k // 16):
        for column in range(2 * n):
            for p in range(8):
                where = position(t, column, p)
                assert nibble(packed[t, column], p) == q[where], (t, column, p)
                seen.add(where)
    assert len(seen) == k * n


def test_nibbles_of_a_real_layer(layer):
    packed = marlin.pack_weight(layer)
    for t, column, p in picks(4096 // 16, 2 * 14336, 8):
        assert nibble(packed[t, column], p) == layer[position(t, column, p)]
    np.testing.assert_array_equal(marlin.unpack_weight(packed), layer)


def test_one_word_by_hand():
    """Lane 5, word 2 of tile 0: columns 33 and 41, rows 2, 3, 10 and 11."""
    q = np.zeros((16, 64), np.uint8)
    q[2, 33], q[10, 33], q[2, 41], q[10, 41] = 1, 2, 3, 4
    q[3, 33], q[11, 33], q[3, 41], q[11, 41] = 5, 6, 7, 8
    packed = marlin.pack_weight(q)
    assert np.flatnonzero(packed).tolist() == [4 * 5 + 2]
    assert packed[0, 22].view(np.uint32) == 0x87654321


def test_grouped_scales_are_permuted_within_64_columns():
    scales = np.random.default_rng(0).permutation(3 * 192).reshape(3, 192).astype(np.float32)
    stored = marlin.pack_scales(scales, 128)
    for g in range(3):
        for column in range(192):
            block, t = divmod(column, 64)
            assert stored[g, column] == scales[g, 64 * block + 8 * (t % 8) + t // 8]


@pytest.mark.parametrize("group_size", [-1, 128])
def test_scales_of_one_group_are_permuted_within_32_columns(group_size):
    scales = np.random.default_rng(0).permutation(96).reshape(1, 96).astype(np.float32)
    stored = marlin.pack_scales(scales, group_size)
    for column in range(96):
        block, t = divmod(column, 32)
        assert stored[0, column] == scales[0, 32 * block + 2 * (t // 8) + t % 2 + 8 * ((t % 8) // 2)]


@pytest.mark.parametrize("groups", [1, 3])
def test_zero_points_are_permuted_as_grouped_scales_then_interleaved(groups):
    zeros = np.random.default_rng(0).integers(0, 16, (groups, 128), dtype=np.uint8)
    packed = marlin.pack_zeros(zeros)
    assert packed.dtype == np.int32
    assert packed.shape == (groups, 16)
    for g in range(groups):
        for column in range(16):
            for p in range(8):
                block, t = divmod(8 * column + INTERLEAVED[p], 64)
                assert nibble(packed[g, column], p) == zeros[g, 64 * block + 8 * (t % 8) + t // 8]


@given(tiles=st.integers(0, 4), columns=st.integers(0, 3), groups=st.integers(0, 4), seed=st.integers(0, 2**32))
def test_round_trips(tiles, columns, groups, seed):
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 16, (16 * tiles, 64 * columns), dtype=np.uint8)
    np.testing.assert_array_equal(marlin.unpack_weight(marlin.pack_weight(q)), q)
    zeros = rng.integers(0, 16, (groups, 64 * columns), dtype=np.uint8)
    np.testing.assert_array_equal(marlin.unpack_zeros(marlin.pack_zeros(zeros)), zeros)
    for dtype in SCALE_DTYPES:
        scales = rng.standard_normal((groups, 64 * columns)).astype(dtype)
        stored = marlin.pack_scales(scales, 32)
        assert stored.dtype == dtype
        np.testing.assert_array_equal(marlin.unpack_scales(stored, 32), scales)


@pytest.mark.parametrize("k, n", [(0, 128), (128, 0), (0, 0)])
@pytest.mark.parametrize("group_size", [-1, 32])
def test_a_weight_without_rows_or_columns(k, n, group_size):
    """The op allows n = 0 and k = 0, and has operands of these shapes."""
    desc = qp.Int4MarlinGemmDescriptor(m=2, n=n, k=k, group_size=group_size, zero_point=True)
    codes, groups = np.zeros((k, n), np.uint8), np.zeros((desc.groups, n), np.uint8)
    packed = {
        "weight_q": marlin.pack_weight(codes),
        "weight_scale": marlin.pack_scales(groups.astype(np.float16), group_size),
        "weight_zero_point": marlin.pack_zeros(groups),
    }
    output = np.full((2, n), 7, np.float16)
    args = qp.Int4MarlinGemmArgs(act=np.ones((2, k), np.float16), output=output, **packed)
    qp.Int4MarlinGemmPlan.select("cpu", desc).run(None, None, args)
    assert not output.any()
    assert marlin.unpack_weight(packed["weight_q"]).shape == (k, n)
    assert marlin.unpack_scales(packed["weight_scale"], group_size).shape == groups.shape
    assert marlin.unpack_zeros(packed["weight_zero_point"]).shape == groups.shape


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64])
def test_codes_of_any_integer_dtype(dtype):
    q = np.random.default_rng(1).integers(0, 16, (32, 128), dtype=np.uint8)
    np.testing.assert_array_equal(marlin.pack_weight(q.astype(dtype)), marlin.pack_weight(q))
    np.testing.assert_array_equal(marlin.pack_zeros(q.astype(dtype)), marlin.pack_zeros(q))


def test_views_with_any_strides_equal_contiguous_arrays():
    q = np.random.default_rng(1).integers(0, 16, (64, 256), dtype=np.uint8)
    view = np.asfortranarray(q)[::2, 1::2]
    np.testing.assert_array_equal(marlin.pack_weight(view), marlin.pack_weight(view.copy()))
    np.testing.assert_array_equal(marlin.pack_zeros(view), marlin.pack_zeros(view.copy()))
    packed = marlin.pack_weight(q)
    np.testing.assert_array_equal(marlin.unpack_weight(np.asfortranarray(packed)), q)


def test_inputs_stay_as_they_were():
    q = np.random.default_rng(1).integers(0, 16, (32, 128), dtype=np.uint8)
    q.flags.writeable = False
    packed = marlin.pack_weight(q)
    packed.flags.writeable = False
    np.testing.assert_array_equal(marlin.unpack_weight(packed), q)


@given(weight=weights(16, 64))
def test_a_weight_comes_back_from_marlin(weight):
    same(marlin.from_marlin(marlin.to_marlin(weight)), weight)


@given(weight=weights(16, 64))
def test_sorted_rows_and_gathered_activations_give_the_same_product(weight):
    """Act-order: rows are sorted by group for good, and the activation's columns are gathered by perm."""
    packed = marlin.to_marlin(weight)
    in_order = marlin.from_marlin(attrs.evolve(packed, perm=None))
    assert in_order.g_idx is None
    perm = np.arange(weight.k) if packed.perm is None else packed.perm
    np.testing.assert_array_equal(real(in_order), real(weight)[perm])
    groups = weight.row_groups[perm]
    assert (np.diff(groups) >= 0).all()
    assert (np.diff(perm)[np.diff(groups) == 0] > 0).all()  # rows of a group keep their order


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [-1, 32, 128, 150])
def test_a_weight_tells_the_op_its_operands_and_its_descriptor_fields(group_size, symmetric, act_order):
    """The sizes are logical, the operands padded, and a group as long as K is one group, whatever its size."""
    rng = np.random.default_rng(0)
    m, k, n = 3, 150, 100
    weight = random_weight(rng, k, n, group_size, symmetric=symmetric, act_order=act_order)
    packed = marlin.to_marlin(pad_to_supported(weight))
    fields = packed.descriptor_fields()
    assert (fields["n"], fields["k"]) == (n, k)
    assert packed.operands().keys() == {"weight_q", "weight_scale"} | (
        set() if symmetric else {"weight_zero_point"}
    ) | ({"perm"} if packed.perm is not None else set())
    desc = qp.Int4MarlinGemmDescriptor(m=m, output_element="f32", **fields)
    family = qp.PlanFamily.select("cpu", desc, ms=(1, m))
    layer = family.bind(**packed.operands())
    act = rng.standard_normal((m, k)).astype(np.float16)
    output = np.empty((m, n), np.float32)
    layer.run(None, None, act=act, output=output)
    expected = act.astype(np.float64) @ real(weight)
    args = qp.Int4MarlinGemmArgs(act=act, output=output, **packed.operands())
    bound = family.plan_for(m).precision_guarantee.error_bound.bound(desc, args)
    assert (np.abs(output - expected) <= bound).all()


def test_a_single_group_that_needed_no_padding():
    packed = marlin.to_marlin(random_weight(np.random.default_rng(0), 256, 64, 256))
    assert packed.group_size == 256
    assert packed.descriptor_fields()["group_size"] == -1


@pytest.mark.parametrize("element", [qp.F16, "bf16", np.float32])
def test_scales_are_rounded_once_to_the_element_that_is_asked_for(element):
    weight = random_weight(np.random.default_rng(0), 32, 64, 16, symmetric=False, dtype=np.float32)
    packed = marlin.to_marlin(weight, scale_element=element)
    dtype = qp.ElementKind.of(element).dtype
    expected = attrs.evolve(weight, scales=weight.scales.astype(dtype))
    assert packed.weight_scale.dtype == dtype
    same(marlin.from_marlin(packed), expected)


@pytest.mark.parametrize(
    "element, largest, beyond", [("f16", 65519, 65520), ("f16", -65519, -65520), ("bf16", 3.39e38, 3.4e38)]
)
def test_scales_that_overflow_are_refused(element, largest, beyond):
    """What rounds to the largest finite number stays; beyond it there is only infinity."""
    scales = np.ones((2, 64), np.float32)
    scales[1, 3] = largest
    weight = Int4Weight(q=np.zeros((32, 64), np.uint8), scales=scales, group_size=16)
    assert np.isfinite(marlin.to_marlin(weight, scale_element=element).weight_scale).all()
    scales[1, 3] = beyond
    with pytest.raises(InvalidProblem, match=rf"finite in {element}, got -?inf at \(1, 3\)") as caught:
        marlin.to_marlin(weight, scale_element=element)
    assert (caught.value.op, caught.value.field) == ("to_marlin", "scales")


@pytest.mark.parametrize("element", ["f64", "s8", "s4", "fp8_e4m3", "half a float", 16])
def test_elements_that_scales_do_not_have(element):
    with pytest.raises(InvalidProblem) as caught:
        marlin.to_marlin(random_weight(np.random.default_rng(0), 16, 64), scale_element=element)
    assert (caught.value.op, caught.value.field) == ("to_marlin", "scale_element")


def test_act_order_by_hand():
    g_idx = np.array([1, 0] * 16, np.int32)
    q = np.repeat(np.arange(32, dtype=np.uint8)[:, np.newaxis] % 16, 64, axis=1)
    weight = Int4Weight(q=q, scales=np.ones((2, 64), np.float16), g_idx=g_idx, group_size=16)
    packed = marlin.to_marlin(weight)
    assert packed.perm.tolist() == [*range(1, 32, 2), *range(0, 32, 2)]
    assert marlin.unpack_weight(packed.weight_q)[:, 0].tolist() == [1, 3, 5, 7, 9, 11, 13, 15] * 2 + [
        0, 2, 4, 6, 8, 10, 12, 14,
    ] * 2  # fmt: skip


def test_rows_that_are_sorted_need_no_perm():
    g_idx = np.arange(32, dtype=np.int32) // 16
    weight = Int4Weight(q=np.zeros((32, 64), np.uint8), scales=np.ones((2, 64), np.float16), g_idx=g_idx, group_size=16)
    assert marlin.to_marlin(weight).perm is None


def test_a_symmetric_weight_carries_no_zero_points():
    rng = np.random.default_rng(0)
    assert marlin.to_marlin(random_weight(rng, 32, 64, 16)).weight_zero_point is None
    asymmetric = random_weight(rng, 32, 64, 16, symmetric=False)
    packed = marlin.to_marlin(asymmetric)
    np.testing.assert_array_equal(marlin.unpack_zeros(packed.weight_zero_point), asymmetric.zeros)


@pytest.mark.parametrize(
    "k, n, size", [(15, 64, "K=15"), (24, 64, "K=24"), (16, 63, "N=63"), (16, 32, "N=32"), (16, 96, "N=96")]
)
def test_a_misfit_is_refused_and_padding_named(k, n, size):
    """A size that does not fit the tile is refused or padded, never truncated."""
    q = np.zeros((k, n), np.uint8)
    for call in (
        lambda: marlin.pack_weight(q),
        lambda: marlin.to_marlin(random_weight(np.random.default_rng(0), k, n)),
    ):
        with pytest.raises(InvalidProblem, match="pad_to_supported") as caught:
            call()
        assert caught.value.field == "q"
        assert caught.value.got == size


@pytest.mark.parametrize(
    "call, field",
    [
        (lambda: marlin.pack_scales(np.ones((2, 32), np.float16), 16), "scales"),
        (lambda: marlin.pack_scales(np.ones((1, 48), np.float16), -1), "scales"),
        (lambda: marlin.pack_zeros(np.ones((2, 32), np.uint8)), "zeros"),
        (lambda: marlin.unpack_zeros(np.ones((2, 4), np.int32)), "packed"),
        (lambda: marlin.unpack_weight(np.ones((2, 64), np.int32)), "packed"),
    ],
)
def test_misfits_of_other_tensors(call, field):
    """Scales, zero points and words."""
    with pytest.raises(InvalidProblem, match="pad_to_supported") as caught:
        call()
    assert caught.value.field == field


@pytest.mark.parametrize("bad", [16, 255])
def test_codes_that_four_bits_do_not_hold(bad):
    q = np.zeros((16, 64), np.uint8)
    q[7, 5] = bad
    for call, field in ((marlin.pack_weight, "q"), (marlin.pack_zeros, "zeros")):
        with pytest.raises(InvalidProblem, match=f"from 0 to 15, got {bad}") as caught:
            call(q)
        assert caught.value.field == field


def test_negative_codes():
    q = np.zeros((16, 64), np.int8)
    q[0, 0] = -1
    with pytest.raises(InvalidProblem, match="got -1"):
        marlin.pack_weight(q)


@pytest.mark.parametrize(
    "call, field, words",
    [
        (lambda: marlin.pack_weight(None), "q", "missing"),
        (lambda: marlin.pack_weight([[1]]), "q", "NumPy array, got list"),
        (lambda: marlin.pack_weight(np.zeros((16, 64))), "q", "got float64"),
        (lambda: marlin.pack_weight(np.zeros((16, 64), bool)), "q", "got bool"),
        (lambda: marlin.pack_weight(np.zeros(16, np.uint8)), "q", "2 axes"),
        (lambda: marlin.unpack_weight(np.zeros((1, 128), np.int64)), "packed", "int32, got int64"),
        (lambda: marlin.unpack_zeros(np.zeros((1, 8), np.uint32)), "packed", "int32, got uint32"),
        (lambda: marlin.pack_scales(np.zeros((1, 64)), -1), "scales", "got float64"),
        (lambda: marlin.pack_scales(np.zeros((2, 64), np.float16), -1), "scales", "got \\(2, 64\\)"),
        (lambda: marlin.pack_scales(np.zeros((2, 64), np.float16), 0), "group_size", "got 0"),
        (lambda: marlin.unpack_scales(np.zeros((2, 64), np.float16), -2), "group_size", "got -2"),
        (lambda: marlin.unpack_scales(np.zeros((2, 64), np.float16), 16.0), "group_size", "an integer"),
    ],
)
def test_what_is_no_weight_is_refused_by_name(call, field, words):
    with pytest.raises(InvalidProblem, match=words) as caught:
        call()
    assert caught.value.field == field


@pytest.mark.parametrize(
    "call, array",
    [
        (marlin.pack_weight, claims((2**20, 2**20), np.uint8)),
        (marlin.unpack_weight, claims((2**20, 2**20))),
        (marlin.pack_zeros, claims((2**20, 2**20), np.uint8)),
        (marlin.unpack_zeros, claims((2**20, 2**20))),
        (lambda scales: marlin.pack_scales(scales, 16), claims((2**20, 2**20), np.float16)),
    ],
)
def test_shapes_beyond_the_memory_behind_them_allocate_nothing(call, array):
    """Shape bombs are refused before memory of their size is asked for."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidProblem, match="do not overlap"):
            call(array)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_groups_of_unequal_sizes_have_no_layout():
    g_idx = np.array([0] * 17 + [1] * 15, np.int32)
    weight = Int4Weight(q=np.zeros((32, 64), np.uint8), scales=np.ones((2, 64), np.float16), g_idx=g_idx, group_size=16)
    with pytest.raises(InvalidProblem, match="expected 16 rows in group 1, got 15") as caught:
        marlin.to_marlin(weight)
    assert caught.value.field == "g_idx"


def test_padded_rows_must_come_last():
    g_idx = np.array([1] * 16 + [0] * 16, np.int32)
    weight = Int4Weight(
        q=np.zeros((32, 64), np.uint8), scales=np.ones((2, 64), np.float16), g_idx=g_idx, group_size=16, k=20
    )
    with pytest.raises(InvalidProblem, match="padded rows"):
        marlin.to_marlin(weight)


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"perm": np.zeros(32, np.int32)}, "perm"),
        ({"perm": np.arange(32, dtype=np.int32) + 1}, "perm"),
        ({"perm": np.arange(31, dtype=np.int32)}, "perm"),
        ({"perm": np.arange(32, dtype=np.float32)}, "perm"),
        ({"k": 33}, "k"),
        ({"k": 0}, "k"),
        ({"n": 65}, "n"),
        ({"group_size": 0}, "group_size"),
        ({"group_size": 8}, "scales"),
        ({"weight_scale": np.full((2, 64), np.nan, np.float16)}, "scales"),
        ({"weight_zero_point": np.zeros((1, 8), np.int32)}, "zeros"),
        ({"weight_q": np.zeros((2, 256), np.int32)}, "scales"),
        ({"weight_q": None}, "packed"),
    ],
)
def test_a_marlin_weight_that_contradicts_itself_is_refused(changes, field):
    packed = marlin.to_marlin(random_weight(np.random.default_rng(0), 32, 64, 16, symmetric=False, act_order=True))
    with pytest.raises(InvalidProblem) as caught:
        marlin.from_marlin(attrs.evolve(packed, **changes))
    assert caught.value.field == field


def test_repr_tells_the_kind():
    weight = random_weight(np.random.default_rng(0), 32, 64, 16, symmetric=False, act_order=True)
    assert repr(marlin.to_marlin(weight)) == "MarlinWeight(k=32, n=64, group_size=16, asymmetric, act-order)"
    assert repr(marlin.to_marlin(random_weight(np.random.default_rng(0), 32, 64))) == (
        "MarlinWeight(k=32, n=64, group_size=-1, symmetric)"
    )


@pytest.mark.timing
def test_a_real_layer_is_packed_in_a_second(layer):
    scales = np.ones((4096 // 128, 14336), np.float16)
    start = time.perf_counter()
    marlin.pack_weight(layer)
    marlin.pack_scales(scales, 128)
    assert time.perf_counter() - start < 1
