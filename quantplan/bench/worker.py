"""Worker: a process that does one task after another, so that a kernel which hangs or crashes takes only itself along.

The parent writes a JSON object a line and waits, not too long, for its answer. ``python -m quantplan.bench.worker`` is
the child; `tasks` holds what it can do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from quantplan.bench.budget import Deadline

_PACKAGE = Path(__file__).resolve().parents[2]
_TOLD = 300
"""Characters of an error that a result keeps."""
_START_S = 20.0
"""Seconds that a worker may take to start: it imports whatever its first task needs."""
_END_S = 20.0
"""Seconds that a worker may take to end."""
_SUSPECT_S = 10.0
"""Seconds that most tasks end in: one that is cut by the deadline after more of them is told."""
STRIKES = 2
"""So many processes a kernel may take along before it is left alone."""

Task = dict[str, Any]
Answer = dict[str, Any]


class Worker:
    """A child process. It is started by the first task, and again by the next one after it had to be killed.

    Parameters
    ----------
    target : str
        What it runs on.
    log : pathlib.Path
        Takes what it prints.
    prefix : sequence of str
        Command that it runs under, such as a sanitizer's.
    """

    def __init__(self, target: str, log: Path, prefix: Sequence[str] = ()) -> None:
        self.command = [*prefix, sys.executable, "-m", "quantplan.bench.worker", "--target", target]
        self.log = log
        self._process: subprocess.Popen[str] | None = None
        self._at = ""
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    @property
    def runs(self) -> bool:
        """Whether there is a process that need not be started."""
        return self._process is not None

    def ask(self, task: Task, limit_s: float) -> Answer:
        """Return the answer to a task; ``{"error": …}`` where it crashed, or took too long and was killed.

        Where the process is lost with the task, ``"lost"`` stands there too, and ``"at"`` is what it was about to do.
        """
        process, self._at = self._process or self._start(), ""
        try:
            assert process.stdin is not None  # noqa: S101 - it is a pipe
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
            answer = self._answer(time.monotonic() + limit_s)
        except BrokenPipeError:
            answer = None
        except TimeoutError:
            self.kill()
            return self._lost(f"hung: no answer within {limit_s:.0f} s")
        if answer is None:
            return self._lost(f"crashed: exit code {self._wait()}")
        if answer.pop("poisoned", False):  # a GPU's error that every later call of the process would report again
            self.kill()
            return {**answer, "lost": True, "at": self._at}
        return answer

    def _lost(self, error: str) -> Answer:
        return {"error": f"{self._at}: {error}" if self._at else error, "lost": True, "at": self._at}

    def close(self) -> int | None:
        """Let it end; return its exit code, or None where it never ran or did not end."""
        return self._wait()

    def kill(self) -> None:
        """End it now, with whatever it has started."""
        process, self._process = self._process, None
        if process is not None:
            kill(process)

    def _start(self) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, (str(_PACKAGE), os.environ.get("PYTHONPATH"))))
        self._lines = queue.SimpleQueue()
        with self.log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
        threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()
        return self._process

    def _answer(self, end: float) -> Answer | None:
        """Return the next line that is an answer; None where the process is gone."""
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise TimeoutError from None
            if line is None:
                return None
            with contextlib.suppress(ValueError):  # a sanitizer's own lines
                answer = json.loads(line)
                if isinstance(answer, dict) and set(answer) != {"at"}:
                    return answer
                self._at = answer["at"] if isinstance(answer, dict) else self._at

    def _wait(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        _close_input(process)
        try:
            return process.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            kill(process)
            return None


def _read(stream: TextIO, lines: queue.SimpleQueue[str | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def kill(process: subprocess.Popen[str]) -> None:
    """End a process that leads its session, with whatever it has started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    _close_input(process)
    with contextlib.suppress(subprocess.TimeoutExpired):  # one whose GPU hangs may take for ever
        process.wait(timeout=_END_S)


def _close_input(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):  # what it did not read is lost with it
            process.stdin.close()


def share_out(
    tasks: Iterable[Task],
    workers: Sequence[Worker],
    deadline: Deadline,
    limit_s: float,
    done: Callable[[Task, Answer], None],
) -> bool:
    """Have workers do tasks, one each at a time, until there are none or time is over.

    Parameters
    ----------
    tasks : iterable of dict
        What is to be done, most valuable first.
    workers : sequence of Worker
        Who does it.
    deadline : Deadline
        When no further task begins, and one that runs is killed.
    limit_s : float
        Seconds that one task may take, besides the start of a process.
    done : callable
        Called with each task and its answer, one at a time. A task that is cut short by the deadline is told only
        where it had time enough for most.

    Returns
    -------
    bool
        Whether every task was done.
    """
    waiting, lock = iter(tasks), threading.Lock()
    cut = False

    def work(worker: Worker) -> None:
        nonlocal cut
        while True:
            with lock:
                if deadline.over:
                    cut = cut or next(waiting, None) is not None
                    return
                task = next(waiting, None)
            if task is None:
                return
            allowed = limit_s + (0 if worker.runs else _START_S)
            limit = min(allowed, deadline.left)
            answer = worker.ask(task, limit)
            with lock:
                if limit < allowed and "hung: " in answer.get("error", ""):
                    cut = True
                    if limit >= _SUSPECT_S:
                        done(task, {"error": f"{answer['at'] or task['do']}: hung or cut after {limit:.0f} s"})
                    return
                done(task, answer)

    with ThreadPoolExecutor(len(workers)) as pool:
        try:
            for future in [pool.submit(work, worker) for worker in workers]:
                future.result()
        except BaseException:  # a key was pressed, or `done` failed: nobody waits for what still runs
            deadline.end = float("-inf")
            for worker in workers:
                worker.kill()
            raise
    return not cut


# ---- the child


def serve(target: str, requests: TextIO, answers: TextIO) -> None:
    """Do one task after another until there are no more; say before each kernel which one it is."""
    from quantplan.bench.tasks import Tasks  # noqa: PLC0415 - the parent needs no CUDA

    at, tasks = "", None

    def tell(answer: Answer) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    def begin(what: str) -> None:
        nonlocal at
        at = what
        tell({"at": what})

    for line in requests:
        at = ""
        try:
            tasks = tasks or Tasks(target, begin)
            answer = tasks.do(json.loads(line))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            traceback.print_exc()
            told = f"{type(error).__name__}: {error}"
            told = f"{at}: {told}" if at not in told else told
            answer = {"error": told[:_TOLD], "poisoned": is_sticky(str(error))}
        tell(answer)


_STICKY = (
    *("ILLEGAL", "MISALIGNEDADDRESS", "LAUNCHFAIL", "LAUNCHTIMEOUT", "HARDWARESTACK", "ERRORASSERT", "SIDEASSERT"),
    *("ECCUNCORRECTABLE", "CONTEXTISDESTROYED", "ERRORUNKNOWN", "INVALIDADDRESSSPACE", "SHAREDADDRESSSPACE"),
    *("INVALIDPC", "INVALIDPROGRAMCOUNTER"),
)


def is_sticky(message: str) -> bool:
    """Whether an error tells of a GPU's fault, after which a process can do nothing more on it."""
    text = re.sub(r"[^A-Z]", "", message.upper())  # CuPy, torch and the driver spell the same names differently
    return "CUDAERROR" in text and any(word in text for word in _STICKY)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve on standard input and output."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", required=True)
    options = parser.parse_args(argv)
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
        serve(options.target, sys.stdin, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
