import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import quantplan as qp
from quantplan import formats
from quantplan.errors import InvalidProblem
from quantplan.formats import Checkpoint, awq, gptq, load_linear, marlin, padding
from quantplan.formats.int4 import Int4Weight
from tests.formats.files import (
    AWQ,
    CASES,
    COMPRESSED,
    GPTQ,
    GROUP,
    MARLIN,
    PREFIX,
    compressed_case,
    gptq_case,
    marlin_case,
    named,
    raw,
    to_ist_marlin,
    with_weights,
    write_checkpoint,
    write_config,
    write_shards,
)
from tests.formats.weights import random_weight, same

OTHERS = {"model.norm.weight": np.ones(7, np.float32), "lm_head.weight": np.ones((3, 2), np.float16)}


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def write_case(folder, rng, case, **others):
    weight, tensors, config = CASES[case](rng)
    return weight, write_checkpoint(folder, named(tensors) | OTHERS | others, config)


@pytest.mark.parametrize("case", CASES)
def test_every_format_is_told_apart_and_read(tmp_path, rng, case):
    bias = np.arange(37 if "compressed" in case else 128 if "marlin" in case else 40).astype(np.float16)
    weight, path = write_case(tmp_path, rng, case, **{f"{PREFIX}.bias": bias})
    linear = load_linear(path, PREFIX)
    same(linear.weight, weight)
    np.testing.assert_array_equal(linear.bias, bias)
    info = linear.info
    assert info.format == case.partition(",")[0]
    assert (info.k, info.n) == weight.q.shape
    assert info.group_size == weight.group_size
    assert info.symmetric is (weight.zeros is None)
    assert info.act_order is (weight.g_idx is not None)
    assert info.scale_element == qp.ElementKind.of(weight.scales.dtype).value
    assert (info.bias, info.problem) == (True, "")
    assert Checkpoint(path).info(PREFIX) == info
    assert list(Checkpoint(path).survey()) == [info]


@pytest.mark.parametrize("case", CASES)
def test_operands_and_fields_are_those_of_a_plan(tmp_path, rng, case):
    """Padding and packing included; what a product gives is what the dequantized weight gives."""
    weight, path = write_case(tmp_path, rng, case)
    packed = load_linear(path, PREFIX).to_marlin(scale_element="f16")
    fields = packed.descriptor_fields()
    assert "bias" not in fields
    if fields["group_size"] == 48:  # Marlin's own test has it; no plan takes it
        with pytest.raises(InvalidProblem, match="group_size"):
            qp.Int4MarlinGemmDescriptor(m=2, **fields)
        return
    desc = qp.Int4MarlinGemmDescriptor(m=2, output_element="f32", **fields)
    act = rng.standard_normal((2, desc.k)).astype(np.float16)
    output = np.empty((2, desc.n), np.float32)
    args = qp.Int4MarlinGemmArgs(act=act, output=output, **packed.operands())
    plan = qp.Int4MarlinGemmPlan.select("cpu", desc)
    plan.run(None, None, args)
    rounded = Int4Weight(
        q=weight.q,
        scales=weight.scales.astype(np.float16),
        zeros=weight.zeros,
        g_idx=weight.g_idx,
        group_size=weight.group_size,
    )
    exact = act.astype(np.float64) @ rounded.dequantize()
    assert np.all(np.abs(output - exact) <= plan.precision_guarantee.error_bound.bound(desc, args))


def test_a_bias_is_an_operand_in_the_element_of_the_scales(tmp_path, rng):
    _, path = write_case(tmp_path, rng, "awq", **{f"{PREFIX}.bias": np.full(40, 0.1, np.float32)})
    packed = load_linear(path, PREFIX).to_marlin(scale_element="bf16")
    assert packed.descriptor_fields()["bias"] is True
    assert packed.operands()["bias"].dtype == packed.weight_scale.dtype == ml_dtypes.bfloat16
    assert load_linear(path, PREFIX).to_marlin().bias.dtype == np.float32
    _, path = write_case(tmp_path, rng, "awq", **{f"{PREFIX}.bias": np.full(40, 1e9, np.float32)})
    with pytest.raises(InvalidProblem, match="bias that are finite in f16"):
        load_linear(path, PREFIX).to_marlin(scale_element="f16")


