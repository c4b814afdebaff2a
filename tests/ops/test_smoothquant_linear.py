"""SmoothQuantLinear on the reference device, through the public API."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

import quantplan as qp

F32 = np.float32
INF, NAN = np.inf, np.nan
GB2 = 1 << 31


def linear(desc, act_q, weight_q, weight_scale, **operands):
    """Run on the CPU and return the output array."""
    output = np.full((desc.m, desc.n), 77, desc.output_element.dtype)
    wide = np.float64 if desc.output_element is qp.F64 else F32
    arrays = {name: np.asarray(value, F32 if name == "output_scale" else wide) for name, value in operands.items()}
    args = qp.SmoothQuantLinearArgs(
        act_q=np.asarray(act_q, desc.act_element.dtype).reshape(desc.m, desc.k),
        weight_q=np.asarray(weight_q, np.int8).reshape(desc.n, desc.k),
        weight_scale=np.asarray(weight_scale, wide),
        output=output,
        **arrays,
    )
    qp.SmoothQuantLinearPlan.select("cpu", desc).run(None, None, args)
    return output


def describe(**fields):
    return qp.SmoothQuantLinearDescriptor(**{"m": 2, "n": 3, "k": 4} | fields)


ACT = [[1, 2, 3, 4], [-1, 0, 5, -128]]
WEIGHT = [[1, 1, 1, 1], [-1, 2, -3, 4], [127, 0, 0, -128]]
SUMS = [[10, 10, 127 - 512], [-124, -526, -127 + 16384]]


# ---- values


def test_by_hand():
    """−128 is an operand like any other, on both sides."""
    output = linear(describe(act_scale=0.5), ACT, WEIGHT, [1, 2, 4])
    assert output.tolist() == [[5, 10, -770], [-62, -526, 32514]]


def test_minus_128_times_minus_128_at_the_largest_k():
    """131071 · 2¹⁴ is the last sum below 2³¹."""
    k = 131_071
    desc = describe(m=1, n=2, k=k, act_scale=1.0, output_element="f64")
    output = linear(desc, np.full(k, -128), np.full((2, k), [[-128], [127]]), [1, 1])
    assert output.tolist() == [[k * 16384, -k * 16256]]


@pytest.mark.parametrize("zero_point, act_q", [(255, 0), (0, 255)])
def test_the_largest_sums_of_u8(zero_point, act_q):
    """65793 · 255 · 128 is the last one within 2³¹."""
    k = 65_793
    desc = describe(m=1, n=2, k=k, act_element="u8", act_zero_point=zero_point, act_scale=1.0, output_element="f64")
    output = linear(desc, np.full(k, act_q), np.full((2, k), [[-128], [127]]), [1, 1])
    assert output.tolist() == [[(act_q - zero_point) * w * k for w in (-128, 127)]]


def test_sums_beyond_f32_are_rounded_once():
    """2²⁴ + 1 lies between two f32: the sum itself is exact, and becomes a float by one rounding."""
    act_q, weight_q = np.zeros(1100, int), np.zeros(1100, int)
    act_q[:1024], weight_q[:1024] = -128, -128  # 2²⁴
    act_q[1024:1027], weight_q[1024:1027] = 1, 1
    output = linear(describe(m=1, n=1, k=1100, act_scale=1.0), act_q, weight_q, [1])
    assert output.tolist() == [[2.0**24 + 4]]
    output = linear(describe(m=1, n=1, k=1100, act_scale=1.0, output_element="f64"), act_q, weight_q, [1])
    assert output.tolist() == [[2.0**24 + 3]]


def test_zero_point_by_hand():
    output = linear(describe(act_scale=1.0, act_zero_point=3), ACT, WEIGHT, [1, 1, 1])
    sums = [[s - 3 * sum(w) for s, w in zip(row, WEIGHT, strict=True)] for row in SUMS]
    assert output.tolist() == sums


def test_u8_by_hand():
    act_q = [[0, 128, 200, 255], [1, 2, 3, 4]]
    output = linear(describe(act_scale=1.0, act_element="u8", act_zero_point=128), act_q, WEIGHT, [1, 1, 1])
    assert output.tolist() == [
        [float(sum((a - 128) * w for a, w in zip(row, weight, strict=True))) for weight in WEIGHT] for row in act_q
    ]


def test_one_scale_for_the_whole_weight():
    output = linear(describe(act_scale=0.5, weight_scope="tensor"), ACT, WEIGHT, [4])
    assert output.tolist() == [[2.0 * s for s in row] for row in SUMS]


def test_the_order_of_roundings():
    """Scales first, then the sum with them, then the bias, with no fused multiply-add: here each order differs."""
    scale, bias, acc = F32(0.7), F32(0.3), F32(127 * 127)
    output = linear(describe(m=1, n=1, k=1, act_scale=0.7, bias=True), [[127]], [[127]], [scale], bias=[bias])
    expected = F32(F32(acc * F32(scale * scale)) + bias)
    assert output[0, 0] == expected
    regrouped = F32(F32(acc * scale) * scale) + bias
    fused = F32(float(acc) * float(F32(scale * scale)) + float(bias))
    assert expected not in (regrouped, fused), "these numbers do not tell the orders apart"


def test_bias_and_relu_by_hand():
    """ReLU of NaN is NaN, and of anything not above zero it is +0."""
    fields = {"act_scale": 1.0, "bias": True, "epilogue": "relu"}
    output = linear(describe(**fields), ACT, WEIGHT, [1, 1, 1], bias=[-9, -10, NAN])
    assert output[:, :2].tolist() == [[1, 0], [0, 0]]
    assert not np.signbit(output[:, :2]).any()
    assert output.view(np.uint32)[:, 2].tolist() == [0x7FFFFFFF] * 2


@pytest.mark.parametrize(
    "epilogue, function",
    [
        ("gelu_erf", lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2))),
        ("gelu_tanh", lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        ("silu", lambda x: x / (1 + math.exp(-x))),
    ],
)
def test_smooth_activations(epilogue, function):
    """Within the SKU's own bound of the function as it is written down."""
    n = 121
    desc = describe(m=1, n=n, k=1, act_scale=1.0, epilogue=epilogue)
    weight_scale = np.full(n, 0.125, F32)
    args = qp.SmoothQuantLinearArgs(
        act_q=np.ones((1, 1), np.int8),
        weight_q=np.arange(-60, 61, dtype=np.int8).reshape(n, 1),
        weight_scale=weight_scale,
        output=np.empty((1, n), F32),
    )
    plan = qp.SmoothQuantLinearPlan.select("cpu", desc)
    plan.run(None, None, args)
    exact = np.array([function(i / 8) for i in range(-60, 61)])
    bound = plan.precision_guarantee.error_bound.bound(desc, args)
    assert np.all(np.abs(args.output.numpy().view(F32) - exact) <= bound)


