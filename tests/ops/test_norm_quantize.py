"""NormQuantize on the reference device, through the public API."""

import pickle

import numpy as np
import pytest

import quantplan as qp

F32 = np.float32
BF16 = qp.BF16.dtype
ALL = {"residual": True, "gated": True, "bias": True, "modulated": True, "multiplier": True}
QUANTIZED = {
    "s8 token": {},
    "e4m3 token": {"output_element": "fp8_e4m3"},
    "e4m3 block": {"output_element": "fp8_e4m3", "scope": "group:128"},
    "e4m3 mx": {"output_element": "fp8_e4m3", "scope": "group:32"},
}


def describe(**fields):
    return qp.NormQuantizeDescriptor(**{"m": 2, "k": 4, "input_element": "f32"} | fields)


def run(desc, **inputs):
    """Run on the CPU with operands that are cast to what they must be; return the outputs by name."""
    elements = {operand.name: operand.element.dtype for operand in qp.NormQuantizePlan.operands(desc)}
    outputs = {o.name: np.empty(o.storage, o.element.dtype) for o in qp.NormQuantizePlan.operands(desc) if o.output}
    arrays = {name: np.asarray(value).astype(elements[name]) for name, value in inputs.items()}
    plan = qp.NormQuantizePlan.select("cpu", desc)
    plan.run(None, None, qp.NormQuantizeArgs(**outputs, **arrays))
    return outputs


# ---- by hand


def test_rms_by_hand():
    """Mean squares 9 and 4, and an ε of 7 and of 12: the root is 4."""
    x = [[3, 1, -1, 5], [2, -2, 2, -2]]
    weight = [1, 2, 4, -1]
    out = run(describe(epsilon=7.0, output_element="f32"), x=x, weight=weight)
    assert out["output"][0].tolist() == [0.75, 0.5, -1, -1.25]
    out = run(describe(epsilon=12.0, output_element="bf16"), x=x, weight=weight)
    assert out["output"].astype(F32)[1].tolist() == [0.5, -1, 2, 0.5]


def test_layer_by_hand():
    """Mean 4, distances −3, −1, 1, 3, mean square 5 and an ε of 11; then codes of 0.25 · 127 each step."""
    desc = describe(m=1, norm="layer", epsilon=11.0, bias=True)
    out = run(desc, x=[[1, 3, 5, 7]], weight=[4 * 127, 4 * 127, 4 * 127, 4], bias=[0, 0, 254, 124])
    assert out["scale"].tolist() == [3]  # −381, −127, 381, 127
    assert out["output"].tolist() == [[-127, -42, 127, 42]]


def test_codes_per_token_by_hand():
    out = run(describe(epsilon=1e-30), x=[[2, -2, 2, 2], [-1, -1, 1, 1]], weight=[127, 63.5, 1, 254])
    assert out["scale"].tolist() == [2, 2]
    assert out["output"].tolist() == [[64, -32, 0, 127], [-64, -32, 0, 127]]  # 63.5 and −31.75, 0.5


def test_a_static_scale_saturates():
    fields = {"epsilon": 1e-30, "scope": "tensor", "m": 1}
    x, weight = [[2, -2, 2, -2]], [127, 128, 0.5, 1e9]
    assert run(describe(scale=1.0, **fields), x=x, weight=weight)["output"].tolist() == [[127, -127, 0, -127]]
    out = run(describe(**fields), x=x, weight=weight, scale=[0.5])
    assert set(out) == {"output"}
    assert out["output"].tolist() == [[127, -127, 1, -127]]
    out = run(describe(output_element="fp8_e4m3", scale=1.0, **fields), x=x, weight=weight)
    assert out["output"].view(np.uint8).tolist() == [[0x70, 0xF0, 0x30, 0xFE]]


def test_everything_by_hand():
    """The stream is 1 + 2·x, and y = ((n·3 + 1)·(1 + 1) − 1)·10, for n = ±1."""
    desc = describe(m=2, k=2, epsilon=1e-30, output_element="f32", **ALL)
    full = {"weight": [3, 3], "bias": [1, 1], "multiplier": [10, 10]}
    condition = {"residual_gate": [[2, 2]], "modulation_scale": [[1, 1]], "modulation_shift": [[-1, -1]]}
    out = run(desc, x=[[1, -2], [0.5, 0.5]], residual=[[1, 1], [-3, -3]], **full, **condition)
    assert out["residual_output"].tolist() == [[3, -3], [-2, -2]]
    assert out["output"].tolist() == [[70, -50], [-50, -50]]


