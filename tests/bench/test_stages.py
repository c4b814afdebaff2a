"""Stages ask for what tells most first, keep every answer, and stop when their time is over."""

import time

import pytest

from quantplan.bench import stages
from quantplan.bench.budget import Deadline
from quantplan.bench.problems import FEW, ROWS, row
from quantplan.bench.runs import Run

MACHINE = {
    "device": {"name": "Abacus 9000"},
    "software": {},
    "peers": {"torch": "absent"},
    "rows": {r.name: "" if r.rate is None else "reference: runs on cpu only" for r in ROWS},
}


class Day(stages.Day):
    """A day with room for what a test remembers of it."""


class Worker:
    """Answers what a function says, and remembers what it was asked."""

    def __init__(self, answer, prefix=(), code=0):
        self.answer, self.prefix, self.code, self.asked = answer, prefix, code, []

    def ask(self, task, limit_s):
        self.asked.append(task)
        return self.answer(task)

    def close(self):
        return self.code

    def kill(self):
        pass


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Return a function that makes a day whose workers answer what a function says."""

    def make(answer, *, smoke=False, target="cuda:0", **options):
        run = Run.begin(tmp_path / "out", target, smoke=smoke)
        day = Day(run, target, tmp_path / "log", smoke, said.append, **options)
        worker = Worker(answer)
        monkeypatch.setattr(Day, "worker", lambda self, *prefix: worker)
        monkeypatch.setattr(Day, "workers", lambda self: [worker])
        day.asked = worker.asked
        return day

    said = []
    make.said = said
    return make


def soon(seconds=60.0):
    return Deadline(time.monotonic() + seconds)


def over():
    return Deadline(time.monotonic() - 1)


def test_the_machine_names_the_file_and_says_what_has_no_kernel(make):
    day = make(lambda task: MACHINE if task["do"] == "machine" else {"absent": "no torch"})
    assert stages.machine(day, soon())
    assert day.run.path.name.startswith("gpu-abacus-9000-")
    assert "  no kernel: fp8_gemm mx: reference: runs on cpu only" in make.said
    assert set(day.run.data["roofs"]) == set(stages.ROOFS)
    assert [r.name for r in day.rows] == [r.name for r in ROWS if r.rate is None]


def test_a_machine_that_does_not_answer_fails_the_stage(make):
    with pytest.raises(RuntimeError, match="no driver"):
        stages.machine(make(lambda task: {"error": "no driver"}), soon())


def test_only_the_ops_that_are_asked_for_are_measured(make):
    day = make(lambda task: {}, ops=("dequantize", "quantize s8 token"))
    assert [r.name for r in day.rows] == ["quantize s8 token", "dequantize s8 token"]


def test_guarantees_come_from_every_op_and_ever_more_densely(make):
    day = make(lambda task: {"plans": [], "problems": []}, ops=("quantize", "dequantize"))
    assert stages.guarantees(day, soon())
    asked = [(task["op"], number) for task in day.asked for number in task["numbers"]]
    assert (
        len(asked)
        == len(set(asked))
        == sum(1 for op in ("quantize", "dequantize") for _ in stages.PLANS[op].catalogue())
    )
    assert {task["op"] for task in day.asked[:2]} == {"quantize", "dequantize"}
    assert day.asked[0]["numbers"] == [0, 97, 194, 291]


def test_a_smoke_needs_few(make):
    day = make(lambda task: {"plans": [], "problems": []}, smoke=True)
    day.run.data["machine"] = MACHINE
    for stage in (stages.guarantees, stages.exercises, stages.benchmarks):
        assert stage(day, soon())
    assert {task["shape"] for task in day.asked if task["do"] != "guarantee"} == {"small"}
    assert len(day.asked) < 60


def test_every_answer_is_kept_and_asked_for_once(make):
    day = make(lambda task: {"us": {}}, ops=("dequantize",))
    assert stages.benchmarks(day, soon())
    count = len(day.asked)
    assert count == len(day.run.data["points"]) == 14 * len(row("dequantize s8 token").shapes)
    assert stages.benchmarks(day, soon())
    assert len(day.asked) == count, "a run that goes on asks for nothing twice"


def test_every_variant_is_timed_where_it_tells_most(make):
    day = make(lambda task: {"us": {}}, ops=("dequantize",))
    stages.benchmarks(day, soon())
    asked = {(task["shape"], task["m"]) for task in day.asked if task.get("every_variant")}
    assert asked == {(row("dequantize s8 token").shapes[0].label, m) for m in FEW}


def test_time_that_is_over_cuts_a_stage(make):
    day = make(lambda task: {})
    assert not stages.benchmarks(day, over())
    assert day.asked == []


def test_an_error_is_kept_and_said(make):
    day = make(lambda task: {"error": "crashed: exit code 7"}, ops=("dequantize",), smoke=True)
    assert stages.benchmarks(day, soon())
    assert make.said[0] == "  points: dequantize s8 token | small | 1: crashed: exit code 7"
    assert all(answer["error"] for answer in day.run.data["points"].values())


def test_a_stage_that_goes_on_says_so(make, monkeypatch):
    monkeypatch.setattr(stages, "_PROGRESS_S", 0.0)
    day = make(lambda task: {"us": {}}, ops=("dequantize",), smoke=True)
    stages.benchmarks(day, soon())
    assert make.said[0].startswith("  points: 1 done, the last one dequantize s8 token | small | 1; ")


def test_the_clocks_are_read_while_the_gpu_is_warm(make, monkeypatch):
    asked = []
    monkeypatch.setattr(stages, "clocks", lambda index: asked.append(index) or {"clocks.sm": "1980 MHz"})
    day = make(lambda task: {"us": {}}, ops=("dequantize",), target="cuda:1", smoke=True)
    stages.benchmarks(day, soon())
    assert asked == [1]
    assert day.run.data["machine"]["clocks after benchmarks"] == {"clocks.sm": "1980 MHz"}


# ---- sanitizers


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
    assert [prefix[2] for prefix in sanitized.prefixes] == list(stages.TOOLS)
    for tool in stages.TOOLS:
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


def test_a_tool_whose_time_is_over_is_cut(sanitized):
    assert not stages.sanitizers(sanitized, over())
    assert sanitized.run.data["sanitizers"]["memcheck"]["complete"] is False


# ---- compiling


def test_kernels_that_are_precompiled_are_not_compiled(make, monkeypatch):
    monkeypatch.setenv(stages.PATH_VARIABLE, "some folder")
    monkeypatch.setattr(stages.subprocess, "Popen", None)
    assert stages.compiled(make(lambda task: {}), soon())


def test_compiling_is_another_process_that_ends_with_its_time(make, monkeypatch, tmp_path):
    monkeypatch.delenv(stages.PATH_VARIABLE, raising=False)
    monkeypatch.setattr(stages.sys, "executable", str(tmp_path / "python"))
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "$@"\nsleep 60\n', encoding="utf-8")
    script.chmod(0o755)
    day = make(lambda task: {})
    assert not stages.compiled(day, soon(1.0))
    assert "-m quantplan warmup --json --target cuda:0" in day.log.read_text(encoding="utf-8")
    script.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    assert stages.compiled(day, soon(30.0))


def test_shares_make_a_whole_and_correctness_comes_before_time():
    assert sum(stage.share for stage in stages.STAGES) == pytest.approx(1.0)
    names = [stage.name for stage in stages.STAGES]
    assert names.index("tests") < names.index("guarantees") < names.index("benchmarks")