def test_overflow_into_f16_is_infinite():
    """65519.99 still rounds to the largest finite value, 65520 does not; bf16 and f32 hold it."""
    fields = {"m": 1, "n": 3, "k": 1, "act_scale": 1.0}
    weight_q, scale = [[1], [1], [-1]], [65519.0, 65520.0, 1e5]
    output = linear(describe(output_element="f16", **fields), [[1]], weight_q, scale)
    assert output.tolist() == [[65504, INF, -INF]]
    output = linear(describe(output_element="bf16", **fields), [[1]], weight_q, scale)
    assert np.isfinite(output.astype(F32)).all()


def test_a_result_is_rounded_into_its_output_once():
    output = linear(describe(m=1, n=2, k=1, act_scale=1.0, output_element="f16"), [[1]], [[1], [3]], [1, 1 + 2.0**-11])
    assert output.tolist() == [[1, 3.001953125]]  # 3 + 3·2⁻¹¹ lies between 3 + 2·2⁻¹¹ and 3 + 4·2⁻¹¹


def test_s8_output_by_hand():
    """Requantized codes are −127 … 127; ties go to even, NaN becomes 0."""
    fields = {"m": 1, "n": 7, "k": 1, "act_scale": 1.0, "output_element": "s8", "bias": True}
    bias = [0.0, 1.0, 3.0, 254.9, 1e9, -1e9, NAN]
    for operands in ({"fields": {"output_scale": 2.0}}, {"output_scale": [2.0]}):
        extra = operands.pop("fields", {})
        output = linear(describe(**fields, **extra), [[0]], [[1]] * 7, [1] * 7, bias=bias, **operands)
        assert output.tolist() == [[0, 0, 2, 127, 127, -127, 0]]


