"""ActivationQuantize on the reference device, through the public API."""

import pickle

import numpy as np
import pytest

import quantplan as qp

F32 = np.float32
QUANTIZED = {
    "s8 token": {},
    "e4m3 token": {"output_element": "fp8_e4m3"},
    "e4m3 block": {"output_element": "fp8_e4m3", "scope": "group:128"},
    "e4m3 mx": {"output_element": "fp8_e4m3", "scope": "group:32"},
}
INPUTS = {"none": {"x"}, "merged": {"gate_up"}, "split": {"gate", "up"}}


def describe(**fields):
    return qp.ActivationQuantizeDescriptor(**{"m": 2, "k": 4, "input_element": "f32", "epilogue": "relu"} | fields)


def run(desc, **inputs):
    """Run on the CPU with operands that are cast to what they must be; return the outputs by name."""
    elements = {operand.name: operand.element.dtype for operand in qp.ActivationQuantizePlan.operands(desc)}
    wanted = [o for o in qp.ActivationQuantizePlan.operands(desc) if o.output]
    outputs = {o.name: np.empty(o.storage, o.element.dtype) for o in wanted}
    arrays = {name: np.asarray(value).astype(elements[name]) for name, value in inputs.items()}
    plan = qp.ActivationQuantizePlan.select("cpu", desc)
    plan.run(None, None, qp.ActivationQuantizeArgs(**outputs, **arrays))
    return outputs


# ---- by hand


def test_a_gate_and_its_factor_by_hand():
    """Products 254, 0, −2 and 1, then 4, 0, 0 and 127."""
    gate, up = [[2, -1, 1, 1], [2, 0, -3, 127]], [[127, 5, -2, 1], [2, 9, 1, 1]]
    expected = [[127, 0, -1, 0], [4, 0, 0, 127]]
    for gating, inputs in (("split", {"gate": gate, "up": up}), ("merged", {"gate_up": np.hstack([gate, up])})):
        out = run(describe(gating=gating), **inputs)
        assert out["scale"].tolist() == [2, 1]
        assert out["output"].tolist() == expected


def test_nothing_gated_by_hand():
    x = [[-3, 0.5, 1.5, 127], [1, 2, 3, 254]]
    out = run(describe(gating="none"), x=x)
    assert (out["scale"].tolist(), out["output"].tolist()) == ([1, 2], [[0, 0, 2, 127], [0, 1, 2, 127]])
    out = run(describe(gating="none", epilogue="identity", multiplier=True), x=x, multiplier=[2, 4, 2, 1])
    assert out["output"].tolist() == [[-6, 2, 3, 127], [1, 4, 3, 127]]


def test_silu_and_gelu_of_large_values_are_those_values():
    x = [[127, -400, 0, 0], [0, 254, 0, -1000]]
    for epilogue in ("silu", "gelu_tanh", "gelu_erf"):
        out = run(describe(gating="none", epilogue=epilogue), x=x)
        assert (out["scale"].tolist(), out["output"].tolist()) == ([1, 2], [[127, 0, 0, 0], [0, 127, 0, 0]])


def test_a_static_scale_saturates():
    fields = {"gating": "none", "epilogue": "identity", "scope": "tensor", "m": 1}
    x = [[1000, -1000, 0.5, np.nan]]
    assert run(describe(scale=1.0, **fields), x=x)["output"].tolist() == [[127, -127, 0, 0]]
    out = run(describe(**fields), x=x, scale=[0.25])
    assert (set(out), out["output"].tolist()) == ({"output"}, [[127, -127, 2, 0]])
    out = run(describe(output_element="fp8_e4m3", scale=1.0, **fields), x=x)
    assert out["output"].view(np.uint8).tolist() == [[0x7E, 0xFE, 0x30, 0x7F]]


