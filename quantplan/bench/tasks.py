"""Tasks: what a worker does on its target, one at a time, each a JSON object that is answered by another.

On the emulated device nothing is timed; the same plans run, and their results are compared.
"""

from __future__ import annotations

import gc
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.bench import graphs, machine, problems
from quantplan.bench.memory import GpuMemory, HostMemory, Memory, arrays, blocks, send, workspace
from quantplan.bench.peers import PEERS, AbsentError, Bench
from quantplan.bench.points import OURS
from quantplan.bench.timing import interleave
from quantplan.devices.target import Target, TargetKind
from quantplan.ops import PLANS
from quantplan.plan import plan_type
from quantplan.types import PlanPreference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from quantplan.plan import Plan
    from quantplan.types import ErrorBound

Answer = dict[str, Any]
_ROUNDS, _POINT_S = 25, 0.6
_TOLD = 200
_LOST = "it has taken processes along before"


class Tasks:
    """A target, and what is kept from one task to the next.

    Parameters
    ----------
    target : str
        ``cuda:0`` or ``emulated:sm_90a``.
    begin : callable
        Told the name of each SKU before it runs.
    """

    def __init__(self, target: str, begin: Callable[[str], object] = str) -> None:
        self.target, self.begin = Target.parse(target), begin

    def do(self, task: dict[str, Any]) -> Answer:
        """Do a task: ``{"do": name, "key": what its answer is kept under, …}``."""
        tasks: dict[str, Callable[..., Answer]] = {
            "machine": self.machine,
            "roof": self.roof,
            "guarantee": self.guarantee,
            "exercise": self.exercise,
            "point": self.point,
            "host": self.host,
        }
        given = {name: value for name, value in task.items() if name not in ("do", "key")}
        return tasks[task["do"]](**given)

    @property
    def on_gpu(self) -> bool:
        """Whether time can be told."""
        return self.target.kind is TargetKind.CUDA

    @cached_property
    def memory(self) -> Memory:
        """The target's memory."""
        return self.gpu if self.on_gpu else HostMemory()

    @cached_property
    def gpu(self) -> GpuMemory:
        """The same, where it is a GPU's."""
        return GpuMemory(self.target)

    @cached_property
    def torch(self) -> Any:  # noqa: ANN401 - a module, or None
        """PyTorch, where it is installed and sees the GPU."""
        try:
            import torch  # noqa: PLC0415 - an extra
        except ImportError:
            return None
        return torch if torch.cuda.is_available() else None

    # ---- what is there

    def machine(self) -> Answer:
        """Describe device and software."""
        found = machine.describe(self.target, self.gpu.properties() if self.on_gpu else {})
        found["rows"] = {row.name: self._support(row) for row in problems.ROWS}
        return found

    def _support(self, row: problems.Row) -> str:
        """Return why an op has no kernel for the target, or nothing."""
        desc = row.descriptor(16, row.shapes[0])
        reports = plan_type(desc).why_not(self.target, desc)
        if any(report.supported for report in reports):
            return ""
        return "; ".join(f"{report.name}: {report.reason}" for report in reports)

    def roof(self, name: str) -> Answer:
        """Measure one roof."""
        from quantplan.bench import roofs  # noqa: PLC0415 - it needs a GPU

        if not self.on_gpu:
            return {"absent": f"no time is told on {self.target}"}
        if name == "copy":
            return roofs.copy_bandwidth(self.gpu)
        if self.torch is None:
            return {"absent": "torch is not installed, or sees no GPU"}
        if name == "copy, torch":
            return roofs.torch_copy(self.torch, self.gpu)
        return roofs.matmul_rate(name, self.torch, self.gpu)

    # ---- correctness

    def guarantee(self, op: str, numbers: list[int], variant: str, skip: Sequence[str] = ()) -> Answer:
        """Hold the SKUs that a variant has for some problems of its op's catalogue to their guarantees."""
        from quantplan.verify import verify  # noqa: PLC0415 - exact arithmetic is needed here only

        if f"{op}.{variant}" in skip:
            return {"not run": f"{op}.{variant}: {_LOST}"}
        wanted = set(numbers)
        descs = [desc for number, desc in enumerate(PLANS[op].catalogue()) if number in wanted]
        report = verify(self.target, op, descs, variant=variant, begin=self.begin)
        plans = [{"sku": p.sku, "cases": p.cases, "mismatches": p.mismatches} for p in report.plans]
        problems_found = [text for text in report.problems if not text.startswith("nothing was verified")]
        return {"plans": plans, "problems": problems_found}

    def exercise(self, row: str, shape: str, m: int, skip: Sequence[str] = ()) -> Answer:
        """Run one problem with every variant but those to skip, and compare every element with the reference's."""
        desc = _point(row, shape, m).descriptor
        kind, values = plan_type(desc), arrays(desc)
        names = self._variants(desc)
        if not names:
            return {"unsupported": self._support(problems.row(row))}
        left_out = [kernel for name in names if (kernel := f"{kind.op.value}.{name}") in skip]
        names = [name for name in names if f"{kind.op.value}.{name}" not in skip]
        expected = send(HostMemory(), desc, values)
        kind.select("cpu", desc).run(None, None, expected)
        bounds = cache(lambda bound: bound.bounds(desc, expected))  # many variants have the same
        skus, wrong = [], {}
        for name in names:
            plan = kind.select(self.target, desc, PlanPreference(variant=name))
            self.begin(plan.sku.name)
            args = send(self.memory, desc, values)
            plan.run(self.memory.stream, workspace(plan), args)
            skus.append(plan.sku.name)
            for operand in kind.operands(desc):
                if operand.output:
                    got = self.memory.fetch(getattr(args, operand.name))
                    right = HostMemory().fetch(getattr(expected, operand.name))
                    if count := differing(plan, operand.name, got, right, bounds):
                        wrong[f"{plan.sku.name} {operand.name}"] = count
        not_run = {"not run": f"{', '.join(left_out)}: {_LOST}"} if left_out else {}
        return {"skus": skus, "wrong": wrong, **not_run}

    def _variants(self, desc: Any) -> list[str]:  # noqa: ANN401 - any descriptor
        """Return the variants that run a problem, the one that is selected first."""
        return [report.name for report in plan_type(desc).why_not(self.target, desc) if report.supported]

    # ---- time

    def point(self, row: str, shape: str, m: int, *, every_variant: bool = False, skip: Sequence[str] = ()) -> Answer:
        """Time one problem beside its peers, and beside variants that were not selected, but for those to skip."""
        point = _point(row, shape, m)
        desc = point.descriptor
        names = self._variants(desc)
        if not names:
            return {"unsupported": self._support(problems.row(row))}
        op = plan_type(desc).op.value
        if f"{op}.{names[0]}" in skip:
            return {"not run": f"{op}.{names[0]}: {_LOST}"}
        plan = plan_type(desc).select(self.target, desc)
        size = problems.nbytes(desc)
        answer: Answer = {"sku": plan.sku.name, "bytes": size, "operations": problems.operations(desc)}
        if not self.on_gpu:
            plan.bind(workspace(plan), send(self.memory, desc, blocks(desc))).run(None)
            return {**answer, "absent": {"time": f"no time is told on {self.target}"}}
        count = graphs.sets(size, int(self.gpu.properties()["l2CacheSize"]), self.gpu.free() // 3)
        operands = [send(self.gpu, desc, blocks(desc)) for _ in range(count)]
        timers = {OURS: self._timer(plan, operands)}
        for name in (name for name in names[1:] if every_variant and f"{op}.{name}" not in skip):
            other = plan_type(desc).select(self.target, desc, PlanPreference(variant=name))
            timers[f"{OURS} {name}"] = self._timer(other, operands)
        beside, absent = self._peers(point, count)
        samples = interleave(timers | beside, rounds=_ROUNDS, limit_s=_POINT_S)
        timers, beside, operands = {}, {}, []
        if self.torch is not None:
            graphs.TorchGraphs(self.torch, self.gpu).release()
        gc.collect()
        return {**answer, "sets": count, "us": {k: v.to_dict() for k, v in samples.items()}, "absent": absent}

    def _timer(self, plan: Plan[Any, Any], operands: Sequence[Any]) -> Callable[[], float]:
        """Return the timer of a plan over sets of operands, which share scratch memory as on one stream they may."""
        self.begin(plan.sku.name)
        scratch = workspace(plan)
        calls = [partial(plan.bind(scratch, args).run, self.gpu.stream) for args in operands]
        return graphs.timer(self.gpu, calls, self.gpu.capture)

    def _peers(self, point: problems.Point, count: int) -> tuple[dict[str, Callable[[], float]], dict[str, str]]:
        """Return the timers of a point's peers, and why others are absent."""
        timers: dict[str, Callable[[], float]] = {}
        absent: dict[str, str] = {}
        if self.torch is None:
            return {}, dict.fromkeys(point.row.peers, "torch is not installed, or sees no GPU")
        torch = graphs.TorchGraphs(self.torch, self.gpu)
        bench = Bench(self.torch, torch.device, point.m, point.shape.n, point.shape.k, count)
        for name in point.row.peers:
            self.begin(name)
            try:
                calls = torch.prepare(PEERS[name].prepare, bench)
                timers[name] = graphs.timer(self.gpu, calls, torch.capture)
            except AbsentError as error:
                absent[name] = str(error)
            except Exception as error:  # a peer's refusal is a finding, and no end of the point
                from quantplan.bench.worker import is_sticky  # noqa: PLC0415 - which imports this module

                if is_sticky(str(error)):
                    raise RuntimeError(f"{name}: {error}") from error
                absent[name] = f"{type(error).__name__}: {error}"[:_TOLD]
        return timers, absent

    def host(self) -> Answer:
        """Time what a launch costs on the host."""
        from quantplan.bench import launches  # noqa: PLC0415 - it needs a GPU

        if not self.on_gpu:
            return {"absent": f"no time is told on {self.target}"}
        return launches.measure(self.gpu)


def _point(row: str, shape: str, m: int) -> problems.Point:
    found = problems.row(row)
    return problems.Point(found, next(s for s in (*found.shapes, found.small, found.compared) if s.label == shape), m)


def differing(
    plan: Plan[Any, Any],
    name: str,
    got: NDArray[Any],
    right: NDArray[Any],
    bounds: Callable[[ErrorBound], Mapping[str, NDArray[np.float64]]],
) -> int:
    """Count an output's elements that break the guarantee: other bits, or further away than both bounds together.

    Parameters
    ----------
    plan : Plan
        What promises.
    name : str
        The operand.
    got, right : ndarray
        What the plan wrote, and what the reference did.
    bounds : callable
        Returns what an error bound allows each operand of the problem; it is asked only where a bound is promised.
    """
    guarantee = plan.precision_guarantee
    if guarantee.bit_identical_to_reference and plan.sku.epilogue.exact:
        return int(np.count_nonzero(got.view(f"u{got.itemsize}") != right.view(f"u{right.itemsize}")))
    away = np.abs(got.astype(np.float64) - right.astype(np.float64))
    return int(np.count_nonzero(~(away <= 2 * bounds(guarantee.error_bound)[name])))
