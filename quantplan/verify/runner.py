"""Runs plans of a target through the attacks on them, and holds each to every promise of its SKU.

The seam to other devices is `placement`: a device with memory of its own needs its like, and nothing else changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from quantplan.devices.device import open_device
from quantplan.devices.target import Target, TargetKind
from quantplan.emulator.schedule import Accumulation, schedule
from quantplan.errors import DriverError, InvalidProblem, QuantPlanError, Unsupported
from quantplan.ops import PLANS
from quantplan.plan import plan_type as plan_type_of
from quantplan.types import BackendKind, KernelSku, PlanPreference, QuantizeKind, ScopeKind
from quantplan.verify.attacks import Case
from quantplan.verify.attacks_fp8 import fp8_attacks
from quantplan.verify.attacks_fused import activation_attacks, norm_attacks
from quantplan.verify.attacks_int4 import int4_attacks
from quantplan.verify.attacks_linear import linear_attacks
from quantplan.verify.attacks_quantize import dequantize_attacks, dynamic_attacks, quantize_attacks
from quantplan.verify.attacks_repack import repack_attacks, repacked
from quantplan.verify.cover import STRENGTH, covering
from quantplan.verify.fused import activation_quantize, norm_quantize, real_activation
from quantplan.verify.gemm import fp8_gemm, int4_marlin_gemm
from quantplan.verify.judge import Verdict, judge_bits, judge_errors
from quantplan.verify.linear import bits, real
from quantplan.verify.placement import Placement, placement
from quantplan.verify.quantize import dequantize, dynamic_range_quantize, quantize
from quantplan.verify.report import Coverage, PlanReport, VerifyReport
from quantplan.verify.tensors import HostTensor, Memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from fractions import Fraction

    from quantplan.kernels import KernelSpec
    from quantplan.plan import Plan
    from quantplan.variant import Variant

    Targets = Mapping[str, Sequence[Fraction | float | None]]

USEFUL_FRACTION = 0.01
"""A bound that no attack brings an error this close to says nothing."""


@attrs.frozen
class Suite:
    """How an op is attacked and judged.

    Parameters
    ----------
    attacks : callable
        Yields the cases of a descriptor.
    expected : callable, optional
        Returns the codes of each output, for guarantees of bits.
    exact : callable, optional
        Returns the real-valued results of outputs, for guarantees of a bound, and where no other is given: Fractions,
        infinities, or None for NaN. It is given what was written too: codes stand for something by their scale.
    """

    attacks: Callable[[type[Plan[Any, Any]], Any], Iterator[Case]]
    expected: Callable[[Any, Mapping[str, HostTensor]], dict[str, list[int]]] | None = None
    exact: Callable[[Any, Mapping[str, HostTensor], Mapping[str, HostTensor]], Targets] | None = None


def _of_output(exact: Callable[[Any, Mapping[str, HostTensor]], Sequence[Fraction | float | None]]) -> Any:  # noqa: ANN401 - what Suite takes
    """Make an oracle of an op's only output, which stands for itself."""
    return lambda desc, inputs, _: {"output": exact(desc, inputs)}


def _linear_bits(desc: Any, inputs: Mapping[str, HostTensor]) -> dict[str, list[int]]:  # noqa: ANN401 - two descriptors
    return {"output": bits(desc, inputs)}


SUITES: dict[QuantizeKind, Suite] = {
    QuantizeKind.QUANTIZE: Suite(quantize_attacks, quantize),
    QuantizeKind.DEQUANTIZE: Suite(dequantize_attacks, dequantize),
    QuantizeKind.DYNAMIC_RANGE_QUANTIZE: Suite(dynamic_attacks, dynamic_range_quantize),
    QuantizeKind.SMOOTHQUANT_LINEAR: Suite(linear_attacks, _linear_bits, _of_output(real)),
    QuantizeKind.QUANTIZED_LINEAR: Suite(linear_attacks, _linear_bits, _of_output(real)),
    QuantizeKind.INT4_MARLIN_GEMM: Suite(int4_attacks, exact=_of_output(int4_marlin_gemm)),
    QuantizeKind.FP8_GEMM: Suite(fp8_attacks, exact=_of_output(fp8_gemm)),
    QuantizeKind.NORM_QUANTIZE: Suite(norm_attacks, norm_quantize),
    QuantizeKind.ACTIVATION_QUANTIZE: Suite(activation_attacks, activation_quantize, real_activation),
    QuantizeKind.REPACK_MARLIN: Suite(repack_attacks, repacked),
}
"""The oracle of each op."""


EVERY = "every SKU"
GIVEN = "every SKU of the given problems"
SOME = "so that any {} parts of a SKU's name that occur together are attacked together"
"""How SKUs are chosen, in words."""


