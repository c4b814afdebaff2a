import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quantplan.errors import InvalidProblem
from quantplan.formats import Checkpoint, load_linear, repack, repacking, safetensors
from quantplan.formats.safetensors import SafetensorsFile
from tests.formats.files import CASES, PREFIX, entry, gptq_case, named, raw, write_checkpoint, write_shards
from tests.formats.weights import same

ROOT = Path(__file__).resolve().parents[2]
INDEX = "model.safetensors.index.json"


@pytest.fixture
def rng():
    return np.random.default_rng(6)


@pytest.fixture
def folder(tmp_path, rng):
    """Return a checkpoint of three files: two linears, one across two files, tensors of every alignment."""
    _, tensors, config = CASES["gptq v1, act-order"](rng)
    first = named(tensors, "a") | {"a.bias": np.ones(40, np.float16), "odd": np.zeros(3, np.int8)}
    second = named(CASES["gptq v1, act-order"](rng)[1], "b")
    third = {"b.scales": second.pop("b.scales"), "norm.weight": np.ones(7, np.float16), "ids": np.arange(5)}
    write_shards(tmp_path / "source", [first, second, third], config)
    return tmp_path / "source"


def operands(path, prefix, **options):
    return load_linear(path, prefix).to_marlin(**options).operands()


def equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def tree(folder):
    """Return every file and what it holds."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("case", CASES)
def test_a_repacked_linear_has_the_same_operands(tmp_path, rng, case):
    weight, tensors, config = CASES[case](rng)
    others = {"norm.weight": np.arange(5, dtype=np.float16), "ids": np.arange(3)}
    source = write_checkpoint(tmp_path / "source", named(tensors) | others, config)
    target = tmp_path / "packed.safetensors"
    done = repack(source, target)
    assert (done.linears, done.written, done.complete) == (1, (target,), ())
    packed = Checkpoint(target)
    linear = packed.load_linear(PREFIX)
    before = Checkpoint(source).info(PREFIX)
    assert linear.info == before.replace(format="quantplan", nbytes=linear.info.nbytes)
    equal(linear.to_marlin().operands(), operands(source, PREFIX))
    assert linear.to_marlin().descriptor_fields() == load_linear(source, PREFIX).to_marlin().descriptor_fields()
    assert set(packed.others) == set(others)
    for name, array in others.items():
        np.testing.assert_array_equal(packed.array(name), array)
    restored = linear.weight
    np.testing.assert_array_equal(restored.dequantize()[: weight.k, : weight.n], weight.dequantize())


def test_operands_are_mapped_and_aligned(tmp_path, folder):
    repack(folder, tmp_path / "out")
    checkpoint = Checkpoint(tmp_path / "out")
    for prefix in ("a", "b"):
        packed = checkpoint.load_linear(prefix).to_marlin()
        assert np.shares_memory(packed.weight_q, checkpoint.array(f"{prefix}.weight_q"))
        assert packed.weight_q.ctypes.data % 32 == packed.weight_scale.ctypes.data % 32 == 0
    for name in checkpoint.tensors:
        assert checkpoint.array(name).flags.aligned, name


def test_a_folder_becomes_a_folder_that_others_can_open(tmp_path, folder):
    seen = []
    done = repack(folder, tmp_path / "new" / "out", progress=lambda *counts: seen.append(counts))
    out = tmp_path / "new" / "out"
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(path.name for path in out.iterdir()) == ["config.json", *shards, INDEX]
    assert [path.name for path in done.written] == shards
    for prefix in ("a", "b"):
        equal(operands(out, prefix), operands(folder, prefix))
    assert list(load_file(out / shards[1])) == [
        f"b.{n}" for n in ("weight_q", "weight_scale", "weight_zero_point", "perm")
    ]
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["quantization_config"] == {"quant_method": "quantplan", "format": "marlin", "version": 1}
    placed = json.loads((out / INDEX).read_text())["weight_map"]
    assert placed == {name: file for file in shards for name in load_file(out / file)}
    assert seen[-1][0] == seen[-1][1] == sum(a.nbytes for file in shards for a in load_file(out / file).values())
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_metadata_and_biases_stay(tmp_path, rng):
    _, tensors, config = CASES["awq"](rng)
    bias = np.arange(40, dtype=np.float32)
    source = write_checkpoint(tmp_path / "source", named(tensors) | {f"{PREFIX}.bias": bias}, config)
    repack(source, tmp_path / "out.safetensors", scale_element="bf16")
    file = SafetensorsFile(tmp_path / "out.safetensors")
    assert file.metadata["format"] == "pt"
    np.testing.assert_array_equal(file.array(f"{PREFIX}.bias"), bias)
    assert file.tensors[f"{PREFIX}.weight_scale"].dtype == "BF16"
    equal(operands(file.path, PREFIX, scale_element="bf16"), operands(source, PREFIX, scale_element="bf16"))


def test_elements_that_numpy_lacks_are_copied(tmp_path, rng):
    _, tensors, config = CASES["awq"](rng)
    write_checkpoint(tmp_path / "source", named(tensors), config)
    raw(tmp_path / "source" / "other.safetensors", {"x": entry("F4", [6], 0, 3)}, b"abc")
    (tmp_path / "source" / "model.safetensors").rename(tmp_path / "source" / "first.safetensors")
    repack(tmp_path / "source", tmp_path / "out")
    assert SafetensorsFile(tmp_path / "out" / "other.safetensors").octets("x").tobytes() == b"abc"


def test_what_was_repacked_is_repacked_to_the_same(tmp_path, folder):
    repack(folder, tmp_path / "once")
    repack(tmp_path / "once", tmp_path / "twice")
    for prefix in ("a", "b"):
        equal(operands(tmp_path / "twice", prefix), operands(tmp_path / "once", prefix))


# ---- interruptions


def test_a_second_run_leaves_complete_files_alone(tmp_path, folder):
    out = tmp_path / "out"
    repack(folder, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    done = repack(folder, out)
    assert done.written == ()
    assert len(done.complete) == 3
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.parametrize("bytes_written", [1, 9_000, 15_000])
def test_a_run_that_fails_leaves_whole_files_only_and_the_next_goes_on(tmp_path, folder, bytes_written):
    out = tmp_path / "out"

    def stop(done, _):
        if done >= bytes_written:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repack(folder, out, progress=stop)
    before = tree(out)
    assert all(name.endswith(".safetensors") for name in before)
    for name in before:
        SafetensorsFile(out / name)
    done = repack(folder, out)
    assert len(done.complete) == len(before)
    assert len(done.written) == 3 - len(before)
    repack(folder, tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


KILLED = """
import os, sys
from quantplan.formats import repack
repack(sys.argv[1], sys.argv[2], progress=lambda done, of: os._exit(9) if done > of * 3 // 4 else None)
"""


def test_a_run_that_is_killed_is_taken_up_and_tidied(tmp_path, folder):
    """No file has its name before it is complete."""
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(out)], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 9
    left = sorted(path.name for path in out.iterdir())
    assert len(left) == 2
    assert left[0].startswith(".model-00002")
    assert left[1] == "model-00001-of-00003.safetensors"
    resumed = repack(folder, out)
    assert [path.name for path in resumed.complete] == [left[1]]
    repack(folder, tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


# ---- refusals: nothing is written


def refused(source, target, words, **options):
    before = tree(target) if target.is_dir() else target.exists()
    with pytest.raises(InvalidProblem, match=words) as caught:
        repack(source, target, **options)
    assert (tree(target) if target.is_dir() else target.exists()) == before
    return caught.value


def test_a_destination_that_is_something_else_is_refused(tmp_path, folder):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    refused(folder, out, r"empty, or that an earlier run was writing, got .*notes\.txt")
    (out / "notes.txt").rename(out / "config.json")
    refused(folder, out, r"an earlier run with this source .*config\.json")
    (out / "config.json").unlink()
    save_file({"x": np.zeros(3)}, out / "model-00002-of-00003.safetensors")
    refused(folder, out, r"an earlier run with this source .*model-00002")
    (out / "model-00002-of-00003.safetensors").write_bytes(b"cut short")
    refused(folder, out, "header: in .*model-00002")
    file = tmp_path / "file"
    file.write_text("mine")
    refused(folder, file, "a folder, as the source is")
    assert file.read_text() == "mine"


def test_a_destination_of_the_other_kind_is_refused(tmp_path, rng):
    _, tensors, config = CASES["awq"](rng)
    source = write_checkpoint(tmp_path / "source", named(tensors), config)
    refused(source, tmp_path / "out", r"a \.safetensors file, as the source is, got .*which does not exist")
    refused(source, tmp_path, r"a \.safetensors file, as the source is")
    refused(source, source, "a place outside")
    other = tmp_path / "other.safetensors"
    save_file({"x": np.zeros(3)}, other)
    refused(source, other, "an earlier run with this source")


@pytest.mark.parametrize("place", ["x" * 300, "a\0b", "y" * 300 + ".safetensors", None, 3])
def test_what_can_be_no_place_is_refused(tmp_path, folder, place):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidProblem, match="expected a path") as caught:
        repack(folder, place if not isinstance(place, str) else tmp_path / place)
    assert (caught.value.op, caught.value.field) == ("repack", "destination")
    with pytest.raises(InvalidProblem, match="expected a path") as caught:
        repack(place if not isinstance(place, str) else tmp_path / place, tmp_path / "out")
    assert caught.value.field == "path"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("config", ["x", [1], 3, {3: 4}, {"dynamic": {3: {}}}, {"bits": {4}}, {"bits": float("nan")}])
def test_a_configuration_that_no_file_could_hold_is_refused(tmp_path, folder, config):
    for take in (lambda: repack(folder, tmp_path / "out", config=config), lambda: Checkpoint(folder, config=config)):
        with pytest.raises(InvalidProblem, match="expected a mapping of names") as caught:
            take()
        assert caught.value.field == "config"
    assert not (tmp_path / "out").exists()


def test_a_source_in_its_destination_and_the_reverse_are_refused(tmp_path, folder):
    refused(folder, folder, "a place outside")
    refused(folder, folder / "out", "a place outside")
    refused(folder, tmp_path, "not around it")
    refused(folder / INDEX, folder / "out", "a place outside")
    refused(folder, tmp_path / "source" / ".." / "source" / "out", "a place outside")
    if os.name != "nt":
        (tmp_path / "link").symlink_to(folder)
        refused(folder, tmp_path / "link" / "out", "a place outside")


def test_other_options_and_another_source_are_not_taken_for_the_same(tmp_path, folder):
    out = tmp_path / "out"
    repack(folder, out)
    refused(folder, out, "an earlier run with this source and these options", scale_element="bf16")
    file = folder / "model-00001-of-00003.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    os.utime(file, ns=(0, 0))
    file.write_bytes(bytes(content))
    refused(folder, out, "an earlier run with this source")


def test_everything_is_checked_before_anything_is_written(tmp_path, folder, rng):
    third = folder / "model-00003-of-00003.safetensors"
    tensors = load_file(third)
    save_file(tensors | {"b.scales": np.full_like(tensors["b.scales"], np.nan)}, third)
    error = refused(folder, tmp_path / "out", "finite")
    assert error.field == "b.scales"
    save_file(tensors | {"b.scales": tensors["b.scales"].astype(np.float32) * 1e6}, third)
    error = refused(folder, tmp_path / "out", "finite in f16", scale_element="f16")
    assert error.field == "b.scales"
    weight, tensors, config = gptq_case(rng, 1, act_order=True)
    uneven = tensors | {"g_idx": np.roll(np.minimum(weight.g_idx + 1, 4), 1)}
    source = write_checkpoint(tmp_path / "uneven", named(uneven), config)
    assert load_linear(source, PREFIX).info.act_order
    assert refused(source, tmp_path / "out.safetensors", "rows in group").field == f"{PREFIX}.g_idx"
    source = write_checkpoint(tmp_path / "even", named(tensors), config)
    refused(source, tmp_path / "out.safetensors", "f16, bf16 or f32", scale_element="s8")
    refused(source, tmp_path / "out.safetensors", "scale_element", scale_element="nonsense")


def test_a_name_that_an_operand_takes_is_refused(tmp_path, rng):
    _, tensors, config = CASES["awq"](rng)
    taken = {f"{PREFIX}.weight_scale": np.ones(3)}
    source = write_checkpoint(tmp_path / "source", named(tensors) | taken, config)
    refused(source, tmp_path / "out.safetensors", f"{PREFIX}.weight_scale: expected each tensor once")


def test_a_checkpoint_without_linears_is_refused(tmp_path):
    source = write_checkpoint(tmp_path / "source", {"x": np.zeros(3)}, None)
    refused(source, tmp_path / "out.safetensors", "quantized linears, got none")


def test_a_file_that_cannot_be_written_is_one_error(tmp_path, folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(repacking, "write", full)
    with pytest.raises(InvalidProblem, match=r"destination: expected files that can be written, got .*No space left"):
        repack(folder, tmp_path / "out")


# ---- hostile files that say they were repacked


@pytest.fixture
def packed(tmp_path, rng):
    """Return a repacked file's tensors and what its metadata say."""
    _, tensors, config = CASES["gptq v1, act-order"](rng)
    repack(write_checkpoint(tmp_path / "source", named(tensors), config), tmp_path / "out.safetensors")
    file = SafetensorsFile(tmp_path / "out.safetensors")
    return {name: file.array(name) for name in file.tensors}, json.loads(file.metadata["quantplan"])


def said(**changes):
    return lambda tensors, data: (tensors, data | {"linears": {PREFIX: data["linears"][PREFIX] | changes}})


def instead(name, array):
    return lambda tensors, data: (tensors | {f"{PREFIX}.{name}": array}, data)


def without(name):
    return lambda tensors, data: ({n: a for n, a in tensors.items() if n != f"{PREFIX}.{name}"}, data)


LYING = {
    "another version": (lambda t, d: (t, d | {"version": 2}), "__metadata__.quantplan.version", "another version"),
    "no linears": (lambda t, d: (t, d | {"linears": {}}), f"{PREFIX}.weight_q", "metadata that say"),
    "linears in a list": (lambda t, d: (t, d | {"linears": [1]}), "__metadata__.quantplan.linears", "an object"),
    "another k": (said(k=256), f"{PREFIX}.weight_q", "shape .16, 128."),
    "k of 0": (said(k=0), f"{PREFIX}.k", "K=0"),
    "k of 2**40": (said(k=2**40), f"{PREFIX}.k", "from 1 to"),
    "k in words": (said(k="136"), f"{PREFIX}.__metadata__.quantplan.linears.{PREFIX}.k", "an integer"),
    "no n": (said(n=None), f"{PREFIX}.__metadata__.quantplan.linears.{PREFIX}.n", "an integer"),
    "another n": (said(n=65), f"{PREFIX}.weight_q", "n = 65"),
    "another k in the same tile": (said(k=137), f"{PREFIX}.perm", r"\(137,\)"),
    "group size 0": (said(group_size=0), f"{PREFIX}.group_size", "got 0"),
    "another group size": (said(group_size=64), f"{PREFIX}.weight_scale", "groups, N"),
    "no codes": (without("weight_q"), f"{PREFIX}.weight_q", "missing"),
    "no scales": (without("weight_scale"), f"{PREFIX}.weight_scale", "missing"),
    "NaN": (instead("weight_scale", np.full((6, 64), np.nan, np.float16)), f"{PREFIX}.weight_scale", "finite"),
    "zeros": (instead("weight_zero_point", np.zeros((6, 4), np.int32)), f"{PREFIX}.weight_zero_point", "6, 8"),
    "columns twice": (instead("perm", np.zeros(136, np.int32)), f"{PREFIX}.perm", "each column once"),
    "column 136": (instead("perm", np.arange(1, 137, dtype=np.int32)), f"{PREFIX}.perm", "got 136"),
    "columns of int64": (instead("perm", np.arange(136)), f"{PREFIX}.perm", "int32"),
}


@pytest.mark.parametrize("change, field, words", LYING.values(), ids=LYING)
def test_a_file_that_lies_about_what_was_repacked_is_refused_by_name(tmp_path, packed, change, field, words):
    """Our own metadata are no more believed than anybody's."""
    tensors, data = change(*packed)
    path = tmp_path / "lying.safetensors"
    save_file(
        {name: np.ascontiguousarray(a) for name, a in tensors.items()}, path, metadata={"quantplan": json.dumps(data)}
    )
    with pytest.raises(InvalidProblem, match=words) as caught:
        load_linear(path, PREFIX)
    assert caught.value.field == field


def test_metadata_that_are_no_json_or_have_a_key_twice_are_refused(tmp_path, packed):
    path = tmp_path / "lying.safetensors"
    for text, words in (("{", "expected JSON"), ('{"version": 1, "version": 1}', "each key once")):
        save_file({n: np.ascontiguousarray(a) for n, a in packed[0].items()}, path, metadata={"quantplan": text})
        with pytest.raises(InvalidProblem, match=words):
            Checkpoint(path)


def test_a_weight_that_was_repacked_comes_back(tmp_path, rng):
    weight, tensors, config = gptq_case(rng, 2, symmetric=False)
    source = write_checkpoint(tmp_path / "source", named(tensors), config)
    repack(source, tmp_path / "out.safetensors")
    from quantplan.formats.padding import remove_padding  # noqa: PLC0415

    same(remove_padding(load_linear(tmp_path / "out.safetensors", PREFIX).weight), weight)


def test_large_tensors_are_copied_in_pieces(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(repacking, "_PIECE", 1000)
    _, tensors, config = CASES["awq"](rng)
    big = np.arange(5000, dtype=np.int16)
    source = write_checkpoint(tmp_path / "source", named(tensors) | {"big": big}, config)
    steps = []
    repack(source, tmp_path / "out.safetensors", progress=lambda *counts: steps.append(counts))
    np.testing.assert_array_equal(SafetensorsFile(tmp_path / "out.safetensors").array("big"), big)
    assert len(steps) == 3 + 10
    assert safetensors.leftovers(tmp_path / "out.safetensors") == []
