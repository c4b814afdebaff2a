"""What is validated on silicon: of each kernel, whether all that could find a fault has looked, and what it found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from quantplan.bench import findings, outcomes, runs
from quantplan.bench.problems import ROWS
from quantplan.ops import PLANS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from quantplan.bench.runs import Data

SAYS = (
    "A kernel is validated when, on a GPU and with the sources as they are now, SKUs that hold any two parts of a name "
    "together kept their guarantees under attack, every test of `tests/gpu` ended and those of its op passed, and no "
    "sanitizer found anything in it. What was cut leaves it validated in part."
)
_OPS = {row.name: row.op for row in ROWS}


@attrs.frozen
class Validation:
    """What is known of one kernel on silicon.

    Parameters
    ----------
    kernel : str
        ``op.variant``.
    source : str
        Its family's file.
    status : str
        ``yes``, ``yes, but for sanitizers``, ``in part``, ``no``, ``source changed since``, or ``never``.
    detail : str
        How many SKUs and cases, on which GPU and when; or what failed, or is lacking.
    """

    kernel: str
    source: str
    status: str
    detail: str = ""


def validations(results: Sequence[Data]) -> list[Validation]:
    """Return the status of each kernel that there is now; of several runs the newest of the same sources counts."""
    now = runs.sources()
    found = []
    for kernel, source in runs.kernels().items():
        ran = [data for data in results if kernel in runs.tried(data) or any(_wrong(data, kernel))]
        same = [data for data in ran if data["sources"].get(source) == now[source]]
        if same:
            found.append(_validation(same[-1], kernel, source))
        elif ran:
            found.append(Validation(kernel, source, "source changed since", _where(ran[-1])))
        else:
            found.append(Validation(kernel, source, "never"))
    return found


def _validation(data: Data, kernel: str, source: str) -> Validation:
    wrong, lacking = next(_wrong(data, kernel), ""), "; ".join(_lacking(data, kernel))
    plans = _plans(data, kernel)
    ran = f"{len({p['sku'] for p in plans})} SKUs, {sum(plan['cases'] for plan in plans)} cases; {_where(data)}"
    if wrong:
        return Validation(kernel, source, "no", f"{wrong}; {_where(data)}")
    if lacking:
        return Validation(kernel, source, "in part", f"{lacking}; {ran}")
    if "absent" in data["sanitizers"]:
        return Validation(kernel, source, "yes, but for sanitizers", f"{data['sanitizers']['absent']}; {ran}")
    return Validation(kernel, source, "yes", ran)


def _where(data: Data) -> str:
    return f"{data['machine']['device']['name']}, {data['date']}"


def _plans(data: Data, kernel: str) -> list[Data]:
    answers = (answer for _, answer in findings.entries(data["guarantees"]))
    plans = (plan for answer in answers for plan in answer.get("plans", ()))
    return [plan for plan in plans if runs.kernel_of(plan["sku"]) == kernel]


def _wrong(data: Data, kernel: str) -> Iterator[str]:
    """Yield what went wrong with a kernel, or with its op where nobody can tell with which of its kernels."""
    op = kernel.partition(".")[0]
    for about, text in _faults(data):
        if about in (kernel, op):
            yield text


def _faults(data: Data) -> Iterator[tuple[str, str]]:
    """Yield the kernel or the op that something went wrong with, and what."""
    for key, answer in findings.entries(data["guarantees"]):
        yield from ((runs.kernel_of(text), text) for text in answer.get("problems", ()))
        if _is_fault(answer):
            yield _of_error(answer["error"]) or key.partition(" [")[0], f"{key}: {answer['error']}"
    for part in ("exercises", "points"):
        for key, answer in findings.entries(data[part]):
            yield from ((runs.kernel_of(what), f"{what}: {key} is wrong") for what in answer.get("wrong", ()))
            about = _of_error(answer["error"]) if _is_fault(answer) else ""
            if about or (part == "exercises" and _is_fault(answer)):
                yield about or _OPS.get(key.partition(" | ")[0], ""), f"{key}: {answer['error']}"
    for test in data["tests"].get("failed", {}):
        yield of_test(test), f"test {test}"
    for tool, answer in findings.entries(data["sanitizers"]):
        if findings.is_bad(answer):
            rows = {*answer["wrong"], *answer.get("blamed", ())} or answer.get("ran", ())
            yield from ((_OPS.get(row, ""), tool) for row in rows)


def _is_fault(answer: Data) -> bool:
    """Whether an error is one: time that was over may have cut a task that was only slow."""
    return "error" in answer and "hung or cut" not in answer["error"]


def _of_error(error: str) -> str:
    """Return the kernel that an error names first, if it does."""
    kernel = runs.kernel_of(error.partition(":")[0].partition(",")[0])
    return kernel if kernel in runs.kernels() else ""


def of_test(test: str) -> str:
    """Return the kernel or the op that a test is about; nothing where it is about none."""
    about = outcomes.subject(test)
    if about in runs.kernels():
        return about
    if about in _OPS:
        return _OPS[about]
    parameters = test.partition("[")[2]
    return next((op for op in sorted(PLANS, key=len, reverse=True) if op in parameters), "")


def _lacking(data: Data, kernel: str) -> Iterator[str]:
    """Yield what a kernel lacks that would find faults, apart from sanitizers on a machine that has none."""
    op = kernel.partition(".")[0]
    if "absent" in data["tests"]:
        yield f"tests: {data['tests']['absent']}"
    for name in ("tests", "guarantees", "sanitizers"):
        stage = data["stages"].get(name, {"status": "not run"})
        if stage["status"] != "done":
            yield f"{name}: {stage['status']}"
    yield from (f"test {test} failed" for test in data["tests"].get("failed", {}) if not of_test(test))
    if not _plans(data, kernel):
        yield "no guarantee of it was attacked"
    ran = {_OPS.get(row) for _, answer in findings.entries(data["sanitizers"]) for row in answer.get("ran", ())}
    if "absent" not in data["sanitizers"] and op not in ran:
        yield "no sanitizer has seen it"
