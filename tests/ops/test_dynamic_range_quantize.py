"""DynamicRangeQuantize on the reference device, through the public API."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

import quantplan as qp

F32 = np.float32
INF, NAN = np.inf, np.nan
TINY = 2.0**-126
GB2 = 1 << 31


def run(desc, x):
    """Run on the CPU; return the outputs as arrays of what is stored, by name."""
    poison = {
        operand.name: np.full(operand.storage, 0x5A, np.uint8).repeat(operand.element.dtype.itemsize, axis=-1)
        for operand in qp.DynamicRangeQuantizePlan.operands(desc)
        if operand.output
    }
    stored = {
        operand.name: poison[operand.name].view(operand.element.dtype)
        for operand in qp.DynamicRangeQuantizePlan.operands(desc)
        if operand.output
    }
    outputs = dict(stored)
    if desc.output_element.packed:
        outputs["q"] = qp.typed(stored["q"], desc.output_element)
    x = np.asarray(x, desc.input_element.dtype).reshape(desc.m, desc.k)
    plan = qp.DynamicRangeQuantizePlan.select("cpu", desc)
    plan.run(None, None, qp.DynamicRangeQuantizeArgs(x=x, **outputs))
    return stored


def rows(x, **fields):
    """Quantize a matrix."""
    return run(qp.DynamicRangeQuantizeDescriptor(m=len(x), k=len(x[0]), **fields), x)


# ---- values


def test_symmetric_s8_by_hand():
    """Ties go to even, and the largest magnitude maps to 127 whatever its sign: −128 is never written."""
    out = rows([[127.0, -63.0, 0.5], [3.0, 1.0, -254.0], [0.0, -1.0, 0.25]])
    assert out["scale"].tolist() == [1, 2, float(F32(1) / F32(127))]
    assert out["q"].tolist() == [[127, -63, 0], [2, 0, -127], [0, -127, 32]]


def test_zeros_have_scale_one():
    for fields in ({}, {"output_element": "fp8_e4m3"}, {"output_element": "u4"}):
        out = rows([[0.0, -0.0, 0.0]], **fields)
        assert out["scale"].tolist() == [1]
        assert not (out["q"].view(np.uint8) & 0x7F).any()
    out = rows([[0.0, -0.0, 0.0]], mode="asymmetric", output_element="u8")
    assert (out["scale"].tolist(), out["zero_point"].tolist(), out["q"].tolist()) == ([1], [0], [[0, 0, 0]])


def test_a_scale_that_would_underflow_is_floored_at_the_smallest_normal():
    """Nothing divides by zero, and subnormal inputs are not flushed."""
    out = rows([[2.0**-149, 0.0], [127 * 2.0**-127, 2.0**-126]])
    assert out["scale"].tolist() == [TINY, TINY]
    assert out["q"].tolist() == [[0, 0], [64, 1]]
    assert rows([[2.0**-1074]], input_element="f64")["scale"].tolist() == [2.0**-1022]
    out = rows([[2.0**-149, 0.0]], mode="asymmetric", output_element="u8")
    assert (out["scale"].tolist(), out["q"].tolist()) == ([TINY], [[0, 0]])


@pytest.mark.parametrize("bad", [NAN, -NAN, INF, -INF])
@pytest.mark.parametrize("mode", ["symmetric", "asymmetric"])
def test_what_is_not_finite_poisons_its_row_and_no_other(bad, mode):
    """The scale is the canonical NaN, zero point and codes are 0."""
    out = rows([[1.0, bad, 2.0], [127.0, 0.0, -127.0]], mode=mode)
    assert out["scale"].view(np.uint32)[0] == 0x7FFFFFFF
    assert out["q"][0].tolist() == [0, 0, 0]
    assert np.isfinite(out["scale"][1])
    assert out["q"][1].tolist() == ([127, 0, -127] if mode == "symmetric" else [127, 0, -128])
    if mode == "asymmetric":
        assert out["zero_point"][0] == 0


@pytest.mark.parametrize("element", ["fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("saturate", [True, False])
def test_what_is_not_finite_makes_fp8_codes_nan(element, saturate):
    out = rows([[1.0, NAN], [1.0, INF], [1.0, -1.0]], output_element=element, saturate=saturate)
    assert out["q"].view(np.uint8)[:2].tolist() == [[0x7F, 0x7F]] * 2
    assert not np.isnan(out["q"].astype(F32)[2]).any()


def test_nan_late_in_a_long_row_is_not_swallowed():
    """A maximum that drops NaN would find the other elements."""
    x = np.ones((1, 5000), F32)
    x[0, 4999] = NAN
    assert np.isnan(rows(x)["scale"][0])
    assert np.isnan(rows(x, scope="tensor")["scale"][0])


def test_asymmetric_u8_by_hand():
    out = rows([[-1.0, 3.0, 0.0]], mode="asymmetric", output_element="u8")
    assert out["scale"].tolist() == [float(F32(4) / F32(255))]
    assert out["zero_point"].tolist() == [64]  # 63.75
    assert out["q"].tolist() == [[0, 255, 64]]


def test_the_asymmetric_range_includes_zero():
    """All-positive and all-negative rows have zero at one end."""
    out = rows([[2.0, 255.0], [-2.0, -255.0]], mode="asymmetric", output_element="u8")
    assert out["scale"].tolist() == [1, 1]
    assert out["zero_point"].tolist() == [0, 255]
    assert out["q"].tolist() == [[2, 255], [253, 0]]


def test_asymmetric_s8_reaches_both_ends():
    out = rows([[-128.0, 127.0, 0.0]], mode="asymmetric")
    assert (out["scale"].tolist(), out["zero_point"].tolist()) == ([1], [0])
    assert out["q"].tolist() == [[-128, 127, 0]]


def test_an_asymmetric_range_that_overflows_has_a_finite_scale():
    out = rows([[-3e38, 3e38, 0.0]], mode="asymmetric", output_element="u8")
    assert out["scale"].tolist() == [float(F32(3e38) / F32(127.5))]
    assert out["q"].tolist() == [[0, 255, 128]]
    assert out["zero_point"].tolist() == [128]


def test_a_range_of_ones_own():
    out = rows([[10.0, -10.0, 3.0]], q_min=-3, q_max=5)
    assert out["scale"].tolist() == [2]
    assert out["q"].tolist() == [[5, -3, 2]]


@pytest.mark.parametrize(
    "scope, scale, q",
    [
        ("tensor", [2], [[10, 20, 30], [40, 50, 127]]),
        ("token", [60 / 127, 2], None),
        ("channel:1", [80 / 127, 100 / 127, 2], None),
        ("group:2", [[40 / 127, 60 / 127], [100 / 127, 2]], None),
        ("group:2:0", [[80 / 127, 100 / 127, 2]], None),
        ("group:99", [[60 / 127], [2]], None),
    ],
)
def test_each_scope_takes_the_range_of_its_segments(scope, scale, q):
    out = rows([[20.0, 40.0, 60.0], [80.0, 100.0, 254.0]], scope=scope)
    assert out["scale"].tolist() == np.array(scale, F32).tolist()
    assert q is None or out["q"].tolist() == q
    assert 127 in out["q"]


def test_4_bit_codes_are_packed_low_nibble_first_with_a_zero_tail():
    out = rows([[7.0, -7.0, 1.0]], output_element="s4")
    assert out["q"].tolist() == [[0x97, 0x01]]
    out = rows([[-5.0, 10.0, 0.0]], output_element="u4", mode="asymmetric")
    assert (out["scale"].tolist(), out["zero_point"].tolist(), out["q"].tolist()) == ([1], [5], [[0xF0, 0x05]])


def test_fp8_maps_the_largest_magnitude_to_the_largest_finite_value():
    """Without saturation too, a scale alone carries nothing beyond it."""
    for saturate in (True, False):
        out = rows([[-896.0, 2.0, 0.0]], output_element="fp8_e4m3", saturate=saturate)
        assert out["scale"].tolist() == [2]
        assert out["q"].view(np.uint8).tolist() == [[0xFE, 0x38, 0x00]]
        out = rows([[57344.0, 1.0, -0.0]], output_element="fp8_e5m2", saturate=saturate)
        assert out["q"].view(np.uint8).tolist() == [[0x7B, 0x3C, 0x80]]


def test_mxfp8_scales_are_rounded_up():
    """448 is exactly 2⁰ · 448; anything more takes 2¹, so that nothing clips."""
    x = np.zeros((1, 6 * 32), F32)
    x[0, ::32] = [448, np.nextafter(F32(448), F32(INF)), 0.0, 1.0, INF, 3.4e38]
    out = rows(x, output_element="fp8_e4m3", scope="group:32", scale_element="e8m0")
    # 3.4e38/448 = 2^119.19…
    assert out["scale"].view(np.uint8).tolist() == [[127, 128, 0, 119, 255, 247]]
    codes = out["q"].view(np.uint8)[0]
    assert codes[::32].tolist() == [0x7E, 0x76, 0x00, 0x78, 0x7F, 0x78]
    assert set(codes[129:160].tolist()) == {0x7F}


def test_nvfp4_by_hand():
    """The tensor's amax is 2688 = 448 · 6: global scale 1, and block scales are amax / 6."""
    x = np.zeros((1, 50), F32)
    x[0, [0, 1, 16, 17, 48, 49]] = [2688, 448, 6, -1, 12, 2.0**-20]
    out = rows(x, output_element="fp4_e2m1")
    assert out["global_scale"].tolist() == [1]
    assert out["scale"].view(np.uint8).tolist() == [[0x7E, 0x38, 0x00, 0x40]]
    stored = out["q"][0]
    assert [stored[0], stored[8], stored[24]] == [0x27, 0xA7, 0x07]
    assert not stored[16:24].any()