def test_unquantized_output_is_rounded_once():
    x = [[1 + 2.0**-9, -1, 70_000, 0]] * 2
    out = run(describe(gating="none", output_element="bf16"), x=x)
    assert out["output"].astype(F32)[0].tolist() == [1, 0, 70144, 0]
    assert run(describe(gating="none", output_element="f16"), x=x)["output"][0].tolist() == [1 + 2.0**-9, 0, np.inf, 0]


def test_a_nan_stays_in_its_row():
    x = np.ones((2, 4))
    x[0, 1] = np.nan
    out = run(describe(gating="none"), x=x)
    assert np.isnan(out["scale"]).tolist() == [True, False]
    assert out["output"].tolist() == [[0] * 4, [127] * 4]


# ---- properties


def combined(desc, arrays):
    """Return the gate and its factor, or 1."""
    if desc.gating is qp.GatingKind.MERGED:
        return arrays["gate_up"][:, : desc.k], arrays["gate_up"][:, desc.k :]
    return (arrays["x"], F32(1)) if desc.gating is qp.GatingKind.NONE else (arrays["gate"], arrays["up"])


@pytest.mark.parametrize("gating", INPUTS)
@pytest.mark.parametrize("epilogue", ["identity", "relu", "silu", "gelu_tanh"])
def test_it_is_the_activation_that_it_says_within_its_bound(lab, gating, epilogue):
    """In float64, whose own error is a millionth of the bound at most."""
    fields = {"gating": gating, "epilogue": epilogue, "input_element": "bf16", "output_element": "f32"}
    desc = describe(m=5, k=100, multiplier=True, **fields)
    arrays = lab.operands(desc)
    lab.run(desc, arrays)
    gate, up = (np.asarray(array).astype(np.float64) for array in combined(desc, arrays))
    y = {
        "identity": gate,
        "relu": np.maximum(gate, 0),
        "silu": gate / (1 + np.exp(-gate)),
        "gelu_tanh": gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))),
    }[epilogue]
    plan = qp.ActivationQuantizePlan.select("cpu", desc)
    bound = plan.precision_guarantee.error_bound.bound(desc, lab.args(desc, arrays))
    assert np.isfinite(bound).all()
    assert (np.abs(arrays["output"] - y * up * arrays["multiplier"].astype(np.float64)) <= bound).all()


@pytest.mark.parametrize("gating", INPUTS)
@pytest.mark.parametrize("quantized", QUANTIZED)
def test_codes_are_those_of_the_rows_that_it_would_give_unquantized(lab, gating, quantized):
    fields = {"gating": gating, "epilogue": "silu", "input_element": "bf16"}
    real = describe(m=6, k=140, output_element="f32", **fields)
    arrays = lab.operands(real)
    lab.run(real, arrays)
    desc = real.replace(**({"output_element": "s8"} | QUANTIZED[quantized]))
    mine = {**lab.operands(desc), **{name: array for name, array in arrays.items() if name != "output"}}
    lab.run(desc, mine)
    scale_element = "e8m0" if quantized == "e4m3 mx" else "f32"
    same = {"output_element": desc.output_element, "scope": desc.scope, "scale_element": scale_element}
    q, scale = np.empty_like(mine["output"]), np.empty_like(mine["scale"])
    plan = qp.DynamicRangeQuantizePlan.select("cpu", qp.DynamicRangeQuantizeDescriptor(m=6, k=140, **same))
    plan.run(None, None, qp.DynamicRangeQuantizeArgs(x=arrays["output"], q=q, scale=scale))
    assert (mine["output"].tobytes(), mine["scale"].tobytes()) == (q.tobytes(), scale.tobytes())


def test_gate_and_up_may_be_halves_of_one_tensor(lab):
    merged = describe(m=5, k=30, epilogue="silu")
    arrays = lab.operands(merged)
    expected = lab.run(merged, arrays)
    split = merged.replace(gating="split")
    halves = {"gate": arrays["gate_up"][:, :30], "up": arrays["gate_up"][:, 30:]}
    assert lab.run(split, lab.operands(split) | halves) == expected


