"""The pages say what the results say, nothing else in them changes, and what is no result is never shown."""

import json
import shutil
from pathlib import Path

import pytest

from quantplan.bench import catalogue, plots, report, resources, runs, scaling
from tests.bench import synthetic
from tests.bench.recorded import RECIPES, REFERENCE, SCALED_TENSORS

README = """# Title
<!-- gpu:begin -->
<!-- gpu:end -->
between
<!-- recipes:begin -->
<!-- recipes:end -->
<!-- reference:begin -->
<!-- reference:end -->
after
"""
PERFORMANCE = """# Performance
<!-- gpu:begin -->
<!-- gpu:end -->
between
<!-- resources:begin -->
<!-- resources:end -->
after
"""
CHOOSING = """# Choosing
<!-- ops:begin -->
<!-- ops:end -->
after
"""
SCALED = """# Scaled tensors
<!-- weights:begin -->
<!-- weights:end -->
between
<!-- published:begin -->
<!-- published:end -->
<!-- rules:begin -->
<!-- rules:end -->
after
"""
RESOURCES = {"date": "2031-02-03", "target": "sm_90a", "nvrtc": "13.0", "rows": []}


def put(tree, name, data):
    (tree / "docs" / "performance" / "results" / name).write_text(json.dumps(data), encoding="utf-8")


def lay_out(folder):
    """Lay out a checkout's pages and results; no GPU has run anything."""
    (folder / "docs" / "performance" / "results").mkdir(parents=True)
    (folder / "README.md").write_text(README, encoding="utf-8")
    (folder / "docs" / "performance.md").write_text(PERFORMANCE, encoding="utf-8")
    (folder / "docs" / "choosing.md").write_text(CHOOSING, encoding="utf-8")
    (folder / "docs" / "scaled.md").write_text(SCALED, encoding="utf-8")
    put(folder, "recipes-2031-02-03.json", RECIPES)
    put(folder, "reference-2031-02-03.json", REFERENCE)
    put(folder, "scaled-2031-02-03.json", SCALED_TENSORS)
    put(folder, "resources-2031-02-03.json", {**RESOURCES, "sources": resources.digests()})
    return folder


def measure(folder):
    """Add a run that is taken for measured."""
    data = synthetic.run()
    del data["synthetic"]
    put(folder, "gpu-abacus-9000-2031-02-03.json", data)
    return folder


@pytest.fixture
def tree(tmp_path):
    return lay_out(tmp_path)


@pytest.fixture
def measured(tree):
    return measure(tree)


@pytest.fixture(scope="module")
def written_once(tmp_path_factory):
    """Write pages and plots, which takes a second to draw them."""
    folder = measure(lay_out(tmp_path_factory.mktemp("written")))
    assert run(folder) == 0
    return folder


@pytest.fixture
def written(written_once, tmp_path):
    """Return a copy that a test may change."""
    return shutil.copytree(written_once, tmp_path / "written")


def run(tree, *options):
    return report.main([*options, "--root", str(tree)])


def texts(tree):
    return [path.read_text(encoding="utf-8") for path in (tree / "README.md", tree / "docs" / "performance.md")]


def test_without_a_gpu_the_pages_say_so(tree):
    assert run(tree) == 0
    readme, performance = texts(tree)
    assert "No GPU has run quantplan yet" in readme
    assert "No speed has been measured on a GPU yet" in performance
    assert [line for line in readme.splitlines() if line in {"# Title", "between", "after"}] == [
        "# Title",
        "between",
        "after",
    ]
    assert "| `fp32` | 20.50 |" in readme
    assert "NVRTC 13.0, compiled 2031-02-03." in performance


def test_what_needs_no_file_is_measured_anew(tree, capsys):
    run(tree)
    path = tree / "docs" / "scaled.md"
    text = path.read_text(encoding="utf-8")
    assert "| `MXFP8BlockScaling` | 8.25 | 2.65% | 5.88% | 31.5 dB | 1.000 | 2.79% |" in text
    assert scaling.rules_table() in text
    path.write_text(text.replace("100.0%", "10.0%", 1), encoding="utf-8")
    assert run(tree, "--check") == 1
    assert "scaled.md is stale" in capsys.readouterr().err


def test_plans_are_told_as_they_are(tree, capsys):
    run(tree)
    path = tree / "docs" / "choosing.md"
    text = path.read_text(encoding="utf-8")
    assert catalogue.ops_table() in text
    path.write_text(text.replace("`sm_80`", "`sm_75`", 1), encoding="utf-8")
    assert run(tree, "--check") == 1
    assert "choosing.md is stale: run `make readme`" in capsys.readouterr().err


def test_with_one_they_show_what_it_measured_and_its_plots(written):
    readme, performance = texts(written)
    assert "Measured 2031-02-03 on Abacus 9000" in readme
    assert "performance/roofline-abacus-9000.svg" in performance
    assert {path.name for path in (written / "docs" / "performance").glob("*.svg")} == {
        "roofline-abacus-9000.svg",
        "speedups-abacus-9000.svg",
    }


@pytest.mark.untraced
def test_writing_twice_changes_nothing(written):
    before = {path: path.read_bytes() for path in written.rglob("*") if path.is_file()}
    assert run(written) == 0
    assert {path: path.read_bytes() for path in written.rglob("*") if path.is_file()} == before


