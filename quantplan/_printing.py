"""What the command line prints with: tables, a bar on standard error, and JSON. rich is imported where it is needed."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import TYPE_CHECKING, Any

from quantplan.record import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_UNBOUNDED = 10_000


class _Text(io.StringIO):
    """What a table is drawn into: nothing is written before all is known, with the signs that standard output has."""

    @property
    def encoding(self) -> str:  # type: ignore[override] # typeshed calls it writeable
        return sys.stdout.encoding


def json_text(data: dict[str, Any]) -> str:
    """Return data as JSON, with the version of its schema; what JSON has no word for, such as a path, is a string."""
    return json.dumps({"schema": SCHEMA, **data}, indent=2, default=str)


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table, as wide as the terminal, or as its text where it is written to a file."""
    from rich.console import Console  # noqa: PLC0415 - JSON output does without
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    grid = Table(title=title, title_justify="left")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(escape(cell) for cell in row))
    # in a file or pipe a table is as wide as its text, so that each row is one line
    terminal, text = sys.stdout.isatty(), _Text()
    Console(file=text, force_terminal=terminal, width=None if terminal else _UNBOUNDED).print(grid)
    return text.getvalue().rstrip("\n")


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar where standard error is a terminal.

    What is yielded moves it: called with how much is done, and how much there is.
    """
    from rich.console import Console  # noqa: PLC0415 - JSON output does without
    from rich.markup import escape  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(escape(what), total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
