"""QuantizedLinear on the reference device, through the public API. What it shares with SmoothQuantLinear is brief."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

import quantplan as qp

F32 = np.float32
INF, NAN = np.inf, np.nan
GB2 = 1 << 31


def linear(desc, act_q, act_scale, weight_q, weight_scale, *, act_zero_point=None, output_scale=None, bias=None):
    """Run on the CPU and return the output array."""
    output = np.full((desc.m, desc.n), 77, desc.output_element.dtype)
    wide = np.float64 if desc.output_element is qp.F64 else F32
    args = qp.QuantizedLinearArgs(
        act_q=np.asarray(act_q, desc.act_element.dtype).reshape(desc.m, desc.k),
        act_scale=np.asarray(act_scale, wide),
        weight_q=np.asarray(weight_q, np.int8).reshape(desc.n, desc.k),
        weight_scale=np.asarray(weight_scale, wide),
        output=output,
        act_zero_point=None if act_zero_point is None else np.asarray(act_zero_point, np.int32),
        bias=None if bias is None else np.asarray(bias, wide),
        output_scale=None if output_scale is None else np.asarray(output_scale, F32),
    )
    qp.QuantizedLinearPlan.select("cpu", desc).run(None, None, args)
    return output


def describe(**fields):
    return qp.QuantizedLinearDescriptor(**{"m": 2, "n": 3, "k": 4} | fields)


ACT = [[1, 2, 3, 4], [-1, 0, 5, -128]]
WEIGHT = [[1, 1, 1, 1], [-1, 2, -3, 4], [127, 0, 0, -128]]
SUMS = [[10, 10, 127 - 512], [-124, -526, -127 + 16384]]


# ---- values


def test_by_hand():
    """−128 is an operand like any other, on both sides; each row has its own scale."""
    output = linear(describe(), ACT, [0.5, 2], WEIGHT, [1, 2, 4])
    assert output.tolist() == [[5, 10, -770], [-248, -2104, 8 * 16257]]


def test_a_zero_point_per_token():
    output = linear(describe(act_zero_point=True), ACT, [1, 1], WEIGHT, [1, 1, 1], act_zero_point=[3, -128])
    assert output.tolist() == [
        [s - z * sum(w) for s, w in zip(row, WEIGHT, strict=True)] for row, z in zip(SUMS, (3, -128), strict=True)
    ]


def test_u8_with_zero_points():
    act_q = [[0, 128, 200, 255], [1, 2, 3, 4]]
    desc = describe(act_element="u8", act_zero_point=True)
    output = linear(desc, act_q, [1, 1], WEIGHT, [1, 1, 1], act_zero_point=[128, 0])
    assert output.tolist() == [
        [float(sum((a - z) * w for a, w in zip(row, weight, strict=True))) for weight in WEIGHT]
        for row, z in zip(act_q, (128, 0), strict=True)
    ]


@pytest.mark.parametrize("act, zero_point", [("s8", 128), ("s8", -129), ("u8", -1), ("u8", 256), ("u8", -(2**31))])
def test_a_zero_point_that_no_code_is_is_refused(act, zero_point):
    """The sum might not fit."""
    desc = describe(act_element=act, act_zero_point=True)
    with pytest.raises(qp.InvalidProblem, match="act_zero_point: expected integers in") as caught:
        linear(desc, np.ones((2, 4)), [1, 1], WEIGHT, [1, 1, 1], act_zero_point=[0, zero_point])
    assert str(zero_point) in caught.value.got


@pytest.mark.parametrize(
    "act, zero_point, value, k", [("s8", None, -128, 131_071), ("u8", None, 255, 65_793), ("u8", [255], 0, 65_793)]
)
def test_the_largest_sums(act, zero_point, value, k):
    """Of K as long as the op allows, from operands as large as their elements allow."""
    desc = describe(m=1, n=2, k=k, act_element=act, act_zero_point=zero_point is not None, output_element="f64")
    output = linear(desc, np.full(k, value), [1], np.full((2, k), [[-128], [127]]), [1, 1], act_zero_point=zero_point)
    assert output.tolist() == [[(value - (zero_point or [0])[0]) * w * k for w in (-128, 127)]]


def test_one_scale_for_the_whole_weight():
    output = linear(describe(weight_scope="tensor"), ACT, [0.5, 1], WEIGHT, [4])
    assert output.tolist() == [[2.0 * s for s in SUMS[0]], [4.0 * s for s in SUMS[1]]]


def test_one_scale_per_token_where_m_is_n_is_one():
    """A (1,) scale is the only row's, not a broadcast one."""
    assert linear(describe(m=1, n=1, k=1), [[2]], [0.5], [[3]], [0.25]).tolist() == [[0.75]]