def test_nvfp4_is_poisoned_as_a_whole():
    """The tensor shares one global scale."""
    x = np.ones((2, 16), F32)
    x[1, 3] = INF
    out = rows(x, output_element="fp4_e2m1")
    assert out["global_scale"].view(np.uint32).tolist() == [0x7FFFFFFF]
    assert np.isnan(out["scale"].astype(F32)).all()
    assert not out["q"].any()


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
def test_each_input_element(dtype):
    out = rows([[127.0, -64.0, 0.5]], input_element=dtype)
    assert out["scale"].dtype == (np.float64 if dtype == "f64" else F32)
    assert out["q"].tolist() == [[127, -64, 0]]


def test_a_f16_range_is_scaled_in_f32():
    """65504/127 has no f16 of its own."""
    assert rows([[65504.0]], input_element="f16")["scale"].tolist() == [float(F32(65504) / F32(127))]


def test_the_static_op_reproduces_the_codes_from_the_scales():
    """What the dynamic op writes is what Quantize writes when it is given its scales."""
    x = np.random.default_rng(3).standard_normal((6, 40)).astype(F32)
    for scope, mode in itertools.product(("tensor", "token", "group:16", "group:4:0"), qp.QuantizeMode):
        fields = {"m": 6, "k": 40, "scope": scope, "mode": mode}
        out = run(qp.DynamicRangeQuantizeDescriptor(**fields), x)
        again = np.empty((6, 40), np.int8)
        args = qp.QuantizeArgs(x=x, q=again, scale=out["scale"], zero_point=out.get("zero_point"))
        qp.QuantizePlan.select("cpu", qp.QuantizeDescriptor(**fields)).run(None, None, args)
        np.testing.assert_array_equal(again, out["q"])


