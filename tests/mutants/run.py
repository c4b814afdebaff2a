"""Runs the mutants: each in a process of its own, against kernels built from its own copy of the sources."""

import argparse
import math
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from unittest import mock

import attrs

from quantplan.emulator import compiler
from quantplan.errors import KernelBuildError, KernelFault
from quantplan.kernels import source_root
from tests import headers
from tests.mutants import fp8_cases, fused_cases, int4_cases, linear_cases, quantize_cases, repack_cases, suite
from tests.mutants.equivalent import Equivalents
from tests.mutants.generate import mutants_of_folder

say = partial(print, flush=True)
FAMILIES = (quantize_cases, linear_cases, int4_cases, repack_cases, fp8_cases, fused_cases)
NAMES = {family.__name__.rpartition(".")[2].removesuffix("_cases"): family for family in FAMILIES}
CASE_SECONDS = 5  # of CPU time; a case takes less than one
MUTANT_SECONDS = 900  # of wall clock: what hangs outside of a case is a mistake of ours


@attrs.frozen
class Outcome:
    """What became of a mutant: killed, survived, not compiled, or broken, which says nothing about it."""

    kind: str
    why: str = ""
    lines: tuple = ()  # of the unchanged sources: which lines each unit's kernels have


class Runner:
    """Everything that mutants share: the sources, the prepared cases, and the runtime that kernels link."""

    def __init__(self, scratch, families=FAMILIES):
        self.root = source_root()
        self.headers = Path(scratch, "headers")
        headers.precompile(self.headers)
        self.runtime = suite.build_runtime()
        self.families = families
        self.units = [suite.Unit(make) for family in families for make in family.UNITS]
        self.files = {unit: unit.files(self.root) for unit in self.units}
        self.lines = dict.fromkeys(self.units, frozenset())

    def learn(self):
        """Run all cases on the sources as they are, and see which lines are in which unit's kernels."""
        ((_, outcome),) = run(self, [None], jobs=1)
        if outcome.kind == "survived":
            self.lines = dict(zip(self.units, outcome.lines, strict=True))
        return outcome

    def units_for(self, mutant):
        """Return the units that a mutant can matter to; first those whose kernels have its line, or one close by."""
        name = Path(mutant.file).name

        def distance(unit):
            return min((abs(line - mutant.line) for file, line in self.lines[unit] if file == name), default=math.inf)

        return sorted((unit for unit in self.units if mutant.file in self.files[unit]), key=distance)

    def meet(self, mutant):
        """Run the cases against a mutant, or with None against the sources as they are; say what became of it."""
        lines = []
        with self._sources(mutant) as root:
            try:
                for family in self.families:
                    suite.check_constants(root, family.CONSTANTS)
                for unit in self.units_for(mutant) if mutant else self.units:
                    libraries = unit.build()
                    for case in unit.cases:
                        signal.setitimer(signal.ITIMER_VIRTUAL, CASE_SECONDS)
                        case.check()
                        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
                    lines.append(None if mutant else suite.lines(libraries))
            except (AssertionError, KernelFault) as error:
                return Outcome("killed", f"{type(error).__name__}: {error}")
            except KernelBuildError as error:
                if "Killed" in error.log or "internal compiler error" in error.log:
                    raise  # it is not the mutant's fault
                return Outcome("not compiled", str(error))
        return Outcome("survived", lines=tuple(lines))

    @contextmanager
    def _sources(self, mutant):
        """Let the compiler find a copy of the sources with the change, and a mutant's kernels a cache of their own."""
        with tempfile.TemporaryDirectory(prefix="quantplan-mutant-") as folder:
            root = Path(folder, "kernels_cu")
            shutil.copytree(self.root, root)
            for module in ("quantplan.kernels", "quantplan.emulator.compiler"):
                mock.patch(f"{module}.source_root", return_value=root).start()  # as long as the process lives
            folders = (self.headers, *compiler._folders())
            mock.patch("quantplan.emulator.compiler._folders", return_value=folders).start()
            if mutant:
                path, cache = root / mutant.file, Path(folder, "cache", "emulator")
                path.write_text(mutant.apply(path.read_text("utf-8")), "utf-8")
                cache.mkdir(mode=0o700, parents=True)
                shutil.copy(self.runtime, cache)
                os.environ["QUANTPLAN_CACHE_DIR"] = str(cache.parent)
            yield root


def child(runner, mutant, pipe):
    """Meet a mutant in a process that it may crash, or keep forever."""
    os.setsid()  # its compilers can be stopped with it
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - until the process ends
    try:
        outcome = runner.meet(mutant)
    except BaseException:  # noqa: BLE001 - the parent reports it
        outcome = Outcome("broken", traceback.format_exc())
    pipe.send(outcome)
    pipe.close()


