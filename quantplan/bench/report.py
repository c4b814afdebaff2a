"""Write what was measured into README.md and docs, never by hand.

``python -m quantplan.bench.report`` rewrites what stands between the pages' markers, and the plots; with ``--check`` it
writes nothing and fails where a page is not what it would write. ``--html FILE`` writes a page of its own instead.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from quantplan.bench import catalogue, page, plots, resources, runs, scaling, silicon, tables
from quantplan.errors import InvalidProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from quantplan.bench.page import Figure, Section
    from quantplan.bench.runs import Data

_ROOT = Path(__file__).resolve().parents[2]
_COMMANDS = {
    "recipes": "python examples/generate.py --evaluate --output docs/performance/results",
    "reference": "python -m quantplan.bench.reference",
    "resources": "python -m quantplan.bench.resources",
    "scaled": "python examples/scaled_tensors.py --json docs/performance/results/scaled-DATE.json",
}
"""What measures each file that a table is made from."""


def parts(name: str, results: Path, days: Sequence[Data]) -> dict[str, Callable[[], str]]:
    """Return what stands between the markers of a page, by the page's name."""

    def recorded(kind: str, table: Callable[[tables.Row], str]) -> str:
        data = tables.newest(results, kind, _COMMANDS[kind])
        try:
            return table(data)
        except (InvalidProblem, KeyError) as error:
            again = f"measure it again with `{_COMMANDS[kind]}`"
            raise ValueError(f"the newest {kind}-DATE.json is of another version ({error}): {again}") from error

    pages: dict[str, dict[str, Callable[[], str]]] = {
        "README.md": {
            "gpu": partial(silicon.summary, days),
            "recipes": partial(recorded, "recipes", tables.recipes),
            "reference": partial(recorded, "reference", tables.reference),
        },
        "performance.md": {
            "gpu": lambda: page.markdown(silicon.sections(days), "performance"),
            "resources": partial(recorded, "resources", resources.table),
        },
        "choosing.md": {"ops": catalogue.ops_table},
        "scaled.md": {
            "weights": partial(recorded, "scaled", tables.scaled),
            "published": scaling.published_table,
            "rules": scaling.rules_table,
        },
    }
    return pages[name]


def figures(sections: Sequence[Section]) -> Iterator[Figure]:
    """Yield the figures of some sections."""
    for section in sections:
        yield from (block for block in section.blocks if isinstance(block, page.Figure))


def stale(root: Path) -> list[str]:
    """Return what of a checkout is not what its results say; see `write` for what it raises."""
    results, days = _results(root)
    found = []
    for path in _pages(root):
        before = path.read_text(encoding="utf-8")
        if tables.render(before, parts(path.name, results, days)) != before:
            found.append(f"{path.name} is stale: run `make readme`")
    if tables.newest(results, "resources", _COMMANDS["resources"])["sources"] != resources.digests():
        found.append("performance.md tells of kernels that have changed since: run `make performance`")
    drawn = {figure.name for figure in figures(silicon.sections(days))}
    known = {plots.digest(data) for data in days}
    for path in sorted((root / "docs" / "performance").glob("*.svg")):
        if path.stem not in drawn or not any(digest in path.read_text(encoding="utf-8") for digest in known):
            found.append(f"{path.name} is stale: run `make readme`")
        drawn.discard(path.stem)
    return found + [f"{name}.svg is missing: run `make readme`" for name in sorted(drawn)]


def write(root: Path) -> None:
    """Write a checkout's pages and plots.

    Raises
    ------
    FileNotFoundError
        Something was never measured; the error names what measures it.
    ValueError
        A page lacks its markers, or a file is no result that can be shown.
    """
    results, days = _results(root)
    texts = {
        path: tables.render(path.read_text(encoding="utf-8"), parts(path.name, results, days)) for path in _pages(root)
    }
    for path, text in texts.items():  # all or none
        path.write_text(text, encoding="utf-8")
    folder = root / "docs" / "performance"
    drawn = {folder / f"{figure.name}.svg": figure.draw() for figure in figures(silicon.sections(days))}
    for path in folder.glob("*.svg"):
        if path not in drawn:
            path.unlink()
    for path, svg in drawn.items():
        path.write_text(svg, encoding="utf-8")


def html(days: Sequence[Data]) -> str:
    """Return a page of some runs that needs nothing but itself; a smoke is told as what it is."""
    results = [data for data in days if runs.counts(data)]
    smokes = [silicon.smoke(data) for data in days if not runs.counts(data)]
    return page.html("quantplan on this GPU", [*smokes, *silicon.sections(results)])


def _pages(root: Path) -> tuple[Path, ...]:
    return root / "README.md", *(root / "docs" / name for name in ("choosing.md", "performance.md", "scaled.md"))


def _results(root: Path) -> tuple[Path, list[Data]]:
    results = root / "docs" / "performance" / "results"
    return results, runs.load(results)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, or check them; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is stale")
    parser.add_argument("--root", type=Path, default=_ROOT, help="checkout whose pages they are")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write this page of HTML, and nothing else")
    parser.add_argument("--results", type=Path, metavar="DIR", help="with --html: folder of the results")
    options = parser.parse_args(argv)
    try:
        if options.html is not None:
            days = _results(options.root)[1] if options.results is None else runs.load(options.results)
            options.html.write_text(html(days), encoding="utf-8")
            return 0
        if options.check:
            found = stale(options.root)
            for line in found:
                print(line, file=sys.stderr)
            return 1 if found else 0
        write(options.root)
    except (FileNotFoundError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