def test_marlins_words_are_mapped_and_not_unpacked(tmp_path, rng):
    _, tensors, config = marlin_case(rng, -1)
    words = random_weight(rng, 128, 128)
    path = write_checkpoint(tmp_path, named(tensors) | named(to_ist_marlin(words), "other"), config)
    checkpoint = Checkpoint(path)
    packed = checkpoint.load_linear("other").to_marlin()
    assert np.shares_memory(packed.weight_q, checkpoint.array("other.B"))
    # 144 rows fit Marlin's tile of 16 and not the kernels' step of 64
    assert checkpoint.load_linear(PREFIX).to_marlin().weight_q.shape == (192 // 16, 2 * 128)


def test_marlin_without_a_configuration_has_groups_of_one_size(tmp_path, rng):
    weight, tensors, _ = marlin_case(rng, 48)
    path = write_checkpoint(tmp_path, named(tensors), None)
    same(load_linear(path, PREFIX).weight, weight)


def test_a_layer_in_a_file_of_its_own_has_an_empty_prefix(tmp_path, rng):
    weight, tensors, config = CASES["awq"](rng)
    path = write_checkpoint(tmp_path, dict(tensors), config)
    same(load_linear(path, "").weight, weight)


# ---- what lies where


def shards(rng):
    """Return two linears, one of them across both files."""
    _, first, config = CASES["gptq v1, act-order"](rng)
    _, second, _ = CASES["gptq v1, act-order"](rng)
    first, second = named(first, "a"), named(second, "b")
    moved = {"b.scales": second.pop("b.scales")}
    return [first | second, moved | OTHERS], config


def test_a_sharded_checkpoint_is_read_by_its_folder_or_index(tmp_path, rng):
    parts, config = shards(rng)
    folder = write_shards(tmp_path / "model", parts, config)
    for path in (folder, str(folder), folder / "model.safetensors.index.json"):
        checkpoint = Checkpoint(path)
        assert checkpoint.linears == ("a", "b")
        assert set(checkpoint.others) == set(OTHERS)
        assert not any(info.problem for info in checkpoint.survey())
        np.testing.assert_array_equal(checkpoint.load_linear("b").stored.scales, parts[1]["b.scales"])
    with pytest.raises(InvalidProblem, match=r"b\.scales: .*missing"):
        load_linear(folder / "model-00001-of-00002.safetensors", "b")


def test_a_folder_without_an_index_has_all_its_files_or_the_one_of_the_usual_name(tmp_path, rng):
    parts, config = shards(rng)
    folder = write_shards(tmp_path / "model", parts, config)
    (folder / "model.safetensors.index.json").unlink()
    assert len(Checkpoint(folder).files) == 2
    save_file(OTHERS, folder / "model.safetensors")
    assert Checkpoint(folder).linears == ()


def edit_index(folder, edit):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/x.safetensors",
        "a\\b.safetensors",
        "c:x.safetensors",
        "model.bin",
        "",
        ".hid.safetensors",
    ],
)
def test_an_index_leads_nowhere_else(tmp_path, rng, name):
    folder = write_shards(tmp_path / "model", *shards(rng))
    edit_index(folder, lambda placed: placed.update({"a.scales": name}))
    with pytest.raises(InvalidProblem, match=r"weight_map\.a\.scales: .*beside the index"):
        Checkpoint(folder)


def test_an_index_that_contradicts_its_files_is_refused_by_the_tensor(tmp_path, rng):
    folder = write_shards(tmp_path / "model", *shards(rng))
    edit_index(folder, lambda placed: placed.update({"gone": "model-00001-of-00002.safetensors"}))
    with pytest.raises(InvalidProblem, match="gone: expected the tensor in model-00001"):
        Checkpoint(folder)
    edit_index(folder, lambda placed: placed.update({"a.scales": "model-00003-of-00002.safetensors"}))
    with pytest.raises(InvalidProblem, match="model-00003"):
        Checkpoint(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}')
    with pytest.raises(InvalidProblem, match=r"a: .*each key once"):
        Checkpoint(folder)


def test_a_tensor_in_two_files_is_refused(tmp_path, rng):
    parts, config = shards(rng)
    folder = write_shards(tmp_path / "model", [parts[0], parts[1] | {"a.scales": parts[0]["a.scales"]}], config)
    with pytest.raises(InvalidProblem, match=r"a\.scales: expected the tensor in one file, got model-00001"):
        Checkpoint(folder)