# ---- descriptor


def describe(**fields):
    return qp.DynamicRangeQuantizeDescriptor(**{"m": 2, "k": 4} | fields)


@pytest.mark.parametrize(
    "element, mode, low, high",
    [
        ("s8", "symmetric", -127, 127),
        ("s8", "asymmetric", -128, 127),
        ("u8", "asymmetric", 0, 255),
        ("s4", "symmetric", -7, 7),
        ("s4", "asymmetric", -8, 7),
        ("u4", "symmetric", 0, 15),
        ("fp8_e5m2", "symmetric", None, None),
    ],
)
def test_default_range(element, mode, low, high):
    """Symmetric signed formats leave their smallest value out."""
    desc = describe(output_element=element, mode=mode)
    assert (desc.q_min, desc.q_max) == (low, high)


def test_default_elements_and_scopes():
    assert describe().scope == qp.Scope.token()
    assert describe().scale_element is qp.F32
    assert describe(input_element="f64").scale_element is qp.F64
    nvfp4 = describe(output_element="fp4_e2m1")
    assert (nvfp4.scope, nvfp4.scale_element) == (qp.Scope.group(16), qp.FP8_E4M3)


REFUSED = [
    ({"input_element": "s32"}, "input_element", "f64, f32, f16, bf16", "s32"),
    ({"output_element": "f32"}, "output_element", "s8, u8, s4, u4", "f32"),
    ({"scale_element": "f64"}, "scale_element", "f32 for s8", "f64"),
    ({"scale_element": "e8m0"}, "scale_element", "f32 for s8", "e8m0"),
    ({"input_element": "f64", "scale_element": "f32"}, "scale_element", "f64 for s8", "f32"),
    ({"output_element": "fp4_e2m1", "scope": "token"}, "scope", "group:16:1 (NVFP4)", "token"),
    ({"output_element": "fp4_e2m1", "scale_element": "e8m0"}, "scale_element", "fp8_e4m3", "e8m0"),
    ({"output_element": "fp8_e4m3", "mode": "asymmetric"}, "mode", "symmetric", "asymmetric"),
    ({"output_element": "fp8_e4m3", "q_min": -8}, "q_min, q_max", "None for fp8_e4m3", "(-8, None)"),
    ({"q_min": 1}, "q_min, q_max", "q_min ≤ 0", "(1, 127)"),
    ({"q_max": 300}, "q_min, q_max", "q_max ≤ 127", "(-127, 300)"),
    ({"q_max": 0}, "q_max", "more than 0", "0"),
    ({"q_min": 0, "q_max": 0, "mode": "asymmetric"}, "q_min, q_max", "q_min < q_max", "(0, 0)"),
    ({"q_min": None}, "q_min", "an integer", "None"),
    ({"saturate": False}, "saturate", "True for s8", "False"),
    ({"m": 2**31}, "m", "[0, 2**31)", "2147483648"),
    ({"k": None}, "k", "an integer", "None"),
    ({"mode": "dynamic"}, "mode", "symmetric, asymmetric", "'dynamic'"),
    ({"scope": "channel"}, "scope", "channel:AXIS", "'channel'"),
    ({"scope": None}, "scope", "channel:AXIS", "None"),
]


