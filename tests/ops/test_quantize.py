"""Quantize on the reference device, through the public API."""

import itertools
from fractions import Fraction
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import quantplan as qp
from quantplan.ops import quantize as module

F32 = np.float32
INF, NAN = np.inf, np.nan
GB2 = 1 << 31


def quantize(desc, x, **operands):
    """Run on the CPU and return the stored codes as bytes or integers."""
    element = desc.output_element
    q = np.full((desc.m, element.storage_columns(desc.k)), 0x5A, np.uint8)
    carrier = q.view(np.int8) if element is qp.S8 else q if element is qp.U8 else qp.typed(q, element)
    x = np.asarray(x, desc.input_element.dtype).reshape(desc.m, desc.k)
    qp.QuantizePlan.select("cpu", desc).run(None, None, qp.QuantizeArgs(x=x, q=carrier, **operands))
    return (q.view(np.int8) if element is qp.S8 else q).tolist()


def row(x, dtype="f32", **fields):
    """Quantize one row."""
    return quantize(qp.QuantizeDescriptor(m=1, k=len(x), input_element=dtype, **fields), x)[0]


# ---- values


def test_symmetric_s8_by_hand():
    """Ties go to even, 127.6 does not wrap, −128 is never written, anything larger saturates."""
    x = [0.25, 0.75, -0.25, 1.25, 63.5, 63.8, -64.0, 1e30, -1e30, 2.0**31, INF, -INF, NAN, -0.0]
    assert row(x, scale=0.5) == [0, 2, 0, 2, 127, 127, -127, 127, -127, 127, 127, -127, 0, 0]


def test_the_quotient_is_a_true_division():
    """All of these quotients are ties, and a product with the rounded reciprocal of 7 misses 39 of them."""
    halves = np.arange(0.5, 127, dtype=F32)
    codes = row(halves * 7, scale=7.0)
    assert codes == [round(half) for half in halves.tolist()]
    assert np.sum(np.rint(halves * 7 * (F32(1) / F32(7))) != codes) == 39


def test_asymmetric_u8_by_hand():
    x = [0.0, -2.5, -2.75, 61.25, 61.5, 0.125, 0.375, NAN, INF, -INF]
    codes = row(x, output_element="u8", mode="asymmetric", scale=0.25, zero_point=10)
    assert codes == [10, 0, 0, 255, 255, 10, 12, 10, 255, 0]


def test_asymmetric_s8_uses_all_of_its_range():
    assert row([-100.0, 100.0, NAN], mode="asymmetric", scale=0.5, zero_point=-3) == [-128, 127, -3]


def test_a_zero_point_operand_far_outside_the_range_saturates():
    """The sum of code and zero point cannot wrap."""
    desc = qp.QuantizeDescriptor(m=3, k=2, mode="asymmetric", scope="token")
    zp = np.array([2**31 - 1, -(2**31), 5], np.int32)
    codes = quantize(desc, [[1, NAN], [1, NAN], [1e30, NAN]], scale=np.ones(3, F32), zero_point=zp)
    assert codes == [[127, 127], [-128, -128], [127, 5]]


def test_a_range_of_ones_own():
    assert row([-9.0, -3.0, 4.0, 9.0], scale=1.0, q_min=-5, q_max=6) == [-5, -3, 4, 6]


@pytest.mark.parametrize(
    "element, codes, stored",
    [
        ("s4", [1.0, -2.0, 7.4], [0xE1, 0x07]),
        ("s4", [-8.0, 9.0], [0x79]),
        ("u4", [1.0, 15.0, 20.0, -1.0, 3.0], [0xF1, 0x0F, 0x03]),
    ],
)
def test_4_bit_codes_are_packed_low_nibble_first_with_a_zero_tail(element, codes, stored):
    assert row(codes, output_element=element, scale=1.0) == stored


