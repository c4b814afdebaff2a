"""The command line: doctor, plans, explain, verify, inspect, … Each prints tables, or JSON with ``--json``.

Exit codes: 0 all is well; 1 a check failed (verify: a guarantee was broken; inspect: a linear cannot be read); 2 the
request makes no sense, an optional package is missing, or the answer cannot be written; 3 the op is sound but
unsupported on the target.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import attrs

import quantplan
from quantplan._printing import json_text, progress_bar, table
from quantplan.bench import options as bench_options
from quantplan.doctor import doctor
from quantplan.errors import QuantPlanError
from quantplan.ops import PLANS
from quantplan.queries import EXTENT, explain, plans, problems, resources
from quantplan.types import PlanPreference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from quantplan.plan import Plan
    from quantplan.types import PrecisionGuarantee
    from quantplan.variant import VariantReport

OK, FAILED, USAGE, UNSUPPORTED = 0, 1, 2, 3

_NEGATIVE = re.compile(r"-(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?$|-(?:inf|nan)$", re.IGNORECASE)
"""What is a value, and no flag. To argparse -1e-3 is a flag."""
_RESERVED = ("scale",)  # --scale is a number, in every op


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command: its answer goes to standard output as a whole, an error as one line to standard error.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; by default those of the process.

    Returns
    -------
    int
        The exit code.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a pipe on Windows cannot hold every sign
    try:
        args = _parser().parse_args(argv)
        code, text = args.command(args)
    except QuantPlanError as error:
        print(f"quantplan: {error}", file=sys.stderr)
        return USAGE
    except ModuleNotFoundError as error:
        print(f"quantplan: {error.name} is missing: pip install 'quantplan[cli]', or use --json", file=sys.stderr)
        return USAGE
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer goes nowhere
        if not isinstance(error, BrokenPipeError):
            print(f"quantplan: standard output: {error.strerror}", file=sys.stderr)
            return USAGE
        # the reader went away, as `quantplan plans | head` does; the code stays what it is
    return int(code)


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and which takes no abbreviated flags."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - forwarded as they are
        super().__init__(allow_abbrev=False, **options)
        self._negative_number_matcher = _NEGATIVE

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message}\n")


class _Once(argparse.Action):
    """Stores a value, and refuses a second one: a field may have two names, and which of them counts is no guess."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        if hasattr(namespace, self.dest):
            parser.error(f"{option}: {self.dest} is given twice")
        setattr(namespace, self.dest, values)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="quantplan", description=quantplan.__doc__)
    parser.add_argument("--version", action="version", version=quantplan.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:  # noqa: ANN401 - a handler
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print JSON")
        sub.set_defaults(command=function)
        return sub

    command("doctor", _doctor, "What this machine has, and how to get what is missing.")
    sub = command("plans", _plans, "Every SKU with its guarantee, and whether a target runs it.")
    sub.add_argument("--target", default="cpu", help="cpu, cuda:0, sm_90a, emulated:sm_90a")
    sub.add_argument("--op", choices=PLANS, help="only this op")
    sub.add_argument("--resources", action="store_true", help="what the kernels take of a GPU; needs none")
    for name in "mnk":
        sub.add_argument(
            f"--{name}", type=int, default=EXTENT, help=f"with --resources: {name.upper()} of the problems"
        )
    sub = command("verify", _verify, "Hold plans to their guarantees under attacking inputs.")
    sub.add_argument("--target", default="cpu", help="cpu, cuda:0, emulated:sm_90a")
    sub.add_argument("--op", choices=PLANS, help="only this op")
    sub.add_argument(
        "--all",
        action="store_true",
        help="attack every SKU; otherwise some, among which any three parts of a name meet that meet in any SKU",
    )
    sub = command("warmup", _warmup, "Compile kernels ahead of time; no GPU is needed.")
    sub.add_argument("--target", required=True, help="an architecture such as sm_90a, or cuda:0")
    sub.add_argument("--plans", type=Path, metavar="FILE", help="JSON list of descriptors (by default every SKU)")
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the cubins")
    sub = command(
        "inspect", _inspect, "What a checkpoint holds: its quantized linears, and what keeps them from being read."
    )
    sub.add_argument("path", type=Path, metavar="FILE", help="a .safetensors file, a folder of them, or an index")
    sub.add_argument(
        "--config", type=_object, metavar="JSON", help="entries that the quantization's configuration lacks"
    )
    sub = command("repack", _repack, "Convert a checkpoint's linears to Marlin's layout, and copy all else.")
    sub.add_argument("source", type=Path, metavar="SRC", help="as for inspect")
    sub.add_argument("destination", type=Path, metavar="DST", help="a file if SRC is one, otherwise a folder")
    sub.add_argument("--scale-element", metavar="ELEMENT", help="f16, bf16 or f32: what scales are rounded to")
    sub.add_argument(
        "--config", type=_object, metavar="JSON", help="entries that the quantization's configuration lacks"
    )
    sub = command("bench", _bench, "Check and measure everything on a GPU within minutes, most valuable first.")
    bench_options.add(sub)
    sub.add_argument("--out", type=Path, default=Path("quantplan-bench"), metavar="DIR", help="folder of the result")
    sub.add_argument("--html", type=Path, metavar="FILE", help="write a page of what was found")
    sub = command("explain", _explain, "Which variant would run an op on a target, and why each other one would not.")
    ops = sub.add_subparsers(required=True, metavar="OP")
    for name, kind in PLANS.items():
        _add_op_flags(ops.add_parser(name, help=f"flags are the fields of {kind.descriptor_type.__name__}"), kind)
    return parser


# ---- commands: each returns its exit code and what it prints


def _doctor(args: argparse.Namespace) -> tuple[int, str]:
    findings = doctor()
    if args.json:
        return OK, json_text({"findings": [_data(f) for f in findings]})
    rows = [("yes" if f.found else "no", f.name, f.detail, f.remedy) for f in findings]
    return OK, table("quantplan doctor", ("", "what", "detail", "remedy"), rows)


def _plans(args: argparse.Namespace) -> tuple[int, str]:
    if args.resources:
        return _resources(args)
    rows = plans(args.target, args.op)
    if args.json:
        return OK, json_text({"target": args.target, "plans": [_data(row) for row in rows]})
    cells = [
        (row.sku.name, "yes" if row.supported else row.reason, guarantee_text(row.sku.precision_guarantee))
        for row in rows
    ]
    return OK, table(f"{len(rows)} SKUs, target {args.target}", ("SKU", "supported", "guarantee"), cells)


def _resources(args: argparse.Namespace) -> tuple[int, str]:
    wanted = problems(args.op, m=args.m, n=args.n, k=args.k)
    rows = resources(args.target, wanted, processes=os.cpu_count() or 1)
    if args.json:
        return OK, json_text({"target": args.target, "resources": [_data(row) for row in rows]})
    cells = [
        (
            *(row.sku, "aligned" if row.aligned else "others", "" if number else f"{row.traffic:.2f}"),
            kernel.kernel,
            str(kernel.code.registers),
            f"{kernel.code.static_shared_bytes} + {kernel.dynamic_shared_bytes}",
            f"{kernel.code.spill_store_bytes}, {kernel.code.spill_load_bytes}, {kernel.code.stack_bytes}",
            f"{kernel.occupancy.blocks} × {kernel.threads} ({kernel.occupancy.fraction:.0%})",
            f"{kernel.code.loads_in_flight} × {kernel.code.load_bytes} B, {kernel.bytes_in_flight // 1024} KB",
            ", ".join(f"{count} {name}" for name, count in kernel.code.told.items()),
        )
        for row in rows
        for number, kernel in enumerate(row.kernels)
    ]
    columns = (
        *("SKU", "operands", "traffic", "kernel", "registers", "shared: static + dynamic", "spilled: out, in, stack"),
        *("blocks of an SM", "loads in flight: of a thread, of an SM", "instructions"),
    )
    title = f"kernels of {len({row.sku for row in rows})} SKUs on {args.target}; m, n, k: {args.m}, {args.n}, {args.k}"
    return OK, table(title, columns, cells)


def _explain(args: argparse.Namespace) -> tuple[int, str]:
    kind: type[Plan[Any, Any]] = args.kind
    desc = kind.descriptor_type(**_given(args, kind.descriptor_type))
    found = explain(args.target, desc, PlanPreference(**_given(args, PlanPreference)))
    code = OK if found.sku else UNSUPPORTED
    if args.json:
        return code, json_text(_data(found))
    answer = f"{found.sku.name} ({found.sku.backend.name})" if found.sku else "unsupported"
    lines = [f"{found.op} on {found.target}: {answer}"]
    rows = [(v.name, "yes" if v.supported else "no", v.reason or _cost(v)) for v in found.variants]
    lines.append(table("variants, best first", ("variant", "supported", "reason"), rows))
    if found.sku:
        lines.append(guarantee_text(found.sku.precision_guarantee))
    return code, "\n".join(lines)


def _cost(report: VariantReport) -> str:
    return "" if report.cost is None else f"expected to take {report.cost * 1e6:.1f} µs"


def _verify(args: argparse.Namespace) -> tuple[int, str]:
    from quantplan.verify import STRENGTH, verify  # noqa: PLC0415 - exact arithmetic is needed by nothing else

    report = verify(target=args.target, op=args.op, strength=None if args.all else STRENGTH)
    code = OK if report.ok else FAILED
    if args.json:
        return code, json.dumps(report.to_dict(), indent=2)
    rows = [
        (
            p.sku,
            p.backend,
            str(p.cases),
            str(p.mismatches),
            "" if p.worst_fraction is None else f"{p.worst_fraction:.3f}",
        )
        for p in report.plans
    ]
    columns = ("SKU", "backend", "cases", "mismatches", "worst fraction")
    shares = [f"{c.op}: {c.attacked} of {c.skus} SKUs attacked, {c.rule}" for c in report.coverage]
    count = len(report.problems)
    holds = "every guarantee" if all(c.attacked == c.skus for c in report.coverage) else "every attacked guarantee"
    verdict = f"{holds} holds" if report.ok else f"{count} problem{'s' if count > 1 else ''}"
    return code, "\n".join([table(f"verify on {report.target}", columns, rows), *shares, *report.problems, verdict])


def _warmup(args: argparse.Namespace) -> tuple[int, str]:
    from quantplan.warmup import read_descriptors, warmup  # noqa: PLC0415 - process pools are needed by nothing else

    descriptors = None if args.plans is None else read_descriptors(args.plans)
    if args.json:
        made = warmup(args.target, args.out, descriptors)
        return OK, json_text({"target": args.target, "cubins": [str(path) for path in made]})
    with progress_bar(f"compiling for {args.target}") as progress:
        made = warmup(args.target, args.out, descriptors, progress)
    size = sum(path.stat().st_size for path in made)
    return OK, f"{len(made)} cubins for {args.target}, {size / 1e6:.1f} MB, in {args.out}"


def _inspect(args: argparse.Namespace) -> tuple[int, str]:
    from quantplan.formats import Checkpoint  # noqa: PLC0415 - files are read by nothing else

    checkpoint = Checkpoint(args.path, config=args.config)
    linears = list(checkpoint.survey())
    problems = [linear for linear in linears if linear.problem]
    others = {name: checkpoint.tensors[name].tensors[name] for name in checkpoint.others}
    code = FAILED if problems else OK
    if args.json:
        data = {"files": [file.path for file in checkpoint.files], "linears": [_data(linear) for linear in linears]}
        rest = [{"name": name, "dtype": i.dtype, "shape": i.shape, "nbytes": i.nbytes} for name, i in others.items()]
        return code, json_text({**data, "others": rest})
    cells = [
        (
            *(i.prefix, i.format, f"{i.k} × {i.n}", str(i.group_size), "8" if i.symmetric else "its own"),
            *("reordered" if i.act_order else "in order", str(i.scale_element), "yes" if i.bias else "no"),
            f"{i.nbytes:,}",
        )
        for i in linears
        if not i.problem
    ]
    columns = ("linear", "format", "k × n", "group size", "zero points", "rows", "scales", "bias", "bytes")
    title = f"{len(cells)} of {len(linears)} quantized linears"
    rows = [(name, i.dtype, " × ".join(map(str, i.shape)), f"{i.nbytes:,}") for name, i in others.items()]
    lines = [table(title, columns, cells)]
    lines += [table(f"{len(rows)} other tensors", ("tensor", "element", "shape", "bytes"), rows)] if rows else []
    lines += [f"cannot read {linear.prefix}: {linear.problem}" for linear in problems]
    return code, "\n".join(lines)


def _repack(args: argparse.Namespace) -> tuple[int, str]:
    from quantplan.formats import repack  # noqa: PLC0415 - files are read by nothing else

    options = {"scale_element": args.scale_element, "config": args.config}
    if args.json:
        done = repack(args.source, args.destination, **options)
        return OK, json_text({"linears": done.linears, "written": done.written, "complete": done.complete})
    with progress_bar(f"repacking {args.source}") as progress:
        done = repack(args.source, args.destination, **options, progress=progress)
    size = sum(path.stat().st_size for path in (*done.written, *done.complete))
    files = f"{len(done.written)} files written, {len(done.complete)} complete before"
    return OK, f"linears repacked: {done.linears}; {size / 1e6:.1f} MB in {args.destination}; {files}"


def _bench(args: argparse.Namespace) -> tuple[int, str]:
    from quantplan.bench import findings, gpu_day, report  # noqa: PLC0415 - process pools are needed by nothing else

    run = gpu_day.run_day(
        args.out, say=lambda line: print(line, file=sys.stderr, flush=True), **bench_options.given(args)
    )
    if args.html is not None and run.data["machine"]:
        args.html.write_text(report.html([run.data]), encoding="utf-8")
    code = FAILED if findings.failures(run.data) else OK
    if args.json:
        return code, json.dumps(run.data, indent=2)
    return code, "\n".join(findings.last_lines(run))


# ---- flags of an op


def _add_op_flags(parser: argparse.ArgumentParser, kind: type[Plan[Any, Any]]) -> None:
    """Give an op's parser the target, a flag per field of its descriptor, and one per preference."""
    parser.set_defaults(kind=kind)
    parser.add_argument("--target", default="cpu", help="cpu, cuda:0, sm_90a, emulated:sm_90a")
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    _add_fields(parser.add_argument_group("descriptor"), kind.descriptor_type, kind.also_called)
    _add_fields(parser.add_argument_group("preferences"), PlanPreference, {})


def _add_fields(group: argparse._ArgumentGroup, record: type, also_called: Mapping[str, str]) -> None:
    """Add a flag per field: ``--output`` for output_element too, a plain switch for booleans."""
    fields = [field for field in attrs.fields(record) if field.name != "min_guarantee"]  # no word for the shell
    for field in fields:
        options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
        if isinstance(field.default, bool):
            options["action"] = argparse.BooleanOptionalAction
        else:
            required = field.default is attrs.NOTHING
            options |= {"type": _number_or_text, "required": required, "metavar": "VALUE", "action": _Once}
        short = field.name.removesuffix("_element")
        names = [field.name] if short in _RESERVED else [field.name, short]
        names += [also_called[field.name]] if field.name in also_called else []
        group.add_argument(*(f"--{name.replace('_', '-')}" for name in dict.fromkeys(names)), **options)


def _given(args: argparse.Namespace, record: type) -> dict[str, Any]:
    """Return the fields of a record that flags were given for."""
    return {field.name: getattr(args, field.name) for field in attrs.fields(record) if hasattr(args, field.name)}


def _number_or_text(text: str) -> int | float | str:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _object(text: str) -> dict[str, Any]:
    """Return the JSON object that a flag gives."""
    from quantplan.formats import _json  # noqa: PLC0415 - files are read by nothing else

    try:
        return _json.parse(text.encode(errors="surrogateescape"), op="quantplan", field="config", file="the flag")
    except QuantPlanError as error:
        error.op = error.field = None  # argparse says them
        raise argparse.ArgumentTypeError(f"{error}") from error


# ---- printing


def guarantee_text(guarantee: PrecisionGuarantee) -> str:
    """Return a guarantee in a few words."""
    words = ["bit-identical" if guarantee.bit_identical_to_reference else "bounded error"]
    words += ["deterministic"] if guarantee.deterministic else []
    words += ["batch-invariant"] if guarantee.batch_invariant else []
    return f"{', '.join(words)}; accumulates in {guarantee.accumulator.value}"


def _data(value: Any) -> dict[str, Any]:  # noqa: ANN401 - any record
    return {name: item for name, item in value.to_dict().items() if name != "schema"}
