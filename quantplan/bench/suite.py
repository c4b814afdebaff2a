"""The tests on silicon, in a process of their own: one that hangs or crashes is told, and the rest go on without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantplan.bench import outcomes
from quantplan.bench.worker import kill

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quantplan.bench.budget import Deadline
    from quantplan.bench.stages import Day

_ROOT = Path(__file__).resolve().parents[2]
ON_SILICON = ("tests/gpu",)
FIRST = ("plans", "ptx_hopper", "ptx", "streams", "operands", "quantize_family")
"""Of those, the files that tell most."""
EMULATED = ("tests/gpu", *(f"tests/kernels/test_gpu_{name}.py" for name in ("ptx", "plans", "twin")))
"""The same tests, on a stand-in for CuPy over the emulated device; those that need a GPU are skipped."""
_QUIET_S, _COLLECT_S = 30.0, 120.0
"""Seconds after which a test hangs, and seconds without a test."""
_LOOK_S = 0.5
_ENDED = (0, 1, 5)
"""Pytest's exit codes for: all passed, some failed, nothing left to run."""


def run(day: Day, deadline: Deadline) -> bool:
    """Run the tests; tell whether all of them came to their end."""
    paths = EMULATED if day.emulated else ON_SILICON
    if not all((_ROOT / path).exists() for path in paths):
        day.run.data["tests"]["absent"] = "only a checkout of quantplan has its tests"
        day.say("  absent: only a checkout of quantplan has its tests")
        return True
    file = day.run.path.with_name(f"{day.run.path.stem}-tests.jsonl")
    for test in _under_way(outcomes.read(file)):  # a run that was killed with it
        outcomes.write(file, test=test, outcome="cut")
    code, before = None, -1
    while code not in _ENDED and not deadline.over and _size(file) != before:
        before = _size(file)
        code = _start(day, paths, file, deadline)
        day.run.data["tests"] = summary(outcomes.read(file)) if _size(file) else {}
        day.run.tick()
    if not _size(file) and not deadline.over:
        day.run.data["tests"]["failed"] = {"pytest": f"exit code {code}, and no test ran: see {day.log.name}"}
    return code in _ENDED


def _start(day: Day, paths: tuple[str, ...], file: Path, deadline: Deadline) -> int | None:
    """Run pytest until it ends, hangs, or time is over; return its exit code, or None where it had to be killed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "quantplan.bench.outcomes", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors"]
    command += ["-W", "default", "-m", "not slow"]  # another machine's libraries may warn of other things
    command += [str(path.relative_to(_ROOT)) for path in _files(paths)]
    first = json.dumps([row.name for row in day.rows if not day.rank(row)])
    environment = {**os.environ, outcomes.VARIABLE: str(file), outcomes.FIRST: first, "PYTHONPATH": _path()}
    with day.log.open("a", encoding="utf-8") as log:
        process = subprocess.Popen(  # noqa: S603 - our own tests
            command, cwd=_ROOT, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
        )
    size, changed, tests = -1, time.monotonic(), []
    try:
        while process.poll() is None and not deadline.over:
            time.sleep(min(_LOOK_S, max(0.01, deadline.left)))
            if _size(file) != size:
                size, changed, found = _size(file), time.monotonic(), outcomes.read(file)
                tests, day.run.data["tests"] = _under_way(found), summary(found)
                day.run.tick()
            if time.monotonic() - changed > (_QUIET_S if tests else _COLLECT_S):
                break
        code, spent = process.poll(), time.monotonic() - changed
    finally:
        kill(process)
    for test in _under_way(outcomes.read(file)):
        if code is not None:
            outcomes.write(file, test=test, outcome="failed", lost=True, message=f"crashed: exit code {code}")
        elif spent > _QUIET_S:
            outcomes.write(
                file, test=test, outcome="failed", lost=True, message=f"hung: it did not end in {spent:.0f} s"
            )
        else:
            outcomes.write(file, test=test, outcome="cut", s=round(spent, 1))
    return code


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _under_way(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [test for test, entry in found.items() if entry["outcome"] == "begun"]


def _files(paths: tuple[str, ...]) -> list[Path]:
    """Return the test files, those that tell most first."""
    found = [file for path in paths for file in sorted((_ROOT / path).glob("test_*.py")) or [_ROOT / path]]
    rank = {f"test_{name}": number for number, name in enumerate(FIRST)}
    return sorted(found, key=lambda file: rank.get(file.stem, len(rank)))


def _path() -> str:
    return os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))


def summary(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what came of tests: how many were collected and passed, what became of the others, and all by file.

    A test that is under way counts as one that was not run; ``"s"`` are seconds.
    """
    told: dict[str, Any] = {"collected": len(found), "passed": 0, "failed": {}, "cut": {}, "properties": {}}
    skipped, missed = Counter[str](), Counter[str]()
    files: dict[str, Counter[str]] = {}
    for test, entry in found.items():
        outcome, message = entry["outcome"], entry.get("message", "")
        if outcome == "passed":
            told["passed"] += 1
        elif outcome == "failed":
            told["failed"][test] = message
        elif outcome == "skipped":
            skipped[message.removeprefix("Skipped: ")] += 1
        elif outcome == "cut":
            told["cut"][test] = entry.get("s", 0)
        if outcome not in ("passed", "failed", "skipped"):
            missed[message.removeprefix("not run: ") or "time was over"] += 1
            outcome = "not run"
        if "properties" in entry:
            told["properties"][test] = entry["properties"]
        files.setdefault(test.partition("::")[0], Counter()).update({outcome: 1, "s": entry.get("s", 0)})
    counted = {file: {**counts, "s": round(counts["s"], 1)} for file, counts in files.items()}
    return {**told, "skipped": dict(skipped), "not run": dict(missed), "files": counted}
