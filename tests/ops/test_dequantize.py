"""Dequantize on the reference device, through the public API."""

import itertools
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

import quantplan as qp
from quantplan.ops import dequantize as module

F32 = np.float32
INF, NAN = np.inf, np.nan
GB2 = 1 << 31


def dequantize(desc, q, **operands):
    """Run on the CPU and return the output array; q holds s8 values, or the bytes of any other element."""
    output = np.full((desc.m, desc.k), 7, desc.output_element.dtype)
    codes = np.asarray(q, np.int8 if desc.input_element is qp.S8 else np.uint8)
    args = qp.DequantizeArgs(q=qp.typed(codes, desc.input_element), output=output, **operands)
    qp.DequantizePlan.select("cpu", desc).run(None, None, args)
    return output


def row(q, k=None, **fields):
    """Dequantize one row with a host scale."""
    return dequantize(qp.DequantizeDescriptor(m=1, k=k or len(q), **fields), [q])[0].tolist()


# ---- values


def test_symmetric_s8_by_hand():
    """−128 as an operand is legal and exact."""
    assert row([-128, -127, -1, 0, 1, 127], scale=0.5) == [-64, -63.5, -0.5, 0, 0.5, 63.5]


def test_asymmetric_u8_by_hand():
    assert row([0, 10, 255], input_element="u8", mode="asymmetric", scale=0.25, zero_point=10) == [-2.5, 0, 61.25]


def test_zero_points_of_any_size_are_subtracted_exactly():
    """The difference needs 33 bits, and f32 has 24: one rounding, of the product."""
    desc = qp.DequantizeDescriptor(m=2, k=2, mode="asymmetric", scope="token")
    zero_point = np.array([2**31 - 1, -(2**31)], np.int32)
    output = dequantize(desc, [[-1, 66], [-1, 66]], scale=np.array([1, 0.5], F32), zero_point=zero_point)
    assert output.tolist() == [[float(F32(q - 2**31 + 1)) for q in (-1, 66)], [2.0**30, 2.0**30]]


@pytest.mark.parametrize(
    "element, stored, values",
    [
        ("s4", [0xE1, 0x07], [1, -2, 7]),
        ("s4", [0x78, 0xF0], [-8, 7, 0]),
        ("u4", [0xF1, 0x0F, 0x03], [1, 15, 15, 0, 3]),
    ],
)
def test_4_bit_codes_are_unpacked_low_nibble_first(element, stored, values):
    """What stands in the padding nibble of an odd row is ignored."""
    assert row(stored, len(values), input_element=element, scale=0.5) == [v / 2 for v in values]


@pytest.mark.parametrize(
    "element, codes, values",
    [
        ("fp8_e4m3", [0x00, 0x80, 0x01, 0x38, 0xB8, 0x7E, 0xFE], [0.0, -0.0, 2.0**-9, 1, -1, 448, -448]),
        ("fp8_e5m2", [0x00, 0x01, 0x3C, 0x7B, 0x7C, 0xFC], [0.0, 2.0**-16, 1, 57344, INF, -INF]),
    ],
)
def test_fp8_codes_by_hand(element, codes, values):
    output = row(codes, input_element=element, scale=2.0)
    assert [(v, np.signbit(v)) for v in output] == [(2 * v, np.signbit(v)) for v in values]


@pytest.mark.parametrize(
    "element, bits", [("f16", 0x7FFF), ("bf16", 0x7FFF), ("f32", 0x7FFFFFFF), ("f64", 0x7FFFFFFFFFFFFFFF)]
)
def test_every_nan_is_stored_as_the_canonical_one(element, bits):
    """Sign and payload of a NaN differ between processors."""
    desc = qp.DequantizeDescriptor(m=1, k=4, input_element="fp8_e5m2", output_element=element, scale=1.0)
    output = dequantize(desc, [[0x7D, 0x7F, 0xFD, 0xFF]])
    assert set(output.view(f"u{output.itemsize}").ravel().tolist()) == {bits}


