"""A pytest plugin that writes each test's outcome the moment it is known, so that a run which is killed keeps them.

``QUANTPLAN_OUTCOMES`` names the file, a JSON object a line. Tests whose outcome stands there are not run again, nor is
one that began and never ended: it hung or crashed. After a GPU's fault the process ends, for it can do nothing more.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from quantplan.bench.worker import is_sticky

VARIABLE = "QUANTPLAN_OUTCOMES"
FAULTED = 99
"""Exit code after a GPU's fault."""


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return what a file says of each test; one that never ended has the outcome ``"begun"``."""
    found: dict[str, dict[str, Any]] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was killed
            found[entry["test"]] = entry
    return found


def _write(**entry: object) -> None:
    with Path(os.environ[VARIABLE]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:  # noqa: ANN401 - pytest's own
    """Leave out what has an outcome already."""
    done = read(Path(os.environ[VARIABLE]))
    known = [item for item in items if item.nodeid in done]
    if known:
        config.hook.pytest_deselected(items=known)
        items[:] = [item for item in items if item.nodeid not in done]


def pytest_collectreport(report: Any) -> None:  # noqa: ANN401 - pytest's own
    """Write that a file could not be read."""
    if report.failed:
        _write(test=report.nodeid, outcome="failed", message=_last_line(report))


def pytest_runtest_logstart(nodeid: str) -> None:
    """Write that a test begins."""
    _write(test=nodeid, outcome="begun")


def pytest_runtest_logreport(report: Any) -> None:  # noqa: ANN401 - pytest's own
    """Write what came of a test."""
    if report.when == "call" or not report.passed:
        entry = {"test": report.nodeid, "outcome": report.outcome, "s": round(report.duration, 3)}
        message = "" if report.passed else _last_line(report)
        _write(**entry, **({"message": message} if message else {}))
        if report.failed and is_sticky(message):
            os._exit(FAULTED)  # every later test of this process would fail for it


def _last_line(report: Any) -> str:  # noqa: ANN401 - pytest's own
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return str(crash.message)[:500]
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        return str(report.longrepr[-1])
    return str(report.longrepr)[-500:]
