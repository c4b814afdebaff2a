"""PlanFamily: one op for every M of a serving loop. One plan per bucket of M, picked at each launch."""

from __future__ import annotations

from bisect import bisect_left
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic

import attrs

from quantplan.errors import InvalidProblem, Unsupported
from quantplan.operands import to_view
from quantplan.plan import A, D, Plan, plan_type, rows_of
from quantplan.record import to_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from quantplan.tensor import TensorView
    from quantplan.types import KernelSku, PlanPreference
    from quantplan.workspace import Workspace


def _op(plan: Any) -> type[Plan[Any, Any]]:  # noqa: ANN401 - whatever a caller gives
    """Take an op."""
    if isinstance(plan, type) and issubclass(plan, Plan) and plan is not Plan:
        return plan
    raise InvalidProblem(op="PlanFamily", field="plan", expected="a subclass of Plan", got=repr(plan))


def _size(op: str, field: str, value: object) -> int:
    """Take a number of rows."""
    try:
        return to_size(value)
    except InvalidProblem as error:
        error.op, error.field = op, field
        raise


def _buckets(op: str, ms: Iterable[int]) -> tuple[int, ...]:
    """Return the distinct values of M in ascending order."""
    try:
        buckets = tuple(sorted({_size(op, "ms", m) for m in ms}))
    except TypeError:
        buckets = ()
    if not buckets:
        raise InvalidProblem(op=op, field="ms", expected="at least one M", got=repr(ms))
    return buckets


@attrs.frozen(eq=False, repr=False)
class PlanFamily(Generic[D, A]):
    """Plans of one op that differ in M only. A launch of M rows uses the smallest bucket ≥ M.

    Parameters
    ----------
    buckets : tuple[int, ...]
        Largest M of each member, ascending.
    plans : tuple[Plan, ...]
        The members, in the same order.
    """

    buckets: tuple[int, ...]
    plans: tuple[Plan[D, A], ...]

    @classmethod
    def select(
        cls,
        target: object,
        desc: D,
        ms: Iterable[int],
        pref: PlanPreference | None = None,
        plan: type[Plan[D, A]] | None = None,
    ) -> PlanFamily[D, A]:
        """Select one plan per bucket.

        Parameters
        ----------
        target : str, Target or stream
            As in `Plan.select`.
        desc : descriptor
            The problem; its ``m`` is replaced by each bucket.
        ms : iterable of int
            The buckets: a launch may have any 0 ≤ M ≤ max(ms).
        pref : PlanPreference, optional
            What the caller insists on. ``require_batch_invariant`` is asked of the family as a whole.
        plan : type[Plan], optional
            The op; by default the one that the descriptor describes.

        Raises
        ------
        InvalidProblem
            No buckets, an M that the op refuses, or a ``plan`` that is no op.
        Unsupported
            A bucket that no variant runs, or members whose rows may differ where batch invariance is required.
        """
        op = plan_type(desc) if plan is None else _op(plan)
        op.check(desc)
        buckets = _buckets(op.op.value, ms)
        members = tuple(op._select(target, desc.replace(m=m), pref, flexible_m=True) for m in buckets)  # noqa: SLF001 - a family is made of plans
        family = cls(buckets, members)
        if pref and pref.require_batch_invariant and not family.batch_invariant:
            hint = "see family.plans[i].sku.precision_guarantee.reduction_id"
            raise Unsupported("the members of the family do not share a reduction", op=op.op.value, hint=hint)
        return family

    @property
    def workspace_size(self) -> int:
        """Bytes of scratch memory that serve every member."""
        return max(plan.workspace_size for plan in self.plans)

    @property
    def batch_invariant(self) -> bool:
        """Whether a row's bits depend on neither M nor other rows, whichever member computes it."""
        promises = [plan.precision_guarantee for plan in self.plans]
        alike = all(p.bit_identical_to_reference for p in promises) or len({p.reduction_id for p in promises}) == 1
        return alike and all(p.batch_invariant for p in promises)

    def plan_for(self, m: int) -> Plan[D, A]:
        """Return the member that launches ``m`` rows.

        Raises
        ------
        InvalidProblem
            ``m`` is no integer ≥ 0, or larger than every bucket.
        """
        first = self.plans[0]
        i = bisect_left(self.buckets, _size(first.op_name, "m", m))
        if i == len(self.buckets):
            raise InvalidProblem(
                op=first.op.value,
                field=first.rows_operand,
                expected=f"M ≤ {self.buckets[-1]}, the largest bucket",
                got=f"M={m}",
                hint="select the family with a larger bucket, or cut the batch",
            )
        return self.plans[i]

    def sku_for(self, m: int) -> KernelSku:
        """Return the SKU of the member that launches ``m`` rows."""
        return self.plan_for(m).sku

    def run(self, stream: object, workspace: Workspace | None, args: A) -> None:
        """Check and launch with the member for the arguments' M; see `Plan.run`."""
        rows = getattr(args, self.plans[0].rows_operand, None)
        self.plan_for(rows_of(rows, self.buckets[-1])).run(stream, workspace, args)

    def bind(self, **operands: object) -> BoundFamily[D, A]:
        """Check the operands that stay the same from step to step, once for all buckets.

        Parameters
        ----------
        **operands
            Args fields that do not depend on M, usually the weight with its scale and bias.

        Raises
        ------
        QuantPlanError
            Whatever `Plan.can_implement` would refuse; an operand whose shape depends on M.
        """
        plan = self.plans[-1]
        op = plan.op.value
        fixed = {name: to_view(op, name, obj) for name, obj in operands.items() if obj is not None}
        largest, smallest = plan.problem(self.buckets[-1]), plan.problem(0)
        stated = {operand.name: operand for operand in largest.operands}
        constant = {o.name for o in smallest.operands if not o.output and o.shape == stated[o.name].shape}
        for name in fixed:
            if name not in constant or name == plan.rows_operand:
                raise InvalidProblem(
                    op=op,
                    field=name,
                    expected=f"an operand that does not depend on M: {', '.join(sorted(constant))}",
                    got=name,
                    hint="pass it to run" if name in stated else None,
                )
        plan.check_operands([stated[name] for name in fixed], fixed)
        return BoundFamily(self, MappingProxyType(fixed))

    def __repr__(self) -> str:
        """Show the op and its buckets."""
        return f"PlanFamily({type(self.plans[0]).__name__} on {self.plans[0].target}, ms={self.buckets})"


