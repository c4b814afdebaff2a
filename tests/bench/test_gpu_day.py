"""A GPU day keeps what it has whenever it is stopped, goes on from there, and ends with what failed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantplan.bench import gpu_day, runs
from quantplan.bench.stages import STAGES, Stage
from quantplan.devices import cuda
from quantplan.errors import DriverNotFound, InvalidProblem

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that there is a GPU, which nobody asks for more."""
    monkeypatch.setattr(cuda, "compute_capability", lambda index: (9, 0))


@pytest.fixture
def day(tmp_path, monkeypatch, clock, gpu):
    """Return a function that runs a day of given stages; its machine is there."""
    said = []

    def machine(day, deadline):
        day.settle({"device": {"name": run.device}, "rows": {}})
        return True

    def run(*stages, **options):
        table = [Stage("machine", 0.1, machine), *stages]
        monkeypatch.setattr(gpu_day, "STAGES", table)
        return gpu_day.run_day(tmp_path, say=said.append, clock=clock, **options)

    run.said, run.device = said, "Abacus 9000"
    return run


def stage(name, share, work):
    return Stage(name, share, work)


def test_each_stage_has_its_share_and_records_what_it_took(day, clock):
    given = {}

    def work(name, seconds):
        def work(day, deadline):
            given[name] = deadline.left
            clock.now += seconds
            return True

        return stage(name, 0.3, work)

    found = day(work("tests", 10.0), work("host", 2.0), stage("points", 0.3, lambda *_: True), budget=100.0)
    assert given["tests"] == pytest.approx(100 / 3)
    assert given["host"] == pytest.approx(90 / 2), "what the first left over is shared"
    assert found.data["stages"]["tests"] == {"status": "done", "allotted_s": 33.3, "spent_s": 10.0}


def test_a_stage_that_is_cut_says_so(day, clock):
    def work(day, deadline):
        clock.now += deadline.left
        return False

    found = day(stage("tests", 0.9, work), budget=10.0)
    assert found.data["stages"]["tests"]["status"] == "cut"
    assert found.data["stages"]["tests"]["reason"] == "its 10 s were over"


def test_an_exhausted_budget_cuts_every_stage_and_keeps_the_result(day, clock):
    def greedy(day, deadline):
        clock.now += 50.0
        return False

    found = day(stage("tests", 0.5, greedy), stage("host", 0.4, lambda d, deadline: not deadline.over), budget=20.0)
    assert [s["status"] for s in found.data["stages"].values()] == ["done", "cut", "cut"]
    assert runs.read(found.path)["stages"] == found.data["stages"]


def test_a_stage_that_fails_does_not_end_the_day(day, capsys):
    def work(day, deadline):
        raise OSError("no room")

    found = day(stage("tests", 0.5, work), stage("host", 0.4, lambda *_: True))
    assert found.data["stages"]["tests"]["reason"] == "OSError: no room"
    assert found.data["stages"]["host"]["status"] == "done"
    assert "no room" in capsys.readouterr().err


