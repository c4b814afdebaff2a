"""Streams and graphs on a GPU: launches are ordered, wait for nothing, are captured, and always give the same bits.

Operands are made with copies and memset only, which CuPy needs no compiler for.
"""

import contextlib
import threading
import time

import attrs
import numpy as np
import pytest

import quantplan as qp
from quantplan.devices import gpu
from tests.gpu.bench import GpuBench

SPIN = """
struct P { long long* out; long long cycles; };
__device__ void body(const P& p) {
  const long long start = clock64();
  while (clock64() - start < p.cycles) {}
}
"""
RUNS = 100
CYCLES = 600_000_000  # about a third of a second
DESC = qp.DynamicRangeQuantizeDescriptor(m=300, k=1000, scope="tensor", input_element="f16")


@pytest.fixture
def delay(target, cupy):
    """Return a function that keeps a stream busy."""
    kernel = GpuBench(target).kernel(SPIN, 1)
    value = np.frombuffer(np.array([0, CYCLES], np.int64).tobytes(), np.dtype([("params", "V16")])).copy()
    return lambda stream: kernel((1,), (1,), (value,), shared_mem=0, stream=stream)


class Problem:
    """One plan that takes several launches and scratch memory, its operands, and what the reference makes of them."""

    def __init__(self, cupy, target, seed=0):
        self.cupy = cupy
        self.x = np.random.default_rng(seed).standard_normal((DESC.m, DESC.k)).astype(np.float16)
        self.plan = qp.DynamicRangeQuantizePlan.select(target, DESC)
        self.workspace = qp.Workspace.allocate(self.plan.workspace_size, target)
        self.operands = {
            "x": cupy.asarray(self.x),
            "q": cupy.zeros((DESC.m, DESC.k), cupy.int8),
            "scale": cupy.zeros(1, cupy.float32),
        }
        self.bound = self.plan.bind(self.workspace, qp.DynamicRangeQuantizeArgs(**self.operands))
        cupy.cuda.Device().synchronize()

    def expected(self, x=None):
        q, scale = np.zeros((DESC.m, DESC.k), np.int8), np.zeros(1, np.float32)
        args = qp.DynamicRangeQuantizeArgs(x=self.x if x is None else x, q=q, scale=scale)
        qp.DynamicRangeQuantizePlan.select("cpu", DESC).run(None, None, args)
        return q, scale

    def check(self, stream, x=None):
        q, scale = self.expected(x)
        np.testing.assert_array_equal(self.operands["q"].get(stream=stream), q)
        np.testing.assert_array_equal(self.operands["scale"].get(stream=stream), scale)


@pytest.fixture
def problem(cupy, target):
    return Problem(cupy, target)


def test_launches_are_ordered_on_their_stream_and_wait_for_nothing(problem, stream, delay):
    """On another stream than the caller's they would read x too early."""
    x = 3 * problem.x
    new = problem.cupy.asarray(x)
    problem.bound.run(stream)  # nothing is made ready for the first time below
    problem.cupy.cuda.Device().synchronize()
    delay(stream)
    problem.operands["x"].data.copy_from_device_async(new.data, new.nbytes, stream)
    started = time.perf_counter()
    problem.bound.run(stream)
    took = time.perf_counter() - started
    assert not stream.done, "the launch has waited for the stream, or the delay is too short"
    assert took < 0.05
    problem.check(stream, x)


def test_other_streams_do_not_wait(problem, cupy, stream, delay):
    busy = cupy.cuda.Stream(non_blocking=True)
    delay(busy)
    problem.bound.run(stream)
    stream.synchronize()
    assert not busy.done, "the delay is too short"
    problem.check(stream)
    busy.synchronize()


@pytest.mark.parametrize("kind", ["cupy", "handle", "ours", "default"])
def test_streams_by_any_name(problem, stream, target, kind):
    given = {"cupy": stream, "handle": stream.ptr, "ours": qp.Stream(stream.ptr, target.index), "default": 0}[kind]
    problem.bound.run(given)
    problem.cupy.cuda.Device().synchronize()
    problem.check(stream)


# ---- graphs


def test_a_bound_plan_is_captured_and_replayed(problem, stream):
    stream.begin_capture()
    problem.bound.run(stream)
    problem.bound.run(stream)
    graph = stream.end_capture()
    assert not problem.operands["q"].get(stream=stream).any(), "capturing runs nothing"
    graph.launch(stream)
    problem.check(stream)
    for factor in (2, 5):
        x = (factor * problem.x).astype(np.float16)
        problem.operands["x"].set(x, stream=stream)
        graph.launch(stream)
        problem.check(stream, x)


def test_plans_that_are_loaded_can_be_run_in_full_while_a_graph_is_captured(problem, stream):
    """`run` checks and launches: it allocates nothing and loads nothing."""
    args = qp.DynamicRangeQuantizeArgs(**problem.operands)
    stream.begin_capture(problem.cupy.cuda.runtime.streamCaptureModeGlobal)
    problem.plan.run(stream, problem.workspace, args)
    stream.end_capture().launch(stream)
    problem.check(stream)


def test_loading_kernels_while_a_graph_is_captured_is_refused_or_harmless(cupy, target, stream, problem):
    """Drivers differ: 580 loads them, others refuse, which spoils the capture."""
    device = gpu.device(target.index, target.arch)
    (known, *_) = qp.DynamicRangeQuantizePlan.choose(target, DESC).kernels(DESC)
    unknown = attrs.evolve(known, threads=32)  # no plan has it, so that no other test has loaded it
    stream.begin_capture(cupy.cuda.runtime.streamCaptureModeGlobal)
    refusal = None
    try:
        device.load([unknown])
    except qp.CaptureError as error:
        refusal = error
    if refusal:
        assert "before the capture" in refusal.hint
        with contextlib.suppress(cupy.cuda.runtime.CUDARuntimeError):
            stream.end_capture()
    else:
        problem.bound.run(stream)
        stream.end_capture().launch(stream)
        problem.check(stream)
    assert device.load([unknown])


def test_workspaces_are_not_allocated_while_a_graph_is_captured(cupy, target, stream):
    stream.begin_capture(cupy.cuda.runtime.streamCaptureModeGlobal)
    try:
        with pytest.raises(qp.CaptureError):
            qp.Workspace.allocate(1 << 20, target)
    finally:
        with contextlib.suppress(cupy.cuda.runtime.CUDARuntimeError):
            stream.end_capture()


# ---- determinism


def test_a_hundred_runs_give_the_same_bits(problem, stream):
    q, scale = problem.expected()
    for _ in range(RUNS):
        for name in ("q", "scale"):
            problem.operands[name].data.memset_async(0, problem.operands[name].nbytes, stream)
        problem.bound.run(stream)
        np.testing.assert_array_equal(problem.operands["scale"].get(stream=stream), scale)
        np.testing.assert_array_equal(problem.operands["q"].get(stream=stream), q)


def test_concurrent_streams_and_threads_share_a_plan(cupy, target):
    """Each has a workspace of its own; the plan is one."""
    problems = [Problem(cupy, target, seed) for seed in range(4)]
    assert all(problem.plan is problems[0].plan for problem in problems)
    failures = []

    def work(problem):
        with cupy.cuda.Device(target.index):
            stream = cupy.cuda.Stream(non_blocking=True)
            try:
                for _ in range(RUNS):
                    problem.bound.run(stream)
                problem.check(stream)
            except Exception as error:  # noqa: BLE001 - told by the main thread
                failures.append(error)

    threads = [threading.Thread(target=work, args=(problem,)) for problem in problems]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
