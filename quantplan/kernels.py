"""Kernels: where the CUDA sources are, which kernel a plan wants of them, and how NVRTC makes it a cubin.

A family's source, such as ``quantize.cu``, holds templates. A `KernelSpec` names one instance; the text that is
compiled includes the source and appends the entry point. The emulated device compiles the same text.
"""

from __future__ import annotations

import os
import re
import struct
from functools import cache
from typing import TYPE_CHECKING

import attrs

from quantplan.errors import CompilerNotFound, InvalidProblem, KernelBuildError
from quantplan.tensor_maps import MAP_ALIGNMENT, MAP_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import TextIO

_PACKAGE = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 - pathlib is imported where files are read
_FOLDER = "kernels_cu"
_NVRTC_HINT = (
    "pip install 'quantplan[cuda13]', or point QUANTPLAN_CUBIN_PATH to what `quantplan warmup` wrote on another machine"
)
MOST_CLUSTER = 8
"""Blocks of a cluster on every GPU that has clusters."""
_MARKER = "README.md"  # tells the folder of sources from a namesake


def source_root() -> Path:
    """Return the folder of the CUDA sources.

    A wheel carries it inside the package; a checkout, and an editable install of one, has it beside the package.

    Returns
    -------
    pathlib.Path
        The absolute path of ``kernels_cu``.

    Raises
    ------
    FileNotFoundError
        If neither place has it: the installation is incomplete.
    """
    from pathlib import Path  # noqa: PLC0415 - with hashlib, a tenth of what importing quantplan costs

    package = Path(_PACKAGE)
    candidates = (package / _FOLDER, package.parent / _FOLDER)
    for folder in candidates:
        if (folder / _MARKER).is_file():
            return folder
    looked = " nor ".join(str(folder) for folder in candidates)
    raise FileNotFoundError(
        f"quantplan's CUDA sources are missing: neither {looked} holds {_MARKER} (reinstall quantplan, or run it "
        f"from a complete checkout)"
    )


def source_digest(paths: Iterable[Path]) -> str:
    """Digest CUDA sources by name and content, whatever their order and wherever they are installed.

    Parameters
    ----------
    paths : iterable of pathlib.Path
        Files under ``source_root()``.

    Returns
    -------
    str
        The SHA-256 in hexadecimal. Renaming a file changes it as editing one does.
    """
    import hashlib  # noqa: PLC0415 - see above

    root = source_root().resolve()
    digest = hashlib.sha256()
    for name, path in sorted((path.resolve().relative_to(root).as_posix(), path) for path in paths):
        content = path.read_bytes()
        # Lengths first, so that no two sets of files share one stream of bytes.
        digest.update(f"{len(name.encode())} {len(content)} ".encode())
        digest.update(name.encode())
        digest.update(content)
    return digest.hexdigest()


def included(text: str, folders: Sequence[Path]) -> tuple[Path, ...]:
    """Return every file of some folders that a source includes, however deep; files of other folders are left out.

    Parameters
    ----------
    text : str
        The source.
    folders : sequence of pathlib.Path
        Where to look, in the compiler's order.
    """
    found: dict[Path, None] = {}
    waiting = [text]
    while waiting:
        for name in _INCLUDE.findall(waiting.pop()):
            path = next((folder / name for folder in folders if (folder / name).is_file()), None)
            if path is not None and path not in found:
                found[path] = None
                waiting.append(path.read_text(encoding="utf-8"))
    return tuple(found)


@cache
def family_sources(source: str) -> tuple[Path, ...]:
    """Return a family's source and everything of ours that it includes, however deep.

    Parameters
    ----------
    source : str
        Name of a file in ``kernels_cu``.
    """
    root = source_root()
    text = (root / source).read_text(encoding="utf-8")
    return (root / source, *included(text, (root / "include", root)))


@cache
def family_digest(source: str) -> str:
    """Digest a family's source with everything that it includes."""
    return source_digest(family_sources(source))


_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*<([^>]+)>", re.MULTILINE)


_PLACE = {"T": 0, "P": 1}
"""What comes first in a parameter struct; all other formats come last."""


@attrs.frozen
class ParamStruct:
    """The one parameter of a kernel: a C struct, by its fields in order.

    Parameters
    ----------
    name : str
        Its name in the source.
    fields : tuple[tuple[str, str], ...]
        Name and format of each field, in `struct`'s letters: ``P`` pointer, ``q`` 64-bit and ``i`` 32-bit integer,
        ``f`` and ``d`` floats; and ``T``, a tensor map.
    """

    name: str
    fields: tuple[tuple[str, str], ...]

    def __attrs_post_init__(self) -> None:
        """Refuse addresses behind other fields: a launch writes them anew, and leaves the rest as it is."""
        letters = [letter for _, letter in self.fields]
        if letters != sorted(letters, key=lambda letter: _PLACE.get(letter, len(_PLACE))):
            expected = "tensor maps, then pointers, before all other fields"
            raise InvalidProblem(op="ParamStruct", field=self.name, expected=expected, got="".join(letters))

    @property
    def size(self) -> int:
        """Bytes of the struct."""
        return _layout(self.fields).size

    @property
    def pointers(self) -> int:
        """How many of its fields, the first ones behind the tensor maps, are pointers."""
        return sum(letter == "P" for _, letter in self.fields)

    @property
    def tensor_maps(self) -> int:
        """How many of its fields, the first ones, are tensor maps."""
        return sum(letter == "T" for _, letter in self.fields)

    def pack(self, values: Sequence[int | float | bytes]) -> bytes:
        """Return the struct's bytes for the values of its fields, in order."""
        return _layout(self.fields).pack(*values)


