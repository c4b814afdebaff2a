"""What a GPU day is asked for on a command line, apart from what runs it: a parser is built far more often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

BUDGET_S, SMOKE_BUDGET_S = 480.0, 1200.0
"""Of a GPU; and of a smoke run, which mostly computes on a CPU what a GPU does in no time."""
_NAMES = ("target", "budget", "only", "ops", "resume", "smoke")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options that `given` reads."""
    parser.add_argument("--target", default="cuda:0", help="cuda:0, or emulated:sm_90a, where nothing is timed")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="default 480, and 1200 for a smoke run")
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="machine, tests, benchmarks and others")
    parser.add_argument("--ops", nargs="+", default=[], metavar="OP", help="only these ops")
    parser.add_argument("--resume", action="store_true", help="go on with the newest result of the same kernels")
    parser.add_argument("--smoke", action="store_true", help="small problems only, which make no result")


def given(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `gpu_day.run_day` that a command line gave."""
    return {name: getattr(options, name) for name in _NAMES}
