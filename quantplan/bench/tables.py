"""Tables between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->`` of a page, made from files of results."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

from quantplan.bench.page import table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

Row = dict[str, Any]


def newest(results: Path, name: str, command: str) -> Row:
    """Return what the newest ``NAME-DATE.json`` of a folder holds.

    Parameters
    ----------
    results : pathlib.Path
        The folder.
    name : str
        Which.
    command : str
        What makes one, for the error.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    files = sorted(results.glob(f"{name}-*.json"))
    if not files:
        raise FileNotFoundError(f"no {name}-DATE.json in {results}; measure it with `{command}`")
    data: Row = json.loads(files[-1].read_text(encoding="utf-8"))
    return data


def render(text: str, parts: Mapping[str, Callable[[], str]]) -> str:
    """Return a page's text with what stands between each part's markers replaced by what the part returns.

    Raises
    ------
    ValueError
        A part's markers are missing, or stand there more than once.
    """
    for name, part in parts.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        found = re.findall(f"{re.escape(begin)}\n.*?{re.escape(end)}", text, re.DOTALL)
        if len(found) != 1:
            raise ValueError(f"expected one pair of lines {begin} and {end}")
        text = text.replace(found[0], f"{begin}\n{part()}\n{end}")
    return text


def recipes(data: Row) -> str:
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
    return table(header, rows) + "\n\n" + _source(data, f"{data['model']}, {data['layers']} layers, on held-out text")


def reference(data: Row) -> str:
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
    return table(header, [*gemm, *ops]) + "\n\n" + _source(data, "Medians of interleaved runs")


def scaled(data: Row) -> str:
    """Table of what each scaling recipe keeps of a real weight, by examples/scaled_tensors.py."""
    rows = [
        (
            f"`{row['recipe']}`",
            f"{row['bits']:.2f}",
            f"{row['error']:.2%}",
            f"{row['bound']:.2%}",
            f"{-20 * math.log10(row['error']):.1f} dB",
            f"{row['worst']:.3f}",
            f"{row['product_error']:.2%}",
        )
        for row in data["rows"]
    ]
    header = ("Recipe", "Bits a weight", "RMS error", "RMS of its bound", "SNR", "Worst, of its bound", "Product")
    return table(header, rows) + f"\n\n{data['what']}, measured {data['date']}."


def _source(data: Row, what: str) -> str:
    machine = data["machine"]
    return (
        f"{what}, measured {data['date']} on {machine['cpu']} (cores: {machine['cpu_count']}, "
        f"BLAS threads: {machine['blas_threads']}, NumPy {machine['numpy']})."
    )