def test_a_nan_scale_marks_its_segment():
    """A poisoned row shows, and the next one does not."""
    desc = qp.DequantizeDescriptor(m=2, k=2, scope="token")
    output = dequantize(desc, [[0, 1], [0, 1]], scale=np.array([NAN, 2], F32))
    assert output.view(np.uint32)[0].tolist() == [0x7FFFFFFF] * 2
    assert output[1].tolist() == [0, 2]


SCOPES = [
    ("tensor", [2], [[2, 4, 6], [8, 10, 12], [14, 16, 18]]),
    ("token", [2, 4, 1], [[2, 4, 6], [16, 20, 24], [7, 8, 9]]),
    ("channel:0", [2, 4, 1], [[2, 4, 6], [16, 20, 24], [7, 8, 9]]),
    ("channel:1", [1, 2, 4], [[1, 4, 12], [4, 10, 24], [7, 16, 36]]),
    ("group:2", [[1, 4], [2, 2], [4, 1]], [[1, 2, 12], [8, 10, 12], [28, 32, 9]]),
    ("group:2:0", [[1, 2, 4], [4, 4, 1]], [[1, 4, 12], [4, 10, 24], [28, 32, 9]]),
    ("group:99", [[1], [2], [4]], [[1, 2, 3], [8, 10, 12], [28, 32, 36]]),
]


@pytest.mark.parametrize("scope, scale, values", SCOPES, ids=[s[0] for s in SCOPES])
def test_each_scope_by_hand(scope, scale, values):
    desc = qp.DequantizeDescriptor(m=3, k=3, scope=scope)
    output = dequantize(desc, [[1, 2, 3], [4, 5, 6], [7, 8, 9]], scale=np.array(scale, F32))
    assert output.tolist() == values


def test_the_product_is_rounded_in_the_scales_element_and_then_into_the_outputs():
    """3 · scale is just above a f16 tie; the f32 product lies on it, and goes to even, where one rounding goes up."""
    scale = F32((1 + 2.0**-11 + 2.0**-23) / 3)  # scale · 3 = 1 + 2⁻¹¹ + a little
    product = F32(3) * scale
    assert row([3], scale=float(scale), output_element="f16") == [float(np.float16(product))]
    assert row([3], scale=float(scale), output_element="f64", scale_element="f32") == [float(product)]
    assert row([3], scale=float(scale), output_element="f64") == [3 * float(scale)]


def test_an_f64_scale_is_rounded_into_a_narrow_output_once():
    """A little above a tie of f16 and bf16, too little for f32."""
    above = {"f16": 1 + 2.0**-11 + 2.0**-40, "bf16": 1 + 2.0**-8 + 2.0**-40}
    for element, scale in above.items():
        up = {"f16": 1 + 2.0**-10, "bf16": 1 + 2.0**-7}[element]
        assert row([1], scale=scale, scale_element="f64", output_element=element) == [up]


def test_overflow_into_f16_is_infinite():
    assert row([1, 2, -2], scale=65504.0, output_element="f16") == [65504, INF, -INF]


def test_mxfp8_by_hand():
    desc = qp.DequantizeDescriptor(m=1, k=100, input_element="fp8_e4m3", scope="group:32", scale_element="e8m0")
    scale = qp.typed(np.array([[127, 128, 0, 255]], np.uint8), "e8m0")
    output = dequantize(desc, np.full((1, 100), 0x38, np.uint8), scale=scale)[0]
    assert [set(output[i : i + 32].tolist()) for i in (0, 32, 64)] == [{1.0}, {2.0}, {2.0**-127}]
    assert np.isnan(output[96:]).all()