def test_f64_output_keeps_the_host_scale_a_double():
    output = linear(describe(m=1, n=1, k=1, act_scale=0.1, output_element="f64"), [[3]], [[1]], [1.0])
    assert output.tolist() == [[3 * 0.1]]
    output = linear(describe(m=1, n=1, k=1, act_scale=0.1), [[3]], [[1]], [1.0])
    assert output.tolist() == [[float(F32(3) * F32(0.1))]]


@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_a_zero_or_negative_scale_is_well_defined(scale):
    output = linear(describe(act_scale=scale, bias=True), ACT, WEIGHT, [1, 1, 1], bias=[1, 2, 3])
    assert output.tolist() == [[s * scale + b for s, b in zip(row, (1, 2, 3), strict=True)] for row in SUMS]


@pytest.mark.parametrize("output", ["f32", "f64", "f16", "bf16"])
def test_a_host_scale_and_a_tensor_give_the_same_bits(lab, output):
    host = describe(m=5, n=7, k=37, output_element=output, act_scale=0.0371)
    arrays = lab.operands(host)
    device = host.replace(act_scale=None)
    scale = {"act_scale": np.array([0.0371], arrays["weight_scale"].dtype)}
    assert lab.run(host, arrays) == lab.run(device, arrays | scale)


def test_a_host_output_scale_and_a_tensor_give_the_same_bits(lab):
    host = describe(m=5, n=7, k=37, act_scale=0.01, output_element="s8", output_scale=0.13)
    arrays = lab.operands(host)
    scale = {"output_scale": np.array([0.13], F32)}
    assert lab.run(host, arrays) == lab.run(host.replace(output_scale=None), arrays | scale)


# ---- descriptor


def test_defaults():
    desc = describe()
    assert (desc.act_element, desc.output_element, desc.weight_scope) == (qp.S8, qp.F32, qp.Scope.channel(0))
    assert (desc.act_scale, desc.act_zero_point, desc.bias, desc.output_scale) == (None, 0, False, None)
    assert desc.epilogue is qp.EpilogueKind.IDENTITY


REFUSED = [
    ({"act_element": "f16"}, "act_element", "s8, u8", "f16"),
    ({"act_element": "s4"}, "act_element", "s8, u8", "s4"),
    ({"output_element": "u8"}, "output_element", "f32, f64, f16, bf16, s8", "u8"),
    ({"weight_scope": "token"}, "weight_scope", "channel:0, tensor", "token"),
    ({"weight_scope": "channel:1"}, "weight_scope", "channel:0, tensor", "channel:1"),
    ({"weight_scope": "group:128"}, "weight_scope", "channel:0, tensor", "group:128:1"),
    ({"weight_scope": "rows"}, "weight_scope", "tensor, token, channel:AXIS", "'rows'"),
    ({"act_scale": NAN}, "act_scale", "a finite f32", "nan"),
    ({"act_scale": -INF}, "act_scale", "a finite f32", "-inf"),
    ({"act_scale": 1e39}, "act_scale", "a finite f32", "1e+39"),
    ({"act_scale": INF, "output_element": "f64"}, "act_scale", "a finite f64", "inf"),
    ({"act_scale": "0.1"}, "act_scale", "a number", "'0.1'"),
    ({"act_zero_point": 128}, "act_zero_point", "an integer in [-128, 127]", "128"),
    ({"act_zero_point": -1, "act_element": "u8"}, "act_zero_point", "an integer in [0, 255]", "-1"),
    ({"act_zero_point": 1.0}, "act_zero_point", "an integer", "1.0"),
    ({"act_zero_point": True}, "act_zero_point", "an integer", "True"),
    ({"bias": np.zeros(3)}, "bias", "True or False", "array([0., 0., 0.])"),
    ({"bias": None}, "bias", "True or False", "None"),
    ({"epilogue": "tanh"}, "epilogue", "identity, relu, gelu_tanh, gelu_erf, silu", "'tanh'"),
    ({"output_scale": 1.0}, "output_scale", "None for f32 output", "1.0"),
    ({"output_scale": 0.0, "output_element": "s8"}, "output_scale", "above 0", "0.0"),
    ({"output_scale": -1.0, "output_element": "s8"}, "output_scale", "above 0", "-1.0"),
    ({"output_scale": NAN, "output_element": "s8"}, "output_scale", "a finite f32", "nan"),
    ({"output_scale": INF, "output_element": "s8"}, "output_scale", "a finite f32", "inf"),
    ({"output_scale": 1e-46, "output_element": "s8"}, "output_scale", "above 0", "1e-46"),
    ({"m": -1}, "m", "[0, 2**31)", "-1"),
    ({"n": 2**31}, "n", "[0, 2**31)", "2147483648"),
    ({"k": 4.0}, "k", "an integer", "4.0"),
]


