"""Record: what descriptors, preferences, SKUs and guarantees have in common as plain, portable data."""

from __future__ import annotations

import contextlib
import enum
import inspect
import operator
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

import attrs
import numpy as np

from quantplan.errors import InvalidProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SCHEMA = 1
"""Version of the dictionaries that `Record.to_dict` writes."""

_KINDS: dict[str, type[Record]] = {}


class Record:
    """Base of the frozen attrs classes: a short repr, ``replace``, and versioned dictionaries.

    Equality, hashing and pickling come from attrs. Every subclass is registered under its name, so that
    ``Record.from_dict`` rebuilds any of them; a second one of a name, in another module, is an `InvalidProblem`.
    """

    __slots__ = ()
    __attrs_attrs__: ClassVar[tuple[attrs.Attribute[Any], ...]]

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401 - forwarded as they are
        super().__init_subclass__(**kwargs)
        known = _KINDS.get(cls.__name__, cls)
        if known.__module__ != cls.__module__:
            raise InvalidProblem(
                op="Record",
                field="name",
                expected="a name of its own: dictionaries say it",
                got=f"{cls.__module__}.{cls.__name__}, when there is {known.__module__}.{known.__name__}",
            )
        _KINDS[cls.__name__] = cls  # attrs makes slotted classes twice: the second, final one stays

    def __repr__(self) -> str:
        """Show the fields that differ from their defaults."""
        shown = [
            f"{a.name}={_short(value)}"
            for a in self.__attrs_attrs__
            if (value := getattr(self, a.name)) != _plain_default(a, self)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def replace(self, **changes: Any) -> Self:  # noqa: ANN401 - each field has its own type
        """Return a copy with some fields changed; every rule of the class is checked again.

        Fields that have the default which follows from others follow them again.

        Raises
        ------
        InvalidProblem
            A field that the class does not have, or a value that it refuses.
        """
        known = {a.name for a in self.__attrs_attrs__}
        for name in changes:
            if name not in known:
                raise InvalidProblem(
                    op=type(self).__name__, field=name, expected=f"one of {', '.join(sorted(known))}", got=name
                )
        kept = {a.name: getattr(self, a.name) for a in self.__attrs_attrs__ if not _follows(a, self)}
        return type(self)(**(kept | changes))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible data: ``schema``, ``type`` and one entry per field."""
        fields = {a.name: _encode(getattr(self, a.name)) for a in self.__attrs_attrs__}
        return {"schema": SCHEMA, "type": type(self).__name__, **fields}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Rebuild what `to_dict` wrote.

        Raises
        ------
        InvalidProblem
            Another schema version, another class than asked for, or unknown or missing fields.
        """
        if not isinstance(data, dict):
            raise InvalidProblem(op=cls.__name__, expected="a dictionary", got=type(data).__name__)
        _expect(cls, "schema", repr(SCHEMA), repr(data.get("schema")))
        kind = _KINDS.get(str(data.get("type")))
        if kind is None or inspect.isabstract(kind) or not issubclass(kind, cls):
            raise InvalidProblem(op=cls.__name__, field="type", expected=cls.__name__, got=repr(data.get("type")))
        try:
            values = {str(name): _decode(value) for name, value in data.items() if name not in ("schema", "type")}
        except RecursionError:
            raise InvalidProblem(op=cls.__name__, expected="a few levels", got="records without end") from None
        known = {a.name for a in kind.__attrs_attrs__}
        _expect(kind, "fields", sorted(known), sorted(values))
        return kind(**values)


def _follows(field: attrs.Attribute[Any], owner: Record) -> bool:
    """Whether a field has the default that follows from the other fields."""
    takes_self = getattr(field.default, "takes_self", False)
    return takes_self and getattr(owner, field.name) == _plain_default(field, owner)


def _plain_default(field: attrs.Attribute[Any], owner: Record) -> object:
    default: Any = field.default
    if not isinstance(default, attrs.Factory):  # type: ignore[arg-type] # the stub calls it a function
        return default
    return default.factory(owner) if default.takes_self else default.factory()


def _short(value: object) -> str:
    return value.name if isinstance(value, enum.Enum) else repr(value)


def _encode(value: object) -> object:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return value


def _decode(value: object) -> object:
    if isinstance(value, dict) and "type" in value:
        return Record.from_dict(value)
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    return value


def _expect(cls: type[Record], field: str, expected: object, got: object) -> None:
    if expected != got:
        raise InvalidProblem(op=cls.__name__, field=field, expected=expected, got=got)


def field(convert: Callable[[Any], Any], default: Any = attrs.NOTHING, *, optional: bool = False) -> Any:  # noqa: ANN401 - attrs.field's own types
    """Make a field whose values are converted; what cannot be is an `InvalidProblem` that names class and field.

    Parameters
    ----------
    convert : callable
        A function that raises `InvalidProblem`, or an enum.
    default : object, optional
        Default value, or attrs.Factory.
    optional : bool
        Whether None stays None; it does anyway where it is the default.
    """
    return attrs.field(default=default, converter=_converter(convert, optional or default is None))


@cache
def _converter(convert: Callable[[Any], Any], optional: bool) -> Any:  # noqa: ANN401, FBT001 - attrs' type; a key of the cache
    """Return the converter of all fields of a kind: attrs looks at the signature of each, which takes long."""

    def to_field(value: Any, owner: Any, attribute: attrs.Attribute[Any]) -> Any:  # noqa: ANN401 - any field's type
        if value is None and optional:
            return None
        try:
            return convert(value)
        except InvalidProblem as error:
            error.op, error.field = type(owner).__name__, attribute.name
            raise
        except ValueError:
            members: Iterable[Any] = convert if isinstance(convert, enum.EnumMeta) else ()
            expected = f"one of {', '.join(str(member.value) for member in members)}"
            raise InvalidProblem(
                op=type(owner).__name__, field=attribute.name, expected=expected, got=repr(value)
            ) from None

    return attrs.Converter(to_field, takes_self=True, takes_field=True)


def dimension() -> Any:  # noqa: ANN401 - attrs.field's own type
    """Make the field of a dimension: a Python or NumPy integer, stored as int.

    A dimension must fit in 31 bits: rows go in ``grid.x``, whose limit that is. Products of dimensions may be larger.
    """
    return field(_to_dimension)


def _to_dimension(value: object) -> int:
    number = to_integer(value)
    if not 0 <= number < 2**31:
        raise InvalidProblem(expected="an integer in [0, 2**31)", got=number)
    return number


def to_integer(value: object) -> int:
    """Convert a Python or NumPy integer to int; refuse everything else, booleans too."""
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            return operator.index(value)  # type: ignore[arg-type] # TypeError is the check
    raise InvalidProblem(expected="an integer", got=repr(value))


def to_size(value: object) -> int:
    """Convert a Python or NumPy integer ≥ 0 to int."""
    number = to_integer(value)
    if number < 0:
        raise InvalidProblem(expected="an integer ≥ 0", got=number)
    return number


def to_number(value: object) -> float:
    """Convert a Python or NumPy real number to float; refuse everything else, booleans and arrays too."""
    if isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer beyond f64
            return float(value) + 0.0  # −0 becomes 0: what compares equal gives equal results
    raise InvalidProblem(expected="a number", got=repr(value))


def to_text(value: object) -> str:
    """Take a string; refuse everything else."""
    if isinstance(value, str):
        return value
    raise InvalidProblem(expected="a string", got=repr(value))


def record_of(kind: type[Record]) -> Callable[[object], Record]:
    """Return a converter that takes records of one class and refuses everything else."""

    def take(value: object) -> Record:
        if isinstance(value, kind):
            return value
        raise InvalidProblem(expected=f"a {kind.__name__}", got=repr(value))

    return take


def to_flag(value: object) -> bool:
    """Convert a Python or NumPy boolean to bool; refuse everything else."""
    if isinstance(value, (bool, np.bool)):
        return bool(value)
    raise InvalidProblem(expected="True or False", got=repr(value))


def to_tuple(value: Any) -> Any:  # noqa: ANN401 - mypy takes no generic converters
    """Convert a sequence to a tuple; None stays None."""
    return None if value is None else tuple(value)