def test_nvfp4_by_hand():
    """Two levels: the scale of a block is its e4m3 times the tensor's f32."""
    desc = qp.DequantizeDescriptor(m=1, k=18, input_element="fp4_e2m1", scope="group:16")
    stored = np.array([[low | (low + 1) << 4 for low in range(0, 16, 2)] + [0x72]], np.uint8)
    block_scale = np.array([[2.0, 0.5]], ml_dtypes.float8_e4m3fn)
    output = dequantize(desc, stored, scale=block_scale, global_scale=np.array([0.25], F32))[0].tolist()
    codes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert output == [v / 2 for v in [*codes, *(-c for c in codes)]] + [1 / 8, 6 / 8]


@pytest.mark.parametrize("element", ["f64", "f32", "f16", "bf16"])
@pytest.mark.parametrize("quantized", ["s8", "u4", "fp8_e5m2"])
def test_a_host_scale_and_a_tensor_give_the_same_bits(lab, quantized, element):
    host = qp.DequantizeDescriptor(m=5, k=37, input_element=quantized, output_element=element, scale=0.037)
    arrays = lab.operands(host)
    device = host.replace(scale=None)
    scale = {"scale": np.array([0.037], device.scale_element.dtype)}
    assert lab.run(host, arrays) == lab.run(device, arrays | scale)


def test_a_host_zero_point_and_a_tensor_give_the_same_bits(lab):
    host = qp.DequantizeDescriptor(m=5, k=37, mode="asymmetric", scale=0.037, zero_point=-9)
    arrays = lab.operands(host)
    zero_point = {"zero_point": np.array([-9], np.int32)}
    assert lab.run(host, arrays) == lab.run(host.replace(zero_point=None), arrays | zero_point)


def test_codes_that_quantize_wrote_come_back_within_half_a_step():
    x = np.linspace(-3, 3, 40, dtype=F32).reshape(4, 10)
    q, scale, zero_point = np.empty((4, 10), np.uint8), np.empty(4, F32), np.empty(4, np.int32)
    fields = {"m": 4, "k": 10, "scope": "token", "mode": "asymmetric"}
    desc = qp.DynamicRangeQuantizeDescriptor(output_element="u8", **fields)
    args = qp.DynamicRangeQuantizeArgs(x=x, q=q, scale=scale, zero_point=zero_point)
    qp.DynamicRangeQuantizePlan.select("cpu", desc).run(None, None, args)
    back = dequantize(
        qp.DequantizeDescriptor(input_element="u8", **fields), q, scale=scale, zero_point=zero_point
    ).astype(np.float64)
    bound = qp.DynamicRangeQuantizePlan.select("cpu", desc).precision_guarantee.error_bound.bound(desc, args)
    # the product that dequantizing rounds adds half an ulp of f32
    assert np.all(np.abs(back - x) <= bound + np.spacing(np.abs(back).astype(F32)) / 2)


# ---- descriptor


def describe(**fields):
    return qp.DequantizeDescriptor(**{"m": 2, "k": 4} | fields)


def test_default_elements():
    assert (describe().input_element, describe().output_element, describe().scale_element) == (qp.S8, qp.F32, qp.F32)
    assert describe(output_element="bf16").scale_element is qp.F32
    assert describe(output_element="f64").scale_element is qp.F64
    assert describe(input_element="fp4_e2m1", scope="group:16").scale_element is qp.FP8_E4M3
    assert describe().scope == qp.Scope.tensor()