@pytest.mark.parametrize("fields, field, expected, got", REFUSED)
def test_the_descriptor_refuses(fields, field, expected, got):
    with pytest.raises(qp.InvalidProblem) as caught:
        describe(**fields)
    assert (caught.value.op, caught.value.field) == ("DynamicRangeQuantizeDescriptor", field)
    assert expected in str(caught.value.expected)
    assert str(caught.value.got) in (got, repr(got))


def test_there_is_no_host_scale():
    with pytest.raises(TypeError, match="scale"):
        describe(scale=1.0)


# ---- operands, shapes and memory


@pytest.mark.parametrize(
    "desc, change, field, words",
    [
        (describe(mode="asymmetric"), {"zero_point": None}, "zero_point", "shape (2,)"),
        (describe(), {"zero_point": np.ones(2, np.int32)}, "zero_point", "no operand"),
        (describe(), {"global_scale": np.ones(1, F32)}, "global_scale", "no operand"),
        (describe(output_element="fp4_e2m1"), {"global_scale": None}, "global_scale", "(1,)"),
        (describe(), {"scale": np.ones(1, F32)}, "scale", "(scales=2,)"),
        (describe(), {"scale": np.ones(2)}, "scale", "element f32"),
        (describe(), {"scale": np.broadcast_to(F32(1), (2,))}, "scale", "contiguous"),
        (describe(), {"x": np.ones((2, 4), np.int8)}, "x", "element f32"),
        (describe(), {"q": np.ones((2, 3), np.int8)}, "q", "(M=2, K=4)"),
    ],
)
def test_operands_are_held_to_the_descriptor(lab, desc, change, field, words):
    arrays = lab.operands(desc) | change
    with pytest.raises(qp.InvalidProblem) as caught:
        lab.run(desc, arrays)
    assert caught.value.field == field
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["q", "scale", "zero_point"])
def test_outputs_must_be_writable(lab, name):
    desc = describe(mode="asymmetric")
    arrays = lab.operands(desc)
    arrays[name].flags.writeable = False
    with pytest.raises(qp.InvalidProblem, match="writable memory") as caught:
        lab.run(desc, arrays)
    assert caught.value.field == name