@pytest.mark.parametrize("fields, field, expected, got", REFUSED)
def test_the_descriptor_refuses(fields, field, expected, got):
    """Among others scales that are NaN, infinite, or not what they seem in their element."""
    with pytest.raises(qp.InvalidProblem) as caught:
        describe(**fields)
    assert (caught.value.op, caught.value.field) == ("SmoothQuantLinearDescriptor", field)
    assert expected in str(caught.value.expected)
    assert str(caught.value.got) == got


@pytest.mark.parametrize("target", ["cpu", "sm_90a"])
@pytest.mark.parametrize(
    "fields, most",
    [
        ({"k": 131_072}, 131_071),
        ({"k": 65_794, "act_element": "u8"}, 65_793),
        ({"k": 65_794, "act_zero_point": -1}, 65_793),
        ({"k": 2**31 - 1}, 131_071),
    ],
)
def test_a_k_whose_sum_can_overflow_is_unsupported_by_every_variant(target, fields, most):
    with pytest.raises(qp.Unsupported) as caught:
        qp.SmoothQuantLinearPlan.select(target, describe(**fields))
    assert caught.value.variants
    expected = f"K={fields['k']} can overflow the S32 accumulator; K ≤ {most} is exact"
    assert {report.reason for report in caught.value.variants} == {expected}
    qp.SmoothQuantLinearPlan.select("cpu", describe(**fields | {"k": most}))


# ---- operands, shapes and memory


@pytest.mark.parametrize(
    "desc, change, field, words",
    [
        (describe(), {"act_scale": None}, "act_scale", "host value: act_scale="),
        (describe(act_scale=1.0), {"act_scale": np.ones(1, F32)}, "act_scale", "no operand"),
        (describe(bias=True), {"bias": None}, "bias", "shape (3,)"),
        (describe(), {"bias": np.ones(3, F32)}, "bias", "no operand"),
        (describe(), {"output_scale": np.ones(1, F32)}, "output_scale", "no operand"),
        (describe(output_element="s8"), {"output_scale": None}, "output_scale", "host value: output_scale="),
        (describe(), {"act_scale": np.ones(2, F32)}, "act_scale", "(scales=1,)"),
        (describe(), {"weight_scale": np.ones(1, F32)}, "weight_scale", "(N=3,)"),
        (describe(weight_scope="tensor"), {"weight_scale": np.ones(3, F32)}, "weight_scale", "(scales=1,)"),
        (describe(), {"weight_scale": np.ones((3, 1), F32)}, "weight_scale", "(N=3,)"),
        (describe(), {"weight_scale": np.ones(3)}, "weight_scale", "element f32"),
        (describe(output_element="f64"), {"weight_scale": np.ones(3, F32)}, "weight_scale", "element f64"),
        (describe(bias=True), {"bias": np.ones(3, np.float16)}, "bias", "element f32"),
        (describe(), {"act_q": np.ones((2, 4), np.uint8)}, "act_q", "element s8"),
        (describe(act_element="u8"), {"act_q": np.ones((2, 4), np.int8)}, "act_q", "element u8"),
        (describe(), {"act_q": np.ones((2, 5), np.int8)}, "act_q", "(M=2, K=4)"),
        (describe(), {"act_q": np.ones((1, 2, 4), np.int8)}, "act_q", "(M=2, K=4)"),
        (describe(), {"weight_q": np.ones((3, 4), np.uint8)}, "weight_q", "element s8"),
        (describe(), {"output": np.ones((2, 4), F32)}, "output", "(M=2, N=3)"),
        (describe(), {"output": np.ones((2, 3), np.float16)}, "output", "element f32"),
        (describe(), {"output": np.ones((2, 6), F32)[:, ::2]}, "output", "contiguous last axis"),
        (describe(), {"output": np.ones((2, 3), F32)[::-1]}, "output", "rows that do not overlap"),
    ],
)
def test_operands_are_held_to_the_descriptor(lab, desc, change, field, words):
    arrays = lab.operands(desc) | change
    with pytest.raises(qp.InvalidProblem) as caught:
        lab.run(desc, arrays)
    assert (caught.value.op, caught.value.field) == ("smoothquant_linear", field)
    assert words in str(caught.value)