def test_several_indices_are_asked_about(tmp_path, rng):
    folder = write_shards(tmp_path / "model", *shards(rng))
    index = folder / "model.safetensors.index.json"
    index.rename(folder / "a.safetensors.index.json")
    assert Checkpoint(folder).linears == ("a", "b")
    (folder / "b.safetensors.index.json").write_text("{}")
    with pytest.raises(InvalidProblem, match="one index, got several"):
        Checkpoint(folder)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidProblem, match=r"a folder of \.safetensors files"):
        Checkpoint(tmp_path)
    with pytest.raises(InvalidProblem, match=r"path: .*got none"):
        Checkpoint(tmp_path / "model.safetensors")
    with pytest.raises(InvalidProblem, match=r"index: .*expected a file"):
        Checkpoint(tmp_path / "model.safetensors.index.json")


def test_a_prefix_that_is_no_linear_is_answered_with_those_that_are(tmp_path, rng):
    _, path = write_case(tmp_path, rng, "awq")
    with pytest.raises(InvalidProblem, match=rf"prefix: .*'model.layers.1.mlp.down_proj'.*such as {PREFIX}"):
        load_linear(path, "model.layers.1.mlp.down_proj")
    with pytest.raises(InvalidProblem, match="'lm_head', which is not quantized"):
        load_linear(path, "lm_head")


# ---- configurations


def test_the_configuration_of_autogptq_says_no_method_and_tensors_do(tmp_path, rng):
    weight, tensors, _ = CASES["gptq v1, act-order"](rng)
    path = write_checkpoint(tmp_path, named(tensors), None)
    write_config(tmp_path, {"bits": 4, "group_size": 32, "checkpoint_format": "gptq"}, "quantize_config.json")
    same(load_linear(path, PREFIX).weight, weight)


def test_the_configuration_of_autoawq_has_names_of_its_own(tmp_path, rng):
    weight, tensors, _ = CASES["awq"](rng)
    path = write_checkpoint(tmp_path, named(tensors), None)
    write_config(tmp_path, {"w_bit": 4, "q_group_size": 32, "version": "GEMM"}, "quant_config.json")
    linear = load_linear(path, PREFIX)
    same(linear.weight, weight)
    assert linear.info.format == "awq"


def test_a_model_of_several_parts_has_it_in_its_text_model(tmp_path, rng):
    weight, tensors, config = CASES["awq"](rng)
    path = write_checkpoint(tmp_path, named(tensors), None)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"quantization_config": config}}))
    same(load_linear(path, PREFIX).weight, weight)


def test_entries_that_are_given_count_more_than_those_of_the_file(tmp_path, rng):
    weight, tensors, config = CASES["gptq v2"](rng)
    path = write_checkpoint(tmp_path, named(tensors), config | {"checkpoint_format": "gptq"})
    same(load_linear(path, PREFIX, config={"checkpoint_format": "gptq_v2"}).weight, weight)
    path = write_checkpoint(tmp_path / "bare", named(tensors), None)
    with pytest.raises(InvalidProblem, match=r"config\.bits: .*got none \(config="):
        load_linear(path, PREFIX)
    same(load_linear(path, PREFIX, config=config).weight, weight)


@pytest.mark.parametrize("version", [1, 2])
def test_zero_points_of_an_unknown_version_are_refused_with_the_remedy(tmp_path, rng, version):
    weight, tensors, config = gptq_case(rng, version, symmetric=False)
    config = config | {"checkpoint_format": None}
    path = write_checkpoint(tmp_path, named(tensors), config)
    with pytest.raises(InvalidProblem, match=r'config={"checkpoint_format": "gptq"} says version 1') as caught:
        load_linear(path, PREFIX)
    assert caught.value.field == f"{PREFIX}.checkpoint_format"
    same(load_linear(path, PREFIX, config={"checkpoint_format": "gptq_v2" if version == 2 else "gptq"}).weight, weight)


@pytest.mark.parametrize("version", [1, 2])
def test_a_symmetric_weight_says_its_version_itself(tmp_path, rng, version):
    weight, tensors, config = gptq_case(rng, version)
    path = write_checkpoint(tmp_path, named(tensors), config | {"checkpoint_format": None})
    linear = load_linear(path, PREFIX)
    same(linear.weight, weight)
    assert (linear.weight.zeros, linear.info.format) == (None, f"gptq v{version}")
    with pytest.raises(InvalidProblem, match=r"checkpoint_format: .*got none"):
        load_linear(path, PREFIX, config={"sym": None})