SCOPES = [
    ("tensor", [2], [[2, 4, 6], [-2, -4, -6], [2, 4, 6]]),
    ("token", [2, 4, 1], [[2, 4, 6], [-1, -2, -3], [4, 8, 12]]),
    ("channel:0", [2, 4, 1], [[2, 4, 6], [-1, -2, -3], [4, 8, 12]]),
    ("channel:1", [1, 2, 4], [[4, 4, 3], [-4, -4, -3], [4, 4, 3]]),
    ("group:2", [[1, 4], [2, 2], [4, 1]], [[4, 8, 3], [-2, -4, -6], [1, 2, 12]]),
    ("group:2:0", [[1, 2, 4], [4, 4, 1]], [[4, 4, 3], [-4, -4, -3], [1, 2, 12]]),
    ("group:99", [[1], [2], [4]], [[4, 8, 12], [-2, -4, -6], [1, 2, 3]]),
]


@pytest.mark.parametrize("scope, scale, codes", SCOPES, ids=[s[0] for s in SCOPES])
def test_each_scope_by_hand(scope, scale, codes):
    """A ragged last group is allowed, and so is a group larger than the axis."""
    x = [[4, 8, 12], [-4, -8, -12], [4, 8, 12]]
    assert quantize(qp.QuantizeDescriptor(m=3, k=3, scope=scope), x, scale=np.array(scale, F32)) == codes


E4M3 = [448.0, 464.0, 465.0, 1e30, INF, -INF, NAN, 2.0**-10, 2.0**-10 * 1.01, -1.0, 1.0625, -0.0]
E5M2 = [57344.0, 61439.0, 61440.0, 1e30, INF, -INF, NAN, 2.0**-17, 2.0**-17 * 1.01, -1.0, 1.125]


@pytest.mark.parametrize(
    "element, saturate, x, codes",
    [
        ("fp8_e4m3", True, E4M3, [0x7E, 0x7E, 0x7E, 0x7E, 0x7E, 0xFE, 0x7F, 0x00, 0x01, 0xB8, 0x38, 0x80]),
        ("fp8_e4m3", False, E4M3, [0x7E, 0x7E, 0x7F, 0x7F, 0x7F, 0x7F, 0x7F, 0x00, 0x01, 0xB8, 0x38, 0x80]),
        ("fp8_e5m2", True, E5M2, [0x7B, 0x7B, 0x7B, 0x7B, 0x7B, 0xFB, 0x7F, 0x00, 0x01, 0xBC, 0x3C]),
        ("fp8_e5m2", False, E5M2, [0x7B, 0x7B, 0x7C, 0x7C, 0x7C, 0xFC, 0x7F, 0x00, 0x01, 0xBC, 0x3C]),
    ],
)
def test_fp8_boundaries(element, saturate, x, codes):
    """448/464 and 57344/61440, and the halves of the smallest subnormals."""
    assert row(x, output_element=element, saturate=saturate, scale=1.0) == codes


def test_f64_rounds_once():
    """Just above a tie of the destination, and too close to it for f32 to see."""
    assert row([0.5 + 2.0**-40], "f64", scale=1.0) == [1]
    assert row([1.0625 + 2.0**-40], "f64", scale=1.0, output_element="fp8_e4m3") == [0x39]
    assert row([0.25 + 2.0**-40, 0.0], "f64", scale=1.0, output_element="fp8_e5m2") == [0x34, 0]


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
def test_each_input_element(dtype):
    assert row([1.5, -2.5, 100.0, NAN, INF], dtype, scale=1.0) == [2, -2, 100, 0, 127]


def test_mxfp8_by_hand():
    """E8M0 byte 127 is 2⁰, 128 is 2¹, 0 is 2⁻¹²⁷ and 255 is NaN."""
    desc = qp.QuantizeDescriptor(m=1, k=100, output_element="fp8_e4m3", scope="group:32", scale_element="e8m0")
    scale = qp.typed(np.array([[127, 128, 0, 255]], np.uint8), "e8m0")
    x = np.repeat([1.0, 1.0, 2.0**-127, 1.0], [32, 32, 32, 4])
    assert quantize(desc, x, scale=scale)[0] == [0x38] * 32 + [0x30] * 32 + [0x38] * 32 + [0x7F] * 4


