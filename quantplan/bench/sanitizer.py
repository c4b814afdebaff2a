"""compute-sanitizer over a short set of every op: what it finds, which ops it blames, and why it could not run."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from quantplan.bench import wanted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quantplan.bench.budget import Deadline
    from quantplan.bench.stages import Day
    from quantplan.bench.worker import Answer

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
_HOW_TO_GET_IT = "compute-sanitizer comes with the CUDA toolkit: put its bin folder into PATH"
_FOUND = 86
"""Exit code by which a sanitizer says that it found something."""
_SUMMARY = re.compile(r"SUMMARY: [1-9]")
_REFUSED = re.compile(r".*not supported.*", re.IGNORECASE)
_LIMIT_S = 120.0


def run(day: Day, deadline: Deadline) -> bool:
    """Run each tool that has not come to its end yet; tell whether all have."""
    found = day.run.data["sanitizers"]
    tool = None if day.emulated else shutil.which("compute-sanitizer")
    if tool is None:
        found["absent"] = "the emulated device checks every access by itself" if day.emulated else _HOW_TO_GET_IT
        day.say(f"  absent: {found['absent']}")
        return True
    found.pop("absent", None)
    waiting = [name for name in TOOLS if not found.get(name, {}).get("complete")]
    for number, name in enumerate(waiting):
        if not _run(day, tool, name, deadline.within(deadline.left / (len(waiting) - number))):
            return False
        if "absent" in found:
            day.say(f"  absent: {found['absent']}")
            break
    return True


def _run(day: Day, tool: str, name: str, deadline: Deadline) -> bool:
    """Run one tool; tell whether it came to its end."""
    stem, folder = f"{day.run.path.stem}-{name}", day.run.path.parent
    for old in folder.glob(f"{stem}-*.log"):
        old.unlink()
    log = str(folder / f"{stem}-%p.log")  # of each process its own: one that is lost leaves what it found
    worker = day.worker(tool, "--tool", name, "--error-exitcode", str(_FOUND), "--log-file", log)
    answers: dict[str, Answer] = {}
    for row in day.rows:
        limit = min(_LIMIT_S, deadline.left)
        answer = None if deadline.over else worker.ask(day.exercise(row, row.small, wanted.SMALL), limit)
        if answer is None or (limit < _LIMIT_S and "hung: " in answer.get("error", "")):
            break  # time is over, which is nobody's fault
        answers[row.name] = answer
        if "error" in answer and len(answers) == 1:
            break  # a tool that cannot run here fails for each op alike
    code = worker.close()
    text = "\n".join(
        path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob(f"{stem}-*.log"))
    )
    wrong = {row: answer for row, answer in answers.items() if answer.get("error") or answer.get("wrong")}
    if len(answers) == 1 and wrong and (refusal := _REFUSED.search(text)):
        day.run.data["sanitizers"]["absent"] = refusal[0].removeprefix("=========").strip()
        return True
    complete = len(answers) == len(day.rows) or (len(answers) == 1 and bool(wrong))
    bad = code == _FOUND or bool(_SUMMARY.search(text))
    lines = [line.removeprefix("=========").strip() for line in text.splitlines()]
    day.run.data["sanitizers"][name] = {
        "exit_code": code,
        "found": bad,
        "blamed": _blamed(day, sorted(answers), text) if bad else [],
        "ran": sorted(answers),
        "wrong": wrong,
        "complete": complete,
        "first_lines": [line for line in lines if line][:20] if code or bad else [],
    }
    day.say(f"  {name}: {len(answers)} ops, exit code {code}{'' if complete else ', cut'}")
    day.run.save()
    return complete


def _blamed(day: Day, ran: Sequence[str], text: str) -> list[str]:
    """Return the ops whose kernels a log names; all that ran where it names none."""
    used = {
        row.name: wanted.of_problem(day.arch, row.descriptor(wanted.SMALL, row.small), every=True) for row in day.rows
    }
    named = [row for row in ran if any(spec.name in text for *_, specs in used[row] for spec in specs)]
    return named or list(ran)
