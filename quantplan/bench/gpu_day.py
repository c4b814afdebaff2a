"""The GPU day: one command that turns minutes on a GPU into evidence of what is correct, and how fast it is.

``python -m quantplan.bench.gpu_day --out DIR`` runs stages, most valuable first, each within its share of the budget,
and writes one result file as it goes. A run that was killed keeps what it has, and ``--resume`` goes on with it. The
last lines say what failed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from quantplan.bench import findings, options, runs, wanted
from quantplan.bench.budget import Budget
from quantplan.bench.problems import ROWS
from quantplan.bench.stages import STAGES, Day, wants
from quantplan.devices.target import Target, TargetKind
from quantplan.errors import DriverError, DriverNotFound, InvalidProblem
from quantplan.ops import PLANS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from quantplan.bench.runs import Run
    from quantplan.bench.stages import Stage

_RESULTS = Path(__file__).resolve().parents[2] / "docs" / "performance" / "results"


def run_day(
    out: Path,
    *,
    target: str = "cuda:0",
    budget: float | None = None,
    only: Sequence[str] = (),
    ops: Sequence[str] = (),
    resume: bool = False,
    smoke: bool = False,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> Run:
    """Run the stages and return what they found.

    Parameters
    ----------
    out : pathlib.Path
        Folder of the result file.
    target : str
        ``cuda:0``, or an emulated device, where nothing is timed.
    budget : float, optional
        Seconds for all stages; 480 by default, and 1200 for a smoke run.
    only, ops : sequence of str
        Only these stages, and only these ops; all of them by default.
    resume : bool
        Whether to go on with the newest file of the same kernels and target in the folder.
    smoke : bool
        Whether small problems are enough; the file is then no result.
    say : callable
        Prints a line.
    clock : callable
        Tells the time in seconds.

    Raises
    ------
    InvalidProblem
        There is no such stage, op or target.
    DriverNotFound, DriverError
        There is no such GPU.
    """
    _check("only", only, [stage.name for stage in STAGES])
    _check("ops", ops, [*PLANS, *(row.name for row in ROWS)])
    kind = Target.parse(target).kind
    if kind not in (TargetKind.CUDA, TargetKind.EMULATED):
        raise InvalidProblem(op="bench", field="target", expected="cuda:0 or emulated:sm_90a", got=target)
    smoke = smoke or kind is TargetKind.EMULATED
    earlier = runs.latest(out, target, smoke=smoke) if resume else None
    run = runs.Run(earlier, runs.read(earlier)) if earlier else runs.Run.begin(out, target, smoke=smoke)
    limited = Budget(budget or (options.SMOKE_BUDGET_S if smoke else options.BUDGET_S), clock)
    day = Day(run, target, out / "gpu-day.log", smoke, say, tuple(ops), runs.ranks(_known(out)))
    wanted = [stage for stage in STAGES if stage.name in only or not only or stage.name == "machine"]
    try:
        for number, stage in enumerate(wanted):
            _run_stage(day, stage, limited, later=sum(s.share for s in wanted[number + 1 :]))
            if not day.run.data["machine"]:
                break  # nothing works without it
    finally:
        day.run.save()
    return day.run


def compile_only(folder: Path, out: Path | None, *, target: str, ops: Sequence[str] = ()) -> int:
    """Compile the kernels of a day into a folder for ``QUANTPLAN_CUBIN_PATH``, which needs no GPU; return how many.

    Those that no result has run come first.

    Raises
    ------
    InvalidProblem
        There is no such op, or the target runs no cubins.
    """
    _check("ops", ops, [*PLANS, *(row.name for row in ROWS)])
    if Target.parse(target).kind not in (TargetKind.ARCH, TargetKind.CUDA):
        raise InvalidProblem(op="bench", field="target", expected="an architecture such as sm_90a", got=target)
    rows = [row for row in ROWS if wants(row, ops)]
    return wanted.compile_all(target, folder, rows, runs.ranks(_known(out)))


def _known(out: Path | None) -> list[runs.Data]:
    """Return the results of a folder, and those of the checkout."""
    places = {place.resolve() for place in (out, _RESULTS) if place is not None and place.is_dir()}
    return [data for place in sorted(places) for data in runs.load(place)]


def _stop(number: int, frame: object) -> None:  # noqa: ARG001 - a handler's arguments
    """Leave as from an error: what was started is ended, and what was found is written."""
    sys.exit(128 + number)


def _check(field: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise InvalidProblem(op="bench", field=field, expected=f"one of {', '.join(known)}", got=repr(name))


def _run_stage(day: Day, stage: Stage, budget: Budget, *, later: float) -> None:
    earlier = day.run.data["stages"].get(stage.name, {})
    if earlier.get("status") == "done" and stage.name != "machine":  # which may be another one by now
        day.say(f"[{budget.spent:6.1f} s] {stage.name}: done before")
        return
    deadline, begun = budget.stage(stage.share, later), budget.spent
    allotted = deadline.left
    day.say(f"[{begun:6.1f} s] {stage.name}: up to {allotted:.0f} s")
    try:
        status, reason = ("done", "") if stage.work(day, deadline) else ("cut", "it did not come to its end")
        if status == "cut" and deadline.over:
            reason = f"its {allotted:.0f} s were over"
    except Exception as error:  # noqa: BLE001 - other stages may still work
        traceback.print_exc()
        status, reason = "failed", f"{type(error).__name__}: {error}"
    spent = budget.spent - begun
    told = {"status": status, "allotted_s": round(allotted, 1), "spent_s": round(spent, 1)}
    day.run.data["stages"][stage.name] = {**told, "reason": reason} if reason else told
    day.run.save()
    day.say(f"[{budget.spent:6.1f} s] {stage.name}: {status}: {findings.summary(day.run.data, stage.name)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a day; return 1 where anything failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the result file")
    parser.add_argument("--compile-only", type=Path, metavar="DIR", help="compile a day's kernels there, and end")
    chosen = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _stop)
    try:
        if chosen.compile_only is not None:
            count = compile_only(chosen.compile_only, chosen.out, target=chosen.target, ops=chosen.ops)
            print(f"{count} kernels are compiled: QUANTPLAN_CUBIN_PATH={chosen.compile_only} finds them")
            return 0
        if chosen.out is None:
            parser.error("--out DIR is required: the folder of the result file")
        run = run_day(chosen.out, say=lambda line: print(line, flush=True), **options.given(chosen))
    except (InvalidProblem, DriverNotFound, DriverError) as error:
        parser.error(str(error))
    for line in findings.last_lines(run):
        print(line)
    return 1 if findings.failures(run.data) else 0


if __name__ == "__main__":
    sys.exit(main())