REFUSED = [
    ({"input_element": "f32"}, "input_element", "s8, u8, s4, u4", "f32"),
    ({"input_element": "s32"}, "input_element", "s8, u8, s4, u4", "s32"),
    ({"output_element": "s8"}, "output_element", "f64, f32, f16, bf16", "s8"),
    ({"output_element": "fp8_e4m3"}, "output_element", "f64, f32, f16, bf16", "fp8_e4m3"),
    ({"scale_element": "e8m0"}, "scale_element", "f32 or f64 for s8", "e8m0"),
    ({"scale_element": "bf16"}, "scale_element", "f32 or f64 for s8", "bf16"),
    ({"input_element": "fp8_e4m3", "scale_element": "fp8_e4m3"}, "scale_element", "f32 or f64 or e8m0", "fp8_e4m3"),
    ({"input_element": "fp4_e2m1", "scope": "tensor"}, "scope", "group:16:1 (NVFP4)", "tensor"),
    ({"input_element": "fp4_e2m1", "scope": "group:16", "scale_element": "f32"}, "scale_element", "fp8_e4m3", "f32"),
    ({"input_element": "fp8_e5m2", "mode": "asymmetric"}, "mode", "symmetric for fp8_e5m2", "asymmetric"),
    ({"scope": "token", "scale": 1.0}, "scale", "None unless the scope is tensor", "1.0"),
    ({"input_element": "fp8_e4m3", "scale_element": "e8m0", "scale": 1.0}, "scale", "None for e8m0", "1.0"),
    ({"scale": NAN}, "scale", "a finite f32 above 0", "nan"),
    ({"scale": INF}, "scale", "a finite f32 above 0", "inf"),
    ({"scale": 0.0}, "scale", "a finite f32 above 0", "0.0"),
    ({"scale": 1e39}, "scale", "a finite f32 above 0", "1e+39"),
    ({"zero_point": 0}, "zero_point", "None unless asymmetric", "0"),
    ({"mode": "asymmetric", "scope": "token", "zero_point": 1}, "zero_point", "None unless asymmetric", "1"),
    ({"mode": "asymmetric", "zero_point": 128}, "zero_point", "an integer in [-128, 127]", "128"),
    ({"mode": "asymmetric", "input_element": "u4", "zero_point": -1}, "zero_point", "an integer in [0, 15]", "-1"),
    ({"m": -1}, "m", "[0, 2**31)", "-1"),
    ({"k": 0.5}, "k", "an integer", "0.5"),
    ({"mode": "odd"}, "mode", "symmetric, asymmetric", "'odd'"),
    ({"scope": "group:16:2"}, "scope", "group:SIZE", "'group:16:2'"),
    ({"input_element": "int7"}, "input_element", "s8", "'int7'"),
]


@pytest.mark.parametrize("fields, field, expected, got", REFUSED)
def test_the_descriptor_refuses(fields, field, expected, got):
    """Among others a host scale that is NaN, infinite or zero in its element."""
    with pytest.raises(qp.InvalidProblem) as caught:
        describe(**fields)
    assert (caught.value.op, caught.value.field) == ("DequantizeDescriptor", field)
    assert expected in str(caught.value.expected)
    assert str(caught.value.got) == got


# ---- operands, shapes and memory


@pytest.mark.parametrize(
    "desc, change, field, words",
    [
        (describe(), {"scale": None}, "scale", "host value: scale="),
        (describe(scale=1.0), {"scale": np.ones(1, F32)}, "scale", "no operand"),
        (describe(scale=1.0), {"zero_point": np.ones(1, np.int32)}, "zero_point", "no operand"),
        (describe(mode="asymmetric", scale=1.0), {"zero_point": None}, "zero_point", "shape (1,)"),
        (describe(input_element="fp4_e2m1", scope="group:16"), {"global_scale": None}, "global_scale", "(1,)"),
        (describe(scale_element="f64"), {"scale": np.ones(1, F32)}, "scale", "element f64"),
        (describe(scope="group:3"), {"scale": np.ones((2, 1), F32)}, "scale", "(rows=2, columns=2)"),
        (describe(), {"q": np.ones((2, 4), np.uint8)}, "q", "element s8"),
        (describe(), {"q": np.ones((2, 4), np.int8).T.copy().T}, "q", "contiguous last axis"),
        (describe(), {"output": np.ones((2, 4))}, "output", "element f32"),
        (describe(), {"output": np.ones((2, 3), F32)}, "output", "(M=2, K=4)"),
        (describe(), {"output": np.broadcast_to(np.ones(4, F32), (2, 4))}, "output", "rows that do not overlap"),
    ],
)
def test_operands_are_held_to_the_descriptor(lab, desc, change, field, words):
    arrays = lab.operands(desc) | change
    with pytest.raises(qp.InvalidProblem) as caught:
        lab.run(desc, arrays)
    assert caught.value.field == field
    assert words in str(caught.value)


