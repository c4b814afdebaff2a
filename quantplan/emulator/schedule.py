"""Schedule: in which order an emulated launch's threads run, when its copies land, and whether it is checked."""

from __future__ import annotations

import enum
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import attrs

from quantplan.record import Record, field, to_flag, to_size

if TYPE_CHECKING:
    from collections.abc import Iterator


class Order(enum.Enum):
    """Order in which blocks, and threads between two barriers, take their turns."""

    ASCENDING = "ascending"
    DESCENDING = "descending"
    RANDOM = "random"


class Completion(enum.Enum):
    """When an asynchronous copy lands: as late as its wait allows, as soon as it is issued, or at random."""

    LATE = "late"
    EARLY = "early"
    RANDOM = "random"


class Accumulation(enum.Enum):
    """How matrix instructions add products of floats: exactly with one rounding, or truncated as tensor cores do."""

    EXACT = "exact"
    TRUNCATED = "truncated"


@attrs.frozen(kw_only=True, repr=False)
class Schedule(Record):
    """One of the many executions that CUDA allows; a correct kernel gives the same bits in all of them.

    Parameters
    ----------
    order : Order
        Order of threads and blocks.
    completion : Completion
        When asynchronous copies land.
    accumulation : Accumulation
        How matrix instructions round.
    seed : int
        Of the random choices; the same seed gives the same execution.
    checked : bool
        Whether every load and store is checked: races, uninitialised and out-of-bounds accesses, misalignment. Costs
        about ten times the time.
    """

    order: Order = field(Order, Order.ASCENDING)
    completion: Completion = field(Completion, Completion.LATE)
    accumulation: Accumulation = field(Accumulation, Accumulation.EXACT)
    seed: int = field(to_size, 0)
    checked: bool = field(to_flag, default=True)


_current: ContextVar[Schedule] = ContextVar("quantplan-schedule", default=Schedule())  # noqa: B039 - it is frozen


def current() -> Schedule:
    """Return the schedule that launches of this context follow."""
    return _current.get()


@contextmanager
def schedule(chosen: Schedule | None = None, **fields: object) -> Iterator[Schedule]:
    """Run emulated launches under another schedule.

    Parameters
    ----------
    chosen : Schedule, optional
        By default the current one.
    **fields
        Fields of it to change, e.g. ``order="random", seed=3``.
    """
    wanted = (chosen or current()).replace(**fields)
    token = _current.set(wanted)
    try:
        yield wanted
    finally:
        _current.reset(token)