def test_scale_is_not_optional():
    with pytest.raises(TypeError, match="scale"):
        qp.DynamicRangeQuantizeArgs(x=np.ones((2, 4), F32), q=np.ones((2, 4), np.int8))


@pytest.mark.parametrize("how", ["strided", "misaligned"])
def test_every_sku_gives_the_same_bits_from_awkward_memory(lab, how):
    """Views at odd addresses, and rows that lie apart; nothing outside the rows is written."""
    for desc in qp.DynamicRangeQuantizePlan.catalogue():
        arrays = lab.operands(desc)
        matrices = ("x", "q", "scale") if desc.scope.kind is qp.ScopeKind.GROUP else ("x", "q")
        awkward = {name: getattr(lab, how)(arrays[name]) for name in matrices}
        assert lab.run(desc, arrays) == lab.run(desc, arrays | awkward), desc
        if how == "strided":
            assert all(lab.gaps(awkward[name]) == {0xA5} for name in matrices if name != "x"), desc


def test_a_batch_invariant_sku_quantizes_a_row_alike_whatever_m(lab):
    held = 0
    for desc in qp.DynamicRangeQuantizePlan.catalogue():
        if not qp.DynamicRangeQuantizePlan.select("cpu", desc).precision_guarantee.batch_invariant:
            continue
        desc = desc.replace(m=5)  # noqa: PLW2901 - the same SKU with more rows
        arrays = lab.operands(desc)
        lab.run(desc, arrays)
        for i in (0, 3, 4):
            alone, part = lab.row(desc, arrays, i)
            outputs = lab.run(alone, part)
            for name, written in outputs.items():
                assert written == arrays[name][i : i + 1].tobytes(), (desc, i, name)
        held += 1
    assert held


@pytest.mark.parametrize("fields", [{"scope": s} for s in ("tensor", "channel:1", "group:2:0")] + [{"output": "fp4"}])
def test_a_sku_that_is_not_batch_invariant_really_is_not(lab, fields):
    """The guarantee is no mere caution: another row changes this one's codes."""
    fields = {"output_element": "fp4_e2m1"} if "output" in fields else fields
    desc = qp.DynamicRangeQuantizeDescriptor(m=2, k=16, **fields)
    arrays = lab.operands(desc)
    before = lab.run(desc, arrays)
    first = arrays["q"][0].copy()
    arrays["x"][1] *= 1e6
    assert lab.run(desc, arrays) != before
    assert not np.array_equal(arrays["q"][0], first)


