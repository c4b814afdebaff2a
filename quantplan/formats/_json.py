"""JSON that somebody else wrote: every key once, of bounded size and depth, and every value of the kind expected."""

from __future__ import annotations

import contextlib
import json
import reprlib
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from quantplan.errors import InvalidProblem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_FILE = 64 << 20

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: object) -> str:
    """Return a value in a few words and without control characters: an error's line is not a file's to fill."""
    text = _SHORT.repr(value)
    return text if text.isprintable() else ascii(text)


def parse(text: bytes, *, op: str, field: str, file: object) -> dict[str, Any]:
    """Return a JSON object; errors name the field, the key that stands twice if there is one, and the file.

    Raises
    ------
    InvalidProblem
        It is none, or an object in it has a key twice: readers would disagree about which of the two counts.
    """
    where = f"in {file}"

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            twice = twice if twice.isprintable() else ascii(twice)
            raise InvalidProblem(where, op=op, field=twice, expected="each key once", got="the key twice")
        return values

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    try:
        data = json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_constant=constant)
    except InvalidProblem:
        raise
    except RecursionError:
        raise InvalidProblem(
            where, op=op, field=field, expected="JSON of a few levels", got="one nested too deeply"
        ) from None
    except ValueError as error:
        raise InvalidProblem(where, op=op, field=field, expected="JSON", got=str(error)) from error
    if not isinstance(data, dict):
        raise InvalidProblem(where, op=op, field=field, expected="a JSON object", got=shown(data))
    return data


def read(path: Path, *, op: str, field: str) -> dict[str, Any]:
    """Return the JSON object of a file of bounded size; errors as of `parse`."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE + 1)
    except OSError as error:
        raise InvalidProblem(f"in {path}", op=op, field=field, expected="a file", got=error.strerror) from error
    if len(text) > MAX_FILE:
        raise InvalidProblem(f"in {path}", op=op, field=field, expected=f"at most {MAX_FILE} bytes", got="more")
    return parse(text, op=op, field=field, file=path)


def given(value: object, *, op: str, field: str) -> dict[str, Any]:
    """Return a caller's mapping, as a file could say it.

    Raises
    ------
    InvalidProblem
        It is none, or holds what JSON has not.
    """
    if isinstance(value, Mapping):
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            data: dict[str, Any] = json.loads(json.dumps(dict(value)))
            if data == value:  # JSON would make strings of other keys
                return data
    raise InvalidProblem(op=op, field=field, expected="a mapping of names to what JSON has", got=shown(value))


class Section:
    """An object of a JSON file, and where it stands; what is not of the kind asked for is refused by that name.

    Parameters
    ----------
    data : dict
    op : str
        Of the errors.
    where : str
        What the fields of errors begin with.
    file : object
        What errors call the file.
    """

    def __init__(self, data: dict[str, Any], *, op: str, where: str, file: object) -> None:
        self.data = data
        self.op = op
        self.where = where
        self.file = file

    def __contains__(self, key: str) -> bool:
        return self.data.get(key) is not None

    def refuse(self, key: str, expected: object, hint: str | None = None) -> NoReturn:
        """Refuse the value of a key."""
        got = shown(self.data[key]) if key in self else "none"
        raise InvalidProblem(f"in {self.file}", op=self.op, field=self.name(key), expected=expected, got=got, hint=hint)

    def name(self, key: str) -> str:
        """Return what errors call a key."""
        return ".".join(filter(None, (self.where, shown(key)[1:-1])))

    def with_(self, changes: Mapping[str, Any]) -> Section:
        """Return a section of which some entries are others."""
        return Section({**self.data, **changes}, op=self.op, where=self.where, file=self.file)

    def integer(self, *keys: str) -> int | None:
        """Return an integer under the first of the names that is there."""
        found: int | None = self._value(keys, lambda value: type(value) is int, "an integer")
        return found

    def flag(self, *keys: str) -> bool | None:
        """Return True or False."""
        found: bool | None = self._value(keys, lambda value: type(value) is bool, "true or false")
        return found

    def text(self, *keys: str) -> str | None:
        """Return a string."""
        found: str | None = self._value(keys, lambda value: isinstance(value, str), "a string")
        return found

    def texts(self, key: str) -> list[str]:
        """Return a list of strings; an empty one where there is none."""
        found = self._value((key,), _all_texts, "a list of strings")
        return found or []

    def section(self, key: str) -> Section:
        """Return an object within; an empty one where there is none."""
        found = self._value((key,), lambda value: isinstance(value, dict), "an object")
        return Section(found or {}, op=self.op, where=self.name(key), file=self.file)

    def _value(self, keys: tuple[str, ...], good: Callable[[Any], bool], expected: str) -> Any:  # noqa: ANN401 - the caller knows
        """Return the value of the first name that is there, None without one; two that differ are refused."""
        found = [key for key in keys if key in self]
        for key in found:
            if not good(self.data[key]):
                self.refuse(key, expected)
            if self.data[key] != self.data[found[0]]:
                self.refuse(key, f"{shown(self.data[found[0]])}, as {found[0]} says")
        return self.data[found[0]] if found else None


def _all_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