@pytest.mark.parametrize("how", ["strided", "misaligned"])
def test_every_sku_gives_the_same_bits_from_awkward_memory(lab, how):
    """A view at an odd address, and rows that lie apart; nothing outside the rows is written."""
    for desc in qp.DequantizePlan.catalogue():
        arrays = lab.operands(desc)
        awkward = {name: getattr(lab, how)(array) for name, array in arrays.items() if name in ("q", "output")}
        assert lab.run(desc, arrays) == lab.run(desc, arrays | awkward), desc
        if how == "strided":
            assert lab.gaps(awkward["output"]) == {0xA5}, desc


def test_every_sku_dequantizes_a_row_alike_whatever_m(lab):
    for desc in qp.DequantizePlan.catalogue():
        desc = desc.replace(m=5)  # noqa: PLW2901 - the same SKU with more rows
        arrays = lab.operands(desc)
        lab.run(desc, arrays)
        for i in (0, 3, 4):
            alone, part = lab.row(desc, arrays, i)
            lab.run(alone, part)
            assert part["output"].tobytes() == arrays["output"][i : i + 1].tobytes(), (desc, i)


@pytest.mark.parametrize("m, k", [(0, 4), (3, 0), (0, 0)])
def test_empty_problems_launch_nothing(lab, monkeypatch, m, k):
    calls = []
    monkeypatch.setattr(module, "dequantize", lambda *args, **fields: calls.append(fields["scope"]))
    for scope in ("tensor", "token", "channel:1", "group:2", "group:2:0"):
        desc = qp.DequantizeDescriptor(m=m, k=k, scope=scope)
        lab.run(desc, lab.operands(desc))
        assert calls == []
        desc = desc.replace(m=1, k=1)
        lab.run(desc, lab.operands(desc))
        assert calls == [desc.scope], "what is not empty is launched"
        calls.clear()


def test_more_rows_than_a_16_bit_grid(lab):
    m = 70_001
    desc = qp.DequantizeDescriptor(m=m, k=3, scope="token")
    arrays = lab.operands(desc)
    arrays["q"][:] = [[1, -2, 3]]
    arrays["scale"][:] = np.arange(m)
    lab.run(desc, arrays)
    np.testing.assert_array_equal(arrays["output"], np.arange(m)[:, None] * [[1, -2, 3]])


def test_rows_more_than_2_gib_apart():
    """The distance between rows exceeds 31 bits. Of the buffers only a few pages are ever touched."""
    q, out = (np.empty(GB2 + 64, np.uint8) for _ in range(2))
    codes = np.lib.stride_tricks.as_strided(q[:4].view(np.int8), (2, 4), (GB2, 1))
    output = np.lib.stride_tricks.as_strided(out[:16].view(F32), (2, 4), (GB2, 4))
    codes[...] = [[1, 2, 3, 4], [-5, -6, -7, -8]]
    desc = qp.DequantizeDescriptor(m=2, k=4, scale=0.5)
    qp.DequantizePlan.select("cpu", desc).run(None, None, qp.DequantizeArgs(q=codes, output=output))
    assert output.tolist() == [[0.5, 1, 1.5, 2], [-2.5, -3, -3.5, -4]]


def test_more_than_2_31_elements_are_checked_without_wrapping():
    """The product m · k is 65536 · 65537, which is 65536 in 32 bits. Nothing is read, so there is no memory."""
    m, k = 65536, 65537
    plan = qp.DequantizePlan.select("cpu", qp.DequantizeDescriptor(m=m, k=k, input_element="s4", scale=1.0))
    row_bytes = (k + 1) // 2
    q = qp.TensorView(1 << 40, (m, k + 1), (row_bytes, 1), qp.S4)
    far = (1 << 40) + m * row_bytes
    far += -far % 4
    plan.can_implement(qp.DequantizeArgs(q=q, output=qp.TensorView(far, (m, k), (k, 1), qp.F32)))
    with pytest.raises(qp.InvalidProblem, match="overlapping"):
        plan.can_implement(qp.DequantizeArgs(q=q, output=qp.TensorView(far - 4, (m, k), (k, 1), qp.F32)))