def test_rows_share_their_condition():
    desc = describe(m=3, k=2, epsilon=1e-30, output_element="f32", weight=False, modulated=True, rows_per_condition=2)
    out = run(desc, x=np.ones((3, 2)), modulation_scale=[[0, 1], [2, 3]], modulation_shift=[[0, 0], [10, 10]])
    assert out["output"].tolist() == [[1, 2], [1, 2], [13, 14]]


def test_mx_scales_are_powers_of_two():
    x = np.ones((1, 33))
    weight = np.full(33, 448.0)
    weight[32] = 449
    out = run(describe(m=1, k=33, epsilon=1e-30, output_element="fp8_e4m3", scope="group:32"), x=x, weight=weight)
    assert out["scale"].view(np.uint8).tolist() == [[127, 128]]
    assert set(out["output"].view(np.uint8)[0].tolist()) == {0x7E, 0x76}


def test_a_nan_stays_in_its_row():
    x = np.ones((3, 4))
    x[1, 2] = np.nan
    out = run(describe(m=3), x=x, weight=np.ones(4))
    assert np.isnan(out["scale"]).tolist() == [False, True, False]
    assert out["output"].tolist() == [[127] * 4, [0] * 4, [127] * 4]


# ---- properties


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("element", ["f32", "f16", "bf16"])
def test_it_is_the_norm_that_it_says_within_its_bound(lab, norm, element):
    """In float64, whose own error is a millionth of the bound at most; the stream is the one that was stored."""
    desc = describe(m=5, k=200, norm=norm, input_element=element, output_element="f32", rows_per_condition=2, **ALL)
    arrays = lab.operands(desc)
    lab.run(desc, arrays)
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    condition = np.arange(5) // 2
    h = wide["residual"] + wide["residual_gate"][condition] * wide["x"]
    d = h - h.mean(axis=1, keepdims=True) if norm == "layer" else h
    y = d / np.sqrt((d * d).mean(axis=1, keepdims=True) + desc.epsilon) * wide["weight"] + wide["bias"]
    y = y * (1 + wide["modulation_scale"][condition]) + wide["modulation_shift"][condition]
    y *= wide["multiplier"]
    plan = qp.NormQuantizePlan.select("cpu", desc)
    bound = plan.precision_guarantee.error_bound.bound(desc, lab.args(desc, arrays))
    assert np.isfinite(bound).all()
    assert (np.abs(wide["output"] - y) <= bound).all()


@pytest.mark.parametrize("quantized", QUANTIZED)
def test_codes_are_those_of_the_rows_that_it_would_give_unquantized(lab, quantized):
    real = describe(m=6, k=140, norm="layer", input_element="bf16", output_element="f32", **ALL)
    arrays = lab.operands(real)
    lab.run(real, arrays)
    desc = real.replace(**({"output_element": "s8"} | QUANTIZED[quantized]))
    assert desc.scope is not None
    mine = {**lab.operands(desc), **{name: array for name, array in arrays.items() if name != "output"}}
    lab.run(desc, mine)
    scale_element = "e8m0" if quantized == "e4m3 mx" else "f32"
    fields = {"output_element": desc.output_element, "scope": desc.scope, "scale_element": scale_element}
    q, scale = np.empty_like(mine["output"]), np.empty_like(mine["scale"])
    plan = qp.DynamicRangeQuantizePlan.select("cpu", qp.DynamicRangeQuantizeDescriptor(m=6, k=140, **fields))
    plan.run(None, None, qp.DynamicRangeQuantizeArgs(x=arrays["output"], q=q, scale=scale))
    assert (mine["output"].tobytes(), mine["scale"].tobytes()) == (q.tobytes(), scale.tobytes())


