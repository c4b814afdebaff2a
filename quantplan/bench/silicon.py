"""What GPU days found, as sections of a page: what is validated, how fast it is, and which goals are met."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import TYPE_CHECKING

import attrs

from quantplan.bench import findings, goals, plots, runs
from quantplan.bench.page import Figure, Section, Table, table
from quantplan.bench.points import Roofs, measured
from quantplan.bench.problems import FEW

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


# ---- what is validated


@attrs.frozen
class Validation:
    """What is known of one kernel on silicon.

    Parameters
    ----------
    kernel : str
        ``op.variant``.
    source : str
        Its family's file.
    status : str
        ``yes``, ``no``, ``source changed since``, or ``never``.
    detail : str
        How many SKUs and cases, on which GPU and when; or what failed.
    """

    kernel: str
    source: str
    status: str
    detail: str = ""


def validations(results: Sequence[Data]) -> list[Validation]:
    """Return the status of each kernel that there is now; of several runs the newest of the same sources counts."""
    now = runs.sources()
    found = []
    for kernel, source in runs.kernels().items():
        ran = [data for data in results if _tried(data, kernel)]
        same = [data for data in ran if data["sources"].get(source) == now[source]]
        if same:
            found.append(_validation(same[-1], kernel, source))
        elif ran:
            detail = f"{ran[-1]['machine']['device']['name']}, {ran[-1]['date']}"
            found.append(Validation(kernel, source, "source changed since", detail))
        else:
            found.append(Validation(kernel, source, "never"))
    return found


def _plans(data: Data, kernel: str) -> list[Data]:
    answers = (answer for _, answer in findings.entries(data["guarantees"]))
    plans = (plan for answer in answers for plan in answer.get("plans", ()))
    return [plan for plan in plans if runs.kernel_of(plan["sku"]) == kernel]


def _tried(data: Data, kernel: str) -> bool:
    return bool(_plans(data, kernel)) or any(kernel in problem for problem in _blamed(data))


def _blamed(data: Data) -> Iterator[str]:
    """Yield what went wrong, each with the name of the kernel or op that it went wrong with."""
    for key, answer in findings.entries(data["guarantees"]):
        yield from answer.get("problems", ())
        if "error" in answer:
            yield f"{key}: {answer['error']}"
    for key, answer in findings.entries(data["exercises"]):
        yield from (f"{what}: {key} is wrong" for what in answer.get("wrong", ()))


def _validation(data: Data, kernel: str, source: str) -> Validation:
    plans, op = _plans(data, kernel), kernel.partition(".")[0]
    wrong = [text for text in _blamed(data) if text.startswith((f"{kernel}.", f"{op} ["))]
    wrong += [f"test {name}" for name in data["tests"].get("failed", {})]
    wrong += [name for name, answer in findings.entries(data["sanitizers"]) if findings.is_bad(answer)]
    where = f"{data['machine']['device']['name']}, {data['date']}"
    if wrong:
        return Validation(kernel, source, "no", f"{wrong[0]}; {where}")
    cases = sum(plan["cases"] for plan in plans)
    return Validation(kernel, source, "yes", f"{len({p['sku'] for p in plans})} SKUs, {cases} cases; {where}")


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
    says = (
        "A kernel is validated when its SKUs kept their guarantees under attack on a GPU, the tests of `tests/gpu` "
        "passed there, and no sanitizer found anything, all with the sources as they are now."
    )
    return Section("Validated on silicon", (says, Table(("Kernel", "Sources", "Validated", "What ran"), rows)))


def _figures(data: Data) -> Iterator[Section]:
    name, points = data["machine"]["device"]["name"], measured(data)
    marked = " (synthetic: nobody measured this)" if data.get("synthetic") else ""
    yield Section(f"{name}: the run{marked}", tuple(_run(data)))
    if points:
        yield Section(f"{name}: how near the floor", (*_floor(data, points), *_plots(data)))
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
    failed = findings.failures(data)
    if failed:
        yield "**What failed:**"
        yield "\n".join(f"- {line}" for line in failed)


def _floor(data: Data, points: Sequence[Measured]) -> Iterator[Block]:
    yield (
        "The floor of a problem is the larger of the time that a copy takes to move its bytes, each operand once, and "
        "the time that its operations take at the rate measured here, which is what torch's product reaches: more than "
        "100% is faster than that. Times are medians in CUDA graphs, over operands that rotate beyond the L2 cache; ± "
        "is half the distance of the quartiles."
    )
    rows = []
    for point in points:
        if point.shape == _first_shape(points, point.row):
            fraction = "" if point.fraction is None else f"{point.fraction:.0%}"
            rate = f"{point.rate / 1e12:.0f}" if point.operations else ""
            moved = f"{point.nbytes / point.ours / 1e6:.2f}"
            time = f"{point.ours:.1f} µs ± {point.spread / 2:.0%}"
            rows.append((point.row, point.shape, str(point.m), time, moved, rate, fraction))
    yield Table(("Op", "Shape", "M", "Time", "TB/s", "T op/s", "Of the floor"), tuple(rows))
    missing = {name: reason for name, reason in data["machine"].get("rows", {}).items() if reason}
    if missing:
        yield "No kernel runs, and nothing was measured, of:"
        yield "\n".join(f"- {name}: {reason}" for name, reason in missing.items())


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


def summary(results: Sequence[Data]) -> str:
    """Return the README's few lines on GPUs: the newest run's ops at few M, or that there is none."""
    if not results:
        return "No GPU has run quantplan yet: there are no figures."
    data = results[-1]
    found, most = measured(data), FEW[:2]  # of ops that only move bytes, a decode batch and a prefill say enough
    points = [p for p in found if p.m in (FEW if p.operations else most) and p.shape == _first_shape(found, p.row)]
    rows = []
    for p in points:
        fraction = "" if p.fraction is None else f"{p.fraction:.0%}"
        rivals = [(p.us[name], name) for name in p.peers]
        best = f"{min(rivals)[0] / p.ours:.2f} × {min(rivals)[1]}" if rivals else ""
        rows.append((f"{p.row}, {p.shape}", str(p.m), f"{p.ours:.1f} µs", fraction, best))
    header = ("Op", "M", "Median", "Of the floor", "Fastest peer")
    device = data["machine"]["device"]["name"]
    bandwidth = Roofs.of(data).bandwidth
    copied = f", copy bandwidth {bandwidth / 1e12:.2f} TB/s" if bandwidth else ""
    floor = "The floor is what a copy, or torch's product of the same elements, would take."
    return f"{table(header, rows)}\n\nMeasured {data['date']} on {device}{copied}, in CUDA graphs. {floor}"