def test_overrides_of_gptqmodel_count_for_the_modules_that_they_match(tmp_path, rng):
    wide, narrow = random_weight(rng, 128, 8, 64), random_weight(rng, 128, 8, 32)
    tensors = named(gptq.to_gptq(wide, version=1), "model.layers.0.q") | named(gptq.to_gptq(narrow, version=1), "m.1.q")
    dynamic = {"-:lm_head": {}, r"+:model\.layers\.[0-3]\..*(q|k)": {"group_size": 64}, r"m\.1": {"sym": True}}
    path = write_checkpoint(tmp_path, tensors, GPTQ | {"dynamic": dynamic, "sym": None})
    same(load_linear(path, "model.layers.0.q").weight, wide)
    same(load_linear(path, "m.1.q").weight, narrow)
    with pytest.raises(InvalidProblem, match=r"m\.1\.q: expected no quantized tensors, as .*dynamic.*-:m"):
        load_linear(path, "m.1.q", config={"dynamic": {"-:m": {}}})
    with pytest.raises(InvalidProblem, match=r"m\.1\.q\.bits: .*expected 4, got 8"):
        load_linear(path, "m.1.q", config={"dynamic": {"m": {"bits": 8}}})


@pytest.mark.parametrize(
    "pattern, words",
    [
        ("(a+)+b", "without repeated groups"),
        ("(?:x|y){3}", "without repeated groups"),
        (r"(a)\1", "references back"),
        ("(?P<n>a)(?P=n)", "no other"),
        ("(?x)(a+) +b", "no other"),
        ("(?ix)(a+) +b", "no other"),
        ("(?x:(a+) +b)", "no other"),
        ("(?<=a)b", "no other"),
        ("(?i)+", "regular expressions"),
        (".*.*.*.*.*.*", "at most 5 repeats"),
        ("(a|a)" * 40, "at most 5 repeats"),
        ("a?" * 40, "at most 5 repeats"),
        ("x" * 2000, "at most 1000 characters"),
        ("(", "regular expressions"),
        ("[b-a]", "regular expressions"),
    ],
)
def test_patterns_that_could_take_for_ever_are_refused(tmp_path, rng, pattern, words):
    """A configuration is as hostile as a header."""
    _, tensors, config = CASES["gptq v1, act-order"](rng)
    path = write_checkpoint(tmp_path, named(tensors), config | {"dynamic": {pattern: {}}})
    with pytest.raises(InvalidProblem, match=words) as caught:
        load_linear(path, PREFIX)
    assert caught.value.field.startswith("quantization_config.dynamic.")
    _, tensors, config = compressed_case(rng)
    write_checkpoint(tmp_path, named(tensors), config | {"ignore": [f"re:{pattern}"]})
    with pytest.raises(InvalidProblem, match=words):
        load_linear(path, PREFIX)


@pytest.mark.parametrize("pattern", ["(?i)MODEL", "(?:model|m)", "(?=model)", "(?!lm_head).*proj", "[(?x)m]"])
def test_groups_lookaheads_and_ignored_case_are_read(tmp_path, rng, pattern):
    _, tensors, config = CASES["gptq v1, act-order"](rng)
    path = write_checkpoint(tmp_path, named(tensors), config | {"dynamic": {f"-:{pattern}": {}}})
    with pytest.raises(InvalidProblem, match="expected no quantized tensors"):
        load_linear(path, PREFIX)


@pytest.mark.parametrize("targets", [[PREFIX], [r"re:model\.layers\..*down_proj$"], ["lm_head", "re:.*mlp"]])
def test_a_name_or_pattern_goes_before_the_class(tmp_path, rng, targets):
    weight, tensors, _ = compressed_case(rng)
    other = GROUP | {"weights": GROUP["weights"] | {"num_bits": 8}}
    config = COMPRESSED | {"config_groups": {"a": other, "b": GROUP | {"targets": targets}}}
    path = write_checkpoint(tmp_path, named(tensors), config)
    same(load_linear(path, PREFIX).weight, weight)


def stated(**changes):
    return lambda config: config | changes


