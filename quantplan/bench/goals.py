"""Goals: what the kernels are meant to reach on an H200, as data, and whether a run shows that they do.

A goal holds where it holds at every measured point that it speaks of.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs

from quantplan.bench.launches import DRIVER
from quantplan.bench.points import measured
from quantplan.bench.problems import WIDTHS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from quantplan.bench.points import Measured
    from quantplan.bench.runs import Data


@attrs.frozen
class Measure:
    """What a goal is about.

    Parameters
    ----------
    unit : str
        How a value is printed.
    value : callable
        Returns it for a point, given all points; None where something to compare with is missing.
    less : bool
        Whether less is better.
    """

    unit: str
    value: Callable[[Measured, Sequence[Measured]], float | None]
    less: bool = False


BANDWIDTH = Measure("{:.0%} of the copy bandwidth", lambda point, _: point.bandwidth)
RATE = Measure("{:.0f} T/s", lambda point, _: point.rate / 1e12)
TIME = Measure("{:.1f} µs", lambda point, _: point.ours, less=True)


def against(peer: str) -> Measure:
    """Return the speed-up over a peer."""
    return Measure(f"{{:.2f}} × {peer}", lambda point, _: point.speedup(peer))


def against_row(name: str) -> Measure:
    """Return the time beside that of another op of ours at the same problem."""

    def value(point: Measured, points: Sequence[Measured]) -> float | None:
        others = (p.ours for p in points if (p.row, p.shape, p.m) == (name, point.shape, point.m))
        other = next(others, None)
        return None if other is None else point.ours / other

    return Measure(f"{{:.2f}} × the time of {name}", value, less=True)


@attrs.frozen
class Goal:
    """One goal.

    Parameters
    ----------
    op : str
        What it is about, in words.
    rows : tuple[str, ...]
        The lines of `problems.ROWS` that it speaks of.
    measure : Measure
        What is measured.
    bound : float
        The least, or the most, that it shall be.
    low, high : float
        The numbers of rows that it speaks of.
    low_bytes, high_bytes : float
        How many bytes are to be moved at least and at most.
    shapes : tuple[str, ...]
        The shapes that it speaks of; all where none is named.
    """

    op: str
    rows: tuple[str, ...]
    measure: Measure
    bound: float
    low: float = 0
    high: float = math.inf
    low_bytes: float = 0
    high_bytes: float = math.inf
    shapes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What shall be reached, in words."""
        return f"{'≤' if self.measure.less else '≥'} {self.measure.unit.format(self.bound)}"

    def speaks_of(self, point: Measured) -> bool:
        """Whether a point counts."""
        sized = self.low_bytes <= point.nbytes <= self.high_bytes
        shaped = not self.shapes or point.shape in self.shapes
        return point.row in self.rows and self.low <= point.m <= self.high and sized and shaped


@attrs.frozen
class Verdict:
    """A goal, and what a run says of it.

    Parameters
    ----------
    goal, text : str
        The op and what it shall reach, in words.
    worst : str
        The worst that was measured.
    met : bool, optional
        None where nothing was measured.
    points : int
        How many points it rests on.
    """

    goal: str
    text: str
    worst: str
    met: bool | None
    points: int


_ROWWISE = ("quantize s8 token", "quantize fp8 token", "quantize fp8 group", "quantize mxfp8")
_NARROW = tuple(shape.label for shape in WIDTHS if shape.k <= 8192)  # noqa: PLR2004 - as the goals' names say
_INT8 = ("smoothquant_linear int8", "quantized_linear int8")
_W4, _FP8 = ("int4_marlin_gemm",), ("fp8_gemm tensor", "fp8_gemm token_channel", "fp8_gemm block")
_F16, _BF16 = against("torch f16"), against("torch bf16")