def test_one_tensor_may_be_gate_and_factor(lab):
    desc = describe(gating="split", output_element="f32", epilogue="identity")
    arrays = lab.operands(desc)
    arrays["up"] = arrays["gate"]
    lab.run(desc, arrays)
    np.testing.assert_array_equal(arrays["output"], arrays["gate"] ** 2)


# ---- descriptor


def test_defaults():
    desc = qp.ActivationQuantizeDescriptor(m=2, k=4)
    assert (desc.epilogue, desc.gating) == (qp.EpilogueKind.SILU, qp.GatingKind.MERGED)
    assert (desc.input_element, desc.output_element, desc.scope) == (qp.BF16, qp.S8, qp.Scope.token())
    assert (desc.multiplier, desc.scale, desc.replace(output_element="f16").scope) == (False, None, None)


REFUSED = [
    ({"input_element": "f64"}, "input_element", "one of f32, f16, bf16", "f64"),
    ({"output_element": "s4"}, "output_element", "one of f32, f16, bf16, s8, fp8_e4m3", "s4"),
    ({"epilogue": "tanh"}, "epilogue", "identity, relu, gelu_tanh, gelu_erf, silu", "'tanh'"),
    ({"gating": "both"}, "gating", "one of none, merged, split", "'both'"),
    ({"gating": None}, "gating", "one of none, merged, split", "None"),
    ({"multiplier": "x"}, "multiplier", "True or False", "'x'"),
    ({"scope": "channel:1"}, "scope", "tensor, token for s8", "channel:1"),
    ({"scope": "group:32"}, "scope", "tensor, token for s8", "group:32:1"),
    ({"scope": None}, "scope", "tensor, token for s8", "None"),
    ({"output_element": "bf16", "scope": "tensor"}, "scope", "None for bf16", "tensor"),
    ({"scale": 1.0}, "scale", "None unless the scope is tensor", "1.0"),
    ({"scope": "tensor", "scale": 1e-60}, "scale", "a finite f32 above 0", "1e-60"),
    ({"m": -1}, "m", "[0, 2**31)", "-1"),
    ({"k": 2.5}, "k", "an integer", "2.5"),
]


@pytest.mark.parametrize("fields, field, expected, got", REFUSED)
def test_the_descriptor_refuses(fields, field, expected, got):
    with pytest.raises(qp.InvalidProblem) as caught:
        describe(**fields)
    assert (caught.value.op, caught.value.field) == ("ActivationQuantizeDescriptor", field)
    assert expected in str(caught.value.expected)
    assert str(caught.value.got) == got


def test_rows_are_limited():
    qp.ActivationQuantizePlan.select("cpu", describe(k=1 << 24))
    for target in ("cpu", "sm_90a"):
        with pytest.raises(qp.Unsupported, match="at most 16777216 elements"):
            qp.ActivationQuantizePlan.select(target, describe(k=(1 << 24) + 1))


def test_descriptors_are_data():
    for desc in qp.ActivationQuantizePlan.catalogue():
        for changed in (desc, desc.replace(m=9, multiplier=True, gating="split")):
            assert pickle.loads(pickle.dumps(changed)) == changed
            again = type(changed).from_dict(changed.to_dict())
            assert (again, hash(again)) == (changed, hash(changed))
            assert changed.replace(m=3).replace(m=changed.m) == changed


# ---- operands


@pytest.mark.parametrize("gating", INPUTS)
def test_each_gating_has_inputs_of_its_own(lab, gating):
    desc = describe(gating=gating)
    names = {operand.name for operand in qp.ActivationQuantizePlan.operands(desc)}
    assert names == {*INPUTS[gating], "output", "scale"}
    for other in {"x", "gate_up", "gate", "up"} - INPUTS[gating]:
        with pytest.raises(qp.InvalidProblem, match="no operand") as caught:
            lab.run(desc, lab.operands(desc) | {other: np.ones((2, 4), F32)})
        assert caught.value.field == other
    for own in INPUTS[gating]:
        with pytest.raises(qp.InvalidProblem, match="expected a tensor of shape") as caught:
            lab.run(desc, lab.operands(desc) | {own: None})
        assert caught.value.field == own