WRONG = {
    # case, what changes, the error's field, its words
    "another method": (
        "gptq v2",
        stated(quant_method="bitsandbytes"),
        "quantization_config.quant_method",
        "one of gptq",
    ),
    "the other's tensors": (
        "gptq v2",
        stated(quant_method="compressed-tensors"),
        PREFIX,
        "tensors of compressed-tensors",
    ),
    "two formats": ("gptq v2", stated(format="gptq"), "quantization_config.format", "as checkpoint_format says"),
    "another layout": (
        "gptq v2",
        stated(checkpoint_format="bitblas"),
        "quantization_config.checkpoint_format",
        "gptq_v2",
    ),
    "eight bits": ("gptq v2", stated(bits=8), f"{PREFIX}.bits", "expected 4, got 8"),
    "bits in words": ("gptq v2", stated(bits="4"), "quantization_config.bits", "an integer, got '4'"),
    "no bits": ("gptq v2", stated(bits=None), "quantization_config.bits", "an integer, got none"),
    "group size 0": ("gptq v2", stated(group_size=0), f"{PREFIX}.group_size", "got 0"),
    "no group size": ("gptq v2", stated(group_size=None), "quantization_config.group_size", "got none"),
    "groups of another size": ("gptq v2", stated(group_size=64), f"{PREFIX}.scales", "groups, N"),
    "symmetric": ("gptq v2", stated(sym=True), f"{PREFIX}.qzeros", "8 everywhere"),
    "symmetric in words": ("gptq v2", stated(sym="yes"), "quantization_config.sym", "true or false"),
    "in order": ("gptq v1, act-order", stated(desc_act=False), f"{PREFIX}.g_idx", "rows in order"),
    "not converted": ("gptq v2", stated(modules_to_not_convert=["mlp"]), PREFIX, "modules_to_not_convert"),
    "awq not converted": ("awq", stated(modules_to_not_convert=[PREFIX]), PREFIX, "modules_to_not_convert"),
    "overrides in a list": ("gptq v2", stated(dynamic=[1]), "quantization_config.dynamic", "an object"),
    "gemv": ("awq", stated(version="gemv"), "quantization_config.version", "gemm"),
    "awq of three bits": ("awq", stated(bits=3), f"{PREFIX}.bits", "got 3"),
    "awq without zero points": ("awq", stated(zero_point=False), f"{PREFIX}.qzeros", "8 everywhere"),
    "marlin-24": ("compressed-tensors", stated(format="marlin-24"), "quantization_config.format", "pack-quantized"),
    "no groups": ("compressed-tensors", stated(config_groups={}), "quantization_config.config_groups", "groups of"),
    "no target": (
        "compressed-tensors",
        stated(config_groups={"g": GROUP | {"targets": ["Conv2d"]}}),
        *("quantization_config.config_groups", "one group of the module, got none"),
    ),
    "two targets": (
        "compressed-tensors",
        stated(config_groups={"g": GROUP, "h": GROUP}),
        *("quantization_config.config_groups", "got 2: 'g', 'h'"),
    ),
    "ignored": ("compressed-tensors", stated(ignore=["re:.*mlp.*"]), PREFIX, "quantization_config.ignore"),
    "quantized activations": (
        "compressed-tensors",
        stated(config_groups={"g": GROUP | {"input_activations": {"num_bits": 8}}}),
        *("quantization_config.config_groups.g.input_activations", "activations are not quantized"),
    ),
    "another format in a group": (
        "compressed-tensors",
        stated(config_groups={"g": GROUP | {"format": "int-quantized"}}),
        *("quantization_config.config_groups.g.format", "pack-quantized"),
    ),
    "rotated": (
        "compressed-tensors",
        stated(transform_config={"config_groups": {}}),
        *("quantization_config.transform_config", "a weight is not all"),
    ),
    "sparse": (
        "compressed-tensors",
        stated(sparsity_config={"format": "sparse-24-bitmask"}),
        *("quantization_config.sparsity_config", "none"),
    ),
    **{
        f"weights: {words}": (
            "compressed-tensors",
            lambda _, changes=changes: with_weights(**changes),
            field.format(PREFIX) if "{}" in field else f"quantization_config.config_groups.group_0.weights.{field}",
            words,
        )
        for changes, field, words in (
            ({"type": "float"}, "type", "expected int"),
            ({"strategy": "tensor"}, "strategy", "group or channel"),
            ({"num_bits": 8}, "{}.bits", "expected 4, got 8"),
            ({"group_size": None}, "group_size", "an integer"),
            ({"symmetric": True}, "{}.weight_zero_point", "8 everywhere"),
            ({"actorder": "group"}, "{}.weight_g_idx", "the configuration asks for"),
            ({"actorder": "sideways"}, "actorder", "group, weight or none"),
        )
    },
    "marlin with act-order": ("marlin", stated(desc_act=True), "quantization_config.desc_act", "no act-order"),
    "marlin with zero points": ("marlin", stated(sym=False), "quantization_config.sym", "no zero points"),
    "marlin of eight bits": ("marlin", stated(bits=8), f"{PREFIX}.bits", "got 8"),
    "marlin of other groups": ("marlin", stated(group_size=16), f"{PREFIX}.s", "groups, N"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_configuration_that_contradicts_itself_or_the_tensors_is_refused_by_name(tmp_path, rng, wrong):
    """Bits, groups and orders that disagree, and what is not known here, never pass in silence."""
    case, change, field, words = wrong
    _, tensors, config = CASES[case](rng)
    path = write_checkpoint(tmp_path, named(tensors), change(config))
    with pytest.raises(InvalidProblem, match=words) as caught:
        load_linear(path, PREFIX)
    assert (caught.value.op, caught.value.field) == ("load_linear", field)
    (info,) = Checkpoint(path).survey()
    assert info.problem == str(caught.value)
    assert (info.prefix, info.k, info.bias) == (PREFIX, None, False)


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"quantization_config": {"bits": 4, "bits": 8}}', "bits: .*each key once"),
        ("[1]", "a JSON object"),
        ("{", "expected JSON"),
        ('{"quantization_config": 3}', "an object, got 3"),
        ('{"quantization_config": {"bits": ' + "[" * 50_000, "a few levels"),
    ],
)
def test_a_configuration_that_is_none_is_refused(tmp_path, rng, text, words):
    _, path = write_case(tmp_path, rng, "awq")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidProblem, match=words):
        load_linear(path, PREFIX)