def test_without_a_gpu_nothing_is_written(tmp_path, monkeypatch, capsys):
    def compute_capability(index):
        raise DriverNotFound("no CUDA driver on this machine")

    monkeypatch.setattr(cuda, "compute_capability", compute_capability)
    with pytest.raises(SystemExit) as stop:
        gpu_day.main(["--out", str(tmp_path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith("error: no CUDA driver on this machine\n")
    assert list(tmp_path.iterdir()) == []


def test_without_a_machine_nothing_else_is_tried(tmp_path, monkeypatch, capsys, gpu):
    def machine(day, deadline):
        raise RuntimeError("no driver")

    table = [Stage("machine", 0.1, machine), Stage("host", 0.9, lambda *_: pytest.fail("it was tried"))]
    monkeypatch.setattr(gpu_day, "STAGES", table)
    assert gpu_day.main(["--out", str(tmp_path)]) == 1
    assert "FAILED machine: RuntimeError: no driver" in capsys.readouterr().out


def test_only_some_stages_run(day):
    found = day(stage("tests", 0.5, lambda *_: True), stage("host", 0.4, lambda *_: True), only=["host"])
    assert set(found.data["stages"]) == {"machine", "host"}


def test_a_day_goes_on_where_it_was_stopped(day):
    ran = []

    def tests(day, deadline):
        ran.append("tests")
        return True

    def points(day, deadline):
        ran.append("points")
        if not day.run.data["points"]:
            day.run.data["points"]["first"] = {}
            day.run.save()
            raise KeyboardInterrupt
        day.run.data["points"]["second"] = {}
        return True

    table = (stage("tests", 0.5, tests), stage("benchmarks", 0.4, points))
    with pytest.raises(KeyboardInterrupt):
        day(*table)
    found = day(*table, resume=True)
    assert ran == ["tests", "points", "points"], "what was done is not done again"
    assert set(found.data["points"]) == {"first", "second"}
    assert len(list(found.path.parent.glob("gpu-*.json"))) == 1


def test_a_run_of_another_gpu_is_not_gone_on_with(day):
    first = day(stage("host", 0.4, lambda *_: True))
    day.device = "Abacus 9001"
    second = day(stage("host", 0.4, lambda *_: True), resume=True)
    assert second.path != first.path
    assert "abacus-9001" in second.path.name
    assert runs.read(first.path)["machine"]["device"]["name"] == "Abacus 9000"
    assert second.data["stages"]["host"]["status"] == "done"


def test_without_being_asked_to_go_on_a_day_begins_anew(day):
    first = day(stage("host", 0.4, lambda *_: True))
    second = day(stage("host", 0.4, lambda *_: True))
    assert first.path != second.path
    assert second.path.stem == f"{first.path.stem}-2"


def test_an_emulated_day_is_never_a_result(day):
    assert day(target="emulated:sm_90a").path.name.startswith("smoke-")
    assert not day(target="emulated:sm_90a").counts


@pytest.mark.parametrize(
    "options, message",
    [
        ({"only": ["sleep"]}, "only: expected one of machine, compile, tests"),
        ({"ops": ["sleep"]}, "ops: expected one of quantize"),
        ({"target": "cpu"}, "target: expected cuda:0 or emulated:sm_90a, got cpu"),
        ({"target": "sm_90a"}, "target: expected cuda:0 or emulated"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(tmp_path, options, message):
    with pytest.raises(InvalidProblem, match=message):
        gpu_day.run_day(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


# ---- as a command


def command(out, *options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    base = [sys.executable, "-m", "quantplan.bench.gpu_day", "--target", "emulated:sm_90a", "--smoke", "--out", out]
    return subprocess.Popen(
        [*map(str, base), *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_a_day_that_is_killed_keeps_its_points_and_goes_on(tmp_path):
    """The whole process group dies at once, as under `timeout -s KILL`."""
    options = ("--only", "benchmarks", "--ops", "quantize")
    process = command(tmp_path, *options)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        files = list(tmp_path.glob("smoke-*.json"))
        if files and json.loads(files[0].read_text(encoding="utf-8"))["points"]:
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (path,) = tmp_path.glob("smoke-*.json")
    before = json.loads(path.read_text(encoding="utf-8"))["points"]
    assert before
    process = command(tmp_path, *options, "--resume")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert out.splitlines()[-1] == f"no failures; result: {path}"
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["stages"]["benchmarks"]["status"] == "done"
    assert len(data["points"]) == 2
    assert {key: data["points"][key] for key in before} == before


def test_a_day_that_is_asked_to_end_ends_what_it_has_started(tmp_path):
    process = command(tmp_path, "--only", "tests")
    end = time.monotonic() + 120
    while time.monotonic() < end and not list(tmp_path.glob("smoke-*-tests.jsonl")):
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    (path,) = tmp_path.glob("smoke-*.json")
    assert "tests" not in json.loads(path.read_text(encoding="utf-8"))["stages"]
    (outcomes,) = tmp_path.glob("smoke-*-tests.jsonl")
    size = outcomes.stat().st_size
    time.sleep(1.0)
    assert outcomes.stat().st_size == size, "the tests still run"


@pytest.mark.slow
def test_a_smoke_on_the_emulated_device_runs_every_stage(tmp_path):
    process = command(tmp_path)
    out, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, out
    (path,) = tmp_path.glob("smoke-*.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    assert {s["status"] for s in data["stages"].values()} == {"done"}
    assert set(data["stages"]) == {stage.name for stage in STAGES}
    assert data["tests"]["passed"] > 40
    assert not any("us" in point for point in data["points"].values())
