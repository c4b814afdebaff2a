"""A worker answers tasks; one that hangs, crashes or faults takes only its task along."""

import io
import json
import sys
import time

import pytest

from quantplan.bench import worker as module
from quantplan.bench.budget import Deadline
from quantplan.bench.tasks import Tasks
from quantplan.bench.worker import Worker, is_sticky, serve, share_out

CHILD = """
import json, os, sys, time
print("a library's own line", flush=True)
for line in sys.stdin:
    task = json.loads(line)
    if task["do"] == "hang":
        time.sleep(60)
    if task["do"].startswith("run "):
        print(json.dumps({"at": task["do"][4:]}), flush=True)
        time.sleep(60)
    if task["do"] == "crash":
        os._exit(7)
    print(json.dumps({"pid": os.getpid(), "did": task["do"], "poisoned": task["do"] == "poison"}), flush=True)
"""


@pytest.fixture
def make(tmp_path):
    made = []

    def make():
        found = Worker("any", tmp_path / "log")
        found.command = [sys.executable, "-c", CHILD]
        made.append(found)
        return found

    yield make
    for worker in made:
        worker.kill()


def soon(seconds=30.0):
    return Deadline(time.monotonic() + seconds)


def test_one_process_answers_many_tasks(make):
    worker = make()
    answers = [worker.ask({"do": name}, 20) for name in "ab"]
    assert [answer["did"] for answer in answers] == ["a", "b"]
    assert len({answer["pid"] for answer in answers}) == 1
    assert worker.close() == 0


def test_one_that_hangs_is_killed_and_the_next_task_has_another(make):
    worker = make()
    before = worker.ask({"do": "a"}, 20)["pid"]
    assert worker.ask({"do": "hang"}, 0.3) == {"error": "hung: no answer within 0 s", "lost": True, "at": ""}
    assert worker.ask({"do": "a"}, 20)["pid"] != before


def test_what_hangs_is_named_by_what_it_was_about_to_do(make):
    worker = make()
    worker.ask({"do": "a"}, 20)
    assert worker.ask({"do": "run op.kernel.bf16"}, 1.0) == {
        "error": "op.kernel.bf16: hung: no answer within 1 s",
        "lost": True,
        "at": "op.kernel.bf16",
    }
    worker.ask({"do": "a"}, 20)
    assert worker.ask({"do": "hang"}, 0.3)["at"] == "", "an earlier task has nothing to do with it"


def test_a_crash_is_told_with_its_exit_code(make):
    worker = make()
    assert worker.ask({"do": "crash"}, 20) == {"error": "crashed: exit code 7", "lost": True, "at": ""}
    assert worker.ask({"do": "a"}, 20)["did"] == "a"


def test_after_a_fault_that_stays_another_process_goes_on(make):
    worker = make()
    answer = worker.ask({"do": "poison"}, 20)
    assert "poisoned" not in answer
    assert answer["lost"]
    assert worker.ask({"do": "a"}, 20)["pid"] != answer["pid"]


def test_workers_share_tasks_and_every_answer_is_told(make):
    told = {}
    tasks = ({"do": str(number)} for number in range(20))
    workers = [make(), make()]
    assert share_out(tasks, workers, soon(), 20, lambda task, answer: told.update({task["do"]: answer["pid"]}))
    assert set(told) == {str(number) for number in range(20)}
    assert len(set(told.values())) == 2


def test_no_task_begins_after_the_deadline(make):
    told = []
    assert not share_out(iter([{"do": "a"}]), [make()], soon(-1), 20, lambda *answer: told.append(answer))
    assert told == []


def test_a_task_that_the_deadline_cuts_is_not_told_as_hung(make):
    told = []
    tasks = iter([{"do": "a"}, {"do": "hang"}, {"do": "b"}])
    assert not share_out(tasks, [make()], soon(2.0), 20, lambda task, answer: told.append(task["do"]))
    assert told == ["a"]


def test_a_task_that_is_cut_after_a_good_while_is_told(make, monkeypatch):
    monkeypatch.setattr(module, "_SUSPECT_S", 0.5)
    worker, told = make(), {}
    worker.ask({"do": "a"}, 20)
    tasks = iter([{"do": "run op.kernel.bf16"}])
    assert not share_out(tasks, [worker], soon(2.0), 20, lambda task, answer: told.update(answer))
    assert told == {"error": "op.kernel.bf16: hung or cut after 2 s"}