def verify(
    target: object = "cpu",
    op: str | None = None,
    descriptors: Iterable[Any] | None = None,
    *,
    strength: int | None = STRENGTH,
    variant: str | None = None,
    begin: Callable[[str], object] = str,
) -> VerifyReport:
    """Hold plans of a target to their guarantees under attacking inputs.

    Tiles, elements, scales and activations multiply: some ops have thousands of SKUs. Of those a few are attacked,
    among which whatever meets in any SKU meets again.

    Parameters
    ----------
    target : str, Target or stream, optional
        Where to run: ``"cpu"`` by default.
    op : str, optional
        Only this op, by its name in `quantplan.ops.PLANS`; all of them by default.
    descriptors : iterable of descriptors, optional
        Every SKU of these, instead of some of the ops' catalogues.
    strength : int, optional
        How many parts of a SKU's name are attacked in all their combinations; None for every SKU of the catalogues.
    variant : str, optional
        Only this variant of each op.
    begin : callable, optional
        Called with a SKU and a case before each launch: what hangs or takes the process along is the last one.

    Returns
    -------
    VerifyReport
        Per SKU the cases, the mismatches and the largest fraction of its bound; the problems, in sentences; and per op
        how many of its SKUs these are.

    Raises
    ------
    InvalidProblem
        No such op or target.
    Unsupported
        Nothing runs on the target.
    DriverNotFound
        A GPU is named, and there is no driver, or no CuPy.
    RuntimeError
        A launch left a GPU with which nothing more can be done; the error names the SKU and the case.
    """
    where = Target.parse(target)
    if op is not None and op not in PLANS:
        raise InvalidProblem(op="verify", field="op", expected=f"one of {', '.join(PLANS)}", got=repr(op))
    memory = placement(where)
    given = None if descriptors is None else list(descriptors)
    tallies: dict[str, _Tally] = {}
    problems, coverage = [], []
    for name in PLANS if op is None else [op]:
        plan_type = PLANS[name]
        suite = SUITES.get(plan_type.op)
        if suite is None:
            problems.append(f"{name}: there is no oracle for it")
            continue
        subjects = list(_subjects(plan_type, given, where, variant))
        skus = list(dict.fromkeys(subject.sku for subject in subjects))
        chosen = skus if given is not None or strength is None else [skus[place] for place in covering(skus, strength)]
        wanted = [subject for subject in subjects if subject.sku in set(chosen)]
        found = _attacked(plan_type, suite, where, memory, wanted, begin=begin)
        problems += [f"{sku}: no attack reached it" for sku in map(".".join, chosen) if sku not in found]
        tallies |= found
        if skus:
            rule = SOME.format(strength) if len(chosen) < len(skus) else EVERY if given is None else GIVEN
            coverage.append(Coverage(op=name, skus=len(skus), attacked=len(found), rule=rule))
    if not tallies:
        problems.append(f"nothing was verified: no plan of {op or 'any op'} runs on {where}")
    for tally in tallies.values():
        problems += tally.problems(where)
    plans = tuple(tally.report() for tally in tallies.values())
    return VerifyReport(target=str(where), plans=plans, problems=tuple(problems), coverage=tuple(coverage))


@attrs.frozen
class Subject:
    """A problem, a variant that runs it, and the parts of the name of the SKU that they have together."""

    desc: Any
    variant: Variant
    sku: tuple[str, ...]

    def kernels(self, cases: Iterable[Any], target: Target) -> dict[KernelSpec, None]:
        """Return the kernels of the variant for the problems of some cases, which may be others than its own."""
        usable = (desc for desc in dict.fromkeys(cases) if self.variant.why_not(desc, target) is None)
        return dict.fromkeys(kernel for desc in usable for kernel in self.variant.kernels(desc))


def sample(op: str, target: Target, strength: int, variant: str | None = None) -> list[Subject]:
    """Return what `verify` chooses of an op's catalogue: for each SKU the problem and the variant that have it."""
    found = {subject.sku: subject for subject in reversed([*_subjects(PLANS[op], None, target, variant)])}
    skus = list(reversed(found))
    return [found[skus[place]] for place in covering(skus, strength)]


def attacked(op: str, desc: Any) -> list[Any]:  # noqa: ANN401 - any descriptor
    """Return the problems that the attacks on a problem pose."""
    plan_type = PLANS[op]
    return list(dict.fromkeys(case.desc for case in SUITES[plan_type.op].attacks(plan_type, desc)))