@attrs.frozen(eq=False, repr=False)
class BoundFamily(Generic[D, A]):
    """A family with its fixed operands, such as one layer of a model. It keeps them alive."""

    family: PlanFamily[D, A]
    fixed: Mapping[str, TensorView]

    def run(self, stream: object, workspace: Workspace | None, **operands: object) -> None:
        """Check the operands of this step and launch with the member for their M.

        Parameters
        ----------
        stream, workspace
            As in `Plan.run`.
        **operands
            The remaining Args fields.
        """
        family = self.family
        first = family.plans[0]
        op, names = first.op_name, first.operand_names
        rest = {name: to_view(op, name, obj) for name, obj in operands.items() if obj is not None}
        for name in rest:
            if name in self.fixed:
                raise InvalidProblem(op=op, field=name, expected="nothing: it is bound", got="a second operand")
            if name not in names:
                raise InvalidProblem(op=op, field=name, expected=f"one of {', '.join(names)}", got=name)
        given: dict[str, Any] = dict.fromkeys(names) | dict(self.fixed) | rest
        m = rows_of(given[first.rows_operand], family.buckets[-1])
        plan = family.plan_for(m)
        problem = plan.check_given(m, given)
        plan.check_workspace(workspace)
        plan.prepare(problem, plan.args_type(**given), workspace)(plan.check_stream(stream))

    def __repr__(self) -> str:
        """Show the family and what is bound."""
        return f"BoundFamily({self.family!r}, {', '.join(self.fixed)})"