def test_nvfp4_by_hand():
    """Ties go to even codes, 6 is the largest, and a block scale of zero makes every code zero."""
    desc = qp.QuantizeDescriptor(m=1, k=20, output_element="fp4_e2m1", scope="group:16")
    block_scale = np.array([[2.0, 0.0]], ml_dtypes.float8_e4m3fn)
    x = [0, 0.25, 0.26, 0.75, 1, 1.25, 2, 2.5, 3, 5, 5.01, 100, -1, -INF, NAN, -0.25, 9, -9, NAN, 1]
    stored = quantize(desc, x, scale=block_scale, global_scale=np.array([0.5], F32))
    codes = [0, 0, 1, 2, 2, 2, 4, 4, 5, 6, 7, 7, 10, 15, 0, 8, 0, 0, 0, 0]
    assert stored[0] == [low | high << 4 for low, high in zip(codes[::2], codes[1::2], strict=True)]


def test_a_nan_scale_operand_marks_the_codes():
    """The device cannot refuse what it is handed at run time, so the damage is defined."""
    desc = qp.QuantizeDescriptor(m=2, k=2, scope="token")
    assert quantize(desc, [[1, 2], [3, 4]], scale=np.array([NAN, 1], F32)) == [[0, 0], [3, 4]]
    floats = desc.replace(output_element="fp8_e4m3", q_min=None, q_max=None)
    assert quantize(floats, [[1, 2], [1, 2]], scale=np.array([NAN, 1], F32)) == [[0x7F, 0x7F], [0x38, 0x40]]


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("element", ["s8", "u4", "fp8_e4m3"])
def test_a_host_scale_and_a_tensor_give_the_same_bits(lab, dtype, element):
    host = qp.QuantizeDescriptor(m=5, k=37, input_element=dtype, output_element=element, scale=0.037)
    arrays = lab.operands(host)
    device = host.replace(scale=None)
    scale = np.array([0.037], device.scale_element.dtype)
    assert lab.run(host, arrays) == lab.run(device, arrays | {"scale": scale})


def test_a_host_zero_point_and_a_tensor_give_the_same_bits(lab):
    host = qp.QuantizeDescriptor(m=5, k=37, mode="asymmetric", scale=0.037, zero_point=-9)
    arrays = lab.operands(host)
    zero_point = {"zero_point": np.array([-9], np.int32)}
    assert lab.run(host, arrays) == lab.run(host.replace(zero_point=None), arrays | zero_point)


# ---- descriptor


def describe(**fields):
    return qp.QuantizeDescriptor(**{"m": 2, "k": 4} | fields)


@pytest.mark.parametrize(
    "element, mode, low, high",
    [
        ("s8", "symmetric", -127, 127),
        ("s8", "asymmetric", -128, 127),
        ("u8", "symmetric", 0, 255),
        ("u8", "asymmetric", 0, 255),
        ("s4", "symmetric", -7, 7),
        ("s4", "asymmetric", -8, 7),
        ("u4", "asymmetric", 0, 15),
        ("fp8_e4m3", "symmetric", None, None),
        ("fp4_e2m1", "symmetric", None, None),
    ],
)
def test_default_range(element, mode, low, high):
    """Symmetric signed formats leave their smallest value out."""
    scope = "group:16" if element == "fp4_e2m1" else "tensor"
    desc = describe(output_element=element, mode=mode, scope=scope)
    assert (desc.q_min, desc.q_max) == (low, high)


def test_default_elements():
    assert describe().scale_element is qp.F32
    assert describe(input_element="bf16").scale_element is qp.F32
    assert describe(input_element="f64").scale_element is qp.F64
    assert describe(output_element="fp4_e2m1", scope="group:16").scale_element is qp.FP8_E4M3
    assert (describe().input_element, describe().output_element) == (qp.F32, qp.S8)
    assert describe().scope == qp.Scope.tensor()


def test_elements_may_be_dtypes():
    desc = describe(input_element=np.float16, output_element=ml_dtypes.float8_e5m2)
    assert (desc.input_element, desc.output_element) == (qp.F16, qp.FP8_E5M2)


