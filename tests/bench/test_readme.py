"""The README's tables say what the measured files say, and nothing else in it changes."""

import json
from pathlib import Path

import pytest

from quantplan.bench import readme

MACHINE = {"cpu": "Abacus 9", "cpu_count": 2, "blas_threads": 1, "numpy": "2.4.6"}
RECIPES = {
    "date": "2031-02-03",
    "machine": MACHINE,
    "model": "Tiny-1M",
    "layers": 3,
    "rows": [
        {
            "recipe": "fp32",
            "perplexity": 20.5,
            "top1_agreement": 1.0,
            "weight_bytes": 540_000_000,
            "tokens_per_second": 12.34,
        },
        {
            "recipe": "w8a8-smoothquant",
            "perplexity": 21.256,
            "top1_agreement": 0.8751,
            "weight_bytes": 135_000_000,
            "tokens_per_second": 7,
        },
    ],
}
REFERENCE = {
    "date": "2031-02-03",
    "machine": MACHINE,
    "gemm": [{"m": 1, "n": 4096, "k": 576, "ms": 1.5, "f32_ms": 0.75, "ratio": 2.0}],
    "ops": [{"name": "FP8 cast", "m": 1024, "k": 1024, "ms": 8.123}],
}
TEXT = """# Title

before
<!-- recipes:begin -->
old, with \\g<1> and a backslash
<!-- recipes:end -->
between
<!-- reference:begin -->
<!-- reference:end -->
after
"""


@pytest.fixture
def tree(tmp_path):
    """Lay out a README and one result file per table."""
    (tmp_path / "README.md").write_text(TEXT, encoding="utf-8")
    results = tmp_path / "results"
    results.mkdir()
    (results / "recipes-2031-02-03.json").write_text(json.dumps(RECIPES))
    (results / "reference-2031-02-03.json").write_text(json.dumps(REFERENCE))
    return tmp_path


def run(tree, *options):
    return readme.main([*options, "--readme", str(tree / "README.md"), "--results", str(tree / "results")])


def text(tree):
    return (tree / "README.md").read_text(encoding="utf-8")


def test_tables_replace_what_stands_between_their_markers(tree):
    assert run(tree) == 0
    lines = text(tree).splitlines()
    assert "| `w8a8-smoothquant` | 21.26 | 87.5% | 135.0 MB | 7.0 |" in lines
    assert "| W8A8 linear, 1 × 4096 × 576 | 1.50 ms | 0.75 ms | 2.00 |" in lines
    assert "| FP8 cast, 1024 × 1024 | 8.12 ms |  |  |" in lines
    assert "old" not in text(tree)
    assert [line for line in lines if line in {"before", "between", "after", "# Title"}] == [
        "# Title",
        "before",
        "between",
        "after",
    ]


def test_every_table_names_its_date_and_machine(tree):
    run(tree)
    assert text(tree).count("measured 2031-02-03 on Abacus 9 (cores: 2, BLAS threads: 1, NumPy 2.4.6)") == 2


def test_the_recipes_name_the_model_and_how_much_of_it_ran(tree):
    run(tree)
    assert "Tiny-1M, 3 layers, on held-out text" in text(tree)


def test_writing_twice_changes_nothing(tree):
    run(tree)
    once = text(tree)
    assert run(tree) == 0
    assert text(tree) == once


def test_the_newest_result_counts(tree):
    newer = {**RECIPES, "rows": [{**RECIPES["rows"][0], "perplexity": 19.0}]}
    (tree / "results" / "recipes-2031-11-01.json").write_text(json.dumps(newer))
    run(tree)
    assert "19.00" in text(tree)
    assert "20.50" not in text(tree)


def test_check_accepts_a_fresh_readme_and_refuses_a_stale_one(tree, capsys):
    assert run(tree, "--check") == 1
    assert text(tree) == TEXT, "a check writes nothing"
    assert "make readme" in capsys.readouterr().err
    run(tree)
    assert run(tree, "--check") == 0
    (tree / "README.md").write_text(text(tree).replace("21.26", "18.00"), encoding="utf-8")
    assert run(tree, "--check") == 1


def test_an_unmeasured_table_is_an_error_that_names_the_command(tree, capsys):
    (tree / "results" / "recipes-2031-02-03.json").unlink()
    assert run(tree) == 2
    assert "python examples/generate.py --evaluate" in capsys.readouterr().err
    assert text(tree) == TEXT


@pytest.mark.parametrize("damage", [lambda t: t.replace("<!-- recipes:end -->", ""), lambda t: t + t])
def test_missing_or_repeated_markers_are_an_error(tree, capsys, damage):
    (tree / "README.md").write_text(damage(TEXT), encoding="utf-8")
    assert run(tree) == 2
    assert "<!-- recipes:begin -->" in capsys.readouterr().err


def test_the_projects_own_readme_is_up_to_date():
    root = Path(__file__).resolve().parents[2]
    assert readme.main(["--check"]) == 0, (root / "README.md").as_posix()
