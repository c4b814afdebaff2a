"""Times that can be compared: taken in turn, so that a busy spell hits every candidate alike, and summed up."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_WARM = 5_000.0
"""Microseconds that a candidate runs before it counts: caches fill and clocks rise."""
_WARM_CALLS = 20


@attrs.frozen(kw_only=True)
class Sample:
    """Repeated times of one thing, in microseconds.

    Parameters
    ----------
    median, low, high : float
        The median, and the quartiles below and above it.
    count : int
        How many there were.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample:
        """Summarise at least one time."""
        if len(values) == 1:
            return cls(median=values[0], low=values[0], high=values[0], count=1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, low=low, high=high, count=len(values))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; a nanosecond is finer than any clock here."""
        return {
            "median": round(self.median, 3),
            "low": round(self.low, 3),
            "high": round(self.high, 3),
            "n": self.count,
        }


def interleave(
    timers: Mapping[str, Callable[[], float]],
    *,
    rounds: int,
    limit_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Sample]:
    """Time candidates in turn.

    Parameters
    ----------
    timers : mapping of callables
        Each runs its candidate once and returns the microseconds that it took.
    rounds : int
        How often each is timed.
    limit_s : float
        Seconds after which no further round begins; one is always made.
    clock : callable
        Tells the time in seconds.
    """
    start = clock()
    for timer in timers.values():
        spent = 0.0
        for _ in range(_WARM_CALLS):
            spent += timer()
            if spent >= _WARM or clock() - start >= limit_s:
                break
    times: dict[str, list[float]] = {name: [] for name in timers}
    for number in range(rounds):
        if number and clock() - start >= limit_s:
            break
        for name, timer in timers.items():
            times[name].append(timer())
    return {name: Sample.of(values) for name, values in times.items()}
