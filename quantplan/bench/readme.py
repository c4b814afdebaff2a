"""Write the README's tables from measured files, never by hand.

``python -m quantplan.bench.readme`` rewrites what stands between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``;
with ``--check`` it writes nothing and fails when the README is not what it would write.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Tables = Mapping[str, tuple[Callable[["Row"], str], str]]

_ROOT = Path(__file__).resolve().parents[2]

Row = dict[str, Any]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a table: the first column to the left, figures to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def _source(data: Row, what: str) -> str:
    machine = data["machine"]
    return (
        f"{what}, measured {data['date']} on {machine['cpu']} (cores: {machine['cpu_count']}, "
        f"BLAS threads: {machine['blas_threads']}, NumPy {machine['numpy']})."
    )


def recipes_table(data: Row) -> str:
    """Table of what each recipe of examples/generate.py costs and keeps."""
    rows = [
        (
            f"`{row['recipe']}`",
            f"{row['perplexity']:.2f}",
            f"{row['top1_agreement']:.1%}",
            f"{row['weight_bytes'] / 1e6:.1f} MB",
            f"{row['tokens_per_second']:.1f}",
        )
        for row in data["rows"]
    ]
    header = ("Recipe", "Perplexity", "Top-1 agreement with fp32", "Weights", "Tokens/s")
    return (
        markdown(header, rows) + "\n\n" + _source(data, f"{data['model']}, {data['layers']} layers, on held-out text")
    )


def reference_table(data: Row) -> str:
    """Table of the reference device's speed."""
    gemm = [
        (
            f"W8A8 linear, {r['m']} × {r['n']} × {r['k']}",
            f"{r['ms']:.2f} ms",
            f"{r['f32_ms']:.2f} ms",
            f"{r['ratio']:.2f}",
        )
        for r in data["gemm"]
    ]
    ops = [(f"{r['name']}, {r['m']} × {r['k']}", f"{r['ms']:.2f} ms", "", "") for r in data["ops"]]
    header = ("Op on the reference device", "Median", "NumPy f32 matmul", "Ratio")
    return markdown(header, [*gemm, *ops]) + "\n\n" + _source(data, "Medians of interleaved runs")


TABLES: Tables = {
    "recipes": (recipes_table, "python examples/generate.py --evaluate --output docs/performance/results"),
    "reference": (reference_table, "python -m quantplan.bench.reference"),
}
"""Each table: how it is made, and the command that measures it."""


def newest(results: Path, name: str, command: str | None = None) -> Path:
    """Return the newest ``NAME-DATE.json`` of a folder.

    Raises
    ------
    FileNotFoundError
        There is none; the message names the command that makes one.
    """
    files = sorted(results.glob(f"{name}-*.json"))
    if not files:
        raise FileNotFoundError(f"no {name}-DATE.json in {results}; measure it with `{command or TABLES[name][1]}`")
    return files[-1]


def render(text: str, results: Path, tables: Tables = TABLES) -> str:
    """Return a page's text with every table replaced by what the measured files say; by default the README's.

    Raises
    ------
    ValueError
        A table's markers are missing, or stand there more than once.
    FileNotFoundError
        A table was never measured.
    """
    for name, (table, command) in tables.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        found = re.findall(f"{re.escape(begin)}\n.*?{re.escape(end)}", text, re.DOTALL)
        if len(found) != 1:
            raise ValueError(f"expected one pair of lines {begin} and {end}")
        body = table(json.loads(newest(results, name, command).read_text(encoding="utf-8")))
        text = text.replace(found[0], f"{begin}\n{body}\n{end}")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the README, or check it; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the README is stale")
    parser.add_argument("--readme", type=Path, default=_ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=_ROOT / "docs" / "performance" / "results")
    options = parser.parse_args(argv)
    before = options.readme.read_text(encoding="utf-8")
    try:
        after = render(before, options.results)
    except (FileNotFoundError, ValueError) as error:
        print(f"{options.readme.name}: {error}", file=sys.stderr)
        return 2
    if after == before:
        return 0
    if options.check:
        print(f"{options.readme.name} is stale: run `make readme`", file=sys.stderr)
        return 1
    options.readme.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
