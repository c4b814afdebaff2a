"""Plan: the fixed skeleton of every op: check → select → can_implement → run → bind.

descriptor ──select──▶ Plan ──bind──▶ BoundPlan
                        │                 │
                      run(stream, workspace, args)      nothing is compiled, allocated or waited for here
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import attrs

from quantplan.devices.stream import Stream
from quantplan.devices.target import Target, TargetKind
from quantplan.errors import DeviceMismatch, InvalidProblem, MisalignedOperand, Unsupported, WorkspaceTooSmall
from quantplan.operands import Operand, check_overlap, check_presence
from quantplan.types import KernelSku, OpCategory, PlanPreference, PrecisionGuarantee, QuantizeKind
from quantplan.variant import rank
from quantplan.workspace import ALIGNMENT, Workspace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from quantplan.tensor import Layout, TensorView
    from quantplan.variant import Identity, Prepare, Start, Variant, VariantReport

D = TypeVar("D", bound=Any)
A = TypeVar("A", bound=Any)

_REMEMBERED = 1024
"""Plans that are kept, problems that each keeps, one per M, and layouts that each of those keeps: a model has few."""
_NO_PREFERENCE = PlanPreference()

_BY_DESCRIPTOR: dict[type, type[Plan[Any, Any]]] = {}


@attrs.frozen
class Problem(Generic[D]):
    """A descriptor with the M of one launch, and what its arguments must look like."""

    desc: D
    operands: tuple[Operand, ...]
    empty: bool
    fitting: set[tuple[Layout | None, ...]] = attrs.field(factory=set, init=False, eq=False, repr=False)
    """Layouts of whole sets of arguments that were checked: where the next ones of these are does not matter."""


@attrs.frozen(kw_only=True, eq=False, repr=False, slots=False)
class Plan(ABC, Generic[D, A]):
    """An op that was selected for a target: immutable, safe to share between threads, bound to one device.

    Subclasses are the ops. They state their operands, their variants and their limits, each once; everything else is
    here. Use `select` to make one.
    """

    target: Target
    descriptor: D
    preference: PlanPreference
    sku: KernelSku
    workspace_size: int
    flexible_m: bool = False
    _prepare: Prepare | None = attrs.field(default=None, alias="prepare")
    _problems: dict[int, Problem[D]] = attrs.field(factory=dict, init=False)

    op: ClassVar[QuantizeKind]
    op_name: ClassVar[str]
    category: ClassVar[OpCategory]
    descriptor_type: ClassVar[type]
    args_type: ClassVar[type]
    operand_names: ClassVar[tuple[str, ...]]
    rows_operand: ClassVar[str]
    variants: ClassVar[tuple[Variant, ...]]
    also_called: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Other names of descriptor fields, for the command line."""

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401 - forwarded as they are
        super().__init_subclass__(**kwargs)
        if "descriptor_type" in cls.__dict__:
            _BY_DESCRIPTOR[cls.descriptor_type] = cls
            cls.op_name = cls.op.value
            cls.operand_names = tuple(a.name for a in attrs.fields(cls.args_type))

    # ---- what an op states

    @classmethod
    @abstractmethod
    def operands(cls, desc: D) -> tuple[Operand, ...]:
        """Return what each argument must look like; arguments that are not named must be None."""

    @classmethod
    @abstractmethod
    def identity(cls, desc: D) -> Identity:
        """Return the descriptor's share of the SKU."""

    @classmethod
    @abstractmethod
    def catalogue(cls) -> Iterator[D]:
        """Yield a small descriptor for every SKU that the op can have."""

    @classmethod
    def limit(cls, desc: D) -> str | None:  # noqa: ARG003 - ops that have limits look at it
        """Return why no variant whatsoever can run a sound problem, or None."""
        return None

    @classmethod
    def check_preference(cls, desc: D, pref: PlanPreference) -> None:
        """Raise `InvalidProblem` for a preference that contradicts the descriptor."""

    # ---- selection

    @classmethod
    def check(cls, desc: D) -> None:
        """Raise `InvalidProblem` unless ``desc`` is a sound descriptor of this op."""
        if type(desc) is not cls.descriptor_type:  # a subclass has rules and fields that no kernel knows of
            wanted = cls.descriptor_type.__name__
            raise InvalidProblem(op=cls.op_name, field="desc", expected=wanted, got=type(desc).__name__)
        attrs.evolve(desc)  # runs the descriptor's own rules again

    @classmethod
    def why_not(cls, target: object, desc: D, pref: PlanPreference | None = None) -> tuple[VariantReport, ...]:
        """Return each variant's answer, best first. Nothing is compiled or loaded.

        Parameters
        ----------
        target : str, Target or stream
            ``"cpu"``, ``"cuda:0"``, ``"emulated:sm_90a"``, a bare architecture such as ``"sm_90a"``, or a stream.
        desc : descriptor
            The problem.
        pref : PlanPreference, optional
            What the caller insists on.
        """
        return tuple(report for _, report in cls.ranking(target, desc, pref))

    @classmethod
    def ranking(
        cls, target: object, desc: D, pref: PlanPreference | None = None
    ) -> tuple[tuple[Variant, VariantReport], ...]:
        """Return the variants with their answers, best first; see `why_not` and `variant.rank`."""
        cls.check(desc)
        where, wanted = Target.parse(target), PlanPreference() if pref is None else pref
        if not isinstance(wanted, PlanPreference):
            raise InvalidProblem(op=cls.op_name, field="pref", expected="PlanPreference", got=repr(pref))
        cls.check_preference(desc, wanted)
        return rank(cls.variants, where, desc, wanted, cls.limit(desc))

    @classmethod
    def select(cls, target: object, desc: D, pref: PlanPreference | None = None) -> Self:
        """Choose the best variant that runs the problem on the target, and load it.

        Parameters
        ----------
        target : str, Target or stream
            As in `why_not`. For a bare architecture the choice is made without loading, on any machine.
        desc : descriptor
            The problem.
        pref : PlanPreference, optional
            What the caller insists on.

        Raises
        ------
        InvalidProblem
            The descriptor is not one of this op, or the target is unknown.
        Unsupported
            No variant fits; the error carries every variant's reason.
        DriverNotFound
            A GPU of this machine is named, and there is no driver.
        """
        return cls._select(target, desc, pref, flexible_m=False)

    @classmethod
    def _select(cls, target: object, desc: D, pref: PlanPreference | None, *, flexible_m: bool) -> Self:
        where, wanted = Target.parse(target), _NO_PREFERENCE if pref is None else pref
        if type(desc) is not cls.descriptor_type or type(wanted) is not PlanPreference:
            cls.choose(where, desc, wanted)  # says what is wrong
        return cls._selected(where, desc, _signs(desc), wanted, flexible_m)

    @classmethod
    @lru_cache(maxsize=_REMEMBERED)
    def _selected(
        cls,
        where: Target,
        desc: D,
        signs: tuple[bool, ...],  # noqa: ARG003 - part of the key: −0 equals 0, and gives other bits
        wanted: PlanPreference,
        flexible_m: bool,  # noqa: FBT001 - cached by position
    ) -> Self:
        """Make a plan, or return the one that was made: plans are immutable, and layers of one shape share theirs."""
        variant = cls.choose(where, desc, wanted)
        return cls(
            target=where,
            descriptor=desc,
            preference=wanted,
            sku=variant.sku(cls.category, cls.op, cls.identity(desc), desc),
            workspace_size=variant.workspace_size(desc),
            flexible_m=flexible_m,
            prepare=None if where.kind is TargetKind.ARCH else variant.load(desc, where),
        )

    @classmethod
    def forget(cls) -> None:
        """Forget the plans that `select` remembers, of all ops: the next one is made anew, its kernels loaded again."""
        cls._selected.cache_clear()

    @classmethod
    def choose(cls, target: object, desc: D, pref: PlanPreference | None = None) -> Variant:
        """Return the best variant that runs the problem on the target, without loading it; see `select`."""
        ranking = cls.ranking(target, desc, pref)
        variant, report = ranking[0]
        if report.supported:
            return variant
        reports = tuple(report for _, report in ranking)
        raise Unsupported(f"no variant runs this on {Target.parse(target)}", op=cls.op_name, variants=reports)

    # ---- use

    @property
    def precision_guarantee(self) -> PrecisionGuarantee:
        """What the selected kernel promises about its numbers."""
        return self.sku.precision_guarantee

    def can_implement(self, args: A) -> None:
        """Check every argument's presence, element, shape, strides, alignment, device and overlap.

        Raises
        ------
        InvalidProblem, MisalignedOperand, DeviceMismatch
            The first rule that an argument breaks, with field, expected and got.
        """
        self._check_args(args)

    def run(self, stream: object, workspace: Workspace | None, args: A) -> None:
        """Check and launch. Nothing is allocated, compiled or waited for; an empty problem launches nothing.

        Parameters
        ----------
        stream : stream
            Stream of the plan's device: CuPy, torch, cuda.core, or an integer handle. None on ``cpu``.
        workspace : Workspace, optional
            At least `workspace_size` bytes; may be None when that is 0.
        args : Args of the op
            The operands.

        Raises
        ------
        QuantPlanError
            Whatever `can_implement` refuses; `WorkspaceTooSmall`; `DeviceMismatch` for a foreign stream.
        """
        self._checked(workspace, args)(self.check_stream(stream))

    def bind(self, workspace: Workspace | None, args: A) -> BoundPlan[D, A]:
        """Check once, to launch many times; the result keeps operands and workspace alive."""
        return BoundPlan(self, workspace, args, self._checked(workspace, args))

    def _checked(self, workspace: Workspace | None, args: A) -> Start:
        problem = self._check_args(args)
        self.check_workspace(workspace)
        return self.prepare(problem, args, workspace)

    def __repr__(self) -> str:
        """Show the kernel and its target."""
        return f"{type(self).__name__}({self.sku.name} on {self.target})"

    def __deepcopy__(self, memo: object = None) -> Self:
        """Return the plan itself: it is immutable, and holds code loaded on one device."""
        return self

    __copy__ = __deepcopy__

    def __reduce__(self) -> Any:  # noqa: ANN401 - object's own signature
        """Refuse: a plan holds code loaded on one device."""
        hint = f"send (target, desc, pref) and call {type(self).__name__}.select there"
        raise InvalidProblem(
            op=self.op_name, field="pickle", expected="descriptors and preferences", got="a plan", hint=hint
        )

    # ---- checks

    def problem(self, m: int) -> Problem[D]:
        """Return the problem for a launch of ``m`` rows, remembered per M."""
        found = self._problems.get(m)
        if found is None:
            own = self.descriptor.m
            if m != own and not (self.flexible_m and 0 <= m <= own):
                exact = "a plan's M is exact; PlanFamily takes any M up to its largest bucket"
                expected, hint = (f"M ≤ {own}", None) if self.flexible_m else (f"M={own}", exact)
                raise InvalidProblem(
                    op=self.op_name, field=self.rows_operand, expected=expected, got=f"M={m}", hint=hint
                )
            desc = self.descriptor if m == own else self.descriptor.replace(m=m)
            operands = self.operands(desc)
            found = Problem(desc, operands, all(o.empty for o in operands if o.output))
            if len(self._problems) < _REMEMBERED:
                self._problems[m] = found
        return found

    def _check_args(self, args: A) -> Problem[D]:
        if type(args) is not self.args_type:
            wanted = self.args_type.__name__
            raise InvalidProblem(op=self.op_name, field="args", expected=wanted, got=type(args).__name__)
        given = {name: getattr(args, name) for name in self.operand_names}
        # a single plan names the whole shape it expects; only a family learns M from the operand
        m = rows_of(given[self.rows_operand], self.descriptor.m) if self.flexible_m else self.descriptor.m
        return self.check_given(m, given)

    def check_given(self, m: int, given: dict[str, Any]) -> Problem[D]:
        """Check the arguments of a launch of ``m`` rows: all fields of the Args, in their order.

        What does not depend on their addresses is checked once per layout.
        """
        problem = self.problem(m)
        layouts = tuple([None if view is None else view.layout for view in given.values()])
        if layouts not in problem.fitting:
            check_presence(self.op_name, problem.operands, given, problem.desc)
            self.check_operands(problem.operands, given)
            if len(problem.fitting) >= _REMEMBERED:
                problem.fitting.clear()
            problem.fitting.add(layouts)
        check_overlap(self.op_name, problem.operands, given)
        return problem

    def check_operands(self, operands: Iterable[Operand], given: dict[str, TensorView]) -> None:
        """Hold operands to their statements, on the plan's device."""
        location = self.target.location
        if location is None:
            raise Unsupported(
                f"the plan was selected for the architecture {self.target}",
                op=self.op_name,
                hint="select for 'cuda:0' or a stream to run",
            )
        for operand in operands:
            operand.check(self.op_name, given[operand.name], location)

    def check_workspace(self, workspace: Workspace | None) -> None:
        """Refuse a workspace that is too small, misaligned or on another device."""
        if workspace is not None and not isinstance(workspace, Workspace):
            raise InvalidProblem(
                op=self.op_name, field="workspace", expected="a Workspace or None", got=type(workspace).__name__
            )
        if self.workspace_size == 0:
            return
        available = 0 if workspace is None else workspace.nbytes
        if workspace is None or available < self.workspace_size:
            raise WorkspaceTooSmall(op=self.op_name, needed=self.workspace_size, available=available)
        if workspace.location != self.target.location:
            raise DeviceMismatch(
                op=self.op_name, field="workspace", expected=self.target.location, got=workspace.location
            )
        if workspace.pointer % ALIGNMENT:
            raise MisalignedOperand(op=self.op_name, field="workspace", expected=f"a multiple of {ALIGNMENT} bytes")

    def check_stream(self, stream: object) -> Stream | None:
        """Return the launch's stream; None on the CPU, where only None will do."""
        if self.target.kind is not TargetKind.CUDA:
            if stream is not None:
                wanted = f"None on {self.target}"
                raise DeviceMismatch(op=self.op_name, field="stream", expected=wanted, got=repr(stream))
            return None
        found = Stream.of(stream, self.target.index)
        if found.device != self.target.index:
            raise DeviceMismatch(op=self.op_name, field="stream", expected=self.target, got=f"cuda:{found.device}")
        return found

    def prepare(self, problem: Problem[D], args: A, workspace: Workspace | None) -> Start:
        """Return the launch of a checked problem, for a checked stream; an empty problem launches nothing."""
        if problem.empty or self._prepare is None:
            return _launch_nothing
        return self._prepare(problem.desc, args, workspace)


