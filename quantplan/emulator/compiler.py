"""The host C++ compiler: found, and made to build kernels into libraries that are kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from quantplan import cache as disk
from quantplan.errors import CompilerNotFound, KernelBuildError, Unsupported
from quantplan.kernels import included, source_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HERE = Path(__file__).resolve().parent
RUNTIME = HERE / "runtime"
PRELUDE = "emulated/cuda.h"  # included before every kernel
COMPILERS = ("g++", "clang++")
_log = logging.getLogger(__name__)

_COMMON = (
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-U_FORTIFY_SOURCE",
)
_RUNTIME = (*_COMMON, "-O3", "-pthread", "-DEMULATED_RUNTIME")
_KERNEL = (*_COMMON, "-g1", "-fno-exceptions")
_UNCHECKED = (*_KERNEL, "-O2")
# The instrumentation calls our own hooks (runtime/hooks.cpp and undefined.cpp): no sanitizer's runtime is needed. Loads
# of structs that are passed by value are seen where functions are inlined: by -O1 they are, by -Og many are not.
_CHECKED = (
    *_KERNEL,
    "-O1",
    "-fsanitize=thread,alignment,bool,bounds,enum,object-size",
    "-fsanitize=float-cast-overflow,integer-divide-by-zero,shift,signed-integer-overflow",
    "-fno-sanitize-recover=all",
)
_COPIES = ("-Wl,--wrap=memcpy", "-Wl,--wrap=memmove", "-Wl,--wrap=memset")
# Nothing is to be done where a function begins and ends; a read that a write follows counts too. An array at the end of
# a struct has the size that it is declared with.
_INSTRUMENTATION = {
    "gcc": ("--param", "tsan-instrument-func-entry-exit=0", "-fsanitize=bounds-strict"),
    "clang": ("-mllvm", "-tsan-instrument-func-entry-exit=0", "-mllvm", "-tsan-instrument-read-before-write=1"),
}


def find_compiler() -> tuple[str, ...]:
    """Return the command of a host C++ compiler: ``CXX``, g++, clang++, or that of the installed ziglang wheel.

    Raises
    ------
    CompilerNotFound
        There is none.
    """
    if chosen := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(chosen[0]) is None:
            hint = "unset CXX, or correct it"
            raise CompilerNotFound(f"CXX names {chosen[0]}, and there is no such program", op="emulator", hint=hint)
        return tuple(chosen)
    for name in COMPILERS:
        if path := shutil.which(name):
            return (path,)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "c++")
    hint = "install g++ or clang++, pip install ziglang, or set CXX"
    raise CompilerNotFound(f"none of {', '.join(COMPILERS)} and ziglang", op="emulator", hint=hint)


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
    runtime = _runtime(compiler)
    family = "clang" if "clang" in _identity(compiler)[-1] else "gcc"
    instrumentation = (*_CHECKED, *_INSTRUMENTATION[family]) if checked else _UNCHECKED
    options = (*instrumentation, f"-D__CUDA_ARCH__={arch}")
    includes = (*(f"-I{folder}" for folder in _folders()), "-include", PRELUDE)

    def make(library: Path) -> None:
        source, kernel = library.with_name("kernel.cpp"), library.with_name("kernel.o")
        source.write_text(text, encoding="utf-8")
        _call((*compiler, *options, *includes, "-c", str(source), "-o", str(kernel)))
        hooks = _COPIES if checked else ()
        linking = ("-shared", "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed", *hooks, "-o", str(library))
        _call((*compiler, *linking, str(kernel), str(runtime)))

    key = _digest(*_identity(compiler), *options, runtime.name, _sources(text), text)
    return _built(runtime.with_name(f"{key}.so"), make)


def _runtime(compiler: tuple[str, ...]) -> Path:
    """Return the runtime's library: one for all kernels, which find it beside themselves."""
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(RUNTIME.iterdir())}
    units = [path for path in sources if path.suffix == ".cpp"]

    def make(library: Path) -> None:
        def compiled(unit: Path) -> str:
            made = str(library.with_name(f"{unit.stem}.o"))
            _call((*compiler, *_RUNTIME, f"-I{HERE / 'include'}", "-c", str(unit), "-o", made))
            return made

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # it is what a first use of the emulated device waits for
            objects = [*pool.map(compiled, units)]
        _call((*compiler, "-shared", "-pthread", f"-Wl,-soname,{library.name}", "-o", str(library), *objects))

    text = "\n".join(sources.values())
    key = _digest(*_identity(compiler), *_RUNTIME, _sources(text), text)
    return _built(disk.folder("emulator") / f"runtime-{key}.so", make)


def _folders() -> tuple[Path, ...]:
    """Return where includes are looked for: what the emulator replaces comes first."""
    return (HERE / "include", source_root() / "include", source_root())


@cache
def _sources(text: str) -> str:
    """Digest every file of ours that a text includes, so that an edit rebuilds what it concerns and nothing else."""
    paths = included(f"#include <{PRELUDE}>\n{text}", _folders())
    return _digest(*(part for path in paths for part in (path.name, path.read_text(encoding="utf-8"))))


def _built(library: Path, make: Callable[[Path], None]) -> Path:
    """Return a library of the cache, made first if it is not there."""
    if not library.exists():
        with _locked(library):
            if not library.exists():  # nor made by another process meanwhile
                start = time.perf_counter()
                with tempfile.TemporaryDirectory(prefix="quantplan-") as scratch:
                    fresh = Path(scratch, library.name)
                    make(fresh)
                    disk.write(library, fresh.read_bytes())
                _log.info("compiled %s in %.1f s", library, time.perf_counter() - start)
    return library


@cache
def _identity(compiler: tuple[str, ...]) -> tuple[str, ...]:
    return (*compiler, _call((*compiler, "--version")))


def _call(command: Sequence[str]) -> str:
    done = subprocess.run(  # noqa: S603 - a compiler, without a shell
        command, capture_output=True, encoding="utf-8", errors="replace", check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        log = done.stdout + done.stderr
        silent = "" if log.strip() else f"{command[0]} exited with {done.returncode} and said nothing"
        raise KernelBuildError(silent, op="emulator", options=tuple(command), log=log)
    return done.stdout


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time build a file.

    The lock goes away with its holder. Whoever waited for it finds the file built; if not, two may build it at once,
    which costs time only.
    """
    import fcntl  # noqa: PLC0415 - POSIX only, like the emulated device

    lock = path.with_name(f"{path.name}.lock")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