def test_the_order_of_roundings():
    """Scales first, then the sum with them, then the bias, with no fused multiply-add: here each order differs."""
    scale, bias, acc = F32(0.7), F32(0.3), F32(127 * 127)
    output = linear(describe(m=1, n=1, k=1, bias=True), [[127]], [scale], [[127]], [scale], bias=[bias])
    expected = F32(F32(acc * F32(scale * scale)) + bias)
    assert output[0, 0] == expected
    regrouped = F32(F32(acc * scale) * scale) + bias
    fused = F32(float(acc) * float(F32(scale * scale)) + float(bias))
    assert expected not in (regrouped, fused), "these numbers do not tell the orders apart"


def test_bias_and_relu_by_hand():
    output = linear(describe(bias=True, epilogue="relu"), ACT, [1, 1], WEIGHT, [1, 1, 1], bias=[-9, -10, 400])
    assert output.tolist() == [[1, 0, 15], [0, 0, 16657]]


def test_overflow_into_f16_is_infinite():
    output = linear(describe(m=1, n=2, k=1, output_element="f16"), [[1]], [65520.0], [[1], [-1]], [1, 1])
    assert output.tolist() == [[INF, -INF]]


def test_s8_output_by_hand():
    """−127 … 127, ties to even, NaN 0."""
    fields = {"m": 1, "n": 6, "k": 1, "output_element": "s8", "bias": True}
    bias = [1.0, 3.0, 254.9, 1e9, -1e9, NAN]
    for extra, operand in (({"output_scale": 2.0}, None), ({}, [2.0])):
        output = linear(describe(**fields, **extra), [[0]], [1], [[1]] * 6, [1] * 6, bias=bias, output_scale=operand)
        assert output.tolist() == [[0, 2, 127, 127, -127, 0]]


def test_a_poisoned_token_stays_in_its_row():
    """DynamicRangeQuantize gives a row with NaN a NaN scale, and only that row shows it."""
    x = np.array([[1, NAN, 2], [127, -127, 0]], F32)
    q, scale, zero_point = np.empty((2, 3), np.int8), np.empty(2, F32), np.empty(2, np.int32)
    desc = qp.DynamicRangeQuantizeDescriptor(m=2, k=3, mode="asymmetric")
    args = qp.DynamicRangeQuantizeArgs(x=x, q=q, scale=scale, zero_point=zero_point)
    qp.DynamicRangeQuantizePlan.select("cpu", desc).run(None, None, args)
    desc = describe(k=3, n=1, act_zero_point=True)
    output = linear(desc, q, scale, [[1, 0, 0]], [1], act_zero_point=zero_point)
    assert output.view(np.uint32)[0].tolist() == [0x7FFFFFFF]
    assert abs(output[1, 0] - 127) < scale[1]


def test_it_equals_smoothquant_linear_where_all_tokens_share_a_scale(lab):
    fields = {"m": 4, "n": 5, "k": 50, "bias": True, "output_element": "bf16"}
    static = qp.SmoothQuantLinearDescriptor(**fields, act_zero_point=7)
    arrays = lab.operands(static)
    desc = qp.QuantizedLinearDescriptor(**fields, act_zero_point=True)
    per_token = arrays | {"act_scale": np.repeat(arrays["act_scale"], 4), "act_zero_point": np.full(4, 7, np.int32)}
    assert lab.run(static, arrays) == lab.run(desc, per_token)


