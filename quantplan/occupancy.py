"""Occupancy: how many blocks of a kernel fit on an SM at once, by arithmetic alone.

The limits are those of the CUDA C++ Programming Guide, appendix "Compute Capabilities", table "Technical Specifications
per Compute Capability". Granularities, and the rule that warps are dealt to four partitions, are those of
``cuda_occupancy.h`` in the CUDA toolkit: the file behind ``cudaOccupancyMaxActiveBlocksPerMultiprocessor``.
"""

from __future__ import annotations

import attrs

from quantplan.errors import InvalidProblem
from quantplan.record import Record

_WARP = 32
_REGISTERS = 65_536  # of an SM
_PARTITIONS = 4  # of an SM; each has a quarter of the registers, and a quarter of the warps
_REGISTER_UNIT = 256  # what a warp's registers are rounded up to
_SHARED_UNIT = 128
_RESERVED = 1024  # bytes of shared memory that CUDA takes for each block

_KB = 1024


@attrs.frozen
class _Sm:
    """The most of everything that an SM holds at once."""

    threads: int
    blocks: int
    shared_bytes: int


_SMS = {
    (8, 0): _Sm(2048, 32, 164 * _KB),
    (8, 6): _Sm(1536, 16, 100 * _KB),
    (8, 7): _Sm(1536, 16, 164 * _KB),
    (8, 9): _Sm(1536, 24, 100 * _KB),
    (9, 0): _Sm(2048, 32, 228 * _KB),
    (10, 0): _Sm(2048, 32, 228 * _KB),
    (10, 3): _Sm(2048, 32, 228 * _KB),
    (11, 0): _Sm(1536, 24, 228 * _KB),
    (12, 0): _Sm(1536, 24, 100 * _KB),
    (12, 1): _Sm(1536, 24, 100 * _KB),
}


@attrs.frozen(kw_only=True, repr=False)
class Occupancy(Record):
    """How full an SM gets of one kernel.

    Parameters
    ----------
    blocks : int
        Blocks that are resident at once; 0 where not even one fits.
    warps : int
        Their warps.
    fraction : float
        The same as a share of the warps that an SM can hold.
    limit : str
        What does not suffice for one more block: ``threads``, ``blocks``, ``registers`` or ``shared memory``.
    """

    blocks: int
    warps: int
    fraction: float
    limit: str


def occupancy(capability: tuple[int, int], threads: int, registers: int, shared_bytes: int = 0) -> Occupancy:
    """Return how many blocks of a kernel an SM holds at once.

    Parameters
    ----------
    capability : tuple[int, int]
        Compute capability.
    threads : int
        Threads of a block.
    registers : int
        Registers of a thread.
    shared_bytes : int
        Shared memory of a block, static and dynamic.

    Raises
    ------
    InvalidProblem
        The limits of the capability are not known.
    """
    sm = _SMS.get(capability)
    if sm is None:
        known = ", ".join(f"{major}.{minor}" for major, minor in _SMS)
        raise InvalidProblem(op="occupancy", field="capability", expected=f"one of {known}", got=capability)
    warps = -(-threads // _WARP)
    by_registers = _REGISTERS // _PARTITIONS // _round_up(registers * _WARP, _REGISTER_UNIT) * _PARTITIONS // warps
    fits = {
        "threads": sm.threads // (warps * _WARP),
        "blocks": sm.blocks,
        "registers": by_registers,
        "shared memory": sm.shared_bytes // _round_up(shared_bytes + _RESERVED, _SHARED_UNIT),
    }
    limit = min(fits, key=lambda name: fits[name])
    blocks = fits[limit]
    return Occupancy(blocks=blocks, warps=blocks * warps, fraction=blocks * warps * _WARP / sm.threads, limit=limit)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
