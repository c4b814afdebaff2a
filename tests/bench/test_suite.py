"""The tests on silicon run in a process of their own: what hangs, crashes or faults is told, and the rest go on."""

import os
import time
from pathlib import Path

import pytest

from quantplan.bench import outcomes, suite
from quantplan.bench.budget import Deadline
from quantplan.bench.runs import Run
from quantplan.bench.stages import Day

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import os, time, pytest

def test_good(): pass
def test_bad(): assert False, "that is bad"
def test_other(): pytest.skip("no GPU")
"""


@pytest.fixture
def day(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "_ROOT", tmp_path)
    monkeypatch.setattr(suite, "_LOOK_S", 0.05)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    (tmp_path / "tests" / "gpu").mkdir(parents=True)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n", encoding="utf-8")
    run = Run.begin(tmp_path / "out", "cuda:0", smoke=False)
    run.name("x")
    run.data["machine"] = {"device": {"name": "x", "arch": "sm_90a"}}
    return Day(run, "cuda:0", tmp_path / "log", False, lambda line: None)


def write(day, text):
    (day.log.parent / "tests" / "gpu" / "test_some.py").write_text(text, encoding="utf-8")


def soon(seconds=60.0):
    return Deadline(time.monotonic() + seconds)


def failed(day):
    return {name.rpartition("::")[2]: text for name, text in day.run.data["tests"]["failed"].items()}


def test_outcomes_are_counted_and_failures_named(day):
    write(day, TESTS)
    assert suite.run(day, soon())
    found = day.run.data["tests"]
    assert (found["passed"], found["skipped"]) == (1, {"no GPU": 1})
    assert "that is bad" in failed(day)["test_bad"]


def test_a_crash_is_a_failure_and_the_rest_run(day):
    write(day, "import os\ndef test_deadly(): os._exit(139)\n" + TESTS)
    assert suite.run(day, soon())
    assert failed(day)["test_deadly"] == "crashed: exit code 139"
    assert day.run.data["tests"]["passed"] == 1


@pytest.mark.slow
def test_a_test_that_hangs_is_a_failure_and_the_rest_run(day, monkeypatch):
    monkeypatch.setattr(suite, "_QUIET_S", 2.0)
    write(day, "import time\ndef test_endless(): time.sleep(300)\n" + TESTS)
    assert suite.run(day, soon())
    assert failed(day)["test_endless"].startswith("hung: it did not end in ")
    assert day.run.data["tests"]["passed"] == 1


def test_after_a_gpus_fault_another_process_goes_on(day):
    write(
        day,
        "import os\n"
        "def test_before(): os.environ['POISONED'] = '1'\n"
        "def test_fault(): raise RuntimeError('CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access')\n"
        "def test_next(): assert 'POISONED' not in os.environ\n",
    )
    assert suite.run(day, soon())
    assert set(failed(day)) == {"test_fault"}
    assert day.run.data["tests"]["passed"] == 2


@pytest.mark.slow
def test_time_that_is_over_cuts_and_what_was_cut_is_run_again(day):
    write(day, "import time\ndef test_first(): pass\ndef test_long(): time.sleep(300)\ndef test_last(): pass\n")
    assert not suite.run(day, soon(6.0))
    found = day.run.data["tests"]
    assert failed(day) == {}
    assert (found["collected"], found["passed"], found["not run"]) == (3, 1, {"time was over": 2})
    ((test, seconds),) = found["cut"].items()
    assert test.endswith("::test_long")
    assert seconds > 1
    write(day, "import time\ndef test_first(): 1 / 0\ndef test_long(): pass\ndef test_last(): pass\n")
    assert suite.run(day, soon())
    found = day.run.data["tests"]
    assert (found["passed"], found["failed"], found["cut"]) == (3, {}, {}), "what has passed is not run again"


def test_what_was_under_way_when_the_run_was_killed_is_run_again(day):
    write(day, "def test_good(): pass\ndef test_other(): pass\n")
    file = day.run.path.with_name(f"{day.run.path.stem}-tests.jsonl")
    outcomes.write(file, test="tests/gpu/test_some.py::test_good", outcome="begun")
    assert suite.run(day, soon())
    assert day.run.data["tests"]["passed"] == 2


@pytest.mark.slow  # nine pytests in processes of their own
def test_starts_are_as_many_as_faults(day):
    """Each of another op; of one op two are enough."""
    write(
        day,
        "import os, pytest\n"
        "@pytest.mark.parametrize('row', ['fp8_gemm mx', 'fp8_gemm tensor', 'fp8_gemm block', 'int4_marlin_gemm'])\n"
        "@pytest.mark.parametrize('number', range(5))\n"
        "def test_fault(row, number): os._exit(3)\n"
        "def test_last(): pass\n",
    )
    assert suite.run(day, soon())
    found = day.run.data["tests"]
    assert (found["collected"], found["passed"], len(found["failed"])) == (21, 1, 8)
    assert found["not run"]["fp8_gemm mx hung or faulted 2 times"] == 3


def test_a_file_that_cannot_be_read_leaves_the_others(day):
    write(day, TESTS)
    (day.log.parent / "tests" / "gpu" / "test_broken.py").write_text("import nothing_of_that_name", encoding="utf-8")
    assert suite.run(day, soon())
    assert day.run.data["tests"]["passed"] == 1
    assert set(failed(day)) == {"test_bad", "tests/gpu/test_broken.py"}


def test_a_summary_tells_of_every_file_and_property():
    found = suite.summary(
        {
            "a.py::one": {"outcome": "passed", "s": 1.25, "properties": {"model": "90 % equal"}},
            "a.py::two": {"outcome": "skipped", "s": 0.0, "message": "Skipped: no GPU"},
            "b.py::one": {"outcome": "not run", "message": "not run: it hung"},
            "b.py::two": {"outcome": "begun"},
            "b.py::six": {"outcome": "failed", "message": "wrong", "s": 2.0},
        }
    )
    assert found["files"] == {
        "a.py": {"passed": 1, "skipped": 1, "s": 1.2},
        "b.py": {"not run": 2, "failed": 1, "s": 2.0},
    }
    assert found["not run"] == {"it hung": 1, "time was over": 1}
    assert found["properties"] == {"a.py::one": {"model": "90 % equal"}}


def test_a_pytest_that_does_not_start_is_a_failure(day, monkeypatch):
    monkeypatch.setattr(suite, "_start", lambda *_: 4)
    assert not suite.run(day, soon())
    assert day.run.data["tests"]["failed"] == {"pytest": "exit code 4, and no test ran: see log"}


def test_without_a_checkout_the_tests_are_absent(day, monkeypatch):
    monkeypatch.setattr(suite, "ON_SILICON", ("tests/none",))
    assert suite.run(day, soon())
    assert "checkout" in day.run.data["tests"]["absent"]


def test_the_files_that_tell_most_are_the_first():
    names = [file.name for file in suite._files(suite.ON_SILICON)]
    assert names[:4] == ["test_plans.py", "test_ptx_hopper.py", "test_ptx.py", "test_streams.py"]
    assert set(names) == {file.name for file in (ROOT / "tests" / "gpu").glob("test_*.py")}
    emulated = {file.relative_to(ROOT).as_posix() for file in suite._files(suite.EMULATED)}
    assert {"tests/gpu/test_ptx.py", "tests/kernels/test_gpu_plans.py"} <= emulated


def test_the_tests_that_run_on_silicon_and_emulated_exist():
    assert all((ROOT / path).exists() for path in (*suite.ON_SILICON, *suite.EMULATED))
