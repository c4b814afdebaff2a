"""Outcomes of tests are written the moment they are known, and what has one is not run again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantplan.bench import outcomes

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import os, pathlib, pytest

def test_good(record_property):
    record_property("answer", 42)
    with pathlib.Path("ran").open("a") as file:
        file.write("x")

def test_bad():
    assert 1 == 2

@pytest.mark.skip(reason="no need")
def test_left_out():
    pass

def test_deadly():
    if pathlib.Path("deadly").exists():
        os._exit(42)
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS, encoding="utf-8")
    file = tmp_path / "outcomes.jsonl"

    def run():
        command = [sys.executable, "-m", "pytest", "-q", "-p", "quantplan.bench.outcomes", "-p", "no:cacheprovider"]
        environment = {**os.environ, outcomes.VARIABLE: str(file), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*command, "--rootdir", str(tmp_path), "test_some.py"],
            cwd=tmp_path,
            env=environment,
            check=False,
            capture_output=True,
        )
        return done.returncode, {key.rpartition("::")[2]: value for key, value in outcomes.read(file).items()}

    return run


def test_every_outcome_is_told_with_its_reason(run):
    code, found = run()
    assert code == 1
    assert {name: entry["outcome"] for name, entry in found.items()} == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_left_out": "skipped",
        "test_deadly": "passed",
    }
    assert "assert 1 == 2" in found["test_bad"]["message"]
    assert "no need" in found["test_left_out"]["message"]


def test_recorded_properties_and_seconds_stand_there(run):
    _, found = run()
    assert found["test_good"]["properties"] == {"answer": "42"}
    assert found["test_good"]["s"] >= 0


def test_what_waits_or_was_cut_is_run_again(run, tmp_path):
    file = tmp_path / "outcomes.jsonl"
    for outcome in ("waiting", "cut"):
        outcomes.write(file, test=f"test_some.py::test_{'good' if outcome == 'cut' else 'bad'}", outcome=outcome)
    outcomes.write(file, test="test_some.py::test_deadly", outcome="failed", message="hung", lost=True)
    _, found = run()
    assert found["test_good"]["outcome"] == "passed"
    assert found["test_bad"]["outcome"] == "failed"
    assert found["test_deadly"]["message"] == "hung", "what hung is not"


PARAMETRIZED = """
import pytest

@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("row", ["fp8_gemm mx", "fp8_gemm tensor"])
def test_rows(row, number):
    print(row, number, file=open("order", "a"))

def test_others():
    print("others", file=open("order", "a"))
"""


def test_an_op_that_has_taken_two_processes_along_is_not_run(run, tmp_path):
    file = tmp_path / "outcomes.jsonl"
    for number in range(2):
        test = f"test_some.py::test_rows[fp8_gemm mx-{number}]"
        outcomes.write(file, test=test, outcome="failed", message="CUDA error", lost=True)
    (tmp_path / "test_some.py").write_text(PARAMETRIZED, encoding="utf-8")
    _, found = run()
    assert found["test_rows[fp8_gemm mx-2]"]["outcome"] == "not run"
    assert found["test_rows[fp8_gemm mx-2]"]["message"] == "not run: fp8_gemm mx hung or faulted 2 times"
    assert {found[f"test_rows[fp8_gemm tensor-{n}]"]["outcome"] for n in range(3)} == {"passed"}


def test_ops_that_are_named_come_first(run, tmp_path, monkeypatch):
    monkeypatch.setenv(outcomes.FIRST, '["fp8_gemm tensor"]')
    (tmp_path / "test_some.py").write_text(PARAMETRIZED, encoding="utf-8")
    run()
    order = (tmp_path / "order").read_text().splitlines()
    assert order[:3] == ["fp8_gemm tensor 0", "fp8_gemm tensor 1", "fp8_gemm tensor 2"]
    assert order[3:] == ["fp8_gemm mx 0", "fp8_gemm mx 1", "fp8_gemm mx 2", "others"]


def test_tests_are_about_kernels_and_ops_or_else_their_function():
    about = outcomes.subject
    assert about("tests/gpu/test_plans.py::test_x[strided-int4_marlin_gemm act-order]") == "int4_marlin_gemm act-order"
    assert about("tests/gpu/test_verify.py::test_x[fp8_gemm.mma-16x32-fast-1]") == "fp8_gemm.mma-16x32-fast"
    assert about("tests/gpu/test_ptx.py::test_mma[f16-normal]") == "tests/gpu/test_ptx.py::test_mma"


@pytest.mark.slow  # a pytest in a process of its own
def test_what_has_an_outcome_is_not_run_again(run, tmp_path):
    run()
    code, _ = run()
    assert code == 5, "pytest had nothing to run"
    assert (tmp_path / "ran").read_text() == "x"


def test_a_test_that_kills_the_process_has_begun_and_is_not_tried_again(run, tmp_path):
    (tmp_path / "deadly").touch()
    code, found = run()
    assert code == 42
    assert found["test_deadly"]["outcome"] == "begun"
    assert found["test_good"]["outcome"] == "passed"
    code, _ = run()
    assert code == 5


@pytest.mark.slow  # a pytest in a process of its own
def test_a_file_that_cannot_be_read_is_a_failure(run, tmp_path):
    (tmp_path / "test_some.py").write_text("import nothing_of_that_name", encoding="utf-8")
    _, found = run()
    (entry,) = found.values()
    assert entry["outcome"] == "failed"
    assert "nothing_of_that_name" in entry["message"]


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    file = tmp_path / "some"
    file.write_text(json.dumps({"test": "a", "outcome": "passed"}) + '\n{"test": "b", "outc', encoding="utf-8")
    assert list(outcomes.read(file)) == ["a"]
    assert outcomes.read(tmp_path / "none") == {}