def test_a_task_that_takes_too_long_is_told_and_the_next_one_begins(make, monkeypatch):
    monkeypatch.setattr(module, "_START_S", 5.0)
    told = {}
    tasks = iter([{"do": "a"}, {"do": "hang"}, {"do": "b"}])
    assert share_out(tasks, [make()], soon(), 0.5, lambda task, answer: told.update({task["do"]: answer}))
    assert told["hang"]["error"] == "hung: no answer within 0 s"
    assert told["b"]["did"] == "b"


def test_the_first_task_of_a_process_has_time_for_its_start(make, monkeypatch):
    monkeypatch.setattr(module, "_START_S", 1.5)
    told = []
    tasks = iter([{"do": "hang"}])
    assert share_out(tasks, [make()], soon(), 0.5, lambda task, answer: told.append(answer["error"]))
    assert told == ["hung: no answer within 2 s"]


def test_what_fails_while_an_answer_is_kept_ends_the_workers(make):
    worker = make()

    def done(task, answer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        share_out(iter([{"do": "a"}, {"do": "b"}]), [worker], soon(), 20, done)
    assert worker.close() is None, "it was killed"


# ---- the child


def test_the_child_answers_each_line_and_tells_errors(capsys):
    answers = io.StringIO()
    serve("emulated:sm_90a", io.StringIO('{"do": "host", "key": "launch"}\n{"do": "none", "key": "x"}\n'), answers)
    first, second = map(json.loads, answers.getvalue().splitlines())
    assert first == {"absent": "no time is told on emulated:sm_90a"}
    assert second == {"error": "KeyError: 'none'", "poisoned": False}
    assert "Traceback" in capsys.readouterr().err


def test_the_child_says_what_it_is_about_to_run_and_names_it_in_errors(monkeypatch, capsys):
    def exercise(self, row):
        self.begin("op.kernel.bf16")
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(Tasks, "exercise", exercise)
    answers = io.StringIO()
    lines = '{"do": "exercise", "key": "x", "row": "r"}\n{"do": "none", "key": "x"}\n'
    serve("emulated:sm_90a", io.StringIO(lines), answers)
    first, second, third = map(json.loads, answers.getvalue().splitlines())
    assert first == {"at": "op.kernel.bf16"}
    assert second == {"error": "op.kernel.bf16: RuntimeError: CUDA_ERROR_ILLEGAL_ADDRESS", "poisoned": True}
    assert third["error"] == "KeyError: 'none'"
    assert "Traceback" in capsys.readouterr().err


def test_a_worker_of_the_real_module_answers(tmp_path):
    worker = Worker("emulated:sm_90a", tmp_path / "log")
    try:
        answer = worker.ask({"do": "host", "key": "launch"}, 60)
        assert answer == {"absent": "no time is told on emulated:sm_90a"}
        assert worker.close() == 0
    finally:
        worker.kill()


@pytest.mark.parametrize(
    "message, sticky",
    [
        ("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered", True),
        ("cudaErrorLaunchFailure: unspecified launch failure", True),
        ("CUDA error: an illegal memory access was encountered", True),
        ("CUDA error: device-side assert triggered", True),
        ("CUDA_ERROR_INVALID_ADDRESS_SPACE: operation not supported on global/shared address space", True),
        ("cudaErrorInvalidPc: invalid program counter", True),
        ("CUDA error: invalid program counter", True),
        ("CUDA error: operation not supported on global/shared address space", True),
        ("cudaErrorUnknown: unknown error", True),
        ("CUDA_ERROR_UNKNOWN", True),
        ("CUDA_ERROR_INVALID_VALUE: unknown attribute", False),
        ("CUDA_ERROR_NOT_SUPPORTED: operation not supported", False),
        ("CUDA_ERROR_INVALID_VALUE: invalid argument", False),
        ("CUDA_ERROR_OUT_OF_MEMORY: out of memory", False),
        ("illegal argument", False),
    ],
)
def test_faults_that_stay_with_a_process_are_known(message, sticky):
    assert is_sticky(message) is sticky


def test_the_module_is_a_command():
    with pytest.raises(SystemExit):
        module.main(["--nonsense"])
