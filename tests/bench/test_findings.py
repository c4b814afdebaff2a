"""What failed is said in lines that name it; what did not is not."""

from pathlib import Path

import pytest

from quantplan.bench import findings
from quantplan.bench.runs import Run
from tests.bench import synthetic


def test_a_sound_run_has_no_failures():
    assert findings.failures(synthetic.run()) == []


@pytest.mark.parametrize(
    "part, value, line",
    [
        ("stages", {"host": {"status": "failed", "reason": "OSError: x"}}, "host: OSError: x"),
        ("tests", {"passed": 1, "failed": {"a::b": "assert 1 == 2\nmore"}}, "test a::b: assert 1 == 2"),
        ("guarantees", {"quantize [0]": {"plans": [], "problems": ["s: breaks"]}}, "guarantee: s: breaks"),
        ("guarantees", {"quantize [0]": {"error": "hung"}}, "guarantees: quantize [0]: hung"),
        (
            "exercises",
            {"r | s | 1": {"skus": ["s"], "wrong": {"s q": 3}}},
            "exercise r | s | 1: 3 elements of s q are wrong",
        ),
        ("points", {"r | s | 1": {"error": "crashed: exit code -6"}}, "points: r | s | 1: crashed: exit code -6"),
        ("roofs", {"copy": {"error": "x"}}, "roofs: copy: x"),
    ],
)
def test_each_failure_is_a_line(part, value, line):
    assert findings.failures(synthetic.run(**{part: value})) == [line]


@pytest.mark.parametrize(
    "changes", [{"exit_code": 86, "found": True}, {"exit_code": None}, {"wrong": {"row": {"error": "hung"}}}]
)
def test_a_sanitizer_that_found_something_is_a_failure(changes):
    clean = synthetic.run()["sanitizers"]["memcheck"]
    answer = {**clean, "first_lines": ["COMPUTE-SANITIZER", "Invalid write", "at quantize"], **changes}
    found = findings.failures(synthetic.run(sanitizers={"memcheck": answer}))
    if changes == {"exit_code": None}:
        assert found == [], "it was cut"
    else:
        assert found == [f"memcheck: exit code {answer['exit_code']}: Invalid write; at quantize"]


def test_what_is_absent_is_no_failure():
    data = synthetic.run(sanitizers={"absent": "it comes with the toolkit"}, tests={"absent": "no checkout"})
    assert findings.failures(data) == []
    assert findings.summary(data, "sanitizers") == "absent: it comes with the toolkit"


def test_stages_are_summed_up():
    data = synthetic.run()
    assert findings.summary(data, "tests") == "90 passed, 0 failed, 1 skipped"
    assert findings.summary(data, "guarantees") == "2 SKUs, 80 cases, 0 problems"
    assert findings.summary(data, "benchmarks") == "4 answers, 0 bad"
    data["tests"]["not run"] = {"time was over": 3}
    assert findings.summary(data, "tests") == "90 passed, 0 failed, 1 skipped, 3 not run"


def test_the_last_lines_say_what_was_cut_what_failed_and_where_the_result_is():
    data = synthetic.run(roofs={"copy": {"error": "x"}})
    lines = findings.last_lines(Run(Path("some.json"), data))
    assert lines == [
        "benchmarks was cut: its share was over",
        "FAILED roofs: copy: x",
        "1 failures; result: some.json",
    ]


def test_kernels_that_were_left_alone_are_told_once():
    reason = "op.kernel: it has taken processes along before"
    points = {f"row | shape | {m}": {"not run": reason} for m in range(3)}
    data = synthetic.run(points=points)
    assert findings.last_lines(Run(Path("some.json"), data))[1] == f"not run: {reason}"
    assert findings.summary(data, "benchmarks") == "3 answers, 0 bad, 3 not run"


def test_failures_of_one_cause_are_one_line():
    errors = {f"row | shape | {m}": {"error": "hung: no answer within 90 s"} for m in range(100)}
    lines = findings.last_lines(Run(Path("some.json"), synthetic.run(points=errors)))
    assert lines[1] == "FAILED points: row | shape | 0: hung: no answer within 90 s (and 99 more like it)"
    assert lines[2] == "100 failures; result: some.json"