@pytest.mark.parametrize(
    "fields, change, field, words",
    [
        ({}, {"gate_up": np.ones((2, 4), F32)}, "gate_up", "(M=2, 2K=8)"),
        ({}, {"gate_up": np.ones((2, 8), np.float16)}, "gate_up", "element f32"),
        ({"gating": "split"}, {"up": np.ones((2, 8), F32)}, "up", "(M=2, K=4)"),
        ({}, {"multiplier": np.ones(4, F32)}, "multiplier", "no operand"),
        ({"multiplier": True}, {"multiplier": None}, "multiplier", "shape (4,)"),
        ({"multiplier": True}, {"multiplier": np.ones(4)}, "multiplier", "element f32"),
        ({}, {"scale": None}, "scale", "shape (2,)"),
        ({"scope": "tensor"}, {"scale": None}, "scale", "host value: scale="),
        ({"scope": "tensor", "scale": 1.0}, {"scale": np.ones(1, F32)}, "scale", "no operand"),
        ({"output_element": "f32"}, {"scale": np.ones(2, F32)}, "scale", "no operand"),
        ({"output_element": "fp8_e4m3", "scope": "group:32"}, {"scale": np.ones((2, 1), F32)}, "scale", "e8m0"),
    ],
)
def test_operands_are_held_to_the_descriptor(lab, fields, change, field, words):
    desc = describe(**fields)
    with pytest.raises(qp.InvalidProblem) as caught:
        lab.run(desc, lab.operands(desc) | change)
    assert caught.value.field == field
    assert words in str(caught.value)


def test_nothing_works_in_place(lab):
    desc = describe(gating="split", output_element="f32")
    arrays = lab.operands(desc)
    for name in ("gate", "up"):
        with pytest.raises(qp.InvalidProblem, match=f"apart from {name}, got overlapping memory") as caught:
            lab.run(desc, arrays | {"output": arrays[name]})
        assert caught.value.field == "output"


@pytest.mark.parametrize("name", ["output", "scale"])
def test_outputs_must_be_writable(lab, name):
    desc = describe()
    arrays = lab.operands(desc)
    arrays[name].flags.writeable = False
    with pytest.raises(qp.InvalidProblem, match="writable memory") as caught:
        lab.run(desc, arrays)
    assert caught.value.field == name


# ---- shapes and memory


@pytest.mark.parametrize("how", ["strided", "misaligned"])
def test_every_element_and_scope_gives_the_same_bits_from_awkward_memory(lab, how):
    """Views at odd addresses, and rows that lie apart; nothing outside the rows is written."""
    for desc in qp.ActivationQuantizePlan.catalogue():
        if desc.epilogue is not qp.EpilogueKind.SILU:
            continue
        arrays = lab.operands(desc)
        awkward = {name: getattr(lab, how)(array) for name, array in arrays.items() if array.ndim == 2}
        assert lab.run(desc, arrays) == lab.run(desc, arrays | awkward), desc
        if how == "strided":
            written = {"output", "scale"} & set(awkward)
            assert all(lab.gaps(awkward[name]) == {0xA5} for name in written), desc


def test_a_row_has_the_same_bits_whatever_m(lab):
    for desc in qp.ActivationQuantizePlan.catalogue():
        desc = desc.replace(m=4)  # noqa: PLW2901 - the same SKU with more rows
        arrays = lab.operands(desc)
        lab.run(desc, arrays)
        for i in (0, 3):
            alone, part = lab.row(desc, arrays, i)
            for name, written in lab.run(alone, part).items():
                assert written == arrays[name][i : i + 1].tobytes(), (desc, i, name)