@pytest.mark.parametrize("weight", [np.ones((4, 3), np.int8), np.ones((3, 4), np.int8).copy(order="F")])
def test_a_transposed_weight_is_refused_with_a_hint(lab, weight):
    """[K, N], or [N, K] in column-major order: never transposed silently."""
    desc = describe(act_scale=1.0)
    with pytest.raises(qp.InvalidProblem) as caught:
        lab.run(desc, lab.operands(desc) | {"weight_q": weight})
    assert caught.value.field == "weight_q"
    assert "copy" in caught.value.hint


def test_a_square_transposed_weight_is_refused_by_its_strides(lab):
    desc = describe(n=4, act_scale=1.0)
    with pytest.raises(qp.InvalidProblem, match="contiguous last axis"):
        lab.run(desc, lab.operands(desc) | {"weight_q": np.ones((4, 4), np.int8).T})


@pytest.mark.parametrize("how", ["strided", "misaligned"])
def test_every_sku_gives_the_same_bits_from_awkward_memory(lab, how):
    """Views at odd addresses, and rows that lie apart; nothing outside the rows is written."""
    for desc in qp.SmoothQuantLinearPlan.catalogue():
        desc = desc.replace(bias=True)  # noqa: PLW2901 - the same SKU
        arrays = lab.operands(desc)
        awkward = {name: getattr(lab, how)(array) for name, array in arrays.items()}
        assert lab.run(desc, arrays) == lab.run(desc, awkward), desc
        if how == "strided":
            assert lab.gaps(awkward["output"]) == {0xA5}, desc


@pytest.mark.parametrize("act", ["s8", "u8"])
def test_long_strided_operands_equal_contiguous_ones(lab, act):
    """More than one block of K, more than one tile of M."""
    desc = describe(m=300, n=9, k=2100, act_element=act, act_zero_point=5, act_scale=0.01)
    arrays = lab.operands(desc)
    awkward = {name: lab.strided(array) for name, array in arrays.items()}
    assert lab.run(desc, arrays) == lab.run(desc, awkward)
    exact = (arrays["act_q"].astype(np.int64) - 5) @ arrays["weight_q"].astype(np.int64).T
    expected = exact.astype(F32) * (F32(0.01) * arrays["weight_scale"])
    np.testing.assert_array_equal(arrays["output"], expected)


def test_every_sku_computes_a_row_alike_whatever_m(lab):
    for desc in qp.SmoothQuantLinearPlan.catalogue():
        desc = desc.replace(m=5)  # noqa: PLW2901 - the same SKU with more rows
        arrays = lab.operands(desc)
        lab.run(desc, arrays)
        for i in (0, 4):
            alone, part = lab.row(desc, arrays, i)
            lab.run(alone, part)
            assert part["output"].tobytes() == arrays["output"][i : i + 1].tobytes(), (desc, i)


@pytest.mark.parametrize("epilogue", qp.EpilogueKind)
def test_a_row_is_the_same_in_a_large_batch(lab, epilogue):
    """Position 0, within a tile, at a tile's edge and in the ragged last one."""
    desc = describe(m=600, n=70, k=1500, act_scale=0.001, epilogue=epilogue, bias=True)
    arrays = lab.operands(desc)
    arrays["act_q"][[1, 77, 255, 256, 599]] = arrays["act_q"][0]
    lab.run(desc, arrays)
    alone, part = lab.row(desc, arrays, 0)
    lab.run(alone, part)
    for i in (0, 1, 77, 255, 256, 599):
        assert arrays["output"][i].tobytes() == part["output"].tobytes(), i


def test_empty_k_writes_the_bias_or_zeros(lab):
    """Whatever the output held before."""
    for output, act, zero_point in itertools.product(("f32", "f64", "f16", "bf16"), ("s8", "u8"), (0, 3)):
        fields = {"k": 0, "output_element": output, "act_element": act, "act_zero_point": zero_point, "act_scale": 1.0}
        assert linear(describe(**fields), [], [], [1, 1, 1]).astype(F32).tolist() == [[0, 0, 0]] * 2
        biased = linear(describe(bias=True, **fields), [], [], [1, 1, 1], bias=[1, -2, 3])
        assert biased.astype(F32).tolist() == [[1, -2, 3]] * 2
        activated = linear(describe(bias=True, epilogue="relu", **fields), [], [], [1, 1, 1], bias=[1, -2, 3])
        assert activated.astype(F32).tolist() == [[1, 0, 3]] * 2
    desc = describe(k=0, act_scale=1.0, output_element="s8", output_scale=0.5, bias=True)
    assert linear(desc, [], [], [1, 1, 1], bias=[1, -2, 300]).tolist() == [[2, -4, 127]] * 2
    assert set(lab.run(describe(k=0), lab.operands(describe(k=0)))["output"]) == {0}


