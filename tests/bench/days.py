"""Days of stages' tests: their workers answer what a function says, and remember what they were asked."""

import time

from quantplan.bench import stages
from quantplan.bench.budget import Deadline
from quantplan.bench.problems import ROWS

MACHINE = {
    "device": {"name": "Abacus 9000", "arch": "sm_90a"},
    "software": {},
    "peers": {"torch": "absent"},
    "rows": {r.name: "" if r.rate is None else "reference: runs on cpu only" for r in ROWS},
}


class Day(stages.Day):
    """A day with room for what a test remembers of it."""


class Worker:
    """Answers what a function says, and remembers what it was asked."""

    def __init__(self, answer, prefix=(), code=0):
        self.answer, self.prefix, self.code, self.asked, self.runs = answer, prefix, code, [], True

    def ask(self, task, limit_s):
        self.asked.append(task)
        return self.answer(task)

    def close(self):
        return self.code

    def kill(self):
        pass


def soon(seconds=60.0):
    return Deadline(time.monotonic() + seconds)


def over():
    return Deadline(time.monotonic() - 1)
