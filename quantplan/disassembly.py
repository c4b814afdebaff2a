"""Disassembly: what a compiled kernel takes of a GPU, and which instructions it became. No GPU is needed.

Two of NVIDIA's tools read a cubin: ``cuobjdump`` for its resources, ``nvdisasm`` for its instructions.
"""

from __future__ import annotations

import collections
import heapq
import re
from functools import cache

import attrs

from quantplan.errors import CompilerNotFound
from quantplan.record import Record

_RESOURCES = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
_SECTION = re.compile(r"^\s*\.section\s+\.text\.([^,\s]+)", re.MULTILINE)
_LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);|^(\.L_\w+):", re.MULTILINE)
_LABEL = re.compile(r"`\((\.L_\w+)\)")
_PREDICATE = re.compile(r"\bP\d\b")
_REGISTER = re.compile(r"\bR(\d+)(\.64)?")
_TOLD = (
    *("LDG", "STG", "LDL", "STL", "LDS", "STS", "LDGSTS", "UBLKCP", "UTMALDG", "LDSM", "BAR", "SYNCS"),
    *("SHFL", "REDUX", "MUFU", "F2FP", "HMMA", "IMMA", "QMMA", "HGMMA", "IGMMA", "QGMMA"),
)
_UNTOLD = {"E", "NA", "BFLY", "DEFER_BLOCKING", "F32", "PACK_AB", "PACK_AB_MERGE_C"}
_RESERVED = 1024  # of shared memory, for the system: from sm_90 on it is part of the figure where there is any
_RESERVED_SINCE = 90


@attrs.frozen(kw_only=True, repr=False)
class Code(Record):
    """What one kernel was compiled to.

    Parameters
    ----------
    registers : int
        Registers of a thread.
    static_shared_bytes : int
        Shared memory that the kernel declares for itself.
    stack_bytes : int
        Local memory of a thread.
    spill_store_bytes, spill_load_bytes : int
        Bytes that its instructions on local memory move, each counted once: spilled registers, or arrays that are
        indexed by what is not known when compiling. Where they are not 0, something is wrong.
    load_bytes : int
        Width of its widest loads of global memory; 0 where it has none.
    loads_in_flight : int
        How many of these a thread issues, on the path on which it issues most, before it uses the data of one: it waits
        for memory once for all of them.
    instructions : tuple[tuple[str, int], ...]
        How often each instruction stands in it, by its whole name. Paths for rare cases count like all others.
    """

    registers: int
    static_shared_bytes: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    load_bytes: int
    loads_in_flight: int
    instructions: tuple[tuple[str, int], ...]

    @property
    def told(self) -> dict[str, int]:
        """The instructions that tell how a kernel moves and converts data, by name without what says little."""
        told: collections.Counter[str] = collections.Counter()
        for name, number in self.instructions:
            first, *others = name.split(".")
            if first in _TOLD:
                told[".".join((first, *(part for part in others if part not in _UNTOLD)))] += number
        return dict(sorted(told.items(), key=lambda item: _TOLD.index(item[0].partition(".")[0])))

    def count(self, *parts: str) -> int:
        """Return how many instructions begin with the first of some parts of a name and have the others.

        ``count("LDG", "128")`` counts loads from global memory of 16 bytes, cached in whichever way.
        """
        first, *others = parts
        names = ((name.split("."), number) for name, number in self.instructions)
        return sum(number for name, number in names if name[0] == first and set(others) <= set(name))


def disassemble(cubin: bytes) -> dict[str, Code]:
    """Return what each kernel of a cubin was compiled to, by the name of its entry point.

    Raises
    ------
    CompilerNotFound
        A tool is not installed.
    """
    import tempfile  # noqa: PLC0415 - importing quantplan does without
    from pathlib import Path  # noqa: PLC0415 - the same

    with tempfile.TemporaryDirectory(prefix="quantplan-") as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(cubin)
        resources = _run("cuobjdump", "--dump-resource-usage", str(path))
        text = _run("nvdisasm", "--print-code", str(path))
    return parse(resources, text)


def parse(resources: str, text: str) -> dict[str, Code]:
    """Read what the two tools printed."""
    newer = re.search(r"\.target\s+sm_(\d+)", text)
    reserved = _RESERVED if newer and int(newer[1]) >= _RESERVED_SINCE else 0
    _, *sections = _SECTION.split(text)
    bodies = {name: _Body.read(body) for name, body in zip(sections[::2], sections[1::2], strict=True)}
    found = {}
    for name, registers, stack, shared in _RESOURCES.findall(resources):
        body = bodies[name]
        counts = collections.Counter(instruction for _, instruction, _ in body.lines)
        load_bytes = max((_width(i) for i in counts if i.startswith("LDG.")), default=0)
        found[name] = Code(
            registers=int(registers),
            static_shared_bytes=max(0, int(shared) - reserved),
            stack_bytes=int(stack),
            spill_store_bytes=_local_bytes(counts, "STL"),
            spill_load_bytes=_local_bytes(counts, "LDL"),
            load_bytes=load_bytes,
            loads_in_flight=body.loads_in_flight(load_bytes),
            instructions=tuple(sorted(counts.items())),
        )
    return found


