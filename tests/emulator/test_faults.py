"""Every fault reaches Python with its kind, line, block and thread, and leaves a process that works."""

import copy
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from quantplan.errors import FaultKind, KernelFault, QuantPlanError
from tests.emulator.units import SCHEDULES, Unit

UNIT = Unit("faults.cu")
NUMBERS = np.array([2**31 - 1, 1, 2, -(2**31), 0, -1, 32], np.int32)

UNDEFINED = {
    "sum_overflows": "a signed sum that overflows",
    "difference_overflows": "a signed difference that overflows",
    "product_overflows": "a signed product that overflows",
    "negation_overflows": "a negated integer that overflows",
    "division_by_zero": "division by zero",
    "remainder_by_zero": "division by zero",
    "quotient_overflows": "or one that overflows",
    "far_shift": "a shift by more bits than there are",
    "far_right_shift": "a shift by more bits than there are",
    "float_does_not_fit": "a float converted to an integer that cannot hold it",
    "nan_is_no_integer": "a float converted to an integer that cannot hold it",
    "no_bool": "a bool or an enum with a value that it cannot have",
}


def works():
    """Whether a launch after a fault does what it shall."""
    for checked in (True, False):
        np.testing.assert_array_equal(UNIT.run("sound", grid=(2,), out=128, checked=checked), [*range(64), *range(64)])


# ---- kinds


@pytest.mark.parametrize("kind", [kind for kind in FaultKind if kind not in {FaultKind.UNDEFINED, FaultKind.CRASH}])
def test_each_kind_names_line_block_and_thread(kind):
    fault = UNIT.fault(kind.name.lower(), grid=(2,), initialized=True)
    assert fault.kind is kind
    assert fault.place == UNIT.line(kind.name.lower())
    assert (fault.block, fault.thread) == ((1, 0, 0), (33, 0, 0))
    assert fault.kernel == f"k_{kind.name.lower()}"
    assert str(fault).startswith(f"emulator: {fault.kernel}: {kind.value} at {fault.place}")
    works()


@pytest.mark.parametrize("kernel, words", UNDEFINED.items())
def test_what_cpp_leaves_undefined_is_named(kernel, words):
    fault = UNIT.fault(kernel, data=NUMBERS, block=(1,), out=1)
    assert (fault.kind, fault.place) == (FaultKind.UNDEFINED, UNIT.line(kernel))
    assert words in str(fault)


def test_a_fault_is_plain_data():
    fault = UNIT.fault("race", grid=(2,))
    assert isinstance(fault, QuantPlanError)
    for back in (pickle.loads(pickle.dumps(fault)), copy.copy(fault)):
        assert type(back) is KernelFault
        assert (str(back), vars(back)) == (str(fault), vars(fault))


# ---- crashes


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("schedule", SCHEDULES[:3])
def test_an_overflow_of_the_stack_names_the_thread(checked, schedule):
    fault = UNIT.fault("overflow", block=(8,), checked=checked, **schedule)
    assert fault.kind is FaultKind.CRASH
    assert re.search(rf"thread {fault.thread[0]} overflows its stack of 128 KiB", str(fault))
    works()


@pytest.mark.parametrize("kernel, address", [("null", 0), ("wild", 1 << 45)])
def test_memory_that_is_not_there(kernel, address):
    fault = UNIT.fault(kernel, block=(1,), checked=False)
    assert (fault.kind, fault.place) == (FaultKind.CRASH, UNIT.line(kernel))
    assert "an access to memory that is not there" in str(fault)
    assert UNIT.fault(kernel, block=(1,)).kind is FaultKind.OUT_OF_BOUNDS, "checked builds notice before"
    if address:
        assert f"{address:#x}" in str(fault)
    works()


def test_a_crash_names_block_and_thread():
    fault = UNIT.fault("crash", grid=(2,), checked=False)
    assert (fault.kind, fault.block, fault.thread) == (FaultKind.CRASH, (1, 0, 0), (33, 0, 0))


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="other processors divide by zero and go on")
def test_a_division_by_zero_crashes_an_unchecked_build():
    fault = UNIT.fault("division_by_zero", data=NUMBERS, block=(1,), out=1, checked=False)
    assert (fault.kind, fault.place) == (FaultKind.CRASH, UNIT.line("division_by_zero"))
    assert "an integer division by zero" in str(fault)


# ---- the process survives


def caught_signals():
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return re.findall(r"^Sig(?:Cgt|Blk|Ign):.*$", status, re.MULTILINE)


@pytest.mark.parametrize("kernel", ["sound", "null", "overflow", "race"])
def test_the_processs_signal_handling_is_as_before(kernel):
    before = caught_signals()
    interrupt = signal.getsignal(signal.SIGINT)
    for _ in range(3):
        if kernel == "sound":
            works()
        else:
            UNIT.fault(kernel, grid=(2,), checked=kernel == "race")
    assert caught_signals() == before
    assert signal.getsignal(signal.SIGINT) is interrupt


def test_faults_leave_no_memory_behind():
    def mappings():
        return len(Path("/proc/self/maps").read_text(encoding="utf-8").splitlines())

    UNIT.fault("overflow", block=(1024,))
    before = mappings()
    for checked in (True, False) * 20:
        UNIT.fault("overflow", block=(1024,), checked=checked)
    assert mappings() < before + 20


@pytest.mark.parametrize("checked", [True, False])
def test_threads_may_launch_at_the_same_time(checked):
    failures = []

    def launch(kernel):
        try:
            for _ in range(20):
                if kernel == "sound":
                    works()
                else:
                    assert UNIT.fault(kernel, checked=checked, block=(8,)).kind is not None
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=launch, args=(kernel,)) for kernel in ("sound", "null", "overflow", "sound")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


PROGRAM = f"""
import os, sys, threading
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.emulator.units import Unit
unit = Unit("faults.cu")
unit.run("sound", checked=False)
"""

FORKS = """
import warnings
warnings.simplefilter("ignore")  # newer versions warn of threads
def launch():
    while not done.is_set():
        unit.run("sound", grid=(50,), out=3200, checked=False)
done = threading.Event()
thread = threading.Thread(target=launch)
thread.start()
codes = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        good = unit.run("sound", checked=False).sum() == 2016 and unit.fault("null", checked=False).kind.name == "CRASH"
        os._exit(0 if good else 1)
    codes.append(os.waitpid(child, 0)[1])
done.set()
thread.join()
print(codes)
"""

CRASHES_OUTSIDE = """
import ctypes, faulthandler
faulthandler.enable()
unit.fault("null", checked=False)
ctypes.string_at(0)
"""


def program(text):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM + text], capture_output=True, text=True, check=False, timeout=120
    )


def test_children_of_a_fork_launch_too():
    done = program(FORKS)
    assert done.stdout.strip() == str([0] * 4), done.stderr


def test_a_crash_outside_of_kernels_is_python_s_own():
    done = program(CRASHES_OUTSIDE)
    assert done.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in done.stderr


def test_a_process_pool_hands_faults_on():
    """What `concurrent.futures` and pytest-xdist do: pickle the error in one process, raise it in another."""
    fault = UNIT.fault("misaligned", grid=(2,))
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).place)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(fault),
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout.decode().strip() == UNIT.line("misaligned")