def test_an_empty_problem_writes_scales_of_one_where_there_are_any():
    """No codes to write, but a segment without elements still has its scale."""
    for m, k, scope, count in [(0, 4, "tensor", 1), (3, 0, "token", 3), (0, 2, "channel:1", 2), (0, 0, "tensor", 1)]:
        for mode in qp.QuantizeMode:
            out = run(qp.DynamicRangeQuantizeDescriptor(m=m, k=k, scope=scope, mode=mode), np.zeros((m, k), F32))
            assert out["scale"].tolist() == [1] * count
            assert out.get("zero_point", np.zeros(count)).tolist() == [0] * count


def test_no_rows_launch_nothing():
    """With a scale per row there is nothing to write."""
    out = run(qp.DynamicRangeQuantizeDescriptor(m=0, k=4), np.zeros((0, 4), F32))
    assert (out["q"].shape, out["scale"].shape) == ((0, 4), (0,))


def test_more_rows_than_a_16_bit_grid():
    m = 70_001
    x = (1 + np.arange(m, dtype=F32) % 100)[:, None] * np.array([[127, -1]], F32)
    out = rows(x)
    np.testing.assert_array_equal(out["scale"], x[:, 0] / F32(127))
    np.testing.assert_array_equal(out["q"], np.broadcast_to([[127, -1]], (m, 2)))


def test_rows_more_than_2_gib_apart():
    """The distance between rows exceeds 31 bits. Of the buffers only a few pages are ever touched."""
    buffer = np.empty(GB2 + 64, np.uint8)
    x = np.lib.stride_tricks.as_strided(buffer[:16].view(F32), (2, 4), (GB2, 4))
    x[...] = [[127, 2, 3, 4], [-5, -6, -7, -254]]
    out = run(qp.DynamicRangeQuantizeDescriptor(m=2, k=4), np.zeros((2, 4)))  # the shapes of the outputs
    plan = qp.DynamicRangeQuantizePlan.select("cpu", qp.DynamicRangeQuantizeDescriptor(m=2, k=4))
    plan.run(None, None, qp.DynamicRangeQuantizeArgs(x=x, **out))
    assert (out["scale"].tolist(), out["q"].tolist()) == ([1, 2], [[127, 2, 3, 4], [-2, -3, -4, -127]])


def test_more_than_2_31_elements_are_checked_without_wrapping():
    """The product m · k is 65536 · 65537, which is 65536 in 32 bits. Nothing is read, so there is no memory."""
    m, k = 65536, 65537
    plan = qp.DynamicRangeQuantizePlan.select("cpu", qp.DynamicRangeQuantizeDescriptor(m=m, k=k, scope="tensor"))
    x = qp.TensorView(1 << 40, (m, k), (k, 1), qp.F32)
    far = (1 << 40) + 4 * m * k
    scale = np.ones(1, F32)
    q = qp.TensorView(far, (m, k), (k, 1), qp.S8)
    plan.can_implement(qp.DynamicRangeQuantizeArgs(x=x, q=q, scale=scale))
    q = qp.TensorView(far - 1, (m, k), (k, 1), qp.S8)
    with pytest.raises(qp.InvalidProblem, match="overlapping"):
        plan.can_implement(qp.DynamicRangeQuantizeArgs(x=x, q=q, scale=scale))


# ---- SKUs, selection, guarantees


def test_every_sku_of_the_catalogue_is_selected_under_a_name_of_its_own():
    catalogue = qp.DynamicRangeQuantizePlan.catalogue()
    skus = [qp.DynamicRangeQuantizePlan.select("cpu", desc).sku for desc in catalogue]
    assert len({sku.name for sku in skus}) == len(skus)
    assert len(set(skus)) == len(skus)


def test_the_catalogue_covers_every_element_and_mode():
    catalogue = list(qp.DynamicRangeQuantizePlan.catalogue())
    reals, integers = (qp.F64, qp.F32, qp.F16, qp.BF16), (qp.S8, qp.U8, qp.S4, qp.U4)
    seen = {(d.input_element, d.output_element, d.mode) for d in catalogue}
    assert seen >= set(itertools.product(reals, integers, qp.QuantizeMode))
    seen = {(d.input_element, d.output_element, d.saturate) for d in catalogue if d.scale_element is qp.E8M0}
    assert seen >= set(itertools.product(reals, (qp.FP8_E4M3, qp.FP8_E5M2), (True, False)))
    assert {d.input_element for d in catalogue if d.output_element is qp.FP4_E2M1} == set(reals)


