"""The GPU day: one command that turns minutes on a GPU into evidence of what is correct, and how fast it is.

``python -m quantplan.bench.gpu_day --out DIR`` runs stages, most valuable first, each within its share of the budget,
and writes one result file as it goes. A run that was killed keeps what it has, and ``--resume`` goes on with it. The
last lines say what failed.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantplan.bench import findings, runs
from quantplan.bench.budget import Budget
from quantplan.bench.stages import STAGES, Day

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from quantplan.bench.runs import Run
    from quantplan.bench.stages import Stage

BUDGET_S = 480.0


def run_day(
    out: Path,
    *,
    target: str = "cuda:0",
    budget: float = BUDGET_S,
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
    budget : float
        Seconds for all stages.
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
    """
    emulated = not target.startswith("cuda")
    smoke = smoke or emulated
    earlier = runs.latest(out, target, smoke=smoke) if resume else None
    run = runs.Run(earlier, runs.read(earlier)) if earlier else runs.Run.begin(out, target, smoke=smoke)
    limited = Budget(budget, clock)
    day = Day(run, target, out / "gpu-day.log", smoke, say, tuple(ops))
    wanted = [stage for stage in STAGES if stage.name in only or not only or stage.name == "machine"]
    for number, stage in enumerate(wanted):
        _run_stage(day, stage, limited, later=sum(s.share for s in wanted[number + 1 :]))
        if stage.name == "machine" and not run.data["machine"]:
            break  # nothing works
    run.save()
    return run


def _run_stage(day: Day, stage: Stage, budget: Budget, *, later: float) -> None:
    done = day.run.data["stages"]
    if done.get(stage.name, {}).get("status") == "done":
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
    done[stage.name] = {"status": status, "allotted_s": round(allotted, 1), "spent_s": round(spent, 1)}
    if reason:
        done[stage.name]["reason"] = reason
    day.run.save()
    day.say(f"[{budget.spent:6.1f} s] {stage.name}: {status}: {findings.summary(day.run.data, stage.name)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a day; return 1 where anything failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the result file")
    options = parser.parse_args(argv)
    run = run_day(options.out, say=lambda line: print(line, flush=True), **arguments(options))
    for line in findings.last_lines(run):
        print(line)
    return 1 if findings.failures(run.data) else 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what `arguments` reads."""
    names = [stage.name for stage in STAGES]
    parser.add_argument("--target", default="cuda:0", help="cuda:0, or emulated:sm_90a, where nothing is timed")
    parser.add_argument("--budget", type=float, default=BUDGET_S, metavar="SECONDS", help="default 480")
    parser.add_argument("--only", nargs="+", choices=names, default=[], metavar="STAGE", help=f"of {', '.join(names)}")
    parser.add_argument("--ops", nargs="+", default=[], metavar="OP", help="only these ops")
    parser.add_argument("--resume", action="store_true", help="go on with the newest result of the same kernels")
    parser.add_argument("--smoke", action="store_true", help="small problems only, which make no result")


def arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `run_day` that a command line was given."""
    return {name: getattr(options, name) for name in ("target", "budget", "only", "ops", "resume", "smoke")}


if __name__ == "__main__":
    sys.exit(main())
