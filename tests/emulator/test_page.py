"""docs/emulator.md shows what its session prints, and names every field and every kind of fault."""

import contextlib
import io
import re
from pathlib import Path

import attrs

from quantplan.emulator.schedule import Schedule
from quantplan.errors import FaultKind

PAGE = (Path(__file__).parents[2] / "docs" / "emulator.md").read_text(encoding="utf-8")


def test_the_session_prints_what_the_page_shows():
    printed, shown, names = [], [], {}
    for kind, text in re.findall(r"```(python|text)\n(.*?)```", PAGE, flags=re.DOTALL):
        if kind == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(text, names)  # noqa: S102 - the page's own examples
            printed += [output.getvalue()] if output.getvalue() else []
        else:
            shown.append(text)
    assert printed == shown
    assert len(shown) == 3


def test_every_field_of_a_schedule_has_a_row():
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)[:5] == [field.name for field in attrs.fields(Schedule)]


def test_every_kind_of_fault_has_a_row():
    assert re.findall(r"^\| `([A-Z_]+)` \|", PAGE, re.MULTILINE) == [kind.name for kind in FaultKind]
