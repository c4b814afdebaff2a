"""The stages of a GPU day, most valuable first. Each asks workers, keeps what they answer, and may be cut at any time.

Nothing here touches a GPU: what does is a worker, a sanitizer's child, or pytest, and each of them can be killed.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from quantplan.bench import problems, sanitizer, suite, wanted
from quantplan.bench.machine import clocks
from quantplan.bench.runs import Run, kernel_of
from quantplan.bench.worker import STRIKES, Worker, kill, share_out
from quantplan.devices.target import Target
from quantplan.ops import PLANS
from quantplan.verify.runner import sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from quantplan.bench.budget import Deadline
    from quantplan.bench.worker import Answer, Task

ROOFS = ("copy", "copy, torch", "bf16", "f16", "int8", "fp8")
_CHUNK = 4
"""So many problems make a task of guarantees."""
_MACHINE_S, _TASK_S, _EMULATED_S = 90.0, 25.0, 120.0
"""Seconds that a machine takes to tell what it is, at most; a task whose kernels are compiled; and any other."""
_WITH_KERNELS = ("guarantees", "exercises", "points")
_PROGRESS_S = 15.0
"""Seconds after which a stage that goes on says so."""


def wants(row: problems.Row, ops: Sequence[str]) -> bool:
    """Whether a line of `problems.ROWS` is asked for: by its name or its op's, or because none is named."""
    return not ops or any(op in (row.name, row.op) for op in ops)


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
    ranks : mapping
        By kernel, what earlier results know of it; see `runs.ranks`. The lowest ones come first.
    """

    run: Run
    target: str
    log: Path
    smoke: bool
    say: Callable[[str], None]
    ops: Sequence[str] = ()
    ranks: Mapping[str, int] = attrs.field(factory=dict)

    @property
    def arch(self) -> Target:
        """The architecture, for questions that need no GPU."""
        device = self.run.data["machine"].get("device", {})
        return Target.parse(device["arch"] if "arch" in device else Target.parse(self.target).arch)

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
        """The ops that have a kernel for the device, those first that no earlier result knows."""
        support = self.run.data["machine"].get("rows", {})
        found = [row for row in problems.ROWS if wants(row, self.ops) and not support.get(row.name)]
        return sorted(found, key=self.rank)

    def rank(self, row: problems.Row) -> int:
        """Return the lowest rank of an op's kernels."""
        return min((rank for kernel, rank in self.ranks.items() if kernel.partition(".")[0] == row.op), default=0)

    @property
    def struck(self) -> list[str]:
        """The kernels that have taken more than one process along, and are left alone from now on."""
        answers = (answer for part in _WITH_KERNELS for answer in self.run.data[part].values())
        lost = Counter(kernel_of(answer["at"]) for answer in answers if answer.get("lost") and answer["at"])
        return [kernel for kernel, count in lost.items() if count >= STRIKES]

    def exercise(self, row: problems.Row, shape: problems.Shape, m: int) -> Task:
        """Return the task of comparing one whole result."""
        key = problems.Point(row, shape, m).key
        task = {"do": "exercise", "key": key, "row": row.name, "shape": shape.label, "m": m}
        return {**task, "skip": self.struck} if self.struck else task

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
        unknown = {"error": "nobody has tried"}
        waiting = (task for task in tasks if "error" in found.get(task["key"], unknown))
        if part in _WITH_KERNELS:
            waiting = ({**task, "skip": self.struck} if self.struck else task for task in waiting)

        told = deadline.left

        def done(task: Task, answer: Answer) -> None:
            nonlocal told
            earlier = found.get(task["key"], {})
            kept = earlier if earlier.get("lost") and "not run" in answer else {}  # what a kernel did stands
            found[task["key"]] = {**kept, **answer}
            if "error" in answer:
                self.say(f"  {part}: {task['key']}: {answer['error']}")
            if "not run" in answer:
                self.say(f"  {part}: {task['key']}: not run: {answer['not run']}")
            if told - deadline.left >= _PROGRESS_S:
                told = deadline.left
                self.say(f"  {part}: {len(found)} done, the last one {task['key']}; {told:.0f} s are left")
            self.run.tick()

        try:
            return share_out(waiting, workers, deadline, _EMULATED_S if self.emulated else _TASK_S, done)
        finally:
            for worker in workers:
                worker.close()


