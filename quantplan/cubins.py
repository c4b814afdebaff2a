"""Cubins: kernels compiled for an architecture, from wherever they are at hand.

spec, arch ─▶ this process ─▶ QUANTPLAN_CUBIN_PATH ─▶ the cache on disk ─▶ NVRTC
              (memory)        (`quantplan warmup`)    (cuda.core's)

A key stands for the kernel's text, every source that it includes, the architecture and the options: an edit never runs
a stale cubin. The cache also tells one version of NVRTC from another; what was precompiled is used whatever made it, on
machines without NVRTC too. Beside each cubin on disk lies a digest of its content; one that does not match is never
loaded.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantplan import cache as disk
from quantplan.errors import KernelBuildError
from quantplan.kernels import compile_cubin, compile_options, family_digest, nvrtc_version, source_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantplan.kernels import KernelSpec

PATH_VARIABLE = "QUANTPLAN_CUBIN_PATH"

_log = logging.getLogger(__name__)
_memory: dict[str, bytes] = {}
_one_compiler = threading.Lock()


def cubin(spec: KernelSpec, arch: str) -> bytes:
    """Return a kernel's cubin, compiled if it is nowhere yet.

    Parameters
    ----------
    spec : KernelSpec
        The kernel.
    arch : str
        The architecture, e.g. ``sm_90a``.

    Raises
    ------
    CompilerNotFound
        It must be compiled, and NVRTC is not installed.
    KernelBuildError
        NVRTC refuses it, or a precompiled cubin was damaged.
    """
    key = key_of(spec, arch)
    if (found := _memory.get(key)) is None:
        with _one_compiler:
            found = _memory.get(key) or _precompiled(spec, key) or _cached(spec, arch, key)
            _memory[key] = found
    return found


def key_of(spec: KernelSpec, arch: str) -> str:
    """Return what tells one compilation of a kernel from another, in hexadecimal."""
    return _sha256("\0".join((source_text([spec]), family_digest(spec.source), arch, *compile_options())).encode())


def file_name(spec: KernelSpec, key: str) -> str:
    """Return the name of a precompiled cubin: readable, and unique by its key."""
    return f"{spec.name[:80]}-{key[:32]}.cubin"


def save(spec: KernelSpec, arch: str, folder: Path) -> Path:
    """Write a kernel's cubin, and its digest beside it, for a machine without NVRTC; return its path.

    Parameters
    ----------
    spec, arch
        As in `cubin`.
    folder : pathlib.Path
        An existing folder, which ``QUANTPLAN_CUBIN_PATH`` names on the other machine.
    """
    path = folder / file_name(spec, key_of(spec, arch))
    content = cubin(spec, arch)
    disk.write(_digest_path(path), sha256(content).encode())
    disk.write(path, content)
    return path


def is_precompiled(spec: KernelSpec, arch: str, *folders: Path) -> bool:
    """Whether a kernel's cubin lies in one of some folders, or where ``QUANTPLAN_CUBIN_PATH`` says."""
    name = file_name(spec, key_of(spec, arch))
    return any((folder / name).is_file() for folder in (*folders, *_folders()))


def sha256(content: bytes) -> str:
    """Return the digest that lies beside a cubin."""
    return _sha256(content)


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _folders() -> list[Path]:
    return [Path(folder) for folder in os.environ.get(PATH_VARIABLE, "").split(os.pathsep) if folder]


def _precompiled(spec: KernelSpec, key: str) -> bytes | None:
    for folder in _folders():
        path = folder / file_name(spec, key)
        try:
            content, digest = path.read_bytes(), _digest_path(path).read_bytes().strip()
        except OSError:
            continue
        if sha256(content).encode() == digest:
            return content
        raise KernelBuildError(
            f"{path} is not what its digest says",
            op="load",
            field=spec.name,
            options=(),
            log="",
            hint=f"run `quantplan warmup` again, or take its folder out of {PATH_VARIABLE}",
        )
    return None


def _cached(spec: KernelSpec, arch: str, key: str) -> bytes:
    """Return a cubin from the cache on disk, which keeps what is compiled now."""
    store, content = _store(), None
    if store is not None:
        key = f"{key}-nvrtc-{nvrtc_version()}"
        content = _verified(store, spec, key)
    if content is None:
        started = time.perf_counter()
        content = compile_cubin([spec], arch)
        _log.info("compiled %s for %s in %.0f ms", spec.name, arch, 1e3 * (time.perf_counter() - started))
        if store is not None:
            with _best_effort("written to"):
                store[_digest_key(key)] = sha256(content).encode()
                store[key] = content
    return content


def _verified(store: Any, spec: KernelSpec, key: str) -> bytes | None:  # noqa: ANN401 - cuda.core's cache
    with _best_effort("read"):
        content, digest = store.get(key), store.get(_digest_key(key))
        if content is not None and digest == sha256(content).encode():
            return bytes(content)
        if content is not None:
            _log.warning("a cached cubin of %s is not what its digest says: it is compiled anew", spec.name)
    return None


def _digest_key(key: str) -> str:
    return f"{key}.sha256"


def _store() -> Any:  # noqa: ANN401 - cuda.core has no stub that holds on every version
    """Return cuda.core's cache in our folder; None where cuda.core is missing."""
    try:
        from cuda.core.utils import FileStreamProgramCache  # noqa: PLC0415 - importing quantplan touches no CUDA
    except ImportError:
        return None
    try:
        return FileStreamProgramCache(disk.folder("cubins"))
    except OSError as error:
        _warn_once("opened", error)
        return None


@contextlib.contextmanager
def _best_effort(what: str) -> Iterator[None]:
    """Warn of what fails: a cache may cost time, and never a result."""
    try:
        yield
    except OSError as error:
        _warn_once(what, error)


def _warn_once(what: str, error: OSError) -> None:
    _warn(f"the cache of cubins cannot be {what}: {error.strerror or error}")


@cache
def _warn(message: str) -> None:
    """Warn once: there may be hundreds of kernels, and one cause."""
    _log.warning("%s", message)


def _sha256(content: bytes) -> str:
    import hashlib  # noqa: PLC0415 - it would cost a fifth of what importing quantplan does

    return hashlib.sha256(content).hexdigest()


def _after_fork() -> None:
    global _one_compiler  # noqa: PLW0603 - a thread that the child does not have may hold it
    _one_compiler = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