def _subjects(
    plan_type: type[Plan[Any, Any]], descriptors: Iterable[Any] | None, target: Target, only: str | None = None
) -> Iterator[Subject]:
    """Yield whatever a target runs of an op's share of some descriptors, or of its catalogue."""
    for desc in plan_type.catalogue() if descriptors is None else descriptors:
        if plan_type_of(desc) is plan_type:
            op, parts = plan_type.op.value, plan_type.identity(desc).parts
            wanted = (variant for variant in plan_type.variants if only in (None, variant.name))
            usable = (variant for variant in wanted if variant.why_not(desc, target) is None)
            yield from (Subject(desc, variant, (op, variant.name, *parts)) for variant in usable)


def _attacked(
    plan_type: type[Plan[Any, Any]],
    suite: Suite,
    target: Target,
    memory: Placement,
    subjects: Sequence[Subject],
    *,
    begin: Callable[[str], object],
) -> dict[str, _Tally]:
    """Put subjects to the test; return what was seen of each SKU, by its name."""
    cases = {subject.desc: tuple(suite.attacks(plan_type, subject.desc)) for subject in subjects}
    if target.kind is not TargetKind.CPU:
        # all kernels together, which costs less than one by one; some attacks need others than their descriptor does
        needed = (subject.kernels((case.desc for case in cases[subject.desc]), target) for subject in subjects)
        open_device(target).load(dict.fromkeys(kernel for kernels in needed for kernel in kernels))
    tallies: dict[str, _Tally] = {}
    for subject in subjects:
        trial = _Trial(plan_type, suite, target, memory, PlanPreference(variant=subject.variant.name), begin)
        for case in cases[subject.desc]:
            trial.hold(case, tallies)
    return tallies


@attrs.define
class _Tally:
    """What has been seen of one SKU."""

    sku: KernelSku
    cases: int = 0
    mismatches: int = 0
    fraction: float | None = None
    faults: dict[str, str] = attrs.field(factory=dict)

    def add(self, where: str, verdict: Verdict) -> None:
        """Count a verdict; keep the first example of each kind of fault."""
        self.mismatches += verdict.mismatches
        if verdict.fraction is not None:
            self.fraction = max(self.fraction or 0.0, verdict.fraction)
        if verdict.mismatches:
            self.blame("breaks its guarantee", f"{where}{verdict.example}")

    def blame(self, fault: str, example: str) -> None:
        """Record a fault, once."""
        self.faults.setdefault(fault, example)

    def problems(self, target: Target) -> list[str]:
        """Return the sentences to say against the SKU."""
        name = self.sku.name
        found = [f"{name}: {fault}, e.g. {example}" for fault, example in self.faults.items()]
        if self.sku.backend is BackendKind.REFERENCE and target.kind is not TargetKind.CPU:
            found.append(f"{name}: the reference answers for {target}, where a kernel of its own is promised")
        if self.fraction is not None and self.fraction < USEFUL_FRACTION:
            found.append(
                f"{name}: the error bound is useless: no attack came closer to it than {self.fraction:.2g} of it"
            )
        return found

    def report(self) -> PlanReport:
        """Return the SKU's line of the report."""
        return PlanReport(
            op=self.sku.op.value,
            sku=self.sku.name,
            backend=self.sku.backend.value,
            cases=self.cases,
            mismatches=self.mismatches,
            worst_fraction=self.fraction,
        )


class _CrashError(Exception):
    """A plan raised what no plan should: the cause is a finding, and no end of the run."""