# ---- SKUs, selection, guarantees


def test_every_sku_of_the_catalogue_is_selected_under_a_name_of_its_own():
    skus = [qp.DequantizePlan.select("cpu", desc).sku for desc in qp.DequantizePlan.catalogue()]
    assert len({sku.name for sku in skus}) == len(skus)
    assert len(set(skus)) == len(skus)


def test_the_catalogue_covers_every_element_and_mode():
    catalogue = list(qp.DequantizePlan.catalogue())
    reals, integers = (qp.F64, qp.F32, qp.F16, qp.BF16), (qp.S8, qp.U8, qp.S4, qp.U4)
    seen = {(d.output_element, d.input_element, d.mode) for d in catalogue}
    assert seen >= set(itertools.product(reals, integers, qp.QuantizeMode))
    seen = {(d.output_element, d.input_element, d.scale_element) for d in catalogue}
    assert seen >= set(itertools.product(reals, (qp.FP8_E4M3, qp.FP8_E5M2), (qp.E8M0,)))
    assert seen >= set(itertools.product(reals, (qp.FP4_E2M1,), (qp.FP8_E4M3,)))


@pytest.mark.parametrize("target", ["sm_80", "sm_90a", "sm_121", "emulated:sm_80"])
def test_gpus_run_our_own_kernels(target):
    variants = qp.DequantizePlan.why_not(target, describe())
    assert next(report.name for report in variants if report.supported) != "reference"
    assert variants[-1].name == "reference"
    assert not variants[-1].supported


@pytest.mark.parametrize("target", ["sm_75", "emulated:sm_75"])
def test_where_no_variant_runs_each_says_why(target):
    with pytest.raises(qp.Unsupported) as caught:
        qp.DequantizePlan.select(target, describe())
    assert caught.value.variants
    assert all(report.reason and not report.supported for report in caught.value.variants)


def test_every_sku_promises_the_references_bits():
    for desc in qp.DequantizePlan.catalogue():
        guarantee = qp.DequantizePlan.select("cpu", desc).precision_guarantee
        assert guarantee.flags == set(qp.PrecisionGuarantee.FLAGS)


def test_the_error_bound_holds_for_every_sku(lab):
    """Against (q − zero_point) · scale in exact arithmetic; the bound has the output's shape."""
    for desc in qp.DequantizePlan.catalogue():
        arrays = lab.operands(desc)
        lab.run(desc, arrays)
        bound = qp.DequantizePlan.select("cpu", desc).precision_guarantee.error_bound.bound(
            desc, lab.args(desc, arrays)
        )
        assert bound.shape == (desc.m, desc.k)
        assert bound.dtype == np.float64
        assert np.isfinite(bound).all(), desc
        exact = lab.reals(desc, arrays, desc.input_element)
        for at, limit in np.ndenumerate(bound):
            error = abs(exact[at] - Fraction(float(arrays["output"][at])))
            assert error <= Fraction(float(limit)), (desc, at)


@pytest.mark.parametrize(
    "pref, reason",
    [
        (qp.PlanPreference(backend=qp.BackendKind.BESPOKE), "bespoke is required"),
        (qp.PlanPreference(accumulation=qp.Accumulation.FAST), "no choice of accumulation"),
    ],
)
def test_a_preference_that_cannot_be_met_is_an_error(pref, reason):
    with pytest.raises(qp.Unsupported) as caught:
        qp.DequantizePlan.select("cpu", describe(), pref)
    *kernels, reference = caught.value.variants
    assert reason in reference.reason
    assert all("the target is cpu" in report.reason or "scope" in report.reason for report in kernels)