@pytest.mark.parametrize("output", ["s8", "fp8_e4m3"])
def test_static_codes_are_those_of_quantize(lab, output):
    real = describe(m=6, k=140, output_element="f32")
    arrays = lab.operands(real)
    lab.run(real, arrays)
    desc = real.replace(output_element=output, scope="tensor")
    mine = {**lab.operands(desc), **{name: array for name, array in arrays.items() if name != "output"}}
    lab.run(desc, mine)
    host = desc.replace(scale=float(mine["scale"][0]))
    again = {name: array.copy() for name, array in mine.items() if name != "scale"}
    assert lab.run(host, again)["output"] == mine["output"].tobytes()
    q = np.empty_like(mine["output"])
    plan = qp.QuantizePlan.select("cpu", qp.QuantizeDescriptor(m=6, k=140, output_element=output))
    plan.run(None, None, qp.QuantizeArgs(x=arrays["output"], q=q, scale=mine["scale"]))
    assert mine["output"].tobytes() == q.tobytes()


def test_the_stream_that_is_stored_is_the_stream_that_is_normalized(lab):
    """In bf16 the sum is rounded; without a residual, its rounded values give the same codes."""
    desc = describe(m=4, k=96, input_element="bf16", residual=True)
    arrays = lab.operands(desc)
    outputs = lab.run(desc, arrays)
    plain = desc.replace(residual=False)
    again = {**lab.operands(plain), "x": arrays["residual_output"], "weight": arrays["weight"]}
    assert lab.run(plain, again)["output"] == outputs["output"]


# ---- descriptor


def test_defaults():
    desc = qp.NormQuantizeDescriptor(m=2, k=4)
    assert (desc.norm, desc.input_element, desc.output_element) == (qp.NormKind.RMS, qp.BF16, qp.S8)
    assert (desc.scope, desc.scale, desc.weight, desc.residual) == (qp.Scope.token(), None, True, False)
    assert desc.replace(output_element="f16").scope is None
    assert desc.replace(scope="tensor").scope == qp.Scope.tensor()


@pytest.mark.parametrize("rows, conditions", [(None, 1), (1, 7), (2, 4), (7, 1), (100, 1)])
def test_conditions(rows, conditions):
    assert describe(m=7, modulated=True, rows_per_condition=rows).conditions == conditions


REFUSED = [
    ({"input_element": "f64"}, "input_element", "one of f32, f16, bf16", "f64"),
    ({"output_element": "u8"}, "output_element", "one of f32, f16, bf16, s8, fp8_e4m3", "u8"),
    ({"output_element": "fp8_e5m2"}, "output_element", "fp8_e4m3", "fp8_e5m2"),
    ({"scope": "channel:1"}, "scope", "tensor, token for s8", "channel:1"),
    ({"scope": "group:128"}, "scope", "tensor, token for s8", "group:128:1"),
    ({"scope": None}, "scope", "tensor, token for s8", "None"),
    ({"output_element": "f16", "scope": "token"}, "scope", "None for f16", "token"),
    ({"output_element": "fp8_e4m3", "scope": "group:64"}, "scope", "group:128:1, group:32:1", "group:64:1"),
    ({"output_element": "fp8_e4m3", "scope": "group:32:0"}, "scope", "group:32:1 for fp8_e4m3", "group:32:0"),
    ({"scale": 1.0}, "scale", "None unless the scope is tensor", "1.0"),
    ({"output_element": "f32", "scale": 1.0}, "scale", "None unless the scope is tensor", "1.0"),
    ({"scope": "tensor", "scale": 0.0}, "scale", "a finite f32 above 0", "0.0"),
    ({"scope": "tensor", "scale": -1.0}, "scale", "a finite f32 above 0", "-1.0"),
    ({"scope": "tensor", "scale": np.inf}, "scale", "a finite f32 above 0", "inf"),
    ({"epsilon": 0.0}, "epsilon", "a finite f32 above 0", "0.0"),
    ({"epsilon": -1e-5}, "epsilon", "a finite f32 above 0", "-1e-05"),
    ({"epsilon": 1e-60}, "epsilon", "a finite f32 above 0", "1e-60"),
    ({"epsilon": 1e39}, "epsilon", "a finite f32 above 0", "1e+39"),
    ({"epsilon": np.nan}, "epsilon", "a finite f32 above 0", "nan"),
    ({"epsilon": None}, "epsilon", "a number", "None"),
    ({"gated": True}, "gated", "False without a residual", "True"),
    ({"rows_per_condition": 2}, "rows_per_condition", "None unless gated or modulated", "2"),
    ({"residual": True, "rows_per_condition": 2}, "rows_per_condition", "None unless gated or modulated", "2"),
    ({"modulated": True, "rows_per_condition": 0}, "rows_per_condition", "[1, 2**31)", "0"),
    ({"modulated": True, "rows_per_condition": 2**31}, "rows_per_condition", "[1, 2**31)", "2147483648"),
    ({"norm": "batch"}, "norm", "one of rms, layer", "'batch'"),
    ({"residual": 1}, "residual", "True or False", "1"),
    ({"m": 2**31}, "m", "[0, 2**31)", "2147483648"),
    ({"k": -1}, "k", "[0, 2**31)", "-1"),
]