@cache
def _layout(fields: tuple[tuple[str, str], ...]) -> struct.Struct:
    """Lay a struct out as C does: native sizes and alignment, padded to a multiple of the widest field's."""
    formats = [f"{MAP_BYTES}s" if letter == "T" else letter for _, letter in fields]
    alignment = max(MAP_ALIGNMENT if letter == "T" else struct.calcsize(letter) for _, letter in fields)
    dense = f"@{''.join(formats)}"
    return struct.Struct(f"{dense}{-struct.calcsize(dense) % alignment}x")


@attrs.frozen(kw_only=True)
class KernelSpec:
    """One kernel: an instance of a family's templated body.

    Parameters
    ----------
    source : str
        File in ``kernels_cu``.
    body : str
        The body with its template arguments, as names within namespace ``qp``.
    threads : int
        Most threads that a block will have.
    params : ParamStruct
        Its parameter.
    shared_bytes : int
        Most dynamic shared memory that a block will have, where that is more than 48 KB.
    cluster : int
        How many neighbouring blocks run at once and share their shared memory; 1 for none.
    """

    source: str
    body: str
    threads: int
    params: ParamStruct
    shared_bytes: int = 0
    cluster: int = 1

    def __attrs_post_init__(self) -> None:
        """Refuse clusters that not every GPU with clusters can run."""
        if not 1 <= self.cluster <= MOST_CLUSTER:
            expected = f"1 to {MOST_CLUSTER} blocks"
            raise InvalidProblem(op="KernelSpec", field="cluster", expected=expected, got=self.cluster)

    @property
    def name(self) -> str:
        """Name of the entry point."""
        return "qp_" + re.sub(r"\W+", "_", self.body).strip("_")


def source_text(specs: Iterable[KernelSpec]) -> str:
    """Return the translation unit that holds some kernels."""
    wanted = tuple(specs)
    includes = [f"#include <{source}>" for source in dict.fromkeys(spec.source for spec in wanted)]
    entries = [_entry(spec) for spec in wanted]
    return "\n".join([*includes, "namespace qp {", *entries, "}", ""])


def _entry(spec: KernelSpec) -> str:
    macro, extent = ("QP_KERNEL", "") if spec.cluster == 1 else ("QP_CLUSTER_KERNEL", f"{spec.cluster}, ")
    return f"{macro}({spec.name}, {extent}{spec.threads}, {spec.params.name}, {spec.body})"


def compile_cubin(specs: Iterable[KernelSpec], arch: str) -> bytes:
    """Compile kernels with NVRTC. It needs no GPU and no driver.

    Parameters
    ----------
    specs : iterable of KernelSpec
        What the cubin shall hold.
    arch : str
        The architecture, e.g. ``sm_90a``.

    Raises
    ------
    CompilerNotFound
        cuda-core or NVRTC is not installed.
    KernelBuildError
        NVRTC refuses the source; it carries options and log.
    """
    return compile_text(source_text(specs), arch)


def compile_options() -> tuple[str, ...]:
    """Return the options that decide what a kernel computes, as NVRTC spells them; the architecture is apart."""
    # the numeric contract: no contraction, no flush to zero, true divisions
    numbers = ("--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
    # NVRTC before 13.1 or so takes a generic lambda in a kernel for a function of the host without the second option
    return ("--std=c++17", "--device-as-default-execution-space", *numbers)


@cache
def nvrtc_version() -> str:
    """Return the version of the NVRTC that compiles, e.g. ``13.0``.

    Raises
    ------
    CompilerNotFound
        cuda-core or NVRTC is not installed.
    """
    try:
        from cuda.bindings import nvrtc  # noqa: PLC0415 - importing quantplan touches no CUDA
    except ImportError as error:
        raise _not_installed("cuda-core") from error
    try:
        _, major, minor = nvrtc.nvrtcVersion()
    except Exception as error:  # cuda.pathfinder's
        if _lacks_nvrtc(error):
            raise _not_installed("NVRTC") from error
        raise
    return f"{major}.{minor}"


def compile_text(text: str, arch: str, to: str = "cubin", log: TextIO | None = None) -> bytes:
    """Compile a translation unit that may include our sources, to a cubin or to ``ptx``; see `compile_cubin`.

    What the compiler remarks upon where it succeeds goes to the log.
    """
    try:
        from cuda.core import Program, ProgramOptions  # noqa: PLC0415 - importing quantplan touches no CUDA
    except ImportError as error:
        raise _not_installed("cuda-core") from error
    root = source_root()
    includes = [str(root / "include"), str(root)]
    options = ProgramOptions(
        arch=arch,
        std="c++17",
        device_as_default_execution_space=True,
        include_path=includes,
        fma=False,
        ftz=False,
        prec_div=True,
        prec_sqrt=True,
    )
    try:
        return bytes(Program(text, "c++", options).compile(to, logs=log).code)
    except Exception as error:  # cuda.core's own errors have no public base
        if _lacks_nvrtc(error):
            raise _not_installed("NVRTC") from error
        if type(error).__module__.startswith("cuda"):
            flags = (f"--gpu-architecture={arch}", *compile_options(), *(f"--include-path={path}" for path in includes))
            raise KernelBuildError(op="compile", options=flags, log=str(error).rstrip("\n\0 ")) from error
        raise


def _lacks_nvrtc(error: Exception) -> bool:
    return type(error).__name__ == "DynamicLibNotFoundError"  # importing it would need cuda-core


def _not_installed(what: str) -> CompilerNotFound:
    return CompilerNotFound(f"{what} is not installed", op="compile", hint=_NVRTC_HINT)