REFUSED = [
    ({"input_element": "s8"}, "input_element", "f64, f32, f16, bf16", "s8"),
    ({"output_element": "f16"}, "output_element", "s8, u8, s4, u4", "f16"),
    ({"output_element": "s32"}, "output_element", "s8", "s32"),
    ({"output_element": "e8m0"}, "output_element", "fp8_e4m3", "e8m0"),
    ({"scale_element": "f16"}, "scale_element", "f32 for s8", "f16"),
    ({"scale_element": "e8m0"}, "scale_element", "f32 for s8", "e8m0"),
    ({"scale_element": "f64"}, "scale_element", "f32 for s8", "f64"),
    ({"input_element": "f64", "scale_element": "f32"}, "scale_element", "f64 for s8", "f32"),
    ({"output_element": "fp8_e4m3", "scale_element": "fp8_e4m3"}, "scale_element", "f32 or e8m0", "fp8_e4m3"),
    ({"output_element": "fp4_e2m1", "scope": "tensor"}, "scope", "group:16:1 (NVFP4)", "tensor"),
    ({"output_element": "fp4_e2m1", "scope": "group:32"}, "scope", "group:16:1 (NVFP4)", "group:32:1"),
    ({"output_element": "fp4_e2m1", "scope": "group:16:0"}, "scope", "group:16:1 (NVFP4)", "group:16:0"),
    (
        {"output_element": "fp4_e2m1", "scope": "group:16", "scale_element": "f32"},
        "scale_element",
        "fp8_e4m3 for fp4_e2m1",
        "f32",
    ),
    ({"output_element": "fp8_e5m2", "mode": "asymmetric"}, "mode", "symmetric for fp8_e5m2", "asymmetric"),
    ({"output_element": "fp8_e4m3", "q_max": 100}, "q_min, q_max", "None for fp8_e4m3", "(None, 100)"),
    ({"q_min": 5}, "q_min, q_max", "-128 ≤ q_min ≤ 0", "(5, 127)"),
    ({"q_min": -129}, "q_min, q_max", "-128 ≤ q_min ≤ 0", "(-129, 127)"),
    ({"q_max": 128}, "q_min, q_max", "q_max ≤ 127", "(-127, 128)"),
    ({"q_min": 0, "q_max": 0}, "q_min, q_max", "q_min < q_max", "(0, 0)"),
    ({"q_max": 0}, "q_max", "more than 0 for symmetric", "0"),
    ({"q_max": 1.0}, "q_max", "an integer", "1.0"),
    ({"q_max": True}, "q_max", "an integer", "True"),
    ({"q_min": None}, "q_min", "an integer", "None"),
    ({"saturate": False}, "saturate", "True for s8", "False"),
    ({"output_element": "fp4_e2m1", "scope": "group:16", "saturate": False}, "saturate", "True for fp4", "False"),
    ({"scope": "token", "scale": 1.0}, "scale", "None unless the scope is tensor", "1.0"),
    ({"output_element": "fp8_e4m3", "scale_element": "e8m0", "scale": 1.0}, "scale", "None for e8m0 scales", "1.0"),
    ({"zero_point": 1}, "zero_point", "None unless asymmetric", "1"),
    ({"mode": "asymmetric", "scope": "token", "zero_point": 1}, "zero_point", "None unless asymmetric", "1"),
    ({"mode": "asymmetric", "zero_point": 128}, "zero_point", "an integer in [-128, 127]", "128"),
    ({"mode": "asymmetric", "zero_point": 1.0}, "zero_point", "an integer", "1.0"),
    ({"mode": "asymmetric", "zero_point": True}, "zero_point", "an integer", "True"),
    ({"mode": "asymmetric", "q_min": -5, "zero_point": -6}, "zero_point", "an integer in [-5, 127]", "-6"),
]


@pytest.mark.parametrize("fields, field, expected, got", REFUSED)
def test_the_descriptor_refuses(fields, field, expected, got):
    with pytest.raises(qp.InvalidProblem) as caught:
        describe(**fields)
    assert (caught.value.op, caught.value.field) == ("QuantizeDescriptor", field)
    assert expected in str(caught.value.expected)
    assert str(caught.value.got) == got


