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

def test_good():
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
