"""Int4MarlinGemm on the reference device, through the public API, on weights that quantplan.formats packed."""

import itertools
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

import quantplan as qp
from quantplan import formats
from quantplan.formats.int4 import Int4Weight
from quantplan.formats.marlin import pack_scales, pack_weight, pack_zeros
from quantplan.formats.padding import pad_to_supported
from tests.formats.weights import random_weight

F16, F32, BF16 = np.float16, np.float32, ml_dtypes.bfloat16
INF, NAN = np.inf, np.nan


def describe(**fields):
    return qp.Int4MarlinGemmDescriptor(**{"m": 2, "n": 64, "k": 64} | fields)


def packed(weight):
    return formats.marlin.to_marlin(pad_to_supported(weight))


def described(weight, m, **fields):
    """Return the descriptor of a weight of quantplan.formats."""
    marlin = packed(weight)
    return describe(
        m=m,
        n=marlin.n,
        k=marlin.k,
        group_size=marlin.group_size,
        zero_point=marlin.weight_zero_point is not None,
        act_order=marlin.perm is not None,
        **fields,
    )


def arguments(weight, act, output, bias=None):
    marlin = packed(weight)
    return qp.Int4MarlinGemmArgs(
        act=act,
        weight_q=marlin.weight_q,
        weight_scale=marlin.weight_scale,
        weight_zero_point=marlin.weight_zero_point,
        perm=marlin.perm,
        output=output,
        bias=bias,
    )


def product(weight, act, bias=None, **fields):
    """Pack a weight [K, N], multiply activations [M, K] with it on the CPU, and return output, descriptor and args."""
    desc = described(weight, len(act), act_element=act.dtype, bias=bias is not None, **fields)
    output = np.full((desc.m, desc.n), 77, desc.output_element.dtype)
    args = arguments(weight, act, output, bias)
    qp.Int4MarlinGemmPlan.select("cpu", desc).run(None, None, args)
    return output, desc, args


def exact(act, weight, bias=None):
    """Return the product in exact arithmetic; both hold floats."""
    a = np.vectorize(Fraction, otypes=[object])(act.astype(np.float64))
    w = np.vectorize(Fraction, otypes=[object])(weight.astype(np.float64))
    y = a @ w
    return y if bias is None else y + np.vectorize(Fraction, otypes=[object])(bias.astype(np.float64))


def assert_within_the_bound(output, expected, desc, args):
    """Hold an output to its SKU's own bound, which is finite, of the output's shape, and no free pass."""
    bound = qp.Int4MarlinGemmPlan.select("cpu", desc).precision_guarantee.error_bound.bound(desc, args)
    assert bound.shape == output.shape
    assert np.isfinite(bound).all()
    for where, limit in np.ndenumerate(bound):
        off = abs(Fraction(float(output[where])) - expected[where])
        assert off <= Fraction(float(limit)), (desc, where)
    largest = max(map(abs, expected.flat))
    assert Fraction(float(bound.max())) < largest / 50, "a bound as large as the result says nothing"