@pytest.mark.parametrize(
    "fields, invariant",
    [
        ({"scope": "token"}, True),
        ({"scope": "channel:0"}, True),
        ({"scope": "group:32"}, True),
        ({"output_element": "fp8_e4m3", "scope": "group:32", "scale_element": "e8m0"}, True),
        ({"scope": "tensor"}, False),
        ({"scope": "channel:1"}, False),
        ({"scope": "group:32:0"}, False),
        ({"output_element": "fp4_e2m1"}, False),
    ],
)
def test_batch_invariance_is_promised_where_a_rows_scales_are_its_own(fields, invariant):
    """Insisting on it where it is not promised is an error."""
    desc = describe(**fields)
    guarantee = qp.DynamicRangeQuantizePlan.select("cpu", desc).precision_guarantee
    assert guarantee.batch_invariant is invariant
    assert guarantee.bit_identical_to_reference
    assert guarantee.deterministic
    assert guarantee.bit_stable_on_same_hardware
    pref = qp.PlanPreference(require_batch_invariant=True)
    if invariant:
        qp.DynamicRangeQuantizePlan.select("cpu", desc, pref)
        return
    for insist in (pref, qp.PlanPreference(min_guarantee=qp.QuantizePlan.select("cpu", STATIC).precision_guarantee)):
        with pytest.raises(qp.Unsupported) as caught:
            qp.DynamicRangeQuantizePlan.select("cpu", desc, insist)
        assert caught.value.variants[-1].reason == "does not promise batch_invariant"


STATIC = qp.QuantizeDescriptor(m=2, k=4)


@pytest.mark.parametrize("target", ["sm_80", "sm_90a", "sm_121", "emulated:sm_80"])
def test_gpus_run_our_own_kernels(target):
    variants = qp.DynamicRangeQuantizePlan.why_not(target, describe())
    assert next(report.name for report in variants if report.supported) != "reference"
    assert variants[-1].name == "reference"
    assert not variants[-1].supported


@pytest.mark.parametrize("target", ["sm_75", "emulated:sm_75"])
def test_where_no_variant_runs_each_says_why(target):
    with pytest.raises(qp.Unsupported) as caught:
        qp.DynamicRangeQuantizePlan.select(target, describe())
    assert caught.value.variants
    assert all(report.reason and not report.supported for report in caught.value.variants)


def test_the_error_bound_holds_for_every_sku(lab):
    """|(q − zero_point) · scale − x| in exact arithmetic, with the scales that the op wrote; finite everywhere."""
    for desc in qp.DynamicRangeQuantizePlan.catalogue():
        arrays = lab.operands(desc)
        lab.run(desc, arrays)
        guarantee = qp.DynamicRangeQuantizePlan.select("cpu", desc).precision_guarantee
        bound = guarantee.error_bound.bound(desc, lab.args(desc, arrays))
        assert bound.shape == (desc.m, desc.k)
        assert bound.dtype == np.float64
        clips = desc.output_element in (qp.U8, qp.U4) and desc.mode is qp.QuantizeMode.SYMMETRIC
        assert np.isfinite(bound[arrays["x"] >= 0 if clips else ...]).all(), desc
        real = lab.reals(desc, arrays, desc.output_element)
        for at, limit in np.ndenumerate(bound):
            if limit < INF:
                error = abs(real[at] - Fraction(float(arrays["x"][at])))
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
        qp.DynamicRangeQuantizePlan.select("cpu", describe(), pref)
    *kernels, reference = caught.value.variants
    assert reason in reference.reason
    assert all("the target is cpu" in report.reason or "scope" in report.reason for report in kernels)