# ---- descriptor


def test_defaults():
    desc = describe()
    assert (desc.act_element, desc.output_element, desc.weight_scope) == (qp.S8, qp.F32, qp.Scope.channel(0))
    assert (desc.act_zero_point, desc.bias, desc.output_scale) == (False, False, None)


REFUSED = [
    ({"act_element": "bf16"}, "act_element", "s8, u8", "bf16"),
    ({"output_element": "s32"}, "output_element", "f32, f64, f16, bf16, s8", "s32"),
    ({"weight_scope": "group:64"}, "weight_scope", "channel:0, tensor", "group:64:1"),
    ({"weight_scope": 3}, "weight_scope", "tensor, token, channel:AXIS", "3"),
    ({"act_zero_point": 3}, "act_zero_point", "True or False", "3"),
    ({"bias": "no"}, "bias", "True or False", "'no'"),
    ({"epilogue": "gelu"}, "epilogue", "gelu_tanh, gelu_erf", "'gelu'"),
    ({"output_scale": 1.0}, "output_scale", "None for f32 output", "1.0"),
    ({"output_scale": 0.0, "output_element": "s8"}, "output_scale", "above 0", "0.0"),
    ({"output_scale": NAN, "output_element": "s8"}, "output_scale", "a finite f32", "nan"),
    ({"m": -1}, "m", "[0, 2**31)", "-1"),
    ({"n": "3"}, "n", "an integer", "'3'"),
    ({"k": 2**31}, "k", "[0, 2**31)", "2147483648"),
]


@pytest.mark.parametrize("fields, field, expected, got", REFUSED)
def test_the_descriptor_refuses(fields, field, expected, got):
    with pytest.raises(qp.InvalidProblem) as caught:
        describe(**fields)
    assert (caught.value.op, caught.value.field) == ("QuantizedLinearDescriptor", field)
    assert expected in str(caught.value.expected)
    assert str(caught.value.got) in (got, repr(got))


def test_there_is_no_host_act_scale():
    with pytest.raises(TypeError, match="act_scale"):
        describe(act_scale=1.0)


@pytest.mark.parametrize("target", ["cpu", "sm_90a"])
@pytest.mark.parametrize(
    "fields, most",
    [
        ({"k": 131_072}, 131_071),
        ({"k": 65_794, "act_element": "u8"}, 65_793),
        ({"k": 65_794, "act_zero_point": True}, 65_793),
    ],
)
def test_a_k_whose_sum_can_overflow_is_unsupported_by_every_variant(target, fields, most):
    with pytest.raises(qp.Unsupported) as caught:
        qp.QuantizedLinearPlan.select(target, describe(**fields))
    assert caught.value.variants
    expected = f"K={fields['k']} can overflow the S32 accumulator; K ≤ {most} is exact"
    assert {report.reason for report in caught.value.variants} == {expected}
    qp.QuantizedLinearPlan.select("cpu", describe(**fields | {"k": most}))


# ---- operands, shapes and memory


