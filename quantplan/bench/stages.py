"""The stages of a GPU day, most valuable first. Each asks workers, keeps what they answer, and may be cut at any time.

Nothing here touches a GPU: what does is a worker, a sanitizer's child, or pytest, and each of them can be killed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from quantplan.bench import problems, suite
from quantplan.bench.machine import clocks
from quantplan.bench.runs import Run
from quantplan.bench.worker import Worker, kill, share_out
from quantplan.cubins import PATH_VARIABLE
from quantplan.ops import PLANS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from quantplan.bench.budget import Deadline
    from quantplan.bench.worker import Answer, Task

ROOFS = ("copy", "copy, torch", "bf16", "f16", "int8", "fp8")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
_HOW_TO_GET_SANITIZER = "compute-sanitizer comes with the CUDA toolkit: put its bin folder into PATH"
_FOUND = 86
"""Exit code by which a sanitizer says that it found something."""
_STRIDES, _CHUNK = (97, 31, 7, 1), 4
"""A catalogue is sampled ever more densely; so many of its problems make a task."""
_TASK_S, _SANITIZED_S = 90.0, 120.0
_PROGRESS_S = 15.0
"""Seconds after which a stage that goes on says so."""


@attrs.define
class Day:
    """What all stages share.

    Parameters
    ----------
    run : Run
        Where results go.
    target : str
        ``cuda:0`` or an emulated device.
    log : pathlib.Path
        What workers and tests print.
    smoke : bool
        Whether small problems are enough.
    say : callable
        Prints a line.
    ops : sequence of str
        Only these, where any are given.
    """

    run: Run
    target: str
    log: Path
    smoke: bool
    say: Callable[[str], None]
    ops: Sequence[str] = ()

    @property
    def emulated(self) -> bool:
        """Whether there is no GPU."""
        return not self.target.startswith("cuda")

    def worker(self, *prefix: str) -> Worker:
        """Return a worker, which starts when it is first asked."""
        return Worker(self.target, self.log, prefix)

    def workers(self) -> list[Worker]:
        """Return as many workers as find processors: half, for each has a GPU's memory to itself too."""
        return [self.worker() for _ in range(min(8, max(1, (os.cpu_count() or 1) // 2)))]

    @property
    def rows(self) -> list[problems.Row]:
        """The ops that have a kernel for the device."""
        support = self.run.data["machine"].get("rows", {})
        return [row for row in problems.ROWS if self.wants(row) and not support.get(row.name)]

    def wants(self, row: problems.Row) -> bool:
        """Whether a row is asked for."""
        return not self.ops or any(op in (row.name, row.op) for op in self.ops)

    def settle(self, machine: Answer) -> None:
        """Take note of the machine, and name the file after it; an earlier run of another GPU is not gone on with."""
        name, known = machine["device"]["name"], self.run.data["machine"]
        if known and known["device"]["name"] != name:
            self.say(f"  {self.run.path.name} is of another device: a new result begins")
            self.run, known = Run.begin(self.run.path.parent, self.target, smoke=self.smoke), {}
        self.run.data["machine"] = machine
        if not known:
            self.run.name(name)

    def do(self, workers: Sequence[Worker], tasks: Iterator[Task], deadline: Deadline, part: str) -> bool:
        """Have tasks done whose answers a part of the run does not hold yet, by key; tell whether all were."""
        found = self.run.data[part]
        waiting = (task for task in tasks if "error" in found.get(task["key"], {"error": "nobody has tried"}))

        told = deadline.left

        def done(task: Task, answer: Answer) -> None:
            nonlocal told
            found[task["key"]] = answer
            if "error" in answer:
                self.say(f"  {part}: {task['key']}: {answer['error']}")
            if told - deadline.left >= _PROGRESS_S:
                told = deadline.left
                self.say(f"  {part}: {len(found)} done, the last one {task['key']}; {told:.0f} s are left")
            self.run.tick()

        try:
            return share_out(waiting, workers, deadline, _TASK_S, done)
        finally:
            for worker in workers:
                worker.close()


# ---- 1: environment and roofs


def machine(day: Day, deadline: Deadline) -> bool:
    """Ask what the machine is, and measure its roofs."""
    worker = day.worker()
    answer = worker.ask({"do": "machine"}, max(_TASK_S, deadline.left))  # without it there is no result
    if "error" in answer:
        worker.kill()
        raise RuntimeError(answer["error"])
    day.settle(answer)
    told = day.run.data["machine"]
    day.say(f"  {', '.join(f'{name} {value}' for name, value in told['device'].items())}")
    day.say(f"  peers: {', '.join(f'{name} {version}' for name, version in told['peers'].items())}")
    for name, reason in told["rows"].items():
        if reason:
            day.say(f"  no kernel: {name}: {reason}")
    tasks = ({"do": "roof", "key": name, "name": name} for name in ROOFS)
    finished = day.do([worker], tasks, deadline, "roofs")
    for name, roof in day.run.data["roofs"].items():
        if "value" in roof:
            day.say(f"  {name}: {roof['value'] / 1e12:.2f} T{roof['unit']}")
    return finished


def compiled(day: Day, deadline: Deadline) -> bool:
    """Compile kernels on all processors into the cache, so that no stage behind waits for one that it needs."""
    if day.emulated or os.environ.get(PATH_VARIABLE):
        return True
    with tempfile.TemporaryDirectory() as folder, day.log.open("a", encoding="utf-8") as log:
        command = [sys.executable, "-m", "quantplan", "warmup", "--json", "--target", day.target, "--out", folder]
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True, start_new_session=True)  # noqa: S603 - our own module
        try:
            return process.wait(timeout=deadline.left) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            kill(process)
            day.say(f"  {len(list(Path(folder).glob('*.cubin')))} kernels")


# ---- 2: correctness


def tests(day: Day, deadline: Deadline) -> bool:
    """Run the tests on silicon; with no GPU, what runs them on the emulated device."""
    return suite.run(day, deadline)


def guarantees(day: Day, deadline: Deadline) -> bool:
    """Hold SKUs to their guarantees under attack: few of every op, then ever more."""
    rows = {row.op for row in day.rows}
    return day.do(day.workers(), _guarantee_tasks(sorted(rows), smoke=day.smoke), deadline, "guarantees")


def _guarantee_tasks(ops: Sequence[str], *, smoke: bool) -> Iterator[Task]:
    sizes = {op: sum(1 for _ in PLANS[op].catalogue()) for op in ops}
    seen: dict[str, set[int]] = {op: set() for op in ops}
    for stride in _STRIDES[:1] if smoke else _STRIDES:
        waves = {op: [n for n in range(0, size, stride) if n not in seen[op]] for op, size in sizes.items()}
        for op, wave in waves.items():
            seen[op].update(wave)
        for start in range(0, max(map(len, waves.values()), default=0), _CHUNK):
            for op, wave in waves.items():
                numbers = wave[start : start + _CHUNK]
                if numbers:
                    yield {"do": "guarantee", "key": f"{op} {numbers}", "op": op, "numbers": numbers}


def exercises(day: Day, deadline: Deadline) -> bool:
    """Compare whole results at the sizes of models with the reference's."""
    return day.do(day.workers(), _exercise_tasks(day.rows, smoke=day.smoke), deadline, "exercises")


def _exercise_tasks(rows: Sequence[problems.Row], *, smoke: bool) -> Iterator[Task]:
    for m in (19,) if smoke else (16, 1, 300):
        for row in rows:
            yield _exercise(row, row.small if smoke else row.shapes[0], m)


def _exercise(row: problems.Row, shape: problems.Shape, m: int) -> Task:
    point = problems.Point(row, shape, m)
    return {"do": "exercise", "key": point.key, "row": row.name, "shape": shape.label, "m": m}


# ---- 3: sanitizers


def sanitizers(day: Day, deadline: Deadline) -> bool:
    """Run a short set under each of compute-sanitizer's tools."""
    found = day.run.data["sanitizers"]
    if day.emulated:
        found["absent"] = "the emulated device checks every access by itself"
        return True
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        found["absent"] = _HOW_TO_GET_SANITIZER
        day.say(f"  absent: {_HOW_TO_GET_SANITIZER}")
        return True
    for number, name in enumerate(TOOLS):
        if name not in found and not _sanitize(day, tool, name, deadline, later=len(TOOLS) - number - 1):
            return False
    return True


def _sanitize(day: Day, tool: str, name: str, deadline: Deadline, *, later: int) -> bool:
    """Run one tool; tell whether it came to its end."""
    log = day.run.path.with_name(f"{day.run.path.stem}-{name}.log")
    prefix = (tool, "--tool", name, "--error-exitcode", str(_FOUND), "--log-file", str(log))
    worker, answers, complete = day.worker(*prefix), {}, True
    part = deadline.within(deadline.left / (later + 1))
    for row in day.rows:
        if part.over:
            complete = False
            break
        task = _exercise(row, row.small, 19)
        answers[row.name] = worker.ask(task, min(_SANITIZED_S, part.left))
        if "error" in answers[row.name] and len(answers) == 1:
            break  # a tool that cannot run here fails for each op alike
    code = worker.close()
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.removeprefix("=========").strip() for line in text.splitlines()]
    wrong = {row: answer for row, answer in answers.items() if answer.get("error") or answer.get("wrong")}
    day.run.data["sanitizers"][name] = {
        "exit_code": code,
        "found": code == _FOUND,
        "ran": sorted(answers),
        "wrong": wrong,
        "complete": complete,
        "first_lines": [line for line in lines if line][:20] if code else [],
    }
    day.say(f"  {name}: {len(answers)} ops, exit code {code}{'' if complete else ', cut'}")
    day.run.save()
    return complete


# ---- 4: time


def host(day: Day, deadline: Deadline) -> bool:
    """Time what a launch costs on the host."""
    return day.do([day.worker()], iter([{"do": "host", "key": "launch"}]), deadline, "host")


def benchmarks(day: Day, deadline: Deadline) -> bool:
    """Time every op beside its peers, those points first that tell most."""
    points = problems.small_points(day.rows) if day.smoke else problems.points(day.rows)
    tasks = (_point(point) for point in points)
    try:
        return day.do([day.worker()], tasks, deadline, "points")
    finally:
        if not day.emulated and (warm := clocks(int(day.target.partition(":")[2] or 0))):
            day.run.data["machine"]["clocks after benchmarks"] = warm


def _point(point: problems.Point) -> Task:
    """Ask for a point; where it tells most, beside all of our variants, for selection rests on estimates of theirs."""
    task = {"do": "point", "key": point.key, "row": point.row.name, "shape": point.shape.label, "m": point.m}
    few = point.m in problems.FEW and point.shape == point.row.shapes[0]
    return {**task, "every_variant": True} if few else task


@attrs.frozen
class Stage:
    """One stage.

    Parameters
    ----------
    name : str
        Its name in results and for ``--only``.
    share : float
        Its part of the budget; what one leaves over, those behind it get.
    work : callable
        Does it, and tells whether it came to its end.
    """

    name: str
    share: float
    work: Callable[[Day, Deadline], Any]


STAGES = (
    Stage("machine", 0.06, machine),
    Stage("compile", 0.06, compiled),
    Stage("tests", 0.20, tests),
    Stage("guarantees", 0.14, guarantees),
    Stage("exercises", 0.06, exercises),
    Stage("host", 0.03, host),
    Stage("sanitizers", 0.11, sanitizers),
    Stage("benchmarks", 0.34, benchmarks),
)
