"""A pytest plugin that writes each test's outcome the moment it is known, so that a run which is killed keeps them.

``QUANTPLAN_OUTCOMES`` names the file, a JSON object a line; what stands there last of a test counts. Tests that have
come to an end are not run again, and neither is one that hung or crashed. After a GPU's fault the process ends, for it
can do nothing more; an op that has taken two processes along is not tried any further. ``QUANTPLAN_FIRST`` may name, in
a list of JSON, the ops whose tests come first.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from quantplan.bench import runs
from quantplan.bench.problems import ROWS
from quantplan.bench.worker import STRIKES, is_sticky

VARIABLE, FIRST = "QUANTPLAN_OUTCOMES", "QUANTPLAN_FIRST"
FAULTED = 99
"""Exit code after a GPU's fault."""
TO_RUN = ("waiting", "cut")
"""Outcomes of tests that are still to be run: nobody began, or time was over."""


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return what a file says of each test; one that is under way, or never ended, has the outcome ``"begun"``."""
    found: dict[str, dict[str, Any]] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was killed
            found[entry["test"]] = entry
    return found


def write(path: Path, **entry: object) -> None:
    """Write what came of a test."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def subject(test: str) -> str:
    """Return what a test is about: the kernel or the op as it is measured that its name tells, else its function."""
    function, _, parameters = test.partition("[")
    return next((name for name in _names() if name in parameters), function)


@cache
def _names() -> list[str]:
    """Return whatever a test may be about, the longest first: some names are a part of others."""
    return sorted([*runs.kernels(), *(row.name for row in ROWS)], key=len, reverse=True)


def _file() -> Path:
    return Path(os.environ[VARIABLE])


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:  # noqa: ANN401 - pytest's own
    """Leave out what has come to an end, or takes every process along; the rest waits, some ops before the others."""
    known = read(_file())
    left: list[Any] = []
    out: list[Any] = []
    lost = Counter(subject(test) for test, entry in known.items() if entry.get("lost"))
    for item in items:
        test, about = item.nodeid, subject(item.nodeid)
        outcome = known.get(test, {}).get("outcome")
        if outcome is None:
            write(_file(), test=test, outcome="waiting")
        if outcome in (None, *TO_RUN) and lost[about] >= STRIKES:
            outcome = "not run"
            write(_file(), test=test, outcome=outcome, message=f"not run: {about} hung or faulted {lost[about]} times")
        (left if outcome in (None, *TO_RUN) else out).append(item)
    if out:
        config.hook.pytest_deselected(items=out)
    first = json.loads(os.environ.get(FIRST, "[]"))
    items[:] = sorted(left, key=lambda item: subject(item.nodeid) not in first)


def pytest_collectreport(report: Any) -> None:  # noqa: ANN401 - pytest's own
    """Write that a file could not be read."""
    if report.failed:
        write(_file(), test=report.nodeid, outcome="failed", message=_last_line(report))


def pytest_runtest_logstart(nodeid: str) -> None:
    """Write that a test begins."""
    write(_file(), test=nodeid, outcome="begun")


def pytest_runtest_logreport(report: Any) -> None:  # noqa: ANN401 - pytest's own
    """Write what came of a test."""
    if report.when == "call" or not report.passed:
        entry = {"test": report.nodeid, "outcome": report.outcome, "s": round(report.duration, 3)}
        if report.user_properties:
            entry["properties"] = {name: str(value) for name, value in report.user_properties}
        if not report.passed:
            entry["message"] = _last_line(report)
        fault = report.failed and is_sticky(entry["message"])
        write(_file(), **entry, **({"lost": True} if fault else {}))
        if fault:
            os._exit(FAULTED)  # every later test of this process would fail for it


def _last_line(report: Any) -> str:  # noqa: ANN401 - pytest's own
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return str(crash.message)[:500]
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        return str(report.longrepr[-1])
    return str(report.longrepr)[-500:]