def run(runner, mutants, jobs):
    """Yield each mutant with its outcome, in the order in which they end."""
    fork = multiprocessing.get_context("fork")  # children share what is prepared
    waiting, running = list(reversed(mutants)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            ours, theirs = fork.Pipe(duplex=False)
            process = fork.Process(target=child, args=(runner, mutant, theirs))
            process.start()
            theirs.close()
            running[ours] = (mutant, process, time.monotonic() + MUTANT_SECONDS)
        patience = min(deadline for _, _, deadline in running.values()) - time.monotonic()
        for pipe in wait(running, max(0, patience)):
            mutant, process, _ = running.pop(pipe)
            yield mutant, _answer(pipe, process)
        for pipe in [pipe for pipe, (_, _, deadline) in running.items() if deadline <= time.monotonic()]:
            mutant, process, _ = running.pop(pipe)
            os.killpg(process.pid, signal.SIGKILL)
            yield mutant, Outcome("broken", f"no answer within {MUTANT_SECONDS} s")


def _answer(pipe, process):
    """Return what a process reports, or what its death says."""
    try:
        outcome = pipe.recv()
    except EOFError:
        outcome = None
    process.join()
    if outcome is None and process.exitcode == -signal.SIGVTALRM:
        return Outcome("killed", f"a case takes more than {CASE_SECONDS} s")
    return outcome or Outcome("broken", f"the process ended with status {process.exitcode}")


def main(arguments=None):
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="mutants, or parts of their names; all by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time (default: %(default)s)")
    parser.add_argument("--family", choices=NAMES, help="the cases of this family of kernels only; all by default")
    parser.add_argument("--list", action="store_true", help="print the mutants and run none")
    parser.add_argument("--verbose", action="store_true", help="print every outcome, not only the unexpected ones")
    options = parser.parse_args(arguments)

    everything, equivalents = mutants_of_folder(source_root()), Equivalents.read()
    stale = equivalents.stale(everything)
    for problem in stale:
        say(f"stale: {problem}")
    mutants = [m for m in everything if not options.names or any(name in m.name for name in options.names)]
    if options.list:
        for mutant in mutants:
            say(f"{mutant.name}\n{difference(mutant)}")
        return 0
    with tempfile.TemporaryDirectory(prefix="quantplan-mutants-") as scratch:
        runner = Runner(scratch, [NAMES[options.family]] if options.family else FAMILIES)
        unchanged = runner.learn()
        if unchanged.kind != "survived":
            say(f"the unchanged sources: {unchanged.kind}: {unchanged.why}")
            return 1
        say("the unchanged sources pass every case")
        met = met_by_cases(mutants, runner.units_for)
        unexpected = report(run(runner, met, options.jobs), equivalents, len(met), verbose=options.verbose)
    return int(unexpected > 0 or bool(stale) or len(met) < len(mutants))


def met_by_cases(mutants, units_for):
    """Return the mutants that some unit can meet; say which files no case includes."""
    for file, count in Counter(m.file for m in mutants if not units_for(m)).items():
        say(f"no case includes {file}: {count} mutants are not run")
    return [m for m in mutants if units_for(m)]


def report(outcomes, equivalents, total, *, verbose=False):
    """Print what becomes of mutants, and the score; return how many are not as they should be."""
    start, counts, unexpected = time.monotonic(), Counter(), 0
    for mutant, outcome in outcomes:
        reason = equivalents.reason(mutant)
        kind = "equivalent" if reason and outcome.kind == "survived" else outcome.kind
        counts[kind] += 1
        surprise = kind in ("survived", "broken") or (reason is not None and kind != "equivalent")
        unexpected += surprise
        if surprise or verbose:
            listed = f"\n    listed as equivalent: {reason}" if reason else ""
            say(f"\r{kind}: {mutant.name}\n{difference(mutant)}\n    {outcome.why[-1500:]}{listed}")
        done = counts.total()
        if sys.stdout.isatty() or done % 100 == 0 or done == total:
            end = "" if sys.stdout.isatty() and done < total else "\n"
            say(f"\r{done} of {total}, {(time.monotonic() - start) / 60:.1f} minutes", end=end)
    cpu = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    say(f"{(time.monotonic() - start) / 60:.1f} minutes, {cpu / 60:.1f} of CPU time")
    say(", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    say(f"killed {counts['killed']}/{counts.total() - counts['equivalent'] - counts['not compiled']}")
    return unexpected


def difference(mutant):
    """Return a mutant's change, as lines."""
    return f"    - {mutant.before}\n    + {mutant.after}"
