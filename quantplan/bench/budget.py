"""Budget: minutes that are few, shared among stages; what one leaves over, the later ones get."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable


@attrs.define
class Deadline:
    """When a stage has to be over.

    Parameters
    ----------
    end : float
        The time of the clock.
    clock : callable
        Tells the time in seconds.
    """

    end: float
    clock: Callable[[], float] = time.monotonic

    @property
    def left(self) -> float:
        """Seconds that are left; none are below 0."""
        return max(0.0, self.end - self.clock())

    @property
    def over(self) -> bool:
        """Whether no time is left."""
        return self.left <= 0

    def within(self, seconds: float) -> Deadline:
        """Return the earlier one of this deadline and one in some seconds."""
        return Deadline(min(self.end, self.clock() + seconds), self.clock)


@attrs.define
class Budget:
    """Seconds for all stages together.

    Parameters
    ----------
    seconds : float
        How many.
    clock : callable
        Tells the time in seconds.
    """

    seconds: float
    clock: Callable[[], float] = time.monotonic
    start: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Begin to count."""
        self.start = self.clock()

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.start

    def stage(self, share: float, later: float) -> Deadline:
        """Return the deadline of a stage that begins now.

        Parameters
        ----------
        share : float
            Its part of the budget.
        later : float
            The parts of all stages behind it.
        """
        left = max(0.0, self.seconds - self.spent)
        return Deadline(self.clock() + left * share / (share + later), self.clock)