# ---- 1: environment and roofs


def machine(day: Day, deadline: Deadline) -> bool:
    """Ask what the machine is, and measure its roofs."""
    worker = day.worker()
    answer = worker.ask({"do": "machine"}, max(_MACHINE_S, deadline.left))  # without it there is no result
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
    """Compile the day's kernels on all processors into the cache, so that no stage behind waits for one."""
    if day.emulated:
        return True
    with tempfile.TemporaryDirectory() as folder, day.log.open("a", encoding="utf-8") as log:
        command = [sys.executable, "-m", "quantplan.bench.gpu_day", "--compile-only", folder, "--target", day.arch.arch]
        command += ["--out", str(day.run.path.parent), *(["--ops", *day.ops] if day.ops else [])]
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True, start_new_session=True)  # noqa: S603 - our own module
        try:
            return process.wait(timeout=deadline.left) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            kill(process)
            day.say(f"  {len(list(Path(folder).glob('*.cubin')))} kernels were not precompiled")


# ---- 2: correctness


def tests(day: Day, deadline: Deadline) -> bool:
    """Run the tests on silicon; with no GPU, what runs them on the emulated device."""
    return suite.run(day, deadline)


def guarantees(day: Day, deadline: Deadline) -> bool:
    """Hold SKUs to their guarantees under attack: few of every kernel, then whatever two parts of a name meet."""
    ops = dict.fromkeys(row.op for row in day.rows)
    strengths = wanted.STRENGTHS[:1] if day.smoke else wanted.STRENGTHS
    return day.do(day.workers(), _guarantee_tasks(list(ops), day.arch, strengths), deadline, "guarantees")


def _guarantee_tasks(ops: Sequence[str], arch: Target, strengths: Sequence[int]) -> Iterator[Task]:
    """Yield some problems of one variant at a time, every op in turn: a kernel that hangs or faults takes few along."""
    seen: set[tuple[str, str, int]] = set()
    for strength in strengths:
        waves = []
        for op in ops:
            place = {desc: number for number, desc in enumerate(PLANS[op].catalogue())}
            numbers: dict[str, list[int]] = {}
            for subject in sample(op, arch, strength):
                if (op, subject.variant.name, place[subject.desc]) not in seen:
                    numbers.setdefault(subject.variant.name, []).append(place[subject.desc])
            seen.update((op, variant, number) for variant, some in numbers.items() for number in some)
            parts = (
                (v, some[start : start + _CHUNK])
                for v, some in numbers.items()
                for start in range(0, len(some), _CHUNK)
            )
            waves.append([_guarantee(op, *part) for part in parts])
        for turn in itertools.zip_longest(*waves):
            yield from filter(None, turn)


def _guarantee(op: str, variant: str, numbers: list[int]) -> Task:
    return {"do": "guarantee", "key": f"{op}.{variant} {numbers}", "op": op, "variant": variant, "numbers": numbers}


def exercises(day: Day, deadline: Deadline) -> bool:
    """Compare whole results at the sizes of models with the reference's."""
    ms = (wanted.SMALL,) if day.smoke else wanted.EXERCISED
    rows = ((m, row) for m in ms for row in day.rows if row.ms == problems.MS or m == ms[0])
    tasks = (day.exercise(row, row.small if day.smoke else row.compared, m) for m, row in rows)
    return day.do(day.workers(), tasks, deadline, "exercises")


# ---- 3: sanitizers


def sanitizers(day: Day, deadline: Deadline) -> bool:
    """Run a short set under each of compute-sanitizer's tools."""
    return sanitizer.run(day, deadline)


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
    return {**task, "every_variant": True} if point.tells_most else task


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
    Stage("tests", 0.25, tests),
    Stage("guarantees", 0.14, guarantees),
    Stage("exercises", 0.06, exercises),
    Stage("host", 0.03, host),
    Stage("sanitizers", 0.11, sanitizers),
    Stage("benchmarks", 0.29, benchmarks),
)
