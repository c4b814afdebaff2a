"""Sanitizers run a short set of every op: what they find is kept, whom they name is blamed, a deadline is no find."""

import pytest

import quantplan as qp
from quantplan.bench import sanitizer, stages
from quantplan.bench.problems import ROWS, row
from tests.bench.days import Day, Worker, over, soon


def test_a_missing_sanitizer_is_absent_and_how_to_get_it_is_said(make, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    day = make(lambda task: {})
    assert stages.sanitizers(day, soon())
    assert "CUDA toolkit" in day.run.data["sanitizers"]["absent"]


def test_the_emulated_device_checks_by_itself(make):
    day = make(lambda task: {}, target="emulated:sm_90a", smoke=True)
    assert stages.sanitizers(day, soon())
    assert "emulated device" in day.run.data["sanitizers"]["absent"]


@pytest.fixture
def sanitized(make, monkeypatch):
    """Return a day with a sanitizer, whose prefix each worker had."""
    monkeypatch.setattr("shutil.which", lambda name: f"bin/{name}")
    day = make(lambda task: {"sku": "s", "wrong": {}}, ops=("dequantize",))
    day.run.name("x")
    day.prefixes, day.code = [], 0

    def worker(self, *prefix):
        day.prefixes.append(prefix)
        found = Worker(lambda task: {"sku": "s", "wrong": {}}, prefix, day.code)
        if day.code:
            log = prefix[prefix.index("--log-file") + 1]
            with open(log, "w", encoding="utf-8") as file:  # noqa: PTH123 - a path of a command line
                file.write("========= COMPUTE-SANITIZER\n========= Invalid __global__ write of size 4 bytes\n")
        return found

    monkeypatch.setattr(Day, "worker", worker)
    return day


def test_every_tool_runs_a_short_set(sanitized):
    assert stages.sanitizers(sanitized, soon())
    assert [prefix[2] for prefix in sanitized.prefixes] == list(sanitizer.TOOLS)
    for tool in sanitizer.TOOLS:
        found = sanitized.run.data["sanitizers"][tool]
        assert (found["exit_code"], found["found"], found["complete"]) == (0, False, True)
        assert found["ran"] == ["dequantize s8 token"]


def test_what_a_tool_found_is_kept(sanitized):
    sanitized.code = 86
    stages.sanitizers(sanitized, soon())
    found = sanitized.run.data["sanitizers"]["memcheck"]
    assert found["found"]
    assert found["first_lines"] == ["COMPUTE-SANITIZER", "Invalid __global__ write of size 4 bytes"]


def test_a_tool_that_cannot_run_is_not_tried_with_every_op(sanitized, monkeypatch):
    made = []

    def worker(self, *prefix):
        made.append(Worker(lambda task: {"error": "crashed: exit code 1"}, prefix, None))
        return made[-1]

    monkeypatch.setattr(Day, "worker", worker)
    sanitized.ops = ()
    assert stages.sanitizers(sanitized, soon())
    assert [len(worker.asked) for worker in made] == [1, 1, 1, 1]
    assert len(sanitized.run.data["sanitizers"]["memcheck"]["wrong"]) == 1


def test_an_op_that_fails_under_a_tool_leaves_the_others_theirs(sanitized, monkeypatch):
    def answer(task):
        return {"error": "KeyError: 'x'"} if task["row"] == "quantize fp8 token" else {"skus": [], "wrong": {}}

    monkeypatch.setattr(Day, "worker", lambda self, *prefix: Worker(answer, prefix))
    sanitized.ops = ()
    assert stages.sanitizers(sanitized, soon())
    found = sanitized.run.data["sanitizers"]["memcheck"]
    assert set(found["ran"]) == {r.name for r in ROWS}
    assert set(found["wrong"]) == {"quantize fp8 token"}


def test_what_a_tool_names_is_blamed_and_nothing_else(sanitized, monkeypatch):
    desc = row("dequantize s8 token").descriptor(19, row("dequantize s8 token").small)
    name = qp.DequantizePlan.choose("sm_90a", desc).kernels(desc)[0].name

    def worker(self, *prefix):
        with open(prefix[prefix.index("--log-file") + 1], "w", encoding="utf-8") as file:  # noqa: PTH123 - the same
            file.write(f"========= Race reported at {name}+0x10\n========= RACECHECK SUMMARY: 1 hazard displayed\n")
        return Worker(lambda task: {"skus": [], "wrong": {}}, prefix, 0)

    monkeypatch.setattr(Day, "worker", worker)
    sanitized.ops = ("dequantize", "norm_quantize")
    assert stages.sanitizers(sanitized, soon())
    found = sanitized.run.data["sanitizers"]["racecheck"]
    assert found["found"]
    assert found["blamed"] == ["dequantize s8 token"]


def test_a_gpu_that_sanitizers_refuse_has_none_and_the_reason_is_told(sanitized, monkeypatch):
    def worker(self, *prefix):
        with open(prefix[prefix.index("--log-file") + 1], "w", encoding="utf-8") as file:  # noqa: PTH123 - the same
            file.write("========= Error: Device not supported. Please refer to the documentation\n")
        return Worker(lambda task: {"error": "crashed: exit code 1", "lost": True, "at": ""}, prefix, 1)

    monkeypatch.setattr(Day, "worker", worker)
    sanitized.ops = ()
    assert stages.sanitizers(sanitized, soon())
    assert sanitized.run.data["sanitizers"] == {
        "absent": "Error: Device not supported. Please refer to the documentation"
    }


def test_a_tool_that_the_deadline_cuts_has_found_nothing_and_is_run_again(sanitized, monkeypatch):
    hung = {"error": "hung: no answer within 5 s", "lost": True, "at": ""}
    monkeypatch.setattr(Day, "worker", lambda self, *prefix: Worker(lambda task: hung, prefix, None))
    assert not stages.sanitizers(sanitized, soon(20.0))
    found = sanitized.run.data["sanitizers"]["memcheck"]
    assert (found["found"], found["wrong"], found["complete"]) == (False, {}, False)
    monkeypatch.setattr(Day, "worker", lambda self, *prefix: Worker(lambda task: {"skus": [], "wrong": {}}, prefix))
    assert stages.sanitizers(sanitized, soon())
    assert sanitized.run.data["sanitizers"]["memcheck"]["complete"] is True


def test_a_tool_whose_time_is_over_is_cut(sanitized):
    assert not stages.sanitizers(sanitized, over())
    assert sanitized.run.data["sanitizers"]["memcheck"]["complete"] is False