@attrs.frozen
class _Trial:
    """Runs cases of one op and judges what comes."""

    plan_type: type[Plan[Any, Any]]
    suite: Suite
    target: Target
    memory: Placement
    preference: PlanPreference
    begin: Callable[[str], object]

    def hold(self, case: Case, tallies: dict[str, _Tally]) -> None:
        """Put the plan of a case to the test; where the target has none, there is nothing to hold to anything."""
        try:
            plan = self.plan_type.select(self.target, case.desc, self.preference)
        except Unsupported:
            return
        tally = tallies.setdefault(plan.sku.name, _Tally(plan.sku))
        tally.cases += 1
        try:
            self._judge(plan, case, tally)
        except DriverError as error:  # another launch's fault may come up with this one
            raise RuntimeError(f"{plan.sku.name}, {case.name}: {error}") from error
        except QuantPlanError as error:
            tally.blame("refuses a sound problem", f"{case.name}: {error}")
        except _CrashError as error:
            tally.blame("crashes", f"{case.name}: {error.__cause__!r}")

    def _judge(self, plan: Plan[Any, Any], case: Case, tally: _Tally) -> None:
        guarantee = plan.precision_guarantee
        args, outputs = self._run(plan, case, tally)
        for name, verdict in self._verdicts(plan, case, args, outputs):
            tally.add(f"{case.name}: {name}", verdict)
        if guarantee.deterministic or guarantee.bit_stable_on_same_hardware:
            _, again = self._run(plan, case, tally)
            if any(outputs[name].load() != again[name].load() for name in outputs):
                tally.blame("gives other bits when it runs again", case.name)
        if guarantee.batch_invariant and case.desc.m > 1:
            self._judge_row(plan, case, outputs, tally)

    def _run(self, plan: Plan[Any, Any], case: Case, tally: _Tally) -> tuple[Any, dict[str, Memory]]:
        """Run a case in fresh memory, and look for writes where there should be none."""
        memories, outputs = {}, {}
        for operand in plan.operands(case.desc):
            if operand.output:
                memory = Memory.allocate(operand.element, operand.shape, operand.alignment)
                memories[operand.name] = outputs[operand.name] = memory
            else:
                memories[operand.name] = case.inputs[operand.name].memory(operand.alignment)
        self.begin(f"{plan.sku.name}, {case.name}")
        operands = {name: self.memory.send(memory) for name, memory in memories.items()}
        try:
            with schedule(accumulation=Accumulation.TRUNCATED):  # where it is emulated: what bounds allow for
                plan.run(self.memory.stream, self.memory.workspace(plan), plan.args_type(**operands))
        except QuantPlanError:
            raise
        except Exception as error:
            raise _CrashError from error
        try:
            for name, memory in memories.items():
                self.memory.fetch(memory, operands[name])
        except (
            RuntimeError
        ) as error:  # a GPU tells only now of a launch that went wrong, and from now on of nothing else
            raise RuntimeError(f"{plan.sku.name}, {case.name}: {error}") from error
        for name, memory in memories.items():
            for fault in memory.faults():
                tally.blame(fault, f"{case.name}: {name}")
            if name not in outputs and memory.load() != case.inputs[name].codes:
                tally.blame("writes an operand that it should only read", f"{case.name}: {name}")
        return plan.args_type(**{name: memory.operand for name, memory in memories.items()}), outputs

    def _verdicts(
        self,
        plan: Plan[Any, Any],
        case: Case,
        args: Any,  # noqa: ANN401 - each op has its own
        outputs: Mapping[str, Memory],
    ) -> Iterator[tuple[str, Verdict]]:
        """Judge bits where bits are promised and the contract determines them, else errors by the bound."""
        guarantee, exact, expected = plan.precision_guarantee, self.suite.exact, self.suite.expected
        by_bits = guarantee.bit_identical_to_reference and plan.sku.epilogue.exact
        if exact is not None and (expected is None or not by_bits):
            written = {
                name: HostTensor(memory.element, memory.shape, memory.load()) for name, memory in outputs.items()
            }
            targets, bounds = exact(case.desc, case.inputs, written), guarantee.error_bound.bounds(case.desc, args)
            for name, got in written.items():
                bound: Sequence[float] = bounds[name].reshape(-1).tolist()
                yield name, judge_errors(got.element, got.shape, targets[name], bound, got.codes)
        elif expected is not None:
            codes = expected(case.desc, case.inputs)
            for name, memory in outputs.items():
                yield name, judge_bits(memory.element, memory.shape, codes[name], memory.load())

    def _judge_row(self, plan: Plan[Any, Any], case: Case, outputs: Mapping[str, Memory], tally: _Tally) -> None:
        """Run one row of a case alone: a batch-invariant plan gives it the same bits."""
        row = tally.cases % case.desc.m  # every row has its turn
        desc = case.desc.replace(m=1)
        single = self.plan_type.select(self.target, desc, self.preference)
        if single.sku.name != plan.sku.name:
            return  # the promise is made within one SKU
        shapes = {operand.name: operand.shape for operand in single.operands(desc)}
        inputs = {name: _row_of(case, name, tensor, shapes[name], row) for name, tensor in case.inputs.items()}
        alone = Case(f"{case.name}, row {row} alone", desc, inputs)
        _, lone = self._run(single, alone, tally)
        for name, memory in lone.items():
            whole = HostTensor(memory.element, outputs[name].shape, outputs[name].load())
            if memory.load() != _row_of(case, name, whole, memory.shape, row).codes:
                tally.blame("gives a row other bits when it runs alone", f"{alone.name}: {name}")


def _row_of(case: Case, name: str, tensor: HostTensor, shape: tuple[int, ...], row: int) -> HostTensor:
    """Return the part of an operand that belongs to one row, given the shape that it has there."""
    if tensor.shape == shape:
        return tensor  # shared by all rows
    scope, shared = getattr(case.desc, "scope", None), getattr(case.desc, "rows_per_condition", None)
    if shared is not None and name in ("residual_gate", "modulation_scale", "modulation_shift"):
        row //= shared
    if scope is not None and scope.kind is ScopeKind.GROUP and scope.axis == 0 and name in ("scale", "zero_point"):
        row //= scope.group_size
    return tensor.rows(row, row + 1)
