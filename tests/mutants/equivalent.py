"""Equivalent mutants: those whose change cannot be observed, listed in ``equivalent.toml`` with the reason why."""

import tomllib
from pathlib import Path

import attrs

TABLE = Path(__file__).with_name("equivalent.toml")


@attrs.frozen
class Entry:
    """Some operators' mutants of a line, wherever in the file it stands; with [n] behind it, of the nth such line."""

    file: str
    line: str
    operators: tuple[str, ...]
    reason: str


class Equivalents:
    """The table."""

    def __init__(self, entries):
        self._entries = tuple(entries)
        self._by_key = {(e.file, e.line, operator): e for e in self._entries for operator in e.operators}

    @classmethod
    def read(cls, path=TABLE):
        """Read the table: reasons, each with the mutants that it holds for."""
        return cls(
            Entry(file, line, tuple(operators), group["reason"])
            for group in tomllib.loads(path.read_text("utf-8"))["equivalent"]
            for file, line, *operators in group["mutants"]
        )

    def reason(self, mutant):
        """Return why a mutant is equivalent, or None."""
        return next((self._by_key[key].reason for key in _keys(mutant) if key in self._by_key), None)

    def stale(self, mutants):
        """Return what is wrong with the table, in words: entries without a reason, or of mutants that are not there."""
        there = {key for mutant in mutants for key in _keys(mutant)}
        problems = [f"{e.file}: no reason for {e.line}" for e in self._entries if not e.reason.strip()]
        return problems + [
            f"{file}: no mutant {operator} of {line}" for file, line, operator in self._by_key.keys() - there
        ]


def _keys(mutant):
    """Return what an entry may call a mutant."""
    for line in (mutant.before, f"{mutant.before} [{mutant.nth}]"):
        yield mutant.file, line, mutant.operator