@pytest.mark.parametrize(
    "desc, change, field, words",
    [
        (describe(), {"act_scale": np.ones(1, F32)}, "act_scale", "(M=2,)"),
        (describe(), {"act_scale": np.ones((2, 1), F32)}, "act_scale", "(M=2,)"),
        (describe(), {"act_scale": np.ones(4, F32)[::2]}, "act_scale", "contiguous"),
        (describe(output_element="f64"), {"act_scale": np.ones(2, F32)}, "act_scale", "element f64"),
        (describe(act_zero_point=True), {"act_zero_point": None}, "act_zero_point", "shape (2,)"),
        (describe(), {"act_zero_point": np.ones(2, np.int32)}, "act_zero_point", "no operand"),
        (describe(act_zero_point=True), {"act_zero_point": np.ones(2, np.int8)}, "act_zero_point", "element s32"),
        (describe(bias=True), {"bias": None}, "bias", "shape (3,)"),
        (describe(), {"bias": np.ones(3, F32)}, "bias", "no operand"),
        (describe(output_element="s8"), {"output_scale": None}, "output_scale", "host value: output_scale="),
        (describe(), {"weight_scale": np.ones(2, F32)}, "weight_scale", "(N=3,)"),
        (describe(), {"weight_q": np.ones((4, 3), np.int8)}, "weight_q", "transposed"),
        (describe(), {"weight_q": np.ones((5, 4), np.int8)}, "weight_q", "one row per output feature"),
        (describe(), {"act_q": np.ones((3, 4), np.int8)}, "act_q", "(M=2, K=4)"),
        (describe(), {"output": np.ones((3, 2), F32)}, "output", "(M=2, N=3)"),
    ],
)
def test_operands_are_held_to_the_descriptor(lab, desc, change, field, words):
    arrays = lab.operands(desc) | change
    with pytest.raises(qp.InvalidProblem) as caught:
        lab.run(desc, arrays)
    assert (caught.value.op, caught.value.field) == ("quantized_linear", field)
    assert words in str(caught.value)


def test_act_scale_is_not_optional():
    """Scales that were never set are no default."""
    with pytest.raises(TypeError, match="act_scale"):
        qp.QuantizedLinearArgs(
            act_q=np.ones((2, 4), np.int8),
            weight_q=np.ones((3, 4), np.int8),
            weight_scale=np.ones(3, F32),
            output=np.ones((2, 3), F32),
        )


@pytest.mark.parametrize("how", ["strided", "misaligned"])
def test_every_sku_gives_the_same_bits_from_awkward_memory(lab, how):
    """Views at odd addresses, and rows that lie apart; nothing outside the rows is written."""
    for desc in qp.QuantizedLinearPlan.catalogue():
        desc = desc.replace(bias=True, act_zero_point=True)  # noqa: PLW2901 - the same SKU
        arrays = lab.operands(desc)
        awkward = {name: getattr(lab, how)(array) for name, array in arrays.items()}
        assert lab.run(desc, arrays) == lab.run(desc, awkward), desc
        if how == "strided":
            assert lab.gaps(awkward["output"]) == {0xA5}, desc


def test_every_sku_computes_a_row_alike_whatever_m(lab):
    for desc in qp.QuantizedLinearPlan.catalogue():
        desc = desc.replace(m=5, act_zero_point=True)  # noqa: PLW2901 - the same SKU with more rows
        arrays = lab.operands(desc)
        lab.run(desc, arrays)
        for i in (0, 4):
            alone, part = lab.row(desc, arrays, i)
            lab.run(alone, part)
            assert part["output"].tobytes() == arrays["output"][i : i + 1].tobytes(), (desc, i)


def test_a_row_is_the_same_in_a_large_batch(lab):
    """Position 0, within a tile, at a tile's edge and in the ragged last one."""
    desc = describe(m=600, n=70, k=1500, act_zero_point=True, epilogue="gelu_erf", bias=True)
    arrays = lab.operands(desc)
    for name in ("act_q", "act_scale", "act_zero_point"):
        arrays[name][[1, 77, 255, 256, 599]] = arrays[name][0]
    lab.run(desc, arrays)
    alone, part = lab.row(desc, arrays, 0)
    lab.run(alone, part)
    for i in (0, 1, 77, 255, 256, 599):
        assert arrays["output"][i].tobytes() == part["output"].tobytes(), i


def test_empty_k_writes_the_bias_or_zeros():
    for output in ("f32", "f64", "f16", "bf16"):
        assert not linear(describe(k=0, output_element=output), [], [1, 2], [], [1, 1, 1]).any()
        biased = linear(describe(k=0, output_element=output, bias=True), [], [1, 2], [], [1, 1, 1], bias=[1, -2, 3])
        assert biased.astype(F32).tolist() == [[1, -2, 3]] * 2
    desc = describe(k=0, act_zero_point=True, bias=True, epilogue="relu")
    output = linear(desc, [], [1, 2], [], [1, 1, 1], bias=[1, -2, 3], act_zero_point=[5, 6])
    assert output.tolist() == [[1, 0, 3]] * 2


