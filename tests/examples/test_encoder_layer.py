"""The encoder layer keeps what its plans promise, on every target; and the example says so when one does not."""

import re

import numpy as np
import pytest

pytest.importorskip("rich", reason="rich is not installed: pip install quantplan[demo]")

import encoder_layer
from encoder.runner import Runner

import quantplan as qp
from tests import fake_cupy

SMALL = ("--tokens", "3", "--hidden", "64", "--heads", "2")
RECIPES = tuple(encoder_layer.RECIPES)


@pytest.fixture
def run(monkeypatch, capsys):
    """Return what runs the example, and returns its exit code and what it says."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*options):
        code = encoder_layer.main([*SMALL, *options])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def spoil(monkeypatch):
    """Return what lets a function change an array whenever the second target has written it."""

    def spoil(index, name, change):
        runners, original = [], Runner.run

        def run(runner, part):
            original(runner, part)
            if runner not in runners:
                runners.append(runner)
            if runner is not runners[0] and part.start == index:
                runner.write(name, change(runner.read(name)))

        monkeypatch.setattr(Runner, "run", run)

    return spoil


def launches(said):
    """Return the table's rows of launches: name, SKU, whether the bits are the same, part of the bounds, elements."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if line.startswith("│")]
    assert int(re.search(r"^(\d+) launches, and attention$", said, re.MULTILINE)[1]) == len(rows) <= 10
    return rows


def errors(said):
    """Return the errors against float32, in percent: of the layer, and of one without multipliers."""
    return [float(error) for error in re.search(r"float32: ([\d.]+)%, and ([\d.]+)% without", said).groups()]


@pytest.mark.parametrize("adaln", [(), ("--adaln",)], ids=["rms", "adaln"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_layer_stays_near_float32_and_multipliers_help_integers(run, recipe, adaln):
    code, said, _ = run("--recipe", recipe, *adaln)
    assert code == 0
    rows = launches(said)
    assert all("reference" in sku and bits.startswith("yes") for _, sku, bits, *_ in rows)
    assert sum("norm_quantize" in row[1] and (".layer." in row[1]) == bool(adaln) for row in rows) == 3
    assert sum(".gated" in row[1] and "norm" in row[1] for row in rows) == (2 if adaln else 0)
    assert "CUDA graphs: they need a GPU" in said
    smooth, rough = errors(said)
    assert 0 < smooth < 10
    if recipe == "int8":  # FP8's codes are as fine for small values as for large ones
        assert smooth < rough / 1.5


def emulated(run, target, recipe, *options):
    code, said, complaint = run("--recipe", recipe, "--target", target, *options)
    assert code == 0, said + complaint
    for name, sku, bits, part, elements in launches(said):
        assert "reference" not in sku, name
        assert part == "–" or float(part) <= 1
        assert "promised" in bits or part != "–"
        assert int(elements) > 0
    return said


def test_an_emulated_gpu_keeps_its_promises(run):
    said = emulated(run, "emulated:sm_90a", "int8", "--adaln")
    assert errors(said) == errors(run("--recipe", "int8", "--adaln")[1])


@pytest.mark.slow
@pytest.mark.parametrize("adaln", [(), ("--adaln",)], ids=["rms", "adaln"])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("target", ["emulated:sm_80", "emulated:sm_90a"])
def test_every_recipe_on_emulated_gpus(run, target, recipe, adaln):
    emulated(run, target, recipe, *adaln, "--tokens", "8", "--hidden", "192", "--heads", "3")


def nan(array):
    array[:] = np.nan
    return array


def one_code_apart(codes):
    codes[0, 0] ^= 1
    return codes


def other_sign(codes):
    codes[np.unravel_index(np.abs(codes.astype(int)).argmax(), codes.shape)] *= -1
    return codes


@pytest.mark.parametrize(
    "index, name, change",
    [
        pytest.param(0, "qkv.act_q", one_code_apart, id="bits"),
        pytest.param(4, "stream", lambda stream: np.nextafter(stream, np.float16(9)), id="stream"),
        pytest.param(6, "down.act_q", other_sign, id="bound of codes"),
        pytest.param(6, "down.act_scale", lambda scale: 1.001 * scale, id="bound of scales"),
        pytest.param(6, "down.act_scale", nan, id="nan"),
        pytest.param(8, "result", nan, id="result"),
    ],
)
def test_a_broken_promise_is_seen_in_its_launch(run, spoil, index, name, change):
    spoil(index, name, lambda array: change(array).astype(array.dtype))
    code, said, complaint = run("--recipe", "int8")
    assert code == 1
    assert "a promise is broken" in complaint
    rows = launches(said)
    for number, (_, _, bits, part, _) in enumerate(rows):
        kept = bits == "yes, promised" if part == "–" else part == "0.000"
        assert kept == (number != index), rows[number]


def test_a_code_beside_the_right_one_is_within_both_bounds(run, spoil):
    """Half a step for each of the two is what rounding is allowed."""
    spoil(6, "down.act_q", one_code_apart)
    code, said, _ = run("--recipe", "int8")
    assert code == 0
    assert launches(said)[6][2:4] != ["yes", "0.000"]


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    return fake_cupy.install_emulated(monkeypatch, tmp_path, fake_cupy.EmulatedGpus((9, 0)))


@pytest.mark.slow  # the kernels are compiled once more, unchecked
def test_graphs_are_replayed_with_the_bits_of_the_eager_run(run, gpu):
    code, said, complaint = run("--target", "cuda:0")
    assert code == 0, said + complaint
    assert "CUDA graphs: replayed, with the bits of the eager run" in said
    assert len(launches(said)) == 9
    assert len(gpu.launches) == 3 * 9, "compared, run, and captured: nine each"


@pytest.mark.slow  # the kernels are compiled once more, unchecked
def test_other_bits_of_a_graph_are_a_broken_promise(run, gpu, monkeypatch):
    monkeypatch.setattr(
        Runner, "capture", lambda runner, part: lambda: runner.write("result", 0 * runner.read("result"))
    )
    code, said, _ = run("--target", "cuda:0")
    assert code == 1
    assert "NOT with the bits" in said


def test_what_cannot_run_is_refused_in_one_line(run):
    code, said, complaint = run("--target", "sm_90a")
    assert (code, said) == (2, "")
    (line,) = complaint.splitlines()
    assert line.startswith("encoder_layer.py: ")
    assert "sm_90a is an architecture, not a device" in line


@pytest.mark.parametrize("options", [["--tokens", "0"], ["--heads", "5"], ["--recipe", "w1a1"]])
def test_bad_options_name_the_rule(options, capsys):
    with pytest.raises(SystemExit) as stop:
        encoder_layer.main(options)
    assert stop.value.code == 2
    assert f"argument {options[0]}: " in capsys.readouterr().err


def test_no_launch_reads_what_its_target_has_not_been_given(run, monkeypatch):
    """Operands travel from the CPU before each launch, and outputs are poisoned: nothing is left from before."""
    quiet = Runner.run

    def run_nothing(runner, part):
        if runner.plans[0].target != qp.Target.parse("cpu"):
            return
        quiet(runner, part)

    monkeypatch.setattr(Runner, "run", run_nothing)
    code, said, _ = run("--target", "emulated:sm_90a", "--adaln")
    assert code == 1
    assert not any(bits.startswith("yes") for _, _, bits, *_ in launches(said))