@attrs.frozen(eq=False, repr=False)
class BoundPlan(Generic[D, A]):
    """A plan with its operands: checked once, launched many times, in CUDA graphs too."""

    plan: Plan[D, A]
    workspace: Workspace | None
    args: A
    _start: Start = attrs.field(alias="start")

    def run(self, stream: object) -> None:
        """Launch on a stream of the plan's device (None on ``cpu``)."""
        self._start(self.plan.check_stream(stream))

    def __repr__(self) -> str:
        """Show the plan."""
        return f"BoundPlan({self.plan.sku.name} on {self.plan.target})"


def _signs(desc: object) -> tuple[bool, ...]:
    """Return the signs of a descriptor's floating-point fields."""
    fields = (getattr(desc, a.name) for a in desc.__attrs_attrs__)  # type: ignore[attr-defined] # a descriptor's
    return tuple(math.copysign(1, value) < 0 for value in fields if type(value) is float)


def _launch_nothing(stream: object) -> None:
    """Start an empty problem."""


def rows_of(view: TensorView | None, default: int) -> int:
    """Return the rows of an operand, or a default where it is missing or has none: its own check will say so."""
    return view.shape[0] if view is not None and view.shape else default


def plan_type(desc: object) -> type[Plan[Any, Any]]:
    """Return the op that a descriptor describes.

    Raises
    ------
    InvalidProblem
        It is no descriptor.
    """
    found = _BY_DESCRIPTOR.get(type(desc))
    if found is None:
        known = ", ".join(sorted(kind.__name__ for kind in _BY_DESCRIPTOR))
        raise InvalidProblem(field="desc", expected=f"one of {known}", got=type(desc).__name__)
    return found
