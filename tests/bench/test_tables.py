"""Tables stand between markers, and are made from the newest file of their kind."""

import json

import pytest

from quantplan.bench import tables
from tests.bench.recorded import RECIPES, REFERENCE, SCALED_TENSORS

TEXT = """before
<!-- a:begin -->
old, with \\g<1> and a backslash
<!-- a:end -->
between
<!-- b:begin -->
<!-- b:end -->
"""


def test_parts_replace_what_stands_between_their_markers():
    text = tables.render(TEXT, {"a": lambda: "new \\1", "b": lambda: "other"})
    assert text.splitlines() == [
        "before",
        "<!-- a:begin -->",
        "new \\1",
        "<!-- a:end -->",
        "between",
        "<!-- b:begin -->",
        "other",
        "<!-- b:end -->",
    ]
    assert tables.render(text, {"a": lambda: "new \\1"}) == text


@pytest.mark.parametrize("damage", [lambda t: t.replace("<!-- a:end -->", ""), lambda t: t + t])
def test_missing_or_repeated_markers_are_an_error(damage):
    with pytest.raises(ValueError, match="<!-- a:begin -->"):
        tables.render(damage(TEXT), {"a": lambda: ""})


def test_the_newest_file_counts(tmp_path):
    for date in ("2031-02-03", "2031-11-01", "2030-12-31"):
        (tmp_path / f"x-{date}.json").write_text(json.dumps({"date": date}), encoding="utf-8")
    assert tables.newest(tmp_path, "x", "measure x")["date"] == "2031-11-01"
    with pytest.raises(FileNotFoundError, match="`measure y`"):
        tables.newest(tmp_path, "y", "measure y")


def test_recipes_name_the_model_and_how_much_of_it_ran():
    text = tables.recipes(RECIPES)
    assert "| `w8a8-smoothquant` | 21.26 | 87.5% | 135.0 MB | 7.0 |" in text.splitlines()
    assert "Tiny-1M, 3 layers, on held-out text, measured 2031-02-03 on Abacus 9 (cores: 2, BLAS threads: 1" in text


def test_the_reference_device_stands_beside_numpy():
    lines = tables.reference(REFERENCE).splitlines()
    assert "| W8A8 linear, 1 × 4096 × 576 | 1.50 ms | 0.75 ms | 2.00 |" in lines
    assert "| FP8 cast, 1024 × 1024 | 8.12 ms |  |  |" in lines
    assert lines[-1].startswith("Medians of interleaved runs, measured 2031-02-03 on Abacus 9")


def test_scaled_tensors_stand_beside_their_bounds():
    lines = tables.scaled(SCALED_TENSORS).splitlines()
    assert "| `MXFP8BlockScaling` | 8.25 | 2.65% | 5.88% | 31.5 dB | 1.000 | 2.79% |" in lines
    assert lines[-1] == "Tiny-1M, layer 0, q, 64 × 64, on cpu, measured 2031-02-03."
