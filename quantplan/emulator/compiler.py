"""The host C++ compiler: found, and made to build kernels into libraries that are kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from quantplan import cache as disk
from quantplan.errors import CompilerNotFound, KernelBuildError, Unsupported
from quantplan.kernels import source_root

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).resolve().parent
COMPILERS = ("g++", "clang++")

_COMMON = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE")
_RUNTIME = (*_COMMON, "-O2", "-pthread")
_KERNEL = (*_COMMON, "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-function")
_UNCHECKED = (*_KERNEL, "-O2")
# The instrumentation calls our own hooks (runtime/memory.cpp). Undefined behaviour becomes an illegal instruction, which
# the runtime reports, so that no sanitizer's runtime is needed.
_CHECKED = (
    *_KERNEL,
    "-O1",
    "-g1",
    "-fsanitize=thread,signed-integer-overflow,shift,integer-divide-by-zero,float-cast-overflow,bool,enum",
    "-fno-sanitize-recover=all",
)


@cache
def find_compiler() -> tuple[str, ...]:
    """Return the command of a host C++ compiler: ``CXX``, g++, clang++, or that of the installed ziglang wheel.

    Raises
    ------
    CompilerNotFound
        There is none.
    """
    if chosen := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(chosen[0]) is None:
            raise CompilerNotFound(
                op="emulator", field="CXX", expected="a C++ compiler", got=chosen[0], hint="unset CXX, or correct it"
            )
        return tuple(chosen)
    for name in COMPILERS:
        if path := shutil.which(name):
            return (path,)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "c++")
    hint = "install g++ or clang++, pip install ziglang, or set CXX"
    raise CompilerNotFound("no host C++ compiler", op="emulator", hint=hint)


def build(text: str, *, arch: int, checked: bool) -> Path:
    """Compile a source for an emulated architecture; return the library, from the cache if it is there.

    Parameters
    ----------
    text : str
        C++ that includes kernel sources by their names in ``kernels_cu``.
    arch : int
        Value of ``__CUDA_ARCH__``, e.g. 900.
    checked : bool
        Whether each load and store is instrumented.

    Raises
    ------
    CompilerNotFound
        There is no compiler.
    KernelBuildError
        It refuses the source.
    Unsupported
        The platform has no fibers here, or no ELF libraries.
    """
    if sys.platform != "linux":
        raise Unsupported(f"the emulated device runs on Linux, not on {sys.platform}", op="emulator", field="target")
    compiler = find_compiler()
    options = (*(_CHECKED if checked else _UNCHECKED), *_trapping(compiler, checked=checked), f"-D__CUDA_ARCH__={arch}")
    includes = (
        *("-I", str(HERE / "include"), "-I", str(source_root() / "include"), "-I", str(source_root())),
        *("-include", "emulated/cuda.h"),
    )
    key = _digest("\0".join((*_identity(compiler), *options, sources_digest(), text)))
    library = disk.folder("emulator") / f"{key}.so"
    with _locked(library):
        if not library.exists():
            with tempfile.TemporaryDirectory(prefix="quantplan-") as scratch:
                source, kernel, linked = (Path(scratch, name) for name in ("kernel.cpp", "kernel.o", "kernel.so"))
                source.write_text(text, encoding="utf-8")
                _call((*compiler, *options, *includes, "-c", str(source), "-o", str(kernel)))
                _call((*compiler, "-shared", "-Wl,-rpath,$ORIGIN", "-o", str(linked), str(kernel), str(_runtime(compiler))))
                disk.write(library, linked.read_bytes())
    return library


@cache
def sources_digest() -> str:
    """Digest everything that a library is made from, apart from the text that names its kernels."""
    digest = hashlib.sha256()
    for root in (HERE, source_root()):
        for path in sorted(root.rglob("*")):
            if path.suffix in {".cu", ".cuh", ".h", ".cpp"}:
                content = path.read_bytes()
                digest.update(f"{path.relative_to(root).as_posix()} {len(content)} ".encode())
                digest.update(content)
    return digest.hexdigest()


def _runtime(compiler: tuple[str, ...]) -> Path:
    """Return the runtime's library: one for all kernels, which find it beside themselves."""
    sources = sorted((HERE / "runtime").glob("*.cpp"))
    key = _digest("\0".join((*_identity(compiler), *_RUNTIME, sources_digest())))
    library = disk.folder("emulator") / f"runtime-{key}.so"
    with _locked(library):
        if not library.exists():
            with tempfile.TemporaryDirectory(prefix="quantplan-") as scratch:
                linked = Path(scratch, library.name)
                name = ("-shared", f"-Wl,-soname,{library.name}", "-o", str(linked))
                _call((*compiler, *_RUNTIME, "-I", str(HERE / "include"), *name, *map(str, sources)))
                disk.write(library, linked.read_bytes())
    return library


def _trapping(compiler: tuple[str, ...], *, checked: bool) -> tuple[str, ...]:
    """Return the option that turns undefined behaviour into an illegal instruction, as the compiler calls it."""
    if not checked:
        return ()
    clang = "clang" in _identity(compiler)[-1]
    # clang would put a function call around each of the kernel's own functions
    return ("-fsanitize-trap=all", "-mllvm", "-tsan-instrument-func-entry-exit=0") if clang else (
        "-fsanitize-undefined-trap-on-error", "--param", "tsan-instrument-func-entry-exit=0",
    )  # fmt: skip


@cache
def _identity(compiler: tuple[str, ...]) -> tuple[str, ...]:
    return (*compiler, _call((*compiler, "--version")))


def _call(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)  # noqa: S603 - a compiler, without a shell
    if done.returncode:
        raise KernelBuildError(op="emulator", options=tuple(command), log=done.stdout + done.stderr)
    return done.stdout


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time build a file; the others find it built."""
    import fcntl  # noqa: PLC0415 - POSIX only, like the emulated device

    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
