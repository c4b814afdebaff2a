"""The page's table says what the compiler said, and is refused when the kernels' sources are others now."""

import json
from pathlib import Path

import pytest

from quantplan.bench import resources

TEXT = "before\n<!-- resources:begin -->\nold\n<!-- resources:end -->\nafter\n"


@pytest.fixture(scope="module")
def measured():
    """Compile two of the main problems."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resources, "PROBLEMS", (resources.PROBLEMS[0], resources.PROBLEMS[4]))
        return resources.measure(1)


@pytest.fixture
def tree(tmp_path, measured, monkeypatch):
    """Lay out a page, and a folder of results; compiling is done already."""
    (tmp_path / "page.md").write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr(resources, "measure", lambda processes: measured)
    return tmp_path


def run(tree, *options):
    return resources.main([*options, "--page", str(tree / "page.md"), "--results", str(tree)])


def text(tree):
    return (tree / "page.md").read_text(encoding="utf-8")


def test_the_table_has_a_line_per_launch(tree, measured):
    assert run(tree) == 0
    lines = text(tree).splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old" not in lines
    token, *tensor = (line for line in lines if line.startswith("| ") and "`" in line)
    code = measured["rows"][0]["kernels"][0]["code"]
    start = "| `dynamic_range_quantize.within_rows.bf16.s8.f32.token.symmetric` | `quantize_segments` |"
    assert token.startswith(f"{start} {code['registers']} | 16 B | 0 |")
    assert token.endswith("| 1.00 |")
    assert [line.split("|")[2].strip() for line in tensor] == ["`ranges`", "`scales`", "`quantize`"]
    assert [line.split("|")[-2].strip() for line in tensor] == ["1.67", "", ""]


def test_the_table_names_its_architecture_compiler_and_date(tree, measured):
    run(tree)
    assert f"sm_90a, NVRTC {measured['nvrtc']}, compiled {measured['date']}." in text(tree)


def test_a_check_accepts_what_was_written_and_writes_nothing(tree, capsys):
    run(tree)
    assert run(tree, "--check") == 0
    (tree / "page.md").write_text(text(tree).replace("1.67", "1.00"), encoding="utf-8")
    before = text(tree)
    assert run(tree, "--check") == 1
    assert text(tree) == before
    assert "make performance" in capsys.readouterr().err


def test_figures_of_other_sources_are_stale(tree, monkeypatch):
    run(tree)
    monkeypatch.setattr(resources, "family_digest", lambda source: "another")
    assert run(tree, "--check") == 1


def test_without_results_the_error_names_the_command(tree, capsys):
    assert run(tree, "--check") == 2
    assert "python -m quantplan.bench.resources" in capsys.readouterr().err


def test_results_are_kept_as_data(tree, measured):
    run(tree)
    (path,) = tree.glob("resources-*.json")
    assert json.loads(path.read_text(encoding="utf-8")) == measured


def test_the_projects_own_page_is_up_to_date():
    root = Path(__file__).resolve().parents[2]
    assert resources.main(["--check"]) == 0, (root / "docs" / "performance.md").as_posix()