def test_a_check_accepts_what_was_written_and_writes_nothing(measured, written, capsys):
    before = texts(measured)
    assert run(measured, "--check") == 1
    assert texts(measured) == before
    assert "README.md is stale: run `make readme`" in capsys.readouterr().err
    assert run(written, "--check") == 0


@pytest.mark.untraced
@pytest.mark.parametrize("file", ["README.md", "docs/performance.md"])
def test_a_figure_that_was_changed_by_hand_is_noticed(written, file):
    path = written / file
    path.write_text(path.read_text(encoding="utf-8").replace("2.6 µs", "1.6 µs"), encoding="utf-8")
    assert run(written, "--check") == 1


def test_plots_that_are_missing_old_or_of_no_run_are_noticed(written, capsys):
    plot = written / "docs" / "performance" / "roofline-abacus-9000.svg"
    drawn = plot.read_text(encoding="utf-8")
    plot.unlink()
    assert run(written, "--check") == 1
    assert "roofline-abacus-9000.svg is missing" in capsys.readouterr().err
    (day,) = runs.load(written / "docs" / "performance" / "results")
    plot.write_text(drawn.replace(plots.digest(day), "0" * 64), encoding="utf-8")
    assert run(written, "--check") == 1
    plot.write_text(drawn, encoding="utf-8")
    stray = written / "docs" / "performance" / "roofline-other.svg"
    stray.write_text(drawn, encoding="utf-8")
    assert run(written, "--check") == 1
    run(written)
    assert not stray.exists()
    assert run(written, "--check") == 0


def test_kernels_that_have_changed_since_are_noticed(tree, capsys):
    run(tree)
    put(tree, "resources-2031-02-04.json", {**RESOURCES, "sources": {"quantize.cu": "another"}})
    assert run(tree, "--check") == 1
    assert "run `make performance`" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{}, {"synthetic": False, "smoke": True}])
def test_what_is_no_result_is_refused_and_nothing_is_written(tree, capsys, changes):
    put(tree, "gpu-abacus-9000-2031-02-03.json", synthetic.run(**changes))
    before = texts(tree)
    for options in ((), ("--check",), ("--html", str(tree / "page.html"))):
        assert run(tree, *options) == 2
        assert "is no result" in capsys.readouterr().err
    assert texts(tree) == before
    assert not (tree / "page.html").exists()


def test_an_unmeasured_table_is_an_error_that_names_the_command(tree, capsys):
    (tree / "docs" / "performance" / "results" / "recipes-2031-02-03.json").unlink()
    assert run(tree) == 2
    assert "python examples/generate.py --evaluate" in capsys.readouterr().err
    assert texts(tree) == [README, PERFORMANCE]


@pytest.mark.parametrize(
    "name, data",
    [
        ("reference-2031-02-04.json", {"date": "2031-02-04"}),
        ("resources-2031-02-04.json", {**RESOURCES, "sources": {}, "rows": [{"schema": 1, "type": "PlanResources"}]}),
    ],
)
def test_a_file_of_another_version_is_an_error_that_names_the_command(tree, capsys, name, data):
    put(tree, name, data)
    assert run(tree) == 2
    kind = name.partition("-")[0]
    assert f"measure it again with `python -m quantplan.bench.{kind}`" in capsys.readouterr().err
    assert texts(tree) == [README, PERFORMANCE]


def test_missing_markers_are_an_error(tree, capsys):
    (tree / "README.md").write_text("# Title\n", encoding="utf-8")
    assert run(tree) == 2
    assert "<!-- gpu:begin -->" in capsys.readouterr().err


def test_a_page_of_html_holds_its_plots(measured):
    assert run(measured, "--html", str(measured / "page.html")) == 0
    text = (measured / "page.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert text.count("<svg") == 2
    assert "52.0 µs" in text
    assert texts(measured) == [README, PERFORMANCE], "nothing else is written"


@pytest.mark.untraced
def test_a_page_of_html_can_be_made_of_any_folder(measured, tmp_path):
    results = measured / "docs" / "performance" / "results"
    other = tmp_path / "elsewhere"
    other.mkdir()
    assert report.main(["--html", str(tmp_path / "a.html"), "--results", str(other)]) == 0
    assert "No speed has been measured" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert report.main(["--html", str(tmp_path / "b.html"), "--results", str(results)]) == 0
    assert "Abacus 9000" in (tmp_path / "b.html").read_text(encoding="utf-8")


def test_a_smoke_is_shown_as_no_measurement():
    data = synthetic.run(target="emulated:sm_90a", smoke=True)
    text = report.html([data])
    assert "no measurement" in text
    assert "No speed has been measured on a GPU yet" in text
    assert "52.0 µs" not in text
    assert "<td>yes</td>" in text, "its stages came to their end"
    assert text.count(">never<") == len(runs.kernels())


def test_no_synthetic_run_lies_among_the_projects_results():
    root = Path(__file__).resolve().parents[2]
    for path in (root / "docs" / "performance" / "results").glob("*.json"):
        assert "synthetic" not in path.read_text(encoding="utf-8"), path.name


def test_the_projects_own_pages_are_up_to_date():
    assert report.stale(Path(__file__).resolve().parents[2]) == []