# ---- hostile tensors


def without(name):
    return lambda tensors: {key: array for key, array in tensors.items() if key != name}


def instead(**arrays):
    return lambda tensors: tensors | arrays


G_IDX = np.arange(136, dtype=np.int32) // 32
HOSTILE = {
    "no qweight": ("gptq v1, act-order", without("qweight"), "qweight", "missing"),
    "no scales": ("gptq v1, act-order", without("scales"), "scales", "missing"),
    "no qzeros": ("gptq v1, act-order", without("qzeros"), "qzeros", "missing"),
    "no g_idx": ("gptq v1, act-order", without("g_idx"), "g_idx", "the configuration asks for"),
    "group -1": ("gptq v1, act-order", instead(g_idx=G_IDX - 1), "g_idx", "got -1"),
    "group 5": ("gptq v1, act-order", instead(g_idx=G_IDX + 1), "g_idx", "from 0 to 4, got 5"),
    "a short g_idx": ("gptq v1, act-order", instead(g_idx=G_IDX[:-1].copy()), "g_idx", r"\(135,\)"),
    "no rows": ("gptq v2", instead(qweight=np.zeros((0, 40), np.int32)), "qweight", "K=0"),
    "scales of other columns": ("gptq v2", instead(scales=np.ones((5, 48), np.float16)), "scales", "5, 40"),
    "NaN": ("awq", instead(scales=np.full((5, 40), np.nan, np.float16)), "scales", "finite"),
    "no awq qweight": ("awq", without("qweight"), "qweight", "missing"),
    "awq's columns": ("awq", instead(qweight=np.zeros((132, 6), np.int32)), "scales", "5, 48"),
    "awq's words": ("awq", instead(qweight=np.zeros((132, 5), np.int64)), "qweight", "expected int32"),
    "three axes": ("awq", instead(scales=np.ones((5, 40, 1), np.float16)), "scales", "2 axes"),
    "no weight_packed": ("compressed-tensors", without("weight_packed"), "weight_packed", "missing"),
    "no weight_scale": ("compressed-tensors", without("weight_scale"), "weight_scale", "missing"),
    "no zero points": ("compressed-tensors", without("weight_zero_point"), "weight_zero_point", "asks for"),
    "K of 2**62": ("compressed-tensors", instead(weight_shape=np.array([37, 2**62])), "weight_shape", "got 37 and"),
    "group 9": (
        "compressed-tensors, act-order",
        instead(weight_g_idx=np.full(133, 9, np.int32)),
        *("weight_g_idx", "got 9"),
    ),
    "no B": ("marlin", without("B"), "B", "missing"),
    "no s": ("marlin", without("s"), "s", "missing"),
    "B of other columns": ("marlin", instead(B=np.zeros((9, 200), np.int32)), "B", "multiple of 128"),
    "B without rows": ("marlin", instead(B=np.zeros((0, 256), np.int32)), "B", "K=0"),
    "infinite s": ("marlin", instead(s=np.full((3, 128), np.inf, np.float16)), "s", "finite"),
    "a bias of other columns": ("awq", instead(bias=np.ones(41, np.float16)), "bias", r"\(40,\)"),
    "a bias of integers": ("awq", instead(bias=np.ones(40, np.int32)), "bias", "float16"),
    "two formats": (
        "awq",
        instead(weight_packed=np.ones((40, 17), np.int32)),
        "",
        "one format, got compressed-tensors",
    ),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_hostile_tensors_are_refused_by_their_whole_names(tmp_path, rng, hostile):
    """Every disagreement between tensors names one of them, and the file."""
    case, change, name, words = hostile
    _, tensors, config = CASES[case](rng)
    path = write_checkpoint(tmp_path, named(change(tensors)), config)
    with pytest.raises(InvalidProblem, match=words) as caught:
        load_linear(path, PREFIX)
    assert caught.value.op == "load_linear"
    assert caught.value.field == f"{PREFIX}.{name}".removesuffix(".")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("prefix", [None, 3, [], b"m"])
def test_a_name_is_a_string(tmp_path, rng, prefix):
    _, tensors, config = CASES["awq"](rng)
    path = write_checkpoint(tmp_path, named(tensors), config)
    with pytest.raises(InvalidProblem, match="expected a module's name") as caught:
        load_linear(path, prefix)
    assert caught.value.field == "prefix"


def test_a_hostile_header_is_refused_when_a_linear_is_asked_for(tmp_path):
    """Through the function that users call."""
    name = f"{PREFIX}.qweight"
    bomb = {name: {"dtype": "I32", "shape": [2**31, 2**31], "data_offsets": [0, 2**64]}}
    with pytest.raises(InvalidProblem, match=name):
        load_linear(raw(tmp_path / "x.safetensors", bomb), PREFIX)


@given(st.data())
def test_damaged_tensors_are_read_or_refused(tmp_path_factory, data):
    """Whatever a linear's tensors are, the answer is a weight or an error of ours."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    _, tensors, config = CASES[data.draw(st.sampled_from(sorted(CASES)))](rng)
    name = data.draw(st.sampled_from(sorted(tensors)))
    kind = data.draw(st.sampled_from([np.int32, np.float16, np.int64, np.uint8]))
    shape = data.draw(st.lists(st.sampled_from([0, 1, 5, 17, 40, 136]), max_size=3))
    damaged = {**tensors, name: rng.integers(-2, 9, shape).astype(kind)}
    path = write_checkpoint(tmp_path_factory.mktemp("fuzz"), named(damaged), config)
    try:
        linear = load_linear(path, PREFIX)
    except InvalidProblem as error:
        field = str(error.field)
        assert PREFIX in field or "config" in field
    else:
        assert (linear.info.k, linear.info.n) == (linear.weight.k, linear.weight.n)


# ---- what it costs


def test_the_formats_that_read_files_are_imported_when_they_are_asked_for():
    assert formats.load_linear is load_linear
    assert "load_linear" in formats.__all__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        formats.nonsense  # noqa: B018 - the access is the test


def test_representations_are_short(tmp_path, rng):
    _, path = write_case(tmp_path, rng, "awq")
    checkpoint = Checkpoint(path)
    assert repr(checkpoint) == f"Checkpoint({str(path)!r}, 1 linears, 5 tensors)"
    assert repr(checkpoint.files[0]) == f"SafetensorsFile({str(path)!r}, 5 tensors)"


def test_padding_is_the_one_that_kernels_take(tmp_path, rng):
    weight, path = write_case(tmp_path, rng, "awq")
    packed = load_linear(path, PREFIX).to_marlin()
    ours = marlin.to_marlin(padding.pad_to_supported(weight))
    for name, array in ours.operands().items():
        np.testing.assert_array_equal(packed.operands()[name], array)
    assert packed.descriptor_fields() == ours.descriptor_fields()
    assert AWQ["group_size"] == MARLIN["group_size"] == packed.group_size
    assert awq.to_awq(weight).keys() <= {"qweight", "qzeros", "scales"}
