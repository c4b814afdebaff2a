"""Fp8Gemm on the reference device, through the public API."""

import itertools
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

import quantplan as qp
from quantplan.formats.fp8 import from_fp8, to_fp8

F16, F32 = np.float16, np.float32
E4M3, E5M2, E8M0 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu
INF, NAN = np.inf, np.nan
TENSOR, TOKEN_CHANNEL, BLOCK, MX = qp.Fp8Scaling
ALL_OF_K = (TENSOR, TOKEN_CHANNEL)
FAST = qp.PlanPreference(accumulation=qp.Accumulation.FAST)
PROMOTED = qp.PlanPreference(accumulation=qp.Accumulation.PROMOTED)


def describe(**fields):
    return qp.Fp8GemmDescriptor(**{"m": 2, "n": 3, "k": 4} | fields)


def gemm(desc, act_q, weight_q, act_scale=None, weight_scale=None, *, bias=None, output_scale=None, pref=None):
    """Run on the CPU and return the output array."""
    output = np.full((desc.m, desc.n), 77, desc.output_element.dtype)
    scale = E8M0 if desc.scaling is MX else F32

    def array(values, dtype):
        return None if values is None else np.asarray(values, dtype)

    args = qp.Fp8GemmArgs(
        act_q=np.asarray(act_q, F32).astype(desc.act_element.dtype).reshape(desc.m, desc.k),
        weight_q=np.asarray(weight_q, F32).astype(desc.weight_element.dtype).reshape(desc.n, desc.k),
        output=output,
        act_scale=array(act_scale, scale),
        weight_scale=array(weight_scale, scale),
        bias=array(bias, F32),
        output_scale=array(output_scale, F32),
    )
    qp.Fp8GemmPlan.select("cpu", desc, pref).run(None, None, args)
    return output


def terms(values, k):
    """Return a row of k zeros but for {column: value}."""
    row = np.zeros(k)
    for column, value in values.items():
        row[column] = value
    return row


def fractions(array):
    return np.vectorize(Fraction, otypes=[object])(np.asarray(array).astype(np.float64))


