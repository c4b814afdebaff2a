"""From an address in a compiled library to the line of the kernel's source."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any


def line_of(library: Path, pc: int) -> str:
    """Return ``FILE:LINE`` of an address of a library, or the address where the line cannot be told.

    Parameters
    ----------
    library : pathlib.Path
        An ELF library with line tables.
    pc : int
        Offset of an instruction in it.
    """
    lines = _lines(library)
    if lines is None:
        return f"{library.name}+{pc:#x} (pip install pyelftools to see the line)"
    best = None
    for begin, end, file, line in lines:
        if begin <= pc < end and line and (best is None or begin > best[0]):
            best = (begin, file, line)
    return f"{best[1]}:{best[2]}" if best else f"{library.name}+{pc:#x}"


@cache
def _lines(library: Path) -> list[tuple[int, int, str, int]] | None:
    """Return the line table as (first address, address behind, file, line); None without the package that reads it."""
    try:
        from elftools.elf.elffile import ELFFile  # noqa: PLC0415 - only a fault needs it
    except ImportError:
        return None
    found: list[tuple[int, int, str, int]] = []
    with library.open("rb") as file:
        elf = ELFFile(file)
        if not elf.has_dwarf_info():
            return found
        dwarf = elf.get_dwarf_info()
        for unit in dwarf.iter_CUs():
            program = dwarf.line_program_for_CU(unit)
            if program is not None:
                found += _ranges(program, first_file=0 if program.header.version >= 5 else 1)  # noqa: PLR2004 - DWARF 5
    return found


def _ranges(program: Any, first_file: int) -> list[tuple[int, int, str, int]]:  # noqa: ANN401 - pyelftools has no types
    names = [Path(entry.name.decode(errors="replace")).name for entry in program.header.file_entry]
    found, previous = [], None
    for entry in program.get_entries():
        state = entry.state
        if state is None:
            continue
        if previous is not None and previous.address < state.address:
            found.append((previous.address, state.address, names[previous.file - first_file], previous.line))
        previous = None if state.end_sequence else state
    return found