@pytest.mark.parametrize("fields, field, expected, got", REFUSED)
def test_the_descriptor_refuses(fields, field, expected, got):
    with pytest.raises(qp.InvalidProblem) as caught:
        describe(**fields)
    assert (caught.value.op, caught.value.field) == ("NormQuantizeDescriptor", field)
    assert expected in str(caught.value.expected)
    assert str(caught.value.got) == got


def test_refusals_say_what_to_do():
    for fields, words in (({"scope": "channel:0"}, "fold it into the multiplier"), ({"scale": 1.0}, "are found")):
        with pytest.raises(qp.InvalidProblem) as caught:
            describe(**fields)
        assert words in caught.value.hint


def test_rows_are_limited():
    """A mean divides by K, which an f32 holds up to 2²⁴."""
    qp.NormQuantizePlan.select("cpu", describe(k=1 << 24))
    for target in ("cpu", "sm_90a"):
        with pytest.raises(qp.Unsupported, match="at most 16777216 elements"):
            qp.NormQuantizePlan.select(target, describe(k=(1 << 24) + 1))


def test_descriptors_are_data():
    for desc in qp.NormQuantizePlan.catalogue():
        for changed in (desc, desc.replace(m=9, modulated=True, rows_per_condition=2, epsilon=1e-6, norm="layer")):
            assert pickle.loads(pickle.dumps(changed)) == changed
            again = type(changed).from_dict(changed.to_dict())
            assert (again, hash(again)) == (changed, hash(changed))
            assert changed.replace(m=3).replace(m=changed.m) == changed


# ---- operands


@pytest.mark.parametrize(
    "fields, change, field, words",
    [
        ({}, {"weight": None}, "weight", "shape (4,)"),
        ({"weight": False}, {"weight": np.ones(4, F32)}, "weight", "no operand"),
        ({}, {"bias": np.ones(4, F32)}, "bias", "no operand"),
        ({}, {"residual": np.ones((2, 4), F32)}, "residual", "no operand"),
        ({"residual": True}, {"residual_output": None}, "residual_output", "shape (2, 4)"),
        ({"residual": True}, {"residual_gate": np.ones((1, 4), F32)}, "residual_gate", "no operand"),
        ({"modulated": True}, {"modulation_shift": None}, "modulation_shift", "shape (1, 4)"),
        ({"modulated": True}, {"modulation_scale": np.ones((2, 4), F32)}, "modulation_scale", "(conditions=1, K=4)"),
        ({"multiplier": True}, {"multiplier": np.ones(4, np.float16)}, "multiplier", "element f32"),
        ({}, {"weight": np.ones(4, np.float64)}, "weight", "element f32"),
        ({}, {"weight": np.ones((1, 4), F32)}, "weight", "(K=4,)"),
        ({}, {"x": np.ones((2, 4), BF16)}, "x", "element f32"),
        ({}, {"x": np.ones((4, 2), F32).T}, "x", "contiguous last axis"),
        ({}, {"output": np.ones((2, 5), np.int8)}, "output", "(M=2, K=4)"),
        ({}, {"scale": None}, "scale", "shape (2,)"),
        ({}, {"scale": np.ones(1, F32)}, "scale", "(scales=2,)"),
        ({"scope": "tensor"}, {"scale": None}, "scale", "host value: scale="),
        ({"scope": "tensor", "scale": 1.0}, {"scale": np.ones(1, F32)}, "scale", "no operand"),
        ({"output_element": "f32"}, {"scale": np.ones(2, F32)}, "scale", "no operand"),
        ({"output_element": "fp8_e4m3", "scope": "group:32"}, {"scale": np.ones((2, 1), F32)}, "scale", "e8m0"),
        ({"output_element": "fp8_e4m3", "scope": "group:128"}, {"scale": np.ones((2, 2), F32)}, "scale", "columns=1"),
    ],
)
def test_operands_are_held_to_the_descriptor(lab, fields, change, field, words):
    desc = describe(**fields)
    with pytest.raises(qp.InvalidProblem) as caught:
        lab.run(desc, lab.operands(desc) | change)
    assert caught.value.field == field
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["output", "scale", "residual_output"])
def test_outputs_must_be_writable(lab, name):
    desc = describe(residual=True)
    arrays = lab.operands(desc)
    arrays[name].flags.writeable = False
    with pytest.raises(qp.InvalidProblem, match="writable memory") as caught:
        lab.run(desc, arrays)
    assert caught.value.field == name


