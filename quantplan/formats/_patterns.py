"""Patterns of module names in a checkpoint's configuration: regular expressions that somebody else wrote.

Python's matcher can take exponential time for one of a dozen characters, ``(a+)+b``, or for ``(a|a)`` many times over.
With no repeated group and few choices time is bounded by the length of a name to the power of the choices. Flags that
give signs another meaning, and whatever else ``(?`` begins that is not read here, are refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantplan.formats._json import Section

MAX_CHOICES = 5
MAX_NAME = 200
MAX_PATTERN = 1000

_PARTS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\((?:\?(?:[:=!]|i\))?)?|\)[*+{]|[*+{?]\??|.", re.DOTALL)


def matches(pattern: str, name: str, config: Section, key: str) -> bool:
    """Whether a module's name begins as a pattern says.

    Raises
    ------
    InvalidProblem
        The pattern is none, or could take for ever; the error's field is where it stands in the configuration.
    """
    parts = _PARTS.findall(pattern) if len(pattern) <= MAX_PATTERN else []
    if len(pattern) > MAX_PATTERN or len(name) > MAX_NAME:
        config.refuse(key, f"patterns of at most {MAX_PATTERN} characters, and names of {MAX_NAME}")
    if any(part.startswith(")") and len(part) > 1 for part in parts):
        config.refuse(key, "patterns without repeated groups", "name the modules one by one")
    if any(part == "(?" for part in parts):
        config.refuse(key, "patterns of groups, lookaheads and (?i), and no other (?", "name the modules one by one")
    if any(re.fullmatch(r"\\[1-9]", part) for part in parts):
        config.refuse(key, "patterns without references back", "name the modules one by one")
    if sum(part[0] in "*+{?(" for part in parts) > MAX_CHOICES:
        config.refuse(key, f"patterns of at most {MAX_CHOICES} repeats and groups", "name the modules one by one")
    try:
        return re.match(pattern, name) is not None
    except (re.error, OverflowError, RecursionError):
        config.refuse(key, "regular expressions")