@pytest.mark.parametrize("m, n", [(0, 3), (2, 0), (0, 0)])
def test_an_empty_output_launches_nothing(m, n):
    """The memory behind an empty output stays as it was."""
    desc = describe(m=m, n=n, act_scale=1.0)
    around = np.full((4, 8), 77, F32)
    args = qp.SmoothQuantLinearArgs(
        act_q=np.ones((m, 4), np.int8),
        weight_q=np.ones((n, 4), np.int8),
        weight_scale=np.ones(n, F32),
        output=around[1 : 1 + m, 2 : 2 + n],
    )
    qp.SmoothQuantLinearPlan.select("cpu", desc).run(None, None, args)
    assert set(around.ravel().tolist()) == {77}


def test_more_rows_than_a_16_bit_grid(lab):
    m = 70_001
    desc = describe(m=m, n=2, k=3, act_scale=1.0)
    arrays = lab.operands(desc)
    lab.run(desc, arrays)
    exact = arrays["act_q"].astype(int) @ arrays["weight_q"].astype(int).T
    np.testing.assert_array_equal(arrays["output"], exact.astype(F32) * arrays["weight_scale"])


def test_rows_more_than_2_gib_apart():
    """The distance between rows exceeds 31 bits. Of the buffers only a few pages are ever touched."""
    buffers = [np.empty(GB2 + 64, np.uint8) for _ in range(3)]
    act_q, weight_q = (np.lib.stride_tricks.as_strided(b[:4].view(np.int8), (2, 4), (GB2, 1)) for b in buffers[:2])
    output = np.lib.stride_tricks.as_strided(buffers[2][:8].view(F32), (2, 2), (GB2, 4))
    act_q[...], weight_q[...] = ACT, WEIGHT[:2]
    desc = describe(n=2, act_scale=1.0)
    args = qp.SmoothQuantLinearArgs(act_q=act_q, weight_q=weight_q, weight_scale=np.ones(2, F32), output=output)
    qp.SmoothQuantLinearPlan.select("cpu", desc).run(None, None, args)
    assert output.tolist() == [row[:2] for row in SUMS]


def test_products_of_dimensions_beyond_32_bits_are_checked_without_wrapping():
    """The product m · n is 65536 · 65537, which is 65536 in 32 bits. Nothing is read, so there is no memory."""
    m, n, k = 65536, 65537, 64
    plan = qp.SmoothQuantLinearPlan.select("cpu", describe(m=m, n=n, k=k, act_scale=1.0))
    output = qp.TensorView(1 << 40, (m, n), (n, 1), qp.F32)
    end = (1 << 40) + 4 * m * n
    rest = {"output": output, "weight_scale": np.ones(n, F32)}
    weight_q = qp.TensorView(1 << 50, (n, k), (k, 1), qp.S8)
    act_q = qp.TensorView(end, (m, k), (k, 1), qp.S8)
    plan.can_implement(qp.SmoothQuantLinearArgs(act_q=act_q, weight_q=weight_q, **rest))
    act_q = qp.TensorView(end - 1, (m, k), (k, 1), qp.S8)
    with pytest.raises(qp.InvalidProblem, match="overlapping") as caught:
        plan.can_implement(qp.SmoothQuantLinearArgs(act_q=act_q, weight_q=weight_q, **rest))
    assert caught.value.field == "output"


# ---- SKUs, selection, guarantees


def test_every_sku_of_the_catalogue_is_selected_under_a_name_of_its_own():
    skus = [qp.SmoothQuantLinearPlan.select("cpu", desc).sku for desc in qp.SmoothQuantLinearPlan.catalogue()]
    assert len({sku.name for sku in skus}) == len(skus)
    assert len(set(skus)) == len(skus)


def test_the_catalogue_covers_every_element_and_epilogue():
    seen = {(d.act_element, d.output_element, d.epilogue) for d in qp.SmoothQuantLinearPlan.catalogue()}
    outputs = (qp.F32, qp.F64, qp.F16, qp.BF16, qp.S8)
    assert seen == set(itertools.product((qp.S8, qp.U8), outputs, qp.EpilogueKind))


