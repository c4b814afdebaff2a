"""The tests on silicon, in a process of their own: one that hangs or crashes is told, and the rest go on without it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from quantplan.bench import outcomes
from quantplan.bench.worker import kill

if TYPE_CHECKING:
    from quantplan.bench.budget import Deadline
    from quantplan.bench.stages import Day

_ROOT = Path(__file__).resolve().parents[2]
ON_SILICON = ("tests/gpu",)
FIRST = ("ptx_hopper", "ptx", "plans", "streams", "operands")
"""Of those, the files that tell most."""
EMULATED = ("tests/gpu", *(f"tests/kernels/test_gpu_{name}.py" for name in ("ptx", "plans", "twin")))
"""The same tests, on a stand-in for CuPy over the emulated device; those that need a GPU are skipped."""
_QUIET_S, _STARTS = 120.0, 6
"""Seconds without an outcome after which a test hangs, and how often pytest is started again after one."""
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
    file = day.run.path.with_name(f".{day.run.path.stem}-tests.jsonl")
    code = None
    for _ in range(_STARTS):
        code = _start(day, paths, file, deadline)
        _keep(day, file, cut=deadline.over)
        if code in _ENDED or deadline.over:
            break
    if not file.is_file() and not deadline.over:
        day.run.data["tests"]["failed"] = {"pytest": f"exit code {code}, and no test ran: see {day.log.name}"}
    return code in _ENDED


def _start(day: Day, paths: tuple[str, ...], file: Path, deadline: Deadline) -> int | None:
    """Run pytest until it ends, hangs, or time is over; return its exit code, or None where it had to be killed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "quantplan.bench.outcomes", "-p", "no:cacheprovider"]
    command += ["-W", "default", "-m", "not slow"]  # another machine's libraries may warn of other things
    command += [str(path.relative_to(_ROOT)) for path in _files(paths)]
    environment = {**os.environ, outcomes.VARIABLE: str(file), "PYTHONPATH": _path()}
    with day.log.open("a", encoding="utf-8") as log:
        process = subprocess.Popen(  # noqa: S603 - our own tests
            command, cwd=_ROOT, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
        )
    size, changed = -1, time.monotonic()
    try:
        while process.poll() is None and not deadline.over:
            time.sleep(min(_LOOK_S, max(0.01, deadline.left)))
            now = file.stat().st_size if file.is_file() else 0
            if now != size:
                size, changed = now, time.monotonic()
                _keep(day, file, cut=True)
            if time.monotonic() - changed > _QUIET_S:
                break
        return process.poll()
    finally:
        kill(process)


def _files(paths: tuple[str, ...]) -> list[Path]:
    """Return the test files, those that tell most first."""
    found = [file for path in paths for file in sorted((_ROOT / path).glob("test_*.py")) or [_ROOT / path]]
    rank = {f"test_{name}": number for number, name in enumerate(FIRST)}
    return sorted(found, key=lambda file: rank.get(file.stem, len(rank)))


def _path() -> str:
    return os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))


def _keep(day: Day, file: Path, *, cut: bool) -> None:
    """Keep what came of the tests; one that began and never ended has failed, unless it was cut short."""
    passed, failed, skipped = 0, {}, Counter[str]()
    for test, entry in outcomes.read(file).items():
        message = entry.get("message", "")
        if entry["outcome"] == "passed":
            passed += 1
        elif entry["outcome"] == "skipped":
            skipped[message.removeprefix("Skipped: ")] += 1
        elif entry["outcome"] == "failed":
            failed[test] = message
        elif not cut:
            failed[test] = "hung or crashed: it began and never ended"
    day.run.data["tests"] = {"passed": passed, "failed": failed, "skipped": dict(skipped)}
    day.run.tick()