@pytest.mark.parametrize("m, k", [(0, 4), (3, 0), (0, 0)])
def test_empty_problems_write_scales_of_one_where_there_are_any(lab, m, k):
    for gating in INPUTS:
        for quantized in QUANTIZED.values():
            desc = describe(m=m, k=k, gating=gating, multiplier=True, **quantized)
            arrays = lab.operands(desc)
            lab.run(desc, arrays)
            assert desc.scope != qp.Scope.token() or arrays["scale"].tolist() == [1] * m


def test_no_input_is_written(lab):
    for gating in INPUTS:
        desc = describe(m=5, k=40, gating=gating, multiplier=True, epilogue="gelu_tanh", scope="tensor")
        arrays = lab.operands(desc)
        inputs = [o.name for o in qp.ActivationQuantizePlan.operands(desc) if not o.output]
        before = {name: arrays[name].tobytes() for name in inputs}
        for name in inputs:
            arrays[name].flags.writeable = False
        lab.run(desc, arrays)
        assert {name: arrays[name].tobytes() for name in inputs} == before


# ---- families


@pytest.mark.parametrize("gating", INPUTS)
def test_a_family_serves_every_number_of_rows(lab, gating):
    desc = describe(m=40, k=36, gating=gating, multiplier=True)
    family = qp.PlanFamily.select("cpu", desc, ms=(8, 40))
    assert family.batch_invariant
    multiplier = np.linspace(0.5, 2, 36, dtype=F32)
    layer = family.bind(multiplier=multiplier)
    for m in (0, 1, 8, 9, 40):
        small = desc.replace(m=m)
        arrays = lab.operands(small) | {"multiplier": multiplier}
        expected = lab.run(small, {name: array.copy() for name, array in arrays.items()})
        del arrays["multiplier"]
        layer.run(None, None, **arrays)
        assert {name: arrays[name].tobytes() for name in expected} == expected


def test_inputs_of_a_family_have_the_rows_of_its_output(lab):
    family = qp.PlanFamily.select("cpu", describe(m=40), ms=(8, 40))
    arrays = lab.operands(describe(m=9)) | {"gate_up": np.ones((8, 8), F32)}
    with pytest.raises(qp.InvalidProblem, match="M=9") as caught:
        family.run(None, None, lab.args(describe(m=9), arrays))
    assert caught.value.field == "gate_up"


# ---- SKUs and guarantees


def test_every_sku_of_the_catalogue_is_selected_under_a_name_of_its_own():
    catalogue = list(qp.ActivationQuantizePlan.catalogue())
    for target in ("cpu", "sm_80"):
        skus = [qp.ActivationQuantizePlan.select(target, desc).sku for desc in catalogue]
        assert len({sku.name for sku in skus}) == len(set(skus)) == len(skus)


def test_bits_are_promised_where_the_activation_is_exact():
    for desc in qp.ActivationQuantizePlan.catalogue():
        for target, ulps in (("cpu", 1), ("sm_90a", 16)):
            plan = qp.ActivationQuantizePlan.select(target, desc)
            guarantee = plan.precision_guarantee
            assert guarantee.bit_identical_to_reference == desc.epilogue.exact
            assert guarantee.batch_invariant
            assert guarantee.deterministic
            assert guarantee.error_bound.activation_ulps == (1 if desc.epilogue.exact else ulps)
            assert plan.workspace_size == 0


def test_kernels_and_the_reference_share_a_reduction_where_their_bits_are_alike():
    for epilogue, alike in (("relu", True), ("silu", False)):
        desc = describe(epilogue=epilogue)
        names = [qp.ActivationQuantizePlan.select(t, desc).precision_guarantee.reduction_id for t in ("cpu", "sm_90a")]
        assert (names[0] == names[1]) == alike


def test_split_and_merged_are_the_same_sku():
    """They differ in where the factor lies, which a kernel is told."""
    plans = [
        qp.ActivationQuantizePlan.select("sm_90a", describe(gating=gating)) for gating in ("split", "merged", "none")
    ]
    assert plans[0].sku.name == plans[1].sku.name != plans[2].sku.name