@pytest.mark.parametrize("m, n", [(0, 3), (2, 0), (0, 0)])
def test_an_empty_output_launches_nothing(m, n):
    """The memory behind an empty output stays as it was."""
    around = np.full((4, 8), 77, F32)
    args = qp.QuantizedLinearArgs(
        act_q=np.ones((m, 4), np.int8),
        act_scale=np.ones(m, F32),
        weight_q=np.ones((n, 4), np.int8),
        weight_scale=np.ones(n, F32),
        output=around[1 : 1 + m, 2 : 2 + n],
    )
    qp.QuantizedLinearPlan.select("cpu", describe(m=m, n=n)).run(None, None, args)
    assert set(around.ravel().tolist()) == {77}


def test_more_rows_than_a_16_bit_grid(lab):
    desc = describe(m=70_001, n=2, k=3)
    arrays = lab.operands(desc)
    lab.run(desc, arrays)
    exact = arrays["act_q"].astype(int) @ arrays["weight_q"].astype(int).T
    expected = exact.astype(F32) * (arrays["act_scale"][:, None] * arrays["weight_scale"])
    np.testing.assert_array_equal(arrays["output"], expected)


def test_rows_more_than_2_gib_apart():
    """The distance between rows exceeds 31 bits. Of the buffers only a few pages are ever touched."""
    act, out = (np.empty(GB2 + 64, np.uint8) for _ in range(2))
    act_q = np.lib.stride_tricks.as_strided(act[:4].view(np.int8), (2, 4), (GB2, 1))
    output = np.lib.stride_tricks.as_strided(out[:12].view(F32), (2, 3), (GB2, 4))
    act_q[...] = ACT
    args = qp.QuantizedLinearArgs(
        act_q=act_q,
        act_scale=np.ones(2, F32),
        weight_q=np.array(WEIGHT, np.int8),
        weight_scale=np.ones(3, F32),
        output=output,
    )
    qp.QuantizedLinearPlan.select("cpu", describe()).run(None, None, args)
    assert output.tolist() == SUMS


def test_products_of_dimensions_beyond_32_bits_are_checked_without_wrapping():
    """The product m · n is 65536 · 65537, which is 65536 in 32 bits. Nothing is read, so there is no memory."""
    m, n, k = 65536, 65537, 64
    plan = qp.QuantizedLinearPlan.select("cpu", describe(m=m, n=n, k=k))
    end = (1 << 40) + 4 * m * n
    rest = {
        "output": qp.TensorView(1 << 40, (m, n), (n, 1), qp.F32),
        "weight_q": qp.TensorView(1 << 50, (n, k), (k, 1), qp.S8),
        "weight_scale": np.ones(n, F32),
        "act_scale": np.ones(m, F32),
    }
    plan.can_implement(qp.QuantizedLinearArgs(act_q=qp.TensorView(end, (m, k), (k, 1), qp.S8), **rest))
    with pytest.raises(qp.InvalidProblem, match="overlapping"):
        plan.can_implement(qp.QuantizedLinearArgs(act_q=qp.TensorView(end - 1, (m, k), (k, 1), qp.S8), **rest))


# ---- SKUs, selection, guarantees


def test_every_sku_of_the_catalogue_is_selected_under_a_name_of_its_own():
    skus = [qp.QuantizedLinearPlan.select("cpu", desc).sku for desc in qp.QuantizedLinearPlan.catalogue()]
    assert len({sku.name for sku in skus}) == len(skus)
    assert len(set(skus)) == len(skus)


def test_the_catalogue_covers_every_element_and_epilogue():
    seen = {(d.act_element, d.output_element, d.epilogue) for d in qp.QuantizedLinearPlan.catalogue()}
    outputs = (qp.F32, qp.F64, qp.F16, qp.BF16, qp.S8)
    assert seen == set(itertools.product((qp.S8, qp.U8), outputs, qp.EpilogueKind))