def by_hand(k, n, codes, scales, *, zeros=None, group_size=-1, g_idx=None):
    """Make a weight of K × N that is zero but for the given codes {(k, n): q}."""
    zero = 8 if zeros is None else 0
    q = np.full((k, n), zero, np.uint8)
    if zeros is not None:
        zeros = np.broadcast_to(np.asarray(zeros, np.uint8), (len(scales), n)).copy()
        size = k if group_size == -1 else group_size
        q[...] = zeros[np.arange(k) // size if g_idx is None else g_idx]
    for where, code in codes.items():
        q[where] = code
    scales = np.broadcast_to(np.asarray(scales, F16).reshape(-1, 1), (len(scales), n)).copy()
    return Int4Weight(q=q, scales=scales, zeros=zeros, g_idx=g_idx, group_size=group_size)


# ---- values


def test_by_hand():
    """The smallest and the largest code, and neighbours that a wrong layout would confuse."""
    weight = by_hand(64, 64, {(0, 0): 0, (1, 0): 15, (0, 1): 9, (8, 5): 10, (63, 63): 7}, [0.5])
    act = np.zeros((2, 64), F16)
    act[0, :3], act[0, 8], act[0, 63] = (1, 2, 99), 3, 4
    act[1] = -act[0]
    output, _, _ = product(weight, act, output_element="f32")
    expected = np.zeros((2, 64), F32)
    expected[0, [0, 1, 5, 63]] = [(-8 + 2 * 7) / 2, 1 / 2, 3 * 2 / 2, -4 / 2]
    expected[1] = -expected[0]
    assert output.tolist() == expected.tolist()


def test_a_scale_and_a_zero_point_per_group():
    """Groups of 32 with zero points 0, 15 and 3: each group is (q − z) · scale by itself."""
    codes = {(0, 2): 15, (32, 2): 0, (64, 2): 4, (95, 2): 3}
    weight = by_hand(96, 64, codes, [1, 0.5, -2], zeros=[[0], [15], [3]], group_size=32)
    act = np.zeros((1, 96), F16)
    act[0, [0, 32, 64, 95]] = [1, 2, 4, 8]
    output, _, _ = product(weight, act)
    assert output[0, 2] == 15 - 15 * 0.5 * 2 + 1 * -2 * 4
    assert not np.delete(output, 2).any()


def test_act_order_gathers_the_activations():
    """Row k of the checkpoint's weight is in group g_idx[k], wherever the packer put it."""
    g_idx = np.arange(64, dtype=np.int32)[::-1] % 2
    weight = by_hand(64, 64, {(k, 0): 9 for k in range(64)}, [1, 16], group_size=32, g_idx=g_idx)
    act = np.zeros((3, 64), F16)
    act[0, 0], act[1, 1], act[2, :2] = 1, 1, (3, 5)
    output, desc, _ = product(weight, act)
    assert desc.act_order
    assert output[:, 0].tolist() == [16, 1, 3 * 16 + 5]


def test_perm_may_repeat_columns():
    """It is a gather: any indices within K."""
    desc = describe(m=1, act_order=True, output_element="f32")
    q = np.full((64, 64), 9)
    act = np.arange(64, dtype=F16).reshape(1, 64)
    output = np.empty((1, 64), F32)
    scale = pack_scales(np.ones((1, 64), F16), -1)
    args = qp.Int4MarlinGemmArgs(
        act=act, weight_q=pack_weight(q), weight_scale=scale, output=output, perm=np.full(64, 5, np.int32)
    )
    qp.Int4MarlinGemmPlan.select("cpu", desc).run(None, None, args)
    assert set(output.ravel().tolist()) == {5 * 64}


@pytest.mark.parametrize("bad", [-1, 64])
def test_perm_outside_k_is_refused(bad):
    desc = describe(m=1, act_order=True)
    args = qp.Int4MarlinGemmArgs(
        act=np.ones((1, 64), F16),
        weight_q=np.zeros((4, 128), np.int32),
        weight_scale=np.ones((1, 64), F16),
        output=np.full((1, 64), 77, F16),
        perm=np.array([*range(63), bad], np.int32),
    )
    with pytest.raises(qp.InvalidProblem, match=r"perm: expected indices in \[0, 64\)"):
        qp.Int4MarlinGemmPlan.select("cpu", desc).run(None, None, args)
    assert (args.output.numpy() == 77).all()


def test_bias():
    weight = by_hand(64, 64, {(0, 0): 9}, [1])
    act = np.zeros((2, 64), F16)
    act[0, 0] = 4
    output, _, _ = product(weight, act, np.arange(64, dtype=F16))
    assert output.tolist() == [[4, *range(1, 64)], [*range(64)]]


def test_groups_are_added_in_f32_in_k_order():
    """2²⁴ + 1 + 1 is 2²⁴ from left to right, and 2²⁴ + 2 in any other order; f16 sums would be infinite."""
    weight = by_hand(96, 64, {(0, 0): 9, (32, 0): 9, (64, 0): 9}, [4096, 1, 1], group_size=32)
    act = np.zeros((1, 96), F16)
    act[0, [0, 32, 64]] = [4096, 1, 1]
    output, _, _ = product(weight, act, output_element="f32")
    assert output[0, 0] == 2**24


def test_within_a_group_sums_are_exact():
    """A huge term that cancels leaves the small ones intact, whatever the order."""
    weight = by_hand(64, 64, {(0, 0): 15, (1, 0): 9, (63, 0): 1}, [1])
    act = np.zeros((1, 64), F16)
    act[0, [0, 1, 63]] = [65504, 2.0**-24, 65504]
    output, _, _ = product(weight, act, output_element="f32")
    assert output[0, 0] == 2.0**-24


def test_overflow_into_f16_is_infinite():
    weight = by_hand(64, 64, {(0, 0): 9, (0, 1): 7, (0, 2): 9}, [1])
    act = np.full((1, 64), 0, F16)
    act[0, 0] = 65504
    output, _, _ = product(weight, act, np.array([16, -16, 15.9] + [0] * 61, F16))
    assert output[0, :3].tolist() == [INF, -INF, 65504]


def test_a_poisoned_token_stays_in_its_row():
    """NaN and infinities reach every output of their row, as the one canonical NaN, and no other row."""
    weight = by_hand(64, 64, {(0, 0): 9}, [1])
    act = np.ones((3, 64), F16)
    act[0, 7], act[1, 0] = -NAN, INF
    output, _, _ = product(weight, act, output_element="f32")
    assert set(output.view(np.uint32)[0].tolist()) == {0x7FFFFFFF}
    assert output[1, 0] == INF
    assert output[2].tolist() == [1] + [0] * 63


# ---- checkpoints, end to end


def gptq(weight, version):
    return formats.gptq.from_gptq(
        **formats.gptq.to_gptq(weight, version=version), version=version, group_size=weight.group_size
    )


def awq(weight):
    return formats.awq.from_awq(**formats.awq.to_awq(weight), group_size=weight.group_size)


def compressed_tensors(weight):
    return formats.compressed_tensors.from_compressed_tensors(
        **formats.compressed_tensors.to_compressed_tensors(weight), group_size=weight.group_size
    )


CHECKPOINTS = {
    "gptq v1": (lambda w: gptq(w, 1), {"symmetric": False, "act_order": True}),
    "gptq v2": (lambda w: gptq(w, 2), {"symmetric": True, "act_order": True}),
    "awq": (awq, {"symmetric": False}),
    "compressed-tensors": (compressed_tensors, {"symmetric": True}),
}


@pytest.mark.untraced
@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("group_size", [-1, 32, 64, 128])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_checkpoints_run_end_to_end_within_the_bound(checkpoint, group_size, dtype):
    """K and N fit neither tile nor group; the weight is padded, and activations and outputs are not."""
    read, kind = CHECKPOINTS[checkpoint]
    rng = np.random.default_rng(11)
    original = random_weight(rng, 136, 40, group_size, dtype=dtype, **kind)
    weight = read(original)
    act = rng.standard_normal((2, 136)).astype(dtype)
    bias = rng.standard_normal(40).astype(dtype)
    output, desc, args = product(weight, act, bias, output_element="f32")
    assert (desc.k, desc.n, desc.padded) == (136, 40, (192, 64))
    assert desc.zero_point is not kind["symmetric"]
    assert_within_the_bound(output, exact(act, original.dequantize(), bias), desc, args)


@pytest.mark.parametrize("k", [8, 24, 32, 40, 64, 72, 128, 136])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_the_groups_of_a_padded_weight_are_those_that_formats_make(k, group_size):
    """A weight of one group keeps one, padded or not, whichever of its two group sizes the descriptor says."""
    rng = np.random.default_rng(k)
    weight = random_weight(rng, k, 8, group_size, symmetric=False)
    marlin = packed(weight)
    act = rng.standard_normal((1, k)).astype(F16)
    outputs = []
    for size in {group_size, marlin.group_size}:
        desc = describe(m=1, n=8, k=k, group_size=size, zero_point=True)
        assert desc.groups == len(marlin.weight_scale)
        output = np.empty((1, 8), F16)
        args = arguments(weight, act, output)
        qp.Int4MarlinGemmPlan.select("cpu", desc).run(None, None, args)
        assert_within_the_bound(output, exact(act, weight.dequantize()), desc, args)
        outputs.append(output.tobytes())
    assert len(set(outputs)) == 1


def test_what_padding_holds_changes_nothing_that_is_asked_for():
    """Padded columns are outputs that nobody reads; their scales and codes may be anything."""
    rng = np.random.default_rng(5)
    weight = random_weight(rng, 64, 10, 32, symmetric=False)
    marlin = packed(weight)
    act, output = rng.standard_normal((2, 64)).astype(F16), np.empty((2, 10), F16)
    plan = qp.Int4MarlinGemmPlan.select("cpu", described(weight, 2))
    plan.run(None, None, arguments(weight, act, output))
    filled = pad_to_supported(weight)
    q, scales, zeros = filled.q.copy(), filled.scales.copy(), filled.zeros.copy()
    q[:, 10:], scales[:, 10:], zeros[:, 10:] = 3, NAN, 15
    again = np.empty((2, 10), F16)
    args = qp.Int4MarlinGemmArgs(
        act=act,
        weight_q=pack_weight(q),
        weight_scale=pack_scales(scales, 32),
        weight_zero_point=pack_zeros(zeros),
        output=again,
    )
    plan.run(None, None, args)
    assert output.tobytes() == again.tobytes()
    assert marlin.weight_q.shape == args.weight_q.shape


# ---- descriptor


def test_defaults():
    desc = describe()
    assert (desc.act_element, desc.output_element, desc.group_size) == (qp.F16, qp.F16, 128)
    assert (desc.zero_point, desc.act_order, desc.bias) == (False, False, False)


def test_the_output_is_the_activations_element_unless_it_is_said():
    assert describe(act_element="bf16").output_element is qp.BF16
    assert describe().replace(act_element="bf16").output_element is qp.BF16
    assert describe(output_element="f32").replace(act_element="bf16").output_element is qp.F32


@pytest.mark.parametrize(
    "fields, field, expected, got",
    [
        ({"act_element": "f32"}, "act_element", "one of f16, bf16", "f32"),
        ({"act_element": 4}, "act_element", "f16, bf16", "4"),
        ({"output_element": "s8"}, "output_element", "one of f16, bf16, f32", "s8"),
        ({"group_size": 16}, "group_size", "one of -1, 32, 64, 128", "16"),
        ({"group_size": 0}, "group_size", "one of -1, 32, 64, 128", "0"),
        ({"group_size": 128.0}, "group_size", "an integer", "128.0"),
        ({"zero_point": 8}, "zero_point", "True or False", "8"),
        ({"act_order": None}, "act_order", "True or False", "None"),
        ({"bias": 1}, "bias", "True or False", "1"),
        ({"m": -1}, "m", "[0, 2**31)", "-1"),
        ({"n": 2**31}, "n", "[0, 2**31)", "2147483648"),
        ({"k": True}, "k", "an integer", "True"),
    ],
)
def test_the_descriptor_refuses(fields, field, expected, got):
    with pytest.raises(qp.InvalidProblem) as caught:
        describe(**fields)
    assert (caught.value.op, caught.value.field) == ("Int4MarlinGemmDescriptor", field)
    assert expected in str(caught.value.expected)
    assert str(caught.value.got) == got


def test_there_is_no_max_par():
    """Split-K needs no lock array: nothing in the descriptor sizes one."""
    with pytest.raises(TypeError, match="max_par"):
        describe(max_par=16)


# ---- operands, shapes and memory


@pytest.mark.parametrize(
    "fields, shapes",
    [
        ({}, {"weight_q": (4, 128), "weight_scale": (1, 64)}),
        ({"k": 1, "n": 1}, {"weight_q": (4, 128), "weight_scale": (1, 64), "output": (2, 1), "act": (2, 1)}),
        ({"k": 65, "n": 65, "group_size": 32}, {"weight_q": (8, 256), "weight_scale": (4, 128)}),
        ({"k": 130, "zero_point": True}, {"weight_scale": (2, 64), "weight_zero_point": (2, 8)}),
        ({"k": 130, "group_size": -1, "zero_point": True}, {"weight_scale": (1, 64), "weight_zero_point": (1, 8)}),
        ({"k": 130, "act_order": True, "bias": True}, {"perm": (130,), "bias": (64,)}),
        ({"k": 4096, "n": 14336}, {"weight_q": (256, 28672), "weight_scale": (32, 14336)}),
    ],
)
def test_operands_are_padded_and_the_problem_is_not(fields, shapes):
    desc = describe(**fields)
    stated = {operand.name: operand.shape for operand in qp.Int4MarlinGemmPlan.operands(desc)}
    assert stated["act"] == (2, desc.k)
    assert stated["output"] == (2, desc.n)
    assert {name: stated[name] for name in shapes} == shapes


def test_the_elements_of_operands():
    desc = describe(act_element="bf16", output_element="f32", zero_point=True, act_order=True, bias=True)
    assert {o.name: o.element for o in qp.Int4MarlinGemmPlan.operands(desc)} == {
        "act": qp.BF16,
        "weight_q": qp.S32,
        "weight_scale": qp.BF16,
        "output": qp.F32,
        "weight_zero_point": qp.S32,
        "perm": qp.S32,
        "bias": qp.BF16,
    }


@pytest.mark.parametrize(
    "desc, change, field, words",
    [
        (describe(), {"act": np.ones((3, 64), F16)}, "act", "(M=2, K=64)"),
        (describe(), {"act": np.ones((2, 128), F16)}, "act", "(M=2, K=64)"),
        (describe(), {"act": np.ones((2, 64), F32)}, "act", "element f16"),
        (describe(), {"act": np.ones((64, 2), F16).T}, "act", "contiguous"),
        (describe(), {"weight_q": np.ones((8, 64), np.int32)}, "weight_q", "quantplan.formats packs and pads"),
        (describe(), {"weight_q": np.ones((64, 32), np.uint8)}, "weight_q", "element s32"),
        (describe(n=60, k=60), {"weight_q": np.ones((3, 120), np.int32)}, "weight_q", "K′/16=4, 2·N′=128"),
        (describe(), {"weight_scale": np.ones((1, 64), F32)}, "weight_scale", "element f16"),
        (describe(), {"weight_scale": np.ones((2, 64), F16)}, "weight_scale", "groups=1, N′=64"),
        (describe(n=60), {"weight_scale": np.ones((1, 60), F16)}, "weight_scale", "packs and pads"),
        (describe(), {"output": np.ones((2, 64), F32)}, "output", "element f16"),
        (describe(n=60), {"output": np.ones((2, 64), F16)}, "output", "(M=2, N=60)"),
        (describe(zero_point=True), {"weight_zero_point": None}, "weight_zero_point", "shape (1, 8)"),
        (describe(), {"weight_zero_point": np.ones((1, 8), np.int32)}, "weight_zero_point", "no operand"),
        (describe(zero_point=True), {"weight_zero_point": np.ones((1, 64), np.int32)}, "weight_zero_point", "N′/8=8"),
        (describe(act_order=True), {"perm": None}, "perm", "shape (64,)"),
        (describe(), {"perm": np.arange(64, dtype=np.int32)}, "perm", "no operand"),
        (describe(act_order=True), {"perm": np.arange(64)}, "perm", "int64"),
        (describe(bias=True), {"bias": None}, "bias", "shape (64,)"),
        (describe(), {"bias": np.ones(64, F16)}, "bias", "no operand"),
        (describe(bias=True), {"bias": np.ones(64, F32)}, "bias", "element f16"),
    ],
)
def test_operands_are_held_to_the_descriptor(lab, desc, change, field, words):
    """Among others a weight that is not padded, with where to pad it."""
    with pytest.raises(qp.InvalidProblem) as caught:
        lab.run(desc, lab.operands(desc) | change)
    assert caught.value.field.split(".")[0] == field
    assert words in str(caught.value)


def test_the_output_may_not_lie_on_the_activations(lab):
    desc = describe()
    arrays = lab.operands(desc)
    with pytest.raises(qp.InvalidProblem, match="overlapping"):
        lab.run(desc, arrays | {"output": arrays["act"]})


@pytest.mark.parametrize("how", ["strided", "misaligned"])
def test_every_sku_gives_the_same_bits_from_awkward_memory(lab, how):
    """Views at odd addresses, and rows that lie apart; nothing outside the rows is written."""
    for desc in qp.Int4MarlinGemmPlan.catalogue():
        desc = desc.replace(bias=True)  # noqa: PLW2901 - the same SKU
        arrays = lab.operands(desc)
        awkward = lab.placed(desc, arrays, how)
        before = {name: array.tobytes() for name, array in awkward.items() if name != "output"}
        assert lab.run(desc, arrays) == lab.run(desc, awkward), desc
        assert before == {name: awkward[name].tobytes() for name in before}, "an operand was written"
        if how == "strided":
            assert lab.gaps(awkward["output"]) == {0xA5}, desc


def test_every_sku_computes_a_row_alike_whatever_m(lab):
    for desc in qp.Int4MarlinGemmPlan.catalogue():
        desc = desc.replace(m=5, bias=True)  # noqa: PLW2901 - the same SKU with more rows
        arrays = lab.operands(desc)
        lab.run(desc, arrays)
        for i in (0, 4):
            alone, part = lab.row(desc, arrays, i)
            lab.run(alone, part)
            assert part["output"].tobytes() == arrays["output"][i : i + 1].tobytes(), (desc, i)


@pytest.mark.parametrize("act", ["f16", "bf16"])
def test_a_row_is_the_same_in_a_large_batch(lab, act):
    """Wherever it lies, and beside rows of other magnitudes, NaN and infinities."""
    desc = describe(m=300, n=70, k=520, act_element=act, zero_point=True, act_order=True)
    arrays = lab.operands(desc)
    arrays["act"] *= np.exp2(lab.rng.integers(-9, 9, (300, 1))).astype(arrays["act"].dtype)
    arrays["act"][[3, 4]] = [[NAN], [INF]]
    places = (1, 77, 255, 256, 299)
    arrays["act"][[*places]] = arrays["act"][0]
    lab.run(desc, arrays)
    alone, part = lab.row(desc, arrays, 0)
    lab.run(alone, part)
    for i in (0, *places):
        assert arrays["output"][i].tobytes() == part["output"].tobytes(), i


def test_empty_k_writes_the_bias_or_zeros(lab):
    for group_size, zero_point in itertools.product((-1, 128), (False, True)):
        desc = describe(n=3, k=0, group_size=group_size, zero_point=zero_point, act_order=True)
        arrays = lab.operands(desc)
        lab.run(desc, arrays)
        assert not arrays["output"].any()
        desc = desc.replace(bias=True)
        arrays = lab.operands(desc) | {"bias": np.array([1, -2, 3], F16)}
        lab.run(desc, arrays)
        assert arrays["output"].tolist() == [[1, -2, 3]] * 2


@pytest.mark.parametrize("m, n", [(0, 3), (2, 0), (0, 0)])
def test_an_empty_output_launches_nothing(lab, m, n):
    """The memory behind an empty output stays as it was."""
    desc = describe(m=m, n=n)
    around = np.full((4, 8), 77, F16)
    lab.run(desc, lab.operands(desc) | {"output": around[1 : 1 + m, 2 : 2 + n]})
    assert set(around.ravel().tolist()) == {77}


# ---- SKUs, selection, guarantees


def test_every_sku_of_the_catalogue_is_selected_under_a_name_of_its_own():
    skus = [qp.Int4MarlinGemmPlan.select("cpu", desc).sku for desc in qp.Int4MarlinGemmPlan.catalogue()]
    assert len({sku.name for sku in skus}) == len(set(skus)) == len(skus)


def test_the_catalogue_covers_every_kernel():
    flags, outputs = (False, True), (qp.F16, qp.BF16, qp.F32)
    catalogue = list(qp.Int4MarlinGemmPlan.catalogue())
    seen = {(d.act_element, d.output_element, d.group_size, d.zero_point, d.act_order) for d in catalogue}
    assert seen == set(itertools.product((qp.F16, qp.BF16), outputs, (-1, 32, 64, 128), flags, flags))
    assert len(seen) == len(catalogue)


def test_what_skus_say():
    for desc in qp.Int4MarlinGemmPlan.catalogue():
        sku = qp.Int4MarlinGemmPlan.select("cpu", desc).sku
        assert (sku.category, sku.op) == (qp.OpCategory.GEMM, qp.QuantizeKind.INT4_MARLIN_GEMM)
        assert (sku.element, sku.aux_element, sku.output_element) == (desc.act_element, qp.U4, desc.output_element)
        assert (sku.layout, sku.epilogue) == (qp.LayoutSku.MARLIN, qp.EpilogueKind.IDENTITY)
        guarantee = sku.precision_guarantee
        assert guarantee.accumulator is qp.F32
        assert guarantee.flags >= {"deterministic", "batch_invariant", "bit_stable_on_same_hardware"}


def test_where_no_variant_runs_each_says_why():
    with pytest.raises(qp.Unsupported) as caught:
        qp.Int4MarlinGemmPlan.select("sm_75", describe())
    reasons = {report.name: report.reason for report in caught.value.variants}
    assert reasons["reference"] == "runs on cpu only, and the target is sm_75"
    assert "sm_80" in reasons["mma-8x64"]
    assert "sm_90a" in reasons["wgmma-8x256"]


@pytest.mark.parametrize(
    "pref, reason",
    [
        (qp.PlanPreference(backend=qp.BackendKind.BESPOKE), "bespoke is required"),
        (qp.PlanPreference(accumulation=qp.Accumulation.PROMOTED), "no choice of accumulation"),
        (qp.PlanPreference(require_bit_identical=True), "does not promise bit_identical_to_reference"),
    ],
)
def test_a_preference_that_cannot_be_met_is_an_error(pref, reason):
    with pytest.raises(qp.Unsupported) as caught:
        qp.Int4MarlinGemmPlan.select("cpu", describe(), pref)
    (own,) = (report.reason for report in caught.value.variants if report.name == "reference")
    assert reason in own


def test_the_error_bound_holds_for_every_sku():
    """On random data, against the real-valued product."""
    rng = np.random.default_rng(3)
    for desc in qp.Int4MarlinGemmPlan.catalogue():
        dtype = desc.act_element.dtype
        weight = random_weight(
            rng, 133, 5, desc.group_size, symmetric=not desc.zero_point, act_order=desc.act_order, dtype=dtype
        )
        act, bias = rng.standard_normal((2, 133)).astype(dtype), rng.standard_normal(5).astype(dtype)
        output, described_, args = product(weight, act, bias, output_element=desc.output_element)
        # shuffling one group is no shuffling, and the packer leaves it out
        assert described_.replace(m=3, bias=False, act_order=desc.act_order) == desc
        assert_within_the_bound(output, exact(act, weight.dequantize(), bias), described_, args)


# ---- in a serving loop


def test_a_family_binds_the_weight_once_and_gives_each_row_its_bits():
    rng = np.random.default_rng(8)
    weight = random_weight(rng, 200, 72, 64, symmetric=False, act_order=True)
    marlin, bias = packed(weight), rng.standard_normal(72).astype(F16)
    act = rng.standard_normal((9, 200)).astype(F16)
    whole, _, _ = product(weight, act, bias)
    family = qp.PlanFamily.select("cpu", described(weight, 1, bias=True), ms=(1, 4, 16))
    assert family.batch_invariant
    assert family.workspace_size == 0
    layer = family.bind(
        weight_q=marlin.weight_q,
        weight_scale=marlin.weight_scale,
        weight_zero_point=marlin.weight_zero_point,
        perm=marlin.perm,
        bias=bias,
    )
    for m in (0, 1, 3, 4, 9):
        output = np.full((m, 72), 77, F16)
        layer.run(None, None, act=act[:m], output=output)
        assert output.tobytes() == whole[:m].tobytes()
    with pytest.raises(qp.InvalidProblem, match="largest bucket"):
        layer.run(None, None, act=np.ones((17, 200), F16), output=np.ones((17, 72), F16))
    with pytest.raises(qp.InvalidProblem, match="does not depend on M"):
        family.bind(act=act)


def test_a_bound_plan_reads_its_operands_at_each_launch():
    weight = by_hand(64, 64, {(0, 0): 9}, [1])
    act, output = np.zeros((1, 64), F16), np.empty((1, 64), F16)
    launch = qp.Int4MarlinGemmPlan.select("cpu", described(weight, 1)).bind(None, arguments(weight, act, output))
    for value in (1, 2):
        act[0, 0] = value
        launch.run(None)
        assert output[0, 0] == value
