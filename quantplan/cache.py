"""The folder of compiled kernels: private to its user, and written so that no process reads half a file.

What lies there is loaded as code. A folder that somebody else could have written to is therefore not used: compiled
kernels then live in a temporary folder of this process.
"""

from __future__ import annotations

import os
import sys
import tempfile
from functools import cache
from pathlib import Path


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
    root = cache_root()
    place = root / name
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return _temporary(name)
    return place if all(why_untrusted(path) is None for path in (root, place)) else _temporary(name)


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
def _temporary(name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"quantplan-{name}-"))


def _absolute(variable: str) -> Path | None:
    """Return the folder that an environment variable names; a relative one would follow the working directory."""
    place = Path(os.environ.get(variable, ""))
    return place if place.is_absolute() else None
