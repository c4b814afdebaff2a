"""Findings: what of a run is wrong, in lines that can be acted on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantplan.bench.runs import Data, Run

_MOST = 40
"""Failures that the last lines name."""


def failures(data: Data) -> list[str]:
    """Return every failure of a run, a line each."""
    return list(_failures(data))


def _failures(data: Data) -> Iterator[str]:
    yield from (f"{name}: {s['reason']}" for name, s in data["stages"].items() if s["status"] == "failed")
    for test, message in data["tests"].get("failed", {}).items():
        yield f"test {test}: {message.splitlines()[0] if message else 'without a message'}"
    for _, answer in entries(data["guarantees"]):
        yield from (f"guarantee: {problem}" for problem in answer.get("problems", ()))
    for key, answer in entries(data["exercises"]):
        if answer.get("wrong"):
            yield f"exercise {key}: {_wrong(answer)}"
    yield from (f"{tool}: {_sanitized(answer)}" for tool, answer in entries(data["sanitizers"]) if is_bad(answer))
    for part in ("roofs", "guarantees", "exercises", "host", "points"):
        yield from (f"{part}: {key}: {a['error']}" for key, a in entries(data[part]) if "error" in a)


def is_bad(answer: Data) -> bool:
    """Whether a sanitizer found anything, or what it ran went wrong."""
    return bool(answer["found"] or answer["wrong"] or answer["exit_code"] not in (0, None))


def _sanitized(answer: Data) -> str:
    first = "; ".join(answer["first_lines"][1:4]) or ", ".join(answer["wrong"])
    return f"exit code {answer['exit_code']}: {first}"


def _wrong(answer: Data) -> str:
    return ", ".join(f"{count} elements of {name} are wrong" for name, count in answer["wrong"].items())


def entries(part: Data) -> list[tuple[str, Any]]:
    """Return the entries of a part, apart from the reason why it is absent."""
    return [(key, value) for key, value in part.items() if key != "absent"]


def summary(data: Data, stage: str) -> str:
    """Return what a stage found, in a few words."""
    parts = {"machine": "roofs", "benchmarks": "points", "compile": "stages"}
    part = data[parts.get(stage, stage)]
    if "absent" in part:
        return f"absent: {part['absent']}"
    if stage == "tests":
        skipped, missed = (sum(part.get(name, {}).values()) for name in ("skipped", "not run"))
        told = f"{part.get('passed', 0)} passed, {len(part.get('failed', ()))} failed, {skipped} skipped"
        return f"{told}, {missed} not run" if missed else told
    if stage == "guarantees":
        plans = [plan for _, answer in entries(part) for plan in answer.get("plans", ())]
        cases = sum(plan["cases"] for plan in plans)
        wrong = sum(len(answer.get("problems", ())) for _, answer in entries(part))
        return f"{len({plan['sku'] for plan in plans})} SKUs, {cases} cases, {wrong} problems"
    if stage == "compile":
        return "what is not compiled yet is compiled when it is needed"
    bad = sum("error" in answer or bool(answer.get("wrong")) for _, answer in entries(part))
    missed = sum("not run" in answer for _, answer in entries(part))
    return f"{len(part)} answers, {bad} bad" + (f", {missed} not run" if missed else "")


def _left_out(data: Data) -> Iterator[Data]:
    """Yield an answer for each reason why kernels were left alone."""
    answers = (answer for part in ("guarantees", "exercises", "points") for _, answer in entries(data[part]))
    yield from {answer["not run"]: answer for answer in answers if "not run" in answer}.values()


def last_lines(run: Run) -> list[str]:
    """Return the lines that a run ends with: what was cut, what failed, and where the result is."""
    data = run.data
    lines = [f"{name} was cut: {s['reason']}" for name, s in data["stages"].items() if s["status"] == "cut"]
    lines += [f"not run: {answer['not run']}" for answer in _left_out(data)]
    found = failures(data)
    alike: dict[str, list[str]] = {}
    for line in found:
        alike.setdefault(line.rpartition(": ")[2], []).append(line)  # what is behind the last colon is the cause
    grouped = [f"{same[0]} (and {len(same) - 1} more like it)" if same[1:] else same[0] for same in alike.values()]
    lines += [f"FAILED {line}" for line in grouped[:_MOST]]
    if len(grouped) > _MOST:
        lines.append(f"and {len(grouped) - _MOST} other causes")
    verdict = f"{len(found)} failures" if found else "no failures"
    return [*lines, f"{verdict}; result: {run.path}"]