@attrs.frozen
class _Body:
    """A kernel's instructions (predicate, name, operands), and where its labels stand among them."""

    lines: tuple[tuple[str, str, str], ...]
    labels: dict[str, int]

    @classmethod
    def read(cls, text: str) -> _Body:
        lines: list[tuple[str, str, str]] = []
        labels = {}
        for predicate, name, operands, label in _LINE.findall(text):
            if label:
                labels[label] = len(lines)
            else:
                lines.append((predicate.strip(), name, operands))
        return cls(tuple(lines), labels)

    def loads_in_flight(self, load_bytes: int) -> int:
        """Follow the paths from every load of a width until one of its registers is named.

        Of paths from one load that meet, only the one goes on that has issued most: each pair of branches, such as a
        wide load and what stands for it where a row ends, would double what there is to follow.
        """
        each = -(-load_bytes // 4)
        loads = {
            i for i, (_, name, _) in enumerate(self.lines) if name.startswith("LDG.") and _width(name) == load_bytes
        }
        named = [_named(operands) for _, _, operands in self.lines]
        after = [self._after(at) for at in range(len(self.lines))]
        most = 0
        for first in loads:
            # in their order, so that paths meet before they go on: where one is, less how many loads it has issued, the
            # registers on their way, as bits, and the predicate under which the last of them was issued
            ahead = [(first, 0, 0, "")]
            issued: dict[tuple[int, str], int] = {}
            while ahead:
                at, fewer, waiting, condition = heapq.heappop(ahead)
                if -fewer <= issued.get((at, condition), -1):
                    continue
                issued[at, condition] = -fewer
                predicate, _, operands = self.lines[at]
                if not condition or predicate != _opposite(condition):
                    if waiting & named[at]:
                        continue
                    if condition and condition.strip("@!") in _PREDICATE.findall(operands):
                        condition = ""  # the predicate may have another value from here on
                    if at in loads:
                        waiting, condition = waiting | _loaded(operands, each), predicate
                        most = max(most, waiting.bit_count() // each)
                for following in after[at]:
                    heapq.heappush(ahead, (following, -(waiting.bit_count() // each), waiting, condition))
        return most

    def _after(self, at: int) -> list[int]:
        """Return where a thread may be next; what it calls is taken to name none of its registers."""
        predicate, name, operands = self.lines[at]
        target = _LABEL.search(operands) if name.startswith("BRA") else None
        goes_on = predicate or not (target or name.startswith(("EXIT", "RET")))
        following = [at + 1] if goes_on and at + 1 < len(self.lines) else []
        return following + ([self.labels[target[1]]] if target and target[1] in self.labels else [])


def _named(operands: str) -> int:
    """Return the registers that an instruction names, as bits."""
    return sum({1 << int(base) + i for base, pair in _REGISTER.findall(operands) for i in range(2 if pair else 1)})


def _loaded(operands: str, count: int) -> int:
    """Return the registers that a load fills, as bits: as many as are wide, from the first that it names on."""
    first = _REGISTER.search(operands)
    return ((1 << count) - 1) << int(first[1]) if first else 0


def _opposite(predicate: str) -> str:
    return predicate.replace("@!", "@") if "!" in predicate else predicate.replace("@", "@!")


def _local_bytes(counts: collections.Counter[str], first: str) -> int:
    return sum(_width(name) * number for name, number in counts.items() if name.partition(".")[0] == first)


def _width(instruction: str) -> int:
    """Return how many bytes an instruction on memory moves for a thread."""
    widths = (part.strip("US") for part in instruction.split("."))
    return next((int(width) // 8 for width in widths if width.isdigit()), 4)


def _run(tool: str, *arguments: str) -> str:
    import subprocess  # noqa: PLC0415 - importing quantplan starts no programs

    path = _tool(tool)
    if path is None:
        hint = f"pip install 'quantplan[inspect]', or put {tool} of a CUDA toolkit on the PATH"
        raise CompilerNotFound(f"{tool} is not installed", op="disassemble", hint=hint)
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout  # noqa: S603 - NVIDIA's tool


@cache
def _tool(name: str) -> str | None:
    """Find a tool in NVIDIA's wheels, in a toolkit, or on the PATH."""
    import shutil  # noqa: PLC0415 - the same

    try:
        from cuda.pathfinder import find_nvidia_binary_utility  # noqa: PLC0415 - importing quantplan touches no CUDA
    except ImportError:
        return shutil.which(name)
    return find_nvidia_binary_utility(name) or shutil.which(name)