def exact(desc, arrays):
    """Return the real-valued result of an exact epilogue as fractions, from the definition and nothing else."""
    a, w = fractions(arrays["act_q"]), fractions(arrays["weight_q"])
    depth = {BLOCK: 128, MX: 32}.get(desc.scaling, desc.k)
    result = np.zeros((desc.m, desc.n), object)
    act_scale, weight_scale = (
        np.array([Fraction(getattr(desc, name))], object) if name not in arrays else fractions(arrays[name])
        for name in ("act_scale", "weight_scale")
    )
    for (i, j), b in itertools.product(np.ndindex(desc.m, desc.n), range(-(-desc.k // depth))):
        part = slice(b * depth, (b + 1) * depth)
        scales = {
            TENSOR: lambda i, j, b: act_scale[0] * weight_scale[0],
            TOKEN_CHANNEL: lambda i, j, b: act_scale[i] * weight_scale[j],
            BLOCK: lambda i, j, b: act_scale[i, b] * weight_scale[j // 128, b],
            MX: lambda i, j, b: act_scale[i, b] * weight_scale[j, b],
        }[desc.scaling]
        result[i, j] += scales(i, j, b) * (a[i, part] @ w[j, part])
    if desc.bias:
        result = result + fractions(arrays["bias"])
    if desc.epilogue is qp.EpilogueKind.RELU:
        result = np.maximum(result, Fraction(0))
    if desc.output_element.is_fp8:
        largest = Fraction(desc.output_element.largest)
        result = np.clip(result / fractions(arrays["output_scale"]), -largest, largest)
    return result


def skus():
    """Yield descriptor and preference of every SKU."""
    for desc in qp.Fp8GemmPlan.catalogue():
        yield desc, PROMOTED
        if desc.scaling in ALL_OF_K:
            yield desc, FAST


def run(lab, desc, pref, arrays):
    qp.Fp8GemmPlan.select("cpu", desc, pref).run(None, None, lab.args(desc, arrays))
    return arrays["output"].tobytes()


ACT = [[1, 2, 3, 4], [-0.5, 0, 448, -(2.0**-9)]]
WEIGHT = [[1, 1, 1, 1], [-1, 2, -3, 4], [0.25, 0, 0, -448]]
SUMS = [[10, 10, 0.25 - 1792], [447.5 - 2.0**-9, 0.5 - 1344 - 2.0**-7, -0.125 + 0.875]]


# ---- values


def test_by_hand():
    assert gemm(describe(), ACT, WEIGHT).tolist() == SUMS


@pytest.mark.parametrize("act, weight", list(itertools.product(["fp8_e4m3", "fp8_e5m2"], repeat=2)))
def test_every_pairing_of_elements(act, weight):
    """1.5 is in both formats, 1.125 in e4m3 only, and 57344 in e5m2 only."""
    desc = describe(m=1, n=1, k=2, act_element=act, weight_element=weight)
    a, w = (1.125 if element == "fp8_e4m3" else 57344 for element in (act, weight))
    assert gemm(desc, [a, 1.5], [1.5, w]).tolist() == [[1.5 * a + 1.5 * w]]


def test_a_scale_for_each_tensor_as_host_value_or_operand():
    """A scale multiplies: of the four ways to give them, all give the same bits."""
    results = set()
    for act_host, weight_host in itertools.product((True, False), repeat=2):
        desc = describe(act_scale=0.1 if act_host else None, weight_scale=3.0 if weight_host else None)
        result = gemm(desc, ACT, WEIGHT, None if act_host else [0.1], None if weight_host else [3.0])
        results.add(result.tobytes())
    assert results == {(np.array(SUMS, F32) * (F32(0.1) * F32(3))).tobytes()}


def test_a_scale_for_each_token_and_channel():
    output = gemm(describe(scaling="token_channel"), ACT, WEIGHT, [0.5, 4], [1, 2, 8])
    assert output.tolist() == (np.array(SUMS) * [[0.5], [4]] * [1, 2, 8]).tolist()


def test_one_token_and_one_channel_have_scales_of_their_own():
    assert gemm(describe(m=1, n=1, k=1, scaling="token_channel"), [2], [3], [0.5], [0.25]).tolist() == [[0.75]]


def test_blocks_with_ragged_edges():
    """Rows 0 … 127 and 128, 129 of the weight, and columns 0 … 127, 128 … 255 and 256 of both, have their scales."""
    desc = describe(n=130, k=257, scaling="block")
    act_scale = [[1, 2, 4], [8, 16, 32]]
    weight_scale = [[1, 64, 4096], [0.5, 0.25, 0.125]]
    output = gemm(desc, np.ones((2, 257)), np.ones((130, 257)), act_scale, weight_scale)
    for (i, j), value in np.ndenumerate(output):
        assert value == sum(
            length * act_scale[i][b] * weight_scale[j // 128][b] for b, length in enumerate((128, 128, 1))
        )


def test_mx_with_a_ragged_last_block():
    """E8M0 scales are powers of two, 2^(code − 127), and change every 32 of K, in either operand."""
    desc = describe(n=2, k=65, scaling="mx")
    act_scale = [[1, 2, 4], [2.0**-127] * 3]
    weight_scale = [[1, 1, 1], [0.5, 8, 2.0**-4]]
    act, weight = np.ones((2, 65)), np.ones((2, 65))
    output = gemm(desc, act, weight, act_scale, weight_scale)
    assert output[0].tolist() == [32 + 64 + 4, 16 + 512 + 0.25]
    assert output[1].tolist() == [65 * 2.0**-127, (16 + 256 + 2.0**-4) * 2.0**-127]
    scale_nan = np.array(act_scale, E8M0)
    scale_nan.view(np.uint8)[0, 2] = 0xFF
    output = gemm(desc, act, weight, scale_nan, weight_scale)
    assert np.isnan(output[0]).all()
    assert output[1, 0] == 65 * 2.0**-127


def test_the_order_of_roundings():
    """Scales first, then the sum with them, then the bias, with no fused multiply-add: here each order differs."""
    scale, bias, acc = F32(0.7), F32(0.3), F32(448 * 448 + 11 * 11)
    desc = describe(m=1, n=1, k=2, bias=True, act_scale=scale, weight_scale=scale)
    output = gemm(desc, [448, 11], [448, 11], bias=[bias])
    expected = F32(F32(acc * F32(scale * scale)) + bias)
    regrouped = F32(F32(acc * scale) * scale) + bias
    fused = F32(float(acc) * float(F32(scale * scale)) + float(bias))
    assert expected not in (regrouped, fused), "these numbers do not tell the orders apart"
    assert output[0, 0] == expected


def test_sums_within_a_block_are_exact():
    """A huge pair that cancels leaves the smallest product there is."""
    row = terms({0: 448, 64: 2.0**-9, 127: -448}, 128)
    desc = describe(m=1, n=1, k=128, scaling="block")
    assert gemm(desc, row, np.abs(row), [[1]], [[1]]).tolist() == [[2.0**-18]]


def test_blocks_are_added_in_f32_in_k_order():
    """2²⁴ + 1 + 1 is 2²⁴ from left to right, and 2²⁴ + 2 in any other order."""
    desc = describe(m=1, n=1, k=384, scaling="block")
    row = terms({0: 1, 128: 1, 256: 1}, 384)
    assert gemm(desc, row, row, [[2**24, 1, 1]], [[1, 1, 1]]).tolist() == [[2**24]]
    assert gemm(desc, row, row, [[1, 1, 2**24]], [[1, 1, 1]]).tolist() == [[2**24 + 2]]


@pytest.mark.parametrize("scaling", ["tensor", "token_channel"])
def test_fast_keeps_14_bits_of_the_running_sum_and_promoted_all(scaling):
    """2¹⁴ + 1 has 15 bits. FAST is within its own bound, and beyond PROMOTED's."""
    desc = describe(m=1, n=1, k=64, scaling=scaling)
    scales = ([1], [1]) if scaling == "token_channel" else (None, None)
    row = terms({0: 128, 32: 1}, 64)
    results, bounds = {}, {}
    for pref in (PROMOTED, FAST):
        results[pref] = gemm(desc, row, row, *scales, pref=pref)[0, 0]
        act, output = row.astype(E4M3).reshape(1, 64), np.empty((1, 1), F32)
        given = {} if scales[0] is None else {"act_scale": np.ones(1, F32), "weight_scale": np.ones(1, F32)}
        args = qp.Fp8GemmArgs(act_q=act, weight_q=act, output=output, **given)
        guarantee = qp.Fp8GemmPlan.select("cpu", desc, pref).precision_guarantee
        bounds[pref] = guarantee.error_bound.bound(desc, args)[0, 0]
    assert results == {PROMOTED: 2**14 + 1, FAST: 2**14}
    assert bounds[PROMOTED] < 1 <= bounds[FAST]


def test_epilogues():
    """Bias first, then the activation; the smooth ones agree with the math module to f32."""
    x = [-3, -0.5, 0, 0.5, 3]
    functions = {
        "identity": lambda v: v,
        "relu": lambda v: max(v, 0),
        "gelu_tanh": lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
        "gelu_erf": lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))),
        "silu": lambda v: v / (1 + math.exp(-v)),
    }
    assert set(functions) == {kind.value for kind in qp.EpilogueKind}
    for name, function in functions.items():
        desc = describe(m=1, n=5, k=1, bias=True, epilogue=name)
        output = gemm(desc, [2], np.ones(5), bias=np.array(x) - 2)
        for got, v in zip(output[0].tolist(), x, strict=True):
            assert abs(got - function(v)) <= 2 * np.spacing(F32(abs(v))), (name, v)


def test_relu_and_canonical_nan():
    desc = describe(m=1, n=4, k=1, bias=True, epilogue="relu")
    output = gemm(desc, [0], np.ones(4), bias=[-1, 2, -NAN, INF])
    assert output[0, [0, 1, 3]].tolist() == [0, 2, INF]
    assert output.view(np.uint32)[0, 2] == 0x7FFFFFFF


def test_nan_and_infinite_codes_stay_in_their_row():
    """e4m3 has NaN only, e5m2 infinities too."""
    desc = describe(m=3, n=1, k=2, act_element="fp8_e5m2")
    output = gemm(desc, [[NAN, 1], [INF, 1], [1, 1]], [[1, 1]])
    assert output.view(np.uint32)[0, 0] == 0x7FFFFFFF
    assert output[1:, 0].tolist() == [INF, 2]
    assert np.isnan(gemm(desc.replace(m=1), [INF, 1], [[0, 1]])).all()


def test_a_poisoned_token_stays_in_its_row():
    """DynamicRangeQuantize gives a row with NaN a NaN scale, and only that row shows it."""
    x = np.array([[1, NAN, 2], [448, -448, 0]], F32)
    q, scale = np.empty((2, 3), E4M3), np.empty(2, F32)
    desc = qp.DynamicRangeQuantizeDescriptor(m=2, k=3, output_element="fp8_e4m3")
    qp.DynamicRangeQuantizePlan.select("cpu", desc).run(None, None, qp.DynamicRangeQuantizeArgs(x=x, q=q, scale=scale))
    output = gemm(describe(k=3, n=1, scaling="token_channel"), q, [[1, 0, 0]], scale, [1])
    assert output.view(np.uint32)[0].tolist() == [0x7FFFFFFF]
    assert output[1].tolist() == [448]


@pytest.mark.parametrize("host", [True, False])
def test_fp8_output_by_hand(host):
    """One division, RNE, saturation at the largest finite code, NaN 0x7F."""
    for element, largest in (("fp8_e4m3", 448), ("fp8_e5m2", 57344)):
        fields = {"m": 1, "n": 7, "k": 1, "output_element": element, "bias": True}
        bias = [2, 34, 38, 1e9, -1e9, INF, NAN]  # 17 and 19 are ties of e4m3 between 16, 18 and 20
        desc = describe(**fields, output_scale=2.0 if host else None)
        output = gemm(desc, [0], np.zeros(7), bias=bias, output_scale=None if host else [2.0])
        assert output[0, :6].astype(F32).tolist() == [1, 16, 20, largest, -largest, largest]
        assert output.view(np.uint8)[0, 6] == 0x7F


def test_fp8_output_is_divided_not_multiplied_by_a_reciprocal():
    """Of all f32 y just where codes change, those that a reciprocal moves across: there are some for 0.3."""
    scale = F32(0.3)
    y = np.concatenate([np.nextafter(F32(m + 0.5) * scale, F32(s)) for m in range(8, 15) for s in (-INF, INF)], None)
    y = np.concatenate([y, np.arange(8.5, 15, dtype=F32) * scale])
    divided, multiplied = (y / scale).astype(E4M3), (y * (F32(1) / scale)).astype(E4M3)
    assert (divided.view(np.uint8) != multiplied.view(np.uint8)).any(), "these numbers do not tell the two apart"
    desc = describe(m=1, n=y.size, k=1, output_element="fp8_e4m3", output_scale=float(scale), bias=True)
    output = gemm(desc, [0], np.zeros(y.size), bias=y)
    assert output.tobytes() == divided.tobytes()


def test_overflow_into_f16_is_infinite():
    desc = describe(m=1, n=3, k=1, output_element="f16", act_scale=146.25)
    assert gemm(desc, [448], [1, -1, 0.5]).tolist() == [[INF, -INF, 32768]]


# ---- checkpoints, end to end


@pytest.mark.parametrize("scaling", [TENSOR, TOKEN_CHANNEL, BLOCK])
def test_checkpoints_run_end_to_end_within_the_bound(lab, scaling):
    """weight_scale per tensor and per channel, weight_scale_inv per block: all of them multiply."""
    m, n, k = 3, 150, 200
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((n, k)).astype(E4M3)
    shape = {TENSOR: (), TOKEN_CHANNEL: (n, 1), BLOCK: (2, 2)}[scaling]
    name = "weight_scale_inv" if scaling is BLOCK else "weight_scale"
    stored = {"weight": weight, name: rng.uniform(0.01, 0.1, shape).astype(ml_dtypes.bfloat16)}
    layer = from_fp8(**to_fp8(from_fp8(**stored)))
    act = rng.standard_normal((m, k)).astype(E4M3)
    act_shape = {TENSOR: (1,), TOKEN_CHANNEL: (m,), BLOCK: (m, 2)}[scaling]
    act_scale = rng.uniform(0.5, 2, act_shape).astype(F32)
    fields = {"act_scale": None, "weight_scale": None} if scaling is TENSOR else {}
    assert layer.scaling is scaling
    desc = describe(m=m, n=n, k=k, scaling=scaling, **fields)
    output = np.empty((m, n), F32)
    args = qp.Fp8GemmArgs(
        act_q=act, weight_q=layer.weight, output=output, act_scale=act_scale, weight_scale=layer.weight_scale
    )
    plan = qp.Fp8GemmPlan.select("cpu", desc)
    plan.run(None, None, args)
    bound = plan.precision_guarantee.error_bound.bound(desc, args)

    # bf16 scales times FP8 codes are exact in f32, so that `dequantize` is the real weight
    weights, widths = fractions(layer.dequantize()), {BLOCK: 128}.get(desc.scaling, k)
    scale_of = np.broadcast_to(act_scale.reshape(-1, 1) if act_scale.ndim == 1 else act_scale, (m, -(-k // widths)))
    real_act = fractions(act) * fractions(np.repeat(scale_of, widths, axis=1)[:, :k])
    for where, value in np.ndenumerate(real_act @ weights.T):
        assert abs(Fraction(float(output[where])) - value) <= Fraction(float(bound[where]))
    assert bound.max() < np.abs(output).max() / 1000


# ---- descriptor


def test_defaults():
    """Host scales are 1 for tensor scaling, and belong to no other."""
    desc = describe()
    assert (desc.act_element, desc.weight_element, desc.output_element) == (qp.FP8_E4M3, qp.FP8_E4M3, qp.F32)
    assert (desc.scaling, desc.act_scale, desc.weight_scale) == (TENSOR, 1.0, 1.0)
    assert (desc.bias, desc.epilogue, desc.output_scale) == (False, qp.EpilogueKind.IDENTITY, None)
    for scaling in (TOKEN_CHANNEL, BLOCK, MX):
        for other in (describe(scaling=scaling), desc.replace(scaling=scaling)):
            assert (other.act_scale, other.weight_scale) == (None, None)
    assert desc.replace(scaling="block").replace(scaling="tensor").act_scale == 1.0


@pytest.mark.parametrize(
    "fields, field, expected, got",
    [
        ({"act_element": "s8"}, "act_element", "one of fp8_e4m3, fp8_e5m2", "s8"),
        ({"weight_element": "f16"}, "weight_element", "one of fp8_e4m3, fp8_e5m2", "f16"),
        ({"weight_element": "e3m4"}, "weight_element", "fp8_e4m3, fp8_e5m2", "'e3m4'"),
        ({"output_element": "f64"}, "output_element", "one of f32, f16, bf16, fp8_e4m3, fp8_e5m2", "f64"),
        ({"scaling": "row"}, "scaling", "one of tensor, token_channel, block, mx", "'row'"),
        ({"act_scale": 1.0, "scaling": "token_channel"}, "act_scale", "None for token_channel scaling", "1.0"),
        ({"weight_scale": 1.0, "scaling": "block"}, "weight_scale", "None for block scaling", "1.0"),
        ({"weight_scale": 2.0, "scaling": "mx"}, "weight_scale", "None for mx scaling", "2.0"),
        ({"act_scale": 0.0}, "act_scale", "a finite f32 above 0", "0.0"),
        ({"act_scale": -1.0}, "act_scale", "a finite f32 above 0", "-1.0"),
        ({"act_scale": NAN}, "act_scale", "a finite f32 above 0", "nan"),
        ({"weight_scale": INF}, "weight_scale", "a finite f32 above 0", "inf"),
        ({"weight_scale": 1e39}, "weight_scale", "a finite f32 above 0", "1e+39"),
        ({"weight_scale": 1e-46}, "weight_scale", "a finite f32 above 0", "1e-46"),
        ({"weight_scale": "1"}, "weight_scale", "a number", "'1'"),
        ({"output_scale": 1.0}, "output_scale", "None for f32 output", "1.0"),
        ({"output_scale": 0.0, "output_element": "fp8_e5m2"}, "output_scale", "a finite f32 above 0", "0.0"),
        ({"output_scale": NAN, "output_element": "fp8_e4m3"}, "output_scale", "a finite f32 above 0", "nan"),
        ({"bias": 1}, "bias", "True or False", "1"),
        ({"epilogue": "gelu"}, "epilogue", "gelu_tanh, gelu_erf", "'gelu'"),
        ({"m": -1}, "m", "[0, 2**31)", "-1"),
        ({"n": 1.0}, "n", "an integer", "1.0"),
        ({"k": 2**31}, "k", "[0, 2**31)", "2147483648"),
    ],
)
def test_the_descriptor_refuses(fields, field, expected, got):
    with pytest.raises(qp.InvalidProblem) as caught:
        describe(**fields)
    assert (caught.value.op, caught.value.field) == ("Fp8GemmDescriptor", field)
    assert expected in str(caught.value.expected)
    assert str(caught.value.got) == got


def test_descriptors_travel():
    for desc in (describe(), describe(act_scale=None), describe(scaling="mx"), describe(scaling="block", k=7)):
        assert qp.Record.from_dict(desc.to_dict()) == desc
        assert hash(desc.replace()) == hash(desc)


# ---- operands, shapes and memory


@pytest.mark.parametrize(
    "scaling, act, weight",
    [
        ("tensor", (1,), (1,)),
        ("token_channel", (5,), (129,)),
        ("block", (5, 3), (2, 3)),
        ("mx", (5, 9), (129, 9)),
    ],
)
def test_the_shapes_of_scales(scaling, act, weight):
    """Ragged last blocks have scales too."""
    desc = describe(m=5, n=129, k=257, scaling=scaling, act_scale=None, weight_scale=None)
    stated = {operand.name: operand for operand in qp.Fp8GemmPlan.operands(desc)}
    element = qp.E8M0 if scaling == "mx" else qp.F32
    assert (stated["act_scale"].shape, stated["act_scale"].element) == (act, element)
    assert (stated["weight_scale"].shape, stated["weight_scale"].element) == (weight, element)
    assert {name: o.shape for name, o in stated.items() if not name.endswith("scale")} == {
        "act_q": (5, 257),
        "weight_q": (129, 257),
        "output": (5, 129),
    }


BY_OPERAND = describe(act_scale=None, weight_scale=None)
TOKENS = describe(scaling="token_channel")
BLOCKS = describe(n=129, k=129, scaling="block")
MICRO = describe(k=33, scaling="mx")
TO_FP8 = describe(output_element="fp8_e4m3")


@pytest.mark.parametrize(
    "desc, change, field, words",
    [
        (describe(), {"act_scale": np.ones(1, F32)}, "act_scale", "no operand"),
        (describe(), {"weight_scale": np.ones(1, F32)}, "weight_scale", "no operand"),
        (BY_OPERAND, {"act_scale": None}, "act_scale", "shape (1,)"),
        (BY_OPERAND, {"weight_scale": None}, "weight_scale", "shape (1,)"),
        (BY_OPERAND, {"act_scale": np.ones((1, 1), F32)}, "act_scale", "(scales=1,)"),
        (BY_OPERAND, {"act_scale": np.ones(1)}, "act_scale", "element f32"),
        (TOKENS, {"act_scale": None}, "act_scale", "shape (2,)"),
        (TOKENS, {"act_scale": np.ones(1, F32)}, "act_scale", "(M=2,)"),
        (TOKENS, {"weight_scale": np.ones((3, 1), F32)}, "weight_scale", "(N=3,)"),
        (TOKENS, {"weight_scale": np.ones(6, F32)[::2]}, "weight_scale", "contiguous"),
        (BLOCKS, {"act_scale": np.ones((2, 1), F32)}, "act_scale", "(M=2, ⌈K/128⌉=2)"),
        (BLOCKS, {"weight_scale": np.ones((1, 1), F32)}, "weight_scale", "(⌈N/128⌉=2, ⌈K/128⌉=2)"),
        (MICRO, {"act_scale": np.ones((2, 1), E8M0)}, "act_scale", "(M=2, ⌈K/32⌉=2)"),
        (MICRO, {"weight_scale": np.ones((2, 3), E8M0)}, "weight_scale", "transposed"),
        (MICRO, {"weight_scale": np.ones((3, 2), F32)}, "weight_scale", "element e8m0"),
        (MICRO, {"weight_scale": np.ones((3, 2), np.uint8)}, "weight_scale", "quantplan.typed(array, quantplan.E8M0)"),
        (describe(bias=True), {"bias": None}, "bias", "shape (3,)"),
        (describe(), {"bias": np.ones(3, F32)}, "bias", "no operand"),
        (describe(bias=True), {"bias": np.ones(3, F16)}, "bias", "element f32"),
        (TO_FP8, {"output_scale": None}, "output_scale", "host value: output_scale="),
        (TO_FP8.replace(output_scale=1.0), {"output_scale": np.ones(1, F32)}, "output_scale", "no operand"),
        (describe(), {"output_scale": np.ones(1, F32)}, "output_scale", "no operand"),
        (describe(), {"act_q": np.ones((2, 4), E5M2)}, "act_q", "element fp8_e4m3"),
        (describe(), {"act_q": np.ones((2, 4), np.uint8)}, "act_q", "quantplan.typed(array, quantplan.FP8_E4M3)"),
        (describe(), {"act_q": np.ones((3, 4), E4M3)}, "act_q", "(M=2, K=4)"),
        (describe(), {"weight_q": np.ones((4, 3), E4M3)}, "weight_q", "transposed"),
        (describe(), {"weight_q": np.ones((5, 4), E4M3)}, "weight_q", "one row per output feature"),
        (describe(), {"weight_q": np.ones((4, 3), E4M3).T}, "weight_q", "contiguous"),
        (describe(), {"output": np.ones((3, 2), F32)}, "output", "(M=2, N=3)"),
        (describe(), {"output": np.ones((2, 3), F16)}, "output", "element f32"),
    ],
)
def test_operands_are_held_to_the_descriptor(lab, desc, change, field, words):
    with pytest.raises(qp.InvalidProblem) as caught:
        lab.run(desc, lab.operands(desc) | change)
    assert (caught.value.op, caught.value.field) == ("fp8_gemm", field)
    assert words in str(caught.value)


@pytest.mark.parametrize("desc", [describe(), TO_FP8.replace(output_scale=1.0)])
def test_the_hint_about_a_host_value_holds(lab, desc):
    field = "act_scale" if desc.output_scale is None else "output_scale"
    with pytest.raises(qp.InvalidProblem) as caught:
        lab.run(desc, lab.operands(desc) | {field: np.ones(1, F32)})
    assert caught.value.hint == f"drop it, or give the descriptor {field}=None: it holds 1.0"
    desc = desc.replace(**{field: None})
    lab.run(desc, lab.operands(desc) | {field: np.ones(1, F32)})


def test_fp8_travels_in_bytes_too(lab):
    """CuPy has no FP8 arrays: uint8 with a name gives the same bits."""
    desc = describe(k=33, scaling="mx", act_element="fp8_e5m2", output_element="fp8_e4m3", output_scale=0.5)
    arrays = lab.operands(desc)
    expected = lab.run(desc, arrays)["output"]
    elements = {operand.name: operand.element for operand in qp.Fp8GemmPlan.operands(desc)}
    assert {qp.FP8_E5M2, qp.FP8_E4M3, qp.E8M0} == set(elements.values())
    output = np.zeros((2, 3), np.uint8)
    carriers = {name: array.view(np.uint8) for name, array in arrays.items()} | {"output": output}
    args = qp.Fp8GemmArgs(**{name: qp.typed(array, elements[name]) for name, array in carriers.items()})
    qp.Fp8GemmPlan.select("cpu", desc).run(None, None, args)
    assert output.tobytes() == expected


@pytest.mark.untraced
@pytest.mark.parametrize("how", ["strided", "misaligned"])
def test_every_sku_gives_the_same_bits_from_awkward_memory(lab, how):
    """Views at odd addresses, and rows that lie apart; nothing outside the rows is written."""
    for desc, pref in skus():
        desc = desc.replace(bias=True, k=70)  # noqa: PLW2901 - the same SKU
        if desc.scaling is TENSOR:
            desc = desc.replace(act_scale=None, weight_scale=None)  # noqa: PLW2901 - the same SKU
        arrays = lab.operands(desc)
        awkward = {name: getattr(lab, how)(array) for name, array in arrays.items()}
        before = {name: array.tobytes() for name, array in awkward.items() if name != "output"}
        assert run(lab, desc, pref, arrays) == run(lab, desc, pref, awkward), desc
        assert before == {name: awkward[name].tobytes() for name in before}, "an operand was written"
        if how == "strided":
            assert lab.gaps(awkward["output"]) == {0xA5}, desc


@pytest.mark.untraced
def test_every_sku_computes_a_row_alike_whatever_m(lab):
    for desc, pref in skus():
        desc = desc.replace(m=5)  # noqa: PLW2901 - the same SKU with more rows
        arrays = lab.operands(desc)
        run(lab, desc, pref, arrays)
        for i in (0, 4):
            alone, part = lab.row(desc, arrays, i)
            run(lab, alone, pref, part)
            assert part["output"].tobytes() == arrays["output"][i : i + 1].tobytes(), (desc, i)


@pytest.mark.parametrize("scaling", ["token_channel", "block"])
@pytest.mark.parametrize("element", ["fp8_e4m3", "fp8_e5m2"])
def test_a_row_is_the_same_in_a_large_batch(lab, element, scaling):
    """Wherever it lies, and beside rows of other magnitudes, NaN and infinities."""
    desc = describe(m=300, n=70, k=520, act_element=element, weight_element=element, scaling=scaling)
    arrays = lab.operands(desc)
    wide = arrays["act_q"].astype(F32) * np.exp2(lab.rng.integers(-8, 9, (300, 520)))
    arrays["act_q"] = wide.astype(arrays["act_q"].dtype)
    places = [1, 77, 255, 256, 299]
    for name in ("act_q", "act_scale"):
        arrays[name][[3, 4]] = NAN if name == "act_scale" else INF
        arrays[name][places] = arrays[name][0]
    lab.run(desc, arrays)
    assert np.isnan(arrays["output"][3]).all()
    alone, part = lab.row(desc, arrays, 0)
    lab.run(alone, part)
    for i in (0, *places):
        assert arrays["output"][i].tobytes() == part["output"].tobytes(), i


@pytest.mark.parametrize("scaling", qp.Fp8Scaling)
def test_empty_k_writes_the_bias_or_zeros(lab, scaling):
    for pref, output in itertools.product((PROMOTED, FAST), ("f32", "f16", "bf16", "fp8_e4m3")):
        if pref is FAST and scaling not in ALL_OF_K:
            continue
        desc = describe(k=0, scaling=scaling, output_element=output)
        desc = desc.replace(output_scale=0.5) if desc.output_element.is_fp8 else desc
        arrays = lab.operands(desc)
        run(lab, desc, pref, arrays)
        assert not arrays["output"].any()
        desc = desc.replace(bias=True, epilogue="relu")
        arrays = lab.operands(desc) | {"bias": np.array([1, -2, 3], F32)}
        run(lab, desc, pref, arrays)
        factor = 2 if desc.output_element.is_fp8 else 1
        assert arrays["output"].astype(F32).tolist() == [[1 * factor, 0, 3 * factor]] * 2


@pytest.mark.parametrize("scaling", qp.Fp8Scaling)
@pytest.mark.parametrize("m, n", [(0, 3), (2, 0), (0, 0)])
def test_an_empty_output_launches_nothing(lab, m, n, scaling):
    """The memory behind an empty output stays as it was."""
    desc = describe(m=m, n=n, scaling=scaling)
    around = np.full((4, 8), 77, F32)
    lab.run(desc, lab.operands(desc) | {"output": around[1 : 1 + m, 2 : 2 + n]})
    assert set(around.ravel().tolist()) == {77}


# ---- SKUs, selection, guarantees


def test_every_sku_has_a_name_of_its_own():
    every = [qp.Fp8GemmPlan.select("cpu", desc, pref).sku for desc, pref in skus()]
    assert len({sku.name for sku in every}) == len(set(every)) == len(every)


def test_the_catalogue_covers_every_kernel():
    fp8, outputs = (qp.FP8_E4M3, qp.FP8_E5M2), (qp.F32, qp.F16, qp.BF16, qp.FP8_E4M3, qp.FP8_E5M2)
    catalogue = list(qp.Fp8GemmPlan.catalogue())
    seen = {(d.act_element, d.weight_element, d.output_element, d.scaling, d.epilogue) for d in catalogue}
    assert seen == set(itertools.product(fp8, fp8, outputs, qp.Fp8Scaling, qp.EpilogueKind))
    assert len(seen) == len(catalogue)


def test_what_skus_say():
    for desc, pref in skus():
        sku = qp.Fp8GemmPlan.select("cpu", desc, pref).sku
        assert (sku.category, sku.op) == (qp.OpCategory.GEMM, qp.QuantizeKind.FP8_GEMM)
        assert (sku.element, sku.aux_element, sku.output_element) == (
            desc.act_element,
            desc.weight_element,
            desc.output_element,
        )
        assert (sku.layout, sku.epilogue) == (qp.LayoutSku.ROW_MAJOR, desc.epilogue)
        guarantee = sku.precision_guarantee
        assert (guarantee.accumulator, guarantee.math_precision) == (qp.F32, qp.MathPrecision.FP8)
        assert guarantee.flags >= {"deterministic", "batch_invariant", "bit_stable_on_same_hardware"}
        assert ("fast" in sku.name) is (pref is FAST)


def test_promoted_is_the_default_and_fast_another_kernel():
    """They share neither name nor reduction nor bound."""
    for scaling in ALL_OF_K:
        desc = describe(scaling=scaling)
        default, promoted, fast = (qp.Fp8GemmPlan.select("cpu", desc, pref).sku for pref in (None, PROMOTED, FAST))
        assert default == promoted
        assert fast.name != promoted.name
        one, other = promoted.precision_guarantee, fast.precision_guarantee
        assert one.reduction_id != other.reduction_id
        assert one.error_bound != other.error_bound
        assert one.error_bound.formula != other.error_bound.formula


@pytest.mark.parametrize("target", ["cpu", "sm_90a"])
@pytest.mark.parametrize("scaling", ["block", "mx"])
def test_scales_that_change_along_k_are_always_promoted(target, scaling):
    for ask in (qp.Fp8GemmPlan.select, qp.Fp8GemmPlan.why_not):
        with pytest.raises(qp.InvalidProblem) as caught:
            ask(target, describe(scaling=scaling), FAST)
        assert (caught.value.op, caught.value.field) == ("fp8_gemm", "accumulation")
        assert (caught.value.expected, caught.value.got) == (f"promoted for {scaling} scaling", "fast")
    assert qp.Fp8GemmPlan.select("cpu", describe(scaling=scaling), PROMOTED)


@pytest.mark.parametrize("target", ["sm_75", "emulated:sm_75"])
def test_where_no_variant_runs_each_says_why(target):
    elsewhere = f"runs on cpu only, and the target is {target}"
    for scaling, fast in (("tensor", elsewhere), ("mx", "mx scales are always promoted")):
        with pytest.raises(qp.Unsupported) as caught:
            qp.Fp8GemmPlan.select(target, describe(k=16, scaling=scaling))
        reasons = {report.name: report.reason for report in caught.value.variants}
        assert all(reasons.values())
        assert (reasons.pop("reference"), reasons.pop("reference_fast")) == (elsewhere, fast)
        for name, reason in reasons.items():
            assert reason.startswith(("needs sm_", "mx scales")), name


def reports(target, *problem):
    return {report.name: report for report in qp.Fp8GemmPlan.why_not(target, *problem)}


def test_a_variant_says_that_the_other_accumulation_is_required():
    found = reports("cpu", describe(), FAST)
    fast, promoted = found["reference_fast"], found["reference"]
    assert (fast.supported, promoted.supported) == (True, False)
    assert promoted.reason == "has promoted accumulation, and fast is required"


@pytest.mark.parametrize(
    "pref, reason",
    [
        (qp.PlanPreference(backend=qp.BackendKind.BESPOKE), "bespoke is required"),
        (qp.PlanPreference(require_bit_identical=True), "does not promise bit_identical_to_reference"),
    ],
)
def test_a_preference_that_cannot_be_met_is_an_error(pref, reason):
    with pytest.raises(qp.Unsupported):
        qp.Fp8GemmPlan.select("cpu", describe(), pref)
    found = reports("cpu", describe(), pref)
    assert [reason in found[name].reason for name in ("reference", "reference_fast")] == [True, True]


@pytest.mark.untraced
def test_the_error_bound_holds_for_every_exact_epilogue(lab):
    """Against the real-valued result in exact arithmetic, of PROMOTED and FAST; the bound has the output's shape."""
    for desc, pref in skus():
        desc = desc.replace(bias=True)  # noqa: PLW2901 - the same SKU
        if desc.scaling is TENSOR and desc.output_element is qp.F32:
            desc = desc.replace(act_scale=0.1, weight_scale=None)  # noqa: PLW2901 - the same SKU
        arrays = lab.operands(desc)
        run(lab, desc, pref, arrays)
        guarantee = qp.Fp8GemmPlan.select("cpu", desc, pref).precision_guarantee
        bound = guarantee.error_bound.bound(desc, lab.args(desc, arrays))
        assert bound.shape == (desc.m, desc.n)
        assert bound.dtype == np.float64
        assert np.isfinite(bound).all()
        if not desc.epilogue.exact:
            continue
        for where, value in np.ndenumerate(exact(desc, arrays)):
            off = abs(Fraction(float(arrays["output"][where])) - value)
            assert off <= Fraction(float(bound[where])), (desc, pref, where)


# ---- in a serving loop


@pytest.mark.parametrize("scaling", qp.Fp8Scaling)
def test_a_family_binds_the_weight_once_and_gives_each_row_its_bits(lab, scaling):
    """What M decides the shape of is passed at each step."""
    fields = {"act_scale": None, "weight_scale": None} if scaling is TENSOR else {}
    desc = describe(m=9, n=40, k=150, scaling=scaling, bias=True, **fields)
    arrays = lab.operands(desc)
    whole = np.frombuffer(lab.run(desc, arrays)["output"], F32).reshape(9, 40)
    family = qp.PlanFamily.select("cpu", desc, ms=(1, 4, 16))
    assert family.batch_invariant
    layer = family.bind(**{name: arrays[name] for name in ("weight_q", "weight_scale", "bias")})
    for m in (0, 1, 3, 4, 9):
        output = np.full((m, 40), 77, F32)
        act_scale = arrays["act_scale"] if scaling is TENSOR else arrays["act_scale"][:m]
        layer.run(None, None, act_q=arrays["act_q"][:m], act_scale=act_scale, output=output)
        assert output.tobytes() == whole[:m].tobytes()
    if scaling is TENSOR:
        assert family.bind(act_scale=arrays["act_scale"])
    else:
        with pytest.raises(qp.InvalidProblem, match="does not depend on M"):
            family.bind(act_scale=arrays["act_scale"])


def test_one_family_serves_layers_with_host_scales(lab):
    desc = describe(act_scale=0.25, weight_scale=2.0)
    arrays = lab.operands(desc)
    expected = lab.run(desc, arrays)["output"]
    layer = qp.PlanFamily.select("cpu", desc, ms=(8,)).bind(weight_q=arrays["weight_q"])
    output = np.empty((2, 3), F32)
    layer.run(None, None, act_q=arrays["act_q"], output=output)
    assert output.tobytes() == expected
