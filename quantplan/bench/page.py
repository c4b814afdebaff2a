"""Pages: sections of text, tables and figures, as Markdown and as one file of HTML that needs nothing else."""

from __future__ import annotations

import html as escaping
import re
from typing import TYPE_CHECKING, TypeAlias

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


@attrs.frozen
class Table:
    """A table: the first column is text, the rest are figures.

    Parameters
    ----------
    header : tuple of str
        Its head.
    rows : tuple of tuples of str
        Its lines.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@attrs.frozen
class Figure:
    """A picture.

    Parameters
    ----------
    name : str
        The stem of its file.
    text : str
        What it shows, for those who do not see it.
    draw : callable
        Returns the picture as SVG; not every page needs it.
    """

    name: str
    text: str
    draw: Callable[[], str]


Block: TypeAlias = "str | Table | Figure"
"""A string is a paragraph, in which ``**``, backticks and links mean what they do in Markdown."""


@attrs.frozen
class Section:
    """A title, and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a table in Markdown: the first column to the left, figures to the right."""
    lines = [_line(header), "|---" + "|---:" * (len(header) - 1) + "|", *(_line(row) for row in rows)]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def markdown(sections: Iterable[Section], figures: str) -> str:
    """Return sections in Markdown; figures are files of a folder."""
    parts = []
    for section in sections:
        parts += [f"## {section.title}"] if section.title else []
        parts += [_markdown(block, figures) for block in section.blocks]
    return "\n\n".join(parts)


def _markdown(block: Block, figures: str) -> str:
    if isinstance(block, Table):
        return table(block.header, block.rows)
    if isinstance(block, Figure):
        return f"![{block.text}]({figures}/{block.name}.svg)"
    return block


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .2em .7em; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
"""


def html(title: str, sections: Iterable[Section]) -> str:
    """Return a page of HTML with its figures in it."""
    parts = [f"<h1>{escaping.escape(title)}</h1>"]
    for section in sections:
        parts += [f"<h2>{_inline(section.title)}</h2>"] if section.title else []
        parts += [_html(block) for block in section.blocks]
    head = f'<meta charset="utf-8">\n<title>{escaping.escape(title)}</title>\n<style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en">\n{head}\n' + "\n".join(parts) + "\n</html>\n"


def _html(block: Block) -> str:
    if isinstance(block, Table):
        head = "".join(f"<th>{_inline(cell)}</th>" for cell in block.header)
        rows = ("".join(f"<td>{_inline(cell)}</td>" for cell in row) for row in block.rows)
        return f"<table>\n<tr>{head}</tr>\n" + "\n".join(f"<tr>{row}</tr>" for row in rows) + "\n</table>"
    if isinstance(block, Figure):
        svg = block.draw()
        picture = svg[svg.index("<svg") :]  # what stands before it belongs to a file of its own
        return f'<figure role="img" aria-label="{escaping.escape(block.text)}">\n{picture}</figure>'
    lines = block.split("\n")
    if all(line.startswith("- ") for line in lines):
        return "<ul>\n" + "\n".join(f"<li>{_inline(line[2:])}</li>" for line in lines) + "\n</ul>"
    return f"<p>{_inline(block)}</p>"


def _inline(text: str) -> str:
    text = escaping.escape(text)
    text = re.sub(r"`([^`]*)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*([^*]*)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"\[([^\]]*)\]\(([^)]*)\)", r'<a href="\2">\1</a>', text)