# ---- in place


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("how", ["copy", "strided", "misaligned"])
def test_the_stream_may_be_updated_in_place(lab, norm, how):
    desc = describe(m=5, k=50, norm=norm, input_element="bf16", residual=True, gated=True)
    arrays = lab.operands(desc)
    apart = lab.run(desc, {name: array.copy() for name, array in arrays.items()})
    stream = arrays["residual"].copy() if how == "copy" else getattr(lab, how)(arrays["residual"])
    assert lab.run(desc, arrays | {"residual": stream, "residual_output": stream}) == apart


def test_the_stream_is_updated_in_its_own_place_only(lab):
    desc = describe(residual=True)
    arrays = lab.operands(desc)
    memory = np.zeros((4, 8), F32)
    stream = memory[:2, :4]
    lab.run(desc, arrays | {"residual": stream, "residual_output": memory[:2, 4:]})
    for shifted in (memory[1:3, :4], memory[:2, 1:5], memory[:4:2, :4], memory[0].reshape(2, 4)):
        with pytest.raises(qp.InvalidProblem, match="apart from residual, or all of its") as caught:
            lab.run(desc, arrays | {"residual": stream, "residual_output": shifted})
        assert caught.value.field == "residual_output"


def test_nothing_else_works_in_place(lab):
    desc = describe(output_element="f32", residual=True)
    arrays = lab.operands(desc)
    for output, other in (("output", "x"), ("output", "residual"), ("residual_output", "x")):
        with pytest.raises(qp.InvalidProblem, match=f"memory of its own, apart from {other}") as caught:
            lab.run(desc, arrays | {output: arrays[other]})
        assert caught.value.field == output
    both = {"output": arrays["residual"], "residual_output": arrays["residual"]}
    with pytest.raises(qp.InvalidProblem, match="overlapping memory"):
        lab.run(desc, arrays | both)


# ---- shapes and memory


@pytest.mark.parametrize("how", ["strided", "misaligned"])
def test_every_sku_gives_the_same_bits_from_awkward_memory(lab, how):
    """Views at odd addresses, and rows that lie apart; nothing outside the rows is written."""
    for desc in qp.NormQuantizePlan.catalogue():
        desc = desc.replace(modulated=True, rows_per_condition=2)  # noqa: PLW2901 - the same SKU with more operands
        arrays = lab.operands(desc)
        awkward = {name: getattr(lab, how)(array) for name, array in arrays.items() if array.ndim == 2}
        assert lab.run(desc, arrays) == lab.run(desc, arrays | awkward), desc
        if how == "strided":
            written = [o.name for o in qp.NormQuantizePlan.operands(desc) if o.output and o.name in awkward]
            assert all(lab.gaps(awkward[name]) == {0xA5} for name in written), desc


def test_a_row_has_the_same_bits_whatever_m(lab):
    """With a gate and a modulation of its own."""
    for desc in qp.NormQuantizePlan.catalogue():
        desc = desc.replace(m=5, modulated=True, rows_per_condition=2)  # noqa: PLW2901 - the same SKU with more rows
        arrays = lab.operands(desc)
        lab.run(desc, arrays)
        for i in (0, 3, 4):
            alone, part = lab.row(desc, arrays, i)
            for name, written in lab.run(alone, part).items():
                assert written == arrays[name][i : i + 1].tobytes(), (desc, i, name)