def test_guarantees():
    """Exact sums: only a transcendental activation costs bit identity. The accumulator is what it really is."""
    smooth = {qp.EpilogueKind.GELU_ERF, qp.EpilogueKind.GELU_TANH, qp.EpilogueKind.SILU}
    for desc in qp.SmoothQuantLinearPlan.catalogue():
        plan = qp.SmoothQuantLinearPlan.select("cpu", desc)
        guarantee = plan.precision_guarantee
        assert guarantee.bit_identical_to_reference is (desc.epilogue not in smooth)
        assert guarantee.flags >= {"deterministic", "batch_invariant", "bit_stable_on_same_hardware"}
        assert guarantee.accumulator is qp.S32
        assert guarantee.math_precision is qp.MathPrecision.INT8
        assert (plan.sku.category, plan.sku.op) == (qp.OpCategory.GEMM, qp.QuantizeKind.SMOOTHQUANT_LINEAR)
        assert (plan.sku.element, plan.sku.epilogue) == (desc.act_element, desc.epilogue)
        assert plan.workspace_size == 0


def test_scales_bias_and_shape_select_no_other_kernel():
    """Layers share kernels: what is a run-time argument is not in the SKU."""
    sku = qp.SmoothQuantLinearPlan.select("cpu", describe()).sku
    for fields in ({"act_scale": 0.5}, {"m": 9, "n": 8, "k": 7}, {"bias": True}, {"weight_scope": "tensor"}):
        assert qp.SmoothQuantLinearPlan.select("cpu", describe(**fields)).sku == sku


@pytest.mark.parametrize("target", ["sm_75", "emulated:sm_75"])
def test_where_no_variant_runs_each_says_why(target):
    with pytest.raises(qp.Unsupported) as caught:
        qp.SmoothQuantLinearPlan.select(target, describe())
    assert caught.value.variants
    assert all(report.reason and not report.supported for report in caught.value.variants)


def test_the_error_bound_holds_for_every_exact_epilogue(lab):
    """Against the real-valued result in exact arithmetic; the bound has the output's shape."""
    for desc in qp.SmoothQuantLinearPlan.catalogue():
        desc = desc.replace(bias=True, act_zero_point=3)  # noqa: PLW2901 - the same SKU
        arrays = lab.operands(desc)
        lab.run(desc, arrays)
        guarantee = qp.SmoothQuantLinearPlan.select("cpu", desc).precision_guarantee
        bound = guarantee.error_bound.bound(desc, lab.args(desc, arrays))
        assert bound.shape == (desc.m, desc.n)
        assert bound.dtype == np.float64
        assert np.isfinite(bound).all()
        if not desc.epilogue.exact:
            continue
        sums = (arrays["act_q"].astype(int) - 3) @ arrays["weight_q"].astype(int).T
        for (i, j), limit in np.ndenumerate(bound):
            scale = Fraction(float(arrays["act_scale"][0])) * Fraction(float(arrays["weight_scale"][j]))
            exact = int(sums[i, j]) * scale + Fraction(float(arrays["bias"][j]))
            if desc.epilogue is qp.EpilogueKind.RELU:
                exact = max(exact, Fraction(0))
            if desc.output_element is qp.S8:
                exact = min(max(exact / Fraction(float(arrays["output_scale"][0])), -127), 127)
            assert abs(exact - Fraction(float(arrays["output"][i, j]))) <= Fraction(float(limit)), (desc, i, j)


IDENTITY = qp.SmoothQuantLinearPlan.select("cpu", describe()).precision_guarantee


@pytest.mark.parametrize(
    "pref, reason",
    [
        (qp.PlanPreference(backend=qp.BackendKind.BESPOKE), "bespoke is required"),
        (qp.PlanPreference(accumulation=qp.Accumulation.FAST), "no choice of accumulation"),
        (qp.PlanPreference(require_bit_identical=True), "does not promise bit_identical_to_reference"),
        (qp.PlanPreference(min_guarantee=IDENTITY), "does not promise bit_identical_to_reference"),
    ],
)
def test_a_preference_that_cannot_be_met_is_an_error(pref, reason):
    with pytest.raises(qp.Unsupported) as caught:
        qp.SmoothQuantLinearPlan.select("cpu", describe(epilogue="silu"), pref)
    assert [reason in r.reason for r in caught.value.variants if r.name == "reference"] == [True]