@pytest.mark.parametrize("scale", [NAN, INF, -INF, 0.0, -1.0, 1e39, 1e-46, True, "1", np.ones(1)])
def test_a_host_scale_must_be_a_finite_number_above_zero_in_its_element(scale):
    """1e39 and 1e-46 are infinite and zero as f32, where they are used."""
    with pytest.raises(qp.InvalidProblem) as caught:
        describe(scale=scale)
    assert (caught.value.op, caught.value.field) == ("QuantizeDescriptor", "scale")
    assert caught.value.expected in ("a finite f32 above 0", "a number")


def test_an_integer_too_large_for_any_float_is_refused_like_infinity():
    with pytest.raises(qp.InvalidProblem) as caught:
        describe(scale=10**400)
    assert caught.value.field == "scale"


def test_numpys_numbers_are_numbers():
    desc = describe(mode="asymmetric", scale=F32(0.1), zero_point=np.int64(3), q_max=np.int8(100), m=np.int32(2))
    assert (type(desc.scale), desc.scale) == (float, float(F32(0.1)))
    assert [type(v) for v in (desc.zero_point, desc.q_max, desc.m)] == [int] * 3


def test_an_f64_scale_may_lie_beyond_f32():
    """The scale's element decides what is finite."""
    assert describe(input_element="f64", scale=1e39).scale == 1e39


NAMED = [
    ({"m": -1}, "m"),
    ({"m": 1.5}, "m"),
    ({"m": True}, "m"),
    ({"k": 2**31}, "k"),
    ({"k": "4"}, "k"),
    ({"input_element": "f99"}, "input_element"),
    ({"output_element": "nothing"}, "output_element"),
    ({"scale_element": "nothing"}, "scale_element"),
    ({"scope": "rows"}, "scope"),
    ({"scope": None}, "scope"),
    ({"mode": "lopsided"}, "mode"),
    ({"saturate": "no"}, "saturate"),
]


@pytest.mark.parametrize("fields, field", NAMED)
def test_a_value_that_is_none_of_its_field_is_refused_under_the_fields_name(fields, field):
    with pytest.raises(qp.InvalidProblem) as caught:
        describe(**fields)
    assert (caught.value.op, caught.value.field) == ("QuantizeDescriptor", field)


# ---- operands


@pytest.mark.parametrize(
    "desc, change, field, words",
    [
        (describe(), {"scale": None}, "scale", "host value: scale="),
        (describe(scale=1.0), {"scale": np.ones(1, F32)}, "scale", "no operand"),
        (describe(scale=1.0), {"zero_point": np.ones(1, np.int32)}, "zero_point", "no operand"),
        (describe(scale=1.0), {"global_scale": np.ones(1, F32)}, "global_scale", "no operand"),
        (describe(mode="asymmetric", scale=1.0), {"zero_point": None}, "zero_point", "shape (1,)"),
        (describe(mode="asymmetric", scale=1.0), {"zero_point": np.ones(1, np.int64)}, "zero_point", "int64"),
        (describe(mode="asymmetric", scale=1.0), {"zero_point": np.ones(1, np.int8)}, "zero_point", "element s32"),
        (describe(output_element="fp4_e2m1", scope="group:16"), {"global_scale": None}, "global_scale", "(1,)"),
        (describe(), {"scale": np.ones((), F32)}, "scale", "(scales=1,)"),
        (describe(), {"scale": np.ones(2, F32)}, "scale", "(scales=1,)"),
        (describe(), {"scale": np.ones(1)}, "scale", "element f32"),
        (describe(scope="token"), {"scale": np.ones(4, F32)}, "scale", "(scales=2,)"),
        (describe(scope="group:3"), {"scale": np.ones((2, 1), F32)}, "scale", "(rows=2, columns=2)"),
        (describe(), {"x": np.ones((2, 4))}, "x", "element f32"),
        (describe(), {"x": np.ones((2, 5), F32)}, "x", "(M=2, K=4)"),
        (describe(), {"x": np.ones((4, 2), F32).T}, "x", "contiguous last axis"),
        (describe(), {"x": np.ones((4, 2), F32)}, "x", "transposed"),
        (describe(), {"q": np.ones((2, 4), np.uint8)}, "q", "element s8"),
        (describe(output_element="fp8_e4m3"), {"q": np.ones((2, 4), np.uint8)}, "q", "quantplan.FP8_E4M3"),
    ],
)
def test_operands_are_held_to_the_descriptor(lab, desc, change, field, words):
    arrays = lab.operands(desc) | change
    with pytest.raises(qp.InvalidProblem) as caught:
        lab.run(desc, arrays)
    assert caught.value.field == field
    assert words in str(caught.value)