@pytest.mark.parametrize("m, k", [(0, 4), (3, 0), (0, 0)])
def test_empty_problems_write_scales_of_one_where_there_are_any(lab, m, k):
    for quantized in QUANTIZED.values():
        desc = describe(m=m, k=k, rows_per_condition=2, **ALL, **quantized)
        arrays = lab.operands(desc)
        lab.run(desc, arrays)
        expected = (m,) if desc.scope == qp.Scope.token() else (m, 0 if k == 0 else 1)
        assert arrays["scale"].shape == expected
        assert desc.scope != qp.Scope.token() or arrays["scale"].tolist() == [1] * m
    lab.run(describe(m=m, k=k, output_element="bf16"), lab.operands(describe(m=m, k=k, output_element="bf16")))


def test_no_input_is_written(lab):
    for fields in ({}, {"scope": "tensor"}, {"output_element": "f32"}):
        desc = describe(m=5, k=40, rows_per_condition=2, **ALL, **fields)
        arrays = lab.operands(desc)
        inputs = [o.name for o in qp.NormQuantizePlan.operands(desc) if not o.output]
        before = {name: arrays[name].tobytes() for name in inputs}
        for name in inputs:
            arrays[name].flags.writeable = False
        lab.run(desc, arrays)
        assert {name: arrays[name].tobytes() for name in inputs} == before


# ---- families


def test_a_family_serves_every_number_of_rows(lab):
    desc = describe(m=40, k=72, input_element="bf16", modulated=True, residual=True, rows_per_condition=3)
    family = qp.PlanFamily.select("cpu", desc, ms=(8, 40))
    assert family.batch_invariant
    weight = np.full(72, 0.5, BF16)
    layer = family.bind(weight=weight)
    for m in (0, 1, 3, 4, 9, 40):
        small = desc.replace(m=m)
        arrays = lab.operands(small) | {"weight": weight}
        expected = lab.run(small, {name: array.copy() for name, array in arrays.items()})
        del arrays["weight"]
        layer.run(None, None, **arrays)
        assert {name: arrays[name].tobytes() for name in expected} == expected


def test_what_all_rows_share_can_be_bound(lab):
    desc = describe(m=4, modulated=True, multiplier=True, scope="tensor")
    family = qp.PlanFamily.select("cpu", desc, ms=(4,))
    arrays = lab.operands(desc)
    names = ("weight", "modulation_scale", "modulation_shift", "multiplier", "scale")
    family.bind(**{name: arrays[name] for name in names}).run(None, None, x=arrays["x"], output=arrays["output"])
    by_row = qp.PlanFamily.select("cpu", desc.replace(rows_per_condition=1), ms=(4,))
    for name, array in (("modulation_scale", np.ones((4, 4), F32)), ("x", arrays["x"])):
        with pytest.raises(qp.InvalidProblem, match="does not depend on M") as caught:
            by_row.bind(**{name: array})
        assert caught.value.field == name


# ---- SKUs and guarantees


def test_every_sku_of_the_catalogue_is_selected_under_a_name_of_its_own():
    catalogue = list(qp.NormQuantizePlan.catalogue())
    for target in ("cpu", "sm_80"):
        skus = [qp.NormQuantizePlan.select(target, desc).sku for desc in catalogue]
        assert len({sku.name for sku in skus}) == len(set(skus)) == len(skus)


def test_the_guarantee():
    for desc in qp.NormQuantizePlan.catalogue():
        for target in ("cpu", "sm_90a"):
            plan = qp.NormQuantizePlan.select(target, desc)
            guarantee = plan.precision_guarantee
            assert guarantee.bit_identical_to_reference
            assert guarantee.batch_invariant
            assert guarantee.deterministic
            assert (guarantee.reduction_id, plan.workspace_size) == ("folded-row", 0)


def test_what_selects_no_other_code_is_the_same_sku():
    plan = qp.NormQuantizePlan.select("sm_90a", describe())
    for fields in ({"weight": False}, {"bias": True}, {"modulated": True}, {"multiplier": True}, {"epsilon": 0.5}):
        assert qp.NormQuantizePlan.select("sm_90a", describe(**fields)).sku.name == plan.sku.name
    for fields in ({"norm": "layer"}, {"residual": True}, {"input_element": "f16"}, {"scope": "tensor"}):
        assert qp.NormQuantizePlan.select("sm_90a", describe(**fields)).sku.name != plan.sku.name
