"""What GPU days found, as sections of a page: what ran, how fast it is, and which goals are met."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import TYPE_CHECKING

from quantplan.bench import findings, goals, plots, runs
from quantplan.bench.page import Figure, Section, Table, table
from quantplan.bench.points import Roofs, measured
from quantplan.bench.problems import FEW, ROWS
from quantplan.bench.validation import SAYS, validations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from quantplan.bench.goals import Verdict
    from quantplan.bench.page import Block
    from quantplan.bench.points import Measured
    from quantplan.bench.runs import Data

NOTHING_YET = (
    "**No speed has been measured on a GPU yet**, and no kernel has run on one. What is known without one stands "
    "further down: how the kernels use a GPU, as the compiler and the disassembler print it, and how many bytes they "
    "move, as their launches state it. Whether a kernel reaches the memory's bandwidth, only a measurement can tell."
)
HOW = "`python -m quantplan.bench.gpu_day --out docs/performance/results` on a machine with a GPU changes that."


# ---- sections


def sections(results: Sequence[Data]) -> list[Section]:
    """Return what a page says of some runs, oldest first; the newest of each GPU has its figures shown."""
    newest = {data["machine"]["device"]["name"]: data for data in results}
    if not newest:
        return [Section("", (NOTHING_YET, HOW)), _validated(results)]
    opening = ", ".join(f"{name} ({data['date']})" for name, data in newest.items())
    return [
        Section("", (f"Measured on {opening}.",)),
        _validated(results),
        *(section for data in newest.values() for section in _figures(data)),
    ]


def smoke(data: Data) -> Section:
    """Return what is to be said of a run whose figures are none."""
    return Section(
        f"{data['machine']['device']['name']}: no measurement, only whether everything runs", tuple(_run(data))
    )


def _validated(results: Sequence[Data]) -> Section:
    rows = tuple((f"`{v.kernel}`", f"`{v.source}`", v.status, v.detail) for v in validations(results))
    table = Table(("Kernel", "Sources", "Validated", "What ran"), rows)
    return Section("Validated on silicon", (SAYS, table))


def _figures(data: Data) -> Iterator[Section]:
    name, points = data["machine"]["device"]["name"], measured(data)
    marked = " (synthetic: nobody measured this)" if data.get("synthetic") else ""
    yield Section(f"{name}: the run{marked}", tuple(_run(data)))
    if points:
        yield Section(f"{name}: how near the roofs", (*_floor(data, points), *_plots(data)))
        yield Section(f"{name}: beside the peers", tuple(_beside(data, points)))
    yield Section(f"{name}: goals", (_goals(goals.verdicts(data)),))


def _run(data: Data) -> Iterator[Block]:
    device = {name: value for name, value in data["machine"]["device"].items() if name != "name"}
    yield f"{data['date']}, quantplan {data['quantplan']}. " + ", ".join(f"{k} {v}" for k, v in device.items()) + "."
    warm = data["machine"].get("clocks after benchmarks", {})
    if warm:
        yield "After the benchmarks: " + ", ".join(f"{k} {v}" for k, v in warm.items() if k.startswith("clocks")) + "."
    roofs = (
        (name, f"{roof['value'] / 1e12:.2f} · 10¹² {roof['unit']}", roof["means"])
        for name, roof in data["roofs"].items()
        if "value" in roof
    )
    yield Table(("Roof", "Measured", "With"), tuple(roofs))
    yield Table(
        ("Stage", "Came to its end", "Seconds", "Found"),
        tuple(
            (name, "yes" if s["status"] == "done" else s["status"], f"{s['spent_s']:.0f}", findings.summary(data, name))
            for name, s in data["stages"].items()
        ),
    )
    yield from _tests(data["tests"])
    failed = findings.failures(data)
    if failed:
        yield "**What failed:**"
        yield "\n".join(f"- {line}" for line in failed)


def _tests(found: Data) -> Iterator[Block]:
    """Sum up the log of `tests/gpu`; results of earlier versions have less of it."""
    if "files" not in found:
        return
    columns = ("passed", "failed", "skipped", "not run")
    files = {name: [counts.get(column, 0) for column in columns] for name, counts in found["files"].items()}
    seconds = {name: counts.get("s", 0) for name, counts in found["files"].items()}
    whole = [sum(column) for column in zip(*files.values(), strict=True)]
    rows = [(f"`{name}`", *map(str, counts), f"{seconds[name]:.0f}") for name, counts in files.items()]
    rows.append(("all", *map(str, whole), f"{sum(seconds.values()):.0f}"))
    yield Table(("Tests", "Passed", "Failed", "Skipped", "Not run", "Seconds"), tuple(rows))
    for title, reasons in (("Skipped", found["skipped"]), ("Not run", found["not run"])):
        if reasons:
            yield f"{title}:"
            yield "\n".join(f"- {count} × {' '.join(reason.split())}" for reason, count in reasons.items())
    properties = [(name, value) for test in found["properties"].values() for name, value in test.items()]
    if properties:
        yield Table(("What tests recorded", ""), tuple(properties))


def _floor(data: Data, points: Sequence[Measured]) -> Iterator[Block]:
    yield (
        "Where a copy of a problem's bytes, each operand once, takes longer than its operations at the rate that "
        "torch's product reaches here, its part of the copy's bandwidth is told. Where it does not, the operations a "
        "second are, and no part of a roof: a kernel may be faster than torch's. Times are medians in CUDA graphs, "
        "over operands that rotate beyond the L2 cache; ± is half the distance of the quartiles."
    )
    rows = []
    for point in points:
        if point.shape == _first_shape(points, point.row):
            moved = f"{point.nbytes / point.ours / 1e6:.2f}"
            time = f"{point.ours:.1f} µs ± {point.spread / 2:.0%}"
            rows.append((point.row, point.shape, str(point.m), time, moved, _rate(point), _fraction(point)))
    yield Table(("Op", "Shape", "M", "Time", "TB/s", "T op/s", "Of the copy's bandwidth"), tuple(rows))
    known = data["machine"].get("rows", {})
    missing = {name: reason for name, reason in known.items() if reason}
    missing |= {row.name: "quantplan had no such op" for row in ROWS if known and row.name not in known}
    if missing:
        yield "When this ran there was no kernel for:"
        yield "\n".join(f"- {name}: {reason}" for name, reason in missing.items())


def _rate(point: Measured) -> str:
    return f"{point.rate / 1e12:.0f}" if point.operations else ""


def _fraction(point: Measured) -> str:
    return "" if point.fraction is None else f"{point.fraction:.0%}"


def _plots(data: Data) -> Iterator[Block]:
    if importlib.util.find_spec("matplotlib") is None:
        yield "The plots need matplotlib: `pip install 'quantplan[demo]'`, and render the page again."
        return
    name = data["machine"]["device"]["name"]
    for stem, text, panels in (
        ("roofline", f"What each op reaches of the roofs of {name}", plots.roofline(data)),
        ("speedups", f"How many times as fast as each peer, by M, on {name}", plots.speedups(data)),
    ):
        if panels:
            yield Figure(f"{stem}-{runs.slug(name)}", text, partial(plots.draw, data, panels))


def _beside(data: Data, points: Sequence[Measured]) -> Iterator[Block]:
    yield "How many times as fast as each peer, in the same run:"
    yield from _ratios(points, lambda point: point.peers)
    others = list(_ratios(points, lambda point: point.others))
    if others:
        yield "And the variant that is selected beside the others that run the problem:"
        yield from others
    absent = {(name, why) for point in data["points"].values() for name, why in point.get("absent", {}).items()}
    if absent:
        yield "Absent:"
        yield "\n".join(f"- {name}: {why}" for name, why in sorted(absent))


def _ratios(points: Sequence[Measured], names: Callable[[Measured], Sequence[str]]) -> Iterator[Table]:
    """Yield a table for each op that was timed beside something: all M of its first shape, and few of the others."""
    for row in dict.fromkeys(point.row for point in points):
        shape = _first_shape(points, row)
        shown = (p for p in points if p.row == row and (p.shape == shape or p.m in FEW))
        mine = [point for point in shown if names(point)]
        beside = list(dict.fromkeys(name for point in mine for name in names(point)))
        rows = (
            (f"{p.shape}, M = {p.m}", *("" if (s := p.speedup(name)) is None else f"{s:.2f}" for name in beside))
            for p in mine
        )
        if beside:
            yield Table((row, *beside), tuple(rows))


def _goals(verdicts: Sequence[Verdict]) -> Table:
    names = {True: "met", False: "missed", None: "not measured"}
    rows = tuple((v.goal, v.text, v.worst, str(v.points or ""), names[v.met]) for v in verdicts)
    return Table(("Goal (set for an H200)", "To reach", "Worst measured", "Points", ""), rows)


def _first_shape(points: Sequence[Measured], row: str) -> str:
    return next(point.shape for point in points if point.row == row)


# ---- the README's table

_PART_OF_THE_WORK = {"torch._int_mm"}
"""Peers that leave out what the op does besides: their product has no scales."""


def summary(results: Sequence[Data]) -> str:
    """Return the README's few lines on GPUs: the newest run's ops at few M, or that there is none."""
    if not results:
        return "No GPU has run quantplan yet: there are no figures."
    data = results[-1]
    found, most = measured(data), FEW[:2]  # of ops that only move bytes, a decode batch and a prefill say enough
    wanted = [p for p in found if p.m in ((*FEW, 64) if p.operations else most)]
    rows = []
    for p in (p for p in wanted if p.shape == _first_shape(found, p.row)):
        rivals = [(p.us[name], name) for name in p.peers if name not in _PART_OF_THE_WORK]
        best = f"{min(rivals)[0] / p.ours:.2f} × {min(rivals)[1]}" if rivals else ""
        rate = _rate(p) if p.fraction is None else ""
        rows.append((f"{p.row}, {p.shape}", str(p.m), f"{p.ours:.1f} µs", _fraction(p), rate, best))
    header = ("Op", "M", "Median", "Of the copy's bandwidth", "T op/s", "Fastest peer")
    return f"{table(header, rows)}\n\n" + " ".join(_below(results, data))


def _below(results: Sequence[Data], data: Data) -> Iterator[str]:
    """Yield sentences of what the figures mean, and of what has none."""
    bandwidth = Roofs.of(data).bandwidth
    copied = f", copy bandwidth {bandwidth / 1e12:.2f} TB/s" if bandwidth else ""
    yield f"Measured {data['date']} on {data['machine']['device']['name']}{copied}, in CUDA graphs."
    yield "Where operations bound a product instead of bytes, they are told a second."
    now = runs.sources()
    if any(now.get(source) != digest for source, digest in data["sources"].items()):
        yield "Sources of kernels have changed since."
    timed = {name for point in data["points"].values() for name in point.get("us", {})}
    named = (name for point in data["points"].values() for name in point.get("absent", {}))
    absent = [name for name in dict.fromkeys(named) if name not in timed]
    if absent:
        yield f"Absent peers: {'; '.join(absent)}."
    ran = {kernel.partition(".")[0] for result in results for kernel in runs.tried(result)}
    never = [op for op in dict.fromkeys(row.op for row in ROWS) if op not in ran]
    if never:
        yield f"Not run on a GPU: {', '.join(f'`{op}`' for op in never)}."
