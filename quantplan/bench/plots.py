"""Plots of a run, as SVG: the same run gives the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
from typing import TYPE_CHECKING, Any

from quantplan.bench.points import Roofs, measured

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from quantplan.bench.points import Measured
    from quantplan.bench.runs import Data

    Panel = Callable[[Any], None]
    """Draws into matplotlib's axes."""

_SETTINGS: Any = {
    "svg.hashsalt": "quantplan",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
_MARKERS = "osD^vP*X<>phd8H"


def roofline(data: Data) -> list[Panel]:
    """Show what each op reaches beside the roofs: matrix products by intensity, the others by how much they move.

    Roofs are what a copy and torch's products reached in the same run, and an op may reach more.
    """
    points = measured(data)
    products = [p for p in points if p.operations]
    moves = [p for p in points if not p.operations and p.bandwidth is not None]
    panels: list[Panel] = []
    if products:
        panels.append(lambda axes: _products(axes, products, Roofs.of(data)))
    if moves:
        panels.append(lambda axes: _moves(axes, moves))
    return panels


def speedups(data: Data) -> list[Panel]:
    """Show how many times as fast as each peer an op is, by M, at its first shape."""
    points = measured(data)
    first = {p.row: p.shape for p in reversed(points)}
    rows = list(dict.fromkeys(p.row for p in points if p.shape == first[p.row] and p.peers))
    return [_speedup_panel([p for p in points if (p.row, p.shape) == (row, first[row])]) for row in rows]


def digest(data: Data) -> str:
    """Digest what a plot is drawn from; the plot holds it."""
    return hashlib.sha256(json.dumps([data["points"], data["roofs"]], sort_keys=True).encode()).hexdigest()


def draw(data: Data, panels: Sequence[Panel]) -> str:
    """Draw panels of a run side by side."""
    import matplotlib as mpl  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415 - the same

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(6.0 * columns, 4.0 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
        for panel, ax in zip(panels, axes, strict=False):
            panel(ax)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        if data.get("synthetic"):
            figure.suptitle("synthetic: nobody measured this")
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Description": f"data {digest(data)}"})
    return file.getvalue()


def _products(axes: Any, points: list[Measured], roofs: Roofs) -> None:  # noqa: ANN401 - matplotlib's
    intensities = [p.operations / p.nbytes for p in points]
    low, high = min(intensities) / 2, max(intensities) * 2
    for name, rate in roofs.rates.items():
        if roofs.bandwidth is not None:
            knee = rate / roofs.bandwidth
            xs = sorted({low, min(max(knee, low), high), high})
            ys = [min(x * roofs.bandwidth, rate) / 1e12 for x in xs]
            axes.plot(xs, ys, linewidth=1, label=f"roof, torch's {name}")
    for row, marker in _by_row(points):
        mine = [p for p in points if p.row == row]
        axes.scatter(
            [p.operations / p.nbytes for p in mine], [p.rate / 1e12 for p in mine], s=12, marker=marker, label=row
        )
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="10¹² operations a second")
    axes.legend(fontsize=7)


def _moves(axes: Any, points: list[Measured]) -> None:  # noqa: ANN401 - matplotlib's
    for row, marker in _by_row(points):
        mine = [p for p in points if p.row == row]
        axes.scatter([p.nbytes / 1e6 for p in mine], [p.bandwidth or 0.0 for p in mine], s=12, marker=marker, label=row)
    axes.axhline(1.0, linewidth=1)
    axes.set(xscale="log", xlabel="MB to move", ylabel="part of the copy bandwidth", ylim=(0, None))
    axes.legend(fontsize=7)


def _speedup_panel(points: list[Measured]) -> Panel:
    def panel(axes: Any) -> None:  # noqa: ANN401 - matplotlib's
        for peer in dict.fromkeys(name for p in points for name in p.peers):
            mine = [(p.m, p.speedup(peer)) for p in points if peer in p.us]
            axes.plot([m for m, _ in mine], [times for _, times in mine], marker="o", markersize=3, label=peer)
        axes.axhline(1.0, linewidth=1, color="black")
        axes.set(xscale="log", xlabel="M", ylabel="times as fast", title=f"{points[0].row}, {points[0].shape}")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7)

    return panel


def _by_row(points: list[Measured]) -> list[tuple[str, str]]:
    rows = list(dict.fromkeys(p.row for p in points))
    return [(row, _MARKERS[number % len(_MARKERS)]) for number, row in enumerate(rows)]