def test_guarantees():
    smooth = {qp.EpilogueKind.GELU_ERF, qp.EpilogueKind.GELU_TANH, qp.EpilogueKind.SILU}
    for desc in qp.QuantizedLinearPlan.catalogue():
        sku = qp.QuantizedLinearPlan.select("cpu", desc).sku
        guarantee = sku.precision_guarantee
        assert guarantee.bit_identical_to_reference is (desc.epilogue not in smooth)
        assert guarantee.flags >= {"deterministic", "batch_invariant", "bit_stable_on_same_hardware"}
        assert guarantee.accumulator is qp.S32
        assert sku.op is qp.QuantizeKind.QUANTIZED_LINEAR


def test_no_sku_is_smoothquant_linears():
    """No op borrows another's kind."""
    own = {qp.QuantizedLinearPlan.select("cpu", d).sku.name for d in qp.QuantizedLinearPlan.catalogue()}
    other = {qp.SmoothQuantLinearPlan.select("cpu", d).sku.name for d in qp.SmoothQuantLinearPlan.catalogue()}
    assert not own & other


@pytest.mark.parametrize("target", ["sm_75", "emulated:sm_75"])
def test_where_no_variant_runs_each_says_why(target):
    with pytest.raises(qp.Unsupported) as caught:
        qp.QuantizedLinearPlan.select(target, describe())
    assert caught.value.variants
    assert all(report.reason and not report.supported for report in caught.value.variants)


def test_the_error_bound_holds_for_every_exact_epilogue(lab):
    """Against the real-valued result in exact arithmetic; the bound has the output's shape."""
    for desc in qp.QuantizedLinearPlan.catalogue():
        desc = desc.replace(bias=True, act_zero_point=True)  # noqa: PLW2901 - the same SKU
        arrays = lab.operands(desc)
        lab.run(desc, arrays)
        guarantee = qp.QuantizedLinearPlan.select("cpu", desc).precision_guarantee
        bound = guarantee.error_bound.bound(desc, lab.args(desc, arrays))
        assert bound.shape == (desc.m, desc.n)
        assert bound.dtype == np.float64
        assert np.isfinite(bound).all()
        if not desc.epilogue.exact:
            continue
        shifted = arrays["act_q"].astype(int) - arrays["act_zero_point"][:, None]
        sums = shifted @ arrays["weight_q"].astype(int).T
        for (i, j), limit in np.ndenumerate(bound):
            scale = Fraction(float(arrays["act_scale"][i])) * Fraction(float(arrays["weight_scale"][j]))
            exact = int(sums[i, j]) * scale + Fraction(float(arrays["bias"][j]))
            if desc.epilogue is qp.EpilogueKind.RELU:
                exact = max(exact, Fraction(0))
            if desc.output_element is qp.S8:
                exact = min(max(exact / Fraction(float(arrays["output_scale"][0])), -127), 127)
            assert abs(exact - Fraction(float(arrays["output"][i, j]))) <= Fraction(float(limit)), (desc, i, j)


IDENTITY = qp.QuantizedLinearPlan.select("cpu", describe()).precision_guarantee


@pytest.mark.parametrize(
    "pref, reason",
    [
        (qp.PlanPreference(backend=qp.BackendKind.BESPOKE), "bespoke is required"),
        (qp.PlanPreference(accumulation=qp.Accumulation.PROMOTED), "no choice of accumulation"),
        (qp.PlanPreference(require_bit_identical=True), "does not promise bit_identical_to_reference"),
        (qp.PlanPreference(min_guarantee=IDENTITY), "does not promise bit_identical_to_reference"),
    ],
)
def test_a_preference_that_cannot_be_met_is_an_error(pref, reason):
    with pytest.raises(qp.Unsupported) as caught:
        qp.QuantizedLinearPlan.select("cpu", describe(epilogue="gelu_tanh"), pref)
    assert [reason in r.reason for r in caught.value.variants if r.name == "reference"] == [True]
