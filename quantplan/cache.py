"""The folder of compiled kernels: private to its user, and written so that no process reads half a file.

What lies there is loaded as code. A folder that somebody else could have written to is therefore not used: compiled
kernels then live in a temporary folder of this process.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

_STALE_SECONDS = 3600  # nobody takes that long to write a file
_log = logging.getLogger(__name__)


def cache_root() -> Path:
    """Return the folder for compiled kernels: ``QUANTPLAN_CACHE_DIR``, or the platform's folder for caches."""
    if chosen := os.environ.get("QUANTPLAN_CACHE_DIR"):
        return Path(chosen)
    if sys.platform == "win32":
        base = _absolute("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = _absolute("XDG_CACHE_HOME") or Path.home() / ".cache"
    return base / "quantplan"


def folder(name: str) -> Path:
    """Return a private folder of the cache, made if need be; a temporary one where the cache cannot be trusted.

    Parameters
    ----------
    name : str
        Which: compiled kernels of each kind lie apart.
    """
    try:
        root = cache_root()
        reason = _make(root) or _make(root / name)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        reason = str(error)
    if reason:
        return _temporary(name, reason)
    _sweep(root / name)
    return root / name


@cache
def _sweep(place: Path) -> None:
    """Remove what writers that were killed have left in a folder, once in a process."""
    for path in place.glob(".*"):
        with contextlib.suppress(OSError):
            if path.is_file() and time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()


def _make(path: Path) -> str | None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return why_untrusted(path)


def why_untrusted(path: Path) -> str | None:
    """Return why code in a folder may not be one's own, or None."""
    if path.is_symlink():
        return f"{path} is a symbolic link"
    if not os.access(path, os.W_OK | os.X_OK):
        return f"{path} cannot be written"
    if sys.platform == "win32":
        return None
    status = path.stat()
    if status.st_uid != os.getuid():
        return f"{path} belongs to somebody else"
    if status.st_mode & 0o022:
        return f"others can write to {path}"
    return None


def write(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when it is complete."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@cache
def _temporary(name: str, reason: str) -> Path:
    place = Path(tempfile.mkdtemp(prefix=f"quantplan-{name}-"))
    _log.warning("compiled kernels are not kept: %s", reason)
    atexit.register(_remove, place, os.getpid())
    return place


def _remove(place: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child leaves it to its parent
        shutil.rmtree(place, ignore_errors=True)


def _absolute(variable: str) -> Path | None:
    """Return the folder that an environment variable names; a relative one would follow the working directory."""
    place = Path(os.environ.get(variable, ""))
    return place if place.is_absolute() else None