def test_plain_bytes_are_no_packed_codes():
    """The same bytes could be u8 or u4: which, only the caller knows."""
    desc = describe(output_element="s4", scale=1.0)
    args = qp.QuantizeArgs(x=np.ones((2, 4), F32), q=np.ones((2, 2), np.int8))
    with pytest.raises(qp.InvalidProblem, match=r"quantplan\.typed\(array, quantplan\.S4\)") as caught:
        qp.QuantizePlan.select("cpu", desc).can_implement(args)
    assert caught.value.field == "q"


def test_an_operand_that_is_no_tensor_is_refused_under_its_name():
    """A scale that somebody forgot to wrap."""
    q = np.empty((1, 1), np.int8)
    with pytest.raises(qp.InvalidProblem, match="wrap a number") as caught:
        qp.QuantizeArgs(x=np.ones((1, 1), F32), q=q, scale=0.5)
    assert caught.value.field == "scale"


def test_fp8_codes_may_travel_as_uint8_of_numpy_or_torch():
    desc = qp.QuantizeDescriptor(m=2, k=2, output_element="fp8_e4m3", scale=1.0)
    x = np.array([[1, 2], [-1, 448]], F32)

    def torch(array, dtype):
        def stride():
            return tuple(s // array.itemsize for s in array.strides)

        device = SimpleNamespace(type="cpu", index=None)
        pointer = array.__array_interface__["data"][0]
        return SimpleNamespace(
            data_ptr=lambda: pointer, stride=stride, shape=array.shape, dtype=dtype, device=device, owner=array
        )

    for wrap in (
        lambda q: qp.typed(q, qp.FP8_E4M3),
        lambda q: qp.typed(q.view(np.int8), "fp8_e4m3"),
        lambda q: q.view(ml_dtypes.float8_e4m3fn),
        lambda q: qp.typed(torch(q, "torch.uint8"), qp.FP8_E4M3),
        lambda q: torch(q, "torch.float8_e4m3fn"),
    ):
        q = np.zeros((2, 2), np.uint8)
        qp.QuantizePlan.select("cpu", desc).run(None, None, qp.QuantizeArgs(x=torch(x, "torch.float32"), q=wrap(q)))
        assert q.tolist() == [[0x38, 0x40], [0xB8, 0x7E]]


# ---- shapes and memory


@pytest.mark.parametrize("how", ["strided", "misaligned"])
def test_every_sku_gives_the_same_bits_from_awkward_memory(lab, how):
    """A view at an odd address, and rows that lie apart; nothing outside the rows is written."""
    for desc in qp.QuantizePlan.catalogue():
        arrays = lab.operands(desc)
        awkward = {name: getattr(lab, how)(array) for name, array in arrays.items() if name in ("x", "q")}
        assert lab.run(desc, arrays) == lab.run(desc, arrays | awkward), desc
        if how == "strided":
            assert lab.gaps(awkward["q"]) == {0xA5}, desc


def test_every_sku_quantizes_a_row_alike_whatever_m(lab):
    """A row's bits depend neither on M nor on other rows."""
    for desc in qp.QuantizePlan.catalogue():
        desc = desc.replace(m=5)  # noqa: PLW2901 - the same SKU with more rows
        arrays = lab.operands(desc)
        lab.run(desc, arrays)
        for i in (0, 3, 4):
            alone, part = lab.row(desc, arrays, i)
            lab.run(alone, part)
            assert part["q"].tobytes() == arrays["q"][i : i + 1].tobytes(), (desc, i)


@pytest.mark.parametrize("m, k", [(0, 4), (3, 0), (0, 0)])
def test_empty_problems_launch_nothing(lab, monkeypatch, m, k):
    calls = []
    monkeypatch.setattr(module, "quantize", lambda *args, **fields: calls.append(fields["scope"]))
    for scope in ("tensor", "token", "channel:1", "group:2", "group:2:0"):
        desc = qp.QuantizeDescriptor(m=m, k=k, scope=scope)
        lab.run(desc, lab.operands(desc))
        assert calls == []
        desc = desc.replace(m=1, k=1)
        lab.run(desc, lab.operands(desc))
        assert calls == [desc.scope], "what is not empty is launched"
        calls.clear()


def test_more_rows_than_a_16_bit_grid(lab):
    m = 70_001
    desc = qp.QuantizeDescriptor(m=m, k=3, scope="token")
    arrays = lab.operands(desc)
    arrays["scale"][:] = 0.5
    arrays["x"][:] = (np.arange(m) % 50)[:, None] + [[0.0, 0.5, 1.0]]
    lab.run(desc, arrays)
    expected = 2 * (np.arange(m) % 50)[:, None] + [[0, 1, 2]]
    np.testing.assert_array_equal(arrays["q"], expected)


def test_rows_more_than_2_gib_apart():
    """The distance between rows exceeds 31 bits. Of the buffers only a few pages are ever touched."""
    x, q = (np.empty(GB2 + 64, np.uint8) for _ in range(2))
    rows = np.lib.stride_tricks.as_strided(x[:16].view(F32), (2, 4), (GB2, 4))
    codes = np.lib.stride_tricks.as_strided(q[:4].view(np.int8), (2, 4), (GB2, 1))
    rows[...] = [[1, 2, 3, 4], [-5, -6, -7, -8]]
    desc = qp.QuantizeDescriptor(m=2, k=4, scale=1.0)
    qp.QuantizePlan.select("cpu", desc).run(None, None, qp.QuantizeArgs(x=rows, q=codes))
    assert codes.tolist() == [[1, 2, 3, 4], [-5, -6, -7, -8]]


def test_more_than_2_31_elements_are_checked_without_wrapping():
    """The product m · k is 65536 · 65537, which is 65536 in 32 bits. Nothing is read, so there is no memory."""
    m, k = 65536, 65537
    desc = qp.QuantizeDescriptor(m=m, k=k, scale=1.0)
    plan = qp.QuantizePlan.select("cpu", desc)
    x = qp.TensorView(1 << 40, (m, k), (k, 1), qp.F32)
    far = (1 << 40) + 4 * m * k
    plan.can_implement(qp.QuantizeArgs(x=x, q=qp.TensorView(far, (m, k), (k, 1), qp.S8)))
    with pytest.raises(qp.InvalidProblem, match="overlapping") as caught:
        plan.can_implement(qp.QuantizeArgs(x=x, q=qp.TensorView(far - 1, (m, k), (k, 1), qp.S8)))
    assert caught.value.field == "q"
    with pytest.raises(qp.InvalidProblem, match="K=65537"):
        plan.can_implement(qp.QuantizeArgs(x=x, q=qp.TensorView(far, (m, 1), (1, 1), qp.S8)))


# ---- SKUs, selection, guarantees


def test_every_sku_of_the_catalogue_is_selected_under_a_name_of_its_own():
    catalogue = list(qp.QuantizePlan.catalogue())
    skus = [qp.QuantizePlan.select("cpu", desc).sku for desc in catalogue]
    assert len({sku.name for sku in skus}) == len(skus)
    assert len(set(skus)) == len(skus)


def test_the_catalogue_covers_every_element_scope_and_mode():
    catalogue = list(qp.QuantizePlan.catalogue())
    reals, integers = (qp.F64, qp.F32, qp.F16, qp.BF16), (qp.S8, qp.U8, qp.S4, qp.U4)
    seen = {(d.input_element, d.output_element, d.mode) for d in catalogue}
    assert seen >= set(itertools.product(reals, integers, qp.QuantizeMode))
    assert {(d.input_element, d.output_element, d.scale_element, d.saturate) for d in catalogue} >= {
        (real, fp8, scale, saturate)
        for real, fp8, saturate in itertools.product(reals, (qp.FP8_E4M3, qp.FP8_E5M2), (True, False))
        for scale in (qp.E8M0, qp.F64 if real is qp.F64 else qp.F32)
    }
    assert {d.input_element for d in catalogue if d.output_element is qp.FP4_E2M1} == set(reals)
    assert {(d.scope.kind, d.scope.axis) for d in catalogue} >= {
        (qp.ScopeKind.TENSOR, None),
        (qp.ScopeKind.TOKEN, None),
        (qp.ScopeKind.CHANNEL, 1),
        (qp.ScopeKind.GROUP, 0),
        (qp.ScopeKind.GROUP, 1),
    }


@pytest.mark.parametrize("target", ["sm_80", "sm_90a", "sm_121", "emulated:sm_80"])
def test_gpus_run_our_own_kernels(target):
    variants = qp.QuantizePlan.why_not(target, describe())
    assert next(report.name for report in variants if report.supported) != "reference"
    assert variants[-1].name == "reference"
    assert not variants[-1].supported


@pytest.mark.parametrize("target", ["sm_75", "emulated:sm_75"])
def test_where_no_variant_runs_each_says_why(target):
    with pytest.raises(qp.Unsupported) as caught:
        qp.QuantizePlan.select(target, describe())
    assert caught.value.op == "quantize"
    assert caught.value.variants
    assert all(report.reason and not report.supported for report in caught.value.variants)
    assert target in str(caught.value)


def test_every_sku_promises_the_references_bits():
    for desc in qp.QuantizePlan.catalogue():
        guarantee = qp.QuantizePlan.select("cpu", desc).precision_guarantee
        assert guarantee.flags == set(qp.PrecisionGuarantee.FLAGS)
        assert guarantee.accumulator is (qp.F64 if desc.input_element is qp.F64 else qp.F32)


def test_the_error_bound_holds_for_every_sku(lab):
    """|(q − zero_point) · scale − x| in exact arithmetic; the bound has the output's shape."""
    for desc in qp.QuantizePlan.catalogue():
        arrays = lab.operands(desc)
        lab.run(desc, arrays)
        bound = qp.QuantizePlan.select("cpu", desc).precision_guarantee.error_bound.bound(desc, lab.args(desc, arrays))
        assert bound.shape == (desc.m, desc.k)
        assert bound.dtype == np.float64
        assert np.any(np.isfinite(bound)), desc
        real = lab.reals(desc, arrays, desc.output_element)
        for at, limit in np.ndenumerate(bound):
            if limit < INF:
                error = abs(real[at] - Fraction(float(arrays["x"][at])))
                assert error <= Fraction(float(limit)), (desc, at)


PREFERENCES = [
    (qp.PlanPreference(backend=qp.BackendKind.BESPOKE), "backend is reference, and bespoke is required"),
    (qp.PlanPreference(accumulation=qp.Accumulation.FAST), "no choice of accumulation"),
    (qp.PlanPreference(accumulation=qp.Accumulation.PROMOTED), "no choice of accumulation"),
]


@pytest.mark.parametrize("pref, reason", PREFERENCES)
def test_a_preference_that_cannot_be_met_is_an_error(pref, reason):
    with pytest.raises(qp.Unsupported) as caught:
        qp.QuantizePlan.select("cpu", describe(), pref)
    *kernels, reference = caught.value.variants
    assert reason in reference.reason
    assert all("the target is cpu" in report.reason or "scope" in report.reason for report in kernels)


def test_preferences_that_are_met_change_nothing():
    pref = qp.PlanPreference(
        backend="reference",
        max_workspace_bytes=0,
        require_deterministic=True,
        require_batch_invariant=True,
        require_bit_identical=True,
    )
    plan = qp.QuantizePlan.select("cpu", describe(), pref)
    assert plan.sku == qp.QuantizePlan.select("cpu", describe()).sku
    assert plan.workspace_size == 0