GOALS = (
    Goal("quantize by token or group, from 64 MB on", _ROWWISE, BANDWIDTH, 0.92, low_bytes=64e6),
    Goal(
        "quantize by tensor, up to 32 MB, against two passes",
        ("quantize fp8 tensor",),
        against("vLLM fp8 quantize, tensor"),
        1.5,
        high_bytes=32e6,
    ),
    Goal("quantize by token or group, K ≤ 8192, M ≤ 64", _ROWWISE, TIME, 2.5, high=64, shapes=_NARROW),
    Goal(
        "quantize by tensor, in one launch, K ≤ 8192, M ≤ 64",
        ("quantize fp8 tensor",),
        TIME,
        2.5,
        high=64,
        shapes=_NARROW,
    ),
    Goal("int8, M ≤ 32", _INT8, BANDWIDTH, 0.75, high=32),
    Goal("int8, M ≤ 32", _INT8, _BF16, 1.7, high=32),
    Goal("int8, M ≥ 1024", _INT8, RATE, 1400, low=1024),
    Goal("int8, M ≥ 1024", _INT8, _BF16, 1.75, low=1024),
    Goal("int8, M ≥ 1024", _INT8, against("torch._int_mm, scaled"), 1.2, low=1024),
    Goal("W4A16, M ≤ 16", _W4, _F16, 3.0, high=16),
    Goal("W4A16, M ≤ 16", _W4, BANDWIDTH, 0.70, high=16),
    Goal("W4A16, M = 32", _W4, _F16, 2.7, low=32, high=32),
    Goal("W4A16, M = 64", _W4, _F16, 2.2, low=64, high=64),
    Goal("W4A16, M = 128", _W4, _F16, 1.6, low=128, high=128),
    Goal("W4A16, M = 512", _W4, _F16, 1.0, low=512, high=512),
    Goal("W4A16, M ≥ 2048", _W4, _F16, 1.05, low=2048),
    Goal("W4A16 in act-order", ("int4_marlin_gemm act-order",), against_row("int4_marlin_gemm"), 1.05),
    Goal("FP8, M ≤ 64", _FP8, BANDWIDTH, 0.75, high=64),
    Goal("FP8 by block, M ≤ 64", ("fp8_gemm block",), against("DeepGEMM"), 1.0, high=64),
    Goal("FP8 by tensor, M ≥ 2048", ("fp8_gemm tensor",), RATE, 1550, low=2048),
    Goal("FP8 by block, M ≥ 2048", ("fp8_gemm block",), RATE, 1500, low=2048),
    Goal("FP8 by tensor, M ≥ 2048", ("fp8_gemm tensor",), against("torch._scaled_mm"), 1.0, low=2048),
    Goal("FP8, M ≥ 2048", _FP8, _BF16, 1.8, low=2048),
)
HOST = {"bound run": 3.0, "run": 8.0}
"""Microseconds that a launch may take the host beyond the driver's own call: one that is bound, and one in full."""
COMPILE_S = 1.0


def verdicts(data: Data) -> list[Verdict]:
    """Return what a run says of each goal."""
    points = measured(data)
    return [*(_judge(goal, points) for goal in GOALS), *_host(data)]


def _judge(goal: Goal, points: Sequence[Measured]) -> Verdict:
    values = [goal.measure.value(point, points) for point in points if goal.speaks_of(point)]
    known = [value for value in values if value is not None]
    if not known:
        return Verdict(goal.op, goal.text, "", None, 0)
    worst = max(known) if goal.measure.less else min(known)
    met = worst <= goal.bound if goal.measure.less else worst >= goal.bound
    return Verdict(goal.op, goal.text, goal.measure.unit.format(worst), met, len(known))


def _host(data: Data) -> list[Verdict]:
    answer = data["host"].get("launch", {})
    us = {name: sample["median"] for name, sample in answer.get("us", {}).items()}
    found = []
    for name, most in HOST.items():
        took = us[name] - us[DRIVER] if name in us and DRIVER in us else None
        found.append(_at_most(f"host, {name}, beyond the driver's call", took, most, "{:.1f} µs"))
    return [*found, _at_most("host, compiling a kernel", answer.get("compile_s"), COMPILE_S, "{:.2f} s")]


def _at_most(name: str, value: float | None, most: float, unit: str) -> Verdict:
    if value is None:
        return Verdict(name, f"≤ {unit.format(most)}", "", None, 0)
    return Verdict(name, f"≤ {unit.format(most)}", unit.format(value), value <= most, 1)
